//! How far one entity gets: the search for a chain of its events that meets a funnel's conditions.
//!
//! *Place*: [`super::path`] calls it for each entity, over all its events in order of time and arrival.
//!
//! A *chain* of length i is events e1 <= e2 <= ... <= ei (in that order), of which the j-th satisfies step j (in mode `any`: each of the
//! first i steps is satisfied by one of them), such that
//! - each is within the window of the one before, or the last within the window of the first;
//! - an event stands twice only where one event may satisfy several steps (`repeat`);
//! - no excluded event stands strictly between two that follow each other in the chain; in mode `strict`, no event at all does;
//! - the values that have to be the same are. A NULL is the same as nothing: such an event is a chain of its own.
//!
//! The entity reaches the length of its longest chain. Of its longest chains *the* chain is the one that ends first; among those,
//! the latest: with a window from the first step the one that begins last, then, compared from the end backwards, the one whose
//! events are later. Its times are what `median_seconds` is made of, and its event of step 1 is that of `attribution := 'step_1'`.
//!
//! Ordered and strict chains: for each step only the latest chain that ends with it is kept. Of two chains that end with the same step
//! the element-wise later of each is a chain again, so there is a latest one in every position, and whatever continues another
//! continues it too. One pass, O(events * steps).
//!
//! Chains in any order: where nothing but a span or nothing at all bounds them, the latest event of each step is enough. Else the
//! chains are kept by the set of steps that they have, at most [`SETS_MAX`] at a time (54000 beyond).

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::error::{Error, Result, SqlState};

/// Sets of steps that may be open at a time while one entity's chains in any order are searched.
pub const SETS_MAX: usize = 65_536;

/// The tag of a value that is not the same as any other.
pub const NEVER: u32 = u32::MAX;

/// In which order the steps have to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// In theirs.
    Ordered,
    /// In theirs, nothing between.
    Strict,
    /// In any.
    Any,
}

/// The conditions of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// How many steps there are, 1 to 64.
    pub steps: usize,
    /// See [`Mode`].
    pub mode: Mode,
    /// The window is from the chain's first event, not from the one before.
    pub from_first: bool,
    /// One event may satisfy several steps.
    pub repeat: bool,
}

/// One event, as little of it as is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds.
    pub time: i64,
    /// The order of arrival, times two, and one if it is excluded.
    pub order: i64,
    /// The steps that it satisfies, a bit each.
    pub steps: u64,
}

impl Event {
    /// Whether it breaks the chains that it stands between.
    pub fn is_excluded(&self) -> bool {
        self.order & 1 == 1
    }
}

/// An entity's chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its length: the steps that are reached.
    pub steps: usize,
    /// The times of its events, in order.
    pub times: Vec<i64>,
    /// The position of the event that is step 1.
    pub first: usize,
    /// The position of its last event.
    end: usize,
}

impl Chain {
    fn offer(&mut self, end: usize, first: usize, times: &[i64]) {
        if times.len() > self.steps || (times.len() == self.steps && end < self.end) {
            self.times.clear();
            self.times.extend_from_slice(times);
            (self.steps, self.end, self.first) = (times.len(), end, first);
        }
    }
}

/// A chain that may be continued.
#[derive(Clone, Debug)]
struct Open {
    start: i64,
    last: i64,
    first: usize,
    times: Vec<i64>,
    positions: Vec<usize>,
}

/// The search, with its scratch space, for many entities.
#[derive(Debug)]
pub struct Search {
    rules: Rules,
    window_us: Option<i64>,
    best: Chain,
    /// Of the latest chain that ends with each step: the position of its last event, none where there is no chain.
    ends: Vec<Option<usize>>,
    firsts: Vec<usize>,
    /// A row of times a step.
    times: Vec<i64>,
    positions: Vec<usize>,
    /// The newest excluded event before each, plus one; empty where there is none.
    barriers: Vec<usize>,
    sorted: Vec<i64>,
    sets: HashMap<u64, Open>,
}

impl Search {
    /// A search for chains of certain conditions.
    pub fn new(rules: Rules, window_us: Option<i64>) -> Self {
        let steps = rules.steps;
        Self {
            rules,
            window_us,
            best: Chain::default(),
            ends: vec![None; steps],
            firsts: vec![0; steps],
            times: vec![0; steps * steps],
            positions: Vec::new(),
            barriers: Vec::new(),
            sorted: Vec::with_capacity(steps),
            sets: HashMap::new(),
        }
    }

