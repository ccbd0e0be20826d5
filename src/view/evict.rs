//! State that leaves and comes back: windows that are answered from the table's rows instead.
//!
//! *Place*: `store::ttl` decides which; readers merge both parts.
//!
//! *Invariants*: (1) an evicted bucket has no rows in blocks, and rows of it in deltas (late ones) are not read and not checkpointed;
//! (2) blocks and coverage change in one RocksDB batch, and in one version; (3) windows come back from the rows below the LSN at which
//! the view's deltas were sealed, so that each row is in them once.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::{Column, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use serde::{Deserialize, Serialize};

use super::blocks::Meta;
use super::checkpoint::{Backfill, Checkpoint, Writer};
use super::delta::{self, Delta};
use super::failure::{arrow_failure, to_text};
use super::groups::with_extras;
use super::matching::Bucket;
use super::prune::Pruning;
use super::spec::Spec;
use super::version::{Coverage, Version};
use super::window::{NULL_GROUP, buckets};
use crate::error::{Error, Result};
use crate::state::Batch;

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// Windows that are not in the state: those that begin from one time to before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// `i64::MIN` for all from the beginning.
    pub from_us: i64,
    /// Greater than `from_us`; a bound of the view's buckets.
    pub to_us: i64,
}

impl Evicted {
    /// A range, none when it is empty.
    pub fn new(from_us: i64, to_us: i64) -> Option<Evicted> {
        (from_us < to_us).then_some(Evicted { from_us, to_us })
    }

    /// What is evicted here and not in `other`: at most two ranges.
    pub fn without(self, other: Option<Evicted>) -> Vec<Evicted> {
        let Some(other) = other else { return vec![self] };
        let before = Evicted::new(self.from_us, self.to_us.min(other.from_us));
        let after = Evicted::new(self.from_us.max(other.to_us), self.to_us);
        before.into_iter().chain(after).collect()
    }

    fn has(self, bucket_us: i64) -> bool {
        (self.from_us..self.to_us).contains(&bucket_us)
    }
}

impl Spec {
    /// The bucket by which windows can be evicted, if there is one.
    pub fn bucket(&self) -> Option<Bucket> {
        let matching = self.matching.as_ref().filter(|matching| matching.plan.is_some())?;
        let bucket = matching.buckets.first().copied()?;
        self.time.as_ref().is_some_and(|time| time.key == bucket.key).then_some(bucket)
    }

    /// A time at a bound of the buckets, as the bucket's key has it; none when it is outside of its type.
    fn bound(&self, bucket: &Bucket, time_us: i64) -> Option<ScalarValue> {
        match self.key_schema.field(bucket.key).data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Some(ScalarValue::TimestampMicrosecond(Some(time_us), zone.clone())),
            DataType::Date32 => Some(ScalarValue::Date32(Some(i32::try_from(time_us.div_euclid(DAY_US)).ok()?))),
            _ => None,
        }
    }
}

impl Version {
    /// True for state rows that count, over `k0`, `k1`, ...; none when all do.
    pub(super) fn kept(&self) -> Option<Expr> {
        let evicted = self.coverage().evicted?;
        let bucket = self.spec.bucket()?;
        let key = Expr::Column(Column::new_unqualified(format!("k{}", bucket.key)));
        let bound = |time_us| Some(Expr::Literal(self.spec.bound(&bucket, time_us)?, None));
        let after = key.clone().gt_eq(bound(evicted.to_us)?);
        match evicted.from_us {
            i64::MIN => Some(after),
            from => Some(key.lt(bound(from)?).or(after)),
        }
    }

    /// The evicted windows, if filters over output columns let any of them through: they are to be read from the table's rows.
    pub fn asked_of_rows(&self, session: &SessionState, filters: &[Expr]) -> Result<Option<Evicted>> {
        let Some(evicted) = self.coverage().evicted else { return Ok(None) };
        let pruning = Pruning::new(&self.spec, session, filters, None)?;
        let unit = self.unit_us();
        Ok(pruning.reaches(evicted.from_us.div_euclid(unit), evicted.to_us.div_euclid(unit)).then_some(evicted))
    }

    /// Whether the state has rows of windows from one time to before another.
    pub fn has_windows(&self, from_us: i64, to_us: i64) -> bool {
        let Some(bucket) = self.spec.bucket() else { return false };
        let unit = self.unit_us();
        let inside = |time: i64| (from_us..to_us).contains(&time.saturating_mul(unit));
        let blocks = self.blocks.values().flatten();
        let mut blocks = blocks.filter(|block| block.name.group != NULL_GROUP).map(|block| &block.entry);
        blocks.any(|entry| entry.bucket_min.saturating_mul(unit) < to_us && from_us <= entry.bucket_max.saturating_mul(unit))
            || self.deltas.iter().any(|delta| buckets(delta.rows.column(bucket.key)).into_iter().flatten().any(inside))
    }

