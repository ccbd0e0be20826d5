//! A materialized view's raw states, or its groups' values, as of a snapshot, for queries that are routed to it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::view::unqualified;
use crate::view::Version;

/// Reads one version's states: keys `k0`, `k1`, ..., then one struct of state columns for each aggregate, `s0`, `s1`, ...; or its groups:
/// the keys, then the aggregates' values.
#[derive(Debug)]
pub struct ViewStates {
    version: Arc<Version>,
    state: Arc<SessionState>,
    schema: SchemaRef,
    are_merged: bool,
}

impl ViewStates {
    /// The states of `version`.
    pub fn new(version: Arc<Version>, state: Arc<SessionState>) -> Self {
        let schema = version.spec.states_schema();
        Self { version, state, schema, are_merged: false }
    }

    /// The groups of `version`, in columns of `schema`.
    pub fn merged(version: Arc<Version>, state: Arc<SessionState>, schema: SchemaRef) -> Self {
        Self { version, state, schema, are_merged: true }
    }

    /// The version.
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }
}

#[async_trait]
impl TableProvider for ViewStates {
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
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filters = filters.iter().map(unqualified).collect::<Result<Vec<_>>>()?;
        Ok(match self.are_merged {
            true => self.version.values(&self.state, &self.schema, projection, filters)?,
            false => self.version.states(&self.state, projection, filters)?,
        })
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let spec = &self.version.spec;
        let pushed = |filter: &&Expr| {
            if spec.is_over_keys(filter) { TableProviderFilterPushDown::Exact } else { TableProviderFilterPushDown::Unsupported }
        };
        Ok(filters.iter().map(pushed).collect())
    }
}
