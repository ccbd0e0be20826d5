//! From a call of an operator over series to its plan.
//!
//! *Place*: ANOMALIES and FORECAST share it.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder};
use sqlparser::ast;

use super::node::Series;
use super::{Analysis, Spec, trace};
use crate::anomaly::grid::Fill;
use crate::error::{Error, SqlState};
use crate::query::functions::{session, type_name};
use crate::query::names;
use crate::query::operator::{Argument, Call};
use crate::query::rewrite::SUFFIX;
use crate::query::typing::casts;

/// Longest period, points.
const PERIOD_MAX: i64 = 100_000;
/// Most periods of one series.
const PERIODS_MAX: usize = 4;

/// Arguments that every operator over series has. The time is that of the input if it is not given.
pub const TIME: Argument = Argument::optional("time");
/// See [`TIME`].
pub const VALUE: Argument = Argument::required("value");
/// See [`TIME`].
pub const PARTITION_BY: Argument = Argument::optional("partition_by");
/// See [`TIME`].
pub const PERIOD: Argument = Argument::optional("period");
/// See [`TIME`].
pub const FILL: Argument = Argument::optional("fill");

/// The lengths of the seasons that a call gives, rising.
pub fn periods(call: &Call<'_>) -> Result<Vec<usize>> {
    let mut periods = Vec::new();
    for item in call.items("period") {
        let written = match &item {
            ast::Expr::Value(value) => &value.value,
            other => return Err(call.wrong("period", format!("must be a number or a list of numbers, not {other}")).into()),
        };
        let number = match written {
            ast::Value::Number(number, _) => number.parse::<i64>().ok(),
            ast::Value::Placeholder(_) => return Err(call.wrong("period", "must be a constant").into()),
            other => {
                let wrong = call.wrong("period", format!("must be a number or a list of numbers, not {other}"));
                return Err(wrong.with_state(SqlState::DATATYPE_MISMATCH).into());
            }
        };
        match number {
            Some(number @ 2..=PERIOD_MAX) => periods.push(usize::try_from(number).unwrap_or_default()),
            _ => return Err(call.wrong("period", format!("must be a whole number from 2 to {PERIOD_MAX}, not {item}")).into()),
        }
    }
    periods.sort_unstable();
    if periods.len() > PERIODS_MAX || periods.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(call.wrong("period", format!("must be at most {PERIODS_MAX} different numbers")).into());
    }
    if call.syntax("period").is_some() && periods.is_empty() {
        return Err(call.wrong("period", "must not be an empty list").hint("Leave it out to have the period detected.").into());
    }
    Ok(periods)
}

/// The plan of a call.
pub fn lower(mut call: Call<'_>, operator: &'static str, analysis: Analysis) -> Result<LogicalPlan> {
    let time = call.time("time")?;
    let time = match time.get_type(call.input.schema())? {
        DataType::Timestamp(TimeUnit::Microsecond, _) => time,
        DataType::Timestamp(_, zone) => casts::to(time, DataType::Timestamp(TimeUnit::Microsecond, zone)),
        _ => return Err(Error::internal("a time that is no timestamp").into()),
    };
    let (value, value_type) = value(&mut call)?;
    let keys = call.expressions("partition_by")?;
    let names = call.items("partition_by");
    let input = &call.input.plan;
    let fill = match call.syntax("fill") {
        Some(_) => [Fill::Zero, Fill::Previous, Fill::Linear, Fill::None][call.choice("fill", &["zero", "previous", "linear", "none"])?],
        None => natural_fill(&value, &value_type, input),
    };
    let spec = Spec { operator, keys: keys.len(), fill, analysis };
    let mut columns: Vec<Expr> = Vec::with_capacity(keys.len() + 2);
    for (key, written) in keys.into_iter().zip(names) {
        let name = match &key {
            Expr::Column(column) => column.name.clone(),
            _ => names::of(&written),
        };
        columns.push(key.alias(name));
    }
    let hidden = |name: &str| format!("{SUFFIX}{name}");
    columns.push(time.alias(hidden("time")));
    columns.push(casts::to(value, DataType::Float64).alias(hidden("value")));
    let input = LogicalPlanBuilder::from(call.input.plan.clone()).project(columns)?.build()?;
    let series = Series::new(input, (session::time_zone(), session::clock()), Arc::new(spec))?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(series) }))
}

/// The measure, a number.
fn value(call: &mut Call<'_>) -> Result<(Expr, DataType)> {
    let value = call.expression("value")?.ok_or_else(|| Error::internal("a required argument is missing"))?;
    let data_type = value.get_type(call.input.schema())?;
    if !data_type.is_numeric() {
        let wrong = call.wrong("value", format!("must be a number, not type {}", type_name(&data_type)));
        return Err(wrong.with_state(SqlState::DATATYPE_MISMATCH).into());
    }
    Ok((value, data_type))
}

/// Counts and sums are zero where nothing happened. Means and levels are not: a line joins their neighbours. Where the plan does not say
/// what a value is, whole numbers and exact ones are taken for counts and amounts.
fn natural_fill(value: &Expr, data_type: &DataType, input: &LogicalPlan) -> Fill {
    let amount = !data_type.is_floating();
    if trace::is_additive(value, input).unwrap_or(amount) { Fill::Zero } else { Fill::Linear }
}
