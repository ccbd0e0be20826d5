//! Intervals: `1 year 2 mons 3 days 04:05:06` and `P1Y2M3DT4H5M6S`, both ways.
//!
//! Months, days and time are kept apart, as in PostgreSQL; fractions of a month or day flow down (30 days, 24 hours).

use arrow::datatypes::IntervalMonthDayNano;

use crate::error::{Error, Result, SqlState};
use crate::types::text::calendar::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, write_fraction};
use crate::types::text::datetime::fraction_us_of;
use crate::types::text::number::{is_space, write_integer, write_unsigned};

/// Reads an interval of any IntervalStyle. 22007 when malformed, 22015 when a field is beyond its range.
pub fn interval(text: &str) -> Result<IntervalMonthDayNano> {
    let mut sum = Sum::default();
    let trimmed = text.trim_matches(is_space);
    let read = if trimmed.starts_with(['P', 'p']) { sum.iso(&trimmed[1..]) } else { sum.words(trimmed) };
    read.and_then(|()| sum.finish()).map_err(|fault| match fault {
        Fault::Syntax => Error::new(SqlState::INVALID_DATETIME_FORMAT, format!("invalid input syntax for type interval: \"{text}\"")),
        Fault::Range => Error::new(SqlState::INTERVAL_FIELD_OVERFLOW, format!("interval field value out of range: \"{text}\"")),
    })
}

enum Fault {
    Syntax,
    Range,
}

/// Fields added up.
#[derive(Default)]
struct Sum {
    months: i64,
    days: i64,
    us: i64,
}

/// A unit: how many months, days or microseconds it has.
#[derive(Clone, Copy)]
enum Unit {
    Months(i64),
    Days(i64),
    Micros(i64),
}

/// A decimal number: whole part and millionths, of one sign.
#[derive(Clone, Copy)]
struct Amount {
    whole: i64,
    millionths: i64,
}

impl Amount {
    fn read(text: &str) -> Result<Amount, Fault> {
        let (negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.len() + fraction.len() == 0 || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Fault::Syntax);
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Fault::Range)? };
        let millionths = fraction_us_of(fraction).ok_or(Fault::Syntax)?;
        Ok(if negative { Amount { whole: -whole, millionths: -millionths } } else { Amount { whole, millionths } })
    }

    fn negated(self) -> Amount {
        Amount { whole: -self.whole, millionths: -self.millionths }
    }
}

impl Sum {
    fn add(&mut self, amount: Amount, unit: Unit) -> Result<(), Fault> {
        // Of fractions: at most a millionth of the unit times the unit, which fits.
        match unit {
            Unit::Months(size) => {
                let fraction = amount.millionths * size;
                self.months = scaled(self.months, amount.whole, size)?.checked_add(fraction / 1_000_000).ok_or(Fault::Range)?;
                let days = fraction % 1_000_000 * 30;
                self.days = self.days.checked_add(days / 1_000_000).ok_or(Fault::Range)?;
                self.us = self.us.checked_add(days % 1_000_000 * (DAY_US / 1_000_000)).ok_or(Fault::Range)?;
            }
            Unit::Days(size) => {
                let fraction = amount.millionths * size;
                self.days = scaled(self.days, amount.whole, size)?.checked_add(fraction / 1_000_000).ok_or(Fault::Range)?;
                self.us = self.us.checked_add(fraction % 1_000_000 * (DAY_US / 1_000_000)).ok_or(Fault::Range)?;
            }
            Unit::Micros(size) => {
                let fraction = i128::from(amount.millionths) * i128::from(size) / 1_000_000;
                let fraction = i64::try_from(fraction).map_err(|_| Fault::Range)?;
                self.us = scaled(self.us, amount.whole, size)?.checked_add(fraction).ok_or(Fault::Range)?;
            }
        }
        Ok(())
    }

