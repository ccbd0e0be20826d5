//! Aggregates from which rows can be taken away again: those of the upper aggregation of a nested view.
//!
//! *Place*: `fold` keeps one of each aggregate, with a place for each group.
//!
//! Counts and sums are added up and subtracted, exactly; distinct values and extremes are kept with the number of their rows; functions
//! of an operator take their rows back themselves. Of any other aggregate the groups' arguments are kept, each with the number of its
//! rows, and the function runs over them anew when its group has changed.
//!
//! *Invariant*: a group without rows is as a new one, so that its place can be another group's.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal256Array, Int64Array, PrimitiveArray, UInt32Array, new_empty_array};
use arrow::compute::{cast, take};
use arrow::datatypes::{ArrowPrimitiveType, DECIMAL256_MAX_PRECISION, DataType, Decimal128Type, Decimal256Type, Int64Type, i256};
use arrow::row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Accumulator, EmitTo};

use super::aggregate::Aggregate;
use super::failure::{arrow_failure, failure};
use crate::error::{Error, Result};

/// A row that comes (or goes, with a negative weight), and the place of its group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) row: usize,
    pub(super) group: usize,
    pub(super) weight: i64,
}

type Bytes = Box<[u8]>;

/// A function that takes rows back, and its value where nothing has changed since.
type Slid = (Box<dyn Accumulator>, Option<ScalarValue>);

/// One aggregate of all groups.
pub(super) struct Tally {
    aggregate: Arc<Aggregate>,
    kept: Kept,
}

enum Kept {
    /// `count(x)`: rows without NULL.
    Count(Vec<i64>),
    /// `sum(x)` of integers and decimals: the sum, and how many values.
    Sum(i8, Vec<(i256, i64)>),
    /// `count(DISTINCT x)`.
    Distinct(RowConverter, Vec<HashMap<Bytes, i64>>),
    /// `min(x)` and `max(x)`.
    Extreme(bool, RowConverter, Vec<BTreeMap<Bytes, i64>>),
    /// What takes rows back by itself, and its value since the last change.
    Sliding(Vec<Option<Slid>>),
    /// All arguments.
    Bag(RowConverter, Vec<Bag>),
}

#[derive(Default)]
struct Bag {
    rows: BTreeMap<Bytes, i64>,
    value: Option<ScalarValue>,
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("aggregate", &self.aggregate.identity).finish_non_exhaustive()
    }
}

fn converter(types: &[DataType]) -> Result<RowConverter> {
    RowConverter::new(types.iter().cloned().map(SortField::new).collect()).map_err(arrow_failure)
}

impl Tally {
    /// Whether an aggregate can be kept so.
    pub(super) fn fits(aggregate: &Aggregate) -> bool {
        let fields: Vec<_> = aggregate.argument_types.iter().cloned().map(SortField::new).collect();
        aggregate.slides() || RowConverter::supports_fields(&fields)
    }

