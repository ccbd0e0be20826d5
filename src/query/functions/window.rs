//! Event-time windows: `TUMBLE`, and the calls that stand for `HOP` and `SESSION` until their query is lowered.
//!
//! *Place*: called in GROUP BY. `query::windows` lowers [`HOP`], [`SESSION`] and [`SESSION_END`] to [`HOP_STARTS`] and window
//! functions over [`session_break`]; `view` recognises all of them by their names and keeps them incrementally.
//!
//! `TUMBLE_END` and `HOP_END` are rewritten in the syntax tree to [`WINDOW_END`] of the window's start.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, TimestampMicrosecondArray, TimestampMicrosecondBuilder};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, IntervalMonthDayNanoType, TimestampMicrosecondType};
use datafusion::logical_expr::{Expr, ScalarUDF};

use super::{Function, Typed, is_text, undefined};
use crate::clock::Micros;
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::window::{joins, start_of};

/// `tumble(time, size [, offset])`: the start of the window that a time falls in.
pub const TUMBLE: &str = "tumble";
/// `hop(time, slide, size [, offset])`: the starts of the windows that a time falls in, one row each.
pub const HOP: &str = "hop";
/// `hop_starts(time, slide, size [, offset])`: the same as a list, ascending; of a NULL time, one NULL.
pub const HOP_STARTS: &str = "hop_starts";
/// `session(time, gap)`: the start of a row's session.
pub const SESSION: &str = "session";
/// `session_end(time, gap)`: the end of a row's session, `gap` after its last row.
pub const SESSION_END: &str = "session_end";
/// `window_end(start, size)`: `size` later. A day is 24 hours here, also where clocks change.
pub const WINDOW_END: &str = "window_end";

/// Windows that one row may belong to.
pub const HOP_WINDOWS_MAX: i64 = 1_000;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(TUMBLE, |args| windowed(TUMBLE, args, 1, true), tumble).udf(),
        Function::new(WINDOW_END, |args| windowed(WINDOW_END, args, 1, false), window_end).udf(),
        Function::new(HOP, |args| windowed(HOP, args, 2, true), |_, _| Err(misplaced(HOP))).udf(),
        hop_starts().udf(),
        Function::new(SESSION, |args| windowed(SESSION, args, 1, false), |_, _| Err(misplaced(SESSION))).udf(),
        Function::new(SESSION_END, |args| windowed(SESSION_END, args, 1, false), |_, _| Err(misplaced(SESSION_END))).udf(),
        session_break().udf(),
    ]
}

/// See [`HOP_STARTS`].
pub fn hop_starts() -> Function {
    Function::new(
        HOP_STARTS,
        |args| {
            let (args, time) = windowed(HOP, args, 2, true)?;
            Ok((args, DataType::List(item(&time))))
        },
        starts,
    )
}

/// `session_break(time, time of the row before, gap)`: the time where a session begins with it, else NULL.
pub fn session_break() -> Function {
    Function::new(
        "session_break",
        |types| match types {
            [time @ DataType::Timestamp(_, _), before, DataType::Interval(_)] if time == before => {
                Ok((vec![time.clone(), time.clone(), SqlType::Interval.arrow()], time.clone()))
            }
            _ => Err(undefined("session_break", types)),
        },
        |args, result| {
            let gap = gap_us(&args[2])?;
            let (times, before) = (args[0].as_primitive::<TimestampMicrosecondType>(), args[1].as_primitive::<TimestampMicrosecondType>());
            let starts: TimestampMicrosecondArray = times
                .iter()
                .zip(before.iter())
                .map(|(time, before)| time.filter(|time| !before.is_some_and(|before| joins(before, *time, gap.unwrap_or(0)))))
                .collect();
            Ok(Arc::new(starts.with_data_type(result.clone())) as ArrayRef)
        },
    )
}

/// The end of a window that starts (or of a session whose last row is) at `start`.
pub fn end_of(start: Expr, size: Expr) -> Expr {
    Function::new(WINDOW_END, |args| windowed(WINDOW_END, args, 1, false), window_end).call(vec![start, size])
}

