//! The keys seen lately: a second row with the same `dedup_key` is dropped.
//!
//! *Place*: `store::positions` checks a batch before it is logged and inserts its keys when it is committed; recovery
//! inserts what it replays. So a commit that fails needs no undoing.
//!
//! *Invariants*: (1) exact: a key is 128 bits, a uuid's own or the XXH3 of the value's bytes, never a shorter fingerprint;
//! (2) a row is looked at while its event time is at most the window behind the newest one of the table, whatever its
//! partition; (3) keys are kept while they can be looked at, by whole buckets of half a window of event time, so that
//! forgetting is dropping a table and looking up is at most three probes. NULL is nobody's duplicate.
//!
//! About 22 bytes a key: tables of 16-byte slots that grow by a quarter, so they are between 64 and 80 % full, in shards, so
//! that growing never copies more than 1/256 of a bucket.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_128;

use crate::clock::Micros;

/// Buckets of event time a window is cut into.
const BUCKETS_PER_WINDOW: i64 = 2;
const SHARD_BITS: u32 = 8;

/// The keys of one table within its window.
#[derive(Debug)]
pub struct Dedupe {
    window_us: i64,
    bucket_us: i64,
    /// Greatest event time inserted.
    newest: Micros,
    /// By event time divided by `bucket_us`.
    buckets: BTreeMap<i64, Box<[Table]>>,
}

/// The keys of a commit that is being put together.
#[derive(Debug, Default)]
pub struct Staged {
    keys: Table,
}

impl Dedupe {
    /// Nothing seen yet. `window_us` microseconds of event time are remembered.
    pub fn new(window_us: i64) -> Self {
        let bucket_us = (window_us / BUCKETS_PER_WINDOW).max(1);
        Self { window_us, bucket_us, newest: Micros::MIN, buckets: BTreeMap::new() }
    }

    /// Which rows are the first with their key: not among those inserted, nor staged, nor earlier in this batch. None when all
    /// are. Takes the keys of the batch into `staged`.
    pub fn check(&self, keys: &ArrayRef, times: &[Micros], staged: &mut Staged) -> Option<BooleanArray> {
        let hashes = hashes(keys);
        staged.keys.reserve(hashes.len());
        let oldest = self.oldest();
        let buckets: Vec<&[Table]> = self.buckets.values().map(AsRef::as_ref).collect();
        let mut fresh = BooleanBufferBuilder::new(hashes.len());
        let mut duplicates = false;
        for (row, key) in hashes.iter().enumerate() {
            let looked_at = times[row] >= oldest && !keys.is_null(row);
            let seen = looked_at && (buckets.iter().any(|bucket| shard(bucket, *key).contains(*key)) || !staged.keys.insert(*key));
            duplicates |= seen;
            fresh.append(!seen);
        }
        duplicates.then(|| BooleanArray::new(fresh.finish(), None))
    }

    /// Remembers the keys of accepted rows, and forgets those that have fallen out of the window.
    pub fn insert(&mut self, keys: &ArrayRef, times: &[Micros]) {
        let hashes = hashes(keys);
        self.newest = times.iter().copied().fold(self.newest, Micros::max);
        let oldest = self.oldest();
        let mut current: Option<(i64, &mut Box<[Table]>)> = None;
        for (row, key) in hashes.iter().enumerate() {
            if times[row] < oldest || keys.is_null(row) {
                continue;
            }
            let number = times[row].div_euclid(self.bucket_us);
            let bucket = match current.take() {
                Some((open, bucket)) if open == number => bucket,
                _ => self.buckets.entry(number).or_insert_with(|| (0..1 << SHARD_BITS).map(|_| Table::default()).collect()),
            };
            bucket[shard_of(*key)].insert(*key);
            current = Some((number, bucket));
        }
        self.buckets = self.buckets.split_off(&oldest.div_euclid(self.bucket_us));
    }

