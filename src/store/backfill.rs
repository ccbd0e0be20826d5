//! A view's state from the rows that are already there, while ingestion goes on.
//!
//! *Place*: `Store::commit` runs it for a created view, recovery for one whose stored state cannot be used.
//!
//! *Invariant*: the view takes rows from its LSN on as deltas of commits; the backfill takes exactly the rows below it (and not below
//! the view's `from_lsn`, before which rows do not count), from one snapshot. Nothing is live before the batch that also holds the position is written, so an interrupted backfill leaves
//! a view that is not ready, which the next start drops.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{SortOptions, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use parking_lot::Mutex;

use crate::catalog::Oid;
use crate::clock::Micros;
use crate::columnar::LsnSet;
use crate::error::{Error, Result, SqlState};
use crate::state::Batch;
use crate::store::apply::Retired;
use crate::store::classify::event_times;
use crate::store::snapshot::TableState;
use crate::store::{Shared, Snapshot};
use crate::types::LSN_COLUMN;
use crate::view::{Backfill, Checkpoint, Evicted, Spec, Version, apply};

/// Builds the state of `view` from the rows below `lsn` and publishes it.
pub async fn run(shared: &Arc<Shared>, view: Oid, lsn: u64) -> Result<()> {
    let snapshot = shared.published.load();
    spawn(shared, build(Arc::clone(shared), snapshot, view, lsn, Backfill::new)).await
}

/// Builds the state of a view anew and publishes it in place of what it has, while ingestion goes on. Nothing happens where it is not
/// `wanted` any more once nobody else changes the state.
pub async fn rebuild(shared: &Arc<Shared>, view: Oid, wanted: impl FnOnce(&Shared) -> bool + Send + 'static) -> Result<()> {
    let shared = Arc::clone(shared);
    let work = {
        let shared = Arc::clone(&shared);
        async move {
            let _rebuilding = shared.backfills.exclusive(view)?;
            if !wanted(&shared) {
                return Ok(());
            }
            let snapshot = sealed(&shared, view)?;
            let lsn = snapshot.next_lsn;
            build(Arc::clone(&shared), snapshot, view, lsn, Backfill::replacing).await?;
            // Rows that need it may be logged from here on.
            shared.state.sync()?;
            shared.horizons.forget(view);
            Ok(())
        }
    };
    spawn(&shared, work).await
}

/// The newest snapshot; deltas of the view that come later are not merged with those that it has.
fn sealed(shared: &Shared, view: Oid) -> Result<Arc<Snapshot>> {
    shared.published.update(|snapshot| {
        if let Some(version) = snapshot.views.get(&view) {
            version.seal(snapshot.next_lsn);
        }
        Ok(Arc::new(snapshot.clone()))
    })
}

/// A view's state without some rows, on disk but not listed: for the commit that deletes them.
#[derive(Debug)]
pub struct Rebuilt {
    /// What it takes the place of, sealed.
    before: Arc<Version>,
    state: Option<Checkpoint>,
    _exclusive: Exclusive,
}

impl Rebuilt {
    /// The view.
    pub fn view(&self) -> Oid {
        self.before.spec.view.oid
    }

    /// Whether it fits the newest version of the view: nothing else has taken its place meanwhile.
    pub fn fits(&self, newest: &Version) -> bool {
        Arc::ptr_eq(&newest.spec, &self.before.spec) && newest.replacements() == self.before.replacements()
    }

    /// The newest version of the view with this state instead, as the commit at `lsn` leaves it.
    pub fn take_place(&mut self, newest: &Version, lsn: u64) -> Version {
        match self.state.take() {
            Some(state) => newest.rebuilt(&state, &self.before, lsn),
            None => newest.clone(),
        }
    }
}

impl Drop for Rebuilt {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.abandon();
        }
    }
}

/// How long who needs a view made anew waits before asking again whether another turn of that is over.
pub const REFRESH_POLL: std::time::Duration = std::time::Duration::from_millis(20);

/// Makes the state of a view anew from the rows without `gone`, joined as of now. To be called on a worker of its own.
pub async fn rebuild_without(shared: &Arc<Shared>, view: Oid, gone: &LsnSet) -> Result<Rebuilt> {
    let exclusive = loop {
        match shared.backfills.exclusive(view) {
            Ok(exclusive) => break exclusive,
            Err(_) => tokio::time::sleep(REFRESH_POLL).await,
        }
    };
    let snapshot = sealed(shared, view)?;
    let before = snapshot.views.get(&view).cloned().ok_or_else(|| Error::internal("a view is gone"))?;
    let lsn = snapshot.next_lsn;
    let state = gather(shared, &snapshot, view, lsn, gone, Backfill::new(&before)).await?.ahead(lsn)?;
    Ok(Rebuilt { before, state: Some(state), _exclusive: exclusive })
}

async fn spawn(shared: &Shared, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    shared.parts.spawner.cpu(work).await.map_err(|error| Error::internal(format!("the backfill of a view was stopped: {error}")))?
}

