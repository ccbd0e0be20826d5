//! A cohort analysis as relational algebra.
//!
//! *Place*: `cohort` calls [`plan`] with what its arguments say.
//!
//! The input is read once, where Listing 10 joins it with itself:
//!
//! 1. filter; aggregate by user: the cohort's date, and the user's rows in a list, marked ([`super::rows`]);
//! 2. unnest; aggregate by groups, cohort and period: marks counted, the metric's own aggregates over the rows' values;
//! 3. on that small table: sizes and running sums by window functions, missing periods, shares, order.
//!
//! *Invariants*: (1) the filters are a filter over the input as they were written, so that they prune files and use indexes; (2) only
//! the columns that arguments name are read; (3) aggregates of the metric see exactly the cell's rows.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, NullHandling, Result, ScalarValue, UnnestOptions};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::functions_window::lead_lag::{lag, lead};
use datafusion::logical_expr::expr::{AggregateFunction, Sort, WindowFunction};
use datafusion::logical_expr::utils::{conjunction, find_aggregate_exprs, split_conjunction_owned};
use datafusion::logical_expr::{
    Between, BinaryExpr, Expr, ExprFunctionExt, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, WindowFrame, WindowFrameBound,
    WindowFrameUnits, WindowFunctionDefinition, lit, when,
};

use super::rows::{self, CohortRows};
use super::settled::Uses;
use super::{Cohort, Retention, fill, is_date};
use crate::query::functions::cast;
use crate::query::functions::repeated::rows_of_lists;
use crate::query::operator::gather::gather;
use crate::query::operator::order::ordered;
use crate::query::rewrite::SUFFIX;
use crate::query::typing::casts::to;