    /// Number of keys remembered.
    pub fn len(&self) -> usize {
        self.buckets.values().flatten().map(Table::len).sum()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory of the keys.
    pub fn bytes(&self) -> usize {
        self.buckets.values().flatten().map(|table| table.slots.capacity() * size_of::<u128>() + size_of::<Table>()).sum()
    }

    /// The least event time that is looked at.
    fn oldest(&self) -> Micros {
        self.newest.saturating_sub(self.window_us)
    }
}

/// The key of every row, permuted so that its leading bits are evenly spread, which those of a time-ordered uuid are not.
fn hashes(keys: &ArrayRef) -> Vec<u128> {
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

fn shard(bucket: &[Table], key: u128) -> &Table {
    &bucket[shard_of(key)]
}

/// A set of spread keys: open addressing, linear probing, a zero slot is free.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<u128>,
    used: usize,
    has_zero: bool,
}

impl Table {
    const SLOTS_MIN: usize = 8;

    fn len(&self) -> usize {
        self.used + usize::from(self.has_zero)
    }

    fn contains(&self, key: u128) -> bool {
        match key {
            0 => self.has_zero,
            _ => !self.slots.is_empty() && self.find(key).is_ok(),
        }
    }

    /// False where the key was there before.
    fn insert(&mut self, key: u128) -> bool {
        if key == 0 {
            return !std::mem::replace(&mut self.has_zero, true);
        }
        if Self::full(self.used + 1, self.slots.len()) {
            self.resize((self.slots.len() + self.slots.len() / 4).max(Self::SLOTS_MIN));
        }
        match self.find(key) {
            Ok(_) => false,
            Err(free) => {
                self.slots[free] = key;
                self.used += 1;
                true
            }
        }
    }

    /// Makes room for `more` keys.
    fn reserve(&mut self, more: usize) {
        if Self::full(self.used + more, self.slots.len()) {
            self.resize(((self.used + more) * 5 / 4 + 1).max(Self::SLOTS_MIN));
        }
    }

    /// Probe sequences become long past four fifths.
    fn full(used: usize, slots: usize) -> bool {
        used * 5 > slots * 4
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for key in old.into_iter().filter(|key| *key != 0) {
            if let Err(free) = self.find(key) {
                self.slots[free] = key;
            }
        }
    }