    /// Without groups.
    pub(super) fn new(aggregate: &Arc<Aggregate>) -> Result<Tally> {
        let types = aggregate.argument_types.as_slice();
        let kept = match (aggregate.plain_name(), types) {
            ("count", _) => Kept::Count(Vec::new()),
            ("count_distinct", _) => Kept::Distinct(converter(types)?, Vec::new()),
            ("sum", [DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale)]) => Kept::Sum(*scale, Vec::new()),
            ("sum", [DataType::Int16 | DataType::Int32 | DataType::Int64]) => Kept::Sum(0, Vec::new()),
            (name @ ("min" | "max"), [kind]) if !kind.is_floating() && !kind.is_nested() => {
                Kept::Extreme(name == "min", converter(types)?, Vec::new())
            }
            _ if aggregate.slides() => Kept::Sliding(Vec::new()),
            _ => Kept::Bag(converter(types)?, Vec::new()),
        };
        Ok(Tally { aggregate: Arc::clone(aggregate), kept })
    }

    /// Takes rows in and back: `arguments` and `filter` of the batch that the steps name rows of; `groups` places are there.
    pub(super) fn apply(&mut self, arguments: &[ArrayRef], filter: Option<&BooleanArray>, steps: &[Step], groups: usize) -> Result<()> {
        let counts = |step: &&Step| filter.is_none_or(|filter| filter.is_valid(step.row) && filter.value(step.row));
        let known = |step: &&Step| arguments.iter().all(|argument| argument.is_valid(step.row));
        let counted = steps.iter().filter(counts);
        match &mut self.kept {
            Kept::Count(counts) => {
                counts.resize(groups, 0);
                counted.filter(known).for_each(|step| counts[step.group] += step.weight);
            }
            Kept::Sum(_, sums) => {
                sums.resize(groups, (i256::ZERO, 0));
                let values = wide(&arguments[0])?;
                for step in counted.filter(known) {
                    let (sum, count) = &mut sums[step.group];
                    *sum = sum.wrapping_add(values(step.row).wrapping_mul(i256::from_i128(step.weight.into())));
                    *count += step.weight;
                }
            }
            Kept::Distinct(converter, values) => {
                values.resize_with(groups, HashMap::new);
                let rows = converter.convert_columns(arguments).map_err(arrow_failure)?;
                for step in counted.filter(known) {
                    let count = values[step.group].entry(Box::from(rows.row(step.row).as_ref())).or_default();
                    *count += step.weight;
                    if *count == 0 {
                        values[step.group].remove(rows.row(step.row).as_ref());
                    }
                }
            }
            Kept::Extreme(_, converter, values) => {
                values.resize_with(groups, BTreeMap::new);
                let rows = converter.convert_columns(arguments).map_err(arrow_failure)?;
                counted.filter(known).for_each(|step| add(&mut values[step.group], rows.row(step.row).as_ref(), step.weight));
            }
            Kept::Bag(converter, bags) => {
                bags.resize_with(groups, Bag::default);
                let rows = converter.convert_columns(arguments).map_err(arrow_failure)?;
                for step in counted {
                    bags[step.group].value = None;
                    add(&mut bags[step.group].rows, rows.row(step.row).as_ref(), step.weight);
                }
            }
            Kept::Sliding(places) => {
                places.resize_with(groups, || None);
                let mut runs: BTreeMap<(usize, bool), Vec<u32>> = BTreeMap::new();
                for step in counted {
                    let rows = runs.entry((step.group, step.weight > 0)).or_default();
                    rows.extend(std::iter::repeat_n(step.row as u32, step.weight.unsigned_abs() as usize));
                }
                for ((group, comes), rows) in runs {
                    let place = &mut places[group];
                    if place.is_none() {
                        *place = Some((self.aggregate.sliding_accumulator().map_err(failure)?, None));
                    }
                    let Some((accumulator, value)) = place else { continue };
                    let rows = UInt32Array::from(rows);
                    let taken = arguments.iter().map(|argument| take(argument, &rows, None)).collect::<Result<Vec<_>, _>>();
                    let taken = taken.map_err(arrow_failure)?;
                    *value = None;
                    if comes { accumulator.update_batch(&taken) } else { accumulator.retract_batch(&taken) }.map_err(failure)?;
                }
            }
        }
        Ok(())
    }

    /// The values of some groups, in the type that the query gives them.
    pub(super) fn values(&mut self, groups: &[usize]) -> Result<ArrayRef> {
        let aggregate = &self.aggregate;
        let values: ArrayRef = match &mut self.kept {
            Kept::Count(counts) => Arc::new(groups.iter().map(|group| Some(counts[*group])).collect::<Int64Array>()),
            Kept::Sum(scale, sums) => {
                let sums = groups.iter().map(|group| Some(sums[*group]).filter(|(_, count)| *count > 0).map(|(sum, _)| sum));
                let sums = sums.collect::<Decimal256Array>().with_precision_and_scale(DECIMAL256_MAX_PRECISION, *scale);
                Arc::new(sums.map_err(arrow_failure)?)
            }
            Kept::Distinct(_, values) => Arc::new(groups.iter().map(|group| Some(values[*group].len() as i64)).collect::<Int64Array>()),
            Kept::Extreme(least, converter, values) => {
                let parser = converter.parser();
                let null = converter.convert_columns(&[arrow::array::new_null_array(&aggregate.argument_types[0], 1)]);
                let null = null.map_err(arrow_failure)?;
                let rows = groups.iter().map(|group| {
                    let found = if *least { values[*group].first_key_value() } else { values[*group].last_key_value() };
                    parser.parse(found.map_or_else(|| null.row(0).data(), |(bytes, _)| bytes))
                });
                let mut columns = converter.convert_rows(rows).map_err(arrow_failure)?;
                columns.pop().ok_or_else(|| Error::internal("an extreme without a value"))?
            }
            Kept::Sliding(places) => {
                let mut values = Vec::with_capacity(groups.len());
                for group in groups {
                    let place = &mut places[*group];
                    if place.is_none() {
                        *place = Some((aggregate.sliding_accumulator().map_err(failure)?, None));
                    }
                    let Some((accumulator, value)) = place else { continue };
                    if value.is_none() {
                        *value = Some(accumulator.evaluate().map_err(failure)?);
                    }
                    values.extend(value.clone());
                }
                array(values, aggregate)?
            }
            Kept::Bag(converter, bags) => {
                let mut values = Vec::with_capacity(groups.len());
                for group in groups {
                    let bag = &mut bags[*group];
                    if bag.value.is_none() {
                        bag.value = Some(bag.evaluated(aggregate, converter)?);
                    }
                    values.extend(bag.value.clone());
                }
                array(values, aggregate)?
            }
        };
        aggregate.checked(&values)
    }

    /// Bytes held, about.
    pub(super) fn bytes(&self) -> usize {
        // An entry of a map: its box, its count, its share of the nodes.
        const ENTRY: usize = 64;
        match &self.kept {
            Kept::Count(counts) => counts.len() * size_of::<i64>(),
            Kept::Sum(_, sums) => sums.len() * size_of::<(i256, i64)>(),
            Kept::Distinct(_, values) => values.iter().map(|values| values.len() * ENTRY).sum(),
            Kept::Extreme(_, _, values) => values.iter().map(|values| values.len() * ENTRY).sum(),
            Kept::Sliding(places) => places.iter().flatten().map(|(accumulator, _)| accumulator.size()).sum(),
            Kept::Bag(_, bags) => bags.iter().map(|bag| bag.rows.len() * ENTRY).sum(),
        }
    }
}