    /// Whether the deltas end at an LSN and nothing on disk waits to be unlisted: what [`Version::cover`] needs.
    pub fn is_settled(&self, next_lsn: u64) -> bool {
        self.shadowed.is_empty()
            && !self.is_ahead()
            && !self.deltas.iter().any(|delta| delta.first_lsn < next_lsn && next_lsn < delta.next_lsn)
    }

    /// Changes which windows are evicted. The version must be sealed at `next_lsn`, the LSN up to which it was applied; `back` has the
    /// rows below it of windows that come back. Puts everything into `batch`; after writing it, [`Version::checkpointed`] on the newest
    /// version.
    pub fn cover(&self, next_lsn: u64, evicted: Option<Evicted>, back: Option<Backfill>, batch: &mut Batch) -> Result<Checkpoint> {
        if !self.is_settled(next_lsn) {
            return Err(Error::internal("the deltas of a view are not sealed"));
        }
        let coverage = Coverage { evicted, ..self.coverage() };
        let out: Vec<Evicted> = self.coverage().evicted.into_iter().chain(evicted).collect();
        let mut writer = Writer::new(&self.spec, &self.home);
        let mut replaced = Vec::new();
        for block in self.blocks.values().flatten() {
            let unit = self.unit_us();
            if block.name.group == NULL_GROUP {
                continue;
            }
            let (first, last) = (block.entry.bucket_min.saturating_mul(unit), block.entry.bucket_max.saturating_mul(unit));
            let Some(evicted) = evicted.filter(|evicted| first < evicted.to_us && evicted.from_us <= last) else { continue };
            if !(evicted.has(first) && evicted.has(last)) {
                let decoded = block.read(self.spec.fingerprint)?;
                let rows = RecordBatch::try_new(with_extras(&self.spec.state_schema, &decoded.columns), decoded.columns.clone())
                    .map_err(arrow_failure)?;
                writer.next_run();
                let rows = self.without(&rows, &[evicted])?;
                let rest = Delta::new(rows, block.entry.first_lsn, block.entry.next_lsn);
                writer.add_portion(&Delta { marked_lsn: block.entry.marked_lsn, ..rest }, block.entry.portion, batch)?;
            }
            replaced.push(Arc::clone(block));
        }
        let deltas: Vec<_> = self.deltas.iter().filter(|delta| delta.next_lsn <= next_lsn).cloned().collect();
        if !deltas.is_empty() {
            let merged = delta::merge(&self.spec, &deltas)?;
            writer.next_run();
            writer.add(&Delta { rows: self.without(&merged.rows, &out)?, ..merged }, batch)?;
        }
        let mut blocks = writer.blocks;
        if let Some(back) = back {
            blocks.extend(back.blocks(batch)?);
        }
        blocks.iter().try_for_each(|block| block.list(batch))?;
        replaced.iter().for_each(|block| block.condemn(batch));
        let applied_lsn = next_lsn.max(self.applied_lsn());
        let mut work = self.work;
        work += delta::work_of(&deltas);
        let changes_from = self.changes_from();
        let poison = self.poison.as_ref().map(to_text);
        Meta::new(&self.spec, applied_lsn, changes_from, poison, work, coverage).put(self.spec.view.oid, batch)?;
        Ok(Checkpoint { applied_lsn, blocks, replaced, poison: self.poison.clone(), changes_from, work, coverage })
    }

    /// State rows but for those of evicted windows.
    pub(super) fn without_evicted(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        match self.coverage().evicted {
            Some(evicted) => self.without(rows, &[evicted]),
            None => Ok(rows.clone()),
        }
    }

    fn without(&self, rows: &RecordBatch, evicted: &[Evicted]) -> Result<RecordBatch> {
        let Some(bucket) = self.spec.bucket().filter(|_| !evicted.is_empty()) else { return Ok(rows.clone()) };
        let unit = self.unit_us();
        let out = |time: Option<i64>| time.is_some_and(|time| evicted.iter().any(|evicted| evicted.has(time.saturating_mul(unit))));
        let kept: BooleanArray = buckets(rows.column(bucket.key)).into_iter().map(|time| Some(!out(time))).collect();
        if kept.true_count() == kept.len() {
            return Ok(rows.clone());
        }
        filter_record_batch(rows, &kept).map_err(arrow_failure)
    }

    /// Microseconds of the unit in which buckets are counted.
    fn unit_us(&self) -> i64 {
        if self.spec.bucket().is_some_and(|bucket| bucket.is_date) { DAY_US } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::Evicted;

    #[test]
    fn what_comes_back() {
        let range = |from, to| Evicted::new(from, to).expect("a range");
        assert_eq!(range(0, 10).without(None), [range(0, 10)]);
        assert_eq!(range(0, 10).without(Some(range(0, 20))), []);
        assert_eq!(range(0, 10).without(Some(range(0, 4))), [range(4, 10)]);
        assert_eq!(range(0, 10).without(Some(range(3, 12))), [range(0, 3)]);
        assert_eq!(range(0, 10).without(Some(range(3, 5))), [range(0, 3), range(5, 10)]);
        assert_eq!(range(0, 10).without(Some(range(20, 30))), [range(0, 10)]);
    }
}
