//! HOP and SESSION in a plan: what they stand for in relational algebra.
//!
//! *Place*: `query::bind` calls [`normalize`] on the analyzed plan, the engine calls [`lower`] before it optimizes. Views compile
//! what [`normalize`] gives, so that they see the windows themselves and not what they are lowered to.
//!
//! - `HOP(time, slide, size)` is a list of window starts per row, unnested below the aggregation (or the select list).
//! - `SESSION(time, gap)`: ordered by time within the other group keys, a session begins where the row before is more than `gap`
//!   ago, and the newest beginning so far is a row's session. It is then grouped by.
//! - `SESSION_END(time, gap)` is `gap` after the session's greatest time: [`normalize`] makes it of an aggregate.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::functions_aggregate::min_max::max_udaf;
use datafusion::functions_window::lead_lag::lag;
use datafusion::logical_expr::expr::{ScalarFunction, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Aggregate, Expr, ExprFunctionExt, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Projection, WindowFrame, WindowFunctionDefinition,
    when,
};

use super::functions::repeated::rows_of_lists;
use super::functions::window::{HOP, SESSION, SESSION_END, end_of, hop_starts, session_break};
use super::rewrite::SUFFIX;
use crate::error::{Error, SqlState};

/// Puts the ends of sessions in terms of an aggregate, and refuses windows where they mean nothing (42803).
pub fn normalize(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        check(&plan)?;
        match plan {
            LogicalPlan::Aggregate(aggregate) if has(&aggregate.group_expr, &[SESSION, SESSION_END])? => {
                sessions(aggregate).map(Transformed::yes)
            }
            other => Ok(Transformed::no(other)),
        }
    })
    .data()
}

/// Lowers the windows of a normalized plan.
pub fn lower(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        let plan = match plan {
            LogicalPlan::Aggregate(_) | LogicalPlan::Projection(_) => hops(plan)?,
            other => Transformed::no(other),
        };
        plan.transform_data(|plan| match plan {
            LogicalPlan::Aggregate(aggregate) if has(&aggregate.group_expr, &[SESSION])? => session_starts(aggregate).map(Transformed::yes),
            other => Ok(Transformed::no(other)),
        })
    })
    .data()
}

fn call_of<'a>(expr: &'a Expr, names: &[&str]) -> Option<&'a ScalarFunction> {
    match expr {
        Expr::ScalarFunction(call) if names.contains(&call.func.name()) => Some(call),
        _ => None,
    }
}