/// Length of an interval without months, a day being 24 hours. 22023 for one with months or finer than a microsecond.
pub fn fixed_length_us(interval: IntervalMonthDayNano) -> Result<Micros, Error> {
    const DAY_US: i64 = 86_400_000_000;
    if interval.months != 0 {
        return Err(invalid("window size must have a fixed length: months and years are not allowed")
            .hint("Group by date_trunc('month', ...) for calendar months."));
    }
    (i64::from(interval.days) * DAY_US)
        .checked_add(interval.nanoseconds / 1_000)
        .filter(|_| interval.nanoseconds % 1_000 == 0)
        .ok_or_else(|| invalid("window size must be whole microseconds"))
}

/// The length of a session's gap. 22023 unless it is fixed and more than nothing.
pub fn gap_of(interval: IntervalMonthDayNano) -> Result<Micros, Error> {
    positive(fixed_length_us(interval)?, "session gap")
}

/// The most windows that a row of `HOP(time, slide, size)` belongs to. 22023 when there are too many or none.
pub fn windows_of(slide: IntervalMonthDayNano, size: IntervalMonthDayNano) -> Result<i64, Error> {
    let (slide, size) = (positive(fixed_length_us(slide)?, "window slide")?, positive(fixed_length_us(size)?, "window size")?);
    let count = (size - 1) / slide + 1;
    if count > HOP_WINDOWS_MAX {
        return Err(invalid(&format!("a row would belong to {count} windows, more than {HOP_WINDOWS_MAX}"))
            .hint("Choose a longer slide or a shorter window size."));
    }
    Ok(count)
}

/// The list's item for a type of time.
pub fn item(time: &DataType) -> Arc<Field> {
    Arc::new(Field::new_list_field(time.clone(), true))
}

fn invalid(message: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn misplaced(name: &str) -> Error {
    let name = name.to_uppercase();
    Error::new(SqlState::GROUPING_ERROR, format!("{name} is not allowed here"))
        .hint(format!("Use {name} in GROUP BY, or the table form FROM {}(...).", name.trim_end_matches("_END")))
}

fn positive(length: Micros, what: &str) -> Result<Micros, Error> {
    if length > 0 { Ok(length) } else { Err(invalid(&format!("{what} must be positive"))) }
}

/// A time, `lengths` intervals and perhaps an offset; the result is a time.
fn windowed(name: &'static str, types: &[DataType], lengths: usize, offset: bool) -> Result<Typed, Error> {
    let time = match types.first() {
        Some(DataType::Timestamp(_, Some(_))) => SqlType::Timestamptz.arrow(),
        Some(DataType::Timestamp(_, None) | DataType::Date32) => SqlType::Timestamp.arrow(),
        _ => return Err(undefined(name, types)),
    };
    let rest = &types[1..];
    let count = rest.len() == lengths || (offset && rest.len() == lengths + 1);
    // The typing rules read a string literal as an interval.
    if !count || !rest.iter().all(|interval| matches!(interval, DataType::Interval(_)) || is_text(interval)) {
        return Err(undefined(name, types));
    }
    let mut args = vec![time.clone()];
    args.extend(rest.iter().map(|_| SqlType::Interval.arrow()));
    Ok((args, time))
}

fn tumble(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let (Some(size), offset) = (constant(&args[1])?, args.get(2).map(constant).transpose()?.flatten()) else {
        return Ok(arrow::array::new_null_array(result, args[0].len()));
    };
    let size = positive(fixed_length_us(size)?, "window size")?;
    let offset = offset.map(fixed_length_us).transpose()?.unwrap_or(0);
    each(&args[0], result, |time| start_of(time, size, offset))
}

fn window_end(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let Some(size) = constant(&args[1])? else { return Ok(arrow::array::new_null_array(result, args[0].len())) };
    let size = positive(fixed_length_us(size)?, "window size")?;
    each(&args[0], result, |start| start.checked_add(size))
}

fn each(times: &ArrayRef, result: &DataType, compute: impl Fn(Micros) -> Option<Micros>) -> Result<ArrayRef, Error> {
    let times = cast(times, result).map_err(|error| Error::internal(error.to_string()))?;
    let values = times
        .as_primitive::<TimestampMicrosecondType>()
        .try_unary::<_, TimestampMicrosecondType, Error>(|time| compute(time).ok_or_else(out_of_range))?;
    Ok(Arc::new(values.with_data_type(result.clone())))
}

fn starts(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let DataType::List(item) = result else { return Err(Error::internal("hop_starts gives a list")) };
    let times = cast(&args[0], item.data_type()).map_err(|error| Error::internal(error.to_string()))?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let offset = args.get(3).map(constant).transpose()?.flatten().map(fixed_length_us).transpose()?.unwrap_or(0);
    let (Some(slide), Some(size)) = (constant(&args[1])?, constant(&args[2])?) else {
        let nulls = arrow::array::new_null_array(item.data_type(), times.len());
        return Ok(Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::from_lengths(vec![1; times.len()]), nulls, None)));
    };
    let windows = usize::try_from(windows_of(slide, size)?).map_err(|_| out_of_range())?;
    let (slide, size) = (fixed_length_us(slide)?, fixed_length_us(size)?);
    let mut lengths = Vec::with_capacity(times.len());
    let mut values = TimestampMicrosecondBuilder::with_capacity(times.len().saturating_mul(windows));
    for time in times.iter() {
        let Some(time) = time else {
            values.append_null();
            lengths.push(1);
            continue;
        };
        let last = start_of(time, slide, offset).ok_or_else(out_of_range)?;
        // The windows that begin after `time - size`; with gaps between windows it may be none.
        let back = size.checked_sub(time - last).filter(|left| *left > 0).map_or(0, |left| (left - 1) / slide + 1);
        let first = (back - 1).checked_mul(slide).and_then(|distance| last.checked_sub(distance)).ok_or_else(out_of_range)?;
        for index in 0..back {
            values.append_value(first + index * slide);
        }
        lengths.push(usize::try_from(back).map_err(|_| out_of_range())?);
    }
    let values = values.finish().with_data_type(item.data_type().clone());
    Ok(Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), Arc::new(values), None)))
}

