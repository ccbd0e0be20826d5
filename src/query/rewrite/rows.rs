//! Comparisons of rows: `(a, b) = (c, d)`, `(a, b) < (c, d)`, `(a, b) IN ((1, 2), (3, 4))`, as comparisons of their values.
//!
//! *Place*: `rewrite` calls it for every comparison; rows that are not compared stay, and are refused by the planner.

use sqlparser::ast::{BinaryOperator, Expr, FunctionArg, FunctionArgExpr};

use crate::error::{Error, Result};

/// The values of `(a, b)` or `ROW(a, b)`.
pub(super) fn values(expression: &Expr) -> Option<Vec<Expr>> {
    match expression {
        Expr::Tuple(values) => Some(values.clone()),
        Expr::Nested(inner) => values(inner),
        Expr::Function(function) if super::last_name(&function.name).as_deref() == Some("row") => {
            let sqlparser::ast::FunctionArguments::List(list) = &function.args else { return None };
            list.args
                .iter()
                .map(|argument| match argument {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value.clone()),
                    _ => None,
                })
                .collect()
        }
        _ => None,
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn nested(expression: Expr) -> Expr {
    Expr::Nested(Box::new(expression))
}

fn pairs(left: Vec<Expr>, right: Vec<Expr>) -> Result<Vec<(Expr, Expr)>> {
    if left.len() != right.len() {
        return Err(Error::syntax("unequal number of entries in row expressions"));
    }
    if left.is_empty() {
        return Err(Error::unsupported("cannot compare rows of zero length"));
    }
    Ok(left.into_iter().zip(right).collect())
}

fn joined(conditions: impl Iterator<Item = Expr>, op: &BinaryOperator) -> Option<Expr> {
    conditions.reduce(|one, other| binary(one, op.clone(), other)).map(nested)
}

fn equal(left: Vec<Expr>, right: Vec<Expr>) -> Result<Option<Expr>> {
    let pairs = pairs(left, right)?;
    Ok(joined(pairs.into_iter().map(|(left, right)| binary(left, BinaryOperator::Eq, right)), &BinaryOperator::And))
}

/// A comparison of two rows; none where it is of anything else.
pub(super) fn comparison(left: &Expr, op: &BinaryOperator, right: &Expr) -> Result<Option<Expr>> {
    let (Some(left), Some(right)) = (values(left), values(right)) else { return Ok(None) };
    match op {
        BinaryOperator::Eq => equal(left, right),
        BinaryOperator::NotEq => {
            let pairs = pairs(left, right)?;
            Ok(joined(pairs.into_iter().map(|(left, right)| binary(left, BinaryOperator::NotEq, right)), &BinaryOperator::Or))
        }
        BinaryOperator::Lt | BinaryOperator::LtEq | BinaryOperator::Gt | BinaryOperator::GtEq => {
            let strict = match op {
                BinaryOperator::Lt | BinaryOperator::LtEq => BinaryOperator::Lt,
                _ => BinaryOperator::Gt,
            };
            // The first values that differ decide.
            let mut rest: Option<Expr> = None;
            for (left, right) in pairs(left, right)?.into_iter().rev() {
                rest = Some(match rest {
                    None => binary(left, op.clone(), right),
                    Some(rest) => {
                        let same = binary(left.clone(), BinaryOperator::Eq, right.clone());
                        let later = nested(binary(same, BinaryOperator::And, nested(rest)));
                        binary(binary(left, strict.clone(), right), BinaryOperator::Or, later)
                    }
                });
            }
            Ok(rest.map(nested))
        }
        _ => Ok(None),
    }
}

/// `row IN (row, ...)`; none where the left side is no row.
pub(super) fn in_list(row: &Expr, list: &[Expr], negated: bool) -> Result<Option<Expr>> {
    let Some(row) = values(row) else { return Ok(None) };
    let mut alternatives = Vec::with_capacity(list.len());
    for item in list {
        let Some(item) = values(item) else { return Ok(None) };
        alternatives.extend(equal(row.clone(), item)?);
    }
    let any = joined(alternatives.into_iter(), &BinaryOperator::Or);
    Ok(match negated {
        true => any.map(|any| Expr::UnaryOp { op: sqlparser::ast::UnaryOperator::Not, expr: Box::new(any) }),
        false => any,
    })
}

/// `row IS [NOT] NULL`: all of its values are, or none is. None where it is no row.
pub(super) fn is_null(row: &Expr, negated: bool) -> Option<Expr> {
    let row = values(row)?;
    let test = |value: Expr| if negated { Expr::IsNotNull(Box::new(value)) } else { Expr::IsNull(Box::new(value)) };
    joined(row.into_iter().map(test), &BinaryOperator::And)
}
