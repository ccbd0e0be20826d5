//! Time zones: AT TIME ZONE and what depends on the session's zone.
//!
//! *Place*: the typing rules write calls with `session_time_zone()`; `query::resolve` turns those of UTC into plain casts.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Months};
use datafusion::logical_expr::{Expr, ScalarUDF};

use super::{Function, Typed, is_text, undefined};
use crate::clock::Micros;
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::text::calendar::TIMESTAMP_MIN_US;
use crate::types::zone::Zone;

/// Name of [`to_local`]'s function.
pub const LOCAL: &str = "timezone_local";
/// Name of [`to_instant`]'s function.
pub const INSTANT: &str = "timezone_instant";

/// Name of the function that adds an interval to an instant by the clocks of a zone.
pub const ADD: &str = "timestamptz_add";
/// Name of the function that subtracts one.
pub const SUBTRACT: &str = "timestamptz_subtract";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(LOCAL, types, convert).udf(),
        Function::new(INSTANT, types, convert).udf(),
        Function::new(ADD, shift_types, |args, result| shift(args, result, 1)).udf(),
        Function::new(SUBTRACT, shift_types, |args, result| shift(args, result, -1)).udf(),
        // What AT TIME ZONE calls; the typing rules replace it by one of the two.
        Function::new("timezone", types, convert).udf(),
    ]
}

/// The local time, in a zone, of an instant (timestamptz to timestamp).
pub fn to_local(zone: Expr, instant: Expr) -> Expr {
    Function::new(LOCAL, types, convert).call(vec![zone, instant])
}

/// The instant at which the clocks of a zone show a local time (timestamp to timestamptz).
pub fn to_instant(zone: Expr, local: Expr) -> Expr {
    Function::new(INSTANT, types, convert).call(vec![zone, local])
}

/// `instant + interval` or `instant - interval`, days and months being those of the session's calendar.
pub fn shifted(instant: Expr, interval: Expr, subtract: bool) -> Expr {
    let args = vec![instant, interval, super::session::time_zone()];
    match subtract {
        true => Function::new(SUBTRACT, shift_types, |args, result| shift(args, result, -1)).call(args),
        false => Function::new(ADD, shift_types, |args, result| shift(args, result, 1)).call(args),
    }
}

fn shift_types(types: &[DataType]) -> Result<Typed, Error> {
    let instant = SqlType::Timestamptz.arrow();
    match types {
        [DataType::Timestamp(_, Some(_)), DataType::Interval(_), zone] if is_text(zone) => {
            Ok((vec![instant.clone(), SqlType::Interval.arrow(), DataType::Utf8View], instant))
        }
        _ => Err(undefined("operator +", types)),
    }
}

fn shift(args: &[ArrayRef], result: &DataType, sign: i32) -> Result<ArrayRef, Error> {
    let (times, intervals) = (args[0].as_primitive::<TimestampMicrosecondType>(), args[1].as_primitive::<IntervalMonthDayNanoType>());
    let zones = super::text::strings(&args[2])?;
    let mut parser = Parser::default();
    let mut values = Vec::with_capacity(times.len());
    for ((time, interval), zone) in times.iter().zip(intervals.iter()).zip(zones.iter()) {
        let (Some(time), Some(interval), Some(zone)) = (time, interval, zone) else {
            values.push(None);
            continue;
        };
        values.push(Some(later(time, interval, sign, parser.parse(zone)?).ok_or_else(out_of_range)?));
    }
    let array: PrimitiveArray<TimestampMicrosecondType> = values.into();
    Ok(Arc::new(array.with_data_type(result.clone())))
}

/// An instant `count` intervals later, as PostgreSQL's timestamptz_pl_interval: months, then days by the clocks of the zone, then the
/// rest as it passes. None when it is out of range.
pub fn later(instant: Micros, interval: IntervalMonthDayNano, count: i32, zone: Zone) -> Option<Micros> {
    let mut instant = instant;
    let months = interval.months.checked_mul(count)?;
    if months != 0 {
        let local = DateTime::from_timestamp_micros(local_of(instant, zone).ok()?)?;
        let distance = Months::new(months.unsigned_abs());
        let moved = if months > 0 { local.checked_add_months(distance)? } else { local.checked_sub_months(distance)? };
        instant = zone.instant(moved.timestamp_micros())?;
    }
    let days = i64::from(interval.days).checked_mul(i64::from(count))?;
    if days != 0 {
        const DAY_US: i64 = 86_400_000_000;
        instant = zone.instant(local_of(instant, zone).ok()?.checked_add(days.checked_mul(DAY_US)?)?)?;
    }
    instant.checked_add((interval.nanoseconds / 1_000).checked_mul(i64::from(count))?).filter(|instant| *instant >= TIMESTAMP_MIN_US)
}

/// Parses the zones of a column, which are mostly the same as the row before's.
#[derive(Debug, Default)]
pub struct Parser(Option<(String, Zone)>);

impl Parser {
    /// See [`parse`].
    pub fn parse(&mut self, name: &str) -> Result<Zone, Error> {
        match &self.0 {
            Some((known, zone)) if known == name => Ok(*zone),
            _ => {
                let zone = parse(name)?;
                self.0 = Some((name.to_owned(), zone));
                Ok(zone)
            }
        }
    }
}

fn convert(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let zones = super::text::strings(&args[0])?;
    let times = args[1].as_primitive::<TimestampMicrosecondType>();
    let to_instant = matches!(result, DataType::Timestamp(_, Some(_)));
    let mut parser = Parser::default();
    let mut values = Vec::with_capacity(times.len());
    for (zone, time) in zones.iter().zip(times.iter()) {
        let (Some(zone), Some(time)) = (zone, time) else {
            values.push(None);
            continue;
        };
        let parsed = parser.parse(zone)?;
        values.push(Some(match to_instant {
            true => parsed.instant(time).ok_or_else(out_of_range)?,
            false => local_of(time, parsed)?,
        }));
    }
    let array: PrimitiveArray<TimestampMicrosecondType> = values.into();
    Ok(Arc::new(array.with_data_type(result.clone())))
}

/// A zone named in a query: 22023 as PostgreSQL words it there.
pub fn parse(name: &str) -> Result<Zone, Error> {
    Zone::parse(name).map_err(|_| Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("time zone \"{name}\" not recognized")))
}

/// The local time of an instant.
pub fn local_of(instant: Micros, zone: Zone) -> Result<Micros, Error> {
    instant.checked_add(i64::from(zone.offset_seconds(instant)) * 1_000_000).ok_or_else(out_of_range)
}

fn out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range")
}

fn types(types: &[DataType]) -> Result<Typed, Error> {
    let instant = SqlType::Timestamptz.arrow();
    let local = DataType::Timestamp(TimeUnit::Microsecond, None);
    match types {
        [zone, DataType::Timestamp(_, Some(_))] if is_text(zone) => Ok((vec![DataType::Utf8View, instant], local)),
        [zone, DataType::Timestamp(_, None)] if is_text(zone) => Ok((vec![DataType::Utf8View, local], instant)),
        [zone, DataType::Date32] if is_text(zone) => Ok((vec![DataType::Utf8View, local], instant)),
        _ => Err(undefined("timezone", types)),
    }
}
