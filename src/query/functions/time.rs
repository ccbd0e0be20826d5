//! Dates and times: `EXTRACT`, `date_part`, `DATE_DIFF`, `to_timestamp`, and the operators on dates, timestamps and intervals.
//!
//! *Place*: called by name, or made by `query::typing` from operators. Values are local: the typing rules put
//! `timezone(...)` around a timestamptz argument.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int64Array, PrimitiveArray};
use arrow::compute::kernels::temporal::{DatePart, date_part};
use arrow::datatypes::{
    DataType, Date32Type, Float64Type, Int32Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, TimestampMicrosecondType,
};
use chrono::{DateTime, Datelike};
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};
use crate::types::SqlType;
use crate::types::text::calendar::{DAYS_MIN, TIMESTAMP_MIN_US};
use crate::types::zone::Zone;

const DAY_US: i64 = 86_400_000_000;
const SECOND_US: i64 = 1_000_000;
/// `date_trunc` of an instant by the clocks of a zone; `query::resolve` makes that of UTC a plain one.
pub const TRUNCATE_IN_ZONE: &str = "date_trunc_in_zone";

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        extract().udf(),
        extract_seconds().udf(),
        Function::new(
            "date_part",
            |types| field_types("date_part", types, DataType::Float64),
            |args, _| {
                let parts = parts(args)?;
                Ok(Arc::new(parts.iter().map(|part| part.map(|part| part as f64 / 1e6)).collect::<Float64Array>()) as ArrayRef)
            },
        )
        .udf(),
        difference().udf(),
        Function::new("datediff", date_diff_types, date_diff).udf(),
        Function::new("to_timestamp", to_timestamp_types, to_timestamp).udf(),
        truncate().udf(),
        truncate_in_zone().udf(),
        subtract().udf(),
        scale().udf(),
        add_days().udf(),
        subtract_dates().udf(),
    ]
}

/// `EXTRACT(field FROM x)` of a field that is a whole number.
pub fn extract() -> Function {
    Function::new(
        "extract",
        |types| field_types("extract", types, DataType::Decimal128(20, 0)),
        |args, result| numbers(&parts(args)?, result, SECOND_US),
    )
}

/// `EXTRACT(field FROM x)` of seconds, milliseconds and epoch, which have a fraction.
pub fn extract_seconds() -> Function {
    Function::new(
        "extract_seconds",
        |types| field_types("extract", types, DataType::Decimal128(20, 6)),
        |args, result| numbers(&parts(args)?, result, 1),
    )
}

/// Whether a field of EXTRACT has a fraction.
pub fn has_fraction(field: &str) -> bool {
    matches!(field.to_ascii_lowercase().as_str(), "epoch" | "second" | "seconds" | "millisecond" | "milliseconds")
}

/// `date_trunc(unit, timestamp)`, in UTC for a timestamptz. DataFusion's ends with the year 2262.
pub fn truncate() -> Function {
    Function::new(
        "date_trunc",
        |types| match types {
            [unit, time @ DataType::Timestamp(_, _)] if is_text(unit) => Ok((vec![DataType::Utf8View, time.clone()], time.clone())),
            [unit, DataType::Date32] if is_text(unit) => {
                Ok((vec![DataType::Utf8View, SqlType::Timestamp.arrow()], SqlType::Timestamp.arrow()))
            }
            // The typing rules replace `date_trunc(unit, time, zone)`.
            [unit, time @ DataType::Timestamp(_, _), zone] if is_text(unit) && is_text(zone) => Ok((types.to_vec(), time.clone())),
            _ => Err(undefined("date_trunc", types)),
        },
        |args, result| {
            let units = strings(&args[0])?;
            let times = args[1].as_primitive::<TimestampMicrosecondType>();
            let Some(unit) = units.iter().flatten().next() else {
                return Ok(arrow::array::new_null_array(result, times.len()));
            };
            let unit = if units.iter().all(|other| other == Some(unit)) {
                Unit::parse(unit)?
            } else {
                return each_truncated(&units, times, result);
            };
            let starts = times.try_unary::<_, TimestampMicrosecondType, Error>(|time| unit.start_of(time))?;
            Ok(Arc::new(starts.with_data_type(result.clone())) as ArrayRef)
        },
    )
}

