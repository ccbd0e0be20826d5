//! COUNT(DISTINCT x) over groups: one table of (group, value) pairs instead of a set per group, beside the large sets as they come.
//!
//! *Place*: `aggregate` uses it in place of DataFusion's, which makes an object with hash table per group: too much for
//! accumulators that live for one batch.
//!
//! The state is one list column: a group's distinct values, not NULL. Lists of several states are united on merge. A long list is not
//! put into the table: it is kept as it is, a *base*, next to others of its group whose hashes do not overlap with its own (those of one
//! [`super::portion`] each), and what the table has is looked up among the bases' values in the end. So a large set that has little new
//! is counted without building a table of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt32Array, UInt64Array, make_comparator};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{SortOptions, and, concat, filter, is_not_null, take};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, UInt64Type};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use hashbrown::HashTable;

use super::portion::values_bytes;
use super::slots::{hashes_values, value_hashes};

/// A list of so many values is worth a look at whether it can be a base.
const BASE_MIN: usize = if cfg!(test) { 8 } else { 4_096 };

/// A list takes the place of bases that are so many times shorter.
const BASE_GROWTH: usize = 4;

/// The distinct values of every group.
pub(super) struct DistinctCount {
    pairs: Box<dyn GroupValues>,
    /// By group; shorter than the number of groups where the last have none.
    bases: Vec<Vec<Base>>,
    base_bytes: usize,
    item: FieldRef,
    groups: usize,
    scratch: Vec<usize>,
}

/// Distinct values of one group, and the least and greatest of their hashes.
struct Base {
    values: ArrayRef,
    hashes: (u64, u64),
    bytes: usize,
}

/// The distinct values of some groups, numbered from 0.
struct Sets {
    bases: Vec<Vec<Base>>,
    /// Pairs that are in no base.
    groups: UInt64Array,
    values: ArrayRef,
    total: usize,
}

impl DistinctCount {
    pub(super) fn new(value: DataType) -> Result<Self> {
        let schema = Schema::new(vec![Field::new("group", DataType::UInt64, false), Field::new("value", value.clone(), false)]);
        Ok(Self {
            pairs: new_group_values(Arc::new(schema), &GroupOrdering::None)?,
            bases: Vec::new(),
            base_bytes: 0,
            item: Arc::new(Field::new_list_field(value, true)),
            groups: 0,
            scratch: Vec::new(),
        })
    }

