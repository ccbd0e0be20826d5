//! Calls of functions whose arguments PostgreSQL reads otherwise than DataFusion does: literals of unknown type, the session's zone,
//! exact types of results.
//!
//! *Place*: `query::typing` calls [`scalar`] for every call, its arguments typed before.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator};

use super::{assign, branches, bytes, casts, chains, local, operators, sql_type};
use crate::error::Error;
use crate::query::functions::{self, cast, session, text, time, zone};
use crate::types::SqlType;

/// Types a call.
pub fn scalar(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if let Some(zoned) = functions::json::build::zoned(&function, session::time_zone()) {
        return Ok(Transformed::yes(zoned));
    }
    let function = bytes::call(function, schema)?;
    let name = function.func.name();
    match name {
        cast::WRITTEN => match function.args.into_iter().next() {
            Some(value) => Ok(Transformed::yes(value)),
            None => Err(Error::internal("a written cast without a value").into()),
        },
        "date_trunc" | "date_bin" | "tumble" | "hop" | "session" | "session_end" | "window_end" | "extract" | "extract_seconds"
        | "date_part" | "age" | "make_timestamptz" | "to_timestamp" | "timezone" => of_time(function, schema),
        "ceil" | "floor" | "trunc" | "round" | "to_hex" | "mod" => of_numbers(function, schema),
        "coalesce" | "nvl" | "greatest" | "least" | "make_array" | "nullif" | functions::chain::NAME | assign::NAME => {
            of_choices(function, schema)
        }
        _ => of_others(function, schema),
    }
}

/// Calls about times and windows: lengths are intervals, instants are read in the session's zone.
fn of_time(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    match (name, function.args.as_slice()) {
        ("date_trunc", [unit, _]) => {
            valid_unit(unit)?;
            truncate(function, None, schema)
        }
        ("date_trunc", [_, _, _]) => truncate(function, Some(()), schema),
        ("date_bin", [stride, time, rest @ ..]) if rest.len() < 2 => {
            let mut args = vec![operators::literal_as(stride.clone(), &SqlType::Interval)?, time.clone()];
            for origin in rest {
                args.push(operators::operand(origin.clone(), time, schema)?);
            }
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&function.func), args))))
        }
        ("tumble" | "hop" | "session" | "session_end" | "window_end", [time, lengths @ ..]) => {
            let mut args = vec![time.clone()];
            for length in lengths {
                args.push(operators::literal_as(length.clone(), &SqlType::Interval)?);
            }
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&function.func), args))))
        }
        ("extract" | "extract_seconds" | "date_part", [field, argument]) => {
            let instant = matches!(argument.get_type(schema)?, DataType::Timestamp(_, Some(_)));
            let epoch = matches!(field, Expr::Literal(value, _) if value.try_as_str().flatten().is_some_and(|text| text.eq_ignore_ascii_case("epoch")));
            if !instant || epoch {
                return Ok(Transformed::no(Expr::ScalarFunction(function)));
            }
            let ScalarFunction { func, mut args } = function;
            args[1] = local(args[1].clone());
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("age", [argument]) => {
            let today = Expr::Cast(Cast::new(Box::new(session::today()), wall_clock()));
            let argument = argument.clone();
            let ScalarFunction { func, .. } = function;
            let call = ScalarFunction::new_udf(func, vec![today, argument]);
            scalar(call, schema).map(|typed| Transformed::yes(typed.data))
        }
        ("age", [one, other]) if operators::unknown(one).is_some() || operators::unknown(other).is_some() => {
            // A literal has the type of the other; of two literals both are instants.
            let of = |known: &Expr| -> Result<SqlType> {
                Ok(if operators::unknown(known).is_some() { SqlType::Timestamptz } else { sql_type(known, schema)? })
            };
            let args = vec![operators::literal_as(one.clone(), &of(other)?)?, operators::literal_as(other.clone(), &of(one)?)?];
            of_others(ScalarFunction::new_udf(Arc::clone(&function.func), args), schema)
        }
        ("make_timestamptz", [_, _, _, _, _, _, ..]) => {
            let mut parts = function.args;
            let zone = if parts.len() > 6 { parts.pop() } else { None };
            let local = functions::make::timestamp("make_local_timestamp").call(parts);
            Ok(Transformed::yes(zone::to_instant(zone.unwrap_or_else(session::time_zone), local)))
        }
        ("to_timestamp", [text, template]) => {
            let local = functions::templates::timestamp().call(vec![text.clone(), template.clone()]);
            Ok(Transformed::yes(zone::to_instant(session::time_zone(), local)))
        }
        ("timezone", [_, argument]) => {
            let instant = matches!(argument.get_type(schema)?, DataType::Timestamp(_, Some(_)));
            let Ok([zone, argument]) = <[Expr; 2]>::try_from(function.args) else {
                return Err(Error::internal("timezone() takes two arguments").into());
            };
            Ok(Transformed::yes(if instant { zone::to_local(zone, argument) } else { zone::to_instant(zone, argument) }))
        }
        _ => of_others(function, schema),
    }
}

