//! `COHORT_ANALYSIS(input, cohort_date := ..., activity_date := ..., user_id := ..., metric := ... [, options])`: paper 4.2, Listing 11.
//!
//! *Place*: this file reads the arguments into a [`Cohort`], [`lower`] makes the plan of it.
//!
//! A user's cohort is the date of the user's first event; a cell is a cohort and a period counted from it. The result equals Listing
//! 10's SQL. What a user does before the period of the cohort is not counted (it has no cell).
//!
//! Output: the columns of `group_by`, then `cohort_date`, `period integer`, `cohort_size bigint`, `active_users bigint`, `metric`,
//! `retention double precision`, `complete boolean`, in this order and sorted by the groups, the cohort and the period.

mod fill;
mod lower;
mod period;
mod rows;
mod settled;

use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ExprSchema, Result};
use datafusion::functions_aggregate::min_max::min_udaf;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::{find_aggregate_exprs, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator as Op, lit};
use sqlparser::ast;

use super::{Argument, Call, Operator};
use crate::error::{Error, SqlState};
use crate::query::functions::{is_text, type_name};
use crate::query::typing;
use period::{Period, time_column, truncations, units};

/// What names of first events begin with.
const FIRST: &str = "first_";
/// What they end with.
const DATE: &str = "_date";
/// The first event of any type.
const ANY: &str = "event";
/// The column of the events' types.
const EVENT_TYPE: &str = "event_type";

/// The operator.
#[derive(Debug)]
pub struct CohortAnalysis;

/// What is asked for. Expressions are over the input.
#[derive(Debug)]
struct Cohort {
    input: LogicalPlan,
    user: Expr,
    filters: Vec<Expr>,
    activity: Expr,
    period: Period,
    /// Over aggregates by user.
    date: Expr,
    /// Whether cohort dates are beginnings of such periods.
    aligned: bool,
    /// Whose groups a user has.
    entry: Entry,
    groups: Vec<(String, Expr)>,
    /// Over aggregates by cell.
    metric: Expr,
    retention: Retention,
    fill: bool,
    cumulative: bool,
    lookback: Option<Expr>,
}

/// Which of a user's rows is the first: the least `time` of those that are `counted`, then the first to arrive.
#[derive(Debug)]
struct Entry {
    time: Expr,
    arrival: Expr,
    counted: Expr,
}

/// In which periods a user counts as retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retention {
    /// In those in which the user is active.
    On,
    /// In all until the last of them.
    OnOrAfter,
}

impl Operator for CohortAnalysis {
    fn name(&self) -> &'static str {
        "COHORT_ANALYSIS"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: [Argument; 10] = [
            Argument::required("cohort_date"),
            Argument::required("activity_date"),
            Argument::required("user_id"),
            Argument::required("metric"),
            Argument::optional("filters"),
            Argument::optional("group_by"),
            Argument::optional("fill"),
            Argument::optional("retention"),
            Argument::optional("cumulative"),
            Argument::optional("lookback"),
        ];
        &ARGUMENTS
    }

    fn example(&self) -> &'static str {
        "COHORT_ANALYSIS(events, cohort_date := DATE_TRUNC('week', first_purchase_date), activity_date := DATE_TRUNC('week', event_time), \
         user_id := user_id, metric := COUNT(DISTINCT order_id), filters := [event_type = 'purchase'])"
    }

    fn plan(&self, mut call: Call<'_>) -> Result<LogicalPlan> {
        let user = call.expression("user_id")?.ok_or_else(|| Error::internal("a cohort without users"))?;
        let activity = call.expression("activity_date")?.ok_or_else(|| Error::internal("a cohort without activity"))?;
        let (period, time) = periods(&call, &activity)?;
        let time = time.or_else(|| call.input.event_time.clone());
        let (date, entry) = cohort_date(&mut call, time.as_ref())?;
        let aligned = truncations(&date)?.iter().any(|one| Period::of(one).is_some_and(|other| other.unit == period.unit));
        let metric = metric(&mut call)?;
        let names = call.names("group_by", &lower::COLUMNS)?;
        let groups = names.into_iter().zip(call.expressions("group_by")?).collect();
        let retention = match call.choice("retention", &["on", "on_or_after"])? {
            0 => Retention::On,
            _ => Retention::OnOrAfter,
        };
        let (fill, cumulative) = (call.flag("fill", false)?, call.flag("cumulative", false)?);
        if cumulative && !metric.get_type(call.input.schema())?.is_numeric() {
            let found = type_name(&metric.get_type(call.input.schema())?);
            return Err(call.wrong("cumulative", format!("needs a metric that can be added up, not of type {found}")).into());
        }
        let lookback = call.interval("lookback")?;
        let filters = call.conditions("filters")?.into_iter().flat_map(split_conjunction_owned).collect();
        lower::plan(Cohort {
            input: call.input.plan.clone(),
            user,
            filters,
            activity,
            period,
            date,
            aligned,
            entry,
            groups,
            metric,
            retention,
            fill,
            cumulative,
            lookback,
        })
    }
}

