//! The keys seen lately: a second row with the same `dedup_key` is dropped.
//!
//! *Place*: `store::positions` checks a batch before it is logged and inserts its keys when it is committed; recovery
//! inserts what it replays. So a commit that fails needs no undoing.
//!
//! *Invariants*: (1) exact: a key is 128 bits, a uuid's own or the XXH3 of the value's bytes, never a shorter fingerprint;
//! (2) a row is looked at while its event time is at most the window behind the watermark of its own partition, and a key is
//! a key of the whole table; (3) keys are kept while they can be looked at, by whole buckets of half a span (window and
//! lateness) of event time, so that forgetting is dropping a table and looking up is a few probes: `reach` says which
//! buckets, by the watermarks alone, so that a restart keeps the same. NULL is nobody's duplicate.
//!
//! In memory about 22 bytes a key, in shards, so that growing never copies more than 1/256 of a bucket. Past a limit the
//! largest bucket's keys go to a sorted file, of which about 1.4 bytes a key stay in memory; only a key that is most likely
//! there is looked up on disk. Files of one size are merged, so that a bucket has few.
//!
//! | file | what it is |
//! |---|---|
//! | `reach` | which buckets can still be asked for |
//! | `table` | keys in memory |
//! | `run` | keys on disk |

mod reach;
mod run;
mod table;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_128;

use self::run::Run;
use self::table::Table;
use crate::catalog;
use crate::clock::Micros;
use crate::error::Result;
use crate::store::classify::Watermarks;

/// A dedup key: a value's own 128 bits, or a hash of it, permuted.
pub type Key = u128;

const SHARD_BITS: u32 = 8;

/// The keys of one table within its window.
#[derive(Debug)]
pub struct Dedupe {
    /// How far behind the newest event of its partition a row is looked at.
    span_us: i64,
    bucket_us: i64,
    /// By event time divided by `bucket_us`.
    buckets: BTreeMap<i64, Bucket>,
}

/// Where keys go that are too many for memory, and when.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// A directory for files without names.
    pub dir: PathBuf,
    /// Keys in memory, bytes.
    pub bytes_max: usize,
}

/// The keys of a commit that is being put together.
#[derive(Debug, Default)]
pub struct Staged {
    keys: Table,
    runs: Vec<Run>,
    bounds: Option<Bounds>,
}

/// The keys of half a span of event time.
#[derive(Debug)]
struct Bucket {
    shards: Box<[Table]>,
    runs: Vec<Run>,
}

impl Staged {
    /// For a commit of more keys than memory.
    pub fn bounded(bounds: Bounds) -> Self {
        Self { bounds: Some(bounds), ..Self::default() }
    }

