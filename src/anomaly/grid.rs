//! The grid that the points of series lie on, and what stands in its gaps.
//!
//! The step is the greatest that all times are multiples of, so that a series that skips hours is still an hourly one: microseconds as
//! they pass, days by the clocks of a zone (of 23 and 25 hours too), or months. A [`Spacing`] sees every time of every series, in
//! any order, before the first series is filled: so all have the same step, and end together.

use chrono::{DateTime, Datelike, Months, NaiveDate};

use crate::clock::Micros;
use crate::types::zone::Zone;

/// One day.
const DAY_US: i64 = 86_400_000_000;

/// The distance of neighbours on the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Microseconds as they pass.
    Micros(i64),
    /// Microseconds, whole days, as clocks of the zone show them.
    Local(i64),
    /// Calendar months in the zone.
    Months(i64),
}

impl Step {
    /// The time `count` steps after `start`; `None` out of range.
    pub fn after(self, start: Micros, count: i64, zone: Zone) -> Option<Micros> {
        match self {
            Step::Micros(step) => start.checked_add(step.checked_mul(count)?),
            Step::Local(step) => zone.instant(local(start, zone)?.checked_add(step.checked_mul(count)?)?),
            Step::Months(step) => {
                let distance = Months::new(u32::try_from(step.checked_mul(count)?.unsigned_abs()).ok()?);
                let start = DateTime::from_timestamp_micros(local(start, zone)?)?;
                let moved = if count < 0 { start.checked_sub_months(distance)? } else { start.checked_add_months(distance)? };
                zone.instant(moved.timestamp_micros())
            }
        }
    }

    /// Whole steps from `start`, which lies on the grid, to a later `time`; `None` out of range.
    pub fn count(self, start: Micros, time: Micros, zone: Zone) -> Option<i64> {
        match self {
            Step::Micros(step) => Some(time.checked_sub(start)? / step),
            Step::Local(step) => Some(local(time, zone)?.checked_sub(local(start, zone)?)? / step),
            Step::Months(step) => {
                let ((from, begun), (to, passed)) = (month(local(start, zone)?)?, month(local(time, zone)?)?);
                Some((to - from - i64::from(passed < begun)) / step)
            }
        }
    }
}

fn local(instant: Micros, zone: Zone) -> Option<Micros> {
    instant.checked_add(i64::from(zone.offset_seconds(instant)) * 1_000_000)
}

/// The month, counted from year 0, and microseconds since its beginning.
fn month(local: Micros) -> Option<(i64, i64)> {
    let date = DateTime::from_timestamp_micros(local)?.date_naive();
    let first = NaiveDate::from_ymd_opt(date.year(), date.month(), 1)?.and_time(chrono::NaiveTime::MIN).and_utc();
    Some((i64::from(date.year()) * 12 + i64::from(date.month0()), local - first.timestamp_micros()))
}

/// What all times that were seen have in common.
#[derive(Clone, Copy, Debug)]
pub struct Spacing {
    zone: Zone,
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Any of the times.
    anchor: Micros,
    newest: Micros,
    /// Greatest common divisor of the distances to the anchor, 0 while there is one time.
    micros: i64,
    /// The same as clocks show them, while it is whole days.
    days: Option<i64>,
    /// The same in months, while all times are as far into their months.
    months: Option<i64>,
}

impl Spacing {
    /// Nothing seen yet. Days and months are counted by the clocks of `zone`.
    pub fn new(zone: Zone) -> Self {
        Self { zone, seen: None }
    }

    /// Sees a time.
    pub fn add(&mut self, time: Micros) {
        let zone = self.zone;
        match &mut self.seen {
            None => self.seen = Some(Seen { anchor: time, newest: time, micros: 0, days: Some(0), months: Some(0) }),
            Some(seen) => {
                seen.newest = seen.newest.max(time);
                seen.see(time, zone);
            }
        }
    }

    /// Sees what another one saw.
    pub fn merge(&mut self, other: &Spacing) {
        let Some(theirs) = other.seen else { return };
        self.add(theirs.anchor);
        if let Some(seen) = &mut self.seen {
            seen.newest = seen.newest.max(theirs.newest);
            seen.micros = divisor(seen.micros, theirs.micros);
            seen.days = seen.days.zip(theirs.days).map(|(ours, theirs)| divisor(ours, theirs));
            seen.months = seen.months.zip(theirs.months).map(|(ours, theirs)| divisor(ours, theirs));
        }
    }

    /// The newest time.
    pub fn newest(&self) -> Option<Micros> {
        self.seen.map(|seen| seen.newest)
    }

    /// The step; `None` when fewer than two different times were seen.
    pub fn step(&self) -> Option<Step> {
        let seen = self.seen.filter(|seen| seen.micros > 0)?;
        Some(match (seen.months, seen.days) {
            (Some(months), _) if months > 0 => Step::Months(months),
            (_, Some(days)) if days > 0 && !self.zone.is_utc() => Step::Local(days),
            _ => Step::Micros(seen.micros),
        })
    }
}

