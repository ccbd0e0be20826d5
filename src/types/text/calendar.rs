//! The calendar: days and civil dates (proleptic Gregorian), and writing dates, times and timestamps.

use crate::clock::Micros;
use crate::types::text::number::write_unsigned;
use crate::types::zone::Zone;

pub(crate) const SECOND_US: i64 = 1_000_000;
pub(crate) const MINUTE_US: i64 = 60 * SECOND_US;
pub(crate) const HOUR_US: i64 = 60 * MINUTE_US;
pub(crate) const DAY_US: i64 = 24 * HOUR_US;

/// 4714-11-24 BC, the first day of PostgreSQL's dates: 4713-01-01 BC in the Julian calendar.
pub const DAYS_MIN: i64 = -2_440_588;
/// The first microsecond of PostgreSQL's timestamps.
pub const TIMESTAMP_MIN_US: Micros = DAYS_MIN * DAY_US;

/// Days since 1970-01-01 of a civil date; year 0 is 1 BC. (Howard Hinnant, "chrono-compatible low-level date algorithms".)
#[inline]
pub(crate) fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of days since 1970-01-01.
#[inline]
pub(crate) fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = (if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 }) as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days of a month.
pub(crate) fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Appends a `date`.
pub fn write_date(days: i32, out: &mut Vec<u8>) {
    let year = write_civil(i64::from(days), out);
    write_era(year, out);
}

/// Appends a `timestamp`.
pub fn write_timestamp(at: Micros, out: &mut Vec<u8>) {
    let year = write_civil(at.div_euclid(DAY_US), out);
    out.push(b' ');
    write_time(at.rem_euclid(DAY_US), out);
    write_era(year, out);
}

/// Appends a `timestamptz` as clocks in `zone` show it, with the offset.
pub fn write_timestamptz(at: Micros, zone: Zone, out: &mut Vec<u8>) {
    let offset = zone.offset_seconds(at);
    let local = at.saturating_add(i64::from(offset) * SECOND_US);
    let year = write_civil(local.div_euclid(DAY_US), out);
    out.push(b' ');
    write_time(local.rem_euclid(DAY_US), out);
    write_offset(offset, out);
    write_era(year, out);
}

/// Appends a `time` of `us` microseconds since midnight.
pub fn write_time(us: i64, out: &mut Vec<u8>) {
    let seconds = us / SECOND_US;
    two(seconds / 3600, out);
    out.push(b':');
    two(seconds / 60 % 60, out);
    out.push(b':');
    two(seconds % 60, out);
    write_fraction((us % SECOND_US) as u32, out);
}

/// Appends microseconds as a decimal fraction without zeros at the end, nothing for none.
pub(crate) fn write_fraction(us: u32, out: &mut Vec<u8>) {
    if us > 0 {
        out.push(b'.');
        write_unsigned(u128::from(us), 6, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

#[inline]
fn two(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + (value / 10) as u8, b'0' + (value % 10) as u8]);
}

/// Year 0 is 1 BC, as [`write_era`] then says.
fn write_civil(days: i64, out: &mut Vec<u8>) -> i64 {
    let (year, month, day) = civil_from_days(days);
    let shown = if year > 0 { year } else { 1 - year };
    write_unsigned(u128::from(shown.unsigned_abs()), 4, out);
    out.push(b'-');
    two(i64::from(month), out);
    out.push(b'-');
    two(i64::from(day), out);
    year
}

fn write_era(year: i64, out: &mut Vec<u8>) {
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

fn write_offset(seconds: i32, out: &mut Vec<u8>) {
    out.push(if seconds < 0 { b'-' } else { b'+' });
    let magnitude = i64::from(seconds.unsigned_abs());
    two(magnitude / 3600, out);
    if magnitude % 3600 != 0 {
        out.push(b':');
        two(magnitude / 60 % 60, out);
        if magnitude % 60 != 0 {
            out.push(b':');
            two(magnitude % 60, out);
        }
    }
}