fn each_truncated(
    units: &arrow::array::StringViewArray,
    times: &PrimitiveArray<TimestampMicrosecondType>,
    result: &DataType,
) -> Result<ArrayRef, Error> {
    let starts = units.iter().zip(times.iter()).map(|pair| match pair {
        (Some(unit), Some(time)) => Unit::parse(unit)?.start_of(time).map(Some),
        _ => Ok(None),
    });
    let starts = starts.collect::<Result<PrimitiveArray<TimestampMicrosecondType>, Error>>()?;
    Ok(Arc::new(starts.with_data_type(result.clone())))
}

/// What a time is cut to.
#[derive(Clone, Copy)]
enum Unit {
    /// A fixed length and where one begins.
    Fixed { length_us: i64, origin_us: i64 },
    /// So many months.
    Months(i32),
    /// So many years, counted from the year 1.
    Years(i32),
}

impl Unit {
    fn parse(name: &str) -> Result<Unit, Error> {
        let fixed = |length_us| Unit::Fixed { length_us, origin_us: 0 };
        Ok(match name.to_ascii_lowercase().as_str() {
            "microsecond" | "microseconds" => fixed(1),
            "millisecond" | "milliseconds" => fixed(1_000),
            "second" | "seconds" => fixed(SECOND_US),
            "minute" | "minutes" => fixed(60 * SECOND_US),
            "hour" | "hours" => fixed(3_600 * SECOND_US),
            "day" | "days" => fixed(DAY_US),
            // 1970-01-05 was a Monday.
            "week" | "weeks" => Unit::Fixed { length_us: 7 * DAY_US, origin_us: 4 * DAY_US },
            "month" | "months" => Unit::Months(1),
            "quarter" => Unit::Months(3),
            "year" | "years" => Unit::Months(12),
            "decade" | "decades" => Unit::Months(120),
            "century" | "centuries" => Unit::Years(100),
            "millennium" | "millennia" => Unit::Years(1_000),
            _ => return Err(unknown_unit(name)),
        })
    }

    fn start_of(self, time: i64) -> Result<i64, Error> {
        let (months, from) = match self {
            Unit::Months(months) => (months, 0),
            Unit::Years(years) => (years * 12, 12),
            Unit::Fixed { .. } => (1, 0),
        };
        let start = match self {
            Unit::Fixed { length_us, origin_us } => crate::types::window::start_of(time, length_us, origin_us),
            Unit::Months(_) | Unit::Years(_) => DateTime::from_timestamp_micros(time).and_then(|moment| {
                let month = moment.year() * 12 + i32::try_from(moment.month0()).ok()?;
                let first = (month - from).div_euclid(months) * months + from;
                let date = chrono::NaiveDate::from_ymd_opt(first.div_euclid(12), first.rem_euclid(12).unsigned_abs() + 1, 1)?;
                Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
            }),
        };
        start.ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"))
    }

    /// By the clocks of a zone. As PostgreSQL, units of less than a day keep the offset: of an hour that comes twice, each has its own.
    fn start_in(self, instant: i64, zone: Zone) -> Result<i64, Error> {
        let local = super::zone::local_of(instant, zone)?;
        let start = self.start_of(local)?;
        let within_day = matches!(self, Unit::Fixed { length_us, .. } if length_us < DAY_US);
        let start = if within_day { instant.checked_sub(local - start) } else { zone.instant(start) };
        start.ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"))
    }
}

/// Refuses a unit of date_trunc that does not exist.
pub fn check_unit(name: &str) -> Result<(), Error> {
    Unit::parse(name).map(|_| ())
}

