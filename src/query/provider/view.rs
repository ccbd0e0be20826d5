//! A materialized view's output as of a snapshot: from its state, and for windows that are not in it from its table's rows.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, Result, ScalarValue, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableScan, TableType, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::rows::Rows;
use crate::store::TableState;
use crate::types::LSN_COLUMN;
use crate::view::{Evicted, Version};

/// Reads one version of a view.
#[derive(Debug)]
pub struct ViewRows {
    version: Arc<Version>,
    /// The table of the same snapshot.
    table: Option<Arc<TableState>>,
    state: Arc<SessionState>,
    schema: SchemaRef,
}

impl ViewRows {
    /// The groups of `version`, a view of `table`.
    pub fn new(version: Arc<Version>, table: Option<Arc<TableState>>, state: Arc<SessionState>, schema: SchemaRef) -> Self {
        Self { version, table, state, schema }
    }

    /// The version.
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// The defining query over the rows of evicted windows, with output columns by `projection`.
    async fn over_rows(&self, evicted: Evicted, projection: Option<&Vec<usize>>, filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>> {
        let query = self.version.spec.matching().and_then(|matching| matching.plan.clone());
        let Some(query) = query else { return internal_err!("windows of a view without a known query") };
        let query = query.transform_down(|node| match node {
            LogicalPlan::TableScan(scan) => self.windows(&scan, evicted),
            other => Ok(Transformed::no(other)),
        });
        let query = query.data()?;
        let columns = query.schema().columns().into_iter().zip(self.schema.fields());
        let columns: Vec<Expr> =
            columns.map(|(column, field)| in_type(Expr::Column(column), field.data_type()).alias(field.name())).collect();
        let mut plan = LogicalPlanBuilder::from(query).project(columns)?;
        let filters = filters.iter().map(unqualified).collect::<Result<Vec<_>>>()?;
        if let Some(filter) = conjunction(filters) {
            plan = plan.filter(filter)?;
        }
        if let Some(projection) = projection {
            let column = |index: &usize| Expr::Column(Column::new_unqualified(self.schema.field(*index).name()));
            plan = plan.project(projection.iter().map(column).collect::<Vec<_>>())?;
        }
        let plan = self.state.optimize(&plan.build()?)?;
        self.state.query_planner().create_physical_plan(&plan, self.state.as_ref()).await
    }

    /// The rows of evicted windows in place of the whole table.
    fn windows(&self, scan: &TableScan, evicted: Evicted) -> Result<Transformed<LogicalPlan>> {
        let Some(table) = &self.table else { return internal_err!("a view without its table") };
        let rows = Rows::new(Arc::clone(table), Arc::clone(&self.state), table.table.schema()).with_lsn();
        let wide = LogicalPlanBuilder::scan(scan.table_name.clone(), provider_as_source(Arc::new(rows)), None)?;
        let column = |name: &str| Expr::Column(Column::new(Some(scan.table_name.clone()), name));
        let Some(time) = table.table.watermark.and_then(|watermark| table.table.columns.get(watermark.column)) else {
            return internal_err!("a view's table without event time");
        };
        let zone = match time.sql_type.arrow() {
            DataType::Timestamp(_, zone) => zone,
            _ => None,
        };
        let bound = |time_us| Expr::Literal(ScalarValue::TimestampMicrosecond(Some(time_us), zone.clone()), None);
        let mut filter = column(&time.name).lt(bound(evicted.to_us));
        if evicted.from_us != i64::MIN {
            filter = filter.and(column(&time.name).gt_eq(bound(evicted.from_us)));
        }
        let since = self.version.spec.view.from_lsn;
        if since > 0 {
            filter = filter.and(column(LSN_COLUMN).gt_eq(lit(i64::try_from(since).unwrap_or(i64::MAX))));
        }
        let shown: Vec<Expr> = scan.projected_schema.columns().into_iter().map(Expr::Column).collect();
        let plan = wide.filter(filter)?.project(shown)?.build()?;
        Ok(Transformed::new(plan, true, datafusion::common::tree_node::TreeNodeRecursion::Jump))
    }
}

fn in_type(column: Expr, data_type: &DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(column), data_type.clone()))
}

/// An expression without qualifiers.
pub(in crate::query) fn unqualified(filter: &Expr) -> Result<Expr> {
    filter
        .clone()
        .transform_up(|node| match node {
            Expr::Column(mut column) => {
                column.relation = None;
                Ok(Transformed::yes(Expr::Column(column)))
            }
            other => Ok(Transformed::no(other)),
        })
        .data()
}

#[async_trait]
impl TableProvider for ViewRows {
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
        let kept = self.version.scan(&self.state, projection, filters, limit)?;
        match self.version.asked_of_rows(&self.state, filters)? {
            None => Ok(kept),
            Some(evicted) => UnionExec::try_new(vec![kept, self.over_rows(evicted, projection, filters).await?]),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let spec = &self.version.spec;
        Ok(filters
            .iter()
            .map(|filter| match spec.filters_exactly(filter) {
                true => TableProviderFilterPushDown::Exact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }
}
