//! Aggregates: `sum(bigint)` and `avg(integer)` are numeric, sums are exact.
//!
//! The arguments are cast, the aggregates are DataFusion's own, so whatever merges their states goes on working.

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, WindowFunctionParams};
use datafusion::logical_expr::{Aggregate, AggregateUDF, Expr, ExprSchemable, WindowFunctionDefinition};

use super::casts::to;
use super::intervals;
use crate::error::{Error, SqlState};
use crate::query::distinct::sorted::distinct_list;
use crate::query::functions::interval;
use crate::query::functions::sum::checked_sum;

/// Whether a key of GROUP BY is an aggregate, which the planner takes where an alias names it.
pub fn among_keys(aggregate: &Aggregate) -> Result<bool> {
    for key in &aggregate.group_expr {
        if key.exists(|expression| Ok(matches!(expression, Expr::AggregateFunction(_))))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Digits before the point from which a sum of numeric could leave 128 bits.
const UNCHECKED_PRECISION_MAX: u8 = 28;
/// An average has three digits more than its argument: together PostgreSQL's sixteen.
const AVERAGE_SCALE: i8 = 13;
const AVERAGE_PRECISION_MAX: u8 = 34;

/// Types an aggregate's argument.
pub fn aggregate(func: Arc<AggregateUDF>, mut params: AggregateFunctionParams, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if params.distinct {
        refuse_order_by_others(&params)?;
        if let Some(list) = distinct_list(&func, order_of(&params)) {
            let AggregateFunctionParams { args, filter, null_treatment, .. } = params;
            return Ok(Transformed::yes(Expr::AggregateFunction(AggregateFunction::new_udf(
                list,
                args,
                false,
                filter,
                Vec::new(),
                null_treatment,
            ))));
        }
    }
    params.order_by = intervals::sorted(params.order_by, schema)?;
    if let Some(expression) = intervals::aggregate(func.name(), &params, schema)? {
        return Ok(Transformed::yes(expression));
    }
    let func = interval::real(func);
    let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
    let (func, args) = arguments(func, args, schema)?;
    let function = AggregateFunction::new_udf(func, args, distinct, filter, order_by, null_treatment);
    Ok(Transformed::yes(Expr::AggregateFunction(function)))
}

/// 42P10 where an aggregate of distinct values orders them by anything else.
fn refuse_order_by_others(params: &AggregateFunctionParams) -> Result<()> {
    if params.order_by.iter().all(|key| params.args.contains(&key.expr)) {
        return Ok(());
    }
    let message = "in an aggregate with DISTINCT, ORDER BY expressions must appear in argument list";
    Err(Error::new(SqlState::INVALID_COLUMN_REFERENCE, message).into())
}

/// The order of distinct values: that of the call, else ascending with NULLs last.
fn order_of(params: &AggregateFunctionParams) -> SortOptions {
    let key = params.order_by.iter().find(|key| params.args.first() == Some(&key.expr));
    key.map_or(SortOptions::new(false, false), |key| SortOptions::new(!key.asc, key.nulls_first))
}

/// The same for an aggregate over a window: its arguments, and the function that takes its place.
pub fn window_arguments(
    fun: WindowFunctionDefinition,
    mut params: WindowFunctionParams,
    schema: &DFSchema,
) -> Result<(WindowFunctionDefinition, WindowFunctionParams, bool)> {
    let WindowFunctionDefinition::AggregateUDF(func) = &fun else {
        return Ok((fun, params, false));
    };
    if let [argument] = params.args.as_slice()
        && matches!(argument.get_type(schema)?, DataType::Interval(_))
    {
        let own = match func.name() {
            "sum" => interval::sum(),
            "avg" => interval::average(),
            "min" | "max" => return Err(Error::unsupported(format!("{}(interval) OVER (...) is not supported", func.name())).into()),
            _ => return Ok((fun, params, false)),
        };
        return Ok((WindowFunctionDefinition::AggregateUDF(own), params, true));
    }
    if func.name() == "sum" || func.name() == "avg" || func.name() == "count" {
        let func = interval::real(Arc::clone(func));
        let (_, args) = cast_arguments(&func, params.args, schema)?;
        params.args = args;
        return Ok((WindowFunctionDefinition::AggregateUDF(func), params, true));
    }
    Ok((fun, params, false))
}

fn arguments(func: Arc<AggregateUDF>, args: Vec<Expr>, schema: &DFSchema) -> Result<(Arc<AggregateUDF>, Vec<Expr>)> {
    let (data_type, args) = cast_arguments(&func, args, schema)?;
    match (func.name(), &data_type) {
        ("sum", Some(DataType::Decimal128(precision, _))) if *precision > UNCHECKED_PRECISION_MAX => Ok((checked_sum(), args)),
        _ => Ok((func, args)),
    }
}

fn cast_arguments(func: &AggregateUDF, mut args: Vec<Expr>, schema: &DFSchema) -> Result<(Option<DataType>, Vec<Expr>)> {
    match (func.name(), args.as_slice()) {
        // COUNT(*) is count(1), which later stages recognise by the literal's type.
        ("count", [Expr::Literal(ScalarValue::Int32(Some(1)), metadata)]) => {
            args[0] = Expr::Literal(ScalarValue::Int64(Some(1)), metadata.clone());
            Ok((None, args))
        }
        ("sum" | "avg" | "mean", [argument]) => {
            let data_type = argument.get_type(schema)?;
            let target = if func.name() == "sum" { sum_type(&data_type) } else { average_type(&data_type) };
            match target {
                Some(target) if target != data_type => {
                    let argument = args.remove(0);
                    Ok((Some(target.clone()), vec![to(argument, target)]))
                }
                _ => Ok((Some(data_type), args)),
            }
        }
        _ => Ok((None, args)),
    }
}

fn sum_type(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Int64 => Some(DataType::Decimal128(19, 0)),
        DataType::UInt64 => Some(DataType::Decimal128(20, 0)),
        _ => None,
    }
}

fn average_type(data_type: &DataType) -> Option<DataType> {
    match data_type {
        integer if integer.is_integer() => Some(DataType::Decimal128(AVERAGE_PRECISION_MAX, AVERAGE_SCALE)),
        DataType::Decimal128(precision, scale) if *scale < AVERAGE_SCALE => {
            let whole = i16::from(*precision) - i16::from(*scale);
            let scale = i16::from(AVERAGE_SCALE).min(i16::from(AVERAGE_PRECISION_MAX) - whole).max(i16::from(*scale));
            let precision = u8::try_from(whole + scale).ok()?;
            Some(DataType::Decimal128(precision, i8::try_from(scale).ok()?))
        }
        _ => None,
    }
}
