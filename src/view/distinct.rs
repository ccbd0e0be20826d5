//! COUNT(DISTINCT x) over groups: one table of (group, value) pairs instead of a set per group.
//!
//! *Place*: `aggregate` uses it in place of DataFusion's, which makes an object with hash table per group: too much for
//! accumulators that live for one batch.
//!
//! The state is one list column: a group's distinct values, not NULL. Lists of several states are united on merge.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt32Array, UInt64Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{and, filter, is_not_null, take};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, UInt64Type};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// The distinct values of every group.
pub(super) struct DistinctCount {
    pairs: Box<dyn GroupValues>,
    item: FieldRef,
    groups: usize,
    scratch: Vec<usize>,
}

impl DistinctCount {
    pub(super) fn new(value: DataType) -> Result<Self> {
        let schema = Schema::new(vec![Field::new("group", DataType::UInt64, false), Field::new("value", value.clone(), false)]);
        Ok(Self {
            pairs: new_group_values(Arc::new(schema), &GroupOrdering::None)?,
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

    /// The given out groups' pairs (each pair's group, and the values) and the number of groups. What is left is renumbered.
    fn emit(&mut self, emit_to: EmitTo) -> Result<(UInt64Array, ArrayRef, usize)> {
        let first = match emit_to {
            EmitTo::All => std::mem::take(&mut self.groups),
            EmitTo::First(first) => {
                self.groups -= first.min(self.groups);
                first
            }
        };
        if self.pairs.is_empty() {
            return Ok((UInt64Array::from(Vec::<u64>::new()), arrow::array::new_empty_array(self.item.data_type()), first));
        }
        let mut columns = self.pairs.emit(EmitTo::All)?;
        let values = columns.pop().ok_or_else(|| internal_datafusion_err!("no values"))?;
        let groups = columns.pop().ok_or_else(|| internal_datafusion_err!("no groups"))?;
        let groups = groups.as_primitive::<UInt64Type>();
        if emit_to == EmitTo::All {
            return Ok((groups.clone(), values, first));
        }
        let later = BooleanArray::from_iter(groups.values().iter().map(|group| Some(*group >= first as u64)));
        let earlier = arrow::compute::not(&later)?;
        let renumbered = groups.unary::<_, UInt64Type>(|group| group.wrapping_sub(first as u64));
        self.add(filter(&renumbered, &later)?, filter(&values, &later)?)?;
        Ok((filter(groups, &earlier)?.as_primitive::<UInt64Type>().clone(), filter(&values, &earlier)?, first))
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
        let mut groups = Vec::with_capacity(lists.len());
        let offsets = lists.value_offsets();
        for (row, group) in group_indices.iter().enumerate() {
            let length = (offsets[row + 1] - offsets[row]) as usize;
            groups.extend(std::iter::repeat_n(*group as u64, length));
        }
        let (start, end) = (offsets[0] as usize, offsets[lists.len()] as usize);
        self.add(Arc::new(UInt64Array::from(groups)), lists.values().slice(start, end - start))
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (groups, _, total) = self.emit(emit_to)?;
        let mut counts = vec![0_i64; total];
        for group in groups.values() {
            counts[*group as usize] += 1;
        }
        Ok(Arc::new(Int64Array::from(counts)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (groups, values, total) = self.emit(emit_to)?;
        let mut offsets = vec![0_i32; total + 1];
        for group in groups.values() {
            offsets[*group as usize + 1] += 1;
        }
        for group in 0..total {
            offsets[group + 1] = offsets[group]
                .checked_add(offsets[group + 1])
                .ok_or_else(|| internal_datafusion_err!("more than 2^31 distinct values in one batch of state"))?;
        }
        let mut next: Vec<i32> = offsets[..total].to_vec();
        let mut order = vec![0_u32; groups.len()];
        for (row, group) in groups.values().iter().enumerate() {
            let slot = &mut next[*group as usize];
            order[*slot as usize] = row as u32;
            *slot += 1;
        }
        let values = take(&values, &UInt32Array::from(order), None)?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Ok(vec![Arc::new(ListArray::try_new(Arc::clone(&self.item), offsets, values, None)?)])
    }

    fn convert_to_state(&self, _values: &[ArrayRef], _opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        Err(internal_datafusion_err!("distinct values are not converted row by row"))
    }

    fn size(&self) -> usize {
        self.pairs.size() + self.scratch.capacity() * size_of::<usize>()
    }
}
