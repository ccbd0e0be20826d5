//! Comparisons with the rows of a subquery: `x = ANY (SELECT ...)`, `x > ALL (SELECT ...)`, `(a, b) IN (SELECT ...)`, also of
//! `ANY (ARRAY(SELECT ...))`.
//!
//! *Place*: `rewrite` calls it for these expressions, once what is inside of them is rewritten.
//!
//! DataFusion compares the subquery's column with the outer one by their names, which are the same where both are of one table. So
//! `= ANY` is IN, as in PostgreSQL's manual, `<> ALL` is NOT IN, and the rows of any other comparison have a name that no table has.

use sqlparser::ast::{
    self, BinaryOperator, CaseWhen, Expr, FunctionArguments, Ident, Query, SetExpr, TableAliasColumnDef, TableFactor, UnaryOperator,
};

use super::last_name;
use super::rows::values;
use crate::error::{Error, Result};

/// The name of the compared rows, and the beginning of their columns' names.
const SET: &str = "\u{1}set";
const VALUE: &str = "\u{1}value";

/// The subquery whose rows are compared; none where the right side is an array.
fn subquery(expression: &Expr) -> Option<&Query> {
    match expression {
        Expr::Subquery(query) => Some(query),
        Expr::Nested(inner) => subquery(inner),
        Expr::Function(function) if last_name(&function.name).as_deref() == Some("array") => match &function.args {
            FunctionArguments::Subquery(query) => Some(query),
            _ => None,
        },
        _ => None,
    }
}

/// `left op ANY (right)`; none where it stays as it is.
pub(super) fn any(left: &Expr, op: &BinaryOperator, right: &Expr, is_some: bool) -> Result<Option<Expr>> {
    let Some(query) = subquery(right) else { return Ok(None) };
    let left = Box::new(left.clone());
    if *op == BinaryOperator::Eq {
        return member(&left, query, false).map(Some);
    }
    one_value(&left)?;
    Ok(Some(Expr::AnyOp { left, compare_op: op.clone(), right: Box::new(Expr::Subquery(Box::new(apart(query, 0)?))), is_some }))
}

/// `left op ALL (right)`; none where it stays as it is.
pub(super) fn all(left: &Expr, op: &BinaryOperator, right: &Expr) -> Result<Option<Expr>> {
    let Some(query) = subquery(right) else { return Ok(None) };
    let left = Box::new(left.clone());
    if *op == BinaryOperator::NotEq {
        return member(&left, query, true).map(Some);
    }
    one_value(&left)?;
    Ok(Some(Expr::AllOp { left, compare_op: op.clone(), right: Box::new(Expr::Subquery(Box::new(apart(query, 0)?))) }))
}

fn one_value(left: &Expr) -> Result<()> {
    match values(left) {
        Some(_) => Err(Error::unsupported("only = ANY and <> ALL compare a row with the rows of a subquery")),
        None => Ok(()),
    }
}

fn member(left: &Expr, query: &Query, negated: bool) -> Result<Expr> {
    Ok(match row_in(left, query, negated)? {
        Some(condition) => condition,
        None => Expr::InSubquery { expr: Box::new(left.clone()), subquery: Box::new(query.clone()), negated },
    })
}

/// `(a, b) IN (SELECT ...)`, with NULL for what is not known; none where the left side is no row.
pub(super) fn row_in(left: &Expr, query: &Query, negated: bool) -> Result<Option<Expr>> {
    let Some(row) = values(left) else { return Ok(None) };
    let equal = || equal(&row);
    let unknown = Expr::IsNull(Box::new(nested(equal())));
    let when = |condition: Expr, result: ast::Value| CaseWhen { condition, result: Expr::value(result) };
    let case = Expr::Case {
        case_token: ast::helpers::attached_token::AttachedToken::empty(),
        end_token: ast::helpers::attached_token::AttachedToken::empty(),
        operand: None,
        conditions: vec![
            when(exists(query, row.len(), equal(), false)?, ast::Value::Boolean(true)),
            when(exists(query, row.len(), unknown, false)?, ast::Value::Null),
        ],
        else_result: Some(Box::new(Expr::value(ast::Value::Boolean(false)))),
    };
    Ok(Some(match negated {
        true => Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(nested(case)) },
        false => nested(case),
    }))
}

