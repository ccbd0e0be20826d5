//! Casts: text by PostgreSQL's formats, floats and numerics rounded, timestamps by the session's time zone.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable};

use super::local;
use crate::error::{Error, SqlState};
use crate::query::functions::{arithmetic, cast, decimal, is_text, session, text, type_name, zone};
use crate::types::SqlType;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// A plain cast, without a SQL type in mind.
pub fn to(expression: Expr, data_type: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(expression), data_type))
}

/// A cast that the user wrote.
pub fn explicit(written: Cast, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Cast { expr, field } = written;
    let source = expr.get_type(schema)?;
    let target = SqlType::of_field(&field);
    if field.data_type() != &target.arrow() {
        return Ok(Transformed::no(Expr::Cast(Cast { expr, field })));
    }
    if cast::is_inexact(&source, &target.arrow()) {
        return Ok(Transformed::yes(cast::narrowed(*expr, &target)));
    }
    match convert(*expr, &source, &target, &field, schema)? {
        Ok(expression) => Ok(Transformed::yes(expression)),
        Err(expression) => Ok(Transformed::no(Expr::Cast(Cast::new_from_field(Box::new(expression), field)))),
    }
}

/// A value of any type as its text.
pub fn as_text(expression: Expr, source: &DataType, schema: &DFSchema) -> Result<Expr> {
    let field = SqlType::Text.field("", true).into();
    Ok(match convert(expression, source, &SqlType::Text, &field, schema)? {
        Ok(text) => text,
        Err(expression) => Expr::Cast(Cast::new_from_field(Box::new(expression), field)),
    })
}

/// A cast to a column's type by assignment: out of range is an error, and text is read as the type.
pub fn assignment(expression: Expr, source: &DataType, target: &DataType, schema: &DFSchema) -> Result<Expr> {
    let sql_type = match target {
        // A string column keeps any text; its length is checked by the caller.
        text if is_text(text) => SqlType::Text,
        other => SqlType::of_arrow(other),
    };
    let field: FieldRef = Arc::new(sql_type.field("", true));
    Ok(match convert(expression, source, &sql_type, &field, schema)? {
        Ok(expression) if expression.get_type(schema)? == *target => expression,
        Ok(expression) | Err(expression) => to(expression, target.clone()),
    })
}

/// The constant that a string literal stands for as `target`, or a call that reads it once the time zone is known.
pub fn constant(value: &str, target: &SqlType) -> Result<Expr> {
    let literal = || Expr::Literal(ScalarValue::Utf8View(Some(value.to_owned())), None);
    Ok(match target {
        SqlType::Timestamptz => text::parse(literal(), SqlType::Timestamptz, session::time_zone()),
        // `now`, `today` and their like depend on the clock; they are refused by the parser of the format.
        _ => Expr::Literal(parse_scalar(target, value, &Zone::UTC)?, metadata(target)),
    })
}

fn metadata(target: &SqlType) -> Option<FieldMetadata> {
    let field = target.field("", true);
    (!field.metadata().is_empty()).then(|| FieldMetadata::from(field.metadata().clone()))
}

