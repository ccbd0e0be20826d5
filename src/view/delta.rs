//! Deltas: the partial aggregates of one commit or of several neighbours.
//!
//! *Place*: `apply` makes them, `version` keeps them until a checkpoint.

use std::sync::Arc;

use arrow::array::{Array, AsArray, ListArray};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::failure::failure;
use super::groups::Groups;
use super::spec::Spec;
use crate::error::{Error, Result};

/// What it took to apply rows to a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Rows that passed the view's filter, each counted once however many windows it is in.
    pub rows: u64,
    /// Time on the cores, nanoseconds. What views do together (filter, windows, keys) is divided among them evenly; an aggregate
    /// that several have counts for the first.
    pub cpu_ns: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.rows += other.rows;
        self.cpu_ns += other.cpu_ns;
    }
}

/// The work of several deltas.
pub(super) fn work_of<'a>(deltas: impl IntoIterator<Item = &'a Arc<Delta>>) -> Work {
    let mut work = Work::default();
    deltas.into_iter().for_each(|delta| work += delta.work);
    work
}

/// The partial aggregates that one commit, or several merged ones, contribute to a view.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Key columns, then state columns, then, where groups failed, their errors.
    pub rows: RecordBatch,
    /// First LSN covered.
    pub first_lsn: u64,
    /// One past the last LSN covered.
    pub next_lsn: u64,
    /// A row's filter or keys failed: every reader of the view hears this, as the query over the table would.
    pub poison: Option<Error>,
    /// What it took.
    pub work: Work,
    /// One past the LSN of the newest deletion in it, whose rows replace or remove older states; 0 where none do.
    pub marked_lsn: u64,
}

impl Delta {
    /// Rows that were added to a table, from one LSN to before another.
    pub fn new(rows: RecordBatch, first_lsn: u64, next_lsn: u64) -> Delta {
        Delta { rows, first_lsn, next_lsn, poison: None, work: Work::default(), marked_lsn: 0 }
    }

    /// New states of groups that the commit at `lsn` has removed rows of.
    pub fn correction(rows: RecordBatch, lsn: u64) -> Delta {
        Delta { marked_lsn: lsn + 1, ..Delta::new(rows, lsn, lsn + 1) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.rows.get_array_memory_size()
    }

    /// How much it is to merge: rows and the items of their lists.
    pub(super) fn weight(&self) -> usize {
        let items = |lists: &ListArray| (lists.value_offsets()[lists.len()] - lists.value_offsets()[0]) as usize;
        self.rows.num_rows() + self.rows.columns().iter().filter_map(|column| column.as_list_opt::<i32>()).map(items).sum::<usize>()
    }
}

/// Neighbours of one size merge when there are this many: a row is copied once per factor of it.
pub(super) const DELTA_FAN_IN: usize = 8;

/// So many neighbours are merged by the commit that adds to them, because commits follow each other without a pause.
pub(super) const DELTA_RUN_MAX: usize = 32;

/// Deltas of this weight wait for the checkpoint unmerged: merging them would delay a commit that comes meanwhile.
pub(super) const MERGED_WEIGHT_MAX: usize = 8_192;

/// Neighbouring deltas and what they come to.
#[derive(Debug)]
pub struct MergedDeltas {
    pub(super) run: Vec<Arc<Delta>>,
    pub(super) merged: Arc<Delta>,
}

/// Merges deltas, oldest first, into one.
pub(super) fn merge(spec: &Spec, deltas: &[Arc<Delta>]) -> Result<Delta> {
    let mut groups = Groups::new(spec).map_err(failure)?;
    for delta in deltas {
        groups.merge(delta.rows.columns(), delta.rows.num_rows()).map_err(failure)?;
    }
    let rows = groups.states().map_err(failure)?;
    Ok(covering(deltas, rows))
}

/// A delta with given rows that stands for `deltas`.
pub(super) fn covering(deltas: &[Arc<Delta>], rows: RecordBatch) -> Delta {
    Delta {
        rows,
        first_lsn: deltas.iter().map(|delta| delta.first_lsn).min().unwrap_or(0),
        next_lsn: deltas.iter().map(|delta| delta.next_lsn).max().unwrap_or(0),
        poison: deltas.iter().find_map(|delta| delta.poison.clone()),
        work: work_of(deltas),
        marked_lsn: deltas.iter().map(|delta| delta.marked_lsn).max().unwrap_or(0),
    }
}

/// Where the tail of a sequence starts that is to be merged: at least `fan_in` neighbours none of which is much bigger than
/// the rest of them. Sizes are compared by powers of `fan_in`, so that every row is merged a logarithmic number of times.
pub(super) fn mergeable_tail(sizes: &[usize], fan_in: usize) -> Option<usize> {
    let tier = |size: usize| (size.max(1)).ilog(fan_in);
    let mut tiers: Vec<u32> = sizes.iter().map(|size| tier(*size)).collect();
    tiers.sort_unstable();
    tiers.dedup();
    for limit in tiers {
        let length = sizes.iter().rev().take_while(|size| tier(**size) <= limit).count();
        if length >= fan_in {
            return Some(sizes.len() - length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::mergeable_tail;

    #[test]
    fn tails_merge_by_size() {
        assert_eq!(mergeable_tail(&[1, 1, 1], 4), None);
        assert_eq!(mergeable_tail(&[900, 1, 1, 1, 1], 4), Some(1));
        assert_eq!(mergeable_tail(&[900, 16, 1, 16, 1], 4), Some(1));
        assert_eq!(mergeable_tail(&[900, 900, 900, 1], 4), Some(0));
    }
}
