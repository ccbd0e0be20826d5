//! Rows in an order that stays: the SQL planner drops what sorts a relation in FROM, unless a limit is above it.
//!
//! *Place*: operators whose rows are read as a table are printed. A limit of nothing is dropped in turn by the optimizer, the sort then
//! stays where nothing above it changes the order.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::logical_expr::{Limit, LogicalPlan, LogicalPlanBuilder, SortExpr};

/// The rows in order.
pub fn ordered(plan: LogicalPlanBuilder, by: Vec<SortExpr>) -> Result<LogicalPlanBuilder> {
    let input = Arc::new(plan.sort(by)?.build()?);
    Ok(LogicalPlanBuilder::from(LogicalPlan::Limit(Limit { skip: None, fetch: None, input })))
}
