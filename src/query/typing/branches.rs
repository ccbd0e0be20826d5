//! One type for several expressions: UNION, CASE, VALUES, COALESCE, ARRAY (PostgreSQL manual, 10.5).
//!
//! *Place*: `query::typing` calls it wherever branches meet, before DataFusion's coercion, which would choose wider types.
//!
//! *Invariants*: (1) literals of unknown type take the others' type; (2) what meets nothing but unknown literals is text.

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{Expr, ExprSchemable};

use super::casts;
use super::operators::{open, unknown};
use crate::error::{Error, SqlState};
use crate::query::functions::is_text;
use crate::types::SqlType;

/// Gives branches one type. `what` is the construct's name as PostgreSQL reports a mismatch: `CASE types integer and text
/// cannot be matched` (42804).
pub fn unified(what: &str, branches: Vec<Expr>, schema: &DFSchema) -> Result<Vec<Expr>> {
    let types = branches.iter().map(|branch| known(branch, schema)).collect::<Result<Vec<_>>>()?;
    let Some(target) = one_type(what, types.iter().flatten())? else { return Ok(branches) };
    branches.into_iter().zip(types).map(|(branch, source)| converted(branch, source.as_ref(), &target, schema)).collect()
}

/// The type of branches, when there is one that is not open.
pub fn common(what: &str, branches: &[Expr], schema: &DFSchema) -> Result<Option<SqlType>> {
    let types = branches.iter().map(|branch| known(branch, schema)).collect::<Result<Vec<_>>>()?;
    one_type(what, types.iter().flatten())
}

/// The type of columns that are read together, when there is one that is not open.
pub fn one_type<'a>(what: &str, mut types: impl Iterator<Item = &'a SqlType>) -> Result<Option<SqlType>> {
    let Some(first) = types.next() else { return Ok(None) };
    types
        .try_fold(first.clone(), |common, next| match wider(&common, next) {
            Some(wider) => Ok(wider),
            None => {
                let message = format!("{what} types {} and {} cannot be matched", plain(&common), plain(next));
                Err(Error::new(SqlState::DATATYPE_MISMATCH, message).into())
            }
        })
        .map(Some)
}

/// An expression as a value of `target`; a literal or parameter of unknown type is read as it.
fn converted(branch: Expr, source: Option<&SqlType>, target: &SqlType, schema: &DFSchema) -> Result<Expr> {
    match source {
        None => match (unknown(&branch).map(str::to_owned), branch) {
            (Some(_), branch) if is_text(&target.arrow()) && !is_json(target) => Ok(branch),
            (Some(text), _) => casts::constant(&text, target),
            (None, Expr::Placeholder(mut placeholder)) => {
                placeholder.field = Some(Arc::new(target.field("", true)));
                Ok(Expr::Placeholder(placeholder))
            }
            (None, branch) => Ok(branch),
        },
        Some(source) if source.arrow() == target.arrow() => Ok(branch),
        Some(_) => {
            let from = branch.get_type(schema)?;
            if from == target.arrow() { Ok(branch) } else { casts::assignment(branch, &from, &target.arrow(), schema) }
        }
    }
}

/// The type of a branch, or none while it is open: NULL, a string literal, a parameter without a type.
fn known(branch: &Expr, schema: &DFSchema) -> Result<Option<SqlType>> {
    if open(branch) || unknown(branch).is_some() {
        return Ok(None);
    }
    match branch.get_type(schema)? {
        DataType::Null => Ok(None),
        _ => super::sql_type(branch, schema).map(Some),
    }
}

