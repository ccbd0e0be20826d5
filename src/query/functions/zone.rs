//! Time zones: AT TIME ZONE and what depends on the session's zone.
//!
//! *Place*: the typing rules write calls with `session_time_zone()`; `query::resolve` turns those of UTC into plain casts.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::logical_expr::{Expr, ScalarUDF};

use super::{Function, Typed, is_text, undefined};
use crate::clock::Micros;
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::zone::Zone;

/// Name of [`to_local`]'s function.
pub const LOCAL: &str = "timezone_local";
/// Name of [`to_instant`]'s function.
pub const INSTANT: &str = "timezone_instant";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(LOCAL, types, convert).udf(),
        Function::new(INSTANT, types, convert).udf(),
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

fn convert(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let zones = super::text::strings(&args[0])?;
    let times = args[1].as_primitive::<TimestampMicrosecondType>();
    let to_instant = matches!(result, DataType::Timestamp(_, Some(_)));
    let mut last: Option<(String, Zone)> = None;
    let mut values = Vec::with_capacity(times.len());
    for (zone, time) in zones.iter().zip(times.iter()) {
        let (Some(zone), Some(time)) = (zone, time) else {
            values.push(None);
            continue;
        };
        let parsed = match &last {
            Some((name, parsed)) if name == zone => *parsed,
            _ => {
                let parsed = parse(zone)?;
                last = Some((zone.to_owned(), parsed));
                parsed
            }
        };
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
