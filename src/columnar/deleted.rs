//! Which rows of a table are dead: sets of LSNs, and the filter that keeps them out of a scan.
//!
//! *Place*: `store` keeps a [`Deleted`] beside a table's files and in its log records; `scan` and `compact` honour it.
//!
//! *Invariants*: (1) an LSN is never reused, so a dead one stays dead and a set may hold more than any file does; (2) an LSN
//! leaves a [`Deleted`] only when every file whose LSN range holds it was written after its deletion (see [`DataFile::clean_lsn`]);
//! (3) a scan of files that no set meets costs nothing.
//!
//! As bytes a set is its ranges: for each the distance from the end of the one before and its length, as LEB128 numbers.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;

use super::DataFile;

/// A set of LSNs: disjoint ranges (first, one past the last) in ascending order, no two of which touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LsnSet {
    ranges: Vec<(u64, u64)>,
}

impl FromIterator<u64> for LsnSet {
    fn from_iter<I: IntoIterator<Item = u64>>(lsns: I) -> Self {
        let mut lsns: Vec<u64> = lsns.into_iter().collect();
        lsns.sort_unstable();
        LsnSet::of_ranges(lsns.into_iter().map(|lsn| (lsn, lsn + 1)))
    }
}

impl LsnSet {
    /// From ranges in ascending order of their starts, which may overlap.
    fn of_ranges(ranges: impl Iterator<Item = (u64, u64)>) -> LsnSet {
        let mut set = LsnSet::default();
        for (start, end) in ranges.filter(|(start, end)| start < end) {
            match set.ranges.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => set.ranges.push((start, end)),
            }
        }
        set
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of LSNs.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether it holds an LSN.
    pub fn contains(&self, lsn: u64) -> bool {
        let after = self.ranges.partition_point(|(start, _)| *start <= lsn);
        after > 0 && lsn < self.ranges[after - 1].1
    }

    /// Whether it holds any LSN of `first..next`.
    pub fn meets(&self, first: u64, next: u64) -> bool {
        let after = self.ranges.partition_point(|(_, end)| *end <= first);
        self.ranges.get(after).is_some_and(|(start, _)| *start < next)
    }

    /// Whether the two have an LSN in common.
    pub fn intersects(&self, other: &LsnSet) -> bool {
        let (few, many) = if self.ranges.len() < other.ranges.len() { (self, other) } else { (other, self) };
        few.ranges.iter().any(|(start, end)| many.meets(*start, *end))
    }

    /// Those of either.
    #[must_use]
    pub fn union(&self, other: &LsnSet) -> LsnSet {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other.clone() } else { self.clone() };
        }
        let mut ranges = [self.ranges.as_slice(), &other.ranges].concat();
        ranges.sort_unstable();
        LsnSet::of_ranges(ranges.into_iter())
    }

    /// Those below an LSN, and the others.
    pub fn split(&self, lsn: u64) -> (LsnSet, LsnSet) {
        let (mut below, mut rest) = (LsnSet::default(), LsnSet::default());
        for (start, end) in &self.ranges {
            if *start < lsn {
                below.ranges.push((*start, (*end).min(lsn)));
            }
            if *end > lsn {
                rest.ranges.push(((*start).max(lsn), *end));
            }
        }
        (below, rest)
    }

    /// Those that lie in any of some ranges (first, one past the last).
    #[must_use]
    pub fn within(&self, ranges: &[(u64, u64)]) -> LsnSet {
        let mut cut: Vec<(u64, u64)> = Vec::new();
        for (first, next) in ranges {
            let from = self.ranges.partition_point(|(_, end)| end <= first);
            let held = self.ranges[from..].iter().take_while(|(start, _)| start < next);
            cut.extend(held.map(|(start, end)| ((*start).max(*first), (*end).min(*next))));
        }
        cut.sort_unstable();
        LsnSet::of_ranges(cut.into_iter())
    }

    /// Every LSN, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(start, end)| *start..*end)
    }

    /// Appends the set as bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut at = 0;
        for (start, end) in &self.ranges {
            write_number(start - at, out);
            write_number(end - start, out);
            at = *end;
        }
    }

    /// Reads what [`LsnSet::encode`] wrote; none for anything else.
    pub fn decode(mut bytes: &[u8]) -> Option<LsnSet> {
        let mut set = LsnSet::default();
        let mut at: u64 = 0;
        while !bytes.is_empty() {
            let start = at.checked_add(read_number(&mut bytes)?)?;
            at = start.checked_add(read_number(&mut bytes)?)?;
            set.ranges.push((start, at));
        }
        Some(set)
    }
}

