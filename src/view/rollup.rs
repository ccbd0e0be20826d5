//! An aggregate of a view as a function of a plan: rows or states in, states or a value out.
//!
//! *Place*: `query::route` puts it above [`super::Version::states`] and above raw rows; DataFusion groups, spills and runs it in
//! parallel as any other aggregate.
//!
//! *Invariant*: the accumulators are those of [`Aggregate`], with which the view's own state is made and read, so a value
//! that is rolled up is the one that the view would show.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray, UInt64Array};
use arrow::compute::{concat as concat_arrays, filter, prep_null_mask_filter, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::{Result, ScalarValue, internal_datafusion_err, internal_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use parking_lot::Mutex;

use super::aggregate::Aggregate;
use super::groups::indices;

/// What a rolled up aggregate takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Takes {
    /// The aggregate's arguments, then its ORDER BY expressions.
    Rows,
    /// One struct of state columns, as [`Aggregate::state_type`] has it.
    States,
}

/// What a rolled up aggregate gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gives {
    /// One struct of state columns.
    States,
    /// The value, in the type that the query gives it.
    Value,
}

/// The function of a plan for an aggregate. `field` is the value's field in the query: its nullability and metadata are kept.
pub fn rollup(aggregate: &Arc<Aggregate>, takes: Takes, gives: Gives, field: &FieldRef) -> Arc<AggregateUDF> {
    let name = match (takes, gives) {
        (Takes::Rows, Gives::States) => "state",
        (Takes::Rows, Gives::Value) => "value",
        (Takes::States, Gives::States) => "combine",
        (Takes::States, Gives::Value) => "merge",
    };
    let field = match gives {
        Gives::States => Arc::new(Field::new("state", aggregate.state_type(), true)),
        // Its name is the plan's matter: calls that come to the same are one.
        Gives::Value => Arc::new(field.as_ref().clone().with_name("value")),
    };
    let name = format!("{}_{name}", aggregate.name());
    let signature = Signature::variadic_any(Volatility::Immutable);
    Arc::new(AggregateUDF::new_from_impl(Rollup { aggregate: Arc::clone(aggregate), takes, gives, field, name, signature }))
}

#[derive(Debug)]
struct Rollup {
    aggregate: Arc<Aggregate>,
    takes: Takes,
    gives: Gives,
    field: FieldRef,
    name: String,
    signature: Signature,
}

impl PartialEq for Rollup {
    fn eq(&self, other: &Self) -> bool {
        (self.takes, self.gives) == (other.takes, other.gives)
            && self.field == other.field
            && (Arc::ptr_eq(&self.aggregate, &other.aggregate) || self.aggregate.identity == other.aggregate.identity)
    }
}

impl Eq for Rollup {}

impl Hash for Rollup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.takes, self.gives).hash(state);
        self.aggregate.identity.hash(state);
    }
}

impl Rollup {
    fn merger(&self) -> Result<Merger> {
        Merger::new(&self.aggregate, self.takes, self.gives)
    }
}

impl AggregateUDFImpl for Rollup {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn return_field(&self, _fields: &[FieldRef]) -> Result<FieldRef> {
        Ok(Arc::clone(&self.field))
    }

    fn is_nullable(&self) -> bool {
        self.field.is_nullable()
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup { merger: Mutex::new(self.merger()?), any: false, ids: Vec::new() }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let fields = self.aggregate.state.iter().enumerate();
        Ok(fields.map(|(index, kind)| Arc::new(Field::new(format!("{}[{index}]", args.name), kind.clone(), true))).collect())
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.merger()?))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        match (self.gives, self.field.is_nullable()) {
            (Gives::Value, false) => ScalarValue::try_from_array(&self.aggregate.checked(&self.aggregate.over_nothing()?)?, 0),
            _ => ScalarValue::try_from(data_type),
        }
    }
}

/// Groups of a [`Rollup`].
struct Merger {
    aggregate: Arc<Aggregate>,
    takes: Takes,
    gives: Gives,
    inner: Box<dyn GroupsAccumulator>,
    /// For each group its number in `inner`, once FILTER has left rows out: accumulators take a group that they know for one that
    /// has rows. Without it the numbers are the same.
    numbers: Option<Vec<Option<usize>>>,
    /// Groups in `inner`.
    count: usize,
}

