//! Reading by template: `to_date(text, template)`, `to_timestamp(text, template)`, `to_number(text, template)`, and writing numbers:
//! `to_char(number, template)`.
//!
//! *Place*: called by name; the typing rules take the result of [`timestamp`] for a local time in the session's zone. Templates are
//! those of PostgreSQL's manual, tables 9.29 and 9.31; patterns that are not known here are refused (0A000), not skipped.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Date32Array, Decimal128Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use chrono::{NaiveDate, NaiveDateTime};
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};
use crate::types::{NUMERIC_DEFAULT, SqlType};

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function::new(
            "to_date",
            |types| two("to_date", types, DataType::Date32),
            |args, _| {
                let dates = read(args)?;
                let days = |time: NaiveDateTime| i32::try_from((time.date() - NaiveDate::default()).num_days()).ok();
                Ok(Arc::new(dates.into_iter().map(|time| time.and_then(days)).collect::<Date32Array>()) as ArrayRef)
            },
        )
        .udf(),
        timestamp().udf(),
        Function::new("to_number", |types| two("to_number", types, SqlType::Numeric(None).arrow()), to_number)
            .giving(SqlType::Numeric(None))
            .udf(),
        number_to_char().udf(),
    ]
}

/// The local time that a text says by a template.
pub fn timestamp() -> Function {
    Function::new(
        "to_local_timestamp",
        |types| two("to_timestamp", types, SqlType::Timestamp.arrow()),
        |args, _| {
            let times = read(args)?;
            let micros = times.into_iter().map(|time| time.map(|time| time.and_utc().timestamp_micros()));
            Ok(Arc::new(micros.collect::<TimestampMicrosecondArray>()) as ArrayRef)
        },
    )
}

fn two(name: &str, types: &[DataType], result: DataType) -> Result<Typed, Error> {
    match types {
        [text, template] if is_text(text) && is_text(template) => Ok((vec![DataType::Utf8View; 2], result)),
        _ => Err(undefined(name, types)),
    }
}

fn read(args: &[ArrayRef]) -> Result<Vec<Option<NaiveDateTime>>, Error> {
    let (texts, templates) = (strings(&args[0])?, strings(&args[1])?);
    let mut last: Option<(String, Vec<Step>)> = None;
    (0..texts.len())
        .map(|row| {
            if texts.is_null(row) || templates.is_null(row) {
                return Ok(None);
            }
            let template = templates.value(row);
            if last.as_ref().is_none_or(|(known, _)| known != template) {
                last = Some((template.to_owned(), steps(template)?));
            }
            let steps = last.as_ref().map_or(&[][..], |(_, steps)| steps.as_slice());
            parsed(texts.value(row), steps).map(Some)
        })
        .collect()
}

/// One part of a template.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// A field, and whether it is read to its full width and no further.
    Field(&'static str, bool),
    /// A blank or sign that stands for any such.
    Separator,
    /// A letter or digit of the template, which skips one character.
    Literal,
}

/// Longer names first where one begins another. An empty width is a word.
const FIELDS: [(&str, usize); 29] = [
    ("YYYY", 4),
    ("Y,YYY", 5),
    ("YYY", 3),
    ("YY", 2),
    ("MONTH", 0),
    ("MON", 0),
    ("MM", 2),
    ("MI", 2),
    ("MS", 3),
    ("DDD", 3),
    ("DD", 2),
    ("DAY", 0),
    ("DY", 0),
    ("HH24", 2),
    ("HH12", 2),
    ("HH", 2),
    ("SSSSS", 5),
    ("SSSS", 5),
    ("SS", 2),
    ("US", 6),
    ("A.M.", 0),
    ("P.M.", 0),
    ("AM", 0),
    ("PM", 0),
    ("FF3", 3),
    ("FF6", 6),
    ("TH", 0),
    ("D", 1),
    ("Y", 1),
];