fn write_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The dead rows of a table, as a few sets of falling size: adding one costs its size times the logarithm of all.
#[derive(Clone, Debug, Default)]
pub struct Deleted {
    sets: Vec<Deletion>,
}

/// What one commit deleted, or several.
#[derive(Clone, Debug)]
struct Deletion {
    lsns: Arc<LsnSet>,
    /// The newest of the commits.
    committed_lsn: u64,
}

impl Deleted {
    /// Whether no row is dead.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Adds what the commit at `committed_lsn` deleted.
    pub fn add(&mut self, lsns: Arc<LsnSet>, committed_lsn: u64) {
        if lsns.is_empty() {
            return;
        }
        let mut added = Deletion { lsns, committed_lsn };
        while let Some(last) = self.sets.pop_if(|last| last.lsns.ranges.len() <= 2 * added.lsns.ranges.len()) {
            let committed_lsn = last.committed_lsn.max(added.committed_lsn);
            added = Deletion { lsns: Arc::new(last.lsns.union(&added.lsns)), committed_lsn };
        }
        self.sets.push(added);
    }

    /// Whether two are one and the same, without looking into them.
    pub fn is_same(&self, other: &Deleted) -> bool {
        let sets = |deleted: &Deleted| deleted.sets.iter().map(|set| Arc::as_ptr(&set.lsns)).collect::<Vec<_>>();
        sets(self) == sets(other)
    }

    /// Whether a row is dead.
    pub fn contains(&self, lsn: u64) -> bool {
        self.sets.iter().any(|set| set.lsns.contains(lsn))
    }

    /// Whether a file may hold dead rows.
    pub fn meets(&self, file: &DataFile) -> bool {
        let (first, next) = range(file);
        self.sets.iter().any(|set| set.committed_lsn >= file.clean_lsn && set.lsns.meets(first, next))
    }

    /// Dead rows that a file may hold, at most.
    pub fn rows_in(&self, file: &DataFile) -> u64 {
        let sets = self.sets.iter().filter(|set| set.committed_lsn >= file.clean_lsn);
        sets.map(|set| set.lsns.within(&[range(file)]).len()).sum()
    }

    /// Forgets what no file holds any more. Not while files are being written from rows read before.
    pub fn forget_absent(&mut self, files: &[Arc<DataFile>]) {
        for set in &mut self.sets {
            let stale = files.iter().filter(|file| file.clean_lsn <= set.committed_lsn);
            let ranges: Vec<(u64, u64)> = stale.map(|file| range(file)).collect();
            let kept = set.lsns.within(&ranges);
            if kept != *set.lsns {
                set.lsns = Arc::new(kept);
            }
        }
        self.sets.retain(|set| !set.lsns.is_empty());
    }

    /// All of it with the newest commit's LSN, to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for set in &self.sets {
            let mut lsns = Vec::new();
            set.lsns.encode(&mut lsns);
            write_number(set.committed_lsn, &mut bytes);
            write_number(lsns.len() as u64, &mut bytes);
            bytes.extend_from_slice(&lsns);
        }
        bytes
    }

    /// Reads what [`Deleted::encode`] wrote; none for anything else.
    pub fn decode(mut bytes: &[u8]) -> Option<Deleted> {
        let mut deleted = Deleted::default();
        while !bytes.is_empty() {
            let committed_lsn = read_number(&mut bytes)?;
            let length = usize::try_from(read_number(&mut bytes)?).ok()?;
            let (lsns, rest) = bytes.split_at_checked(length)?;
            deleted.sets.push(Deletion { lsns: Arc::new(LsnSet::decode(lsns)?), committed_lsn });
            bytes = rest;
        }
        Some(deleted)
    }

    /// For each LSN whether its row lives; none when all do.
    pub fn live(&self, lsns: &[i64]) -> Option<BooleanArray> {
        let (least, greatest) = (lsns.iter().min()?, lsns.iter().max()?);
        let met: Vec<&LsnSet> =
            self.sets.iter().map(|set| set.lsns.as_ref()).filter(|set| set.meets(*least as u64, *greatest as u64 + 1)).collect();
        if met.is_empty() {
            return None;
        }
        let live = BooleanBuffer::collect_bool(lsns.len(), |row| !met.iter().any(|set| set.contains(lsns[row] as u64)));
        (live.count_set_bits() < live.len()).then(|| BooleanArray::new(live, None))
    }
}

