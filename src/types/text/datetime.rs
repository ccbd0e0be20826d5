//! Reading dates, times and timestamps: a fast path for ISO texts, and what else PostgreSQL takes under DateStyle `ISO, MDY`.
//!
//! Out of reach of the range are the infinities and, for want of a clock here, `now`, `today` and their like: all are
//! refused with a hint (0A000). A time of day without a date is a `time`, never a timestamp.

use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::text::calendar::{DAY_US, DAYS_MIN, HOUR_US, MINUTE_US, SECOND_US, TIMESTAMP_MIN_US, days_from_civil, days_in_month};
use crate::types::text::number::is_space;
use crate::types::zone::{Zone, offset_digits};

const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];
const WEEKDAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// Years that are read: to the greatest of PostgreSQL's, and as far the other way, where [`DAYS_MIN`] is the limit.
const YEAR_MAX: i64 = 5_874_897;

/// `date`: days since 1970-01-01. A time of day behind it is read and dropped.
#[inline]
pub fn date(text: &str) -> Result<i32> {
    if let Some((days, [])) = fast_date(text.as_bytes()) {
        return Ok(days as i32);
    }
    let moment = Moment::read(text, "date")?;
    let days = moment.days().ok_or_else(|| malformed("date", text))?;
    if days < DAYS_MIN {
        return Err(out_of_range("date", text));
    }
    i32::try_from(days).map_err(|_| field_overflow(text))
}

/// `time`: microseconds since midnight. A date and a zone are read and dropped.
pub fn time(text: &str) -> Result<i64> {
    let bytes = text.as_bytes();
    if let Some((us, [])) = fast_time(bytes) {
        return Ok(us);
    }
    if matches!(bytes.len(), 4 | 6) && bytes.iter().all(u8::is_ascii_digit) {
        return time_of_day(text, None).map_err(|fault| fault.error(text, "time"));
    }
    Moment::read(text, "time")?.time_us.ok_or_else(|| malformed("time", text))
}

/// `timestamp`: microseconds since 1970-01-01 00:00. A zone is read and dropped.
#[inline]
pub fn timestamp(text: &str) -> Result<Micros> {
    if let Some((local, _)) = fast_timestamp(text.as_bytes()) {
        return Ok(local);
    }
    Moment::read(text, "timestamp")?.local(text, "timestamp").and_then(|local| reached(local, text))
}

/// `timestamptz`: microseconds since 1970-01-01 00:00 UTC. Without a zone the text is in `zone`.
#[inline]
pub fn timestamptz(text: &str, zone: &Zone) -> Result<Micros> {
    const NAME: &str = "timestamp with time zone";
    let (local, spoken) = match fast_timestamp(text.as_bytes()) {
        Some((local, offset)) => (local, offset.map(Zone::Fixed)),
        None => {
            let moment = Moment::read(text, NAME)?;
            (moment.local(text, NAME)?, moment.zone)
        }
    };
    match spoken.unwrap_or(*zone) {
        Zone::Fixed(0) | Zone::UTC => reached(local, text),
        zone => zone.instant(local).ok_or_else(|| out_of_range("timestamp", text)).and_then(|instant| reached(instant, text)),
    }
}

/// A time that is not before the first.
fn reached(us: Micros, text: &str) -> Result<Micros> {
    if us < TIMESTAMP_MIN_US { Err(out_of_range("timestamp", text)) } else { Ok(us) }
}

fn malformed(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::INVALID_DATETIME_FORMAT, format!("invalid input syntax for type {type_name}: \"{text}\""))
}

fn field_overflow(text: &str) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
}

fn out_of_range(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("{type_name} out of range: \"{text}\""))
}

#[inline]
fn two_digits(bytes: &[u8], at: usize) -> Option<u32> {
    let (tens, ones) = (bytes.get(at)?.wrapping_sub(b'0'), bytes.get(at + 1)?.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then_some(u32::from(tens) * 10 + u32::from(ones))
}

/// `YYYY-MM-DD` at the start, and what follows.
#[inline]
fn fast_date(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (date, rest) = bytes.split_first_chunk::<10>()?;
    let year = i64::from(two_digits(date, 0)? * 100 + two_digits(date, 2)?);
    let (month, day) = (two_digits(date, 5)?, two_digits(date, 8)?);
    let sound = date[4] == b'-' && date[7] == b'-' && year > 0 && (1..=12).contains(&month);
    if !sound || day == 0 || (day > 28 && day > days_in_month(year, month)) {
        return None;
    }
    Some((days_from_civil(year, month, day), rest))
}

/// `HH:MM:SS[.ffffff]` at the start, and what follows.
#[inline]
fn fast_time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (time, mut rest) = bytes.split_first_chunk::<8>()?;
    let (hour, minute, second) = (two_digits(time, 0)?, two_digits(time, 3)?, two_digits(time, 6)?);
    if time[2] != b':' || time[5] != b':' || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut us = i64::from(hour * 3600 + minute * 60 + second) * SECOND_US;
    if let [b'.', fraction @ ..] = rest {
        let count = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 || count > 6 {
            return None;
        }
        let mut unit = 100_000;
        for byte in &fraction[..count] {
            us += i64::from(byte - b'0') * unit;
            unit /= 10;
        }
        rest = &fraction[count..];
    }
    Some((us, rest))
}

