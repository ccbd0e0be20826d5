//! `sum` of numeric that fails (22003) where DataFusion's wraps.
//!
//! *Place*: `query::typing` uses it for numeric of more than 28 digits; with fewer no number of rows overflows. Its state is
//! that of DataFusion's `sum`.

use std::hash::{Hash, Hasher};
use std::mem::size_of_val;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, PrimitiveArray};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature};

use super::arithmetic::out_of_range;

/// One past the greatest numeric of 38 digits.
const LIMIT: i128 = 10_i128.pow(38);

/// The aggregate.
pub fn checked_sum() -> Arc<AggregateUDF> {
    static SUM: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(CheckedSum { plain: sum_udaf() })));
    Arc::clone(&SUM)
}

#[derive(Debug)]
struct CheckedSum {
    plain: Arc<AggregateUDF>,
}

impl PartialEq for CheckedSum {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for CheckedSum {}

impl Hash for CheckedSum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        "checked sum".hash(state);
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        self.plain.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.plain.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.plain.coerce_types(types)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match (args.is_distinct, args.return_field.data_type()) {
            (false, data_type @ DataType::Decimal128(_, _)) => Ok(Box::new(Total { data_type: data_type.clone(), sum: None })),
            _ => self.plain.accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.plain.state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct && matches!(args.return_field.data_type(), DataType::Decimal128(_, _))
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Totals { data_type: args.return_field.data_type().clone(), sums: Vec::new() }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.plain.create_sliding_accumulator(args)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

fn add(sum: &mut Option<i128>, value: i128, data_type: &DataType) -> Result<()> {
    let total = sum.unwrap_or(0).checked_add(value).filter(|total| total.unsigned_abs() < LIMIT.unsigned_abs());
    *sum = Some(total.ok_or_else(|| out_of_range(data_type))?);
    Ok(())
}

fn array(sums: Vec<Option<i128>>, data_type: &DataType) -> ArrayRef {
    Arc::new(Decimal128Array::from(sums).with_data_type(data_type.clone()))
}

/// One group.
#[derive(Debug)]
struct Total {
    data_type: DataType,
    sum: Option<i128>,
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values[0].as_primitive::<Decimal128Type>().iter().flatten().try_for_each(|value| add(&mut self.sum, value, &self.data_type))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&array(vec![self.sum], &self.data_type), 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// Many groups.
#[derive(Debug)]
struct Totals {
    data_type: DataType,
    sums: Vec<Option<i128>>,
}

impl GroupsAccumulator for Totals {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, count: usize) -> Result<()> {
        self.sums.resize(count, None);
        let values: &PrimitiveArray<Decimal128Type> = values[0].as_primitive();
        for (row, group) in groups.iter().enumerate() {
            let passes = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if passes && values.is_valid(row) {
                add(&mut self.sums[*group], values.value(row), &self.data_type)?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.update_batch(values, groups, None, count)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        Ok(array(emit.take_needed(&mut self.sums), &self.data_type))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values: &PrimitiveArray<Decimal128Type> = values[0].as_primitive();
        let passes = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let sums = (0..values.len()).map(|row| (passes(row) && values.is_valid(row)).then(|| values.value(row))).collect();
        Ok(vec![array(sums, &self.data_type)])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<Option<i128>>() + size_of_val(self)
    }
}