/// Calls about numbers, of which some types have functions of their own.
fn of_numbers(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    match (name, function.args.as_slice()) {
        ("ceil" | "floor" | "trunc" | "round", [value]) if matches!(value.get_type(schema)?, DataType::Decimal128(_, _)) => {
            Ok(Transformed::yes(functions::math::whole(name).call(vec![value.clone()])))
        }
        ("round", [value]) if matches!(value.get_type(schema)?, DataType::Float64 | DataType::Float32) => {
            Ok(Transformed::yes(functions::arithmetic::rounded().call(vec![value.clone()])))
        }
        // A literal's digits decide the type; a parameter's must not change it when they are known.
        ("round" | "trunc", [value, Expr::Placeholder(_)]) if matches!(value.get_type(schema)?, DataType::Decimal128(_, _)) => {
            let call = Expr::ScalarFunction(function);
            let data_type = call.get_type(schema)?;
            Ok(Transformed::yes(casts::to(call, data_type)))
        }
        ("to_hex", [value]) if matches!(value.get_type(schema)?, DataType::Int32) => {
            // Of a negative integer its 32 bits.
            let bits = Expr::Literal(ScalarValue::Int64(Some(0xFFFF_FFFF)), None);
            let value = casts::to(value.clone(), DataType::Int64);
            let value = Expr::BinaryExpr(BinaryExpr::new(Box::new(value), Operator::BitwiseAnd, Box::new(bits)));
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&function.func), vec![value]))))
        }
        ("mod", [left, right]) => operators::arithmetic(left.clone(), Operator::Modulo, right.clone(), schema),
        _ => of_others(function, schema),
    }
}

