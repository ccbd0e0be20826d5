//! A materialized view's output as of a snapshot.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::view::Version;

/// Reads one version of a view.
#[derive(Debug)]
pub struct ViewRows {
    version: Arc<Version>,
    state: Arc<SessionState>,
    schema: SchemaRef,
}

impl ViewRows {
    /// The groups of `version`.
    pub fn new(version: Arc<Version>, state: Arc<SessionState>, schema: SchemaRef) -> Self {
        Self { version, state, schema }
    }
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
        Ok(self.version.scan(&self.state, projection, filters, limit)?)
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