    /// The chain of an entity whose events are these, in order. `same` tags the values that have to be the same along a chain.
    pub fn chain(&mut self, events: &[Event], same: Option<&[u32]>) -> Result<&Chain> {
        (self.best.steps, self.best.end, self.best.first) = (0, 0, 0);
        self.best.times.clear();
        self.barriers.clear();
        if events.iter().any(Event::is_excluded) {
            let mut newest = 0;
            for (position, event) in events.iter().enumerate() {
                self.barriers.push(newest);
                if event.is_excluded() {
                    newest = position + 1;
                }
            }
        }
        let mut positions = std::mem::take(&mut self.positions);
        positions.clear();
        positions.extend(0..events.len());
        let searched = match same {
            None => self.lane(events, &positions),
            Some(tags) => {
                positions.sort_by_key(|position| (tags[*position], *position));
                let lanes = positions.chunk_by(|one, other| tags[*one] == tags[*other] && tags[*one] != NEVER);
                lanes.into_iter().try_for_each(|lane| match tags[lane[0]] {
                    NEVER => self.alone(events, lane[0]),
                    _ => self.lane(events, lane),
                })
            }
        };
        self.positions = positions;
        searched.map(|()| &self.best)
    }

    /// How many of an entity's events, in order, can still decide, whatever other events come or turn out to be older: of those after the
    /// end of a complete chain none can, where nothing breaks chains ([`Mode::Ordered`], no excluded events).
    pub fn needed(&mut self, events: &[Event], same: Option<&[u32]>) -> Result<usize> {
        let found = events.iter().fold(0, |found, event| found | event.steps);
        if found.count_ones() as usize != self.rules.steps {
            return Ok(events.len());
        }
        let steps = self.rules.steps;
        let chain = self.chain(events, same)?;
        Ok(if chain.steps == steps { chain.end + 1 } else { events.len() })
    }

    /// How far apart the events of a chain can be, microseconds; none for any.
    fn span_us(&self) -> Option<i64> {
        let windows = if self.rules.from_first { 1 } else { self.rules.steps as i64 - 1 };
        if self.rules.steps == 1 { Some(0) } else { self.window_us.map(|window| window.saturating_mul(windows)) }
    }

    /// Puts the positions of those of an entity's events, in order, into `kept` that can still decide when no event before `horizon`
    /// comes. A chain with an event that is yet to come, or can still be broken, reaches back no further than its span; of the other
    /// chains the best is known. What else counts is the newest event before that breaks chains: it loses its steps.
    pub fn settle(&mut self, events: &mut [Event], same: Option<&[u32]>, horizon: i64, kept: &mut Vec<usize>) {
        let from = self.span_us().map_or(i64::MIN, |span| horizon.saturating_sub(span));
        let old = events.partition_point(|event| event.time < from);
        let certain = events.partition_point(|event| event.time < horizon);
        if old == 0 {
            return kept.extend(0..events.len());
        }
        let breaking = match self.rules.mode {
            Mode::Strict => Some(old - 1),
            _ => events[..old].iter().rposition(Event::is_excluded),
        };
        // What cannot be searched is an error for readers, as long as the events are there.
        let Ok(chain) = self.chain(&events[..certain], same.map(|same| &same[..certain])) else {
            return kept.extend(0..events.len());
        };
        for (position, event) in events[..old].iter_mut().enumerate() {
            if chain.times.binary_search(&event.time).is_ok() {
                kept.push(position);
            } else if Some(position) == breaking {
                event.steps = 0;
                kept.push(position);
            }
        }
        kept.extend(old..events.len());
    }

    /// The events of one value.
    fn lane(&mut self, events: &[Event], lane: &[usize]) -> Result<()> {
        match self.rules.mode {
            Mode::Ordered | Mode::Strict => {
                self.in_order(events, lane);
                Ok(())
            }
            Mode::Any if self.is_free(events, lane) => {
                self.in_any_order(events, lane);
                Ok(())
            }
            Mode::Any => self.by_sets(events, lane),
        }
    }

    /// An event that is the same as no other.
    fn alone(&mut self, events: &[Event], position: usize) -> Result<()> {
        if events[position].steps & 1 == 1 {
            self.best.offer(position, position, &[events[position].time]);
        }
        Ok(())
    }

    /// Whether a chain whose last event is at `end` can go on at `position`, as far as what stands between decides.
    fn is_clear(&self, end: usize, position: usize) -> bool {
        let barred = self.barriers.get(position).is_some_and(|barrier| end + 1 < *barrier);
        !barred && (self.rules.mode != Mode::Strict || end + 1 >= position)
    }

    fn is_within(&self, start: i64, last: i64, time: i64) -> bool {
        let from = if self.rules.from_first { start } else { last };
        self.window_us.is_none_or(|window| time.checked_sub(from).is_some_and(|passed| passed <= window))
    }