/// `YYYY-MM-DD{ |T}HH:MM:SS[.ffffff][Z|+HH[[:]MM]]`: local microseconds and the offset's seconds.
#[inline]
fn fast_timestamp(bytes: &[u8]) -> Option<(Micros, Option<i32>)> {
    let (days, rest) = fast_date(bytes)?;
    let [b' ' | b'T', time @ ..] = rest else { return None };
    let (us, rest) = fast_time(time)?;
    let offset = match rest {
        [] => None,
        [b'Z'] => Some(0),
        [sign @ (b'+' | b'-'), digits @ ..] => {
            let hours = two_digits(digits, 0)?;
            let minutes = match digits.len() {
                2 => 0,
                4 => two_digits(digits, 2)?,
                5 if digits[2] == b':' => two_digits(digits, 3)?,
                _ => return None,
            };
            if hours > 15 || minutes > 59 {
                return None;
            }
            let seconds = (hours * 3600 + minutes * 60) as i32;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => return None,
    };
    Some((days * DAY_US + us, offset))
}

/// What a text says, field by field.
#[derive(Default)]
struct Moment {
    date: Option<(i64, u32, u32)>,
    /// `epoch` needs no other field.
    time_us: Option<i64>,
    zone: Option<Zone>,
}

/// Fields on the way, before they make a date.
#[derive(Default)]
struct Fields<'a> {
    year: Option<(i64, usize)>,
    month: Option<u32>,
    day: Option<u32>,
    clock: Option<&'a str>,
    /// Hours that PM adds.
    afternoon: Option<bool>,
    before_christ: bool,
    zone: Option<Zone>,
}

impl Moment {
    fn days(&self) -> Option<i64> {
        self.date.map(|(year, month, day)| days_from_civil(year, month, day))
    }

    fn local(&self, text: &str, type_name: &str) -> Result<Micros> {
        let days = self.days().ok_or_else(|| malformed(type_name, text))?;
        days.checked_mul(DAY_US).and_then(|us| us.checked_add(self.time_us.unwrap_or(0))).ok_or_else(|| out_of_range("timestamp", text))
    }

    #[cold]
    fn read(text: &str, type_name: &str) -> Result<Moment> {
        let trimmed = text.trim_matches(is_space);
        for word in ["infinity", "-infinity", "+infinity", "now", "today", "tomorrow", "yesterday"] {
            if trimmed.eq_ignore_ascii_case(word) {
                return Err(Error::unsupported(format!("date/time value \"{trimmed}\" is not supported")).hint(
                    if word.ends_with("infinity") {
                        "Use NULL, or a date far away."
                    } else {
                        "Use CURRENT_TIMESTAMP or CURRENT_DATE in SQL."
                    },
                ));
            }
        }
        if trimmed.eq_ignore_ascii_case("epoch") {
            return Ok(Moment { date: Some((1970, 1, 1)), time_us: Some(0), zone: Some(Zone::UTC) });
        }
        let mut fields = Fields::default();
        for token in trimmed.split(|character: char| is_space(character) || character == ',') {
            if !token.is_empty() {
                fields.token(token).map_err(|fault| fault.error(text, type_name))?;
            }
        }
        fields.finish().map_err(|fault| fault.error(text, type_name))
    }
}

/// What is wrong with a text.
enum Fault {
    Syntax,
    /// A field beyond what it may be.
    Range,
    /// A month or day that no month or year has: perhaps they are swapped.
    Order,
    Zone(String),
    /// An offset that no zone has.
    Displacement,
}

impl Fault {
    fn error(self, text: &str, type_name: &str) -> Error {
        match self {
            Fault::Syntax => malformed(type_name, text),
            Fault::Range => field_overflow(text),
            Fault::Order => field_overflow(text).hint("Perhaps you need a different \"datestyle\" setting."),
            Fault::Displacement => {
                Error::new(SqlState::INVALID_TIME_ZONE_DISPLACEMENT, format!("time zone displacement out of range: \"{text}\""))
            }
            Fault::Zone(name) => Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("time zone \"{name}\" not recognized")),
        }
    }
}

