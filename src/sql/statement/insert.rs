//! `INSERT INTO t [AS alias] [(columns)] {query | VALUES ... | DEFAULT VALUES} [ON CONFLICT ...] [RETURNING ...]`.

use sqlparser::ast;
use sqlparser::parser::Parser;

use super::{ConflictTarget, ConflictUpdate, Insert, OnConflict, Statement, update};
use crate::error::{Error, Result};
use crate::sql::query;
use crate::sql::reader::{Reader, fold, name_of};

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    let column_defaults = default_values(reader)?;
    if let Some(insert) = column_defaults {
        return Ok(Statement::Insert(insert));
    }
    let parsed = reader.run(Parser::parse_statement)?;
    let ast::Statement::Insert(insert) = parsed else { return Err(Error::unsupported("this form of INSERT is not supported")) };
    let foreign = insert.or.is_some()
        || insert.ignore
        || insert.overwrite
        || insert.replace_into
        || insert.has_table_keyword
        || !insert.into
        || !insert.assignments.is_empty()
        || !insert.after_columns.is_empty()
        || insert.partitioned.is_some()
        || insert.output.is_some()
        || insert.priority.is_some()
        || insert.insert_alias.is_some()
        || insert.settings.is_some()
        || insert.format_clause.is_some()
        || insert.multi_table_insert_type.is_some()
        || !insert.multi_table_into_clauses.is_empty();
    let (ast::TableObject::TableName(table), false, Some(mut source)) = (&insert.table, foreign, insert.source) else {
        return Err(Error::syntax("this form of INSERT is not PostgreSQL's"));
    };
    query::check(&mut source)?;
    Ok(Statement::Insert(Insert {
        table: name_of(table)?,
        columns: insert.columns.iter().map(column).collect::<Result<_>>()?,
        source: Some(source),
        returning: insert.returning,
        alias: insert.table_alias.map(|alias| fold(&alias.alias.value, alias.alias.quote_style)),
        on_conflict: insert.on.map(on_conflict).transpose()?,
    }))
}

fn on_conflict(clause: ast::OnInsert) -> Result<OnConflict> {
    let ast::OnInsert::OnConflict(clause) = clause else { return Err(Error::syntax("this form of INSERT is not PostgreSQL's")) };
    let target = match clause.conflict_target {
        None => None,
        Some(ast::ConflictTarget::Columns(columns)) => {
            Some(ConflictTarget::Columns(columns.iter().map(|ident| fold(&ident.value, ident.quote_style)).collect()))
        }
        Some(ast::ConflictTarget::OnConstraint(name)) => Some(ConflictTarget::Constraint(name_of(&name)?.name)),
    };
    let update = match clause.action {
        ast::OnConflictAction::DoNothing => None,
        ast::OnConflictAction::DoUpdate(ast::DoUpdate { assignments, selection }) => {
            let assignments = assignments.into_iter().map(update::of_tree).collect::<Result<Vec<_>>>()?.concat();
            let mut update = ConflictUpdate { assignments, selection };
            let values = update.assignments.iter_mut().filter_map(|assignment| assignment.value.as_mut());
            query::check_parts(values, &mut [], update.selection.as_mut(), None)?;
            Some(update)
        }
    };
    if target.is_none() && update.is_some() {
        return Err(Error::syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name")
            .hint("For example, ON CONFLICT (column_name)."));
    }
    Ok(OnConflict { target, update })
}

fn column(name: &ast::ObjectName) -> Result<String> {
    match name.0.as_slice() {
        [ast::ObjectNamePart::Identifier(ident)] => Ok(fold(&ident.value, ident.quote_style)),
        _ => Err(Error::unsupported(format!("assigning to a part of a column is not supported: {name}"))),
    }
}

/// `INSERT INTO t DEFAULT VALUES`, which sqlparser does not tell apart from other sources.
fn default_values(reader: &mut Reader<'_>) -> Result<Option<Insert>> {
    let ahead = (3..=5).find(|ahead| reader.word(*ahead).as_deref() == Some("DEFAULT"));
    let found = ahead.is_some_and(|ahead| reader.word(ahead + 1).as_deref() == Some("VALUES"));
    if !found {
        return Ok(None);
    }
    reader.expect(&["INSERT", "INTO"])?;
    let table = reader.name()?;
    reader.expect(&["DEFAULT", "VALUES"])?;
    let returning = match reader.accept(&["RETURNING"]) {
        true => Some(reader.run(|parser| parser.parse_comma_separated(Parser::parse_select_item))?),
        false => None,
    };
    Ok(Some(Insert { table, columns: Vec::new(), source: None, returning, alias: None, on_conflict: None }))
}
