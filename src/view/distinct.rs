//! COUNT(DISTINCT x) over groups: one table of (group, value) pairs instead of a set per group, beside the large sets as they come.
//!
//! *Place*: `aggregate` uses it in place of DataFusion's, which makes an object with hash table per group: too much for
//! accumulators that live for one batch.
//!
//! The state is one list column: a group's distinct values, not NULL. Lists of several states are united on merge. Long lists are not put
//! into the table: they wait as they are, and are united in the end, by a table of all but those that are largest and have no values in
//! common because their hashes do not overlap (the lists of different [`super::portion`]s). A large set that has little new is so counted
//! without a table of it, and one that comes in one piece without a look at it.

use std::collections::BTreeMap;
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
use hashbrown::hash_table::Entry;

use super::portion::values_bytes;
use super::slots::{hashes_values, value_hashes};

/// A list of so many values waits.
const LONG: usize = if cfg!(test) { 8 } else { 4_096 };

/// Lists that wait are united when they have this many times the values that they had when they last were.
const WAITING_GROWTH: usize = 4;

/// What uniting sets takes, in times of their bytes: what is copied, and a table of it.
pub const UNITING_GROWTH: usize = 4;

/// The distinct values of every group.
pub(super) struct DistinctCount {
    pairs: Box<dyn GroupValues>,
    /// By group; shorter than the number of groups where the last have none.
    waiting: Vec<Waiting>,
    /// What the lists take, and will take when they are united.
    waiting_bytes: usize,
    item: FieldRef,
    groups: usize,
    scratch: Vec<usize>,
}

/// Long lists of one group.
#[derive(Default)]
struct Waiting {
    lists: Vec<ArrayRef>,
    bytes: usize,
    /// When they were last united.
    united_bytes: usize,
}

impl Waiting {
    /// What they take, and will take when they are united.
    fn held(&self) -> usize {
        self.bytes * if self.lists.len() > 1 { UNITING_GROWTH } else { 1 }
    }
}

/// The distinct values of some groups, numbered from 0.
struct Sets {
    /// By group, lists that have nothing in common.
    united: Vec<Vec<ArrayRef>>,
    /// Values of groups that have no list.
    groups: UInt64Array,
    values: ArrayRef,
    total: usize,
}

