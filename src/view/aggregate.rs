//! One aggregate of a view: its arguments, its state and its value.
//!
//! *Place*: made by `compile`, run by `groups`.
//!
//! *Invariants*: (1) a state is exact: integers and decimals are summed in a type that cannot overflow, and the value is
//! checked against its declared type only when it is read; (2) states of one aggregate merge in any grouping.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::compute::CastOptions;
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Fields};
use datafusion::common::DFSchema;
use datafusion::error::Result as DataFusionResult;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Accumulator, Cast, EmitTo, Expr, ExprSchemable, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::expressions::Column;

use super::distinct::DistinctCount;
use super::failure::{arrow_failure, failure};
use super::rollup::in_type;
use super::slots::hashes_values;
use super::source::no_view;
use super::spec::Expression;
use crate::catalog::bind::{Binder, Settle};
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// Functions of operators that take rows back.
const SLIDING: [&str; 1] = ["funnel_summary"];

/// An aggregate as it is kept.
#[derive(Debug)]
pub struct Aggregate {
    /// What is computed, in words; equal for aggregates that compute the same over the same rows.
    pub(super) identity: String,
    /// Arguments, then ORDER BY expressions.
    pub(super) arguments: Vec<Expression>,
    /// The FILTER clause.
    pub(super) filter: Option<Expression>,
    /// Types of the arguments.
    pub(super) argument_types: Vec<DataType>,
    /// Types of the state columns.
    pub(super) state: Vec<DataType>,
    /// How its states become smaller as time goes on, if they do.
    settle: Option<Arc<dyn Settle>>,
    /// The value's type as the query has it.
    output: DataType,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// COUNT(DISTINCT x): value lists, without an accumulator object per group.
    DistinctCount(DataType),
    /// Whatever DataFusion has.
    Function(Arc<AggregateFunctionExpr>),
}

/// What `lower` needs to know.
pub(super) struct Lowering<'a> {
    /// Of aggregates whose states are kept: knows what they are then.
    pub(super) binder: Option<&'a dyn Binder>,
    pub(super) props: &'a ExecutionProps,
    /// The table's columns, unqualified.
    pub(super) schema: &'a DFSchema,
    pub(super) context: &'a PhysicalPlanningContext,
    /// Whether functions of one name may be different ones.
    pub(super) is_shaped: bool,
}