/// The periods that `activity_date` says, and the only column that it truncates.
fn periods(call: &Call<'_>, activity: &Expr) -> Result<(Period, Option<Column>)> {
    let data_type = activity.get_type(call.input.schema())?;
    if !is_date(&data_type) {
        return Err(call
            .wrong("activity_date", format!("must be a date or a timestamp, not type {}", type_name(&data_type)))
            .with_state(SqlState::DATATYPE_MISMATCH)
            .into());
    }
    let example = "For example activity_date := DATE_TRUNC('week', event_time).";
    let found = truncations(activity)?;
    let [first, others @ ..] = found.as_slice() else {
        return Err(call.wrong("activity_date", "must be a DATE_TRUNC, whose unit is that of the periods").hint(example).into());
    };
    let period = Period::of(first).ok_or_else(|| {
        let error = call.wrong("activity_date", format!("has a unit that periods cannot have: \"{}\"", first.unit));
        error.hint(format!("Use {}.", units()))
    })?;
    if others.iter().any(|other| Period::of(other).is_none_or(|other| other.unit != period.unit)) {
        return Err(call.wrong("activity_date", "truncates to more than one unit").hint(example).into());
    }
    let is_time = |column: &Column| call.input.schema().field_from_column(column).is_ok_and(|field| is_date(field.data_type()));
    Ok((period, time_column(first).filter(is_time)))
}

fn is_date(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32)
}

/// `cohort_date` over aggregates by user, and the row that decides it.
fn cohort_date(call: &mut Call<'_>, time: Option<&Column>) -> Result<(Expr, Entry)> {
    const NAME: &str = "cohort_date";
    let syntax = call.syntax(NAME).cloned().ok_or_else(|| Error::internal("a cohort without a date"))?;
    let firsts = first_events(&syntax, call.input.schema());
    let date = match firsts.is_empty() {
        true => {
            let schema = std::sync::Arc::clone(call.input.schema());
            call.planned(syntax, &schema)?
        }
        false => first_dates(call, syntax, &firsts, time)?,
    };
    let data_type = date.get_type(call.input.schema())?;
    if !is_date(&data_type) {
        return Err(call
            .wrong(NAME, format!("must be a date or a timestamp, not type {}", type_name(&data_type)))
            .with_state(SqlState::DATATYPE_MISMATCH)
            .into());
    }
    let date = date.unalias_nested().data;
    let aggregates = find_aggregate_exprs([&date]);
    let arrival = call.input.order();
    let Some(Expr::AggregateFunction(first)) = aggregates.first() else {
        // A date of the rows' own: the user's earliest.
        let counted = date.clone().is_not_null();
        let time = time.cloned().map_or_else(|| date.clone(), Expr::Column);
        return Ok((minimum(date, None), Entry { time, arrival, counted }));
    };
    bare_columns(call, NAME, &date)?;
    let counted = first.params.filter.as_deref().cloned().unwrap_or_else(|| lit(true));
    let time = match (first.params.args.as_slice(), time) {
        ([argument], _) if first.func.name() == "min" && is_date(&argument.get_type(call.input.schema())?) => argument.clone(),
        (_, Some(time)) => Expr::Column(time.clone()),
        _ => lit(0_i64),
    };
    Ok((date, Entry { time, arrival, counted }))
}

fn minimum(of: Expr, filter: Option<Expr>) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(min_udaf(), vec![of], false, filter.map(Box::new), Vec::new(), None))
}

/// The names `first_<event_type>_date` that are not columns of the input, with the event type.
fn first_events(syntax: &ast::Expr, schema: &DFSchema) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let _: ControlFlow<()> = ast::visit_expressions(syntax, |expression| {
        if let ast::Expr::Identifier(ident) = expression {
            let name = if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() };
            let event = name.strip_prefix(FIRST).and_then(|rest| rest.strip_suffix(DATE)).filter(|event| !event.is_empty());
            if let Some(event) = event
                && !schema.has_column_with_unqualified_name(&name)
                && !found.iter().any(|(known, _)| *known == name)
            {
                found.push((name.clone(), event.to_owned()));
            }
        }
        ControlFlow::Continue(())
    });
    found
}