fn steps(template: &str) -> Result<Vec<Step>, Error> {
    let upper = template.to_ascii_uppercase();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < template.len() {
        let rest = &upper[at..];
        if let Some(next) = ["FM", "FX", "TM"].iter().find(|prefix| rest.starts_with(**prefix)) {
            at += next.len();
            continue;
        }
        if let Some((name, _)) = FIELDS.iter().find(|(name, _)| rest.starts_with(name)) {
            at += name.len();
            // Only a field that meets another one has to keep to its width.
            let meets = FIELDS.iter().any(|(next, width)| *width > 0 && upper[at..].starts_with(next));
            found.push(Step::Field(name, meets));
            continue;
        }
        let Some(character) = template[at..].chars().next() else { break };
        let from = at;
        at += character.len_utf8();
        match character {
            '"' => {
                let quoted = template[at..].split('"').next().unwrap_or_default();
                found.extend(quoted.chars().map(|_| Step::Literal));
                at += (quoted.len() + 1).min(template.len() - at);
            }
            'T' => found.push(Step::Literal),
            letter if letter.is_alphanumeric() => {
                return Err(Error::unsupported(format!("the template pattern at \"{}\" is not supported", &template[from..])));
            }
            _ => found.push(Step::Separator),
        }
    }
    Ok(found)
}

/// What has been read so far.
#[derive(Default)]
struct Read {
    year: Option<i32>,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    hour: u32,
    twelve: bool,
    afternoon: Option<bool>,
    minute: u32,
    second: u32,
    micros: u32,
}

fn parsed(text: &str, steps: &[Step]) -> Result<NaiveDateTime, Error> {
    let mut read = Read::default();
    let mut rest = text.trim_start();
    for step in steps {
        if rest.is_empty() {
            break;
        }
        match step {
            Step::Separator => {
                let skipped =
                    rest.trim_start_matches(|character: char| !character.is_alphanumeric() && character != '+' && character != '-');
                rest = match skipped.len() < rest.len() {
                    true => skipped,
                    false => rest.strip_prefix(|character: char| !character.is_alphanumeric()).unwrap_or(rest),
                };
            }
            Step::Literal => {
                let mut characters = rest.chars();
                characters.next();
                rest = characters.as_str();
            }
            Step::Field(name, narrow) => rest = read.field(name, *narrow, rest.trim_start())?,
        }
    }
    read.time().ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("date/time field value out of range: \"{text}\"")))
}

const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];

impl Read {
    fn field<'a>(&mut self, name: &str, narrow: bool, rest: &'a str) -> Result<&'a str, Error> {
        let width = FIELDS.iter().find(|(known, _)| *known == name).map_or(0, |(_, width)| *width);
        if width == 0 {
            return self.word(name, rest);
        }
        if name == "Y,YYY" {
            return Err(Error::unsupported("the template pattern Y,YYY is not supported"));
        }
        let (number, digits, rest) = number(name, width, narrow, rest)?;
        match name {
            "YYYY" => self.year = Some(number),
            "YYY" | "YY" | "Y" => self.year = Some(if digits < 4 { century(number) } else { number }),
            "MM" => self.month = u32::try_from(number).ok().or(Some(0)),
            "DD" => self.day = u32::try_from(number).ok().or(Some(0)),
            "DDD" => self.day_of_year = u32::try_from(number).ok().or(Some(0)),
            "HH24" => self.hour = number.unsigned_abs(),
            "HH12" | "HH" => {
                self.hour = number.unsigned_abs();
                self.twelve = true;
            }
            "MI" => self.minute = number.unsigned_abs(),
            "SS" => self.second = number.unsigned_abs(),
            "SSSSS" | "SSSS" => {
                let seconds = number.unsigned_abs();
                (self.hour, self.minute, self.second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
            }
            "MS" | "FF3" | "US" | "FF6" => {
                let places = u32::try_from(digits).unwrap_or(6).min(6);
                self.micros = number.unsigned_abs().saturating_mul(10_u32.pow(6 - places));
            }
            _ => {}
        }
        Ok(rest)
    }

    fn word<'a>(&mut self, name: &str, rest: &'a str) -> Result<&'a str, Error> {
        let letters = rest.trim_start_matches(|character: char| character.is_alphabetic() || character == '.');
        let word = &rest[..rest.len() - letters.len()];
        let lower = word.to_ascii_lowercase();
        let invalid = || {
            Error::new(SqlState::INVALID_DATETIME_FORMAT, format!("invalid value \"{word}\" for \"{name}\""))
                .detail("The given value did not match any of the allowed values for this field.")
        };
        match name {
            "MONTH" | "MON" => {
                let found = MONTHS.iter().position(|month| if name == "MON" { lower.get(..3) == month.get(..3) } else { lower == *month });
                self.month = Some(u32::try_from(found.ok_or_else(invalid)?).unwrap_or(0) + 1);
                // MON takes three letters and leaves the rest.
                return Ok(if name == "MON" { &rest[3..] } else { letters });
            }
            "AM" | "PM" | "A.M." | "P.M." => {
                self.afternoon = Some(match lower.replace('.', "").as_str() {
                    "am" => false,
                    "pm" => true,
                    _ => return Err(invalid()),
                });
                self.twelve = true;
            }
            // A day's name or an ordinal's ending says nothing more.
            _ => {}
        }
        Ok(letters)
    }

    fn time(&self) -> Option<NaiveDateTime> {
        // A year alone is its first day; no year at all is the year before the first.
        let year = self.year.unwrap_or(0);
        let date = match self.day_of_year {
            Some(day) if self.month.is_none() => NaiveDate::from_yo_opt(year, day)?,
            _ => NaiveDate::from_ymd_opt(year, self.month.unwrap_or(1), self.day.unwrap_or(1))?,
        };
        let hour = match (self.twelve, self.afternoon) {
            (true, _) if !(1..=12).contains(&self.hour) => return None,
            (_, Some(true)) => self.hour % 12 + 12,
            (_, Some(false)) | (true, None) => self.hour % 12,
            (false, None) => self.hour,
        };
        date.and_hms_micro_opt(hour, self.minute, self.second, self.micros)
    }
}

