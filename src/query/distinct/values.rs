//! `count(DISTINCT value)` of texts and bytes, for all groups of an aggregation at once.
//!
//! *Place*: [`super`] puts it in the place of DataFusion's, whose accumulator of texts begins with a table for 512 of them, for each group,
//! which it does not count as memory: a million groups would take forty gigabytes unnoticed.
//!
//! State of a group: its values as a list, in no order.

use std::mem::{size_of, size_of_val};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Int64Array, ListArray, StringViewBuilder};
use arrow::buffer::OffsetBuffer;
use arrow::compute::filter;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, SqlState};

/// The function.
pub fn count_distinct() -> Arc<AggregateUDF> {
    static FUNCTION: LazyLock<Arc<AggregateUDF>> =
        LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(CountDistinct { signature: Signature::any(1, Volatility::Immutable) })));
    Arc::clone(&FUNCTION)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CountDistinct {
    signature: Signature,
}

impl AggregateUDFImpl for CountDistinct {
    fn name(&self) -> &'static str {
        "count_distinct"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn is_nullable(&self) -> bool {
        false
    }

    fn default_value(&self, _: &DataType) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(Some(0)))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = DataType::List(item(args.input_fields[0].data_type()));
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "values"), list, false))])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(Values::new(args.expr_fields[0].data_type()))))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Values::new(args.expr_fields[0].data_type())))
    }
}

fn item(data_type: &DataType) -> FieldRef {
    Arc::new(Field::new_list_field(data_type.clone(), true))
}

/// Each value of each group once.
#[derive(Debug)]
struct Values {
    is_text: bool,
    /// Of each group, the numbers of its values, with the half of the hash that a value is found by. One table of all groups would be
    /// looked up all over the memory, where neighbouring rows are mostly of one group.
    tables: Vec<HashTable<(u32, u32)>>,
    /// Of the tables.
    tables_bytes: usize,
    /// By number: whose a value is, and where it ends in `bytes`.
    groups: Vec<u32>,
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

/// What a hash table is given for half a hash: it takes the place from the lower bits and compares the upper ones.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

fn too_many() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many distinct values are counted")
        .detail("One part of an aggregation can hold 2147483647 of them, and as many bytes.")
}

/// The value of a number.
fn value<'a>(bytes: &'a [u8], ends: &[usize], number: usize) -> &'a [u8] {
    let from = if number == 0 { 0 } else { ends[number - 1] };
    &bytes[from..ends[number]]
}

impl Values {
    fn new(data_type: &DataType) -> Self {
        let is_text = *data_type == DataType::Utf8View;
        Self { is_text, tables: Vec::new(), tables_bytes: 0, groups: Vec::new(), ends: Vec::new(), bytes: Vec::new() }
    }

    fn data_type(&self) -> DataType {
        if self.is_text { DataType::Utf8View } else { DataType::Binary }
    }

    fn grow(&mut self, groups: usize) {
        self.tables.resize_with(groups.max(self.tables.len()), HashTable::new);
    }

    fn add(&mut self, group: usize, added: &[u8]) -> Result<()> {
        let half = (xxh3_64(added) >> 32) as u32;
        let (ends, bytes, table) = (&self.ends, &self.bytes, &mut self.tables[group]);
        let is_same = |(number, known): &(u32, u32)| *known == half && value(bytes, ends, *number as usize) == added;
        let before = table.allocation_size();
        if let Entry::Vacant(place) = table.entry(spread(half), is_same, |(_, half)| spread(*half)) {
            let owner = u32::try_from(group).map_err(|_| too_many())?;
            place.insert((i32::try_from(ends.len()).map_err(|_| too_many())?.cast_unsigned(), half));
            self.tables_bytes += table.allocation_size() - before;
            self.bytes.extend_from_slice(added);
            self.ends.push(self.bytes.len());
            self.groups.push(owner);
        }
        Ok(())
    }

    /// Adds values of an array: their places, and whose they are.
    fn add_all(&mut self, values: &ArrayRef, mut places: impl Iterator<Item = (usize, usize)>) -> Result<()> {
        if let Some(texts) = values.as_string_view_opt() {
            places.try_for_each(|(place, group)| if texts.is_null(place) { Ok(()) } else { self.add(group, texts.value(place).as_bytes()) })
        } else if let Some(bytes) = values.as_binary_opt::<i32>() {
            places.try_for_each(|(place, group)| if bytes.is_null(place) { Ok(()) } else { self.add(group, bytes.value(place)) })
        } else {
            internal_err!("values of {} are not counted here", values.data_type())
        }
    }

