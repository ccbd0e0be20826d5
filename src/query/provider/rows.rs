//! A table's rows as of a snapshot: hot batches and Parquet files, each row once.

use std::sync::Arc;

use arrow::array::Int64Array;
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::cmp::gt_eq;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;

use crate::store::snapshot::with_lsn;
use crate::store::{HotBatch, TableState};
use crate::types::LSN_COLUMN;

/// Reads one version of a table.
#[derive(Debug)]
pub struct Rows {
    table: Arc<TableState>,
    state: Arc<SessionState>,
    schema: SchemaRef,
    /// Rows below this LSN are left out.
    from_lsn: u64,
}

impl Rows {
    /// The rows of `table`. `schema` is the declared columns; the hidden LSN after them is shown when it is in `schema`, last.
    pub fn new(table: Arc<TableState>, state: Arc<SessionState>, schema: SchemaRef) -> Self {
        Self { table, state, schema, from_lsn: 0 }
    }

    /// Without the rows below an LSN.
    #[must_use]
    pub fn since(self, from_lsn: u64) -> Self {
        Self { from_lsn, ..self }
    }

    /// A file scan whose last column is the LSN, without the rows below `from_lsn` and without that column.
    fn cold_since(&self, scan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = scan.schema();
        let last = schema.fields().len() - 1;
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(schema.field(last).name(), last));
        let least = Arc::new(Literal::new(ScalarValue::Int64(Some(self.from_lsn as i64))));
        let filter = FilterExec::try_new(Arc::new(BinaryExpr::new(column, Operator::GtEq, least)), scan)?;
        let shown: Vec<(Arc<dyn PhysicalExpr>, String)> = (0..last)
            .map(|index| {
                let name = schema.field(index).name();
                (Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
            })
            .collect();
        Ok(Arc::new(ProjectionExec::try_new(shown, Arc::new(filter))?))
    }

    /// The rows of a batch that count.
    fn counted(&self, batch: &HotBatch) -> Result<RecordBatch> {
        if batch.first_lsn >= self.from_lsn {
            return Ok(batch.rows().clone());
        }
        let least = Int64Array::new_scalar(self.from_lsn as i64);
        let lsns = batch.rows().column(batch.rows().num_columns() - 1);
        Ok(filter_record_batch(batch.rows(), &gt_eq(lsns, &least)?)?)
    }

    /// The same rows with the hidden LSN as a last column.
    pub fn with_lsn(&self) -> Self {
        Self { table: Arc::clone(&self.table), state: Arc::clone(&self.state), schema: with_lsn(&self.schema), from_lsn: self.from_lsn }
    }

    /// Whether they are all of the table's.
    pub fn is_whole(&self) -> bool {
        self.from_lsn == 0
    }

    /// The table.
    pub fn table(&self) -> &Arc<TableState> {
        &self.table
    }

    /// Whether a value is a column in which no row has NULL.
    fn is_never_null(&self, value: &Expr) -> bool {
        let Expr::Column(column) = value else { return false };
        let declared = self.table.table.columns.iter().position(|declared| declared.name == column.name);
        declared.is_some_and(|index| self.table.is_never_null(index))
    }

    /// Hot batches, in as many partitions as there are cores.
    fn hot(&self, projection: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let shown = Arc::new(self.schema.project(projection)?);
        let batches: Vec<RecordBatch> = self
            .table
            .hot
            .iter()
            .filter(|batch| batch.num_rows() > 0)
            .map(|batch| {
                let rows = self.counted(batch)?;
                let columns = projection.iter().map(|index| match self.schema.field(*index).name() == LSN_COLUMN {
                    true => Arc::clone(rows.column(rows.num_columns() - 1)),
                    false => Arc::clone(rows.column(*index)),
                });
                let columns = columns.collect();
                let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
                Ok(RecordBatch::try_new_with_options(Arc::clone(&shown), columns, &options)?)
            })
            .collect::<Result<_>>()?;
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
        let has_hot = self.table.hot.iter().any(|batch| batch.num_rows() > 0);
        let Some(cold) = self.table.scan_cold(&self.state, Some(&projection), filters, limit)? else {
            return self.hot(&projection);
        };
        let cold = match self.from_lsn {
            0 => cold,
            _ => {
                let lsn = [projection.as_slice(), &[self.table.table.columns.len()]].concat();
                let Some(cold) = self.table.scan_cold(&self.state, Some(&lsn), filters, None)? else { return self.hot(&projection) };
                self.cold_since(cold)?
            }
        };
        if !has_hot {
            return Ok(cold);
        }
        UnionExec::try_new(vec![self.hot(&projection)?, cold])
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Files and row groups are pruned by them, rows are not: they are applied again above. What every row passes need not be: a condition
        // on a column that is shown has the Parquet reader decode all of it.
        let pushed = |filter: &&Expr| match filter {
            Expr::IsNotNull(value) if self.is_never_null(value) => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(pushed).collect())
    }
}