/// A column of the plan that no one else sees.
fn hidden(name: &str) -> String {
    format!("{SUFFIX}{name}")
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// Names of the plan's own columns.
const USER: &str = "user";
const DATE: &str = "cohort";
const BEFORE: &str = "before";
const ROWS: &str = "rows";
const PERIOD: &str = "period";
const NEWEST: &str = "newest";
const ACTIVE: &str = "active";
const OPENED: &str = "opened";
const CLOSED: &str = "closed";
const SIZE: &str = "size";
const METRIC: &str = "metric";
const CELL: &str = "cell";
const PREVIOUS: &str = "previous";
const NEXT: &str = "next";
const LAST: &str = "last";

/// The plan. Its columns are those of the operator.
pub(super) fn plan(cohort: Cohort) -> Result<LogicalPlan> {
    let date_type = cohort.date.get_type(cohort.input.schema())?;
    let activity_type = cohort.activity.get_type(cohort.input.schema())?;
    let metric_type = cohort.metric.get_type(cohort.input.schema())?;
    let Users { plan: users, metric, is_first } = users(&cohort)?;
    let cells = cells(&cohort, users, metric, &date_type, &activity_type)?;
    let sized = sized(&cohort, cells, is_first)?;
    // A user counts in periods without an event of the cohort as well: these are made, and those without users left out again.
    let sparse = !cohort.fill && cohort.retention == Retention::OnOrAfter;
    let filled = match cohort.fill || sparse {
        true => filled(&cohort, sized, &date_type, &activity_type, &metric_type)?,
        false => sized,
    };
    let mut counted = running(&cohort, filled, &metric_type)?;
    if sparse {
        let some = Expr::BinaryExpr(BinaryExpr::new(Box::new(column(&hidden(ACTIVE))), Operator::Gt, Box::new(lit(0_i64))));
        counted = LogicalPlanBuilder::from(counted).filter(some)?.build()?;
    }
    shown(&cohort, counted, &date_type)
}

/// What step 1 gives.
struct Users {
    plan: LogicalPlan,
    /// Over the columns that the rows have.
    metric: Metric,
    /// No row is older than its user's cohort: see [`super::period::Period::begins_with`].
    is_first: bool,
}

/// Step 1: a row a user with the cohort's date and the marked rows.
fn users(cohort: &Cohort) -> Result<Users> {
    let range = Range::of(cohort);
    // Last, so that users are read for the rows that pass the others alone.
    let filters: Vec<Expr> = range.filters.iter().cloned().chain([cohort.user.clone().is_not_null()]).collect();
    let filtered = match conjunction(filters) {
        Some(filter) => LogicalPlanBuilder::from(cohort.input.clone()).filter(filter)?,
        None => LogicalPlanBuilder::from(cohort.input.clone()),
    };
    let mut metric = Metric { values: Vec::new(), expression: cohort.metric.clone() };
    metric.expression = metric.over_values(cohort.metric.clone())?;
    let mut arguments = vec![cohort.activity.clone()];
    if !cohort.groups.is_empty() {
        arguments.extend([cohort.entry.time.clone(), cohort.entry.arrival.clone(), cohort.entry.counted.clone()]);
        arguments.extend(cohort.groups.iter().map(|(_, group)| group.clone()));
    }
    arguments.extend(metric.values.iter().cloned());
    let uses = metric.uses(cohort)?;
    let marked = gather(Arc::new(CohortRows { groups: cohort.groups.len(), uses }));
    let within = range.within.clone().map(Box::new);
    let marked = Expr::AggregateFunction(AggregateFunction::new_udf(marked, arguments, false, within, Vec::new(), None));
    let mut aggregates = vec![marked.alias(hidden(ROWS))];
    let dated = range.without_passed(cohort.date.clone())?;
    let is_first = cohort.period.begins_with(&dated, &cohort.activity)?;
    let date = over_aggregates(&dated, range.within.as_ref(), DATE, &mut aggregates)?;
    let before = match &range.within {
        Some(within) => {
            let outside = Expr::Not(Box::new(within.clone()));
            Some(over_aggregates(&dated, Some(&outside), BEFORE, &mut aggregates)?)
        }
        None => None,
    };
    let mut columns = vec![date.alias(hidden(DATE)), column(&hidden(ROWS))];
    columns.extend(before.map(|before| before.alias(hidden(BEFORE))));
    let is_new = range.within.is_some();
    let mut plan = filtered.aggregate(vec![cohort.user.clone().alias(hidden(USER))], aggregates)?.project(columns)?;
    if !is_first {
        plan = plan.filter(column(&hidden(DATE)).is_not_null())?;
    }
    if is_new {
        plan = plan.filter(column(&hidden(BEFORE)).is_null())?;
    }
    Ok(Users { plan: plan.build()?, metric, is_first })
}

/// An expression over aggregates, with columns in their places; the aggregates, filtered further, are added to those of the plan.
fn over_aggregates(expression: &Expr, filter: Option<&Expr>, name: &str, aggregates: &mut Vec<Expr>) -> Result<Expr> {
    let mut known: Vec<(Expr, String)> = Vec::new();
    for (index, aggregate) in find_aggregate_exprs([expression]).into_iter().enumerate() {
        let alias = hidden(&format!("{name}{index}"));
        let mut own = aggregate.clone();
        if let (Expr::AggregateFunction(call), Some(filter)) = (&mut own, filter) {
            let both = match call.params.filter.take() {
                Some(written) => written.and(filter.clone()),
                None => filter.clone(),
            };
            call.params.filter = Some(Box::new(both));
        }
        aggregates.push(own.alias(&alias));
        known.push((aggregate, alias));
    }
    let replaced = expression.clone().transform_down(|node| {
        Ok(match known.iter().find(|(aggregate, _)| *aggregate == node) {
            Some((_, alias)) => Transformed::new(column(alias), true, datafusion::common::tree_node::TreeNodeRecursion::Jump),
            None => Transformed::no(node),
        })
    })?;
    Ok(replaced.data)
}

/// What the metric's aggregates need of the rows.
struct Metric {
    /// Over the input.
    values: Vec<Expr>,
    /// Over columns [`rows::value`] in their places.
    expression: Expr,
}

impl Metric {
    /// Puts columns in the places of what the aggregates are given.
    fn over_values(&mut self, expression: Expr) -> Result<Expr> {
        let replaced = expression.transform_down(|node| {
            let Expr::AggregateFunction(mut call) = node else { return Ok(Transformed::no(node)) };
            if let ("count", false, [argument]) = (call.func.name(), call.params.distinct, call.params.args.as_slice())
                && !argument.column_refs().is_empty()
            {
                // Which value it is does not count.
                call.params.args = vec![when(argument.clone().is_not_null(), lit(true)).end()?];
            }
            call.params.args = call.params.args.into_iter().map(|argument| self.value(argument)).collect();
            call.params.filter = call.params.filter.map(|filter| Box::new(self.value(*filter)));
            let sorts = call.params.order_by.into_iter();
            call.params.order_by = sorts.map(|sort| Sort { expr: self.value(sort.expr), ..sort }).collect();
            Ok(Transformed::new(Expr::AggregateFunction(call), true, datafusion::common::tree_node::TreeNodeRecursion::Jump))
        })?;
        Ok(replaced.data)
    }

    /// How its aggregates take the values.
    fn uses(&self, cohort: &Cohort) -> Result<Option<Uses>> {
        let types = self.values.iter().map(|value| value.get_type(cohort.input.schema())).collect::<Result<Vec<_>>>()?;
        let names: Vec<Expr> = (0..types.len()).map(|place| column(&hidden(&rows::value(place)))).collect();
        Ok(Uses::of(&self.expression, &types, |expression| names.iter().position(|name| name == expression)))
    }

    fn value(&mut self, expression: Expr) -> Expr {
        if expression.column_refs().is_empty() {
            return expression;
        }
        let place = self.values.iter().position(|known| *known == expression).unwrap_or_else(|| {
            self.values.push(expression);
            self.values.len() - 1
        });
        column(&hidden(&rows::value(place)))
    }
}

/// The filters, and with `lookback` which rows are of the range that is analysed.
struct Range {
    filters: Vec<Expr>,
    /// None: all rows.
    within: Option<Expr>,
}

impl Range {
    /// With `lookback`, rows count for first events from that long before the lower bounds of time in the filters.
    fn of(cohort: &Cohort) -> Range {
        let Some(lookback) = &cohort.lookback else { return Range { filters: cohort.filters.clone(), within: None } };
        let (mut filters, mut bounds) = (Vec::new(), Vec::new());
        for filter in cohort.filters.iter().flat_map(split_between) {
            match lower_bound(&filter, cohort) {
                Some((date, operator, bound)) => {
                    let earlier = Expr::BinaryExpr(BinaryExpr::new(Box::new(bound), Operator::Minus, Box::new(lookback.clone())));
                    filters.push(Expr::BinaryExpr(BinaryExpr::new(Box::new(date), operator, Box::new(earlier))));
                    bounds.push(filter);
                }
                None => filters.push(filter),
            }
        }
        Range { filters, within: conjunction(bounds) }
    }

    /// An expression over aggregates, without conditions of theirs that every row has passed: their columns need not be read for more than
    /// the filters then.
    fn without_passed(&self, expression: Expr) -> Result<Expr> {
        let passed = |condition: &Expr| !condition.is_volatile() && self.filters.contains(condition);
        let replaced = expression.transform_up(|node| {
            let Expr::AggregateFunction(mut call) = node else { return Ok(Transformed::no(node)) };
            let conditions = call.params.filter.take().map(|filter| split_conjunction_owned(*filter)).unwrap_or_default();
            call.params.filter = conjunction(conditions.into_iter().filter(|condition| !passed(condition))).map(Box::new);
            Ok(Transformed::yes(Expr::AggregateFunction(call)))
        })?;
        Ok(replaced.data)
    }
}

/// `BETWEEN` as two comparisons.
fn split_between(filter: &Expr) -> Vec<Expr> {
    match filter {
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let compare = |operator, bound: &Expr| Expr::BinaryExpr(BinaryExpr::new(expr.clone(), operator, Box::new(bound.clone())));
            vec![compare(Operator::GtEq, low), compare(Operator::LtEq, high)]
        }
        other => vec![other.clone()],
    }
}