/// `Ok` with another expression, or `Err` with the same where a plain cast is right.
fn convert(expression: Expr, source: &DataType, target: &SqlType, field: &FieldRef, schema: &DFSchema) -> Result<Result<Expr, Expr>> {
    if matches!(source, DataType::Null) || matches!(&expression, Expr::Placeholder(parameter) if parameter.field.is_none()) {
        return Ok(Err(expression));
    }
    if is_text(source) {
        let from = super::sql_type(&expression, schema)?;
        // A document's text is no document any more.
        if matches!(from, SqlType::Json | SqlType::Jsonb) && matches!(target, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_)) {
            return Ok(Ok(limited(text::format(expression, from, session::time_zone()), target)));
        }
        return from_text(expression, target);
    }
    let to_text = matches!(target, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name | SqlType::Json | SqlType::Jsonb);
    if to_text {
        let from = super::sql_type(&expression, schema)?;
        let written = match source {
            DataType::Boolean | DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Date32 => {
                to(expression, DataType::Utf8View)
            }
            _ => text::format(expression, from, session::time_zone()),
        };
        return Ok(Ok(limited(written, target)));
    }
    let instant = DataType::Timestamp(TimeUnit::Microsecond, Some(crate::types::UTC.into()));
    let wall = DataType::Timestamp(TimeUnit::Microsecond, None);
    Ok(match (source, target) {
        (DataType::Timestamp(_, Some(_)), SqlType::Date | SqlType::Time) => {
            Ok(Expr::Cast(Cast::new_from_field(Box::new(local(expression)), Arc::clone(field))))
        }
        (DataType::Timestamp(_, Some(_)), SqlType::Timestamp) => Ok(local(expression)),
        (DataType::Timestamp(_, None), SqlType::Timestamptz) => Ok(zone::to_instant(session::time_zone(), expression)),
        (DataType::Date32, SqlType::Timestamptz) => Ok(zone::to_instant(session::time_zone(), to(expression, wall))),
        (from, SqlType::Timestamptz) if *from == instant => Ok(expression),
        (DataType::Float32 | DataType::Float64, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt) => {
            let rounded = arithmetic::rounded().call(vec![expression]);
            Ok(Expr::Cast(Cast::new_from_field(Box::new(rounded), Arc::clone(field))))
        }
        (DataType::Decimal128(_, scale), SqlType::SmallInt | SqlType::Integer | SqlType::BigInt) if *scale > 0 => {
            let rounded = to(expression, DataType::Decimal128(38, 0));
            Ok(Expr::Cast(Cast::new_from_field(Box::new(rounded), Arc::clone(field))))
        }
        (DataType::Float64, SqlType::Real) => Ok(arithmetic::real().call(vec![expression])),
        (DataType::Float32 | DataType::Float64, SqlType::Numeric(_)) => {
            Ok(text::parse(decimal::digits().call(vec![expression]), target.clone(), session::time_zone()))
        }
        // Items are rounded as values are.
        (DataType::List(item), SqlType::Array(element)) if is_fraction(item.data_type()) && element.arrow().is_integer() => {
            let whole = DataType::new_list(DataType::Decimal128(38, 0), true);
            Ok(Expr::Cast(Cast::new_from_field(Box::new(to(expression, whole)), Arc::clone(field))))
        }
        (DataType::List(_), SqlType::Array(_)) if super::sql_type(&expression, schema)?.is_vector() => {
            Ok(Expr::Cast(Cast::new_from_field(Box::new(cast::array_of_vector(expression)), Arc::clone(field))))
        }
        (from, target) if impossible(from, target) => return Err(cannot_cast(from, target).into()),
        _ => Err(expression),
    })
}

fn is_fraction(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Decimal128(_, _))
}

fn from_text(expression: Expr, target: &SqlType) -> Result<Result<Expr, Expr>> {
    match target {
        SqlType::Text | SqlType::Varchar(None) | SqlType::Name => return Ok(Err(expression)),
        SqlType::Varchar(Some(_)) | SqlType::Char(_) => return Ok(Ok(limited(expression, target))),
        _ => {}
    }
    if let Expr::Literal(value, _) = &expression {
        return match value.try_as_str().flatten() {
            Some(text) => constant(text, target).map(Ok),
            None => Ok(Err(Expr::Literal(ScalarValue::Null, None))),
        };
    }
    Ok(Ok(text::parse(expression, target.clone(), session::time_zone())))
}

/// An explicit cast to varchar(n) cuts.
fn limited(text: Expr, target: &SqlType) -> Expr {
    match target {
        SqlType::Varchar(Some(length)) | SqlType::Char(length) => {
            let cut =
                datafusion::functions::unicode::left().call(vec![text, Expr::Literal(ScalarValue::Int64(Some(i64::from(*length))), None)]);
            Expr::Cast(Cast::new_from_field(Box::new(cut), Arc::new(target.field("", true))))
        }
        _ => Expr::Cast(Cast::new_from_field(Box::new(text), Arc::new(target.field("", true)))),
    }
}

fn impossible(source: &DataType, target: &SqlType) -> bool {
    let number = |data_type: &DataType| data_type.is_numeric();
    let time = |data_type: &DataType| {
        matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32 | DataType::Time64(_) | DataType::Interval(_))
    };
    let target = target.arrow();
    (number(source) && time(&target))
        || (time(source) && number(&target))
        || matches!((source, &target), (DataType::Boolean, other) if time(other))
        || matches!((source, &target), (DataType::FixedSizeBinary(16), other) if number(other) || time(other) || matches!(other, DataType::Boolean))
        || matches!((source, &target), (other, DataType::FixedSizeBinary(16)) if number(other) || time(other) || matches!(other, DataType::Boolean))
        || matches!((source, &target), (DataType::Float32 | DataType::Float64 | DataType::Decimal128(_, _), DataType::Boolean))
        || matches!((source, &target), (DataType::Boolean, DataType::Float32 | DataType::Float64 | DataType::Decimal128(_, _)))
}

fn cannot_cast(source: &DataType, target: &SqlType) -> Error {
    Error::new(SqlState("42846"), format!("cannot cast type {} to {}", type_name(source), type_name(&target.arrow())))
}