fn out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range")
}

fn gap_us(argument: &ArrayRef) -> Result<Option<Micros>, Error> {
    constant(argument)?.map(gap_of).transpose()
}

/// The one value of an argument that has to be the same for all rows.
fn constant(argument: &ArrayRef) -> Result<Option<IntervalMonthDayNano>, Error> {
    let values = argument.as_primitive::<IntervalMonthDayNanoType>();
    let mut all = values.iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.any(|value| value != first) {
        return Err(invalid("window size must be a constant"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, ArrayRef, AsArray, IntervalMonthDayNanoArray, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, IntervalMonthDayNano, TimestampMicrosecondType};

    use super::{item, starts, windows_of};
    use crate::types::SqlType;

    fn span(us: i64) -> IntervalMonthDayNano {
        IntervalMonthDayNano::new(0, 0, us * 1_000)
    }

    #[track_caller]
    fn check(time: i64, slide: i64, size: i64, expected: &[i64]) {
        let interval = |us| Arc::new(IntervalMonthDayNanoArray::from_value(span(us), 1)) as ArrayRef;
        let times = Arc::new(TimestampMicrosecondArray::from_value(time, 1));
        let list = starts(&[times, interval(slide), interval(size)], &DataType::List(item(&SqlType::Timestamp.arrow())));
        let list = list.expect("within range");
        let found: Vec<_> = list.as_list::<i32>().value(0).as_primitive::<TimestampMicrosecondType>().iter().flatten().collect();
        assert_eq!(found, expected, "hop({time}, {slide}, {size})");
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_time_is_in_every_window_that_covers_it() {
        check(12, 5, 15, &[0, 5, 10]);
        check(10, 5, 15, &[0, 5, 10]);
        check(-1, 5, 10, &[-10, -5]);
        // The size is no multiple of the slide: two or three windows.
        check(10, 5, 12, &[0, 5, 10]);
        check(13, 5, 12, &[5, 10]);
        // Gaps between windows.
        check(3, 10, 4, &[0]);
        check(4, 10, 4, &[]);
    }

    #[test]
    fn windows_are_counted_and_bounded() {
        assert_eq!(windows_of(span(5), span(60)).ok(), Some(12));
        assert_eq!(windows_of(span(7), span(60)).ok(), Some(9));
        assert_eq!(windows_of(span(1), span(1_000)).ok(), Some(1_000));
        assert!(windows_of(span(1), span(1_001)).is_err());
        assert!(windows_of(span(0), span(5)).is_err());
        assert!(windows_of(span(5), span(-5)).is_err());
    }
}
