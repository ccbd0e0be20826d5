//! From the logical node to the physical one.
//!
//! *Place*: the engine's query planner, for every plan that runs.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::exec::{Frame, Observed, SeriesExec};
use super::node::Series;
use crate::error::Error;
use crate::query::functions::zone;

/// DataFusion's planner with the nodes of this module.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Most points of a series.
    pub points_max: usize,
}

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(self.clone())]);
        planner.create_physical_plan(plan, session).await
    }
}

#[async_trait]
impl ExtensionPlanner for Planner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        _session: &dyn Session,
        _context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(series), [input]) = (node.as_any().downcast_ref::<Series>(), physical_inputs) else { return Ok(None) };
        // A resolved expression keeps its name as an alias.
        let (zone, now) = match (series.zone.clone().unalias(), series.now.clone().unalias()) {
            (Expr::Literal(name, _), Expr::Literal(ScalarValue::TimestampMicrosecond(Some(now), _), _)) => {
                (zone::parse(name.try_as_str().flatten().unwrap_or_default())?, now)
            }
            _ => return Err(Error::internal("the time or time zone of a computation over series is open").into()),
        };
        let frame = Frame::new(zone, now, self.points_max);
        let observed = Arc::new(Observed::new(Arc::clone(input), series.spec.keys, Arc::clone(&frame)));
        let schema = Arc::new(UserDefinedLogicalNode::schema(series).as_arrow().clone());
        Ok(Some(Arc::new(SeriesExec::new(observed, Arc::clone(&series.spec), schema, frame)?)))
    }
}