fn unknown_unit(name: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("unit \"{name}\" not recognized for type timestamp"))
        .hint("Use microseconds, milliseconds, second, minute, hour, day, week, month, quarter, year, decade, century or millennium.")
}

/// See [`TRUNCATE_IN_ZONE`]. The zone may differ from row to row.
pub fn truncate_in_zone() -> Function {
    Function::new(
        TRUNCATE_IN_ZONE,
        |types| match types {
            [unit, time @ DataType::Timestamp(_, Some(_)), zone] if is_text(unit) && is_text(zone) => {
                Ok((vec![DataType::Utf8View, time.clone(), DataType::Utf8View], time.clone()))
            }
            _ => Err(undefined("date_trunc", types)),
        },
        |args, result| {
            let (units, zones) = (strings(&args[0])?, strings(&args[2])?);
            let times = args[1].as_primitive::<TimestampMicrosecondType>();
            let mut parser = super::zone::Parser::default();
            let rows = units.iter().zip(times.iter()).zip(zones.iter());
            let starts = rows.map(|row| match row {
                ((Some(unit), Some(time)), Some(zone)) => Unit::parse(unit)?.start_in(time, parser.parse(zone)?).map(Some),
                _ => Ok(None),
            });
            let starts = starts.collect::<Result<PrimitiveArray<TimestampMicrosecondType>, Error>>()?;
            Ok(Arc::new(starts.with_data_type(result.clone())) as ArrayRef)
        },
    )
}

/// `timestamp - timestamp`: days and time, as PostgreSQL.
pub fn subtract() -> Function {
    Function::new(
        "timestamp_sub",
        |types| match types {
            [DataType::Timestamp(_, _), DataType::Timestamp(_, _)] => Ok((types.to_vec(), SqlType::Interval.arrow())),
            _ => Err(undefined("operator -", types)),
        },
        |args, _| {
            let (left, right) = (args[0].as_primitive::<TimestampMicrosecondType>(), args[1].as_primitive::<TimestampMicrosecondType>());
            let values = left.iter().zip(right.iter()).map(|pair| match pair {
                (Some(left), Some(right)) => {
                    let distance = left.checked_sub(right).ok_or_else(interval_out_of_range)?;
                    let days = i32::try_from(distance / DAY_US).map_err(|_| interval_out_of_range())?;
                    Ok(Some(IntervalMonthDayNano::new(0, days, distance % DAY_US * 1_000)))
                }
                _ => Ok(None),
            });
            Ok(Arc::new(values.collect::<Result<PrimitiveArray<IntervalMonthDayNanoType>, Error>>()?) as ArrayRef)
        },
    )
}

/// `interval * number`, fractions of months and days cascading down (30 days a month).
pub fn scale() -> Function {
    Function::new(
        "interval_mul",
        |types| match types {
            [DataType::Interval(_), DataType::Float64] => {
                Ok((vec![SqlType::Interval.arrow(), DataType::Float64], SqlType::Interval.arrow()))
            }
            _ => Err(undefined("operator *", types)),
        },
        |args, _| {
            let (intervals, factors) = (args[0].as_primitive::<IntervalMonthDayNanoType>(), args[1].as_primitive::<Float64Type>());
            let values = intervals.iter().zip(factors.iter()).map(|pair| match pair {
                (Some(interval), Some(factor)) => scaled(interval, factor).map(Some),
                _ => Ok(None),
            });
            Ok(Arc::new(values.collect::<Result<PrimitiveArray<IntervalMonthDayNanoType>, Error>>()?) as ArrayRef)
        },
    )
}

