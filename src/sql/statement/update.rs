//! `UPDATE [ONLY] t [[AS] alias] SET {column = value | (columns) = (values)} [, ...] [FROM ...] [WHERE ...] [RETURNING ...]`.
//!
//! A value is an expression or DEFAULT; a list of columns also takes ROW(...) and a subquery of as many columns.

use sqlparser::ast;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::{Assignment, Statement, Update};
use crate::error::{Error, Result};
use crate::sql::query;
use crate::sql::reader::{Reader, fold};

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["UPDATE"])?;
    reader.accept(&["ONLY"]);
    let table = reader.name()?;
    reader.accept_token(&Token::Mul);
    let alias = alias(reader, "SET")?;
    reader.expect(&["SET"])?;
    let assignments = reader.separated(assignment)?.concat();
    let from = match reader.accept(&["FROM"]) {
        true => reader.run(|parser| parser.parse_comma_separated(Parser::parse_table_and_joins))?,
        false => Vec::new(),
    };
    let (selection, returning) = conditions(reader)?;
    let mut update = Update { table, alias, assignments, from, selection, returning };
    let values = update.assignments.iter_mut().filter_map(|assignment| assignment.value.as_mut());
    query::check_parts(values, &mut update.from, update.selection.as_mut(), update.returning.as_deref_mut())?;
    Ok(Statement::Update(update))
}

/// `[AS] alias`, unless the keyword that follows the table comes next.
pub(super) fn alias(reader: &mut Reader<'_>, follows: &str) -> Result<Option<String>> {
    let named = reader.accept(&["AS"]);
    if !named && (reader.word(0).as_deref() == Some(follows) || reader.at_end() || reader.sees_reserved()) {
        return Ok(None);
    }
    reader.identifier().map(Some)
}

/// `[WHERE condition] [RETURNING items]`.
pub(super) fn conditions(reader: &mut Reader<'_>) -> Result<(Option<ast::Expr>, Option<Vec<ast::SelectItem>>)> {
    if reader.sees(&["WHERE", "CURRENT", "OF"]) {
        return Err(Error::unsupported("WHERE CURRENT OF is not supported"));
    }
    let selection = match reader.accept(&["WHERE"]) {
        true => Some(reader.run(Parser::parse_expr)?),
        false => None,
    };
    let returning = match reader.accept(&["RETURNING"]) {
        true => Some(reader.run(|parser| parser.parse_comma_separated(Parser::parse_select_item))?),
        false => None,
    };
    Ok((selection, returning))
}

/// One member of SET's list, which may be about several columns.
pub(super) fn assignment(reader: &mut Reader<'_>) -> Result<Vec<Assignment>> {
    let several = reader.sees_token(&Token::LParen);
    let columns = if several { reader.column_list()? } else { vec![column(reader)?] };
    reader.expect_token(&Token::Eq)?;
    if !several {
        let value = value(reader)?;
        return Ok(columns.into_iter().map(|column| Assignment { column, value: value.clone() }).collect());
    }
    let place = reader.raise(Error::syntax("number of columns does not match number of values"));
    let values = values(reader, columns.len())?;
    if values.len() != columns.len() {
        return Err(place);
    }
    Ok(columns.into_iter().zip(values).map(|(column, value)| Assignment { column, value }).collect())
}

fn column(reader: &mut Reader<'_>) -> Result<String> {
    let column = reader.identifier()?;
    if reader.sees_token(&Token::Period) || reader.sees_token(&Token::LBracket) {
        return Err(Error::unsupported(format!("assigning to a part of a column is not supported: {column}")));
    }
    Ok(column)
}

fn value(reader: &mut Reader<'_>) -> Result<Option<ast::Expr>> {
    if reader.accept(&["DEFAULT"]) {
        return Ok(None);
    }
    reader.run(Parser::parse_expr).map(Some)
}

/// `(value, ...)`, `ROW(value, ...)` or a subquery, whose columns become a subquery each.
fn values(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Option<ast::Expr>>> {
    reader.accept(&["ROW"]);
    reader.expect_token(&Token::LParen)?;
    if !reader.sees_query() || reader.sees_token(&Token::LParen) {
        let values = reader.separated(value)?;
        reader.expect_token(&Token::RParen)?;
        return Ok(values);
    }
    let subquery = reader.query()?;
    reader.expect_token(&Token::RParen)?;
    let mismatch =
        || Error::syntax("number of columns does not match number of values").hint("Name each column of the subquery in its SELECT list.");
    let ast::SetExpr::Select(select) = subquery.body.as_ref() else { return Err(mismatch()) };
    let is_wildcard = |item: &ast::SelectItem| matches!(item, ast::SelectItem::Wildcard(_) | ast::SelectItem::QualifiedWildcard(..));
    if select.projection.len() != count || select.projection.iter().any(is_wildcard) {
        return Err(mismatch());
    }
    // An aggregate makes one row of all, which it has to do for every column.
    let whole = select.projection.iter().any(|item| item.to_string().contains('('));
    let names: Vec<String> = (0..count).map(|index| format!("c{index}")).collect();
    let one = |index: usize| {
        let mut only = subquery.clone();
        if whole {
            let text = format!("SELECT {} FROM ({subquery}) AS assigned ({})", names[index], names.join(", "));
            only = Box::new(crate::sql::parse_query(&text)?);
        } else if let ast::SetExpr::Select(select) = only.body.as_mut() {
            select.projection = vec![select.projection[index].clone()];
        }
        Ok(Some(ast::Expr::Subquery(only)))
    };
    (0..count).map(one).collect()
}

/// The name of a column of a syntax tree that ON CONFLICT has parsed.
pub(super) fn of_tree(assignment: ast::Assignment) -> Result<Vec<Assignment>> {
    let is_default = |value: &ast::Expr| matches!(value, ast::Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"));
    let given = |value: ast::Expr| if is_default(&value) { None } else { Some(value) };
    let name = |name: &ast::ObjectName| match name.0.as_slice() {
        [ast::ObjectNamePart::Identifier(ident)] => Ok(fold(&ident.value, ident.quote_style)),
        _ => Err(Error::unsupported(format!("assigning to a part of a column is not supported: {name}"))),
    };
    match (assignment.target, assignment.value) {
        (ast::AssignmentTarget::ColumnName(column), value) => Ok(vec![Assignment { column: name(&column)?, value: given(value) }]),
        (ast::AssignmentTarget::Tuple(columns), ast::Expr::Tuple(values)) if columns.len() == values.len() => {
            columns.iter().zip(values).map(|(column, value)| Ok(Assignment { column: name(column)?, value: given(value) })).collect()
        }
        (ast::AssignmentTarget::Tuple(columns), ast::Expr::Nested(value)) if columns.len() == 1 => {
            Ok(vec![Assignment { column: name(&columns[0])?, value: given(*value) }])
        }
        (ast::AssignmentTarget::Tuple(_), _) => Err(Error::syntax("number of columns does not match number of values")),
    }
}
