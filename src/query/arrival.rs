//! Aggregates whose value depends on the order of rows see a table's rows in the order of their arrival.
//!
//! *Place*: the engine calls [`ordered`] on what is to be run, after views were routed to: a view has seen its rows in this order.
//!
//! Files are clustered by time, so a scan gives rows in another order than they came in. Where a call leaves the order open, the
//! rows' sequence numbers are brought along as a hidden column and become its ORDER BY. Other queries are not
//! touched, nor are rows that do not come from one table: they have no such order.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::{AggregateFunction, Sort};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan};

use super::operator::input::Input;

/// Aggregates that see the order of rows.
const ORDERED: [&str; 4] = ["array_agg", "string_agg", "first_value", "last_value"];

/// The plan with the order of arrival where it matters.
pub fn ordered(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Aggregate(aggregate) if has_open(&aggregate.aggr_expr)? && !is_sorted(&aggregate.input) => by_arrival(aggregate),
        other => Ok(Transformed::no(other)),
    })
    .data()
}

fn by_arrival(aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
    let input = Input::of(aggregate.input.as_ref().clone())?;
    let Some(arrival) = &input.arrival else { return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))) };
    let names = NamePreserver::new_for_projection();
    let calls = aggregate.aggr_expr.into_iter().map(|expr| {
        let name = names.save(&expr);
        Ok(name.restore(expr.transform_up(|expr| Ok(settled(expr, arrival))).data()?))
    });
    let calls = calls.collect::<Result<Vec<_>>>()?;
    Aggregate::try_new_with_schema(Arc::new(input.plan), aggregate.group_expr, calls, aggregate.schema)
        .map(|aggregate| Transformed::yes(LogicalPlan::Aggregate(aggregate)))
}

fn settled(expr: Expr, arrival: &Column) -> Transformed<Expr> {
    match expr {
        Expr::AggregateFunction(mut call) if is_open(&call) => {
            call.params.order_by.push(Sort { expr: Expr::Column(arrival.clone()), asc: true, nulls_first: false });
            Transformed::yes(Expr::AggregateFunction(call))
        }
        other => Transformed::no(other),
    }
}

fn has_open(calls: &[Expr]) -> Result<bool> {
    for call in calls {
        if call.exists(|expr| Ok(matches!(expr, Expr::AggregateFunction(call) if is_open(call))))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a call's value depends on an order that it does not give. With an ORDER BY, ties are left to whoever wrote it.
fn is_open(call: &AggregateFunction) -> bool {
    ORDERED.contains(&call.func.name()) && call.params.order_by.is_empty() && !call.params.distinct
}

/// Whether rows have an order of their own, by a subquery's ORDER BY.
fn is_sorted(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Unnest(_) => plan.inputs().into_iter().any(is_sorted),
        _ => false,
    }
}
