//! Which of the asked rows a view's state has, and which have to come from the table.
//!
//! *Place*: [`super`], after a proof.
//!
//! *Invariants*: (1) every asked row is in exactly one of the two parts; (2) they are cut at bounds of the view's buckets and at
//! LSNs, never at a clock's time.

use super::prove::{Proof, Reason};
use super::query::Range;
use crate::store::TableState;
use crate::view::{Evicted, Version};

/// The two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Event times whose rows are in the state, ascending, cut at bounds of buckets.
    pub state: Vec<Range>,
    /// Event times whose rows come from the table.
    pub raw: Vec<Range>,
    /// Rows below this LSN come from the table whatever their event time is.
    pub below_lsn: Option<u64>,
}

impl Cover {
    /// Of a whole view some of whose windows are evicted.
    pub fn of_evicted(evicted: Evicted) -> Cover {
        let evicted = Range { low: evicted.from_us, high: evicted.to_us };
        Cover { state: without(Range::ALL, &[evicted]), raw: vec![evicted], below_lsn: None }
    }

    /// Whether nothing comes from the table.
    pub fn is_whole(&self) -> bool {
        self.raw.is_empty() && self.below_lsn.is_none()
    }
}

/// Divides the rows that a query asks for.
pub fn divide(proof: &Proof, version: &Version, table: &TableState) -> Result<Cover, Reason> {
    let asked = proof.range;
    if asked.is_empty() {
        return Err(Reason::Other("the asked event times are empty".to_owned()));
    }
    let none = || Reason::Other("the asked event times hold no whole bucket of it".to_owned());
    let mut state = vec![asked];
    if asked != Range::ALL {
        let grain = proof.bucket.ok_or(Reason::NoBucket)?.grain;
        let low = if asked.low == i64::MIN { asked.low } else { grain.ceil(asked.low).ok_or_else(none)? };
        let high = if asked.high == i64::MAX { asked.high } else { grain.floor(asked.high).ok_or_else(none)? };
        state = vec![Range { low, high }];
    }
    state.retain(|range| !range.is_empty());
    if state.is_empty() {
        return Err(none());
    }
    if let Some(evicted) = version.coverage().evicted {
        let evicted = Range { low: evicted.from_us, high: evicted.to_us };
        state = state.into_iter().flat_map(|range| without(range, &[evicted])).collect();
    }
    if let Some(dropped_us) = table.dropped_us {
        // The state may still have windows whose rows the table has not.
        let low = proof.bucket.and_then(|bucket| bucket.grain.ceil(dropped_us));
        let low = low.ok_or_else(|| Reason::Other("it may have rows that retention dropped from the table".to_owned()))?;
        state = state.into_iter().map(|range| range.and(Range { low, high: i64::MAX })).collect();
    }
    state.retain(|range| !range.is_empty());
    if state.is_empty() {
        return Err(Reason::Other("the asked event times are not in its state".to_owned()));
    }
    let since = version.spec.view.from_lsn;
    let below_lsn = (has_rows_below(table, since)).then_some(since);
    Ok(Cover { raw: without(asked, &state), state, below_lsn })
}

/// What is left of a range without others, which are ascending and disjoint.
fn without(whole: Range, parts: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    let mut low = whole.low;
    for part in parts.iter().map(|part| part.and(whole)).filter(|part| !part.is_empty()) {
        left.push(Range { low, high: part.low });
        low = part.high;
    }
    left.push(Range { low, high: whole.high });
    left.retain(|range| !range.is_empty());
    left
}

fn has_rows_below(table: &TableState, lsn: u64) -> bool {
    lsn > 0
        && (table.hot.first().is_some_and(|batch| batch.first_lsn < lsn)
            || table.files().iter().any(|file| u64::try_from(file.lsn_range.0).unwrap_or(0) < lsn))
}

#[cfg(test)]
mod tests {
    use super::{Range, without};

    #[test]
    fn parts_leave_the_rest() {
        let range = |low, high| Range { low, high };
        assert_eq!(without(range(0, 10), &[range(0, 10)]), []);
        assert_eq!(without(range(0, 10), &[range(2, 5)]), [range(0, 2), range(5, 10)]);
        assert_eq!(without(range(0, 10), &[range(-5, 3), range(20, 30)]), [range(3, 10)]);
        assert_eq!(without(range(0, 10), &[range(0, 3), range(6, 10)]), [range(3, 6)]);
        assert_eq!(without(Range::ALL, &[range(i64::MIN, 3)]), [range(3, i64::MAX)]);
    }
}
