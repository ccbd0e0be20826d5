//! Aggregates of DataFusion whose last step is Verus's own: `percentile_cont` to the last digit, where DataFusion's interpolates in steps
//! of a millionth, and `avg` of numeric rounded, where DataFusion's is cut off.
//!
//! *Place*: `percentile_cont` is registered in the place of DataFusion's; `query::typing` puts [`average`] in the place of `avg`.
//!
//! *Invariant*: states are DataFusion's, so whatever keeps and merges these goes on working.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::average::avg_udaf;
use datafusion::functions_aggregate::percentile_cont::percentile_cont_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature};
use datafusion::physical_expr::expressions::Literal;

use crate::error::Error;

/// `percentile_cont(fraction) WITHIN GROUP (ORDER BY value)`.
pub fn percentile_cont() -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::new_from_impl(Own { plain: percentile_cont_udaf(), name: "percentile_cont" }))
}

/// `avg`, of numeric with one digit less than DataFusion's, which is rounded.
pub fn average() -> Arc<AggregateUDF> {
    static AVERAGE: LazyLock<Arc<AggregateUDF>> =
        LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(Own { plain: avg_udaf(), name: "avg" })));
    Arc::clone(&AVERAGE)
}

/// What makes a value of a state, or of the value that DataFusion makes of it.
#[derive(Clone, Debug)]
enum LastStep {
    /// A value is rounded to this type.
    Rounded(DataType),
    /// A list of values gives the one at a fraction of it, in this type.
    AtFraction(f64, DataType),
}

#[derive(Debug)]
struct Own {
    plain: Arc<AggregateUDF>,
    name: &'static str,
}

impl Own {
    /// The last step of a call, if it has one, and the call as DataFusion's function takes it.
    fn last_step<'a>(&self, args: AccumulatorArgs<'a>) -> Result<(Option<LastStep>, AccumulatorArgs<'a>)> {
        let result = args.return_field.data_type().clone();
        if self.name == "percentile_cont" {
            let step = if args.expr_fields[0].data_type().is_null() { None } else { Some(LastStep::AtFraction(fraction(&args)?, result)) };
            return Ok((step, args));
        }
        let types: Vec<_> = args.expr_fields.iter().map(|field| field.data_type().clone()).collect();
        let plain = self.plain.return_type(&types)?;
        if plain == result {
            return Ok((None, args));
        }
        let return_field = Arc::new(Field::new(args.return_field.name(), plain, true));
        Ok((Some(LastStep::Rounded(result)), AccumulatorArgs { return_field, ..args }))
    }
}

impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Own {}

impl Hash for Own {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.name, "with a last step of its own").hash(state);
    }
}

