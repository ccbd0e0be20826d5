//! How long a window is.

use chrono::{DateTime, Months};

use crate::clock::Micros;

const SECOND_US: Micros = 1_000_000;
const DAY_US: Micros = 86_400 * SECOND_US;

/// The length of a kind of window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// A fixed time; a new window begins every `step_us`.
    Fixed {
        /// Its length.
        size_us: Micros,
        /// From the beginning of one to that of the next.
        step_us: Micros,
        /// Where one begins, past 1970-01-01.
        offset_us: Micros,
    },
    /// Months of the calendar, in UTC.
    Months(u32),
}

impl Span {
    /// Windows one after the other.
    pub fn tumbling(size_us: Micros, offset_us: Micros) -> Span {
        Span::Fixed { size_us, step_us: size_us, offset_us }
    }

    /// A day.
    pub const DAY: Span = Span::Fixed { size_us: DAY_US, step_us: DAY_US, offset_us: 0 };

    /// The windows of `date_trunc`; weeks begin on Mondays.
    pub fn of_unit(unit: &str) -> Option<Span> {
        let fixed = |size_us| Some(Span::tumbling(size_us, 0));
        match unit.to_ascii_lowercase().as_str() {
            "second" => fixed(SECOND_US),
            "minute" => fixed(60 * SECOND_US),
            "hour" => fixed(3_600 * SECOND_US),
            "day" => Some(Span::DAY),
            // 1970-01-01 was a Thursday.
            "week" => Some(Span::tumbling(7 * DAY_US, 4 * DAY_US)),
            "month" => Some(Span::Months(1)),
            "quarter" => Some(Span::Months(3)),
            "year" => Some(Span::Months(12)),
            _ => None,
        }
    }

    /// The end of the window that begins at a time.
    pub fn end(self, start: Micros) -> Micros {
        match self {
            Span::Fixed { size_us, .. } => start.saturating_add(size_us),
            Span::Months(months) => shifted(start, months, true),
        }
    }

    /// A time before which no window begins that ends after `time`.
    pub fn earliest(self, time: Micros) -> Micros {
        match self {
            Span::Fixed { size_us, .. } => time.saturating_sub(size_us),
            Span::Months(months) => shifted(time, months, false).saturating_sub(31 * DAY_US),
        }
    }

    /// The starts of the windows that end after `after` and at or before `until`, the newest `most` of them, ascending. Of calendar
    /// months the newest whole one alone.
    pub fn ended(self, after: Micros, until: Micros, most: usize) -> Vec<Micros> {
        match self {
            Span::Fixed { size_us, step_us, offset_us } => {
                let mut starts = Vec::new();
                let newest = until.saturating_sub(size_us).saturating_sub(offset_us);
                let mut start = newest.saturating_sub(newest.rem_euclid(step_us)).saturating_add(offset_us);
                while self.end(start) > after && starts.len() < most {
                    starts.push(start);
                    start = start.saturating_sub(step_us);
                }
                starts.reverse();
                starts
            }
            Span::Months(months) => {
                let Some(time) = DateTime::from_timestamp_micros(until) else { return Vec::new() };
                let month = chrono::Datelike::year(&time) * 12 + chrono::Datelike::month0(&time) as i32;
                let first = month.div_euclid(months as i32) * months as i32 - months as i32;
                let start = chrono::NaiveDate::from_ymd_opt(first.div_euclid(12), first.rem_euclid(12) as u32 + 1, 1)
                    .and_then(|day| day.and_hms_opt(0, 0, 0))
                    .map(|start| start.and_utc().timestamp_micros());
                start.filter(|start| self.end(*start) > after).into_iter().collect()
            }
        }
    }
}

fn shifted(time: Micros, months: u32, forward: bool) -> Micros {
    let Some(from) = DateTime::from_timestamp_micros(time) else { return time };
    let months = Months::new(months);
    let to = if forward { from.checked_add_months(months) } else { from.checked_sub_months(months) };
    to.map_or(time, |to| to.timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_in_their_order() {
        let tumbling = Span::tumbling(10, 3);
        assert_eq!(tumbling.ended(13, 45, 9), [13, 23, 33]);
        assert_eq!(tumbling.ended(23, 42, 9), [23]);
        assert_eq!(tumbling.ended(i64::MIN, 43, 2), [23, 33]);
        assert_eq!(tumbling.ended(43, 43, 9), Vec::<Micros>::new());
        let hopping = Span::Fixed { size_us: 10, step_us: 5, offset_us: 0 };
        assert_eq!(hopping.ended(10, 20, 9), [5, 10]);
        let day = |text: &str| format!("{text}T00:00:00Z").parse::<DateTime<chrono::Utc>>().unwrap().timestamp_micros();
        assert_eq!(Span::Months(1).end(day("2024-02-01")), day("2024-03-01"));
        assert_eq!(Span::Months(3).ended(day("2024-01-01"), day("2024-05-07"), 9), [day("2024-01-01")]);
        assert_eq!(Span::of_unit("week").unwrap().ended(day("2024-05-01"), day("2024-05-14"), 9), [day("2024-04-29"), day("2024-05-06")]);
    }
}
