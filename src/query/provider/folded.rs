//! The upper aggregation of a view of an operator, kept in memory: its groups as of a snapshot.
//!
//! *Place*: [`super::recomputed::Derived`] scans it in the place of that aggregation. The groups are moved to the snapshot when the plan runs.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use crate::view::Version;

/// Which groups.
#[derive(Clone)]
pub struct Folded {
    version: Arc<Version>,
    lsn: u64,
    state: Arc<SessionState>,
    schema: SchemaRef,
}

impl fmt::Debug for Folded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folded").field("lsn", &self.lsn).finish_non_exhaustive()
    }
}

impl Folded {
    /// Those of `version`, a published one, which is the newest at `lsn`; none where they are not kept.
    pub fn new(version: &Arc<Version>, lsn: u64, state: &Arc<SessionState>) -> Option<Folded> {
        let schema = version.spec.upper()?.folded_schema().filter(|_| version.folds())?;
        Some(Folded { version: Arc::clone(version), lsn, state: Arc::clone(state), schema })
    }
}

#[async_trait]
impl TableProvider for Folded {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(&self, _: &dyn Session, projection: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&projection)?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Ok(Arc::new(FoldedScan { folded: self.clone(), projection, properties }))
    }
}

#[derive(Debug)]
struct FoldedScan {
    folded: Folded,
    projection: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for FoldedScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FoldedScan: view={}", self.folded.version.spec.view.name)
    }
}

impl ExecutionPlan for FoldedScan {
    fn name(&self) -> &str {
        "FoldedScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (folded, projection) = (self.folded.clone(), self.projection.clone());
        let batches = stream::once(async move {
            let groups = folded.version.folded(folded.lsn, &folded.state, context.memory_pool()).map_err(DataFusionError::from)?;
            Ok(groups.project(&projection)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}