    /// `[-]HH:MM[:SS[.ffffff]]`.
    fn clock(&mut self, text: &str) -> Result<(), Fault> {
        let (negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let mut parts = digits.split(':');
        let units = [Unit::Micros(HOUR_US), Unit::Micros(MINUTE_US), Unit::Micros(SECOND_US)];
        for (index, unit) in units.into_iter().enumerate() {
            let Some(part) = parts.next() else { break };
            if !part.starts_with(|character: char| character.is_ascii_digit()) || (index < 2 && part.contains('.')) {
                return Err(Fault::Syntax);
            }
            let amount = Amount::read(part)?;
            if index > 0 && amount.whole > 59 {
                return Err(Fault::Range);
            }
            self.add(if negative { amount.negated() } else { amount }, unit)?;
        }
        if parts.next().is_some() { Err(Fault::Syntax) } else { Ok(()) }
    }

    /// PostgreSQL's and SQL's notation: numbers and units, `HH:MM:SS`, `Y-M`, `ago` at the end.
    fn words(&mut self, text: &str) -> Result<(), Fault> {
        let mut tokens = text.split(is_space).filter(|token| !token.is_empty()).peekable();
        if tokens.peek() == Some(&"@") {
            tokens.next();
        }
        let mut any = false;
        while let Some(token) = tokens.next() {
            if token.eq_ignore_ascii_case("ago") && any && tokens.peek().is_none() {
                (self.months, self.days, self.us) = (-self.months, -self.days, -self.us);
                return Ok(());
            }
            any = true;
            if token.contains(':') {
                self.clock(token)?;
                continue;
            }
            let end = token.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(token.len());
            let (number, mut name) = token.split_at(end);
            if name.is_empty() {
                if let Some((years, months)) = number.trim_start_matches(['-', '+']).split_once('-') {
                    self.year_month(number.starts_with('-'), years, months)?;
                    continue;
                }
                name = match tokens.peek() {
                    // `3 04:05:06`: days before a time.
                    Some(next) if next.contains(':') => "day",
                    Some(next) if next.starts_with(|character: char| character.is_ascii_alphabetic()) => tokens.next().unwrap_or(""),
                    None => "second",
                    Some(_) => return Err(Fault::Syntax),
                };
            }
            self.add(Amount::read(number)?, unit_named(name).ok_or(Fault::Syntax)?)?;
        }
        if any { Ok(()) } else { Err(Fault::Syntax) }
    }

    fn year_month(&mut self, negative: bool, years: &str, months: &str) -> Result<(), Fault> {
        for (text, unit) in [(years, Unit::Months(12)), (months, Unit::Months(1))] {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Fault::Syntax);
            }
            let amount = Amount::read(text)?;
            self.add(if negative { amount.negated() } else { amount }, unit)?;
        }
        Ok(())
    }

    /// ISO 8601 with designators, behind the P.
    fn iso(&mut self, text: &str) -> Result<(), Fault> {
        let mut rest = text;
        let mut in_time = false;
        let mut any = false;
        while let Some(first) = rest.chars().next() {
            if matches!(first, 'T' | 't') && !in_time {
                (in_time, any) = (true, true);
                rest = &rest[1..];
                continue;
            }
            let end = rest.find(|character: char| character.is_ascii_alphabetic()).ok_or(Fault::Syntax)?;
            let unit = match (rest.as_bytes()[end].to_ascii_uppercase(), in_time) {
                (b'Y', false) => Unit::Months(12),
                (b'M', false) => Unit::Months(1),
                (b'W', false) => Unit::Days(7),
                (b'D', false) => Unit::Days(1),
                (b'H', true) => Unit::Micros(HOUR_US),
                (b'M', true) => Unit::Micros(MINUTE_US),
                (b'S', true) => Unit::Micros(SECOND_US),
                _ => return Err(Fault::Syntax),
            };
            self.add(Amount::read(&rest[..end])?, unit)?;
            rest = &rest[end + 1..];
            any = true;
        }
        if any { Ok(()) } else { Err(Fault::Syntax) }
    }

    fn finish(&self) -> Result<IntervalMonthDayNano, Fault> {
        let months = i32::try_from(self.months).map_err(|_| Fault::Range)?;
        let days = i32::try_from(self.days).map_err(|_| Fault::Range)?;
        let nanoseconds = self.us.checked_mul(1000).ok_or(Fault::Range)?;
        Ok(IntervalMonthDayNano::new(months, days, nanoseconds))
    }
}