    /// Where the key is, or else the free slot where it belongs. There is always a free one.
    fn find(&self, key: u128) -> Result<usize, usize> {
        // The bits behind those that chose the shard, scaled to the number of slots, which is no power of two.
        let bits = (key >> (u128::BITS - SHARD_BITS - u64::BITS)) as u64;
        let mut slot = ((u128::from(bits) * self.slots.len() as u128) >> u64::BITS) as usize;
        loop {
            match self.slots[slot] {
                found if found == key => return Ok(slot),
                0 => return Err(slot),
                _ => slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{FixedSizeBinaryArray, Int64Array, StringViewArray};
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn ints(keys: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(keys.to_vec()))
    }

    fn fresh(dedupe: &Dedupe, keys: &ArrayRef, times: &[i64]) -> Vec<bool> {
        let mask = dedupe.check(keys, times, &mut Staged::default());
        mask.map_or_else(|| vec![true; times.len()], |mask| mask.values().iter().collect())
    }

    #[test]
    fn finds_duplicates_in_batch_commit_and_window() {
        let mut dedupe = Dedupe::new(24 * HOUR);
        let (keys, times) = (ints(&[1, 2, 1]), [0, HOUR, HOUR]);
        assert_eq!(fresh(&dedupe, &keys, &times), [true, true, false]);
        let mut staged = Staged::default();
        assert!(dedupe.check(&ints(&[1, 2]), &[0, 0], &mut staged).is_none());
        assert_eq!(dedupe.check(&ints(&[2, 3]), &[0, 0], &mut staged).map(|mask| mask.true_count()), Some(1));
        assert!(dedupe.is_empty(), "a commit that fails leaves nothing");

        dedupe.insert(&keys, &times);
        assert_eq!(fresh(&dedupe, &ints(&[2, 3]), &[20 * HOUR, 0]), [false, true]);
        dedupe.insert(&ints(&[9]), &[25 * HOUR]);
        assert_eq!(fresh(&dedupe, &ints(&[2, 2]), &[HOUR, HOUR - 1]), [false, true], "a row behind the window is not looked at");
        dedupe.insert(&ints(&[10]), &[60 * HOUR]);
        assert_eq!(dedupe.len(), 1, "what is behind the window is forgotten");
    }

    #[test]
    fn every_type_of_key() {
        let uuids: Vec<[u8; 16]> = vec![[0; 16], [1; 16], [0; 16]];
        let uuids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(uuids.into_iter()).unwrap());
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), Some("a longer text than is inlined"), Some("a")]));
        for keys in [uuids, texts, ints(&[7, 8, 7])] {
            let mut dedupe = Dedupe::new(HOUR);
            assert_eq!(fresh(&dedupe, &keys, &[0; 3]), [true, true, false]);
            dedupe.insert(&keys, &[0; 3]);
            assert_eq!(dedupe.len(), 2);
            assert_eq!(fresh(&dedupe, &keys, &[0; 3]), [false; 3]);
        }
        let nulls: ArrayRef = Arc::new(StringViewArray::from(vec![None::<&str>, None]));
        assert_eq!(fresh(&Dedupe::new(HOUR), &nulls, &[0; 2]), [true; 2]);
    }

    #[test]
    fn time_ordered_uuids_are_spread() {
        let keys: Vec<u128> = (0..100_000_u128).map(|at| (1_700_000_000_000 + at / 100) << 80 | at).collect();
        let bytes: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(keys.iter().map(|key| key.to_be_bytes())).unwrap());
        let mut dedupe = Dedupe::new(HOUR);
        dedupe.insert(&bytes, &vec![0; keys.len()]);
        assert_eq!(dedupe.len(), keys.len());
        assert!(dedupe.bytes() < 32 * keys.len(), "{} bytes a key", dedupe.bytes() / keys.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a map of every key to the greatest event time it was accepted with.
        #[test]
        fn equals_a_plain_map(batches in prop::collection::vec(prop::collection::vec((0..40_i64, 0..200_i64), 1..30), 1..30)) {
            let window = 50;
            let mut dedupe = Dedupe::new(window);
            let mut seen: HashMap<i64, i64> = HashMap::new();
            let mut newest = i64::MIN;
            for batch in batches {
                let (keys, times): (Vec<_>, Vec<_>) = batch.iter().copied().unzip();
                let found = fresh(&dedupe, &ints(&keys), &times);
                let (mut kept_keys, mut kept_times) = (Vec::new(), Vec::new());
                let oldest = newest.saturating_sub(window);
                let mut staged = std::collections::HashSet::new();
                for (row, (key, time)) in batch.iter().copied().enumerate() {
                    let looked_at = time >= oldest;
                    // Buckets keep a key for up to half a window longer than they must.
                    let must = looked_at && (seen.get(&key).is_some_and(|last| *last >= oldest) || staged.contains(&key));
                    let may = looked_at && (seen.get(&key).is_some_and(|last| *last >= oldest - window) || staged.contains(&key));
                    prop_assert!(!must || !found[row]);
                    prop_assert!(may || found[row]);
                    if looked_at {
                        staged.insert(key);
                    }
                    if found[row] {
                        kept_keys.push(key);
                        kept_times.push(time);
                    }
                }
                dedupe.insert(&ints(&kept_keys), &kept_times);
                newest = kept_times.iter().copied().fold(newest, i64::max);
                for (key, time) in kept_keys.into_iter().zip(kept_times) {
                    seen.entry(key).and_modify(|last| *last = time.max(*last)).or_insert(time);
                }
            }
        }
    }
}
