//! SESSION in a view: fragments of sessions, and how they join.
//!
//! *Place*: `apply` cuts a batch into fragments, `groups` joins those of deltas and blocks.
//!
//! A fragment is a run of rows with the same other keys, none more than the gap after the one before: its start, its last time
//! (the state of a hidden `max(time)`) and the aggregates' states. Two fragments that touch are one. Joining is associative: whether
//! a row bridges two sessions is the same whenever they meet, so rows may come in any order and state be merged in any grouping.
//!
//! After a deletion a state row voids all older fragments of its other keys; those of the rows that remain follow it.
//!
//! *Invariants*: all fragments of one combination of the other keys are in one slot and in the one time group, so that a read's
//! unit or a merge's chunk has them all; those that void come first in their slot.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::{ScalarValue, exec_datafusion_err};
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::ScalarFunction;

use super::aggregate::Aggregate;
use super::compile::Planner;
use super::failure::failure;
use super::groups::{Interner, indices};
use super::source::no_view;
use super::spec::Spec;
use super::window;
use crate::error::Error;
use crate::types::window::joins;

/// How a view keeps sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// The key that is a session's start; its expression is a row's time.
    pub(super) key: usize,
    /// The aggregate that is a session's last time.
    pub(super) aggregate: usize,
    /// The state column that is a session's last time.
    pub(super) last: usize,
    /// Rows further apart than this, microseconds, are of two sessions.
    pub(super) gap_us: i64,
}

impl Session {
    /// Compiles a session whose start is the key `key` of `keys`; its last time is the last of the aggregates. 22023 for a gap that
    /// cannot be.
    pub(super) fn compile(
        rows: &Planner<'_>,
        key: usize,
        gap: &Expr,
        keys: usize,
        aggregates: &[Arc<Aggregate>],
    ) -> Result<Session, Error> {
        let gap = rows.simplify(gap.clone())?;
        let breaks = rows.session.scalar_functions().get("session_break").ok_or_else(|| Error::internal("session_break() is missing"))?;
        // The function says itself what is wrong with its gap.
        let time = Expr::Literal(ScalarValue::TimestampMicrosecond(Some(0), None), None);
        let sample = Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(breaks), vec![time.clone(), time, gap.clone()]));
        let empty = RecordBatch::new_empty(Arc::new(rows.schema.as_arrow().clone()));
        rows.physical(&sample)?.evaluate(&empty).map_err(failure)?;
        let Some(gap_us) = window::literal(&gap).and_then(window::interval_us) else {
            return Err(no_view("SESSION with a gap that is not a constant", "Write the interval into the query."));
        };
        let aggregate = aggregates.len().checked_sub(1).ok_or_else(|| Error::internal("a session without its last time"))?;
        let last = keys + aggregates[..aggregate].iter().map(|aggregate| aggregate.state.len()).sum::<usize>();
        Ok(Session { key, aggregate, last, gap_us })
    }
}

impl Session {
    /// Numbers the other keys.
    pub(super) fn others(&self, spec: &Spec) -> Result<Interner> {
        let fields = spec.key_schema.fields().iter().enumerate().filter(|(key, _)| *key != self.key);
        Interner::new(&Arc::new(Schema::new(fields.map(|(_, field)| Arc::clone(field)).collect::<Vec<_>>())))
    }

    /// The other keys.
    pub(super) fn without_start(&self, keys: &[ArrayRef]) -> Vec<ArrayRef> {
        keys.iter().enumerate().filter(|(key, _)| *key != self.key).map(|(_, key)| Arc::clone(key)).collect()
    }
}

/// A row or fragment: its other keys as a number, and its times; without times it is of a session of its own per key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Equal for equal other keys.
    pub(super) id: usize,
    /// First and last time.
    pub(super) times: Option<(i64, i64)>,
}

/// Numbers the sessions of rows or fragments, added in any order.
pub(super) struct Sessions<'a> {
    spec: &'a Spec,
    session: &'a Session,
    /// Of the other keys.
    others: Interner,
    spans: Vec<Span>,
}

impl<'a> Sessions<'a> {
    pub(super) fn new(spec: &'a Spec, session: &'a Session) -> Result<Self> {
        Ok(Self { spec, session, others: session.others(spec)?, spans: Vec::new() })
    }

    /// Adds rows with the spec's keys and last times; where there is none it is the start.
    pub(super) fn add(&mut self, keys: &[ArrayRef], last: &ArrayRef, rows: usize) -> Result<()> {
        let mut ids = Vec::new();
        self.others.intern(&self.session.without_start(keys), rows, &mut ids)?;
        let of = |array: &ArrayRef| {
            array
                .as_primitive_opt::<TimestampMicrosecondType>()
                .cloned()
                .ok_or_else(|| exec_datafusion_err!("a session's time is of type {}", array.data_type()))
        };
        let (first, last) = (of(&keys[self.session.key])?, of(last)?);
        let times = first.iter().zip(last.iter()).map(|(first, last)| first.map(|first| (first, last.unwrap_or(first).max(first))));
        self.spans.extend(ids.into_iter().zip(times).map(|(id, times)| Span { id, times }));
        Ok(())
    }

