//! What the plan of an input tells about its values: whether they add up.

use datafusion::logical_expr::{Expr, LogicalPlan, Operator};

use crate::query::functions::cast;

/// Whether an expression is made of counts and sums, which are zero where there are no rows: Some(true). Some(false) when it is another
/// aggregate, None when the plan does not say.
pub fn is_additive(expression: &Expr, plan: &LogicalPlan) -> Option<bool> {
    if let Some(operand) = cast::operand(expression) {
        return is_additive(operand, plan);
    }
    match expression {
        Expr::Alias(alias) => is_additive(&alias.expr, plan),
        Expr::Column(column) => below(plan, plan.schema().maybe_index_of_column(column)?),
        Expr::AggregateFunction(call) => Some(matches!(call.func.name(), "count" | "sum" | "approx_distinct")),
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::Plus | Operator::Minus) => {
            Some(is_additive(&binary.left, plan)? && is_additive(&binary.right, plan)?)
        }
        Expr::BinaryExpr(binary) => {
            let known = is_additive(&binary.left, plan).or_else(|| is_additive(&binary.right, plan))?;
            let constant = |side: &Expr| side.column_refs().is_empty();
            Some(known && binary.op == Operator::Multiply && (constant(&binary.left) || constant(&binary.right)))
        }
        // coalesce(sum(x), 0) and other functions of one measure.
        Expr::ScalarFunction(call) if call.func.name() == "coalesce" => is_additive(call.args.first()?, plan),
        _ => None,
    }
}

/// The same of a column of a plan's output, by what is below it.
fn below(plan: &LogicalPlan, index: usize) -> Option<bool> {
    match plan {
        LogicalPlan::Projection(projection) => is_additive(projection.expr.get(index)?, &projection.input),
        LogicalPlan::SubqueryAlias(alias) => below(&alias.input, index),
        LogicalPlan::Filter(filter) => below(&filter.input, index),
        LogicalPlan::Sort(sort) => below(&sort.input, index),
        LogicalPlan::Limit(limit) => below(&limit.input, index),
        LogicalPlan::Aggregate(aggregate) => {
            let measure = index.checked_sub(aggregate.group_expr.len())?;
            is_additive(aggregate.aggr_expr.get(measure)?, &aggregate.input)
        }
        _ => None,
    }
}