impl Seen {
    fn see(&mut self, time: Micros, zone: Zone) {
        let distance = time.abs_diff(self.anchor);
        if distance == 0 {
            return;
        }
        let distance = i64::try_from(distance).unwrap_or(i64::MAX);
        if self.micros == 0 || distance % self.micros != 0 {
            self.micros = divisor(self.micros, distance);
        }
        if self.days.is_none() && self.months.is_none() {
            return;
        }
        let (Some(here), Some(anchor)) = (local(time, zone), local(self.anchor, zone)) else { return };
        let days = divisor(self.days.unwrap_or(1), i64::try_from(here.abs_diff(anchor)).unwrap_or(1));
        self.days = self.days.and(Some(days)).filter(|days| days % DAY_US == 0);
        self.months = self.months.and_then(|months| {
            let ((month, rest), (anchor, anchor_rest)) = (month(here)?, month(anchor)?);
            // The 29th to 31st are not in every month.
            (rest == anchor_rest && rest < 28 * DAY_US).then(|| divisor(months, (month - anchor).abs()))
        });
    }
}

fn divisor(mut left: i64, mut right: i64) -> i64 {
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

/// What stands in a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing happened: counts and sums.
    Zero,
    /// What was last known: levels.
    Previous,
    /// A line between the neighbours: means.
    Linear,
    /// Nothing: the points are taken as if they were neighbours.
    None,
}

/// A series with its gaps filled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filled {
    /// Rising.
    pub times: Vec<Micros>,
    /// One a time.
    pub values: Vec<f64>,
}

/// Why a series cannot be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfilled {
    /// Two values at one time.
    Twice(Micros),
    /// So many points, more than allowed.
    TooLong(u64),
}

/// The grid of a query.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// The distance of neighbours; none when there is but one time.
    pub step: Option<Step>,
    /// Whose days and months are counted.
    pub zone: Zone,
    /// What stands in gaps.
    pub fill: Fill,
    /// Where series end that are filled beyond their last value: the newest time of all series.
    pub until: Option<Micros>,
    /// Most points of a filled series.
    pub points_max: usize,
}

impl Grid {
    /// Fills a series. `times` do not fall; NaN is a missing value, as good as a gap.
    pub fn fill(&self, times: &[Micros], values: &[f64]) -> Result<Filled, Unfilled> {
        if let Some(pair) = times.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Unfilled::Twice(pair[0]));
        }
        let known = || times.iter().copied().zip(values.iter().copied()).filter(|(_, value)| value.is_finite());
        let (Some(step), false) = (self.step, self.fill == Fill::None) else {
            let (times, values) = known().unzip();
            return self.bounded(Filled { times, values });
        };
        // Zero is a value where nothing is known, the others need one to begin with.
        let (first, last) = match self.fill {
            Fill::Zero => (times.first().copied(), self.until.max(times.last().copied())),
            Fill::Previous => (known().next().map(|(time, _)| time), self.until.max(times.last().copied())),
            Fill::Linear | Fill::None => (known().next().map(|(time, _)| time), known().next_back().map(|(time, _)| time)),
        };
        let (Some(first), Some(last)) = (first, last) else { return Ok(Filled::default()) };
        let index = |time: Micros| step.count(first, time, self.zone).and_then(|count| usize::try_from(count).ok());
        let points = index(last).map_or(usize::MAX, |last| last.saturating_add(1));
        if points > self.points_max {
            return Err(Unfilled::TooLong(points as u64));
        }
        let mut filled = Filled { times: Vec::with_capacity(points), values: vec![f64::NAN; points] };
        for count in 0..points {
            let time = i64::try_from(count).ok().and_then(|count| step.after(first, count, self.zone));
            filled.times.push(time.unwrap_or(last));
        }
        for (time, value) in known() {
            if let Some(slot) = index(time).and_then(|index| filled.values.get_mut(index)) {
                *slot = value;
            }
        }
        fill_gaps(&mut filled.values, self.fill);
        Ok(filled)
    }

    fn bounded(&self, filled: Filled) -> Result<Filled, Unfilled> {
        if filled.times.len() > self.points_max { Err(Unfilled::TooLong(filled.times.len() as u64)) } else { Ok(filled) }
    }
}

fn fill_gaps(values: &mut [f64], fill: Fill) {
    let mut known: Option<(usize, f64)> = None;
    for index in 0..values.len() {
        let value = values[index];
        match fill {
            Fill::Zero | Fill::None if value.is_nan() => values[index] = 0.0,
            Fill::Previous if value.is_nan() => values[index] = known.map_or(0.0, |(_, value)| value),
            Fill::Linear if !value.is_nan() => {
                if let Some((before, left)) = known {
                    let slope = (value - left) / (index - before) as f64;
                    for (offset, slot) in values[before + 1..index].iter_mut().enumerate() {
                        *slot = left + slope * (offset + 1) as f64;
                    }
                }
            }
            _ => {}
        }
        if !value.is_nan() {
            known = Some((index, value));
        }
    }
}