/// Plans the date with a column for each first event, and puts their aggregates in.
fn first_dates(call: &mut Call<'_>, syntax: ast::Expr, firsts: &[(String, String)], time: Option<&Column>) -> Result<Expr> {
    let input = std::sync::Arc::clone(call.input.schema());
    let names: Vec<&str> = firsts.iter().map(|(name, _)| name.as_str()).collect();
    let Some(time) = time else {
        let error = Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{}\" does not exist", names.join("\", \"")));
        return Err(error
            .detail("It would be the user's first event, but the input has no event time.")
            .hint("Write out the aggregate, for example MIN(at).")
            .into());
    };
    let field = input.field_from_column(time)?;
    let added = firsts.iter().map(|(name, _)| (None, std::sync::Arc::new(field.as_ref().clone().with_name(name).with_nullable(true))));
    let mut schema = input.as_ref().clone();
    schema.merge(&DFSchema::new_with_metadata(added.collect(), std::collections::HashMap::new())?);
    let planned = call.planned(syntax, &schema)?;
    let kind = input.iter().find(|(_, field)| field.name() == EVENT_TYPE && is_text(field.data_type())).map(Column::from);
    let replaced = planned.transform_up(|node| {
        let Expr::Column(Column { relation: None, name, .. }) = &node else { return Ok(Transformed::no(node)) };
        let Some((_, event)) = firsts.iter().find(|(first, _)| first == name) else { return Ok(Transformed::no(node)) };
        let filter = match (event.as_str(), &kind) {
            (ANY, _) => None,
            (event, Some(kind)) => {
                let event = Expr::Literal(datafusion::common::ScalarValue::Utf8View(Some(event.to_owned())), None);
                Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(Expr::Column(kind.clone())), Op::Eq, Box::new(event))))
            }
            (_, None) => {
                let error = Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"));
                return Err(error
                    .detail(format!("It would be the user's first event of a type, but the input has no column {EVENT_TYPE}."))
                    .hint("Write out the aggregate, for example MIN(at) FILTER (WHERE kind = 'purchase').")
                    .into());
            }
        };
        Ok(Transformed::yes(minimum(Expr::Column(time.clone()), filter)))
    })?;
    Ok(typing::expression(replaced.data, &input)?.data)
}

/// The metric over aggregates by cell.
fn metric(call: &mut Call<'_>) -> Result<Expr> {
    const NAME: &str = "metric";
    let syntax = call.syntax(NAME).cloned().ok_or_else(|| Error::internal("a cohort without a metric"))?;
    let shown = syntax.to_string();
    if let ast::Expr::Array(_) = syntax {
        return Err(call.wrong(NAME, "must be one aggregate, not a list").into());
    }
    let schema = std::sync::Arc::clone(call.input.schema());
    let metric = call.planned(syntax, &schema)?.unalias_nested().data;
    if find_aggregate_exprs([&metric]).is_empty() {
        return Err(call
            .wrong(NAME, format!("must be an aggregate, not \"{shown}\""))
            .with_state(SqlState::GROUPING_ERROR)
            .hint("For example SUM(revenue) or COUNT(DISTINCT order_id).")
            .into());
    }
    bare_columns(call, NAME, &metric)?;
    Ok(metric)
}

/// Refuses columns that stand beside aggregates, and window functions.
fn bare_columns(call: &Call<'_>, name: &'static str, expression: &Expr) -> Result<()> {
    let mut bare = None;
    let mut windowed = false;
    // An aggregate's arguments are not looked into.
    fn walk(expression: &Expr, bare: &mut Option<Column>, windowed: &mut bool) -> Result<()> {
        match expression {
            Expr::AggregateFunction(_) => Ok(()),
            Expr::Column(column) => {
                bare.get_or_insert_with(|| column.clone());
                Ok(())
            }
            Expr::WindowFunction(_) => {
                *windowed = true;
                Ok(())
            }
            other => {
                other.apply_children(|child| {
                    walk(child, bare, windowed)?;
                    Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
                })?;
                Ok(())
            }
        }
    }
    walk(expression, &mut bare, &mut windowed)?;
    if windowed {
        return Err(call.wrong(name, "has a window function").with_state(SqlState::GROUPING_ERROR).into());
    }
    match bare {
        None => Ok(()),
        Some(column) => Err(call
            .wrong(name, format!("uses column \"{}\" outside of an aggregate", column.name))
            .with_state(SqlState::GROUPING_ERROR)
            .into()),
    }
}