/// Years of fewer than four digits are those nearest to 2020.
fn century(year: i32) -> i32 {
    match year {
        0..=69 => year + 2000,
        70..=99 => year + 1900,
        100..=519 => year + 2000,
        520..=999 => year + 1000,
        _ => year,
    }
}

fn number<'a>(name: &str, width: usize, narrow: bool, rest: &'a str) -> Result<(i32, usize, &'a str), Error> {
    let sign = rest.strip_prefix(['-', '+']).filter(|_| name == "YYYY");
    let digits = sign.unwrap_or(rest);
    let fraction = matches!(name, "MS" | "US" | "FF3" | "FF6");
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let count = if narrow || fraction { count.min(width) } else { count };
    if count == 0 {
        let shown: String = rest.chars().take(width).collect();
        return Err(Error::new(SqlState::INVALID_DATETIME_FORMAT, format!("invalid value \"{shown}\" for \"{name}\""))
            .detail("Value must be an integer."));
    }
    let number: i32 = digits[..count]
        .parse()
        .map_err(|_| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("value for \"{name}\" in source string is out of range")))?;
    let number = if rest.starts_with('-') && sign.is_some() { -number } else { number };
    Ok((number, count, &digits[count..]))
}

/// `to_number(text, template)`: the digits, the point and the sign; what else the template allows is passed over.
fn to_number(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let (texts, templates) = (strings(&args[0])?, strings(&args[1])?);
    let values = (0..texts.len()).map(|row| match texts.is_null(row) || templates.is_null(row) {
        true => Ok(None),
        false => unformatted(texts.value(row), templates.value(row)).map(Some),
    });
    let values = values.collect::<Result<Vec<_>, Error>>()?;
    Ok(Arc::new(Decimal128Array::from(values).with_data_type(result.clone())))
}

fn unformatted(text: &str, template: &str) -> Result<i128, Error> {
    let upper = template.to_ascii_uppercase();
    let whole_only = !upper.contains(['.', 'D']);
    let (mut digits, mut scale, mut point, mut negative) = (0_i128, 0_i8, false, false);
    let overflow = || Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow");
    let mut any = false;
    let invalid = || Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type numeric: \"{text}\""));
    for character in text.chars() {
        match character {
            '0'..='9' => {
                any = true;
                if point && scale == NUMERIC_DEFAULT.1 {
                    continue;
                }
                scale += i8::from(point);
                let digit = i128::from(character.to_digit(10).unwrap_or(0));
                digits = digits.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or_else(overflow)?;
            }
            '.' if whole_only || point => break,
            '.' => point = true,
            '-' | '<' => negative = true,
            letter if letter.is_ascii_alphabetic() && any => break,
            _ => {}
        }
    }
    if !any {
        return Err(invalid());
    }
    let factor = 10_i128.pow(u32::try_from(NUMERIC_DEFAULT.1 - scale).unwrap_or(0));
    let value = digits.checked_mul(factor).filter(|value| *value < 10_i128.pow(38)).ok_or_else(overflow)?;
    Ok(if negative { -value } else { value })
}