fn has(exprs: &[Expr], names: &[&str]) -> Result<bool> {
    for expr in exprs {
        if expr.exists(|node| Ok(call_of(node, names).is_some()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses windows outside of GROUP BY, and HOP outside of the select list.
fn check(plan: &LogicalPlan) -> Result<()> {
    let mut allowed: &[&str] = &[];
    let mut grouped = BTreeSet::new();
    match plan {
        LogicalPlan::Projection(_) => allowed = &[HOP],
        LogicalPlan::Aggregate(aggregate) => {
            allowed = &[HOP];
            grouped.extend(aggregate.group_expr.iter().map(ToString::to_string));
        }
        _ => {}
    }
    plan.apply_expressions(|expr| {
        let key = grouped.contains(&expr.to_string());
        expr.apply(|node| match call_of(node, &[HOP, SESSION, SESSION_END]) {
            Some(call) if !allowed.contains(&call.func.name()) && !key => Err(misplaced(call.func.name()).into()),
            Some(call) if has(&call.args, &[HOP, SESSION, SESSION_END])? => {
                Err(Error::unsupported("a window of a window is not supported").into())
            }
            _ => Ok(TreeNodeRecursion::Continue),
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn misplaced(name: &str) -> Error {
    let name = name.to_uppercase();
    Error::new(SqlState::GROUPING_ERROR, format!("{name} is not allowed outside of GROUP BY"))
        .hint(format!("Group by {name}(...), or use the table form FROM {}(...).", name.trim_end_matches("_END")))
}

/// The one call of a kind of window, by its arguments.
fn the_one<'a>(exprs: impl IntoIterator<Item = &'a Expr>, names: &[&str]) -> Result<Option<Vec<Expr>>> {
    let mut found: Option<Vec<Expr>> = None;
    for expr in exprs {
        expr.apply(|node| {
            if let Some(call) = call_of(node, names) {
                match &found {
                    Some(args) if *args != call.args => {
                        let name = names[0].to_uppercase();
                        return Err(Error::unsupported(format!("more than one {name} in one SELECT is not supported"))
                            .hint("Use a subquery for each.")
                            .into());
                    }
                    _ => found = Some(call.args.clone()),
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(found)
}

/// Groups by the session's start alone, and puts what derives from start and end above the aggregation.
fn sessions(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, mut aggr_expr, schema, .. } = aggregate;
    if group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return Err(Error::unsupported("SESSION with GROUPING SETS, CUBE or ROLLUP is not supported").into());
    }
    let Some(args) = the_one(&group_expr, &[SESSION, SESSION_END])? else {
        return Err(Error::internal("a session without a call").into());
    };
    let [time, gap] = <[Expr; 2]>::try_from(args).map_err(|_| Error::internal("SESSION takes two arguments"))?;
    let plain = |expr: &Expr| call_of(&expr.clone().unalias_nested().data, &[SESSION]).is_some();
    if !group_expr.iter().any(plain) {
        return Err(Error::new(SqlState::GROUPING_ERROR, "SESSION itself must be among the columns that are grouped by")
            .hint("Add SESSION(time, gap) to GROUP BY.")
            .into());
    }
    let mut keys = Vec::new();
    let mut derived = Vec::with_capacity(group_expr.len());
    for expr in group_expr {
        let own = plain(&expr) || !has(std::slice::from_ref(&expr), &[SESSION, SESSION_END])?;
        derived.push((!own).then(|| expr.clone().unalias_nested().data));
        if own {
            keys.push(expr);
        }
    }
    let last = format!("{SUFFIX}last");
    aggr_expr.push(max(time).alias(&last));
    let inner = Arc::new(Aggregate::try_new(input, keys, aggr_expr)?);
    let column = |index: usize| Expr::Column(Column::from(inner.schema.qualified_field(index)));
    let start = inner.group_expr.iter().position(plain).map(column).ok_or_else(|| Error::internal("a session without a start"))?;
    let last = Expr::Column(Column::new_unqualified(last));
    let mut columns = Vec::with_capacity(schema.fields().len());
    let mut next = 0..inner.schema.fields().len();
    let mut derived = derived.into_iter();
    for (qualifier, field) in schema.iter() {
        columns.push(match derived.next().flatten() {
            Some(expr) => expr
                .transform_up(|node| {
                    Ok(match call_of(&node, &[SESSION, SESSION_END]).map(|call| call.func.name() == SESSION) {
                        Some(true) => Transformed::yes(start.clone()),
                        Some(false) => Transformed::yes(end_of(last.clone(), gap.clone())),
                        None => Transformed::no(node),
                    })
                })
                .data()?
                .alias_qualified(qualifier.cloned(), field.name()),
            None => column(next.next().ok_or_else(|| Error::internal("a session's columns do not fit"))?),
        });
    }
    let inner = Arc::new(LogicalPlan::Aggregate(Arc::unwrap_or_clone(inner)));
    Ok(LogicalPlan::Projection(Projection::try_new(columns, inner)?))
}

/// Unnests the window starts below an aggregation or projection.
fn hops(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let exprs = plan.expressions();
    let Some(args) = the_one(&exprs, &[HOP])? else { return Ok(Transformed::no(plan)) };
    let [input] = plan.inputs()[..] else { return Err(Error::internal("HOP over several inputs").into()) };
    let mut needed: Vec<Column> = Vec::new();
    for expr in &exprs {
        for column in expr.column_refs() {
            if !needed.contains(column) {
                needed.push(column.clone());
            }
        }
    }
    // In the input's order, so that plans are the same from run to run.
    needed.sort_by_key(|column| input.schema().maybe_index_of_column(column));
    let window = Column::new_unqualified(format!("{SUFFIX}window"));
    let mut columns: Vec<Expr> = needed.into_iter().map(Expr::Column).collect();
    columns.push(hop_starts().call(args).alias(&window.name));
    let expanded = rows_of_lists(LogicalPlanBuilder::from(input.clone()).project(columns)?.unnest_column(window.clone())?.build()?)?;
    let names = NamePreserver::new(&plan);
    let exprs = exprs
        .into_iter()
        .map(|expr| {
            let name = names.save(&expr);
            let replaced = expr.transform_up(|node| {
                Ok(match call_of(&node, &[HOP]) {
                    Some(_) => Transformed::yes(Expr::Column(window.clone())),
                    None => Transformed::no(node),
                })
            })?;
            Ok(if replaced.transformed { name.restore(replaced.data) } else { replaced.data })
        })
        .collect::<Result<Vec<_>>>()?;
    plan.with_new_exprs(exprs, vec![expanded]).map(Transformed::yes)
}

/// Finds each row's session by window functions, and groups by it.
fn session_starts(aggregate: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, .. } = aggregate;
    let Some(args) = the_one(&group_expr, &[SESSION])? else { return Err(Error::internal("a session without a call").into()) };
    let [time, gap] = <[Expr; 2]>::try_from(args).map_err(|_| Error::internal("SESSION takes two arguments"))?;
    let plain = |expr: &Expr| call_of(&expr.clone().unalias_nested().data, &[SESSION]).is_some();
    let others: Vec<Expr> = group_expr.iter().filter(|expr| !plain(expr)).map(|expr| expr.clone().unalias_nested().data).collect();
    let over = |expr: Expr| {
        // By RANGE: rows of one time are of one session, whichever of them begins it.
        let builder = expr.order_by(vec![time.clone().sort(true, false)]).window_frame(WindowFrame::new(Some(false)));
        if others.is_empty() { builder.build() } else { builder.partition_by(others.clone()).build() }
    };
    let (before, start) = (format!("{SUFFIX}before"), format!("{SUFFIX}start"));
    let previous = over(lag(time.clone(), Some(1), None))?.alias(&before);
    let breaks = session_break().call(vec![time.clone(), Expr::Column(Column::new_unqualified(before)), gap]);
    let newest = Expr::from(WindowFunction::new(WindowFunctionDefinition::AggregateUDF(max_udaf()), vec![breaks]));
    let newest = over(newest)?.alias(&start);
    let input = LogicalPlanBuilder::from(input).window(vec![previous])?.window(vec![newest])?.build()?;
    // Rows without a time stand last and have no session.
    let none = Expr::Literal(ScalarValue::try_from(&time.get_type(input.schema())?)?, None);
    let session = when(time.is_null(), none).otherwise(Expr::Column(Column::new_unqualified(start)))?;
    let keys = group_expr
        .into_iter()
        .map(|expr| {
            let name = expr.qualified_name();
            if plain(&expr) { session.clone().alias_qualified(name.0, name.1) } else { expr }
        })
        .collect();
    Ok(LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), keys, aggr_expr)?))
}
