//! Planning and running SQL over one snapshot.
//!
//! *Place*: `command` calls it; it implements `catalog::bind::Binder` for the layers below.
//!
//! A query's way: `ast::Query` -> [`rewrite`] -> DataFusion's SQL planner over a [`scope`] -> [`typing`] -> type coercion ->
//! [`Bound`] -> [`resolve`] (parameters, NOW(), snapshot) -> [`route`] (views) -> DataFusion's optimizer -> [`stream`] of batches.
//!
//! *Invariants*: (1) a [`Bound`] holds no snapshot, no time and no session; (2) everything runs on the cpu runtime; (3) an
//! error leaves through [`error::from_datafusion`]; (4) arithmetic is checked.

mod aliases;
mod arrival;
pub mod bind;
pub mod catalogs;
mod differ;
mod distinct;
pub mod engine;
pub mod error;
pub mod explain;
pub mod follow;
pub mod functions;
mod guards;
pub mod names;
pub mod operator;
mod parameters;
pub mod provider;
pub mod resolve;
pub mod rewrite;
pub mod route;
pub mod scope;
pub mod sets;
pub mod stream;
pub mod system;
pub mod typing;
pub mod using;
mod watch;
pub mod windows;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::logical_expr::LogicalPlan;

use crate::clock::Micros;
use crate::store::Snapshot;
use crate::types::SqlType;
pub use engine::Engine;
pub use explain::ExplainOptions;
pub use system::SystemTables;

/// What a statement may know about its session.
#[derive(Clone, Debug)]
pub struct Context {
    /// What is visible.
    pub snapshot: Arc<Snapshot>,
    /// NOW(), CURRENT_TIMESTAMP: the transaction's start.
    pub now: Micros,
    /// Session time zone, an IANA name or an offset such as `+02:00`.
    pub time_zone: String,
    /// CURRENT_USER.
    pub user: String,
    /// pg_backend_pid().
    pub backend: i32,
    /// All session variables, for current_setting() and pg_settings.
    pub settings: Arc<std::collections::BTreeMap<String, String>>,
}

impl Bound {
    /// Whether the plan holds nothing of the session that it was bound in: no system table, no function over the catalogs.
    pub fn is_portable(&self) -> bool {
        use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
        let mut portable = self.explain.is_none();
        let walked = self.plan.apply_with_subqueries(|plan| {
            if let LogicalPlan::TableScan(scan) = plan
                && let Some(unresolved) = scan.source.downcast_ref::<provider::Unresolved>()
                && matches!(unresolved.relation, provider::Relation::System { .. })
            {
                portable = false;
            }
            plan.apply_expressions(|expression| {
                portable &= !expression.exists(|expression| {
                    Ok(matches!(expression, datafusion::logical_expr::Expr::ScalarFunction(function) if catalogs::functions::is_one(&function.func)))
                })?;
                Ok(TreeNodeRecursion::Continue)
            })
        });
        portable && walked.is_ok()
    }
}

/// A typed plan, reusable with other parameter values, in other sessions and on later snapshots of the same catalog.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Analyzed, not optimized: NOW(), the time zone and parameters are still in it.
    pub plan: LogicalPlan,
    /// Output columns, with [`crate::types::TYPE_KEY`] metadata.
    pub schema: SchemaRef,
    /// Types of $1, $2, ...
    pub parameters: Vec<SqlType>,
    /// Set when the plan is to be explained; `schema` is then the one column `QUERY PLAN`.
    pub explain: Option<ExplainOptions>,
}
