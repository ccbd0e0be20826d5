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

/// Key and event time of the rows in Parquet of `table` or of its `$late` companion (`state`, which begins with the same columns) whose
/// event time is in `reach`, each of which is from its beginning to before its end (others may be among them).
pub async fn recent_keys(parts: &Parts, table: &Table, state: &TableState, reach: &[(Micros, Micros)]) -> Result<Vec<RecordBatch>> {
    let (Some(key), Some(watermark)) = (table.options.dedup_key, table.watermark) else { return Ok(Vec::new()) };
    let time = &table.columns[watermark.column];
    let zone = (time.sql_type == SqlType::Timestamptz).then(|| UTC.into());
    let at = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), zone.clone()));
    let time = || col(datafusion::common::Column::from_name(&time.name));
    let within = reach.iter().map(|(from, to)| time().gt_eq(at(*from)).and(time().lt(at(*to))));
    let Some(recent) = within.reduce(Expr::or) else { return Ok(Vec::new()) };
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