impl<'a> Fields<'a> {
    fn token(&mut self, token: &'a str) -> Result<(), Fault> {
        let first = token.as_bytes()[0];
        if first.is_ascii_digit() {
            return self.digits(token);
        }
        if matches!(first, b'+' | b'-') {
            return match self.clock {
                Some(_) => self.set_offset(token),
                None => Err(Fault::Syntax),
            };
        }
        self.word(token)
    }

    /// A token that starts with a digit: a date, a time, both around a T, or a plain number.
    fn digits(&mut self, token: &'a str) -> Result<(), Fault> {
        if let Some(at) = token.find(['T', 't'])
            && at >= 6
            && token[..at].bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'/' | b'.'))
        {
            self.digits(&token[..at])?;
            return self.clock(&token[at + 1..]);
        }
        if token.bytes().all(|byte| byte.is_ascii_digit()) {
            return self.number(token);
        }
        if token.contains(':') {
            return self.clock(token);
        }
        if let Some(at) = token.find(|character: char| character.is_ascii_alphabetic())
            && matches!(token[at..].to_ascii_lowercase().as_str(), "am" | "pm")
        {
            return self.clock(token);
        }
        // A date with an offset.
        if let Some((date, _)) = token.split_once('+') {
            self.set_offset(&token[date.len()..])?;
            return self.separated(date);
        }
        self.separated(token)
    }

    /// Digits only: `YYYYMMDD`, `HHMMSS` behind a date, or the day or year beside a month's name.
    fn number(&mut self, token: &'a str) -> Result<(), Fault> {
        let value: i64 = token.parse().map_err(|_| Fault::Range)?;
        let has_date = self.day.is_some() && self.month.is_some() && self.year.is_some();
        match token.len() {
            8 if self.year.is_none() && self.month.is_none() => {
                (self.year, self.month, self.day) =
                    (Some((value / 10_000, 4)), Some((value / 100 % 100) as u32), Some((value % 100) as u32));
                Ok(())
            }
            4 | 6 if has_date && self.clock.is_none() => self.clock(token),
            1 | 2 if self.day.is_none() => {
                self.day = Some(value as u32);
                Ok(())
            }
            2.. if self.year.is_none() => {
                self.year = Some((value, token.len()));
                Ok(())
            }
            _ => Err(Fault::Syntax),
        }
    }

    /// `2024-01-31`, `1/31/2024`, `31-Jan-2024`, `2024.031` is none.
    fn separated(&mut self, token: &str) -> Result<(), Fault> {
        if self.year.is_some() || self.day.is_some() {
            return Err(Fault::Syntax);
        }
        let separator = token.find(['-', '/', '.']).map(|at| token.as_bytes()[at] as char).ok_or(Fault::Syntax)?;
        let parts: Vec<&str> = token.split(separator).collect();
        let &[first, second, third] = parts.as_slice() else { return Err(Fault::Syntax) };
        let number = |part: &str| -> Result<i64, Fault> {
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Fault::Syntax);
            }
            part.parse().map_err(|_| Fault::Range)
        };
        let (year, month, day) = if let Some(month) = month_named(second) {
            if first.len() > 2 { (first, i64::from(month), number(third)?) } else { (third, i64::from(month), number(first)?) }
        } else if first.len() > 2 {
            (first, number(second)?, number(third)?)
        } else {
            (third, number(first)?, number(second)?)
        };
        self.year = Some((number(year)?, year.len()));
        self.month = Some(u32::try_from(month).map_err(|_| Fault::Range)?);
        self.day = Some(u32::try_from(day).map_err(|_| Fault::Range)?);
        Ok(())
    }

    /// A time of day, with an offset or letters attached or without.
    fn clock(&mut self, token: &'a str) -> Result<(), Fault> {
        if self.clock.is_some() {
            return Err(Fault::Syntax);
        }
        let end = token.find(|character: char| !(character.is_ascii_digit() || matches!(character, ':' | '.'))).unwrap_or(token.len());
        self.clock = Some(&token[..end]);
        match token.as_bytes().get(end) {
            None => Ok(()),
            Some(b'+' | b'-') => self.set_offset(&token[end..]),
            Some(_) => self.word(&token[end..]),
        }
    }

    fn set_offset(&mut self, token: &str) -> Result<(), Fault> {
        let digits = &token[1..];
        if !digits.starts_with(|character: char| character.is_ascii_digit()) {
            return Err(Fault::Syntax);
        }
        let seconds = offset_digits(digits).ok_or(Fault::Displacement)?;
        self.set_zone(Zone::Fixed(if token.starts_with('-') { -seconds } else { seconds }))
    }

    fn set_zone(&mut self, zone: Zone) -> Result<(), Fault> {
        if self.zone.replace(zone).is_some() { Err(Fault::Syntax) } else { Ok(()) }
    }

    fn word(&mut self, word: &str) -> Result<(), Fault> {
        if let Some(month) = month_named(word) {
            // `January 8, 1999`: a number before it was the day.
            return if self.month.replace(month).is_some() { Err(Fault::Syntax) } else { Ok(()) };
        }
        let lower = word.to_ascii_lowercase();
        match lower.as_str() {
            "am" | "pm" => {
                self.afternoon = Some(lower == "pm");
                Ok(())
            }
            "ad" => Ok(()),
            "bc" => {
                self.before_christ = true;
                Ok(())
            }
            "t" => Ok(()),
            _ if lower.len() >= 3 && WEEKDAYS.iter().any(|day| day.starts_with(&lower)) => Ok(()),
            _ if self.year.is_none() && self.clock.is_none() => Err(Fault::Syntax),
            _ if !word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'+')) => Err(Fault::Syntax),
            _ => match Zone::in_text(word) {
                Some(zone) => self.set_zone(zone),
                None if word.contains('/') => Err(Fault::Zone(lower)),
                None => Err(Fault::Syntax),
            },
        }
    }

    fn finish(self) -> Result<Moment, Fault> {
        let date = match (self.year, self.month, self.day) {
            (None, None, None) => None,
            (Some((year, width)), Some(month), Some(day)) => Some(civil(year, width, month, day, self.before_christ)?),
            _ => return Err(Fault::Syntax),
        };
        let time_us = self.clock.map(|clock| time_of_day(clock, self.afternoon)).transpose()?;
        if date.is_none() && time_us.is_none() {
            return Err(Fault::Syntax);
        }
        Ok(Moment { date, time_us, zone: self.zone })
    }
}