    /// Takes the first groups out, with the numbers of their values; the others move down.
    fn leave(&mut self, emit: EmitTo) -> Result<(Vec<usize>, Values)> {
        let mut whole = std::mem::replace(self, Values::new(&self.data_type()));
        let counts: Vec<usize> = emit.take_needed(&mut whole.tables).iter().map(HashTable::len).collect();
        self.grow(whole.tables.len());
        if !self.tables.is_empty() {
            let left = |number: &usize| whole.groups[*number] as usize >= counts.len();
            for number in (0..whole.groups.len()).filter(left) {
                self.add(whole.groups[number] as usize - counts.len(), value(&whole.bytes, &whole.ends, number))?;
            }
        }
        Ok((counts, whole))
    }

    /// The values of the groups that leave, as lists.
    fn lists(&self, counts: &[usize]) -> Result<ArrayRef> {
        let mut next: Vec<usize> = Vec::with_capacity(counts.len());
        let mut total = 0;
        for count in counts {
            next.push(total);
            total += count;
        }
        let mut order = vec![0_u32; total];
        for (number, group) in self.groups.iter().enumerate().filter(|(_, group)| (**group as usize) < counts.len()) {
            let place = &mut next[*group as usize];
            order[*place] = number as u32;
            *place += 1;
        }
        if !self.is_text && i32::try_from(self.bytes.len()).is_err() {
            return Err(too_many().into());
        }
        let ordered = order.iter().map(|number| value(&self.bytes, &self.ends, *number as usize));
        let values: ArrayRef = match self.is_text {
            true => {
                let mut texts = StringViewBuilder::with_capacity(total);
                for text in ordered {
                    let Ok(text) = str::from_utf8(text) else { return internal_err!("a text that was counted is none") };
                    texts.try_append_value(text)?;
                }
                Arc::new(texts.finish())
            }
            false => {
                let mut bytes = BinaryBuilder::with_capacity(total, self.bytes.len());
                ordered.for_each(|value| bytes.append_value(value));
                Arc::new(bytes.finish())
            }
        };
        list(counts.iter().copied(), values)
    }
}

fn list(lengths: impl Iterator<Item = usize>, values: ArrayRef) -> Result<ArrayRef> {
    if i32::try_from(values.len()).is_err() {
        return Err(too_many().into());
    }
    Ok(Arc::new(ListArray::try_new(item(values.data_type()), OffsetBuffer::from_lengths(lengths), values, None)?))
}