/// The backfills that are running, and how far they are.
#[derive(Debug, Default)]
pub struct Backfills {
    progress: Mutex<HashMap<Oid, Progress>>,
    /// Views whose state is being replaced: it must not be checkpointed or merged.
    exclusive: Mutex<HashSet<Oid>>,
    /// Held while a view's state is checkpointed or merged.
    storing: Mutex<()>,
}

/// How far a backfill is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows read.
    pub done: u64,
    /// Rows there are to read.
    pub total: u64,
    /// When it began, microseconds.
    pub started_at: Micros,
}

/// Keeps checkpoints and merges off a view while its state is replaced.
#[derive(Debug)]
pub struct Exclusive(Arc<Backfills>, Oid);

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.exclusive.lock().remove(&self.1);
    }
}

struct Shown<'a>(&'a Backfills, Oid);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.progress.lock().remove(&self.1);
    }
}

impl Backfills {
    /// How far the backfill of a view is, if one is running.
    pub fn progress(&self, view: Oid) -> Option<Progress> {
        self.progress.lock().get(&view).copied()
    }

    /// Keeps checkpoints and merges off a view until the guard is dropped.
    fn exclusive(self: &Arc<Self>, view: Oid) -> Result<Exclusive> {
        if !self.exclusive.lock().insert(view) {
            return Err(Error::new(SqlState::OBJECT_IN_USE, "the materialized view is being refreshed already"));
        }
        // One that has begun ends first.
        drop(self.storing.lock());
        Ok(Exclusive(Arc::clone(self), view))
    }

    /// Runs what stores a view's state, unless that is being replaced.
    pub fn store<T>(&self, view: Oid, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let _storing = self.storing.lock();
        if self.exclusive.lock().contains(&view) {
            return Ok(None);
        }
        work().map(Some)
    }

    fn show(&self, view: Oid, total: u64, started_at: Micros) -> Shown<'_> {
        self.progress.lock().insert(view, Progress { done: 0, total, started_at });
        Shown(self, view)
    }

    fn add(&self, view: Oid, rows: u64) {
        if let Some(progress) = self.progress.lock().get_mut(&view) {
            progress.done += rows;
        }
    }
}

async fn build(
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    view: Oid,
    lsn: u64,
    backfill: impl FnOnce(&Version) -> Backfill + Send + 'static,
) -> Result<()> {
    let gone = || Error::new(SqlState::UNDEFINED_TABLE, "the view was dropped or emptied while it was built");
    let version = snapshot.views.get(&view).ok_or_else(gone)?;
    let spec = Arc::clone(&version.spec);
    let backfill = gather(&shared, &snapshot, view, lsn, &LsnSet::default(), backfill(version)).await?;
    let mut batch = Batch::default();
    let replaces = backfill.replaces();
    let checkpoint = backfill.finish(lsn, &mut batch)?;
    shared.state.write(batch)?;
    let published = shared.published.update(|newest| {
        let present = newest.views.get_mut(&view).filter(|present| Arc::ptr_eq(&present.spec, &spec)).ok_or_else(gone)?;
        let mut stored = present.checkpointed(&checkpoint);
        if replaces {
            stored = stored.replaced_at(newest.next_lsn);
        }
        *present = Arc::new(stored);
        Ok(())
    });
    match published {
        Ok(()) => Ok(()),
        // It has another state, or none: what was written goes once nobody reads the one that it was to replace.
        Err(error) if replaces => {
            shared.retire(Retired { views: vec![Arc::new(version.checkpointed(&checkpoint))], ..Retired::default() });
            Err(error)
        }
        Err(error) => {
            shared.tools.blocks.forget(view)?;
            Err(error)
        }
    }
}

/// Shows a backfill the rows of `snapshot` below an LSN, but for those that are `dead`.
async fn gather(shared: &Arc<Shared>, snapshot: &Snapshot, view: Oid, lsn: u64, dead: &LsnSet, mut backfill: Backfill) -> Result<Backfill> {
    let gone = || Error::internal("the view was dropped while it was built");
    let version = snapshot.views.get(&view).ok_or_else(gone)?;
    let table = snapshot.tables.get(&version.spec.view.table).ok_or_else(gone)?;
    let specs = [Arc::clone(&version.spec)];
    let from_lsn = version.spec.view.from_lsn;
    let lookups = specs[0].join().map(|join| shared.lookups.of(&shared.parts, snapshot, join, true)).transpose()?;
    let total = table.hot_rows() as u64 + table.files().iter().map(|file| file.rows).sum::<u64>();
    let _shown = shared.backfills.show(view, total, shared.parts.clock.now());
    let mut add = |rows: RecordBatch| -> Result<()> {
        shared.backfills.add(view, rows.num_rows() as u64);
        let rows = select(&rows, |row| (from_lsn..lsn).contains(&row) && !dead.contains(row))?;
        if rows.num_rows() > 0 {
            let rows = match (specs[0].join(), &lookups) {
                (Some(join), Some(lookups)) => join.rows(&rows, &join.find(&rows, lookups)?, |column| specs[0].reads(column))?,
                _ => rows,
            };
            let deltas = apply(&specs, &rows, 0, lsn, 1)?;
            deltas.into_iter().flatten().try_for_each(|delta| backfill.add(delta))?;
        }
        Ok(())
    };
    if let Some(plan) = cold(shared, table, &[], depends_on_order(&version.spec))? {
        let mut rows = execute_stream(plan, shared.parts.binder.session_state().task_ctx()).map_err(unreadable)?;
        while let Some(batch) = rows.next().await {
            add(batch.map_err(unreadable)?)?;
        }
    }
    table.hot.iter().try_for_each(|batch| add(batch.rows().clone()))?;
    Ok(backfill)
}