impl Merger {
    fn new(aggregate: &Arc<Aggregate>, takes: Takes, gives: Gives) -> Result<Self> {
        Ok(Self { aggregate: Arc::clone(aggregate), takes, gives, inner: aggregate.accumulator()?, numbers: None, count: 0 })
    }

    /// The numbers in `inner` of rows' groups.
    fn numbered(&mut self, ids: &[usize], groups: usize) -> Vec<usize> {
        let known = self.count;
        let numbers = self.numbers.get_or_insert_with(|| (0..known).map(Some).collect());
        if numbers.len() < groups {
            numbers.resize(groups, None);
        }
        let mut count = self.count;
        let numbered = ids.iter().map(|id| {
            *numbers[*id].get_or_insert_with(|| {
                count += 1;
                count - 1
            })
        });
        let numbered = numbered.collect();
        self.count = count;
        numbered
    }

    fn merge(&mut self, states: &[ArrayRef], ids: &[usize], groups: usize) -> Result<()> {
        if self.numbers.is_none() {
            self.count = groups;
            return self.inner.merge_batch(states, ids, groups);
        }
        let ids = self.numbered(ids, groups);
        if ids.is_empty() { Ok(()) } else { self.inner.merge_batch(states, &ids, self.count) }
    }

    /// State columns in their declared types: an accumulator may give a list's item another name, or Null for no values.
    fn declared(&self, states: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        states.into_iter().zip(&self.aggregate.state).map(|(column, kind)| in_type(&column, kind)).collect()
    }

    /// The first groups on their own, and what is left without them.
    fn split(&mut self, first: usize) -> Result<Merger> {
        let states = if self.count > 0 { self.inner.state(EmitTo::All)? } else { Vec::new() };
        let numbers = self.numbers.take().unwrap_or_default();
        let (head, tail) = numbers.split_at(first.min(numbers.len()));
        let part = |numbers: &[Option<usize>]| {
            let mut part = Merger::new(&self.aggregate, self.takes, self.gives)?;
            let chosen: Vec<usize> = numbers.iter().flatten().copied().collect();
            let mut next = 0;
            let renumbered = numbers.iter().map(|number| {
                number.map(|_| {
                    next += 1;
                    next - 1
                })
            });
            part.numbers = Some(renumbered.collect());
            part.count = chosen.len();
            if !chosen.is_empty() {
                let rows = indices(chosen.iter().copied());
                let states = states.iter().map(|column| Ok(take(column, &rows, None)?)).collect::<Result<Vec<_>>>()?;
                part.inner.merge_batch(&states, &(0..chosen.len()).collect::<Vec<_>>(), chosen.len())?;
            }
            Ok::<_, datafusion::error::DataFusionError>(part)
        };
        let (head, tail) = (part(head)?, part(tail)?);
        *self = tail;
        Ok(head)
    }

    fn states(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let Some(numbers) = &self.numbers else {
            let states = self.inner.state(emit_to)?;
            self.count = if emit_to == EmitTo::All { 0 } else { self.count };
            return self.declared(states);
        };
        if let EmitTo::First(first) = emit_to {
            return self.split(first)?.states(EmitTo::All);
        }
        let (rows, nothing) = (rows_of(numbers, self.count), self.aggregate.state_of_nothing()?);
        let states =
            if self.count > 0 { self.inner.state(EmitTo::All)? } else { nothing.iter().map(|column| column.slice(0, 0)).collect() };
        let states = self.declared(states)?;
        states.iter().zip(&nothing).map(|(column, nothing)| Ok(take(&concat(&[column, nothing])?, &rows, None)?)).collect()
    }

    fn values(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let Some(numbers) = &self.numbers else {
            let values = self.inner.evaluate(emit_to)?;
            return Ok(self.aggregate.checked(&values)?);
        };
        if let EmitTo::First(first) = emit_to {
            return self.split(first)?.values(EmitTo::All);
        }
        let rows = rows_of(numbers, self.count);
        let nothing = self.aggregate.checked(&self.aggregate.over_nothing()?)?;
        let values = match self.count {
            0 => nothing.slice(0, 0),
            _ => self.aggregate.checked(&self.inner.evaluate(EmitTo::All)?)?,
        };
        Ok(take(&concat(&[&values, &nothing])?, &rows, None)?)
    }
}

/// Where groups' rows are among those of `inner`, and the one of nothing after them.
fn rows_of(numbers: &[Option<usize>], count: usize) -> UInt64Array {
    indices(numbers.iter().map(|number| number.unwrap_or(count)))
}

