//! A view's state from the rows that are already there, while ingestion goes on.
//!
//! *Place*: `Store::commit` runs it for a created view, recovery for one whose stored state cannot be used.
//!
//! *Invariant*: the view takes rows from its LSN on as deltas of commits; the backfill takes exactly the rows below it, from
//! one snapshot. Nothing is live before the batch that also holds the position is written, so an interrupted backfill leaves
//! a view that is not ready, which the next start drops.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{SortOptions, filter_record_batch};
use arrow::datatypes::Int64Type;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;

use crate::catalog::Oid;
use crate::error::{Error, Result};
use crate::state::Batch;
use crate::store::snapshot::TableState;
use crate::store::{Shared, Snapshot};
use crate::types::LSN_COLUMN;
use crate::view::{Backfill, apply};

/// Builds the state of `view` from the rows below `lsn` and publishes it.
pub async fn run(shared: &Arc<Shared>, view: Oid, lsn: u64) -> Result<()> {
    let snapshot = shared.published.load();
    let work = build(Arc::clone(shared), snapshot, view, lsn);
    shared.parts.spawner.cpu(work).await.map_err(|error| Error::internal(format!("the backfill of a view was stopped: {error}")))?
}

async fn build(shared: Arc<Shared>, snapshot: Arc<Snapshot>, view: Oid, lsn: u64) -> Result<()> {
    let gone = || Error::internal("the view was dropped while it was built");
    let version = snapshot.views.get(&view).ok_or_else(gone)?;
    let table = snapshot.tables.get(&version.spec.view.table).ok_or_else(gone)?;
    let specs = [Arc::clone(&version.spec)];
    let mut backfill = Backfill::new(version);
    let mut add = |rows: RecordBatch| -> Result<()> {
        let rows = below(rows, lsn)?;
        if rows.num_rows() > 0 {
            let deltas = apply(&specs, &rows, 0, lsn, 1)?;
            deltas.into_iter().flatten().try_for_each(|delta| backfill.add(delta))?;
        }
        Ok(())
    };
    if let Some(plan) = cold(&shared, table, depends_on_order(&version.spec.view.query))? {
        let mut rows = execute_stream(plan, shared.parts.binder.session_state().task_ctx()).map_err(unreadable)?;
        while let Some(batch) = rows.next().await {
            add(batch.map_err(unreadable)?)?;
        }
    }
    table.hot.iter().try_for_each(|batch| add(batch.rows.clone()))?;
    let mut batch = Batch::default();
    let checkpoint = backfill.finish(lsn, &mut batch)?;
    shared.state.write(batch)?;
    let published = shared.published.update(|newest| {
        let present = newest.views.get_mut(&view).filter(|present| Arc::ptr_eq(&present.spec, &specs[0])).ok_or_else(gone)?;
        *present = Arc::new(present.checkpointed(&checkpoint));
        Ok(())
    });
    if published.is_err() {
        shared.tools.blocks.forget(view)?;
    }
    published
}

/// All rows in Parquet, by LSN where the order matters.
fn cold(shared: &Shared, table: &TableState, ordered: bool) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(cold) = table.cold.as_ref().filter(|cold| !cold.version.files.is_empty()) else { return Ok(None) };
    let scan = cold.columns.scan(&shared.parts.binder.session_state(), &cold.version, None, &[], None)?;
    if !ordered {
        return Ok(Some(Arc::new(CoalescePartitionsExec::new(scan))));
    }
    let lsn = Column::new_with_schema(LSN_COLUMN, &scan.schema()).map_err(unreadable)?;
    let order = LexOrdering::new([PhysicalSortExpr::new(Arc::new(lsn), SortOptions::default())])
        .ok_or_else(|| Error::internal("an ordering needs a column"))?;
    Ok(Some(Arc::new(SortExec::new(order, Arc::new(CoalescePartitionsExec::new(scan))))))
}

/// Aggregates that see rows in arrival order need the backfill in LSN order; for the others sorting would be wasted.
fn depends_on_order(query: &str) -> bool {
    let query = query.to_ascii_lowercase();
    ["array_agg", "string_agg", "first_value", "last_value", "nth_value"].iter().any(|name| query.contains(name))
}

/// The rows below an LSN, without the LSN column.
fn below(rows: RecordBatch, lsn: u64) -> Result<RecordBatch> {
    let last = rows.num_columns() - 1;
    let lsns = rows.column(last).as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without LSNs"))?;
    let columns: Vec<usize> = (0..last).collect();
    let kept = if lsns.values().iter().all(|value| (*value as u64) < lsn) {
        rows.clone()
    } else {
        let mask: BooleanArray = lsns.values().iter().map(|value| Some((*value as u64) < lsn)).collect();
        filter_record_batch(&rows, &mask).map_err(|error| Error::internal(error.to_string()))?
    };
    kept.project(&columns).map_err(|error| Error::internal(error.to_string()))
}

/// What DataFusion reports, with the cause that a layer below has given kept.
pub fn unreadable(error: datafusion::error::DataFusionError) -> Error {
    match error.find_root() {
        datafusion::error::DataFusionError::External(cause) => {
            cause.downcast_ref::<Error>().cloned().unwrap_or_else(|| Error::internal(format!("stored rows cannot be read: {cause}")))
        }
        other => Error::internal(format!("stored rows cannot be read: {other}")),
    }
}