    fn add(&mut self, groups: ArrayRef, values: ArrayRef) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        self.pairs.intern(&[groups, values], &mut self.scratch)
    }

    fn add_to(&mut self, group: usize, values: ArrayRef) -> Result<()> {
        self.add(Arc::new(UInt64Array::from_value(group as u64, values.len())), values)
    }

    /// Takes a long list as a base of its group, or into the table.
    fn add_long(&mut self, group: usize, values: ArrayRef) -> Result<()> {
        let base = Base::new(values);
        if self.bases.len() <= group {
            self.bases.resize_with(group + 1, Vec::new);
        }
        let (overlapping, apart): (Vec<Base>, Vec<Base>) =
            std::mem::take(&mut self.bases[group]).into_iter().partition(|other| other.overlaps(&base));
        let overlapped: usize = overlapping.iter().map(|other| other.values.len()).sum();
        self.bases[group] = apart;
        if overlapped * BASE_GROWTH > base.values.len() {
            self.bases[group].extend(overlapping);
            return self.add_to(group, base.values);
        }
        for shorter in overlapping {
            self.base_bytes -= shorter.bytes;
            self.add_to(group, shorter.values)?;
        }
        self.base_bytes += base.bytes;
        self.bases[group].push(base);
        Ok(())
    }

    /// Takes the lists of some rows into the table.
    fn merge_lists(&mut self, lists: &ListArray, from: usize, to: usize, ids: &[usize]) -> Result<()> {
        let offsets = &lists.value_offsets()[from..=to];
        let mut groups = Vec::with_capacity((offsets[to - from] - offsets[0]) as usize);
        for (row, group) in ids[from..to].iter().enumerate() {
            groups.extend(std::iter::repeat_n(*group as u64, (offsets[row + 1] - offsets[row]) as usize));
        }
        let values = lists.values().slice(offsets[0] as usize, groups.len());
        self.add(Arc::new(UInt64Array::from(groups)), values)
    }

    /// The given out groups' values. What is left is renumbered.
    fn emit(&mut self, emit_to: EmitTo) -> Result<Sets> {
        let total = match emit_to {
            EmitTo::All => std::mem::take(&mut self.groups),
            EmitTo::First(first) => {
                self.groups -= first.min(self.groups);
                first
            }
        };
        let later = self.bases.split_off(total.min(self.bases.len()));
        let bases = std::mem::replace(&mut self.bases, later);
        self.base_bytes -= bases.iter().flatten().map(|base| base.bytes).sum::<usize>();
        let (groups, values) = self.emit_pairs(emit_to, total)?;
        let sets = Sets { bases, groups, values, total };
        sets.without_known()
    }

    /// The first groups' pairs: each pair's group, and the values.
    fn emit_pairs(&mut self, emit_to: EmitTo, first: usize) -> Result<(UInt64Array, ArrayRef)> {
        if self.pairs.is_empty() {
            return Ok((UInt64Array::from(Vec::<u64>::new()), arrow::array::new_empty_array(self.item.data_type())));
        }
        let mut columns = self.pairs.emit(EmitTo::All)?;
        // It forgets the pairs, but not what it found them by.
        self.pairs.clear_shrink(0);
        let values = columns.pop().ok_or_else(|| internal_datafusion_err!("no values"))?;
        let groups = columns.pop().ok_or_else(|| internal_datafusion_err!("no groups"))?;
        let groups = groups.as_primitive::<UInt64Type>();
        if emit_to == EmitTo::All {
            return Ok((groups.clone(), values));
        }
        let later = BooleanArray::from_iter(groups.values().iter().map(|group| Some(*group >= first as u64)));
        let earlier = arrow::compute::not(&later)?;
        let renumbered = groups.unary::<_, UInt64Type>(|group| group.wrapping_sub(first as u64));
        self.add(filter(&renumbered, &later)?, filter(&values, &later)?)?;
        Ok((filter(groups, &earlier)?.as_primitive::<UInt64Type>().clone(), filter(&values, &earlier)?))
    }
}

impl Base {
    fn new(values: ArrayRef) -> Base {
        let mut base = Base { hashes: (u64::MAX, 0), bytes: values_bytes(&values), values };
        for (_, hash) in base.hashed() {
            base.hashes = (base.hashes.0.min(hash), base.hashes.1.max(hash));
        }
        base
    }

    fn overlaps(&self, other: &Base) -> bool {
        self.hashes.0 <= other.hashes.1 && other.hashes.0 <= self.hashes.1
    }

    /// The position and the hash of each value; few hashes are held at a time.
    fn hashed(&self) -> impl Iterator<Item = (usize, u64)> + use<> {
        let values = Arc::clone(&self.values);
        (0..values.len()).step_by(BASE_MIN).flat_map(move |start| {
            let hashes = value_hashes(&values.slice(start, BASE_MIN.min(values.len() - start)));
            hashes.into_iter().enumerate().map(move |(row, hash)| (start + row, hash))
        })
    }
}

/// Bits of the filter in front of the table of pairs, for each pair.
const FILTER_BITS: usize = 16;

