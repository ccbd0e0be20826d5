//! Times and intervals from their parts: make_time, make_timestamp, make_timestamptz, make_interval; isfinite.
//!
//! *Place*: called by name; the typing rules take make_timestamptz for a local time in the session's zone, `query::rewrite` puts
//! make_interval's named arguments in their order.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType,
};
use chrono::NaiveDate;
use datafusion::logical_expr::ScalarUDF;

use super::{Function, Typed, undefined};
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// The arguments of make_interval, in order.
pub const INTERVAL_PARTS: [&str; 7] = ["years", "months", "weeks", "days", "hours", "mins", "secs"];

const SECOND_US: f64 = 1e6;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new("make_time", |types| parts("make_time", types, 3, SqlType::Time.arrow()), make_time).udf(),
        timestamp("make_timestamp").udf(),
        Function::new(
            "make_timestamptz",
            |types| match types {
                [parts @ .., zone] if parts.len() == 6 && super::is_text(zone) => {
                    let (mut coerced, _) = self::parts("make_timestamptz", parts, 6, DataType::Null)?;
                    coerced.push(zone.clone());
                    Ok((coerced, SqlType::Timestamptz.arrow()))
                }
                _ => parts("make_timestamptz", types, 6, SqlType::Timestamptz.arrow()),
            },
            |_, _| Err(Error::internal("make_timestamptz() was not typed")),
        )
        .udf(),
        Function::new("make_interval", interval_types, make_interval).udf(),
        Function::new(
            "isfinite",
            |types| match types {
                [DataType::Date32 | DataType::Timestamp(_, _) | DataType::Interval(_)] => Ok((types.to_vec(), DataType::Boolean)),
                _ => Err(undefined("isfinite", types)),
            },
            // Infinite ones are refused wherever they are read.
            |args, _| {
                Ok(Arc::new((0..args[0].len()).map(|row| args[0].is_valid(row).then_some(true)).collect::<BooleanArray>()) as ArrayRef)
            },
        )
        .udf(),
    ]
}

/// Whole numbers, and seconds last.
fn parts(name: &str, types: &[DataType], count: usize, result: DataType) -> Result<Typed, Error> {
    let whole = |data_type: &DataType| data_type.is_integer() || data_type.is_null();
    match types {
        [rest @ .., seconds] if types.len() == count && rest.iter().all(whole) && (seconds.is_numeric() || seconds.is_null()) => {
            let mut coerced = vec![DataType::Int64; count - 1];
            coerced.push(DataType::Float64);
            Ok((coerced, result))
        }
        _ => Err(undefined(name, types)),
    }
}

/// The whole numbers and the microseconds of a row, or none where one of them is NULL.
fn row(args: &[ArrayRef], row: usize) -> Option<(Vec<i64>, i64)> {
    if args.iter().any(|arg| arg.is_null(row)) {
        return None;
    }
    let (seconds, whole) = args.split_last()?;
    let micros = (seconds.as_primitive::<Float64Type>().value(row) * SECOND_US).round_ties_even();
    // A float that is out of range saturates, and is refused as any other part is.
    Some((whole.iter().map(|arg| arg.as_primitive::<Int64Type>().value(row)).collect(), micros as i64))
}

fn out_of_range(what: &str) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("{what} field value out of range"))
}

fn time_of_day(hour: i64, minute: i64, micros: i64) -> Option<i64> {
    let fits = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60_000_000).contains(&micros);
    fits.then_some((hour * 60 + minute) * 60_000_000 + micros)
}

fn make_time(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let times = (0..args[0].len()).map(|at| match row(args, at) {
        None => Ok(None),
        Some((parts, micros)) => time_of_day(parts[0], parts[1], micros).map(Some).ok_or_else(|| out_of_range("time")),
    });
    Ok(Arc::new(times.collect::<Result<PrimitiveArray<Time64MicrosecondType>, Error>>()?))
}

/// The local time of its parts.
pub fn timestamp(name: &'static str) -> Function {
    Function::new(
        name,
        |types| parts("make_timestamp", types, 6, SqlType::Timestamp.arrow()),
        |args, _| {
            let times = (0..args[0].len()).map(|at| match row(args, at) {
                None => Ok(None),
                Some((parts, micros)) => local(&parts, micros).map(Some).ok_or_else(|| out_of_range("date")),
            });
            Ok(Arc::new(times.collect::<Result<PrimitiveArray<TimestampMicrosecondType>, Error>>()?) as ArrayRef)
        },
    )
}

fn local(parts: &[i64], micros: i64) -> Option<i64> {
    let [year, month, day, hour, minute] = parts else { return None };
    let date = NaiveDate::from_ymd_opt(i32::try_from(*year).ok()?, u32::try_from(*month).ok()?, u32::try_from(*day).ok()?)?;
    let midnight = date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros();
    midnight.checked_add(time_of_day(*hour, *minute, micros)?)
}

fn interval_types(types: &[DataType]) -> Result<Typed, Error> {
    match types.len() <= INTERVAL_PARTS.len() && types.iter().all(|each| each.is_numeric() || each.is_null()) {
        true => {
            let coerced = (0..types.len()).map(|index| if index == 6 { DataType::Float64 } else { DataType::Int64 }).collect();
            Ok((coerced, SqlType::Interval.arrow()))
        }
        false => Err(undefined("make_interval", types)),
    }
}

fn make_interval(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let rows = args.first().map_or(1, |first| first.len());
    let values = (0..rows).map(|row| {
        if args.iter().any(|arg| arg.is_null(row)) {
            return Ok(None);
        }
        let part = |index: usize| args.get(index).map_or(0, |arg| arg.as_primitive::<Int64Type>().value(row));
        let seconds = args.get(6).map_or(0.0, |arg| arg.as_primitive::<Float64Type>().value(row));
        let interval = || {
            let months = part(0).checked_mul(12)?.checked_add(part(1))?;
            let days = part(2).checked_mul(7)?.checked_add(part(3))?;
            let minutes = part(4).checked_mul(60)?.checked_add(part(5))?;
            let micros = minutes.checked_mul(60_000_000)?.checked_add((seconds * SECOND_US).round_ties_even() as i64)?;
            Some(IntervalMonthDayNano::new(i32::try_from(months).ok()?, i32::try_from(days).ok()?, micros.checked_mul(1_000)?))
        };
        interval().map(Some).ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "interval out of range"))
    });
    Ok(Arc::new(values.collect::<Result<PrimitiveArray<IntervalMonthDayNanoType>, Error>>()?))
}