/// A conjunct of WHERE, where it does not matter whether a row is no member or not known to be one: so it can become a join.
pub(super) fn filter(conjunct: &mut Expr) -> Result<()> {
    match conjunct {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            filter(left)?;
            filter(right)
        }
        Expr::Nested(inner) => filter(inner),
        Expr::InSubquery { expr, subquery, negated } => {
            let Some(row) = values(expr) else { return Ok(()) };
            let equal = equal(&row);
            let condition = if *negated { Expr::IsNotFalse(Box::new(nested(equal))) } else { equal };
            *conjunct = exists(subquery, row.len(), condition, *negated)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn nested(expression: Expr) -> Expr {
    Expr::Nested(Box::new(expression))
}

fn column(index: usize) -> Expr {
    Expr::CompoundIdentifier(vec![Ident::with_quote('"', SET), Ident::with_quote('"', format!("{VALUE}{index}"))])
}

/// The row's values equal those of the subquery's row.
fn equal(row: &[Expr]) -> Expr {
    let pairs = row.iter().enumerate().map(|(index, value)| Expr::BinaryOp {
        left: Box::new(column(index)),
        op: BinaryOperator::Eq,
        right: Box::new(value.clone()),
    });
    let all = pairs.reduce(|one, other| Expr::BinaryOp { left: Box::new(one), op: BinaryOperator::And, right: Box::new(other) });
    all.unwrap_or_else(|| Expr::value(ast::Value::Boolean(true)))
}

fn exists(query: &Query, width: usize, condition: Expr, negated: bool) -> Result<Expr> {
    let mut subquery = apart(query, width)?;
    if let SetExpr::Select(select) = subquery.body.as_mut() {
        select.selection = Some(condition);
    }
    Ok(Expr::Exists { subquery: Box::new(subquery), negated })
}

/// `SELECT * FROM (query) AS set`, its columns named where `width` is given.
fn apart(query: &Query, width: usize) -> Result<Query> {
    // The text is a constant of this module.
    let mut around = crate::sql::parse_query("SELECT * FROM (SELECT 1) AS rows")?;
    if let SetExpr::Select(select) = around.body.as_mut()
        && let Some(TableFactor::Derived { subquery, alias: Some(alias), .. }) = select.from.first_mut().map(|from| &mut from.relation)
    {
        **subquery = query.clone();
        alias.name = Ident::with_quote('"', SET);
        let name = |index| TableAliasColumnDef { name: Ident::with_quote('"', format!("{VALUE}{index}")), data_type: None };
        alias.columns = (0..width).map(name).collect();
    }
    Ok(around)
}

/// As [`counted`], of `= ANY (...)` and `<> ALL (...)`.
pub(super) fn counted_of(left: &Expr, right: &Expr, negated: bool) -> Result<Option<Expr>> {
    subquery(right).map_or(Ok(None), |query| counted(left, query, negated))
}

/// `x IN (SELECT ...)` as a value, of counts: DataFusion joins for conditions only. None where the left side is a row.
///
/// The three counts tell whether there is such a value, whether there is NULL among the values, and whether there is any.
pub(super) fn counted(left: &Expr, query: &Query, negated: bool) -> Result<Option<Expr>> {
    if values(left).is_some() {
        return Ok(None);
    }
    let count = |condition: Option<Expr>| -> Result<Expr> {
        let mut counting = apart(query, 1)?;
        let count = crate::sql::parse_expression("count(*)")?;
        if let SetExpr::Select(select) = counting.body.as_mut() {
            select.projection = vec![ast::SelectItem::UnnamedExpr(count)];
            select.selection = condition;
        }
        let zero = Expr::value(ast::Value::Number("0".to_owned(), false));
        let count = Expr::Subquery(Box::new(counting));
        Ok(nested(Expr::BinaryOp { left: Box::new(count), op: BinaryOperator::Gt, right: Box::new(zero) }))
    };
    let found = count(Some(equal(std::slice::from_ref(left))))?;
    let and = |one: Expr, op: BinaryOperator, other: Expr| Expr::BinaryOp { left: Box::new(one), op, right: Box::new(other) };
    let absent = nested(and(Expr::IsNull(Box::new(left.clone())), BinaryOperator::And, count(None)?));
    let unknown = and(absent, BinaryOperator::Or, count(Some(Expr::IsNull(Box::new(column(0)))))?);
    let value = |value: bool| Expr::value(ast::Value::Boolean(value));
    Ok(Some(nested(Expr::Case {
        case_token: ast::helpers::attached_token::AttachedToken::empty(),
        end_token: ast::helpers::attached_token::AttachedToken::empty(),
        operand: None,
        conditions: vec![
            CaseWhen { condition: found, result: value(!negated) },
            CaseWhen { condition: unknown, result: Expr::value(ast::Value::Null) },
        ],
        else_result: Some(Box::new(value(negated))),
    })))
}