/// A column in a type that differs in names of nested fields at most.
pub(super) fn in_type(column: &ArrayRef, kind: &DataType) -> Result<ArrayRef> {
    if column.data_type() == kind { Ok(Arc::clone(column)) } else { Ok(arrow::compute::cast(column, kind)?) }
}

fn concat(parts: &[&ArrayRef]) -> Result<ArrayRef> {
    let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
    Ok(concat_arrays(&parts)?)
}

/// State columns as one struct.
pub(super) fn packed(fields: &Fields, states: Vec<ArrayRef>) -> Result<StructArray> {
    let states = states.iter().zip(fields).map(|(column, field)| in_type(column, field.data_type())).collect::<Result<Vec<_>>>()?;
    Ok(StructArray::try_new(fields.clone(), states, None)?)
}

impl GroupsAccumulator for Merger {
    fn update_batch(&mut self, values: &[ArrayRef], ids: &[usize], opt_filter: Option<&BooleanArray>, groups: usize) -> Result<()> {
        if self.takes == Takes::Rows {
            return self.inner.update_batch(values, ids, opt_filter, groups);
        }
        let [states] = values else { return internal_err!("states are one column, not {}", values.len()) };
        let states = states.as_struct_opt().ok_or_else(|| internal_datafusion_err!("states are no struct"))?;
        let Some(wanted) = opt_filter else { return self.merge(states.columns(), ids, groups) };
        let wanted = if wanted.null_count() > 0 { prep_null_mask_filter(wanted) } else { wanted.clone() };
        let columns = states.columns().iter().map(|column| Ok(filter(column, &wanted)?)).collect::<Result<Vec<_>>>()?;
        let kept: Vec<usize> = ids.iter().zip(wanted.values()).filter(|(_, wanted)| *wanted).map(|(id, _)| *id).collect();
        let kept = self.numbered(&kept, groups);
        if kept.is_empty() { Ok(()) } else { self.inner.merge_batch(&columns, &kept, self.count) }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        match self.gives {
            Gives::Value => self.values(emit_to),
            Gives::States => {
                let states = self.states(emit_to)?;
                Ok(Arc::new(packed(&self.aggregate.state_fields(), states)?))
            }
        }
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.states(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], ids: &[usize], groups: usize) -> Result<()> {
        self.merge(values, ids, groups)
    }

    fn convert_to_state(&self, _values: &[ArrayRef], _opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        internal_err!("states are not made row by row")
    }

    fn size(&self) -> usize {
        self.inner.size() + self.numbers.as_ref().map_or(0, |numbers| numbers.capacity() * size_of::<Option<usize>>())
    }
}

/// A [`Rollup`] without GROUP BY, which has a value even over no rows.
struct OneGroup {
    /// A lock that is never waited for: DataFusion wants accumulators to be shareable.
    merger: Mutex<Merger>,
    any: bool,
    ids: Vec<usize>,
}

impl std::fmt::Debug for OneGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneGroup").field("any", &self.any).finish_non_exhaustive()
    }
}

impl OneGroup {
    fn ids(&mut self, values: &[ArrayRef]) -> bool {
        let rows = values.first().map_or(0, |column| column.len());
        self.ids.clear();
        self.ids.resize(rows, 0);
        self.any |= rows > 0;
        rows > 0
    }
}

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if self.ids(values) { self.merger.get_mut().update_batch(values, &self.ids, None, 1) } else { Ok(()) }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        if self.ids(states) { self.merger.get_mut().merge_batch(states, &self.ids, 1) } else { Ok(()) }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let merger = self.merger.get_mut();
        if self.any {
            return ScalarValue::try_from_array(&merger.evaluate(EmitTo::All)?, 0);
        }
        let nothing: ArrayRef = match merger.gives {
            Gives::Value => merger.aggregate.checked(&merger.aggregate.over_nothing()?)?,
            Gives::States => Arc::new(packed(&merger.aggregate.state_fields(), merger.aggregate.state_of_nothing()?)?),
        };
        ScalarValue::try_from_array(&nothing, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let merger = self.merger.get_mut();
        let states = if self.any { merger.states(EmitTo::All)? } else { merger.aggregate.state_of_nothing()? };
        states.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.merger.lock().size() + self.ids.capacity() * size_of::<usize>()
    }
}
