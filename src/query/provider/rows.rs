//! A table's rows as of a snapshot: hot batches and Parquet files, each row once.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use crate::store::TableState;

/// Reads one version of a table.
#[derive(Debug)]
pub struct Rows {
    table: Arc<TableState>,
    state: Arc<SessionState>,
    schema: SchemaRef,
}

impl Rows {
    /// The rows of `table`. `schema` is the declared columns; the hidden LSN after them is not shown.
    pub fn new(table: Arc<TableState>, state: Arc<SessionState>, schema: SchemaRef) -> Self {
        Self { table, state, schema }
    }

    /// Hot batches, in as many partitions as there are cores.
    fn hot(&self, projection: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let shown = Arc::new(self.schema.project(projection)?);
        let batches: Vec<RecordBatch> = self
            .table
            .hot
            .iter()
            .filter(|batch| batch.rows.num_rows() > 0)
            .map(|batch| {
                // Batches from before ALTER TABLE ... ADD COLUMN have fewer columns before their LSN.
                let declared = batch.rows.num_columns().saturating_sub(1);
                let columns = projection.iter().map(|index| match *index < declared {
                    true => Arc::clone(batch.rows.column(*index)),
                    false => arrow::array::new_null_array(self.schema.field(*index).data_type(), batch.rows.num_rows()),
                });
                let columns = columns.collect();
                let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.rows.num_rows()));
                RecordBatch::try_new_with_options(Arc::clone(&shown), columns, &options)
            })
            .collect::<Result<_, _>>()?;
        let count = self.state.config().target_partitions().min(batches.len()).max(1);
        let mut partitions = vec![Vec::new(); count];
        for (index, batch) in batches.into_iter().enumerate() {
            partitions[index % count].push(batch);
        }
        let source = MemorySourceConfig::try_new(&partitions, shown, None)?;
        Ok(DataSourceExec::from_data_source(source))
    }
}

#[async_trait]
impl TableProvider for Rows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = match projection {
            Some(columns) => columns.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let has_hot = self.table.hot.iter().any(|batch| batch.rows.num_rows() > 0);
        let Some(cold) = self.table.cold.as_ref().filter(|cold| !cold.version.files.is_empty()) else {
            return self.hot(&projection);
        };
        let cold = cold.columns.scan(&self.state, &cold.version, Some(&projection), filters, limit)?;
        if !has_hot {
            return Ok(cold);
        }
        UnionExec::try_new(vec![self.hot(&projection)?, cold])
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Files and row groups are pruned by them, rows are not: they are applied again above.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