/// The type that holds the values of both, or none when they are of different kinds.
pub fn wider(left: &SqlType, right: &SqlType) -> Option<SqlType> {
    if left == right {
        return Some(left.clone());
    }
    if let (Some(left_rank), Some(right_rank)) = (number_rank(left), number_rank(right)) {
        return Some(match (decimal(left), decimal(right)) {
            (Some(left), Some(right)) if left_rank.max(right_rank) == NUMERIC_RANK => both_numeric(left, right),
            _ if left_rank >= right_rank => left.clone(),
            _ => right.clone(),
        });
    }
    if is_character(left) && is_character(right) {
        return Some(SqlType::Text);
    }
    if let (Some(left_rank), Some(right_rank)) = (time_rank(left), time_rank(right)) {
        return Some(if left_rank >= right_rank { left.clone() } else { right.clone() });
    }
    match (left, right) {
        (SqlType::Array(left), SqlType::Array(right)) => wider(left, right).map(|item| SqlType::Array(Box::new(item))),
        (SqlType::Oid, number) | (number, SqlType::Oid) if number_rank(number).is_some() => Some(number.clone()),
        _ if left.arrow() == right.arrow() && !is_text(&left.arrow()) => Some(left.clone()),
        _ => None,
    }
}

const NUMERIC_RANK: u8 = 4;

/// Place in the chain of implicit casts between numbers.
fn number_rank(sql_type: &SqlType) -> Option<u8> {
    Some(match sql_type {
        SqlType::SmallInt => 1,
        SqlType::Integer => 2,
        SqlType::BigInt => 3,
        SqlType::Numeric(_) => NUMERIC_RANK,
        SqlType::Real => 5,
        SqlType::Double => 6,
        _ => return None,
    })
}

fn is_character(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name)
}

fn time_rank(sql_type: &SqlType) -> Option<u8> {
    Some(match sql_type {
        SqlType::Date => 1,
        SqlType::Timestamp => 2,
        SqlType::Timestamptz => 3,
        _ => return None,
    })
}

fn is_json(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Json | SqlType::Jsonb)
}

/// Digits and scale of a number that is exact.
fn decimal(sql_type: &SqlType) -> Option<(u8, i8)> {
    Some(match sql_type {
        SqlType::SmallInt => (5, 0),
        SqlType::Integer => (10, 0),
        SqlType::BigInt => (19, 0),
        SqlType::Numeric(limits) => limits.unwrap_or(crate::types::NUMERIC_DEFAULT),
        _ => return None,
    })
}

/// All digits behind the point, and before it what then fits: a value that does not is an error when it comes.
fn both_numeric(left: (u8, i8), right: (u8, i8)) -> SqlType {
    let scale = left.1.max(right.1);
    let whole = |(precision, scale): (u8, i8)| i16::from(precision) - i16::from(scale);
    let precision = (whole(left).max(whole(right)) + i16::from(scale)).min(i16::from(DECIMAL128_MAX_PRECISION));
    SqlType::Numeric(Some((u8::try_from(precision).unwrap_or(DECIMAL128_MAX_PRECISION), scale)))
}

/// A type's name without its limits.
pub fn plain(sql_type: &SqlType) -> String {
    match sql_type {
        SqlType::Numeric(_) => "numeric".to_owned(),
        SqlType::Varchar(_) => "character varying".to_owned(),
        SqlType::Char(_) => "character".to_owned(),
        SqlType::Array(element) => format!("{}[]", plain(element)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(left: &str, right: &str, expected: Option<&str>) {
        let parsed = |name: &str| SqlType::parse(name).unwrap();
        assert_eq!(wider(&parsed(left), &parsed(right)).map(|common| common.to_string()).as_deref(), expected, "{left}, {right}");
    }

    #[test]
    fn branches_meet_as_in_postgres() {
        check("integer", "bigint", Some("bigint"));
        check("integer", "numeric(12,2)", Some("numeric(12,2)"));
        check("numeric(5,4)", "numeric(10,1)", Some("numeric(13,4)"));
        check("numeric(5,4)", "double precision", Some("double precision"));
        check("real", "integer", Some("real"));
        check("date", "timestamp with time zone", Some("timestamp with time zone"));
        check("character varying(3)", "text", Some("text"));
        check("integer", "text", None);
        check("jsonb", "text", None);
        check("boolean", "integer", None);
        check("integer[]", "bigint[]", Some("bigint[]"));
    }
}
