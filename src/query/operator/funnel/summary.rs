//! `funnel_summary(reached, gaps)` per group: of the entities' paths, a row for each step.
//!
//! *Place*: [`super::Funnel`] groups paths with it and unnests its list.
//!
//! Result: a list of `{step, step_name, entities, conversion, step_conversion, median_seconds}`, NULL where nobody reached step 1. The
//! median is exact: of an even number of times the mean of the two in the middle, as `percentile_cont(0.5)` has it.
//!
//! State of a group: for each step how many reached it, and the microseconds from the step before, 8 bytes an entity and step.

use std::hash::{Hash, Hasher};
use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Builder, Int32Builder, Int64Builder, LargeBinaryArray, LargeBinaryBuilder, ListArray,
    StringViewBuilder, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int32Type, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use super::sliding::Sliding;
use crate::error::Error;

/// The columns of a step, in order.
pub const COLUMNS: [&str; 6] = ["step", "step_name", "entities", "conversion", "step_conversion", "median_seconds"];

const SECOND_US: f64 = 1e6;

/// The aggregate function for steps of these names.
pub fn function(names: Vec<String>) -> Arc<AggregateUDF> {
    let signature = Signature::exact(vec![DataType::Int32, gaps_type()], Volatility::Immutable);
    Arc::new(AggregateUDF::new_from_impl(Summary { names: names.into(), signature }))
}

fn gaps_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))
}

fn columns() -> Fields {
    let types = [DataType::Int32, DataType::Utf8View, DataType::Int64, DataType::Float64, DataType::Float64, DataType::Float64];
    COLUMNS.iter().zip(types).map(|(name, data_type)| Field::new(*name, data_type, true)).collect()
}

fn item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Struct(columns()), true))
}

#[derive(Debug, PartialEq, Eq)]
struct Summary {
    names: Arc<[String]>,
    signature: Signature,
}

impl Hash for Summary {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.names.hash(state);
    }
}

impl AggregateUDFImpl for Summary {
    fn name(&self) -> &'static str {
        "funnel_summary"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(item()))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[times]", args.name), DataType::LargeBinary, true))])
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(Groups::new(&self.names))))
    }

    fn create_sliding_accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Sliding::new(&self.names)))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(&self.names)))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// One group: who came to step 1, and the times of those who came to each of the others.
#[derive(Clone, Debug, Default)]
struct Group {
    entered: i64,
    gaps: Vec<Vec<i64>>,
}

#[derive(Debug)]
struct Groups {
    names: Arc<[String]>,
    groups: Vec<Group>,
    /// Times of all groups.
    times: usize,
}

impl Groups {
    fn new(names: &Arc<[String]>) -> Self {
        Self { names: Arc::clone(names), groups: Vec::new(), times: 0 }
    }

    fn grow(&mut self, groups: usize) {
        let steps = self.names.len();
        self.groups.resize_with(groups.max(self.groups.len()), || Group { entered: 0, gaps: vec![Vec::new(); steps - 1] });
    }

    fn leave(&mut self, emit_to: EmitTo) -> Vec<Group> {
        let leaving = emit_to.take_needed(&mut self.groups);
        self.times -= leaving.iter().flat_map(|group| &group.gaps).map(Vec::len).sum::<usize>().min(self.times);
        leaving
    }

    fn results(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let groups = self.leave(emit_to);
        let summary = |mut group: Group| {
            let steps = group.gaps.iter_mut().map(|gaps| (gaps.len() as i64, middle(gaps))).collect();
            Summarized { entered: group.entered, steps }
        };
        summarized(&self.names, groups.into_iter().map(summary))
    }
}

/// What is said of a group.
pub struct Summarized {
    /// Who came to step 1.
    pub entered: i64,
    /// Of each other step how many came to it, and the two times in the middle, microseconds.
    pub steps: Vec<(i64, Option<(i64, i64)>)>,
}

/// The lists of steps of some groups.
pub fn summarized(names: &[String], groups: impl Iterator<Item = Summarized>) -> Result<ArrayRef> {
    let (mut step, mut entities) = (Int32Builder::new(), Int64Builder::new());
    let mut name = StringViewBuilder::new().with_deduplicate_strings();
    let [mut of_first, mut of_before, mut median] = [(); 3].map(|()| Float64Builder::new());
    let (mut lengths, mut valid) = (Vec::new(), Vec::new());
    for group in groups {
        let is_shown = group.entered > 0;
        valid.push(is_shown);
        lengths.push(if is_shown { names.len() } else { 0 });
        if !is_shown {
            continue;
        }
        let count = |index: usize| index.checked_sub(1).map_or(group.entered, |before| group.steps[before].0);
        for (index, text) in names.iter().enumerate() {
            step.append_value(index as i32 + 1);
            name.append_value(text);
            entities.append_value(count(index));
            of_first.append_option(share(count(index), group.entered));
            of_before.append_option(index.checked_sub(1).and_then(|before| share(count(index), count(before))));
            median.append_option(index.checked_sub(1).and_then(|before| group.steps[before].1).map(seconds));
        }
    }
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(step.finish()),
        Arc::new(name.finish()),
        Arc::new(entities.finish()),
        Arc::new(of_first.finish()),
        Arc::new(of_before.finish()),
        Arc::new(median.finish()),
    ];
    let values = StructArray::try_new(columns(), arrays, None)?;
    let nulls = NullBuffer::from(valid);
    Ok(Arc::new(ListArray::try_new(item(), OffsetBuffer::from_lengths(lengths), Arc::new(values), Some(nulls))?))
}

