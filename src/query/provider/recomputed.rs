//! Views without aggregate state: one that is computed from the view below it, one that has a stored result.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;

use crate::catalog::View;
use crate::error::{Error, SqlState};
use crate::query::Context;
use crate::query::functions::session::Values;
use crate::query::provider::folded::Folded;
use crate::query::provider::view::ViewRows;
use crate::query::resolve::Resolver;
use crate::query::system::SystemTables;
use crate::query::windows;
use crate::types::UTC;
use crate::view::{Recomputed, Upper, Version};

/// Computes a view from the state of the view that it reads, as of the same snapshot, or from the groups that it keeps itself.
#[derive(Debug)]
pub struct Derived {
    view: Arc<View>,
    plan: LogicalPlan,
    context: Context,
    state: Arc<SessionState>,
    system: Option<Arc<dyn SystemTables>>,
    schema: SchemaRef,
}

impl Derived {
    /// The rows of `recomputed`'s query over the snapshot of `context`.
    pub fn new(
        recomputed: &Recomputed,
        context: &Context,
        state: Arc<SessionState>,
        system: Option<&Arc<dyn SystemTables>>,
        schema: SchemaRef,
    ) -> Self {
        let (view, plan) = (Arc::clone(&recomputed.view), recomputed.plan.clone());
        Self { view, plan, context: context.clone(), state, system: system.cloned(), schema }
    }

    /// What a view is over the groups of `version`.
    pub fn over_groups(
        version: &Arc<Version>,
        upper: &Upper,
        context: &Context,
        state: Arc<SessionState>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let snapshot = &context.snapshot;
        // Rows of an open transaction are its own: what all share is not moved to them.
        let folded = Folded::new(version, snapshot.next_lsn, &state).filter(|_| snapshot.own_from.is_none());
        let plan = match folded {
            Some(folded) => upper.over_folded(provider_as_source(Arc::new(folded)))?,
            None => {
                let groups = ViewRows::new(Arc::clone(version), None, Arc::clone(&state), version.spec.schema());
                upper.over(provider_as_source(Arc::new(groups)))?
            }
        };
        Ok(Self { view: Arc::clone(&version.spec.view), plan, context: context.clone(), state, system: None, schema })
    }

    /// The view.
    pub fn view(&self) -> &View {
        &self.view
    }
}

#[async_trait]
impl TableProvider for Derived {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let context = &self.context;
        let resolver = Resolver {
            values: Some(Values {
                now: context.now,
                time_zone: UTC,
                user: &context.user,
                backend: context.backend,
                settings: &context.settings,
            }),
            time_zone: UTC,
            parameters: &[],
            relations: Some((context, &self.state, self.system.as_ref())),
        };
        let plan = windows::lower(resolver.plan(self.plan.clone())?)?;
        let columns: Vec<Expr> = plan
            .schema()
            .iter()
            .zip(self.schema.fields())
            .map(|(found, declared)| Expr::Column(found.into()).alias(declared.name()))
            .collect();
        let mut builder = LogicalPlanBuilder::from(plan).project(columns)?;
        for filter in filters {
            builder = builder.filter(filter.clone())?;
        }
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let shown: Vec<Expr> =
            projection.iter().map(|index| Expr::Column(Column::new_unqualified(self.schema.field(*index).name()))).collect();
        let plan = builder.project(shown)?.limit(0, limit)?.build()?;
        let plan = self.state.optimizer().optimize(plan, self.state.as_ref(), |_, _| {})?;
        let input = self.state.query_planner().create_physical_plan(&plan, self.state.as_ref()).await?;
        Ok(Arc::new(Shown::new(&self.view, input, Arc::new(self.schema.project(&projection)?))))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let outer = |filter: &Expr| {
            filter.exists(|node| {
                Ok(matches!(
                    node,
                    Expr::OuterReferenceColumn(..)
                        | Expr::ScalarSubquery(_)
                        | Expr::InSubquery(_)
                        | Expr::Exists(_)
                        | Expr::SetComparison(_)
                ))
            })
        };
        filters
            .iter()
            .map(|filter| match outer(filter)? || filter.is_volatile() {
                true => Ok(TableProviderFilterPushDown::Unsupported),
                false => Ok(TableProviderFilterPushDown::Exact),
            })
            .collect()
    }
}

/// A derived view's plan under the view's declared schema.
#[derive(Debug)]
struct Shown {
    label: String,
    input: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl Shown {
    fn new(view: &View, input: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Self {
        let reason = view.reason.as_ref().map(|reason| format!(", reason={reason:?}")).unwrap_or_default();
        let label = format!("view={}, maintenance=incremental{reason}", view.name);
        Self::labelled(label, input, schema)
    }

    fn labelled(label: String, input: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Self {
        let below = input.properties();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            datafusion::physical_expr::Partitioning::UnknownPartitioning(below.partitioning.partition_count()),
            below.emission_type,
            below.boundedness,
        ));
        Self { label, input, schema, properties }
    }
}

impl DisplayAs for Shown {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DerivedView: {}", self.label)
    }
}

impl ExecutionPlan for Shown {
    fn name(&self) -> &str {
        "DerivedView"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| Error::internal("a derived view without a plan"))?;
        Ok(Arc::new(Self::labelled(self.label.clone(), input, Arc::clone(&self.schema))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = Arc::clone(&self.schema);
        let shown = self.input.execute(partition, context)?.map(move |batch| {
            let batch = batch?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), batch.columns().to_vec(), &options)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), shown)))
    }
}

/// Reads the last result of a refreshed view.
#[derive(Debug)]
pub struct ResultRows {
    recomputed: Arc<Recomputed>,
    state: Arc<SessionState>,
    schema: SchemaRef,
}

impl ResultRows {
    /// The result that `recomputed` has. 55000 when it has none.
    pub fn new(recomputed: Arc<Recomputed>, state: Arc<SessionState>, schema: SchemaRef) -> Result<Self, Error> {
        if recomputed.result.is_none() {
            let message = format!("materialized view \"{}\" has not been populated", recomputed.view.name);
            return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message).hint("Use the REFRESH MATERIALIZED VIEW command."));
        }
        Ok(Self { recomputed, state, schema })
    }
}

#[async_trait]
impl TableProvider for ResultRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let result = self.recomputed.result.as_ref().ok_or_else(|| Error::internal("a view without a result is read"))?;
        let partitions = self.state.config().target_partitions();
        Ok(result.scan(&self.recomputed.view, &self.schema, projection, partitions)?)
    }
}