/// `column >= constant` or `column > constant` of a date or time.
fn lower_bound(filter: &Expr, cohort: &Cohort) -> Option<(Expr, Operator, Expr)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (date, operator, bound) = match op {
        Operator::Gt | Operator::GtEq => (left, *op, right),
        Operator::Lt => (right, Operator::Gt, left),
        Operator::LtEq => (right, Operator::GtEq, left),
        _ => return None,
    };
    let dated = matches!(date.as_ref(), Expr::Column(_)) && date.get_type(cohort.input.schema()).is_ok_and(|found| is_date(&found));
    (dated && bound.column_refs().is_empty()).then(|| (date.as_ref().clone(), operator, bound.as_ref().clone()))
}

/// Step 2: a row a cell.
fn cells(cohort: &Cohort, users: LogicalPlan, metric: Metric, date_type: &DataType, activity_type: &DataType) -> Result<LogicalPlan> {
    let rows_name = hidden(ROWS);
    let field = |name: &str| datafusion::functions::core::get_field().call(vec![column(&rows_name), lit(name)]);
    let options = UnnestOptions::new().with_null_handling(NullHandling::Drop);
    let unnested = LogicalPlanBuilder::from(users).unnest_columns_with_options(vec![Column::new_unqualified(&rows_name)], options)?;
    let number = cohort.period.number((column(&hidden(DATE)), date_type), (field(rows::ACTIVITY), activity_type));
    let mut columns = vec![column(&hidden(DATE)), number.alias(hidden(PERIOD))];
    for name in [rows::ACTIVITY, rows::ACTIVE, rows::OPENING, rows::CLOSING] {
        columns.push(field(name).alias(hidden(name)));
    }
    let values = (0..metric.values.len()).map(rows::value);
    for name in (0..cohort.groups.len()).map(rows::group).chain(values) {
        columns.push(field(&name).alias(hidden(&name)));
    }
    let marked = |name: &str| {
        let filter = Some(Box::new(column(&hidden(name))));
        Expr::AggregateFunction(AggregateFunction::new_udf(count_udaf(), vec![lit(1_i64)], false, filter, Vec::new(), None))
    };
    let mut aggregates = vec![
        marked(rows::ACTIVE).alias(hidden(ACTIVE)),
        marked(rows::OPENING).alias(hidden(OPENED)),
        marked(rows::CLOSING).alias(hidden(CLOSED)),
    ];
    let newest = AggregateFunction::new_udf(max_udaf(), vec![column(&hidden(rows::ACTIVITY))], false, None, Vec::new(), None);
    aggregates.push(Expr::AggregateFunction(newest).alias(hidden(NEWEST)));
    let metric = over_aggregates(&metric.expression, None, METRIC, &mut aggregates)?;
    let mut keys: Vec<Expr> = (0..cohort.groups.len()).map(|index| column(&hidden(&rows::group(index)))).collect();
    keys.extend([column(&hidden(DATE)), column(&hidden(PERIOD))]);
    let kept = keys.clone().into_iter().chain([ACTIVE, OPENED, CLOSED, NEWEST].map(|name| column(&hidden(name))));
    let kept: Vec<Expr> = kept.chain([metric.alias(hidden(METRIC))]).collect();
    unnested.project(columns)?.aggregate(keys, aggregates)?.project(kept)?.build()
}