    /// Each row's session by its number, in the order in which rows were added; each session's keys; how many there are.
    pub(super) fn join(mut self) -> Result<(Vec<usize>, Vec<ArrayRef>, usize)> {
        let joined = join(&self.spans, self.session.gap_us);
        let ids = indices(joined.sessions.iter().map(|(_, span)| self.spans[*span].id));
        let others = self.others.emit()?;
        let mut others = arrow::compute::take_arrays(&others, &ids, None)?.into_iter();
        let starts: TimestampMicrosecondArray = joined.sessions.iter().map(|(start, _)| *start).collect();
        let mut keys = Vec::with_capacity(self.spec.keys.len());
        for (key, field) in self.spec.key_schema.fields().iter().enumerate() {
            keys.push(match (key == self.session.key, field.data_type()) {
                (true, DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                    Arc::new(starts.clone().with_data_type(field.data_type().clone())) as ArrayRef
                }
                _ => others.next().ok_or_else(|| exec_datafusion_err!("a session's keys do not fit"))?,
            });
        }
        Ok((joined.groups, keys, joined.sessions.len()))
    }
}

/// Joined sessions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    /// Per span the number of its session; sessions are numbered as they first appear.
    pub(super) groups: Vec<usize>,
    /// Per session its start, none where there is no time, and a span of it.
    pub(super) sessions: Vec<(Option<i64>, usize)>,
}

/// Finds the sessions of spans.
pub(super) fn join(spans: &[Span], gap_us: i64) -> Joined {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_unstable_by_key(|index| (spans[*index].id, spans[*index].times));
    let mut joined = Joined { groups: vec![0; spans.len()], sessions: Vec::new() };
    // The session under way: its other keys, and its last time so far.
    let mut open: Option<(usize, Option<i64>)> = None;
    for index in order {
        let Span { id, times } = spans[index];
        let continues = match (open, times) {
            (Some((key, None)), None) => key == id,
            (Some((key, Some(last))), Some((first, _))) => key == id && joins(last, first, gap_us),
            _ => false,
        };
        if !continues {
            joined.sessions.push((times.map(|(first, _)| first), index));
            open = Some((id, times.map(|(_, last)| last)));
        } else if let (Some((_, Some(last))), Some((_, end))) = (&mut open, times) {
            *last = (*last).max(end);
        }
        joined.groups[index] = joined.sessions.len() - 1;
    }
    joined.in_order_of_appearance()
}

impl Joined {
    /// Accumulators rely on it: a batch that brings the number of groups to n has shown them all of the groups below n.
    fn in_order_of_appearance(mut self) -> Joined {
        let mut numbers = vec![None; self.sessions.len()];
        let mut sessions = Vec::with_capacity(self.sessions.len());
        for group in &mut self.groups {
            let old = *group;
            *group = *numbers[old].get_or_insert_with(|| {
                sessions.push(self.sessions[old]);
                sessions.len() - 1
            });
        }
        Joined { groups: self.groups, sessions }
    }
}

#[cfg(test)]
mod tests {
    use super::{Joined, Span, join};

    fn spans(times: &[(usize, i64, i64)]) -> Vec<Span> {
        times.iter().map(|(id, first, last)| Span { id: *id, times: Some((*first, *last)) }).collect()
    }

    #[test]
    fn rows_within_the_gap_are_one_session() {
        // Out of order, two keys, exactly the gap apart (one session) and one more (two).
        let joined = join(&spans(&[(0, 40, 40), (1, 10, 10), (0, 10, 10), (0, 71, 71), (1, 10, 10)]), 30);
        assert_eq!(joined, Joined { groups: vec![0, 1, 0, 2, 1], sessions: vec![(Some(10), 2), (Some(10), 1), (Some(71), 3)] });
    }

    #[test]
    fn a_row_bridges_sessions_and_a_long_one_covers_short_ones() {
        assert_eq!(join(&spans(&[(0, 0, 10), (0, 50, 60), (0, 30, 30)]), 20).sessions.len(), 1);
        assert_eq!(join(&spans(&[(0, 0, 100), (0, 20, 25), (0, 105, 110)]), 10).sessions.len(), 1);
        assert_eq!(join(&spans(&[(0, 0, 10), (0, 50, 60)]), 20).sessions.len(), 2);
    }

    #[test]
    fn rows_without_a_time_are_one_session_of_their_key() {
        let none = |id| Span { id, times: None };
        let joined = join(&[none(0), Span { id: 0, times: Some((5, 5)) }, none(1), none(0)], 10);
        assert_eq!(joined.groups, [0, 1, 2, 0]);
        assert_eq!(joined.sessions.iter().map(|(start, _)| *start).collect::<Vec<_>>(), [None, Some(5), None]);
    }

    #[test]
    fn joining_is_associative() {
        let parts = spans(&[(0, 0, 0), (0, 9, 9), (0, 18, 18), (0, 30, 30), (0, 38, 38)]);
        let all = join(&parts, 10).sessions;
        for cut in 1..parts.len() {
            let mut merged = Vec::new();
            for half in [&parts[..cut], &parts[cut..]] {
                let joined = join(half, 10);
                for (session, (start, _)) in joined.sessions.iter().enumerate() {
                    let last = half.iter().zip(&joined.groups).filter(|(_, group)| **group == session);
                    let last = last.filter_map(|(span, _)| span.times).map(|(_, last)| last).max();
                    merged.push(Span { id: 0, times: start.zip(last) });
                }
            }
            let mut starts: Vec<_> = join(&merged, 10).sessions.iter().map(|(start, _)| *start).collect();
            starts.sort_unstable();
            assert_eq!(starts, all.iter().map(|(start, _)| *start).collect::<Vec<_>>());
        }
    }
}