impl AggregateUDFImpl for Own {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        self.plain.aliases()
    }

    fn signature(&self) -> &Signature {
        self.plain.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.plain.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match self.plain.return_type(types)? {
            DataType::Decimal128(precision, scale) if self.name == "avg" => DataType::Decimal128(precision, scale - 1),
            other => other,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.plain.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (step, args) = self.last_step(args)?;
        let inner = self.plain.accumulator(args)?;
        Ok(match step {
            Some(step) => Box::new(One { inner, step }),
            None => inner,
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (step, args) = self.last_step(args)?;
        let inner = self.plain.create_sliding_accumulator(args)?;
        Ok(match step {
            Some(step) => Box::new(One { inner, step }),
            None => inner,
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.last_step(args).is_ok_and(|(_, args)| self.plain.groups_accumulator_supported(args))
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let (step, args) = self.last_step(args)?;
        let inner = self.plain.create_groups_accumulator(args)?;
        Ok(match step {
            Some(step) => Box::new(Many { inner, step }),
            None => inner,
        })
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    /// No order of the input counts: percentiles sort by themselves, each by its own.
    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Beneficial
    }

    fn with_beneficial_ordering(self: Arc<Self>, _in_order: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        self.plain.simplify()
    }

    fn supports_within_group_clause(&self) -> bool {
        self.plain.supports_within_group_clause()
    }
}

/// The fraction, from the least value on. DataFusion's own function refuses what is none.
fn fraction(args: &AccumulatorArgs) -> Result<f64> {
    let literal = args.exprs.get(1).and_then(|expr| expr.downcast_ref::<Literal>());
    let value = literal.map(|literal| literal.value().cast_to(&DataType::Float64)).transpose()?;
    let Some(ScalarValue::Float64(Some(fraction))) = value else { return Ok(f64::NAN) };
    let descending = args.order_bys.first().is_some_and(|order| order.options.descending);
    Ok(if descending { 1.0 - fraction } else { fraction })
}

/// The value at a fraction of the values, between two of them where it falls there.
fn at(values: &mut [f64], fraction: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let place = fraction * last as f64;
    let below = (place.floor() as usize).min(last);
    let (_, lower, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let (lower, rest) = (*lower, place - below as f64);
    let upper = above.iter().copied().min_by(f64::total_cmp).filter(|_| rest > 0.0);
    Some(upper.map_or(lower, |upper| lower + rest * (upper - lower)))
}

/// The percentiles of lists of values.
fn of_lists(lists: &ArrayRef, fraction: f64, data_type: &DataType) -> Result<ArrayRef> {
    let lists = lists.as_list_opt::<i32>().ok_or_else(|| Error::internal("the state of percentile_cont is no list"))?;
    let percentiles = lists.iter().map(|list| {
        let Some(list) = list else { return Ok(None) };
        let values = arrow::compute::cast(&list, &DataType::Float64)?;
        let mut values: Vec<f64> = values.as_primitive::<Float64Type>().iter().flatten().collect();
        Ok(at(&mut values, fraction))
    });
    let percentiles: Float64Array = percentiles.collect::<Result<Vec<_>>>()?.into();
    Ok(arrow::compute::cast(&percentiles, data_type)?)
}

impl LastStep {
    /// Whether it is made of states.
    fn takes_states(&self) -> bool {
        matches!(self, LastStep::AtFraction(..))
    }

    fn apply(&self, values: &ArrayRef) -> Result<ArrayRef> {
        match self {
            // Reducing digits rounds half away from zero.
            LastStep::Rounded(data_type) => Ok(arrow::compute::cast(values, data_type)?),
            LastStep::AtFraction(fraction, data_type) => of_lists(values, *fraction, data_type),
        }
    }
}

fn first<T>(states: Vec<T>) -> Result<T> {
    states.into_iter().next().ok_or_else(|| Error::internal("an aggregate without a state").into())
}

#[derive(Debug)]
struct One {
    inner: Box<dyn Accumulator>,
    step: LastStep,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = match self.step.takes_states() {
            true => {
                let states = self.inner.state()?.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
                // Taken out, they are put back: a window asks again.
                self.inner.merge_batch(&states)?;
                first(states)?
            }
            false => self.inner.evaluate()?.to_array()?,
        };
        ScalarValue::try_from_array(&self.step.apply(&values)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

struct Many {
    inner: Box<dyn GroupsAccumulator>,
    step: LastStep,
}

impl GroupsAccumulator for Many {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, count: usize) -> Result<()> {
        self.inner.update_batch(values, groups, filter, count)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.inner.merge_batch(states, groups, count)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let values = if self.step.takes_states() { first(self.inner.state(emit)?)? } else { self.inner.evaluate(emit)? };
        self.step.apply(&values)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_lies_between_its_neighbours() {
        assert_eq!(at(&mut [], 0.5), None);
        assert_eq!(at(&mut [3.0], 0.9), Some(3.0));
        assert_eq!(at(&mut [4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
        assert_eq!(at(&mut [4.0, 1.0, 3.0, 2.0], 1.0), Some(4.0));
        assert_eq!(at(&mut [4.0, 1.0, 3.0, 2.0], 0.0), Some(1.0));
        assert_eq!(at(&mut [0.0, 1.0, 2.0], 0.123_456_789), Some(0.246_913_578));
    }
}