impl Sets {
    /// Takes those pairs away whose value is in a base of their group.
    fn without_known(self) -> Result<Sets> {
        let has_base = |group: &u64| self.bases.get(*group as usize).is_some_and(|bases| !bases.is_empty());
        if !self.groups.values().iter().any(has_base) {
            return Ok(self);
        }
        let hashes = value_hashes(&self.values);
        // Most values of a base are none of the few that are new: a bit says so.
        let bits = (hashes.len() * FILTER_BITS).next_power_of_two().max(64);
        let bit = |hash: u64| (hash as usize) & (bits - 1);
        let mut present = vec![0_u64; bits / 64];
        let mut table: HashTable<u32> = HashTable::with_capacity(hashes.len());
        for (pair, hash) in hashes.iter().enumerate().filter(|(pair, _)| has_base(&self.groups.value(*pair))) {
            present[bit(*hash) / 64] |= 1 << (bit(*hash) % 64);
            table.insert_unique(*hash, pair as u32, |other| hashes[*other as usize]);
        }
        let mut is_new = vec![true; hashes.len()];
        for (group, base) in self.bases.iter().enumerate().flat_map(|(group, bases)| bases.iter().map(move |base| (group, base))) {
            let compare = make_comparator(&base.values, &self.values, SortOptions::default())?;
            for (row, hash) in base.hashed() {
                if present[bit(hash) / 64] >> (bit(hash) % 64) & 1 == 0 {
                    continue;
                }
                let same = |pair: &u32| {
                    self.groups.value(*pair as usize) == group as u64 && compare(row, *pair as usize) == std::cmp::Ordering::Equal
                };
                if let Some(pair) = table.find(hash, same) {
                    is_new[*pair as usize] = false;
                }
            }
        }
        let is_new = BooleanArray::from(is_new);
        let groups = filter(&self.groups, &is_new)?.as_primitive::<UInt64Type>().clone();
        Ok(Sets { groups, values: filter(&self.values, &is_new)?, ..self })
    }

    fn counts(&self) -> Vec<i64> {
        let mut counts = vec![0_i64; self.total];
        for (group, bases) in self.bases.iter().enumerate() {
            counts[group] = bases.iter().map(|base| base.values.len() as i64).sum();
        }
        for group in self.groups.values() {
            counts[*group as usize] += 1;
        }
        counts
    }

    /// One list for each group.
    fn lists(&self, item: &FieldRef) -> Result<ListArray> {
        let too_many = || internal_datafusion_err!("more than 2^31 distinct values in one batch of state");
        let mut offsets = vec![0_i32];
        for count in self.counts() {
            let last = offsets[offsets.len() - 1];
            offsets.push(i32::try_from(count).ok().and_then(|count| last.checked_add(count)).ok_or_else(too_many)?);
        }
        let starts = self.pair_starts();
        let mut next = starts.clone();
        let mut order = vec![0_u32; self.groups.len()];
        for (row, group) in self.groups.values().iter().enumerate() {
            let slot = &mut next[*group as usize];
            order[*slot] = row as u32;
            *slot += 1;
        }
        let mut values = take(&self.values, &UInt32Array::from(order), None)?;
        if !self.bases.is_empty() {
            // The bases of a group come before its pairs, which lie together.
            let mut parts: Vec<ArrayRef> = Vec::new();
            let mut from = 0;
            for (group, bases) in self.bases.iter().enumerate().filter(|(_, bases)| !bases.is_empty()) {
                parts.push(values.slice(from, starts[group] - from));
                parts.extend(bases.iter().map(|base| Arc::clone(&base.values)));
                from = starts[group];
            }
            parts.push(values.slice(from, values.len() - from));
            values = concat(&parts.iter().map(|part| part.as_ref()).collect::<Vec<_>>())?;
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Ok(ListArray::try_new(Arc::clone(item), offsets, values, None)?)
    }

    /// Where the pairs of each group begin when they are ordered by group.
    fn pair_starts(&self) -> Vec<usize> {
        let mut starts = vec![0; self.total + 1];
        for group in self.groups.values() {
            starts[*group as usize + 1] += 1;
        }
        for group in 0..self.total {
            starts[group + 1] += starts[group];
        }
        starts.truncate(self.total);
        starts
    }
}

impl GroupsAccumulator for DistinctCount {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups = self.groups.max(total_num_groups);
        let values = &values[0];
        let groups: ArrayRef = Arc::new(UInt64Array::from_iter_values(group_indices.iter().map(|group| *group as u64)));
        let present = (values.logical_null_count() > 0).then(|| is_not_null(values)).transpose()?;
        let mask = match (present, opt_filter) {
            (Some(present), Some(wanted)) => Some(and(&present, wanted)?),
            (Some(mask), None) => Some(mask),
            (None, Some(wanted)) => Some(wanted.clone()),
            (None, None) => None,
        };
        match mask {
            Some(mask) => self.add(filter(&groups, &mask)?, filter(values, &mask)?),
            None => self.add(groups, Arc::clone(values)),
        }
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.groups = self.groups.max(total_num_groups);
        let lists = values[0].as_list::<i32>();
        let offsets = lists.value_offsets();
        let length = |row: usize| (offsets[row + 1] - offsets[row]) as usize;
        let hashes = hashes_values(self.item.data_type());
        let mut from = 0;
        for (row, group) in group_indices.iter().enumerate() {
            if length(row) >= BASE_MIN && hashes {
                self.merge_lists(lists, from, row, group_indices)?;
                self.add_long(*group, lists.values().slice(offsets[row] as usize, length(row)))?;
                from = row + 1;
            }
        }
        self.merge_lists(lists, from, group_indices.len(), group_indices)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(Arc::new(Int64Array::from(self.emit(emit_to)?.counts())))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let lists = self.emit(emit_to)?.lists(&self.item)?;
        Ok(vec![Arc::new(lists)])
    }