/// The rows of windows that come back into the state of `version`: all that `snapshot` has of them.
pub async fn windows(shared: Arc<Shared>, version: Arc<Version>, snapshot: Snapshot, windows: Vec<Evicted>) -> Result<Backfill> {
    let gone = || Error::internal("the table of a view is gone");
    let table = snapshot.tables.get(&version.spec.view.table).ok_or_else(gone)?;
    let time = table.table.watermark.ok_or_else(gone)?.column;
    let specs = [Arc::clone(&version.spec)];
    let since = version.spec.view.from_lsn;
    let mut backfill = Backfill::back(&version);
    let mut add = |rows: RecordBatch| -> Result<()> {
        let rows = select(&rows, |row| (since..snapshot.next_lsn).contains(&row))?;
        let times = event_times(&rows, time)?;
        let inside = |time: i64| windows.iter().any(|window| (window.from_us..window.to_us).contains(&time));
        let mask: BooleanArray = times.iter().map(|time| Some(inside(*time))).collect();
        let rows = filter_record_batch(&rows, &mask).map_err(|error| Error::internal(error.to_string()))?;
        if rows.num_rows() > 0 {
            let deltas = apply(&specs, &rows, 0, snapshot.next_lsn, 1)?;
            deltas.into_iter().flatten().try_for_each(|delta| backfill.add(delta))?;
        }
        Ok(())
    };
    let column = &table.table.columns[time];
    let mut filters = Vec::new();
    if let [window] = windows.as_slice() {
        let zone = match column.sql_type.arrow() {
            DataType::Timestamp(_, zone) => zone,
            _ => None,
        };
        let bound = |time_us| Expr::Literal(ScalarValue::TimestampMicrosecond(Some(time_us), zone.clone()), None);
        let name = || Expr::Column(datafusion::common::Column::new_unqualified(&column.name));
        filters.push(name().gt_eq(bound(window.from_us)));
        filters.push(name().lt(bound(window.to_us)));
    }
    if let Some(plan) = cold(&shared, table, &filters, depends_on_order(&version.spec))? {
        let mut rows = execute_stream(plan, shared.parts.binder.session_state().task_ctx()).map_err(unreadable)?;
        while let Some(batch) = rows.next().await {
            add(batch.map_err(unreadable)?)?;
        }
    }
    table.hot.iter().try_for_each(|batch| add(batch.rows().clone()))?;
    Ok(backfill)
}

/// The rows in Parquet that may pass `filters`, by LSN where the order matters.
fn cold(shared: &Shared, table: &TableState, filters: &[Expr], ordered: bool) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(scan) = table.scan_cold(&shared.parts.binder.session_state(), None, filters, None)? else { return Ok(None) };
    in_order(scan, ordered).map(Some)
}

/// One stream of a scan's rows, by LSN where the order matters.
pub fn in_order(scan: Arc<dyn ExecutionPlan>, ordered: bool) -> Result<Arc<dyn ExecutionPlan>> {
    if !ordered {
        return Ok(Arc::new(CoalescePartitionsExec::new(scan)));
    }
    let lsn = Column::new_with_schema(LSN_COLUMN, &scan.schema()).map_err(unreadable)?;
    let order = LexOrdering::new([PhysicalSortExpr::new(Arc::new(lsn), SortOptions::default())])
        .ok_or_else(|| Error::internal("an ordering needs a column"))?;
    Ok(Arc::new(SortExec::new(order, Arc::new(CoalescePartitionsExec::new(scan)))))
}

/// Aggregates that see rows in arrival order need the backfill in LSN order; for the others sorting would be wasted.
pub fn depends_on_order(spec: &Spec) -> bool {
    let query = spec.view.query.to_ascii_lowercase();
    spec.upper().is_some() || ["array_agg", "string_agg", "first_value", "last_value", "nth_value"].iter().any(|name| query.contains(name))
}

/// The rows (LSN last) whose LSN is wanted, without it.
pub fn select(rows: &RecordBatch, wanted: impl Fn(u64) -> bool) -> Result<RecordBatch> {
    let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
    let last = rows.num_columns() - 1;
    let lsns = rows.column(last).as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without LSNs"))?;
    let mask: BooleanArray = lsns.values().iter().map(|lsn| Some(wanted(*lsn as u64))).collect();
    let columns: Vec<usize> = (0..last).collect();
    let rows = rows.project(&columns).map_err(internal)?;
    if mask.true_count() == mask.len() { Ok(rows) } else { filter_record_batch(&rows, &mask).map_err(internal) }
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