/// Calls that give one of their arguments: these have one type.
fn of_choices(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    match (name, function.args.as_slice()) {
        ("coalesce" | "nvl" | "greatest" | "least" | "make_array", [_, ..]) => {
            let what = match name {
                "greatest" => "GREATEST",
                "least" => "LEAST",
                "make_array" => "ARRAY",
                _ => "COALESCE",
            };
            let ScalarFunction { func, args } = function;
            let func = functions::branches::real(func);
            let args = branches::unified(what, args, schema)?;
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("nullif", [value, other]) => {
            let args = vec![value.clone(), operators::operand(other.clone(), value, schema)?];
            let func = functions::branches::real(Arc::clone(&function.func));
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        (functions::chain::NAME, [_, _, ..]) => chains::typed(function.args, schema).map(Transformed::yes),
        (assign::NAME, [_, _, _]) => assign::typed(function.args, schema).map(Transformed::yes),
        _ => of_others(function, schema),
    }
}

/// Calls about texts and documents, and all others.
fn of_others(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    match (name, function.args.as_slice()) {
        (name, [document, ..]) if functions::json::reads(name) && operators::unknown(document).is_some() => {
            let target = if name.starts_with("jsonb") { SqlType::Jsonb } else { SqlType::Json };
            let ScalarFunction { func, mut args } = function;
            let document = args.remove(0);
            args.insert(0, operators::literal_as(document, &target)?);
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("to_char", [value, template]) if value.get_type(schema)?.is_numeric() => {
            let text = text::format(value.clone(), sql_type(value, schema)?, session::time_zone());
            Ok(Transformed::yes(functions::templates::number_to_char().call(vec![text, template.clone()])))
        }
        ("regexp_count" | "regexp_instr", _) => Ok(Transformed::yes(casts::to(Expr::ScalarFunction(function), DataType::Int32))),
        (name, _) if functions::strings::TAKES_TEXT.contains(&name) => {
            let ScalarFunction { func, args } = function;
            let args = args.into_iter().map(|argument| as_text(argument, schema)).collect::<Result<Vec<_>>>()?;
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("date_diff" | "datediff" | "age" | "to_char", _) => {
            let ScalarFunction { func, args } = function;
            let args = args
                .into_iter()
                .map(|argument| match argument.get_type(schema)? {
                    DataType::Timestamp(_, Some(_)) => Ok(local(argument)),
                    _ => Ok(argument),
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("pg_typeof", [argument]) => {
            let name = match argument.get_type(schema)? {
                _ if operators::unknown(argument).is_some() => "unknown".to_owned(),
                DataType::Null => "unknown".to_owned(),
                _ => branches::plain(&sql_type(argument, schema)?),
            };
            Ok(Transformed::yes(Expr::Literal(ScalarValue::Utf8View(Some(name)), None)))
        }
        _ => untyped(function, schema),
    }
}

/// A call as it is, but for what PostgreSQL counts in integers.
fn untyped(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    let is_length = name == "array_length";
    let expression = Expr::ScalarFunction(function);
    match expression.get_type(schema) {
        // An array without elements has no length.
        Ok(DataType::UInt64) if is_length => {
            let length = casts::to(expression, DataType::Int32);
            let zero = Expr::Literal(ScalarValue::Int32(Some(0)), None);
            Ok(Transformed::yes(datafusion::functions::core::nullif().call(vec![length, zero])))
        }
        // Lengths and positions of arrays are integer in PostgreSQL.
        Ok(DataType::UInt64) => Ok(Transformed::yes(casts::to(expression, DataType::Int32))),
        _ => Ok(Transformed::no(expression)),
    }
}

/// An argument as its text; NULL and what is text already as they are.
fn as_text(argument: Expr, schema: &DFSchema) -> Result<Expr> {
    let data_type = argument.get_type(schema)?;
    Ok(match data_type.is_null() || functions::is_text(&data_type) {
        true => argument,
        false => {
            let from = sql_type(&argument, schema)?;
            text::format(argument, from, session::time_zone())
        }
    })
}

/// The type of local times.
fn wall_clock() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

fn truncate(function: ScalarFunction, zone: Option<()>, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let ScalarFunction { func, mut args } = function;
    let argument = args[1].get_type(schema)?;
    match (argument, zone) {
        (DataType::Timestamp(_, Some(_)), None) => {
            args.push(session::time_zone());
            Ok(Transformed::yes(time::truncate_in_zone().call(args)))
        }
        (DataType::Timestamp(_, Some(_)), Some(())) => Ok(Transformed::yes(time::truncate_in_zone().call(args))),
        // A date is taken as midnight in the session's zone, and the result is a timestamptz.
        (DataType::Date32, None) => {
            let midnight = casts::to(args.remove(1), wall_clock());
            args.push(zone::to_instant(session::time_zone(), midnight));
            args.push(session::time_zone());
            Ok(Transformed::yes(time::truncate_in_zone().call(args)))
        }
        (DataType::Timestamp(_, None), None) => Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction::new_udf(func, args)))),
        (DataType::Interval(_), _) => Err(Error::unsupported("date_trunc() of an interval is not supported").into()),
        (other, _) => Err(functions::undefined("date_trunc", &[DataType::Utf8View, other]).into()),
    }
}

fn valid_unit(unit: &Expr) -> Result<()> {
    match unit {
        Expr::Literal(value, _) => match value.try_as_str().flatten() {
            Some(text) => Ok(time::check_unit(text)?),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