    /// Whether any of the keys is among these.
    pub fn has_any(&self, keys: &ArrayRef) -> Result<bool> {
        for (row, key) in keys_of(keys).into_iter().enumerate() {
            if !keys.is_null(row) && (self.keys.contains(key) || any_has(&self.runs, key)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// False where the key was there before.
    fn insert(&mut self, key: u128) -> Result<bool> {
        Ok(!any_has(&self.runs, key)? && self.keys.insert(key))
    }

    fn bound(&mut self) -> Result<()> {
        let Some(bounds) = self.bounds.as_ref().filter(|bounds| self.keys.bytes() > bounds.bytes_max) else { return Ok(()) };
        self.runs.push(Run::write(&bounds.dir, self.keys.len(), self.keys.sorted().into_iter().map(Ok))?);
        self.keys = Table::default();
        merge_runs(&bounds.dir, &mut self.runs)
    }
}

impl Bucket {
    fn new() -> Self {
        Self { shards: (0..1 << SHARD_BITS).map(|_| Table::default()).collect(), runs: Vec::new() }
    }

    fn contains(&self, key: u128) -> Result<bool> {
        Ok(self.shards[shard_of(key)].contains(key) || any_has(&self.runs, key)?)
    }

    fn table_bytes(&self) -> usize {
        self.shards.iter().map(Table::bytes).sum()
    }

    fn absorb(&mut self, other: Bucket) {
        for (present, table) in self.shards.iter_mut().zip(other.shards) {
            present.absorb(table);
        }
        self.runs.extend(other.runs);
    }

    /// Moves the keys to disk. On an error they stay where they are.
    fn spill(&mut self, dir: &Path) -> Result<()> {
        let count = self.shards.iter().map(Table::len).sum();
        // Shards are by the leading bits, so shard after shard the keys are in order.
        let sorted = self.shards.iter().flat_map(Table::sorted).map(Ok);
        self.runs.push(Run::write(dir, count, sorted)?);
        self.shards = Bucket::new().shards;
        merge_runs(dir, &mut self.runs)
    }
}

/// Runs of one size class that are merged.
const RUN_FAN_IN: usize = 4;

/// Merges runs as soon as enough of them are of one size, so that a key is copied a logarithmic number of times.
fn merge_runs(dir: &Path, runs: &mut Vec<Run>) -> Result<()> {
    loop {
        runs.sort_by_key(Run::len);
        let class = |run: &Run| run.len().max(1).ilog(RUN_FAN_IN);
        let Some(group) = runs.chunk_by(|a, b| class(a) == class(b)).find(|group| group.len() >= RUN_FAN_IN) else { return Ok(()) };
        let merged = Run::merge(dir, group)?;
        let class_merged = group.first().map(class);
        runs.retain(|run| Some(class(run)) != class_merged);
        runs.push(merged);
    }
}

fn any_has(runs: &[Run], key: u128) -> Result<bool> {
    for run in runs {
        if run.contains(key)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Dedupe {
    /// Nothing seen yet of a table: its window is measured from watermarks, which are its lateness behind the newest events.
    pub fn of(table: &catalog::Table) -> Self {
        let lateness_us = table.watermark.map_or(0, |watermark| watermark.lateness_us);
        Self::new(table.options.dedup_window_us.saturating_add(lateness_us))
    }

    /// Nothing seen yet. `span_us` microseconds of event time behind the newest are remembered.
    fn new(span_us: i64) -> Self {
        Self { span_us, bucket_us: reach::bucket_us(span_us), buckets: BTreeMap::new() }
    }

    /// How far behind the newest event of its partition a row is looked at, microseconds.
    pub fn span_us(&self) -> i64 {
        self.span_us
    }

    /// Which rows are the first with their key: not among those inserted, nor staged, nor earlier in this batch. None when all
    /// are. Takes the keys of the batch into `staged`. `past` are the rows that lie behind the span, which are not looked at.
    pub fn check(&self, keys: &ArrayRef, past: Option<&BooleanArray>, staged: &mut Staged) -> Result<Option<BooleanArray>> {
        let hashes = keys_of(keys);
        staged.keys.reserve(hashes.len());
        let mut fresh = BooleanBufferBuilder::new(hashes.len());
        let mut duplicates = false;
        for (row, key) in hashes.iter().enumerate() {
            let looked_at = !keys.is_null(row) && !past.is_some_and(|past| past.value(row));
            let seen = looked_at && (self.contains(*key)? || !staged.insert(*key)?);
            duplicates |= seen;
            fresh.append(!seen);
        }
        staged.bound()?;
        Ok(duplicates.then(|| BooleanArray::new(fresh.finish(), None)))
    }

    fn contains(&self, key: u128) -> Result<bool> {
        for bucket in self.buckets.values() {
            if bucket.contains(key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Remembers the keys of accepted rows, by which the watermarks have moved already, and forgets what nobody asks for any more.
    pub fn insert(&mut self, keys: &ArrayRef, times: &[Micros], watermarks: &Watermarks) {
        let pairs = keys_of(keys).into_iter().zip(times.iter().copied()).enumerate();
        self.take_in(pairs.filter(|(row, _)| keys.is_valid(*row)).map(|(_, pair)| pair), watermarks);
    }

    /// As [`Dedupe::insert`], for keys taken from rows before.
    pub fn insert_keys(&mut self, keys: &[(Key, Micros)], watermarks: &Watermarks) {
        self.take_in(keys.iter().copied(), watermarks);
    }

    fn take_in(&mut self, keys: impl Iterator<Item = (Key, Micros)>, watermarks: &Watermarks) {
        // Which buckets are wanted is a question to every partition: asked when one of them is new, and so as often as there is
        // something to forget.
        let mut wanted: Option<BTreeSet<i64>> = None;
        let mut current: Option<(i64, Option<&mut Bucket>)> = None;
        for (key, time) in keys {
            let number = time.div_euclid(self.bucket_us);
            if current.as_ref().is_none_or(|(open, _)| *open != number) {
                let bucket = match self.buckets.entry(number) {
                    Entry::Occupied(present) => Some(present.into_mut()),
                    Entry::Vacant(place) => {
                        let wanted = wanted.get_or_insert_with(|| reach::wanted(watermarks.each(), self.span_us));
                        wanted.contains(&number).then(|| place.insert(Bucket::new()))
                    }
                };
                current = Some((number, bucket));
            }
            if let Some((_, Some(bucket))) = &mut current {
                bucket.shards[shard_of(key)].insert(key);
            }
        }
        if let Some(wanted) = wanted {
            self.buckets.retain(|number, _| wanted.contains(number));
        }
    }

    /// Takes in the keys of another set of the same window, and forgets what nobody asks for any more.
    pub fn absorb(&mut self, other: Dedupe, watermarks: &Watermarks) {
        for (number, bucket) in other.buckets {
            match self.buckets.entry(number) {
                Entry::Vacant(place) => {
                    place.insert(bucket);
                }
                Entry::Occupied(mut present) => present.get_mut().absorb(bucket),
            }
        }
        let wanted = reach::wanted(watermarks.each(), self.span_us);
        self.buckets.retain(|number, _| wanted.contains(number));
    }

    /// Number of keys remembered.
    pub fn len(&self) -> usize {
        let of = |bucket: &Bucket| bucket.shards.iter().map(Table::len).sum::<usize>() + bucket.runs.iter().map(Run::len).sum::<usize>();
        self.buckets.values().map(of).sum()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory of the keys that could go to disk.
    pub fn table_bytes(&self) -> usize {
        self.buckets.values().map(Bucket::table_bytes).sum()
    }

    /// Memory of what is kept of keys on disk.
    pub fn run_bytes(&self) -> usize {
        self.buckets.values().flat_map(|bucket| &bucket.runs).map(Run::bytes).sum()
    }

    /// Moves the keys of the largest bucket in memory to a file in `dir`. On an error they stay where they are.
    pub fn spill(&mut self, dir: &Path) -> Result<()> {
        self.buckets.values_mut().max_by_key(|bucket| bucket.table_bytes()).map_or(Ok(()), |bucket| bucket.spill(dir))
    }

    /// The event times whose keys are kept, in order, each from its beginning to before its end.
    pub fn reach(&self, watermarks: &Watermarks) -> Vec<(Micros, Micros)> {
        let mut reach: Vec<(Micros, Micros)> = Vec::new();
        for number in reach::wanted(watermarks.each(), self.span_us) {
            let (from, to) = (number.saturating_mul(self.bucket_us), (number + 1).saturating_mul(self.bucket_us));
            match reach.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => reach.push((from, to)),
            }
        }
        reach
    }
}

/// The key of every row, permuted so that its leading bits are evenly spread, which those of a time-ordered uuid are not.
pub fn keys_of(keys: &ArrayRef) -> Vec<Key> {
    // Multiplication by an odd number is a bijection: equal if and only if the keys are.
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let spread = |key: u128| key.wrapping_mul(ODD);
    match keys.data_type() {
        DataType::FixedSizeBinary(16) => {
            let values = keys.as_fixed_size_binary();
            let key = |row| <[u8; 16]>::try_from(values.value(row)).map_or(0, u128::from_le_bytes);
            (0..keys.len()).map(|row| spread(key(row))).collect()
        }
        DataType::Utf8View => {
            let values = keys.as_string_view();
            (0..keys.len()).map(|row| spread(xxh3_128(values.value(row).as_bytes()))).collect()
        }
        other => {
            const SORTABLE: &str = "the Arrow type of every SQL type has a row form";
            let converter = RowConverter::new(vec![SortField::new(other.clone())]).expect(SORTABLE);
            let rows = converter.convert_columns(&[Arc::clone(keys)]).expect(SORTABLE);
            rows.iter().map(|row| spread(xxh3_128(row.as_ref()))).collect()
        }
    }
}

fn shard_of(key: u128) -> usize {
    (key >> (u128::BITS - SHARD_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{FixedSizeBinaryArray, Int64Array, StringViewArray};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_on_disk_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut dedupe = Dedupe::new(24 * HOUR);
        let mut staged = Staged::bounded(Bounds { dir: dir.path().to_owned(), bytes_max: 20_000 });
        let batch = |number: i64| ints(&(number * 1_000..number * 1_000 + 1_000).collect::<Vec<_>>());
        for number in 0..30 {
            assert!(dedupe.check(&batch(number), None, &mut staged).unwrap().is_none());
            dedupe.insert(&batch(number), &[number * HOUR / 4; 1_000], &newest(number * HOUR / 4));
            dedupe.spill(dir.path()).unwrap();
        }
        assert!(staged.has_any(&ints(&[-1, 29_999])).unwrap() && !staged.has_any(&ints(&[-1, 30_000])).unwrap());
        assert!(staged.runs.len() < 8 && dedupe.buckets.values().all(|bucket| bucket.runs.len() < 8));
        assert_eq!(dedupe.len(), 30_000);
        assert!(dedupe.run_bytes() < 3 * 30_000, "{} bytes", dedupe.run_bytes());
        let mut other = Dedupe::new(24 * HOUR);
        other.insert(&ints(&[30_000, 5]), &[HOUR, HOUR], &newest(HOUR));
        other.absorb(dedupe, &newest(8 * HOUR));
        assert_eq!(fresh(&other, &ints(&[0, 29_999, 30_000, 30_001])), [false, false, false, true]);
    }

    const HOUR: i64 = 3_600_000_000;

    fn ints(keys: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(keys.to_vec()))
    }

    fn newest(time: Micros) -> Watermarks {
        Watermarks::of(&[(None, time, 0)])
    }

    fn fresh(dedupe: &Dedupe, keys: &ArrayRef) -> Vec<bool> {
        let mask = dedupe.check(keys, None, &mut Staged::default()).unwrap();
        mask.map_or_else(|| vec![true; keys.len()], |mask| mask.values().iter().collect())
    }

    #[test]
    fn finds_duplicates_in_batch_commit_and_window() {
        let mut dedupe = Dedupe::new(24 * HOUR);
        let (keys, times) = (ints(&[1, 2, 1]), [0, HOUR, HOUR]);
        assert_eq!(fresh(&dedupe, &keys), [true, true, false]);
        let mut staged = Staged::default();
        assert!(dedupe.check(&ints(&[1, 2]), None, &mut staged).unwrap().is_none());
        assert_eq!(dedupe.check(&ints(&[2, 3]), None, &mut staged).unwrap().map(|mask| mask.true_count()), Some(1));
        assert!(dedupe.is_empty(), "a commit that fails leaves nothing");

        dedupe.insert(&keys, &times, &newest(HOUR));
        assert_eq!(fresh(&dedupe, &ints(&[2, 3])), [false, true]);
        dedupe.insert(&ints(&[9]), &[25 * HOUR], &newest(25 * HOUR));
        let past = BooleanArray::from(vec![false, true]);
        let mask = dedupe.check(&ints(&[2, 2]), Some(&past), &mut Staged::default()).unwrap();
        assert_eq!(mask, Some(BooleanArray::from(vec![false, true])), "a row behind the window is not looked at");
        dedupe.insert(&ints(&[10]), &[60 * HOUR], &newest(60 * HOUR));
        assert_eq!(dedupe.len(), 1, "what is behind the window is forgotten");
    }

    #[test]
    fn another_partition_is_not_waited_for_and_forgets_nothing() {
        let mut dedupe = Dedupe::new(24 * HOUR);
        let apart = |heard| Watermarks::of(&[(Some("a"), 0, 0), (Some("b"), 1_000 * HOUR, heard)]);
        dedupe.insert(&ints(&[1]), &[0], &Watermarks::of(&[(Some("a"), 0, 0)]));
        dedupe.insert(&ints(&[2, 3]), &[1_000 * HOUR, 500 * HOUR], &apart(0));
        assert_eq!(fresh(&dedupe, &ints(&[1, 2, 3])), [false, false, true], "what nobody asks for is not kept");
        assert_eq!(dedupe.reach(&apart(0)), [(-24 * HOUR, 12 * HOUR), (936 * HOUR, 1_008 * HOUR)]);
        let watermarks = Watermarks::of(&[(Some("a"), 0, 0), (Some("b"), 1_020 * HOUR, 97 * HOUR)]);
        dedupe.insert(&ints(&[4]), &[1_020 * HOUR], &watermarks);
        assert_eq!(fresh(&dedupe, &ints(&[1, 2, 4])), [true, false, false], "a partition that is silent for long keeps nothing");
        assert_eq!(dedupe.len(), 2);
    }

    #[test]
    fn every_type_of_key() {
        let uuids: Vec<[u8; 16]> = vec![[0; 16], [1; 16], [0; 16]];
        let uuids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(uuids.into_iter()).unwrap());
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), Some("a longer text than is inlined"), Some("a")]));
        for keys in [uuids, texts, ints(&[7, 8, 7])] {
            let mut dedupe = Dedupe::new(HOUR);
            assert_eq!(fresh(&dedupe, &keys), [true, true, false]);
            dedupe.insert(&keys, &[0; 3], &newest(0));
            assert_eq!(dedupe.len(), 2);
            assert_eq!(fresh(&dedupe, &keys), [false; 3]);
        }
        let nulls: ArrayRef = Arc::new(StringViewArray::from(vec![None::<&str>, None]));
        assert_eq!(fresh(&Dedupe::new(HOUR), &nulls), [true; 2]);
    }

    #[test]
    fn time_ordered_uuids_are_spread() {
        let keys: Vec<u128> = (0..100_000_u128).map(|at| (1_700_000_000_000 + at / 100) << 80 | at).collect();
        let bytes: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(keys.iter().map(|key| key.to_be_bytes())).unwrap());
        let mut dedupe = Dedupe::new(HOUR);
        dedupe.insert(&bytes, &vec![0; keys.len()], &newest(0));
        assert_eq!(dedupe.len(), keys.len());
        assert!(dedupe.table_bytes() < 32 * keys.len(), "{} bytes a key", dedupe.table_bytes() / keys.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a map of every key to where and when it was accepted last. The partitions are up to 400 apart, the span is 50.
        #[test]
        fn equals_a_plain_map(
            apart in 0..400_i64,
            batches in prop::collection::vec(prop::collection::vec((0..40_i64, 0..200_i64, 0..2_usize), 1..30), 1..30),
        ) {
            let span = 50;
            let mut dedupe = Dedupe::new(span);
            let mut seen: HashMap<i64, (usize, i64)> = HashMap::new();
            let mut newest: [Option<i64>; 2] = [None; 2];
            for mut batch in batches {
                batch.iter_mut().for_each(|(_, time, partition)| *time += apart * *partition as i64);
                let past: Vec<bool> = batch.iter().map(|(_, time, at)| newest[*at].is_some_and(|newest| *time < newest - span)).collect();
                let keys: Vec<i64> = batch.iter().map(|(key, ..)| *key).collect();
                let mask = dedupe.check(&ints(&keys), Some(&past.clone().into()), &mut Staged::default()).unwrap();
                let mut staged = std::collections::HashSet::new();
                let mut kept: Vec<(i64, i64, usize)> = Vec::new();
                for (row, (key, time, at)) in batch.iter().copied().enumerate() {
                    let fresh = mask.as_ref().is_none_or(|mask| mask.value(row));
                    // A key is kept for its own partition's span; for the other's, and by whole buckets, perhaps longer.
                    let last = seen.get(&key);
                    let is_kept = last.is_some_and(|(at, time)| newest[*at].is_none_or(|newest| *time >= newest - span));
                    let must = !past[row] && (is_kept || staged.contains(&key));
                    let may = !past[row] && (last.is_some() || staged.contains(&key));
                    prop_assert!(!must || !fresh);
                    prop_assert!(may || fresh);
                    if !past[row] {
                        staged.insert(key);
                    }
                    if fresh {
                        kept.push((key, time, at));
                    }
                }
                for (key, time, at) in &kept {
                    newest[*at] = newest[*at].max(Some(*time));
                    // Of a key accepted twice, the one that is kept longer counts.
                    let left = |(at, time): (usize, i64)| time - newest[at].unwrap_or(time);
                    let last = seen.entry(*key).or_insert((*at, *time));
                    if left((*at, *time)) > left(*last) {
                        *last = (*at, *time);
                    }
                }
                let partitions: Vec<_> = [Some("a"), Some("b")].into_iter().zip(newest).filter_map(|(key, newest)| Some((key, newest?, 0))).collect();
                let (keys, times): (Vec<i64>, Vec<i64>) = kept.iter().map(|(key, time, _)| (*key, *time)).unzip();
                dedupe.insert(&ints(&keys), &times, &Watermarks::of(&partitions));
            }
        }
    }
}
