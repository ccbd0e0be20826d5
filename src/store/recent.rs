//! The keys of recent rows, read back from Parquet when the store opens.
//!
//! *Place*: `store::recover`, for tables with a `dedup_key`.

use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::execute_stream;
use futures::TryStreamExt;

use crate::catalog::Table;
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::store::Parts;
use crate::store::backfill::unreadable;
use crate::store::snapshot::TableState;
use crate::types::{SqlType, UTC};

/// Key and event time of the rows in Parquet of `table` or of its `$late` companion (`state`, which begins with the same columns) that
/// are not older than `since` (others may be among them).
pub async fn recent_keys(parts: &Parts, table: &Table, state: &TableState, since: Micros) -> Result<Vec<RecordBatch>> {
    let (Some(key), Some(watermark)) = (table.options.dedup_key, table.watermark) else { return Ok(Vec::new()) };
    let time = &table.columns[watermark.column];
    let zone = (time.sql_type == SqlType::Timestamptz).then(|| UTC.into());
    let recent: Expr =
        col(datafusion::common::Column::from_name(&time.name)).gt_eq(lit(ScalarValue::TimestampMicrosecond(Some(since), zone)));
    let session = parts.binder.session_state();
    let columns = vec![key, watermark.column];
    let Some(plan) = state.scan_cold(&session, Some(&columns), &[recent], None)? else { return Ok(Vec::new()) };
    let stream = execute_stream(plan, session.task_ctx()).map_err(unreadable)?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(unreadable)?;
    if batches.iter().any(|batch| batch.num_columns() != 2) {
        return Err(Error::internal("a scan of two columns gave others"));
    }
    Ok(batches)
}