/// `date + integer`.
pub fn add_days() -> Function {
    Function::new(
        "date_add_days",
        |types| match types {
            [DataType::Date32, days] if days.is_integer() => Ok((vec![DataType::Date32, DataType::Int64], DataType::Date32)),
            _ => Err(undefined("operator +", types)),
        },
        |args, _| {
            let (dates, days) = (args[0].as_primitive::<Date32Type>(), args[1].as_primitive::<Int64Type>());
            let values = dates.iter().zip(days.iter()).map(|pair| match pair {
                (Some(date), Some(days)) => i64::from(date)
                    .checked_add(days)
                    .filter(|sum| *sum >= DAYS_MIN)
                    .and_then(|sum| i32::try_from(sum).ok())
                    .map(Some)
                    .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range")),
                _ => Ok(None),
            });
            Ok(Arc::new(values.collect::<Result<PrimitiveArray<Date32Type>, Error>>()?) as ArrayRef)
        },
    )
}

/// `date - date`: days.
pub fn subtract_dates() -> Function {
    Function::new(
        "date_sub_date",
        |types| match types {
            [DataType::Date32, DataType::Date32] => Ok((types.to_vec(), DataType::Int32)),
            _ => Err(undefined("operator -", types)),
        },
        |args, _| {
            let (left, right) = (args[0].as_primitive::<Date32Type>(), args[1].as_primitive::<Date32Type>());
            let values = left.iter().zip(right.iter()).map(|(left, right)| left?.checked_sub(right?));
            Ok(Arc::new(values.collect::<PrimitiveArray<Int32Type>>()) as ArrayRef)
        },
    )
}

fn scaled(interval: IntervalMonthDayNano, factor: f64) -> Result<IntervalMonthDayNano, Error> {
    let months = f64::from(interval.months) * factor;
    let days = f64::from(interval.days) * factor + months.fract() * 30.0;
    let nanoseconds = interval.nanoseconds as f64 * factor + days.fract() * 86_400e9;
    let fits = |value: f64| value.is_finite() && value.abs() < f64::from(i32::MAX);
    if !fits(months) || !fits(days) || nanoseconds.is_nan() || nanoseconds.abs() >= i64::MAX as f64 {
        return Err(interval_out_of_range());
    }
    // PostgreSQL keeps microseconds.
    let nanoseconds = (nanoseconds / 1_000.0).round_ties_even() as i64 * 1_000;
    Ok(IntervalMonthDayNano::new(months.trunc() as i32, days.trunc() as i32, nanoseconds))
}

fn interval_out_of_range() -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "interval out of range")
}

fn field_types(name: &str, types: &[DataType], result: DataType) -> Result<Typed, Error> {
    match types {
        [field, DataType::Timestamp(_, _)] if is_text(field) => Ok((vec![DataType::Utf8View, SqlType::Timestamp.arrow()], result)),
        [field, DataType::Date32 | DataType::Time64(_) | DataType::Interval(_)] if is_text(field) => {
            Ok((vec![DataType::Utf8View, types[1].clone()], result))
        }
        _ => Err(undefined(name, types)),
    }
}

fn numbers(parts: &Int64Array, result: &DataType, unit: i64) -> Result<ArrayRef, Error> {
    let values: Decimal128Array = parts.iter().map(|part| part.map(|part| i128::from(part.div_euclid(unit)))).collect();
    Ok(Arc::new(values.with_data_type(result.clone())))
}

