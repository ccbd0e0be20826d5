//! A view without aggregate state: its bound query and, for a refreshed one, its last result.
//!
//! *Place*: every snapshot holds one per such view; `query::provider` reads it, `store::refresh` replaces its result.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::blocks::Blocks;
use super::failure::failure;
use super::local::Local;
use super::result::Stored;
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Maintenance, View};
use crate::clock::CLOCK_FUNCTION;
use crate::error::Result;

/// A derived or refreshed view as of a snapshot.
#[derive(Clone, Debug)]
pub struct Recomputed {
    /// The definition.
    pub view: Arc<View>,
    /// Its query, bound to names: what it scans is found in the snapshot that a run reads.
    pub plan: LogicalPlan,
    /// The last complete result of a refreshed view; none before the first.
    pub result: Option<Arc<Stored>>,
    /// How the windows of a refreshed view are cut, where each depends on its own rows alone.
    pub local: Option<Arc<Local>>,
    /// Whether it says what has ended by the [`CLOCK_FUNCTION`].
    pub reads_clock: bool,
}

impl Recomputed {
    /// Binds a view's query. A refreshed view has no result yet.
    pub fn bind(binder: &dyn Binder, catalog: &Arc<Catalog>, view: &Arc<View>) -> Result<Recomputed> {
        let plan = binder.bind_query(&catalog.narrowed(view), view.derivation.as_ref().unwrap_or(&view.query))?;
        let reads_clock = reads_clock(&plan)?;
        let local = match view.maintenance {
            // The clock goes on for windows without new rows too.
            Maintenance::Refreshed if reads_clock => None,
            Maintenance::Refreshed => Local::of(catalog, &plan).map(Arc::new),
            Maintenance::State | Maintenance::Derived => None,
        };
        Ok(Recomputed { view: Arc::clone(view), plan, result: None, local, reads_clock })
    }

    /// With the result that is stored, if there is one.
    pub fn open(self, home: &Arc<Blocks>) -> Result<Recomputed> {
        if self.view.maintenance != Maintenance::Refreshed {
            return Ok(self);
        }
        let result = Stored::open(&self.view, home)?.map(Arc::new);
        Ok(Recomputed { result, ..self })
    }
}

fn reads_clock(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            found |= expression.exists(|part| Ok(matches!(part, Expr::ScalarFunction(call) if call.func.name() == CLOCK_FUNCTION)))?;
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })
    .map_err(failure)?;
    Ok(found)
}