impl GroupsAccumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], chosen: Option<&BooleanArray>, count: usize) -> Result<()> {
        self.grow(count);
        let places = groups.iter().copied().enumerate();
        match chosen {
            None => self.add_all(&values[0], places),
            Some(chosen) => self.add_all(&values[0], places.filter(|(row, _)| chosen.is_valid(*row) && chosen.value(*row))),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.grow(count);
        let Some(lists) = states[0].as_list_opt::<i32>() else { return internal_err!("the state of a count is no list") };
        let offsets = lists.value_offsets();
        let of = |row: usize| if lists.is_valid(row) { offsets[row] as usize..offsets[row + 1] as usize } else { 0..0 };
        let places = groups.iter().enumerate().flat_map(|(row, group)| of(row).map(|place| (place, *group)));
        self.add_all(lists.values(), places)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let (counts, _) = self.leave(emit)?;
        Ok(Arc::new(Int64Array::from_iter_values(counts.into_iter().map(|count| count as i64))))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let (counts, left) = self.leave(emit)?;
        Ok(vec![left.lists(&counts)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], chosen: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let counts = |row: usize| values[0].is_valid(row) && chosen.is_none_or(|chosen| chosen.is_valid(row) && chosen.value(row));
        let mask: BooleanArray = (0..values[0].len()).map(|row| Some(counts(row))).collect();
        Ok(vec![list(mask.values().iter().map(usize::from), filter(&values[0], &mask)?)?])
    }

    fn size(&self) -> usize {
        let numbers = self.groups.capacity() * size_of::<u32>() + self.ends.capacity() * size_of::<usize>();
        let tables = self.tables.capacity() * size_of::<HashTable<(u32, u32)>>() + self.tables_bytes;
        size_of_val(self) + tables + numbers + self.bytes.capacity()
    }
}

/// The same for an aggregation without keys.
#[derive(Debug)]
struct One(Values);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.grow(1);
        self.0.add_all(&values[0], (0..values[0].len()).map(|row| (row, 0)))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states, &vec![0; states[0].len()], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.grow(1);
        ScalarValue::try_from_array(&GroupsAccumulator::evaluate(&mut self.0, EmitTo::All)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.grow(1);
        GroupsAccumulator::state(&mut self.0, EmitTo::All)?.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn size(&self) -> usize {
        GroupsAccumulator::size(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::{BinaryArray, StringViewArray};
    use proptest::prelude::*;

    use super::*;

    fn texts(texts: &[Option<&str>]) -> Vec<ArrayRef> {
        vec![Arc::new(texts.iter().copied().collect::<StringViewArray>())]
    }

    #[test]
    fn texts_are_counted_once_in_the_memory_they_take() {
        let one = || One(Values::new(&DataType::Utf8View));
        let mut left = one();
        assert!(left.size() < 256, "nothing is small: {}", left.size());
        left.update_batch(&texts(&[Some("a"), None, Some(""), Some("a text longer than twelve bytes")])).unwrap();
        assert!(left.size() < 512, "{}", left.size());
        let mut right = one();
        right.update_batch(&texts(&[Some("b"), Some("a")])).unwrap();
        let state = right.state().unwrap()[0].to_array().unwrap();
        left.merge_batch(&[state]).unwrap();
        left.merge_batch(&[one().state().unwrap()[0].to_array().unwrap()]).unwrap();
        assert_eq!(left.evaluate().unwrap(), ScalarValue::Int64(Some(4)));
        assert_eq!(one().evaluate().unwrap(), ScalarValue::Int64(Some(0)));
    }

    const GROUPS: usize = 4;

    type Row = (usize, Option<u8>, Option<bool>);

    proptest! {
        /// In parts: rows, states of single rows, and a part whose first groups leave early.
        #[test]
        fn each_value_counts_once_a_group(
            rows in prop::collection::vec((0..GROUPS, prop::option::of(0..6_u8), prop::option::of(any::<bool>())), 0..40),
            cuts in prop::array::uniform2(any::<prop::sample::Index>()),
            early in 0..=GROUPS,
            is_text in any::<bool>(),
        ) {
            let shown = |value: u8| format!("{value}").repeat(3 * usize::from(value));
            let array = |rows: &[Row]| -> Vec<ArrayRef> {
                let values = rows.iter().map(|(_, value, _)| value.map(shown));
                vec![if is_text { Arc::new(values.collect::<StringViewArray>()) } else { Arc::new(values.map(|value| value.map(String::into_bytes)).collect::<BinaryArray>()) }]
            };
            let owners = |rows: &[Row]| rows.iter().map(|row| row.0).collect::<Vec<_>>();
            let chosen = |rows: &[Row]| rows.iter().map(|row| row.2).collect::<BooleanArray>();
            let data_type = if is_text { DataType::Utf8View } else { DataType::Binary };
            let mut at = cuts.map(|cut| cut.index(rows.len() + 1));
            at.sort_unstable();
            let (first, second, third) = (&rows[..at[0]], &rows[at[0]..at[1]], &rows[at[1]..]);
            let mut whole = Values::new(&data_type);
            whole.update_batch(&array(first), &owners(first), Some(&chosen(first)), GROUPS).unwrap();
            let singles = whole.convert_to_state(&array(second), Some(&chosen(second))).unwrap();
            whole.merge_batch(&singles, &owners(second), GROUPS).unwrap();
            let mut part = Values::new(&data_type);
            part.update_batch(&array(third), &owners(third), Some(&chosen(third)), GROUPS).unwrap();
            let mut next = 0;
            for emit in [EmitTo::First(early), EmitTo::All] {
                let states = part.state(emit).unwrap();
                let groups: Vec<usize> = (next..next + states[0].len()).collect();
                next += groups.len();
                whole.merge_batch(&states, &groups, GROUPS).unwrap();
            }
            let mut found = Vec::new();
            for emit in [EmitTo::First(early), EmitTo::All] {
                found.extend_from_slice(whole.evaluate(emit).unwrap().as_primitive::<arrow::datatypes::Int64Type>().values());
            }
            let expected = (0..GROUPS).map(|group| {
                let counted = rows.iter().filter(|row| row.0 == group && row.2 == Some(true)).filter_map(|row| row.1);
                counted.collect::<BTreeSet<u8>>().len() as i64
            });
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
        }
    }
}