/// `to_char(number, template)`: the number comes as text of its digits.
pub fn number_to_char() -> Function {
    Function::new(
        "number_to_char",
        |types| two("to_char", types, DataType::Utf8View),
        |args, _| {
            let (numbers, templates) = (strings(&args[0])?, strings(&args[1])?);
            let values = (0..numbers.len()).map(|row| match numbers.is_null(row) || templates.is_null(row) {
                true => Ok(None),
                false => formatted(numbers.value(row), templates.value(row)).map(Some),
            });
            Ok(Arc::new(values.collect::<Result<StringViewArray, Error>>()?) as ArrayRef)
        },
    )
}

/// A number's template, read once.
#[derive(Default)]
struct Layout {
    fill: bool,
    /// 9, 0, comma and blanks before the point, in order.
    whole: Vec<char>,
    fraction: Vec<char>,
    point: bool,
    sign: Sign,
    currency: bool,
    suffix: String,
}

#[derive(Default, PartialEq)]
enum Sign {
    #[default]
    Before,
    Leading,
    Trailing,
    Minus,
    Angle,
}

fn layout(template: &str) -> Result<Layout, Error> {
    let upper = template.to_ascii_uppercase();
    let (mut layout, mut rest) = (Layout { fill: true, ..Layout::default() }, upper.as_str());
    while let Some(character) = rest.chars().next() {
        let digits = layout.whole.iter().any(|each| matches!(each, '9' | '0')) || layout.point;
        let mut take = character.len_utf8();
        match character {
            'F' if rest.starts_with("FM") => (layout.fill, take) = (false, 2),
            'M' if rest.starts_with("MI") => (layout.sign, take) = (Sign::Minus, 2),
            'P' if rest.starts_with("PR") => (layout.sign, take) = (Sign::Angle, 2),
            'S' => layout.sign = if digits { Sign::Trailing } else { Sign::Leading },
            'L' | '$' => layout.currency = true,
            '9' | '0' if layout.point => layout.fraction.push(character),
            '9' | '0' => layout.whole.push(character),
            ',' | 'G' if !layout.point => layout.whole.push(','),
            '.' | 'D' if !layout.point => layout.point = true,
            '%' | ' ' if digits => layout.suffix.push(character),
            ' ' => {}
            _ => return Err(Error::unsupported(format!("the template pattern at \"{rest}\" is not supported"))),
        }
        rest = &rest[take..];
    }
    Ok(layout)
}

fn formatted(number: &str, template: &str) -> Result<String, Error> {
    let layout = layout(template)?;
    let negative = number.starts_with('-');
    let (whole, fraction) = rounded(number.trim_start_matches('-'), layout.fraction.len())?;
    let places = layout.whole.iter().filter(|each| **each != ',').count();
    let negative = negative && (whole.bytes().chain(fraction.bytes()).any(|digit| digit != b'0'));
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() && layout.fraction.is_empty() { "0" } else { whole };
    let overflow = whole.len() > places;
    let (mut out, mut started, mut at) = (String::new(), false, 0);
    for each in &layout.whole {
        match each {
            ',' if started => out.push(','),
            ',' => out.extend(layout.fill.then_some(' ')),
            each => {
                let from_right = places - at;
                at += 1;
                if overflow {
                    started = true;
                    out.push('#');
                } else if from_right <= whole.len() {
                    started = true;
                    out.push_str(&whole[whole.len() - from_right..][..1]);
                } else if started || *each == '0' {
                    started = true;
                    out.push('0');
                } else {
                    out.extend(layout.fill.then_some(' '));
                }
            }
        }
    }
    if layout.point {
        out.push('.');
        let kept = layout.fraction.iter().rposition(|each| *each == '0').map_or(0, |last| last + 1);
        let digits = if overflow { "#".repeat(layout.fraction.len()) } else { fraction };
        let trimmed = if layout.fill || overflow { digits.len() } else { digits.trim_end_matches('0').len().max(kept) };
        out.push_str(&digits[..trimmed]);
    }
    Ok(signed(&out, negative, &layout))
}