fn month_named(word: &str) -> Option<u32> {
    let lower = word.to_ascii_lowercase();
    let abbreviation = lower == "sept" || lower.len() == 3;
    MONTHS.iter().position(|month| *month == lower || (abbreviation && month.starts_with(&lower))).map(|index| index as u32 + 1)
}

fn civil(year: i64, width: usize, month: u32, day: u32, before_christ: bool) -> Result<(i64, u32, u32), Fault> {
    let year = match (before_christ, year, width) {
        (_, 0, 3..) => return Err(Fault::Range),
        (true, ..) => 1 - year,
        (false, 0..70, ..3) => year + 2000,
        (false, _, ..3) => year + 1900,
        _ => year,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(Fault::Order);
    }
    if day > days_in_month(year, month) || !(-YEAR_MAX..=YEAR_MAX).contains(&year) {
        return Err(Fault::Range);
    }
    Ok((year, month, day))
}

/// `HH:MM[:SS[.ffffff]]`, `HHMM[SS]`, `HH` before AM or PM: microseconds since midnight, 24:00:00 being the greatest.
fn time_of_day(clock: &str, afternoon: Option<bool>) -> Result<i64, Fault> {
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let plain: Vec<&str> = match (whole.contains(':'), whole.len()) {
        (false, 6) => vec![&whole[..2], &whole[2..4], &whole[4..]],
        (false, 4) => vec![&whole[..2], &whole[2..]],
        (false, 1 | 2) if afternoon.is_some() => vec![whole],
        (true, _) => whole.split(':').collect(),
        _ => return Err(Fault::Syntax),
    };
    if plain.len() > 3 || plain.iter().any(|part| part.is_empty() || part.len() > 2) {
        return Err(Fault::Syntax);
    }
    let mut parts = [0i64; 3];
    for (part, text) in parts.iter_mut().zip(&plain) {
        *part = text.parse().map_err(|_| Fault::Syntax)?;
    }
    let [mut hour, minute, second] = parts;
    match afternoon {
        Some(_) if hour > 12 => return Err(Fault::Range),
        Some(true) if hour < 12 => hour += 12,
        Some(false) if hour == 12 => hour = 0,
        _ => {}
    }
    let us = hour * HOUR_US + minute * MINUTE_US + second * SECOND_US + fraction_us(fraction)?;
    if hour > 24 || minute > 59 || second > 60 || us > DAY_US {
        return Err(Fault::Range);
    }
    Ok(us)
}

/// A decimal fraction in millionths, rounded.
pub(crate) fn fraction_us_of(fraction: &str) -> Option<i64> {
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut digits = fraction.bytes().map(|byte| i64::from(byte - b'0')).chain(std::iter::repeat(0));
    let us = (0..6).fold(0, |us, _| us * 10 + digits.next().unwrap_or(0));
    Some(us + i64::from(digits.next().unwrap_or(0) >= 5))
}

fn fraction_us(fraction: &str) -> Result<i64, Fault> {
    fraction_us_of(fraction).ok_or(Fault::Syntax)
}