impl Bag {
    /// The function over all rows.
    fn evaluated(&self, aggregate: &Aggregate, converter: &RowConverter) -> Result<ScalarValue> {
        let parser = converter.parser();
        let rows =
            self.rows.iter().flat_map(|(bytes, count)| std::iter::repeat_n(parser.parse(bytes), usize::try_from(*count).unwrap_or(0)));
        let arguments = converter.convert_rows(rows).map_err(arrow_failure)?;
        let count = self.rows.values().sum::<i64>();
        if count <= 0 {
            return aggregate.over_nothing().and_then(|nothing| ScalarValue::try_from_array(&nothing, 0)).map_err(failure);
        }
        let mut accumulator = aggregate.accumulator().map_err(failure)?;
        let groups = vec![0; usize::try_from(count).unwrap_or(0)];
        accumulator.update_batch(&arguments, &groups, None, 1).map_err(failure)?;
        let value = accumulator.evaluate(EmitTo::All).map_err(failure)?;
        ScalarValue::try_from_array(&value, 0).map_err(failure)
    }
}

fn add(values: &mut BTreeMap<Bytes, i64>, bytes: &[u8], weight: i64) {
    let count = values.entry(Box::from(bytes)).or_default();
    *count += weight;
    if *count == 0 {
        values.remove(bytes);
    }
}

fn array(values: Vec<ScalarValue>, aggregate: &Aggregate) -> Result<ArrayRef> {
    match values.is_empty() {
        true => Ok(new_empty_array(aggregate.output())),
        false => ScalarValue::iter_to_array(values).map_err(failure),
    }
}

/// The values of a column of integers or decimals.
fn wide(column: &ArrayRef) -> Result<Box<dyn Fn(usize) -> i256>> {
    fn of<T: ArrowPrimitiveType>(column: &ArrayRef) -> PrimitiveArray<T> {
        column.as_primitive::<T>().clone()
    }
    Ok(match column.data_type() {
        DataType::Decimal128(_, _) => {
            let values = of::<Decimal128Type>(column);
            Box::new(move |row| i256::from_i128(values.value(row)))
        }
        DataType::Decimal256(_, _) => {
            let values = of::<Decimal256Type>(column);
            Box::new(move |row| values.value(row))
        }
        _ => {
            let values = of::<Int64Type>(&cast(column, &DataType::Int64).map_err(arrow_failure)?);
            Box::new(move |row| i256::from_i128(values.value(row).into()))
        }
    })
}

impl Aggregate {
    /// The function's name, where it is called without DISTINCT and ORDER BY; else that of no function that is kept in its own way.
    fn plain_name(&self) -> &str {
        if self.is_plain() { self.name() } else { "" }
    }
}