fn range(file: &DataFile) -> (u64, u64) {
    (file.lsn_range.0 as u64, file.lsn_range.1 as u64 + 1)
}

/// True for rows that are not dead, by their LSN.
pub(super) struct Live {
    lsn: Arc<dyn PhysicalExpr>,
    deleted: Deleted,
}

impl Live {
    pub(super) fn new(lsn: Arc<dyn PhysicalExpr>, deleted: Deleted) -> Self {
        Self { lsn, deleted }
    }

    fn sets(&self) -> impl Iterator<Item = *const LsnSet> + '_ {
        self.deleted.sets.iter().map(|set| Arc::as_ptr(&set.lsns))
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "live({:?})", self.lsn)
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "live({})", self.lsn)
    }
}

impl PartialEq for Live {
    fn eq(&self, other: &Self) -> bool {
        self.lsn.eq(&other.lsn) && self.sets().eq(other.sets())
    }
}

impl Eq for Live {}

impl Hash for Live {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.lsn.hash(state);
        self.sets().for_each(|set| set.hash(state));
    }
}

impl PhysicalExpr for Live {
    fn data_type(&self, _: &Schema) -> PlanResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> PlanResult<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> PlanResult<ColumnarValue> {
        let lsns = self.lsn.evaluate(batch)?.into_array(batch.num_rows())?;
        let lsns = lsns.as_primitive_opt::<Int64Type>().ok_or_else(|| DataFusionError::Internal("LSNs are not bigint".to_owned()))?;
        let live = self.deleted.live(lsns.values());
        let all = || BooleanArray::new(BooleanBuffer::new_set(lsns.len()), None);
        Ok(ColumnarValue::Array(Arc::new(live.unwrap_or_else(all)) as ArrayRef))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.lsn]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> PlanResult<Arc<dyn PhysicalExpr>> {
        let lsn = children.pop().ok_or_else(|| DataFusionError::Internal("no LSN".to_owned()))?;
        Ok(Arc::new(Live { lsn, deleted: self.deleted.clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lsns: &[u64]) -> LsnSet {
        lsns.iter().copied().collect()
    }

    #[test]
    fn sets_join_split_and_come_back() {
        let a = set(&[5, 3, 4, 9, 9, 1_000_000]);
        assert_eq!((a.len(), a.contains(4), a.contains(6), a.contains(1_000_000)), (5, true, false, true));
        assert_eq!((a.meets(6, 9), a.meets(6, 10), a.meets(0, 4)), (false, true, true));
        assert_eq!(a.union(&set(&[6, 10])).iter().collect::<Vec<_>>(), [3, 4, 5, 6, 9, 10, 1_000_000]);
        assert_eq!(a.split(4), (set(&[3]), set(&[4, 5, 9, 1_000_000])));
        assert_eq!(a.within(&[(4, 6), (5, 10)]), set(&[4, 5, 9]));
        assert!(a.intersects(&set(&[9])) && !a.intersects(&set(&[2, 6, 8, 10])));
        let mut bytes = Vec::new();
        a.encode(&mut bytes);
        assert_eq!(LsnSet::decode(&bytes), Some(a));
        assert_eq!(LsnSet::decode(&[0x80]), None);
    }

    #[test]
    fn many_small_deletions_stay_few_sets() {
        let mut deleted = Deleted::default();
        for lsn in 0..1_000_u64 {
            deleted.add(Arc::new(set(&[lsn * 3])), 5_000 + lsn);
        }
        assert!(deleted.sets.len() <= 12, "{}", deleted.sets.len());
        let again = Deleted::decode(&deleted.encode()).unwrap();
        assert!((0..3_000).all(|lsn| again.contains(lsn) == (lsn % 3 == 0)));
        let live = deleted.live(&[0, 1, 2, 3]).unwrap();
        assert_eq!((live.value(0), live.value(1), live.value(3)), (false, true, false));
        assert!(deleted.live(&[1, 2, 4]).is_none());
    }
}