/// The field of each value, in millionths.
fn parts(args: &[ArrayRef]) -> Result<Int64Array, Error> {
    let fields = strings(&args[0])?;
    let Some(field) = fields.iter().flatten().next() else {
        return Ok(Int64Array::new_null(args[1].len()));
    };
    if fields.iter().any(|other| other != Some(field)) {
        return Err(Error::unsupported("the field of date_part() must be a constant"));
    }
    let field = field.to_ascii_lowercase();
    let values = &args[1];
    let unknown = || {
        Error::new(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("unit \"{field}\" not recognized for type {}", super::type_name(values.data_type())),
        )
    };
    let whole = |part: DatePart| -> Result<Int64Array, Error> {
        let numbers = date_part(values, part).map_err(|_| unknown())?;
        Ok(numbers.as_primitive::<Int32Type>().unary(|number| i64::from(number) * SECOND_US))
    };
    let of_year =
        |f: fn(i64) -> i64| -> Result<Int64Array, Error> { Ok(whole(DatePart::Year)?.unary(|year| f(year / SECOND_US) * SECOND_US)) };
    Ok(match field.as_str() {
        "year" | "years" | "y" | "yr" => whole(DatePart::Year)?,
        "isoyear" => whole(DatePart::YearISO)?,
        "quarter" => whole(DatePart::Quarter)?,
        "month" | "months" | "mon" => whole(DatePart::Month)?,
        "week" | "weeks" => whole(DatePart::WeekISO)?,
        "day" | "days" | "d" => whole(DatePart::Day)?,
        "dow" => whole(DatePart::DayOfWeekSunday0)?,
        "isodow" => whole(DatePart::DayOfWeekMonday0)?.unary(|day| day + SECOND_US),
        "doy" => whole(DatePart::DayOfYear)?,
        "hour" | "hours" | "h" => whole(DatePart::Hour)?,
        "minute" | "minutes" | "m" | "min" => whole(DatePart::Minute)?,
        "second" | "seconds" | "s" | "sec" => seconds(values).ok_or_else(unknown)?,
        "millisecond" | "milliseconds" | "ms" => seconds(values).ok_or_else(unknown)?.unary(|micros| micros * 1_000),
        "microsecond" | "microseconds" | "us" => seconds(values).ok_or_else(unknown)?.unary(|micros| micros * SECOND_US),
        "decade" => of_year(|year| year.div_euclid(10))?,
        "century" => of_year(|year| (year + 99).div_euclid(100))?,
        "millennium" => of_year(|year| (year + 999).div_euclid(1000))?,
        "epoch" => epoch(values).ok_or_else(unknown)?,
        _ => return Err(unknown()),
    })
}

/// Seconds with their fraction, in microseconds.
fn seconds(values: &ArrayRef) -> Option<Int64Array> {
    const MINUTE_US: i64 = 60 * SECOND_US;
    Some(match values.data_type() {
        DataType::Interval(_) => {
            values.as_primitive::<IntervalMonthDayNanoType>().unary(|interval| interval.nanoseconds / 1_000 % MINUTE_US)
        }
        DataType::Date32 => return None,
        _ => epoch(values)?.unary(|micros| micros.rem_euclid(MINUTE_US)),
    })
}

/// Microseconds since 1970, or an interval's length (a month is 30 days, a year 365.25).
fn epoch(values: &ArrayRef) -> Option<Int64Array> {
    Some(match values.data_type() {
        DataType::Timestamp(_, _) => values.as_primitive::<TimestampMicrosecondType>().unary(|micros| micros),
        DataType::Time64(_) => values.as_primitive::<arrow::datatypes::Time64MicrosecondType>().unary(|micros| micros),
        DataType::Date32 => values.as_primitive::<Date32Type>().unary(|days| i64::from(days) * DAY_US),
        DataType::Interval(_) => values.as_primitive::<IntervalMonthDayNanoType>().unary(|interval| {
            let years = i64::from(interval.months / 12) * (1461 * DAY_US / 4);
            let months = i64::from(interval.months % 12) * 30 * DAY_US;
            years + months + i64::from(interval.days) * DAY_US + interval.nanoseconds / 1_000
        }),
        _ => return None,
    })
}

fn to_timestamp_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [number] if number.is_numeric() => Ok((vec![DataType::Float64], SqlType::Timestamptz.arrow())),
        // The typing rules read it by the template, in the session's zone.
        [text, template] if is_text(text) && is_text(template) => Ok((types.to_vec(), SqlType::Timestamptz.arrow())),
        _ => Err(undefined("to_timestamp", types)),
    }
}