fn share(count: i64, of: i64) -> Option<f64> {
    (of > 0).then(|| count as f64 / of as f64)
}

/// The median of two times in the middle.
fn seconds((below, above): (i64, i64)) -> f64 {
    (i128::from(below) + i128::from(above)) as f64 / 2.0 / SECOND_US
}

/// The two times in the middle, or the one.
fn middle(gaps: &mut [i64]) -> Option<(i64, i64)> {
    let half = gaps.len() / 2;
    if gaps.is_empty() {
        return None;
    }
    let odd = gaps.len() % 2 == 1;
    let (below, upper, _) = gaps.select_nth_unstable(half);
    let lower = if odd { *upper } else { below.iter().copied().max().unwrap_or(*upper) };
    Some((lower, *upper))
}

/// A path that reached step 1.
pub struct Path<'a> {
    /// Its row.
    pub row: usize,
    /// The microseconds from step to step.
    pub gaps: &'a [i64],
}

/// The paths in a batch of arguments.
pub fn paths(values: &[ArrayRef]) -> Result<impl Iterator<Item = Path<'_>>> {
    let reached = values[0].as_primitive_opt::<Int32Type>().ok_or_else(damaged)?;
    let lists = values[1].as_list_opt::<i32>().ok_or_else(damaged)?;
    let gaps = lists.values().as_primitive_opt::<Int64Type>().ok_or_else(damaged)?.values();
    let rows = (0..reached.len()).filter(|row| reached.is_valid(*row) && lists.is_valid(*row) && reached.value(*row) > 0);
    Ok(rows.map(|row| Path { row, gaps: &gaps[lists.value_offsets()[row] as usize..lists.value_offsets()[row + 1] as usize] }))
}

fn damaged() -> Error {
    Error::internal("the state of funnel_summary() cannot be read")
}

impl GroupsAccumulator for Groups {
    fn update_batch(&mut self, values: &[ArrayRef], owners: &[usize], selected: Option<&BooleanArray>, groups: usize) -> Result<()> {
        self.grow(groups);
        for Path { row, gaps } in paths(values)? {
            if !selected.is_none_or(|selected| selected.is_valid(row) && selected.value(row)) {
                continue;
            }
            let group = &mut self.groups[owners[row]];
            group.entered += 1;
            self.times += gaps.len();
            for (step, gap) in group.gaps.iter_mut().zip(gaps) {
                step.push(*gap);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.results(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let groups = self.leave(emit_to);
        let mut states = LargeBinaryBuilder::new();
        let mut bytes: Vec<u8> = Vec::new();
        for group in groups {
            bytes.clear();
            bytes.extend_from_slice(&group.entered.to_le_bytes());
            for gaps in &group.gaps {
                bytes.extend_from_slice(&(gaps.len() as i64).to_le_bytes());
                gaps.iter().for_each(|gap| bytes.extend_from_slice(&gap.to_le_bytes()));
            }
            states.append_value(&bytes);
        }
        Ok(vec![Arc::new(states.finish())])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], owners: &[usize], groups: usize) -> Result<()> {
        self.grow(groups);
        let states: &LargeBinaryArray = states[0].as_binary_opt::<i64>().ok_or_else(damaged)?;
        for (row, owner) in owners.iter().enumerate().filter(|(row, _)| states.is_valid(*row)) {
            let (numbers, rest) = states.value(row).as_chunks::<8>();
            let mut numbers = numbers.iter().map(|bytes| i64::from_le_bytes(*bytes));
            let mut next = || numbers.next().ok_or_else(damaged);
            if !rest.is_empty() {
                return Err(damaged().into());
            }
            let group = &mut self.groups[*owner];
            group.entered += next()?;
            for gaps in &mut group.gaps {
                for _ in 0..next()? {
                    gaps.push(next()?);
                    self.times += 1;
                }
            }
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], selected: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let owners: Vec<usize> = (0..values[0].len()).collect();
        let mut rows = Groups::new(&self.names);
        rows.update_batch(values, &owners, selected, owners.len())?;
        rows.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        // Vectors grow by doubling.
        self.times * size_of::<i64>() * 2 + self.groups.capacity() * (size_of::<Group>() + self.names.len() * size_of::<Vec<i64>>())
    }
}

/// All paths in one group.
#[derive(Debug)]
struct One(Groups);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values, &vec![0; values[0].len()], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        GroupsAccumulator::merge_batch(&mut self.0, states, &vec![0; states[0].len()], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.grow(1);
        ScalarValue::try_from_array(&self.0.results(EmitTo::All)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.grow(1);
        let states = GroupsAccumulator::state(&mut self.0, EmitTo::All)?;
        states.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn size(&self) -> usize {
        GroupsAccumulator::size(&self.0)
    }
}