impl Aggregate {
    /// Lowers an aggregate call over the table's columns; `output` is the type that the query gives it.
    pub(super) fn lower(call: &AggregateFunction, output: &DataType, lowering: &Lowering<'_>) -> Result<Aggregate> {
        refuse_inexact(call)?;
        let mut call = call.clone();
        widen(&mut call, lowering.schema)?;
        if let Some(kept) = lowering.binder.and_then(|binder| binder.kept(&call.func)) {
            call.func = kept;
        }
        let lowered = LoweredAggregateBuilder::new(
            &Expr::AggregateFunction(call.clone()),
            lowering.schema,
            lowering.schema.as_arrow(),
            lowering.props,
            lowering.context,
        )
        .with_name("value")
        .build()
        .map_err(failure)?;
        let function = lowered.aggregate;
        let mut arguments: Vec<_> = function.expressions().into_iter().map(Expression::new).collect();
        let counts_distinct = function.fun().name() == "count" && function.is_distinct() && arguments.len() == 1;
        let kind = if counts_distinct {
            Kind::DistinctCount(arguments[0].physical.data_type(lowering.schema.as_arrow()).map_err(failure)?)
        } else {
            arguments.extend(function.order_bys().iter().map(|order| Expression::new(Arc::clone(&order.expr))));
            Kind::Function(Arc::clone(&function))
        };
        let mut identity = identity(&function, lowered.filter.as_ref());
        if lowering.is_shaped {
            let _ = write!(identity, " as {:?}", function.fun());
        }
        let schema = lowering.schema.as_arrow();
        let types = arguments.iter().map(|argument| argument.physical.data_type(schema)).collect::<DataFusionResult<_>>();
        let mut aggregate = Aggregate {
            identity,
            arguments,
            filter: lowered.filter.map(Expression::new),
            argument_types: types.map_err(failure)?,
            state: Vec::new(),
            settle: None,
            output: output.clone(),
            kind,
        };
        if let (Kind::Function(function), Some(binder)) = (&aggregate.kind, lowering.binder) {
            let fields = aggregate.argument_types.iter().map(|kind| Arc::new(Field::new("", kind.clone(), true)));
            aggregate.settle = binder.settle(function.fun(), &function.expressions(), &fields.collect::<Vec<_>>());
        }
        aggregate.state = aggregate.probe().map_err(failure)?;
        Ok(aggregate)
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::DistinctCount(_) => "count_distinct",
            Kind::Function(function) => function.fun().name(),
        }
    }

    /// Whether the call has no DISTINCT (but that of `count`) and no ORDER BY.
    pub(super) fn is_plain(&self) -> bool {
        match &self.kind {
            Kind::DistinctCount(_) => true,
            Kind::Function(function) => !function.is_distinct() && function.order_bys().is_empty(),
        }
    }

    /// Whether its function is one of an operator and takes rows back.
    pub(super) fn slides(&self) -> bool {
        SLIDING.contains(&self.name())
    }

    /// An accumulator that takes rows back, for one that [`Aggregate::slides`].
    pub(super) fn sliding_accumulator(&self) -> DataFusionResult<Box<dyn Accumulator>> {
        match &self.kind {
            Kind::Function(function) => function.create_sliding_accumulator(),
            Kind::DistinctCount(_) => Err(Error::internal("count(DISTINCT) does not slide").into()),
        }
    }

    /// How its states become smaller as time goes on, if they do.
    pub(super) fn settling(&self) -> Option<&Arc<dyn Settle>> {
        self.settle.as_ref()
    }

    /// Whether its states become smaller as a column of the rows goes on.
    pub(super) fn settles_by(&self, column: usize) -> bool {
        let time = self.settle.as_ref().and_then(|settle| self.arguments.get(settle.time()));
        time.is_some_and(|time| time.physical.downcast_ref::<Column>().is_some_and(|time| time.index() == column))
    }

    /// Whether its state is a set of distinct values that can be cut: see [`super::portion`].
    pub fn is_set(&self) -> bool {
        matches!(&self.kind, Kind::DistinctCount(value) if hashes_values(value))
    }

    /// The value's type as the query has it.
    pub fn output(&self) -> &DataType {
        &self.output
    }

    /// A state's columns as the fields of a struct: `0`, `1`, ...
    pub fn state_fields(&self) -> Fields {
        self.state.iter().enumerate().map(|(index, kind)| Field::new(index.to_string(), kind.clone(), true)).collect()
    }

    /// The struct that holds a state.
    pub fn state_type(&self) -> DataType {
        DataType::Struct(self.state_fields())
    }

    /// A fresh accumulator.
    pub(super) fn accumulator(&self) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        match &self.kind {
            Kind::DistinctCount(value) => Ok(Box::new(DistinctCount::new(value.clone())?)),
            Kind::Function(function) if function.groups_accumulator_supported() => function.create_groups_accumulator(),
            Kind::Function(function) => {
                let function = Arc::clone(function);
                Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
            }
        }
    }

    /// The value over no rows at all, one row of it. A group's accumulator does not have it: it knows groups by their rows.
    pub(super) fn over_nothing(&self) -> DataFusionResult<ArrayRef> {
        match &self.kind {
            Kind::DistinctCount(_) => Ok(Arc::new(Int64Array::from(vec![0]))),
            Kind::Function(function) => function.create_accumulator()?.evaluate()?.to_array(),
        }
    }

    /// The state of a group of whose rows none counts, one row of it.
    pub(super) fn state_of_nothing(&self) -> DataFusionResult<Vec<ArrayRef>> {
        let mut accumulator = self.accumulator()?;
        let arguments: Vec<ArrayRef> = self.argument_types.iter().map(arrow::array::new_empty_array).collect();
        // With a filter, accumulators do not take a group for one that has a row.
        accumulator.update_batch(&arguments, &[], Some(&BooleanArray::from(Vec::<bool>::new())), 1)?;
        let states = accumulator.state(EmitTo::All)?;
        states.iter().zip(&self.state).map(|(column, kind)| in_type(column, kind)).collect()
    }

    /// The state's types as the accumulator really makes them, from one group without rows.
    fn probe(&self) -> DataFusionResult<Vec<DataType>> {
        let mut accumulator = self.accumulator()?;
        let arguments: Vec<ArrayRef> = self.argument_types.iter().map(arrow::array::new_empty_array).collect();
        accumulator.update_batch(&arguments, &[], None, 1)?;
        let mut types: Vec<_> = accumulator.state(EmitTo::All)?.iter().map(|array| array.data_type().clone()).collect();
        if let Kind::Function(function) = &self.kind {
            // An empty state may be typed Null; the declared type is then the better one.
            let declared: Vec<FieldRef> = function.state_fields()?;
            for (found, field) in types.iter_mut().zip(declared) {
                if found.is_null() {
                    *found = field.data_type().clone();
                }
            }
        }
        Ok(types)
    }

    /// An evaluated column in the query's type. 22003 where a value does not fit it.
    pub(super) fn checked(&self, values: &ArrayRef) -> Result<ArrayRef> {
        let out_of_range = || {
            let message = match SqlType::of_arrow(&self.output) {
                SqlType::Numeric(_) => "numeric field overflow".to_owned(),
                other => format!("{other} out of range"),
            };
            Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message)
        };
        if let DataType::Decimal128(precision, _) = values.data_type()
            && *values.data_type() == self.output
        {
            values.as_primitive::<Decimal128Type>().validate_decimal_precision(*precision).map_err(|_| out_of_range())?;
            return Ok(Arc::clone(values));
        }
        if *values.data_type() == self.output {
            return Ok(Arc::clone(values));
        }
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let numeric = values.data_type().is_numeric();
        arrow::compute::cast_with_options(values, &self.output, &options)
            .map_err(|error| if numeric { out_of_range() } else { arrow_failure(error) })
    }
}

