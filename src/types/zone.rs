//! Time zones: names as PostgreSQL's TimeZone takes them, and their offsets.
//!
//! *Place*: `types::text` and the session variables use it.

use std::fmt;

use chrono::{DateTime, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};

/// A time zone: of the IANA database, or a fixed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// By name.
    Named(Tz),
    /// Seconds east of Greenwich.
    Fixed(i32),
}

/// Largest offset that a time zone may have, seconds (PostgreSQL's MAX_TZDISP_HOUR).
const OFFSET_SECONDS_MAX: i32 = 15 * 3600 + 59 * 60 + 59;

/// Zone abbreviations that PostgreSQL knows by default and that stand for one offset, seconds east.
const ABBREVIATIONS: &[(&str, i32)] = &[
    ("z", 0),
    ("zulu", 0),
    ("utc", 0),
    ("gmt", 0),
    ("wet", 0),
    ("bst", 3600),
    ("west", 3600),
    ("cet", 3600),
    ("met", 3600),
    ("cest", 7200),
    ("eet", 7200),
    ("eest", 10_800),
    ("msk", 10_800),
    ("jst", 32_400),
    ("kst", 32_400),
    ("ast", -14_400),
    ("adt", -10_800),
    ("est", -18_000),
    ("edt", -14_400),
    ("cst", -21_600),
    ("cdt", -18_000),
    ("mst", -25_200),
    ("mdt", -21_600),
    ("pst", -28_800),
    ("pdt", -25_200),
    ("akst", -32_400),
    ("akdt", -28_800),
    ("hst", -36_000),
];

impl Zone {
    /// Greenwich.
    pub const UTC: Zone = Zone::Named(Tz::UTC);

    /// Reads the value of TimeZone: an IANA name in any case, hours (`-5`, `5.5`) or an offset (`+02:00`) east of Greenwich,
    /// `UTC+3`-like POSIX names (west). 22023 when there is no such zone.
    pub fn parse(name: &str) -> Result<Zone> {
        let trimmed = name.trim();
        named(trimmed)
            .or_else(|| offset(trimmed).map(Zone::Fixed))
            .or_else(|| posix(trimmed))
            .ok_or_else(|| Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("invalid value for parameter \"TimeZone\": \"{name}\"")))
    }

    /// The zone that stands at the end of a timestamp's text: an abbreviation or an IANA name.
    pub(crate) fn in_text(name: &str) -> Option<Zone> {
        ABBREVIATIONS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, seconds)| Zone::Fixed(*seconds))
            .or_else(|| named(name))
    }

    /// True when every offset is zero: the fast paths ask.
    pub fn is_utc(self) -> bool {
        matches!(self, Zone::Named(Tz::UTC) | Zone::Fixed(0))
    }

    /// Seconds east of Greenwich at an instant.
    pub fn offset_seconds(self, at: Micros) -> i32 {
        match self {
            Zone::Fixed(seconds) => seconds,
            Zone::Named(Tz::UTC) => 0,
            Zone::Named(tz) => tz.offset_from_utc_datetime(&naive(at)).fix().local_minus_utc(),
        }
    }

    /// The instant at which clocks of this zone show `local` (microseconds as if UTC). As PostgreSQL: an hour that comes
    /// twice is the second one (standard time), one that is skipped is read with the offset before the change.
    pub fn instant(self, local: Micros) -> Option<Micros> {
        let seconds = match self {
            Zone::Fixed(seconds) => seconds,
            Zone::Named(Tz::UTC) => 0,
            Zone::Named(tz) => match tz.offset_from_local_datetime(&naive(local)) {
                chrono::LocalResult::Single(offset) => offset.fix().local_minus_utc(),
                chrono::LocalResult::Ambiguous(first, second) => first.fix().local_minus_utc().min(second.fix().local_minus_utc()),
                chrono::LocalResult::None => {
                    // No zone changes twice within a day.
                    const DAY_US: i64 = 86_400_000_000;
                    self.offset_seconds(local.checked_sub(DAY_US)?)
                }
            },
        };
        local.checked_sub(i64::from(seconds) * 1_000_000)
    }
}

