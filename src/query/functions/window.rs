//! `TUMBLE` and `TUMBLE_END`: event-time windows of fixed length.
//!
//! *Place*: called in GROUP BY; `view` recognises [`TUMBLE`] by its name and reads its size by [`fixed_length_us`].

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, TimestampMicrosecondType};
use datafusion::logical_expr::ScalarUDF;

use super::{Function, Typed, undefined};
use crate::clock::Micros;
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// Name of the function that gives a window's start.
pub const TUMBLE: &str = "tumble";
/// Name of the function that gives a window's end (the next one's start).
pub const TUMBLE_END: &str = "tumble_end";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(TUMBLE, |args| types(TUMBLE, args), |args, result| window(args, result, false)).udf(),
        Function::new(TUMBLE_END, |args| types(TUMBLE_END, args), |args, result| window(args, result, true)).udf(),
    ]
}

/// Length of an interval without months, a day being 24 hours. 22023 for one with months or finer than a microsecond.
pub fn fixed_length_us(interval: IntervalMonthDayNano) -> Result<Micros, Error> {
    const DAY_US: i64 = 86_400_000_000;
    if interval.months != 0 {
        return Err(invalid("window size must have a fixed length: months and years are not allowed"));
    }
    (i64::from(interval.days) * DAY_US)
        .checked_add(interval.nanoseconds / 1_000)
        .filter(|_| interval.nanoseconds % 1_000 == 0)
        .ok_or_else(|| invalid("window size must be whole microseconds"))
}

/// Start of the window that `time` falls in: windows begin at `offset_us` past 1970-01-01 and every `size_us` from there.
pub fn start_of(time: Micros, size_us: Micros, offset_us: Micros) -> Option<Micros> {
    let past = time.checked_sub(offset_us)?.rem_euclid(size_us);
    time.checked_sub(past)
}

fn invalid(message: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn types(name: &'static str, types: &[DataType]) -> Result<Typed, Error> {
    let time = match types.first() {
        Some(DataType::Timestamp(_, Some(_))) => SqlType::Timestamptz.arrow(),
        Some(DataType::Timestamp(_, None) | DataType::Date32) => SqlType::Timestamp.arrow(),
        _ => return Err(undefined(name, types)),
    };
    match &types[1..] {
        [DataType::Interval(_)] => Ok((vec![time.clone(), SqlType::Interval.arrow()], time)),
        [DataType::Interval(_), DataType::Interval(_)] => {
            Ok((vec![time.clone(), SqlType::Interval.arrow(), SqlType::Interval.arrow()], time))
        }
        _ => Err(undefined(name, types)),
    }
}

fn window(args: &[ArrayRef], result: &DataType, end: bool) -> Result<ArrayRef, Error> {
    let (Some(size), offset) = (constant(&args[1])?, args.get(2).map(constant).transpose()?.flatten()) else {
        return Ok(arrow::array::new_null_array(result, args[0].len()));
    };
    if size <= 0 {
        return Err(invalid("window size must be positive"));
    }
    let shift = if end { size } else { 0 };
    let offset = offset.unwrap_or(0);
    let times = cast(&args[0], result).map_err(|error| Error::internal(error.to_string()))?;
    let starts = times.as_primitive::<TimestampMicrosecondType>().try_unary::<_, TimestampMicrosecondType, Error>(|time| {
        start_of(time, size, offset)
            .and_then(|start| start.checked_add(shift))
            .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"))
    })?;
    Ok(Arc::new(starts.with_data_type(result.clone())))
}

/// The one value of an argument that has to be the same for all rows.
fn constant(argument: &ArrayRef) -> Result<Option<Micros>, Error> {
    let values = argument.as_primitive::<IntervalMonthDayNanoType>();
    let mut all = values.iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.any(|value| value != first) {
        return Err(invalid("window size must be a constant"));
    }
    first.map(fixed_length_us).transpose()
}
