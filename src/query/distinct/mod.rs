//! COUNT(DISTINCT) beside other aggregates.
//!
//! *Place*: stands in for DataFusion's rule in both of the engine's rule lists.
//!
//! That rule turns one DISTINCT aggregate into two groupings and sums the others' partial sums again. Here `sum` has a wider
//! type than its argument, so a sum of sums would have another type than the query announced: such plans keep one grouping, and
//! texts are counted by [`values`].

pub mod sorted;
mod values;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::single_distinct_to_groupby::SingleDistinctToGroupBy;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};

use values::count_distinct;

/// DataFusion's rule, for plans whose other aggregates keep their type.
#[derive(Debug, Default)]
pub struct SingleDistinct(SingleDistinctToGroupBy);

impl OptimizerRule for SingleDistinct {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let done = match &plan {
            LogicalPlan::Aggregate(aggregate) if aggregate.aggr_expr.iter().any(changes_type) => Transformed::no(plan),
            _ => self.0.rewrite(plan, config)?,
        };
        if done.transformed { Ok(done) } else { count_texts(done.data) }
    }
}

fn changes_type(expression: &Expr) -> bool {
    match expression {
        Expr::Alias(alias) => changes_type(&alias.expr),
        Expr::AggregateFunction(call) => !call.params.distinct && !matches!(call.func.name(), "min" | "max"),
        _ => true,
    }
}

/// Puts [`values::count_distinct`] in the place of `count(DISTINCT text)`.
fn count_texts(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(Transformed::no(plan)) };
    let is_text = |call: &AggregateFunction| {
        let [argument] = call.params.args.as_slice() else { return false };
        let counts = call.params.distinct && call.params.order_by.is_empty() && call.func.name() == "count";
        counts && matches!(argument.get_type(aggregate.input.schema()), Ok(DataType::Utf8View | DataType::Binary))
    };
    let is_meant = |expression: &Expr| match expression {
        Expr::Alias(alias) => matches!(alias.expr.as_ref(), Expr::AggregateFunction(call) if is_text(call)),
        Expr::AggregateFunction(call) => is_text(call),
        _ => false,
    };
    if !aggregate.aggr_expr.iter().any(is_meant) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let replaced = aggregate.aggr_expr.iter().map(|expression| {
        if !is_meant(expression) {
            return expression.clone();
        }
        let name = expression.schema_name().to_string();
        let call = expression.clone().unalias();
        let Expr::AggregateFunction(mut call) = call else { return expression.clone() };
        call.func = count_distinct();
        call.params.distinct = false;
        Expr::AggregateFunction(call).alias(name)
    });
    let replaced: Vec<Expr> = replaced.collect();
    let Aggregate { input, group_expr, schema, .. } = aggregate;
    Aggregate::try_new_with_schema(input, group_expr, replaced, schema).map(|aggregate| Transformed::yes(LogicalPlan::Aggregate(aggregate)))
}

/// DataFusion's rules with this one in its place.
pub fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let own: Arc<dyn OptimizerRule + Send + Sync> = Arc::new(SingleDistinct::default());
    Optimizer::new().rules.into_iter().map(|rule| if rule.name() == own.name() { Arc::clone(&own) } else { rule }).collect()
}