fn scaled(sum: i64, whole: i64, size: i64) -> Result<i64, Fault> {
    whole.checked_mul(size).and_then(|product| sum.checked_add(product)).ok_or(Fault::Range)
}

fn unit_named(name: &str) -> Option<Unit> {
    Some(match name.to_ascii_lowercase().as_str() {
        "us" | "usec" | "usecs" | "useconds" | "microsecond" | "microseconds" => Unit::Micros(1),
        "ms" | "msec" | "msecs" | "mseconds" | "millisecond" | "milliseconds" => Unit::Micros(1000),
        "s" | "sec" | "secs" | "second" | "seconds" => Unit::Micros(SECOND_US),
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Micros(MINUTE_US),
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Micros(HOUR_US),
        "d" | "day" | "days" => Unit::Days(1),
        "w" | "week" | "weeks" => Unit::Days(7),
        "mon" | "mons" | "month" | "months" => Unit::Months(1),
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Months(12),
        "decade" | "decades" | "dec" | "decs" => Unit::Months(120),
        "century" | "centuries" | "c" | "cent" => Unit::Months(1200),
        "millennium" | "millennia" | "mil" | "mils" => Unit::Months(12_000),
        _ => return None,
    })
}

/// IntervalStyle `postgres`. Nanoseconds are cut to microseconds.
pub fn write_postgres(value: IntervalMonthDayNano, out: &mut Vec<u8>) {
    let us = value.nanoseconds / 1000;
    let mut first = true;
    let mut before_negative = false;
    let mut part = |amount: i32, unit: &str, out: &mut Vec<u8>| {
        if amount == 0 {
            return;
        }
        if !first {
            out.push(b' ');
        }
        if before_negative && amount > 0 {
            out.push(b'+');
        }
        write_integer(i64::from(amount), out);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if amount != 1 {
            out.push(b's');
        }
        before_negative = amount < 0;
        first = false;
    };
    part(value.months / 12, "year", out);
    part(value.months % 12, "mon", out);
    part(value.days, "day", out);
    if first || us != 0 {
        if !first {
            out.push(b' ');
        }
        if us < 0 {
            out.push(b'-');
        } else if before_negative {
            out.push(b'+');
        }
        let magnitude = us.unsigned_abs();
        let seconds = magnitude / 1_000_000;
        write_unsigned(u128::from(seconds / 3600), 2, out);
        out.push(b':');
        write_unsigned(u128::from(seconds / 60 % 60), 2, out);
        out.push(b':');
        write_unsigned(u128::from(seconds % 60), 2, out);
        write_fraction((magnitude % 1_000_000) as u32, out);
    }
}

/// IntervalStyle `iso_8601`.
pub fn write_iso(value: IntervalMonthDayNano, out: &mut Vec<u8>) {
    let us = value.nanoseconds / 1000;
    if value.months == 0 && value.days == 0 && us == 0 {
        out.extend_from_slice(b"PT0S");
        return;
    }
    out.push(b'P');
    let part = |amount: i64, letter: u8, out: &mut Vec<u8>| {
        if amount != 0 {
            write_integer(amount, out);
            out.push(letter);
        }
    };
    part(i64::from(value.months / 12), b'Y', out);
    part(i64::from(value.months % 12), b'M', out);
    part(i64::from(value.days), b'D', out);
    if us != 0 {
        out.push(b'T');
        part(us / HOUR_US, b'H', out);
        part(us / MINUTE_US % 60, b'M', out);
        let rest = us % MINUTE_US;
        if rest != 0 {
            if rest < 0 {
                out.push(b'-');
            }
            write_unsigned(u128::from(rest.unsigned_abs() / 1_000_000), 1, out);
            write_fraction((rest.unsigned_abs() % 1_000_000) as u32, out);
            out.push(b'S');
        }
    }
}