/// As SHOW TimeZone: the name, or `<+02>-02` for an offset.
impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Zone::Named(tz) => f.write_str(tz.name()),
            Zone::Fixed(seconds) => {
                let (sign, reverse) = if seconds < 0 { ('-', '+') } else { ('+', '-') };
                let (hours, minutes) = (seconds.abs() / 3600, seconds.abs() / 60 % 60);
                if minutes == 0 {
                    write!(f, "<{sign}{hours:02}>{reverse}{hours:02}")
                } else {
                    write!(f, "<{sign}{hours:02}:{minutes:02}>{reverse}{hours:02}:{minutes:02}")
                }
            }
        }
    }
}

/// Outside chrono's years the offset of the nearest one is as good as any.
fn naive(at: Micros) -> NaiveDateTime {
    DateTime::UNIX_EPOCH.naive_utc().checked_add_signed(TimeDelta::microseconds(at)).unwrap_or(if at < 0 {
        NaiveDateTime::MIN
    } else {
        NaiveDateTime::MAX
    })
}

fn named(name: &str) -> Option<Zone> {
    if let Ok(tz) = name.parse::<Tz>() {
        return Some(Zone::Named(tz));
    }
    chrono_tz::TZ_VARIANTS.iter().find(|tz| tz.name().eq_ignore_ascii_case(name)).map(|tz| Zone::Named(*tz))
}

/// `+02`, `-0530`, `+05:30`, `5.5`: seconds east.
fn offset(text: &str) -> Option<i32> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b':' || byte == b'.') {
        return None;
    }
    let seconds = if let Some((hours, fraction)) = digits.split_once('.') {
        let hours: i32 = hours.parse().ok()?;
        let fraction: f64 = format!("0.{fraction}").parse().ok()?;
        hours.checked_mul(3600)?.checked_add((fraction * 3600.0) as i32)?
    } else {
        offset_digits(digits)?
    };
    (seconds <= OFFSET_SECONDS_MAX).then_some(sign * seconds)
}

/// `02`, `0530`, `05:30`, `05:30:15`, without the sign: seconds.
pub(crate) fn offset_digits(digits: &str) -> Option<i32> {
    let part = |text: &str, limit: i32| -> Option<i32> {
        let plain = !text.is_empty() && text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten().filter(|value| *value < limit)
    };
    let mut parts = digits.split(':');
    let first = parts.next()?;
    let seconds = match (first.len(), parts.next()) {
        (4, None) => part(first.get(..2)?, 16)? * 3600 + part(first.get(2..)?, 60)? * 60,
        (3, None) => part(first.get(..1)?, 16)? * 3600 + part(first.get(1..)?, 60)? * 60,
        (6, None) => part(first.get(..2)?, 16)? * 3600 + part(first.get(2..4)?, 60)? * 60 + part(first.get(4..)?, 60)?,
        (_, None) => part(first, 16)? * 3600,
        (_, Some(minutes)) => {
            let seconds = parts.next().map_or(Some(0), |text| part(text, 60))?;
            part(first, 16)? * 3600 + part(minutes, 60)? * 60 + seconds
        }
    };
    parts.next().is_none().then_some(seconds)
}

/// `UTC+3` and `<+02>-02`: a name and an offset west of Greenwich, as POSIX has it.
fn posix(text: &str) -> Option<Zone> {
    let rest = match text.strip_prefix('<') {
        Some(quoted) => quoted.split_once('>')?.1,
        None => {
            let end = text.find(|character: char| !character.is_ascii_alphabetic())?;
            if end < 3 {
                return None;
            }
            &text[end..]
        }
    };
    offset(rest).map(|seconds| Zone::Fixed(-seconds))
}