/// What the accumulators of a call take: its arguments, in types that cannot overflow, then its ORDER BY expressions.
pub fn row_arguments(call: &AggregateFunction, schema: &DFSchema) -> Result<Vec<Expr>> {
    let mut call = call.clone();
    widen(&mut call, schema)?;
    let ordered = call.params.order_by.into_iter().map(|order| order.expr);
    Ok(call.params.args.into_iter().chain(ordered).collect())
}

/// Refuses aggregates whose value depends on the order in which rows happen to come.
fn refuse_inexact(call: &AggregateFunction) -> Result<()> {
    let name = call.func.name();
    let ordered = !call.params.order_by.is_empty();
    if matches!(name, "first_value" | "last_value") && !ordered {
        return Err(no_view(
            &format!("{name}() without ORDER BY"),
            &format!("Write the order into the call: {name}(column ORDER BY event_time)."),
        ));
    }
    if name == "nth_value" {
        return Err(no_view("nth_value()", "Use first_value or last_value with ORDER BY, or array_agg(... ORDER BY ...)[n]."));
    }
    Ok(())
}

/// Digits that a value of a bigint can have.
const BIGINT_DIGITS: u8 = 19;

/// Digits up to which 2^63 values can be added in 128 bits.
const SAFE_DIGITS: u8 = 19;

/// Rewrites sum() so that its state cannot wrap: integers in 128 bits, wide decimals in 256.
fn widen(call: &mut AggregateFunction, schema: &DFSchema) -> Result<()> {
    if call.func.name() != "sum" || call.params.args.len() != 1 {
        return Ok(());
    }
    let argument = &call.params.args[0];
    let wide = match argument.get_type(schema).map_err(failure)? {
        DataType::Int64 => Some(DataType::Decimal128(BIGINT_DIGITS, 0)),
        DataType::UInt64 => Some(DataType::Decimal128(BIGINT_DIGITS + 1, 0)),
        DataType::Decimal128(precision, scale) if digits(argument, precision, scale, schema) > SAFE_DIGITS => {
            Some(DataType::Decimal256(precision, scale))
        }
        DataType::Decimal128(_, _) => None,
        _ => return Ok(()),
    };
    call.func = sum_udaf();
    if let Some(wide) = wide {
        call.params.args = vec![Expr::Cast(Cast::new(Box::new(argument.clone()), wide))];
    }
    Ok(())
}

/// How many digits a decimal argument can really have: a widened bigint has its own.
fn digits(argument: &Expr, precision: u8, scale: i8, schema: &DFSchema) -> u8 {
    match argument {
        Expr::Cast(cast) if scale == 0 && cast.expr.get_type(schema).is_ok_and(|inner| inner.is_signed_integer()) => {
            precision.min(BIGINT_DIGITS)
        }
        _ => precision,
    }
}

fn identity(function: &AggregateFunctionExpr, filter: Option<&Arc<dyn datafusion::physical_expr::PhysicalExpr>>) -> String {
    let mut text = format!("{}(", function.fun().name());
    if function.is_distinct() {
        text.push_str("distinct ");
    }
    for argument in function.expressions() {
        let _ = write!(text, "{argument:?},");
    }
    let _ = write!(text, ") order {:?}", function.order_bys());
    if function.ignore_nulls() {
        text.push_str(" ignore nulls");
    }
    if let Some(filter) = filter {
        let _ = write!(text, " filter {filter:?}");
    }
    text
}
