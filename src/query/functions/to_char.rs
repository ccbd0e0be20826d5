//! `to_char(timestamp, template)`, and `age`.
//!
//! Templates are those of PostgreSQL's manual, table 9.29, without TH, SP and roman numerals.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray, StringViewBuilder};
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![Function::new("to_char", to_char_types, to_char).udf(), age().udf()]
}

/// `age(timestamp, timestamp)`: the distance in years, months, days and time.
pub fn age() -> Function {
    Function::new(
        "age",
        |types| match types {
            [DataType::Timestamp(_, _) | DataType::Date32, DataType::Timestamp(_, _) | DataType::Date32] => {
                Ok((vec![SqlType::Timestamp.arrow(), SqlType::Timestamp.arrow()], SqlType::Interval.arrow()))
            }
            // Literals, which the typing rules read as the other's type.
            [first, second] if is_text(first) || is_text(second) => {
                Ok((vec![SqlType::Timestamp.arrow(), SqlType::Timestamp.arrow()], SqlType::Interval.arrow()))
            }
            // Its other half, today, is written by the typing rules.
            [DataType::Timestamp(_, _) | DataType::Date32] => Ok((vec![SqlType::Timestamp.arrow()], SqlType::Interval.arrow())),
            _ => Err(undefined("age", types)),
        },
        |args, _| {
            if args.len() < 2 {
                return Err(Error::internal("age() was not given the date"));
            }
            let (later, earlier) = (args[0].as_primitive::<TimestampMicrosecondType>(), args[1].as_primitive::<TimestampMicrosecondType>());
            let values = later.iter().zip(earlier.iter()).map(|pair| match pair {
                (Some(later), Some(earlier)) => distance(later, earlier).map(Some),
                _ => Ok(None),
            });
            Ok(Arc::new(values.collect::<Result<PrimitiveArray<IntervalMonthDayNanoType>, Error>>()?) as ArrayRef)
        },
    )
}

fn naive(time: i64) -> Result<NaiveDateTime, Error> {
    DateTime::from_timestamp_micros(time)
        .map(|moment| moment.naive_utc())
        .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"))
}

/// Field by field, borrowing days from the month of the earlier time, as PostgreSQL's timestamp_age.
fn distance(one: i64, other: i64) -> Result<IntervalMonthDayNano, Error> {
    const DAY_NS: i64 = 86_400_000_000_000;
    let sign = if one < other { -1 } else { 1 };
    let (late, early) = (naive(one.max(other))?, naive(one.min(other))?);
    let mut months = (late.year() - early.year()) * 12 + late.month().cast_signed() - early.month().cast_signed();
    let mut days = late.day().cast_signed() - early.day().cast_signed();
    let of_day = |time: &NaiveDateTime| i64::from(time.num_seconds_from_midnight()) * 1_000_000_000 + i64::from(time.nanosecond());
    let mut nanoseconds = of_day(&late) - of_day(&early);
    if nanoseconds < 0 {
        nanoseconds += DAY_NS;
        days -= 1;
    }
    if days < 0 {
        days += i32::from(early.num_days_in_month());
        months -= 1;
    }
    Ok(IntervalMonthDayNano::new(sign * months, sign * days, i64::from(sign) * nanoseconds))
}

fn to_char_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [DataType::Timestamp(_, _) | DataType::Date32, template] if is_text(template) => {
            Ok((vec![SqlType::Timestamp.arrow(), DataType::Utf8View], DataType::Utf8View))
        }
        // The typing rules write numbers by another function.
        [value, template] if is_text(template) && value.is_numeric() => Ok((types.to_vec(), DataType::Utf8View)),
        [value, template] if is_text(template) && matches!(value, DataType::Interval(_)) => {
            Err(Error::unsupported(format!("to_char({}, text) is not supported", super::type_name(value))))
        }
        _ => Err(undefined("to_char", types)),
    }
}

fn to_char(args: &[ArrayRef], _result: &DataType) -> Result<ArrayRef, Error> {
    let times = args[0].as_primitive::<TimestampMicrosecondType>();
    let templates = strings(&args[1])?;
    let mut texts = StringViewBuilder::with_capacity(times.len());
    let mut parsed: Option<(String, Vec<Part>)> = None;
    for (time, template) in times.iter().zip(templates.iter()) {
        let (Some(time), Some(template)) = (time, template) else {
            texts.append_null();
            continue;
        };
        if parsed.as_ref().is_none_or(|(known, _)| known != template) {
            parsed = Some((template.to_owned(), parse(template)));
        }
        let time = naive(time)?;
        let mut text = String::new();
        for part in parsed.iter().flat_map(|(_, parts)| parts) {
            part.write(&time, &mut text);
        }
        texts.append_value(text);
    }
    Ok(Arc::new(texts.finish()))
}