/// Puts the sign where the template wants it: right before the first digit, unless it says otherwise.
fn signed(digits: &str, negative: bool, layout: &Layout) -> String {
    let body = digits.trim_start();
    let blanks = &digits[..digits.len() - body.len()];
    let currency = if layout.currency { "$" } else { "" };
    let blank = |character: &str| if negative { character.to_owned() } else { " ".repeat(usize::from(layout.fill)) };
    let text = match layout.sign {
        Sign::Before => format!("{blanks}{}{currency}{body}", blank("-")),
        Sign::Leading => format!("{blanks}{}{currency}{body}", if negative { "-" } else { "+" }),
        Sign::Trailing => format!("{blanks}{currency}{body}{}", if negative { "-" } else { "+" }),
        Sign::Minus => format!("{blanks}{currency}{body}{}", blank("-")),
        Sign::Angle => format!("{blanks}{}{currency}{body}{}", blank("<"), blank(">")),
    };
    text + &layout.suffix
}

/// The digits before and behind the point, rounded half away from zero.
fn rounded(number: &str, places: usize) -> Result<(String, String), Error> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|digit| digit.is_ascii_digit()) {
        return Err(Error::unsupported("to_char() of this number is not supported"));
    }
    let up = fraction.as_bytes().get(places).is_some_and(|digit| *digit >= b'5');
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes().chain(std::iter::repeat(b'0')).take(places)).collect();
    let mut at = digits.len();
    let mut carry = up;
    while carry && at > 0 {
        at -= 1;
        carry = digits[at] == b'9';
        digits[at] = if carry { b'0' } else { digits[at] + 1 };
    }
    if carry {
        digits.insert(0, b'1');
    }
    let split = digits.len() - places;
    let text = String::from_utf8_lossy(&digits).into_owned();
    Ok((text[..split].to_owned(), text[split..].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_number(number: &str, template: &str, expected: &str) {
        assert_eq!(formatted(number, template).unwrap(), expected, "to_char({number}, {template})");
    }

    #[test]
    fn numbers_are_written_as_postgres_writes_them() {
        check_number("1234.5", "9,999.99", " 1,234.50");
        check_number("1234.5", "FM9,999.00", "1,234.50");
        check_number("0.5", "0.99", " 0.50");
        check_number("-5", "999", "  -5");
        check_number("12", "0000", " 0012");
        check_number("12345", "999", " ###");
        check_number("0", "999", "   0");
        check_number("0.1", "99.99", "   .10");
        check_number("1", "FM9.99", "1.");
        check_number("485", "999MI", "485 ");
        check_number("-485", "999S", "485-");
        check_number("9.996", "9.99", " #.##");
    }

    fn check_time(text: &str, template: &str, expected: &str) {
        let time = parsed(text, &steps(template).unwrap()).unwrap();
        assert_eq!(time.to_string(), expected, "{text} by {template}");
    }

    #[test]
    fn times_are_read_by_template() {
        check_time("2024-02-29", "YYYY-MM-DD", "2024-02-29 00:00:00");
        check_time("29 Feb 2024", "DD Mon YYYY", "2024-02-29 00:00:00");
        check_time("20240229", "YYYYMMDD", "2024-02-29 00:00:00");
        check_time("02/29/2024 1:05 PM", "MM/DD/YYYY HH12:MI AM", "2024-02-29 13:05:00");
        check_time("2024-02-29T12:34:56.789", "YYYY-MM-DD\"T\"HH24:MI:SS.MS", "2024-02-29 12:34:56.789");
        check_time("24", "YY", "2024-01-01 00:00:00");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for (text, template) in [("2024-13-01", "YYYY-MM-DD"), ("2023-02-30", "YYYY-MM-DD"), ("abc", "YYYY-MM-DD"), ("25:00", "HH24:MI")] {
            assert!(parsed(text, &steps(template).unwrap()).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_by_template() {
        assert_eq!(unformatted("1,234.56", "9,999.99").unwrap(), 1_234_560_000_000);
        assert_eq!(unformatted("12,454.8-", "99G999D9S").unwrap(), -12_454_800_000_000);
        assert!(unformatted("abc", "999").is_err());
    }
}