/// What tells cohorts apart.
fn cohort_keys(cohort: &Cohort) -> Vec<Expr> {
    (0..cohort.groups.len()).map(|index| column(&hidden(&rows::group(index)))).chain([column(&hidden(DATE))]).collect()
}

fn over(function: Arc<datafusion::logical_expr::AggregateUDF>, argument: Expr) -> Expr {
    Expr::from(WindowFunction::new(WindowFunctionDefinition::AggregateUDF(function), vec![argument]))
}

/// Step 3: with the size of the cohort; without what came before it.
fn sized(cohort: &Cohort, cells: LogicalPlan, is_first: bool) -> Result<LogicalPlan> {
    let size = over(sum_udaf(), column(&hidden(OPENED))).partition_by(cohort_keys(cohort)).build()?;
    let zero = Expr::Literal(ScalarValue::Int32(Some(0)), None);
    let from = Expr::BinaryExpr(BinaryExpr::new(Box::new(column(&hidden(PERIOD))), Operator::GtEq, Box::new(zero)));
    let sized = LogicalPlanBuilder::from(cells).window(vec![size.alias(hidden(SIZE))])?;
    // The optimizer moves this to the rows: the number of each one's period would be computed once more.
    if is_first { sized.build() } else { sized.filter(from)?.build() }
}