    fn convert_to_state(&self, _values: &[ArrayRef], _opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        Err(internal_datafusion_err!("distinct values are not converted row by row"))
    }

    fn size(&self) -> usize {
        self.pairs.size() + self.base_bytes + self.scratch.capacity() * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::StringViewArray;
    use proptest::prelude::*;

    use super::*;

    /// One list for each set.
    fn lists(sets: &[Vec<u32>]) -> ArrayRef {
        let values: StringViewArray = sets.iter().flatten().map(|value| Some(format!("a value of some length: {value}"))).collect();
        let offsets = OffsetBuffer::from_lengths(sets.iter().map(Vec::len));
        Arc::new(ListArray::new(Arc::new(Field::new_list_field(DataType::Utf8View, true)), offsets, Arc::new(values), None))
    }

    fn set() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![0..12_usize, 20..90_usize]
            .prop_flat_map(|length| proptest::collection::btree_set(0..120_u32, 0..=length).prop_map(|values| values.into_iter().collect()))
    }

    proptest! {
        /// Batches of lists of some groups are united whatever their lengths are, in values and in states, all groups or the first.
        #[test]
        fn lists_are_united(batches in proptest::collection::vec(proptest::collection::vec((0..5_usize, set()), 1..5), 1..8), first in 0..6_usize) {
            let mut expected = vec![BTreeSet::new(); 5];
            let mut counts = DistinctCount::new(DataType::Utf8View).unwrap();
            let mut again = DistinctCount::new(DataType::Utf8View).unwrap();
            for batch in &batches {
                let (ids, sets): (Vec<usize>, Vec<Vec<u32>>) = batch.iter().cloned().unzip();
                for (id, set) in ids.iter().zip(&sets) {
                    expected[*id].extend(set.iter().copied());
                }
                counts.merge_batch(&[lists(&sets)], &ids, 5).unwrap();
                again.merge_batch(&[lists(&sets)], &ids, 5).unwrap();
            }
            let expected: Vec<i64> = expected.iter().map(|set| set.len() as i64).collect();
            let counted = |counts: &mut DistinctCount, emit_to| {
                let values = counts.evaluate(emit_to).unwrap();
                values.as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()
            };
            let first = first.min(5);
            let states = again.state(EmitTo::First(first)).unwrap();
            let mut of_states = DistinctCount::new(DataType::Utf8View).unwrap();
            of_states.merge_batch(&states, &(0..first).collect::<Vec<_>>(), first).unwrap();
            prop_assert_eq!(states[0].as_list::<i32>().values().len() as i64, expected[..first].iter().sum::<i64>());
            prop_assert_eq!(counted(&mut of_states, EmitTo::All), &expected[..first]);
            prop_assert_eq!(counted(&mut again, EmitTo::All), &expected[first..]);
            prop_assert_eq!(counted(&mut counts, EmitTo::First(first)), &expected[..first]);
            prop_assert_eq!(counted(&mut counts, EmitTo::All), &expected[first..]);
            prop_assert_eq!(counts.base_bytes, 0);
        }
    }
}
