//! Expressions in GROUPING SETS, ROLLUP and CUBE.
//!
//! *Place*: `query::typing` calls it for aggregations, before anything in them is typed.
//!
//! A key that is typed keeps its name by an alias, which an expression within a grouping set cannot have: so such keys are columns,
//! computed below the aggregation under the names that the plan above knows them by.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::GroupingSet;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection};

/// The keys and calls of an aggregation without its input.
pub type Rest = (Vec<Expr>, Vec<Expr>);

fn of_set(key: &Expr) -> Vec<&Expr> {
    match key {
        Expr::GroupingSet(GroupingSet::Rollup(keys) | GroupingSet::Cube(keys)) => keys.iter().collect(),
        Expr::GroupingSet(GroupingSet::GroupingSets(sets)) => sets.iter().flatten().collect(),
        _ => Vec::new(),
    }
}

/// Whether a grouping set has something else than columns. Sessions are refused where windows are planned.
pub fn has_expressions(aggregate: &Aggregate) -> bool {
    let is_session = |key: &Expr| matches!(key, Expr::ScalarFunction(call) if matches!(call.func.name(), "session" | "session_end"));
    let keys: Vec<&Expr> = aggregate.group_expr.iter().flat_map(of_set).collect();
    keys.iter().any(|key| !matches!(key, Expr::Column(_))) && !keys.into_iter().any(is_session)
}

/// The input with the keys as columns, and what is computed over it.
pub fn computed(aggregate: Aggregate) -> Result<(LogicalPlan, Rest)> {
    let Aggregate { input, group_expr, aggr_expr, .. } = aggregate;
    let mut keys: Vec<Expr> = Vec::new();
    for key in group_expr.iter().flat_map(of_set) {
        if !matches!(key, Expr::Column(_)) && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let named = |key: &Expr| key.schema_name().to_string();
    let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    columns.extend(keys.iter().map(|key| key.clone().unalias().alias(named(key))));
    let as_column = |expression: Expr| match keys.contains(&expression) {
        true => Transformed::yes(Expr::Column(Column::new_unqualified(named(&expression)))),
        false => Transformed::no(expression),
    };
    let replaced = |expression: Expr| expression.transform_down(|inner| Ok(as_column(inner))).data();
    let group = group_expr.into_iter().map(|key| if of_set(&key).is_empty() { Ok(key) } else { replaced(key) });
    let group = group.collect::<Result<Vec<_>>>()?;
    // GROUPING(key) asks for a key by what it is.
    let is_grouping = |call: &Expr| matches!(call, Expr::AggregateFunction(call) if call.func.name() == "grouping");
    let calls = aggr_expr.into_iter().map(|call| if is_grouping(&call) { replaced(call) } else { Ok(call) });
    let calls = calls.collect::<Result<Vec<_>>>()?;
    Ok((LogicalPlan::Projection(Projection::try_new(columns, input)?), (group, calls)))
}

/// The aggregation over its input.
pub fn over(input: LogicalPlan, (group, calls): Rest) -> Result<LogicalPlan> {
    Aggregate::try_new(Arc::new(input), group, calls).map(LogicalPlan::Aggregate)
}