/// A row for every period from the cohort's own to the newest of all activity.
fn filled(
    cohort: &Cohort,
    sized: LogicalPlan,
    date_type: &DataType,
    activity_type: &DataType,
    metric_type: &DataType,
) -> Result<LogicalPlan> {
    let period = || column(&hidden(PERIOD));
    let along = |expr: Expr| expr.partition_by(cohort_keys(cohort)).order_by(vec![period().sort(true, false)]).build();
    let last = over(max_udaf(), column(&hidden(NEWEST))).alias(hidden(LAST));
    let plan = LogicalPlanBuilder::from(sized)
        .window(vec![
            along(lag(period(), Some(1), None))?.alias(hidden(PREVIOUS)),
            along(lead(period(), Some(1), None))?.alias(hidden(NEXT)),
        ])?
        .window(vec![last])?;
    let zero = || Expr::Literal(ScalarValue::Int32(Some(0)), None);
    let from = when(column(&hidden(PREVIOUS)).is_null(), zero()).otherwise(period())?;
    let newest = cohort.period.number((column(&hidden(DATE)), date_type), (column(&hidden(LAST)), activity_type));
    let one = Expr::Literal(ScalarValue::Int32(Some(1)), None);
    let end = Expr::BinaryExpr(BinaryExpr::new(Box::new(newest), Operator::Plus, Box::new(one)));
    let end = when(column(&hidden(NEXT)).is_null(), end).otherwise(column(&hidden(NEXT)))?;
    let mut kept = cohort_keys(cohort);
    kept.extend([PERIOD, ACTIVE, CLOSED, SIZE, METRIC].map(|name| column(&hidden(name))));
    kept.push(fill::periods().call(vec![from, end]).alias(hidden(CELL)));
    let options = UnnestOptions::new().with_null_handling(NullHandling::Drop);
    let plan = plan.project(kept)?.unnest_columns_with_options(vec![Column::new_unqualified(hidden(CELL))], options)?.build()?;
    let plan = LogicalPlanBuilder::from(rows_of_lists(plan)?);
    let real = || Expr::BinaryExpr(BinaryExpr::new(Box::new(column(&hidden(CELL))), Operator::Eq, Box::new(period())));
    let mut columns = cohort_keys(cohort);
    columns.push(column(&hidden(CELL)).alias(hidden(PERIOD)));
    for name in [ACTIVE, CLOSED] {
        columns.push(when(real(), column(&hidden(name))).otherwise(lit(0_i64))?.alias(hidden(name)));
    }
    columns.push(column(&hidden(SIZE)));
    columns.push(when(real(), column(&hidden(METRIC))).otherwise(nothing(&cohort.metric, metric_type)?)?.alias(hidden(METRIC)));
    plan.project(columns)?.build()
}