    fn in_order(&mut self, events: &[Event], lane: &[usize]) {
        let width = self.rules.steps;
        self.ends.fill(None);
        for &position in lane {
            let Event { time, steps, .. } = events[position];
            let mut left = steps;
            while left != 0 {
                // Upwards a step may be continued by the event that has just reached it.
                let step = if self.rules.repeat { left.trailing_zeros() } else { left.ilog2() } as usize;
                left &= !(1 << step);
                let row = step * width;
                if step > 0 {
                    let before = row - width;
                    let Some(end) = self.ends[step - 1] else { continue };
                    let (start, last) = (self.times[before], self.times[before + step - 1]);
                    if !self.is_clear(end, position) || !self.is_within(start, last, time) {
                        continue;
                    }
                    self.times.copy_within(before..before + step, row);
                    self.firsts[step] = self.firsts[step - 1];
                } else {
                    self.firsts[0] = position;
                }
                self.times[row + step] = time;
                self.ends[step] = Some(position);
                self.best.offer(position, self.firsts[step], &self.times[row..=row + step]);
                if self.best.steps == width && self.best.end <= position {
                    return;
                }
            }
        }
    }

    /// Whether only a span bounds the chains, and no event would have to be given to one of several steps.
    fn is_free(&self, events: &[Event], lane: &[usize]) -> bool {
        (self.window_us.is_none() || self.rules.from_first)
            && self.barriers.is_empty()
            && (self.rules.repeat || lane.iter().all(|position| events[*position].steps.count_ones() <= 1))
    }

    fn in_any_order(&mut self, events: &[Event], lane: &[usize]) {
        self.ends.fill(None);
        for &position in lane {
            let Event { time, steps, .. } = events[position];
            let mut left = steps;
            while left != 0 {
                self.ends[left.trailing_zeros() as usize] = Some(position);
                left &= left - 1;
            }
            self.sorted.clear();
            for end in &self.ends {
                match end.map(|end| events[end].time) {
                    Some(start) if self.is_within(start, start, time) => self.sorted.push(start),
                    _ => break,
                }
            }
            if self.sorted.len() > self.best.steps || self.sorted.len() == self.best.steps && position < self.best.end {
                self.sorted.sort_unstable();
                self.best.offer(position, self.ends[0].unwrap_or_default(), &self.sorted);
            }
        }
    }

    fn by_sets(&mut self, events: &[Event], lane: &[usize]) -> Result<()> {
        let mut sets = std::mem::take(&mut self.sets);
        sets.clear();
        for &position in lane {
            let Event { time, steps, .. } = events[position];
            sets.retain(|_, open| {
                self.is_clear(*open.positions.last().unwrap_or(&0), position) && self.is_within(open.start, open.last, time)
            });
            let mut reached: HashMap<u64, Open> = HashMap::new();
            let mut queue: Vec<(u64, Option<Open>)> = vec![(0, None)];
            queue.extend(sets.iter().map(|(set, open)| (*set, Some(open.clone()))));
            while let Some((set, open)) = queue.pop() {
                let mut left = steps & !set;
                while left != 0 {
                    let step = left.trailing_zeros();
                    left &= left - 1;
                    let longer = self.continued(open.as_ref(), step, position, time);
                    let set = set | 1 << step;
                    if reached.get(&set).is_none_or(|known| self.is_later(&longer, known)) {
                        if self.rules.repeat {
                            queue.push((set, Some(longer.clone())));
                        }
                        reached.insert(set, longer);
                        if reached.len() > SETS_MAX {
                            return Err(too_many());
                        }
                    }
                }
            }
            for (set, open) in &reached {
                if set.trailing_ones() == set.count_ones() {
                    self.best.offer(position, open.first, &open.times);
                }
            }
            if events[position].is_excluded() {
                sets.clear();
            }
            for (set, open) in reached {
                if sets.get(&set).is_none_or(|known| self.is_later(&open, known)) {
                    sets.insert(set, open);
                }
            }
            if sets.len() > SETS_MAX {
                return Err(too_many());
            }
        }
        self.sets = sets;
        Ok(())
    }

    fn continued(&self, open: Option<&Open>, step: u32, position: usize, time: i64) -> Open {
        let mut longer = match open {
            Some(open) => open.clone(),
            None => Open { start: time, last: time, first: 0, times: Vec::new(), positions: Vec::new() },
        };
        longer.last = time;
        longer.times.push(time);
        longer.positions.push(position);
        if step == 0 {
            longer.first = position;
        }
        longer
    }

    /// Whether a chain comes before another of the same steps.
    fn is_later(&self, one: &Open, other: &Open) -> bool {
        let key = |open: &Open| if self.rules.from_first { open.start } else { 0 };
        let backwards = |open: &Open| open.positions.iter().rev().copied().collect::<Vec<_>>();
        (Reverse(key(one)), Reverse(backwards(one)), Reverse(one.first))
            < (Reverse(key(other)), Reverse(backwards(other)), Reverse(other.first))
    }
}

fn too_many() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the steps of one entity come in too many orders")
        .detail(format!("In mode 'any', at most {SETS_MAX} combinations of steps are followed at a time."))
        .hint("Use fewer steps, a shorter window, or window_from := 'first' without exclude.")
}