impl DistinctCount {
    pub(super) fn new(value: DataType) -> Result<Self> {
        let schema = Schema::new(vec![Field::new("group", DataType::UInt64, false), Field::new("value", value.clone(), false)]);
        Ok(Self {
            pairs: new_group_values(Arc::new(schema), &GroupOrdering::None)?,
            waiting: Vec::new(),
            waiting_bytes: 0,
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

    /// Has a long list wait.
    fn add_long(&mut self, group: usize, list: ArrayRef) -> Result<()> {
        if self.waiting.len() <= group {
            self.waiting.resize_with(group + 1, Waiting::default);
        }
        let waiting = &mut self.waiting[group];
        self.waiting_bytes -= waiting.held();
        waiting.bytes += values_bytes(&list);
        waiting.lists.push(list);
        if waiting.united_bytes == 0 {
            waiting.united_bytes = waiting.bytes;
        } else if waiting.bytes > waiting.united_bytes * WAITING_GROWTH {
            waiting.lists = unite(std::mem::take(&mut waiting.lists))?;
            waiting.bytes = waiting.lists.iter().map(values_bytes).sum();
            waiting.united_bytes = waiting.bytes;
        }
        self.waiting_bytes += waiting.held();
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
        let later = self.waiting.split_off(total.min(self.waiting.len()));
        let waiting = std::mem::replace(&mut self.waiting, later);
        self.waiting_bytes -= waiting.iter().map(Waiting::held).sum::<usize>();
        let (groups, values) = self.emit_pairs(emit_to, total)?;
        Sets { united: waiting.into_iter().map(|waiting| waiting.lists).collect(), groups, values, total }.united()
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

/// Bits of the filter in front of the table of a union, for each value in the table.
const FILTER_BITS: usize = 16;

/// Lists of distinct values each, made to have nothing in common.
fn unite(mut lists: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    if lists.len() < 2 {
        return Ok(lists);
    }
    lists.sort_by_key(|list| std::cmp::Reverse(list.len()));
    let mut apart: Vec<(ArrayRef, (u64, u64))> = Vec::new();
    let mut others: Vec<ArrayRef> = Vec::new();
    for list in lists {
        let (low, high) = hashed(&list).fold((u64::MAX, 0), |(low, high), (_, hash)| (low.min(hash), high.max(hash)));
        match apart.iter().all(|(_, other)| high < other.0 || other.1 < low) {
            true => apart.push((list, (low, high))),
            false => others.push(list),
        }
    }
    let mut apart: Vec<ArrayRef> = apart.into_iter().map(|(list, _)| list).collect();
    if !others.is_empty() {
        let rest = concat(&others.iter().map(|list| list.as_ref()).collect::<Vec<_>>())?;
        drop(others);
        let is_new = new_values(&rest, &apart)?;
        apart.push(filter(&rest, &is_new)?);
    }
    Ok(apart)
}

/// Which values of `rest` are neither in one of some lists nor earlier in itself.
fn new_values(rest: &ArrayRef, lists: &[ArrayRef]) -> Result<BooleanArray> {
    // Most values of large lists are none of those that are looked for: a bit says so.
    let bits = (rest.len() * FILTER_BITS).next_power_of_two().max(64);
    let bit = |hash: u64| (hash as usize) & (bits - 1);
    let mut present = vec![0_u64; bits / 64];
    let mut table: HashTable<(u64, u32)> = HashTable::with_capacity(rest.len());
    let mut is_new = vec![true; rest.len()];
    let compare = make_comparator(rest, rest, SortOptions::default())?;
    for (row, hash) in hashed(rest) {
        let same = |(other, known): &(u64, u32)| *other == hash && compare(row, *known as usize).is_eq();
        match table.entry(hash, same, |(hash, _)| *hash) {
            Entry::Occupied(_) => is_new[row] = false,
            Entry::Vacant(place) => {
                place.insert((hash, row as u32));
                present[bit(hash) / 64] |= 1 << (bit(hash) % 64);
            }
        }
    }
    for list in lists {
        let compare = make_comparator(list, rest, SortOptions::default())?;
        for (row, hash) in hashed(list).filter(|(_, hash)| present[bit(*hash) / 64] >> (bit(*hash) % 64) & 1 != 0) {
            if let Some((_, known)) = table.find(hash, |(other, known)| *other == hash && compare(row, *known as usize).is_eq()) {
                is_new[*known as usize] = false;
            }
        }
    }
    Ok(BooleanArray::from(is_new))
}

/// The position and the hash of each value; few hashes are held at a time.
fn hashed(values: &ArrayRef) -> impl Iterator<Item = (usize, u64)> + use<> {
    let values = Arc::clone(values);
    (0..values.len()).step_by(LONG).flat_map(move |start| {
        let hashes = value_hashes(&values.slice(start, LONG.min(values.len() - start)));
        hashes.into_iter().enumerate().map(move |(row, hash)| (start + row, hash))
    })
}

impl Sets {
    /// With the values of the groups that have lists in these.
    fn united(self) -> Result<Sets> {
        let Sets { mut united, groups, values, total } = self;
        let has_list = |group: u64| united.get(group as usize).is_some_and(|lists| !lists.is_empty());
        let mut short: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for (row, group) in groups.values().iter().enumerate().filter(|(_, group)| has_list(**group)) {
            short.entry(*group as usize).or_default().push(row as u64);
        }
        let others = BooleanArray::from_iter(groups.values().iter().map(|group| Some(!has_list(*group))));
        for (group, rows) in &short {
            united[*group].push(take(&values, &UInt64Array::from(rows.clone()), None)?);
        }
        let united = united.into_iter().map(unite).collect::<Result<_>>()?;
        if short.is_empty() {
            return Ok(Sets { united, groups, values, total });
        }
        let groups = filter(&groups, &others)?.as_primitive::<UInt64Type>().clone();
        Ok(Sets { united, groups, values: filter(&values, &others)?, total })
    }

    fn counts(&self) -> Vec<i64> {
        let mut counts = vec![0_i64; self.total];
        for (group, lists) in self.united.iter().enumerate() {
            counts[group] = lists.iter().map(|list| list.len() as i64).sum();
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
        if !self.united.is_empty() {
            let mut parts: Vec<ArrayRef> = Vec::new();
            let mut from = 0;
            for (group, lists) in self.united.iter().enumerate().filter(|(_, lists)| !lists.is_empty()) {
                parts.push(values.slice(from, starts[group] - from));
                parts.extend(lists.iter().cloned());
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
            if length(row) >= LONG && hashes {
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
        self.pairs.size() + self.waiting_bytes + self.scratch.capacity() * size_of::<usize>()
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
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

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
            prop_assert_eq!(counts.waiting_bytes, 0);
        }
    }
}
