//! COUNT(DISTINCT) beside other aggregates.
//!
//! *Place*: stands in for DataFusion's rule in both of the engine's rule lists.
//!
//! That rule turns one DISTINCT aggregate into two groupings and sums the others' partial sums again. Here `sum` has a wider
//! type than its argument, so a sum of sums would have another type than the query announced: such plans stay as they are.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::single_distinct_to_groupby::SingleDistinctToGroupBy;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};

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
        match &plan {
            LogicalPlan::Aggregate(aggregate) if aggregate.aggr_expr.iter().any(changes_type) => Ok(Transformed::no(plan)),
            _ => self.0.rewrite(plan, config),
        }
    }
}

fn changes_type(expression: &Expr) -> bool {
    match expression {
        Expr::Alias(alias) => changes_type(&alias.expr),
        Expr::AggregateFunction(call) => !call.params.distinct && !matches!(call.func.name(), "min" | "max"),
        _ => true,
    }
}

/// DataFusion's rules with this one in its place.
pub fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let own: Arc<dyn OptimizerRule + Send + Sync> = Arc::new(SingleDistinct::default());
    Optimizer::new().rules.into_iter().map(|rule| if rule.name() == own.name() { Arc::clone(&own) } else { rule }).collect()
}