/// The metric of no rows: zero of a count or a sum, NULL of anything else.
fn nothing(metric: &Expr, metric_type: &DataType) -> Result<Expr> {
    let added_up = |metric: &Expr| matches!(metric, Expr::AggregateFunction(call) if matches!(call.func.name(), "count" | "sum"));
    let inner = cast::operand(metric).unwrap_or(metric);
    Ok(match added_up(inner) {
        true => to(Expr::Literal(ScalarValue::Int32(Some(0)), None), metric_type.clone()),
        false => Expr::Literal(ScalarValue::try_from(metric_type)?, None),
    })
}

/// Running sums along a cohort's periods.
fn running(cohort: &Cohort, plan: LogicalPlan, metric_type: &DataType) -> Result<LogicalPlan> {
    let so_far = |expr: Expr, ascending: bool| {
        let frame = WindowFrame::new_bounds(
            WindowFrameUnits::Rows,
            WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
            WindowFrameBound::CurrentRow,
        );
        let order = vec![column(&hidden(PERIOD)).sort(ascending, false)];
        expr.partition_by(cohort_keys(cohort)).order_by(order).window_frame(frame).build()
    };
    let mut plan = LogicalPlanBuilder::from(plan);
    let mut active = column(&hidden(ACTIVE));
    if cohort.retention == Retention::OnOrAfter {
        let later = hidden("later");
        plan = plan.window(vec![so_far(over(sum_udaf(), column(&hidden(CLOSED))), false)?.alias(&later)])?;
        active = column(&later);
    }
    let mut metric = column(&hidden(METRIC));
    if cohort.cumulative {
        let total = hidden("total");
        plan = plan.window(vec![so_far(over(sum_udaf(), metric), true)?.alias(&total)])?;
        // A sum of counts stays a bigint.
        metric = match metric_type.is_integer() {
            true => to(column(&total), DataType::Int64),
            false => column(&total),
        };
    }
    let mut columns = cohort_keys(cohort);
    columns.extend([column(&hidden(PERIOD)), to(column(&hidden(SIZE)), DataType::Int64).alias(hidden(SIZE))]);
    columns.extend([to(active, DataType::Int64).alias(hidden(ACTIVE)), metric.alias(hidden(METRIC))]);
    plan.project(columns)?.build()
}

/// The columns after those of `group_by`.
pub const COLUMNS: [&str; 7] = ["cohort_date", "period", "cohort_size", "active_users", "metric", "retention", "complete"];

/// The operator's columns, in order.
fn shown(cohort: &Cohort, plan: LogicalPlan, date_type: &DataType) -> Result<LogicalPlan> {
    let share = |name: &str| Box::new(to(column(&hidden(name)), DataType::Float64));
    let retention = Expr::BinaryExpr(BinaryExpr::new(share(ACTIVE), Operator::Divide, share(SIZE)));
    let complete = cohort.period.has_ended((column(&hidden(DATE)), date_type), column(&hidden(PERIOD)), cohort.aligned);
    let groups = cohort.groups.iter().enumerate();
    let mut columns: Vec<Expr> = groups.map(|(index, (name, _))| column(&hidden(&rows::group(index))).alias(name)).collect();
    let own = [DATE, PERIOD, SIZE, ACTIVE, METRIC].map(|name| column(&hidden(name))).into_iter().chain([retention, complete]);
    columns.extend(own.zip(COLUMNS).map(|(value, name)| value.alias(name)));
    let shown = LogicalPlanBuilder::from(plan).project(columns)?;
    let sorted = shown.schema().columns().into_iter().take(cohort.groups.len() + 2).map(|key| Expr::Column(key).sort(true, false));
    let sorted = sorted.collect();
    ordered(shown, sorted)?.build()
}