enum Part {
    Text(String),
    Field { name: &'static str, fill: bool },
}

/// Longest first, because a template is read greedily.
const FIELDS: [&str; 51] = [
    "SSSSS", "Y,YYY", "MONTH", "Month", "month", "A.M.", "P.M.", "a.m.", "p.m.", "HH24", "HH12", "SSSS", "YYYY", "IYYY", "IDDD", "DAY",
    "Day", "day", "MON", "Mon", "mon", "DDD", "YYY", "AM", "PM", "am", "pm", "HH", "MI", "SS", "MS", "US", "YY", "BC", "AD", "MM", "DY",
    "Dy", "dy", "DD", "ID", "IW", "WW", "CC", "TZ", "OF", "Y", "D", "W", "Q", "J",
];

fn parse(template: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(character) = rest.chars().next() {
        if character == '"' {
            let inner = &rest[1..];
            let end = inner.find('"').unwrap_or(inner.len());
            literal.push_str(&inner[..end]);
            rest = inner.get(end + 1..).unwrap_or_default();
            continue;
        }
        let (fill, after) = match rest.strip_prefix("FM").or_else(|| rest.strip_prefix("fm")) {
            Some(after) => (false, after),
            None => (true, rest),
        };
        let matches = |field: &&&str| {
            let head = after.get(..field.len());
            let exact = matches!(**field, "MONTH" | "Month" | "month" | "DAY" | "Day" | "day" | "MON" | "Mon" | "mon" | "DY" | "Dy" | "dy")
                || field.chars().any(char::is_lowercase)
                || field.ends_with('M') && field.len() == 2 && !matches!(**field, "MM");
            head.is_some_and(|head| if exact { head == **field } else { head.eq_ignore_ascii_case(field) })
        };
        if let Some(name) = FIELDS.iter().find(matches) {
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Field { name, fill });
            rest = &after[name.len()..];
        } else {
            literal.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    parts
}

impl Part {
    fn write(&self, time: &NaiveDateTime, out: &mut String) {
        match self {
            Part::Text(text) => out.push_str(text),
            Part::Field { name, fill } => field(name, *fill, time, out),
        }
    }
}

fn field(name: &str, fill: bool, time: &NaiveDateTime, out: &mut String) {
    let hour12 = match time.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    let year = if time.year() > 0 { time.year() } else { 1 - time.year() };
    let (number, width) = match name {
        "YYYY" => (year, 4),
        "Y,YYY" => {
            let _ = write!(out, "{},{:03}", year / 1_000, year % 1_000);
            return;
        }
        "YYY" => (year % 1_000, 3),
        "YY" => (year % 100, 2),
        "Y" => (year % 10, 1),
        "IYYY" => (time.iso_week().year(), 4),
        "CC" => ((year + 99) / 100, 2),
        "Q" => (time.month0().cast_signed() / 3 + 1, 1),
        "MM" => (time.month().cast_signed(), 2),
        "DDD" => (time.ordinal().cast_signed(), 3),
        "IDDD" => (time.iso_week().week0().cast_signed() * 7 + time.weekday().number_from_monday().cast_signed(), 3),
        "DD" => (time.day().cast_signed(), 2),
        "D" => (time.weekday().number_from_sunday().cast_signed(), 1),
        "ID" => (time.weekday().number_from_monday().cast_signed(), 1),
        "W" => (time.day0().cast_signed() / 7 + 1, 1),
        "WW" => (time.ordinal0().cast_signed() / 7 + 1, 2),
        "IW" => (time.iso_week().week().cast_signed(), 2),
        "J" => (time.num_days_from_ce() + 1_721_425, 1),
        "HH24" => (time.hour().cast_signed(), 2),
        "HH" | "HH12" => (hour12.cast_signed(), 2),
        "MI" => (time.minute().cast_signed(), 2),
        "SS" => (time.second().cast_signed(), 2),
        "SSSS" | "SSSSS" => (time.num_seconds_from_midnight().cast_signed(), 1),
        "MS" => (time.nanosecond().cast_signed() / 1_000_000, 3),
        "US" => (time.nanosecond().cast_signed() / 1_000, 6),
        other => return word(other, fill, time, out),
    };
    let _ = if fill { write!(out, "{number:0width$}") } else { write!(out, "{number}") };
}

fn word(name: &str, fill: bool, time: &NaiveDateTime, out: &mut String) {
    let text = match name.to_ascii_lowercase().as_str() {
        "month" => time.format("%B").to_string(),
        "mon" => time.format("%b").to_string(),
        "day" => time.format("%A").to_string(),
        "dy" => time.format("%a").to_string(),
        "am" | "pm" => (if time.hour() < 12 { "AM" } else { "PM" }).to_owned(),
        "a.m." | "p.m." => (if time.hour() < 12 { "A.M." } else { "P.M." }).to_owned(),
        "bc" | "ad" => (if time.year() > 0 { "AD" } else { "BC" }).to_owned(),
        // Local times have no zone.
        _ => return,
    };
    let text = match name {
        lower if lower.chars().all(|character| !character.is_uppercase()) => text.to_lowercase(),
        upper if upper.chars().all(|character| !character.is_lowercase()) => text.to_uppercase(),
        _ => text,
    };
    match (fill, name.len() > 4 || name.eq_ignore_ascii_case("day")) {
        (true, true) => {
            let _ = write!(out, "{text:<9}");
        }
        _ => out.push_str(&text),
    }
}