fn to_timestamp(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let values = args[0].as_primitive::<Float64Type>().try_unary::<_, TimestampMicrosecondType, Error>(|seconds| {
        let micros = (seconds * 1e6).round_ties_even();
        match micros.is_finite() && micros.abs() < 9.2e18 && micros as i64 >= TIMESTAMP_MIN_US {
            true => Ok(micros as i64),
            false => Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("timestamp out of range: \"{seconds}\""))),
        }
    })?;
    Ok(Arc::new(values.with_data_type(result.clone())))
}

/// `date_diff(unit, from, to)` of local times.
pub fn difference() -> Function {
    Function::new("date_diff", date_diff_types, date_diff)
}

fn date_diff_types(types: &[DataType]) -> Result<Typed, Error> {
    let time = |data_type: &DataType| matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32);
    match types {
        [unit, from, to] if is_text(unit) && time(from) && time(to) => {
            Ok((vec![DataType::Utf8View, SqlType::Timestamp.arrow(), SqlType::Timestamp.arrow()], DataType::Int64))
        }
        _ => Err(undefined("date_diff", types)),
    }
}

/// The number of unit boundaries between two times, as DuckDB and Snowflake count them: weeks begin on Monday.
fn date_diff(args: &[ArrayRef], _result: &DataType) -> Result<ArrayRef, Error> {
    let units = strings(&args[0])?;
    let (from, to) = (args[1].as_primitive::<TimestampMicrosecondType>(), args[2].as_primitive::<TimestampMicrosecondType>());
    let mut known: Option<(&str, Ordinal)> = None;
    let mut values = Vec::with_capacity(from.len());
    for row in 0..from.len() {
        values.push(if units.is_null(row) || from.is_null(row) || to.is_null(row) {
            None
        } else {
            let unit = units.value(row);
            let ordinal = match known {
                Some((same, ordinal)) if same == unit => ordinal,
                _ => known.insert((unit, Ordinal::parse(unit)?)).1,
            };
            Some(ordinal.of(to.value(row))? - ordinal.of(from.value(row))?)
        });
    }
    Ok(Arc::new(Int64Array::from(values)))
}

/// How units of time are numbered.
#[derive(Clone, Copy)]
enum Ordinal {
    /// Of a fixed length, and where one begins.
    Fixed { length_us: i64, origin_us: i64 },
    /// Of so many months.
    Months(i64),
}

impl Ordinal {
    fn parse(unit: &str) -> Result<Ordinal, Error> {
        let fixed = |length_us| Ordinal::Fixed { length_us, origin_us: 0 };
        Ok(match unit.to_ascii_lowercase().trim_end_matches('s') {
            "microsecond" | "u" => fixed(1),
            "millisecond" | "m" => fixed(1_000),
            "second" | "sec" => fixed(SECOND_US),
            "minute" | "min" => fixed(60 * SECOND_US),
            "hour" => fixed(3_600 * SECOND_US),
            "day" => fixed(DAY_US),
            // 1970-01-01 was a Thursday, three days after a Monday.
            "week" => Ordinal::Fixed { length_us: 7 * DAY_US, origin_us: -3 * DAY_US },
            "month" | "mon" => Ordinal::Months(1),
            "quarter" => Ordinal::Months(3),
            "year" => Ordinal::Months(12),
            "decade" => Ordinal::Months(120),
            "century" => Ordinal::Months(1_200),
            _ => {
                return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("unit \"{unit}\" not recognized for date_diff"))
                    .hint("Use microsecond, millisecond, second, minute, hour, day, week, month, quarter, year, decade or century."));
            }
        })
    }

    /// The number of the unit that a time falls in.
    fn of(self, time: i64) -> Result<i64, Error> {
        let out_of_range = || Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range");
        match self {
            Ordinal::Fixed { length_us, origin_us } => Ok(time.checked_sub(origin_us).ok_or_else(out_of_range)?.div_euclid(length_us)),
            Ordinal::Months(months) => {
                let moment = DateTime::from_timestamp_micros(time).ok_or_else(out_of_range)?;
                Ok((i64::from(moment.year()) * 12 + i64::from(moment.month0())).div_euclid(months))
            }
        }
    }
}
