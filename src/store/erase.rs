//! Erasure: rows deleted from an event table take their part of every view with them, in the same commit.
//!
//! *Place*: `Store::commit` prepares it when a transaction deletes rows of a table that has views; the sequencer completes it.
//!
//! *Way*: the groups of the deleted rows are found; their states are made anew from the rows that remain, over a snapshot, while
//! ingestion goes on; rows that came since are added, so that few are left to the sequencer, which adds the last of them and logs
//! the new states with the deletion. Replay takes them from the log.
//!
//! Views that join plain tables are made anew as a whole, joined as of now, as REFRESH does: what the rows that remain were joined
//! with when they came is not kept. Their states are too large for the log, which only says that they are others: they are on disk
//! before the commit, and listed by the next checkpoint. A replay that finds the record and not the checkpoint makes them once more.
//!
//! *Invariants*: (1) one erasure at a time; (2) the states are of all remaining rows below the commit's LSN, else the sequencer
//! sends it back; (3) a group of which retention may have removed rows is never made anew: the deletion is refused.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::execute_stream;
use futures::StreamExt;

use crate::catalog::{Catalog, Maintenance, Oid, Table};
use crate::clock::Micros;
use crate::columnar::LsnSet;
use crate::error::{Error, Result, SqlState};
use crate::store::backfill::{Rebuilt, depends_on_order, in_order, rebuild_without, select, unreadable};
use crate::store::classify::event_times;
use crate::store::{Delete, Shared, Snapshot, TableState};
use crate::types::{LSN_COLUMN, SqlType, UTC};
use crate::view::{Delta, Replacement, Spec};

/// Rows that are left to the sequencer, about.
const LEFT_ROWS_MAX: usize = 4_096;

/// Rounds of catching up with ingestion before the rest is left to the sequencer all the same.
const ROUNDS_MAX: usize = 16;

/// The views that a deletion corrects.
#[derive(Debug)]
pub struct Corrections {
    catalog: Arc<Catalog>,
    tables: Vec<Corrected>,
}

/// Those over one table.
#[derive(Debug)]
struct Corrected {
    table: Oid,
    gone: LsnSet,
    /// Rows below this LSN have been shown.
    read_lsn: u64,
    views: Vec<Correction>,
    /// Views that join plain tables: what their rows were joined with is not kept.
    joined: Vec<Oid>,
    rebuilt: Vec<Rebuilt>,
}

/// What the sequencer puts into the commit.
#[derive(Debug, Default)]
pub struct Completed {
    /// New states of groups, by view.
    pub deltas: Vec<(Oid, Delta)>,
    /// States of whole views.
    pub rebuilt: Vec<Rebuilt>,
}

#[derive(Debug)]
struct Correction {
    replacement: Replacement,
    /// Rows below this LSN do not count.
    from_lsn: u64,
}

/// The sequencer's answer when it cannot complete the corrections: they are prepared again.
pub fn moved() -> Error {
    Error::new(SqlState::SERIALIZATION_FAILURE, MOVED)
}

/// Whether an error is [`moved`].
pub fn is_moved(error: &Error) -> bool {
    error.report().message == MOVED
}

const MOVED: &str = "the rows moved while views were corrected";

/// Whether views have to be corrected for these deletions.
pub fn is_needed(catalog: &Catalog, deletes: &[Delete]) -> bool {
    deletes.iter().any(|delete| !delete.rows.is_empty() && has_state(catalog, delete.table))
}

/// Whether views keep aggregate state over a table.
fn has_state(catalog: &Catalog, table: Oid) -> bool {
    catalog.views_of(table).any(|view| view.maintenance == Maintenance::State)
}

/// Makes the states of the groups that lose rows, as of a recent snapshot.
pub async fn prepare(shared: Arc<Shared>, deletes: Vec<Delete>) -> Result<Corrections> {
    let work = build(Arc::clone(&shared), deletes);
    shared.parts.spawner.cpu(work).await.map_err(|error| Error::internal(format!("the correction of views was stopped: {error}")))?
}

async fn build(shared: Arc<Shared>, deletes: Vec<Delete>) -> Result<Corrections> {
    let snapshot = shared.published.load();
    let mut corrections = Corrections { catalog: Arc::clone(&snapshot.catalog), tables: Vec::new() };
    let mut old: Vec<Vec<RecordBatch>> = Vec::new();
    for delete in deletes {
        if delete.rows.is_empty() || !has_state(&snapshot.catalog, delete.table) {
            continue;
        }
        let at = corrections.tables.iter().position(|corrected| corrected.table == delete.table).unwrap_or_else(|| {
            corrections.tables.push(Corrected {
                table: delete.table,
                gone: LsnSet::default(),
                read_lsn: 0,
                views: Vec::new(),
                joined: Vec::new(),
                rebuilt: Vec::new(),
            });
            old.push(Vec::new());
            old.len() - 1
        });
        corrections.tables[at].gone = corrections.tables[at].gone.union(&delete.rows);
        old[at].extend(delete.old);
    }
    for (corrected, old) in corrections.tables.iter_mut().zip(old) {
        let state = snapshot.tables.get(&corrected.table).ok_or_else(moved)?;
        corrected.find(&shared, &snapshot, &state.table, &old)?;
        for view in std::mem::take(&mut corrected.joined) {
            corrected.rebuilt.push(rebuild_without(&shared, view, &corrected.gone).await?);
        }
        if corrected.views.is_empty() {
            corrected.read_lsn = snapshot.next_lsn;
            continue;
        }
        let filters = around(&state.table, &old, &corrected.views)?;
        corrected.read(&shared, &snapshot, state, &filters).await?;
        corrected.catch_up(&shared).await?;
    }
    Ok(corrections)
}

impl Corrections {
    /// Adds the rows that `snapshot`, the newest, has besides, and gives the deltas of the commit at `lsn`, one a view. [`moved`]
    /// when these rows are not at hand, or when the views are others.
    pub fn complete(self, snapshot: &Snapshot, lsn: u64) -> Result<Completed> {
        if !Arc::ptr_eq(&self.catalog, &snapshot.catalog) {
            return Err(moved());
        }
        let mut completed = Completed::default();
        for mut corrected in self.tables {
            let state = snapshot.tables.get(&corrected.table).ok_or_else(moved)?;
            if !corrected.views.is_empty() && is_filed(state, corrected.read_lsn) {
                return Err(moved());
            }
            let read_lsn = corrected.read_lsn;
            for batch in state.hot.iter().filter(|batch| batch.next_lsn > read_lsn) {
                corrected.add(batch.rows())?;
            }
            for view in &corrected.views {
                completed.deltas.push((view.replacement.spec().view.oid, view.replacement.finish(lsn)?));
            }
            if corrected.rebuilt.iter().any(|rebuilt| !snapshot.views.get(&rebuilt.view()).is_some_and(|newest| rebuilt.fits(newest))) {
                return Err(moved());
            }
            completed.rebuilt.append(&mut corrected.rebuilt);
        }
        Ok(completed)
    }
}

/// Whether files hold rows from an LSN on.
fn is_filed(state: &TableState, lsn: u64) -> bool {
    state.files().iter().any(|file| file.lsn_range.1 >= lsn as i64)
}

/// Filters that rows of the views' groups pass: a group's rows are no further apart than its bucket is wide. None where a view has
/// no such bucket.
fn around(table: &Table, gone: &[RecordBatch], views: &[Correction]) -> Result<Vec<Expr>> {
    let (Some(watermark), Some((first, last))) = (table.watermark, time_range(table, gone)?) else { return Ok(Vec::new()) };
    let widths: Option<Vec<i64>> = views.iter().map(|view| view.replacement.spec().bucket_us()).collect();
    let Some(width) = widths.and_then(|widths| widths.into_iter().max()) else { return Ok(Vec::new()) };
    let time = &table.columns[watermark.column];
    let zone = (time.sql_type == SqlType::Timestamptz).then(|| UTC.into());
    let at = |us: Micros| lit(ScalarValue::TimestampMicrosecond(Some(us), zone.clone()));
    let column = || col(Column::from_name(&time.name));
    Ok(vec![column().gt_eq(at(first.saturating_sub(width))), column().lt_eq(at(last.saturating_add(width)))])
}

fn time_range(table: &Table, rows: &[RecordBatch]) -> Result<Option<(Micros, Micros)>> {
    let Some(watermark) = table.watermark else { return Ok(None) };
    let mut range: Option<(Micros, Micros)> = None;
    for batch in rows {
        for time in event_times(batch, watermark.column)? {
            range = Some(range.map_or((*time, *time), |(first, last)| (first.min(*time), last.max(*time))));
        }
    }
    Ok(range)
}

/// 55000 when retention may have removed rows that the groups of these rows still count.
fn refuse_incomplete(shared: &Shared, table: &Table, spec: &Spec, counted: &[RecordBatch]) -> Result<()> {
    let expired = shared.positions.lock().expired.get(&table.oid).copied();
    let (Some(expired), Some((first, _))) = (expired, time_range(table, counted)?) else { return Ok(()) };
    // A view that joins is made anew as a whole.
    let width = spec.bucket_us().filter(|_| spec.join().is_none());
    if width.is_some_and(|width| first.saturating_sub(width) > expired) {
        return Ok(());
    }
    let view = &spec.view.name;
    Err(Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "cannot delete rows of \"{}\" that materialized view \"{view}\" counts together with rows removed by retention",
            table.name
        ),
    )
    .detail("What the view counts without them cannot be known any more.")
    .hint("DROP the materialized view first, or delete newer rows only."))
}

impl Corrected {
    /// Finds the groups that lose rows; `gone` are the deleted rows with their LSNs last.
    fn find(&mut self, shared: &Shared, snapshot: &Snapshot, table: &Table, gone: &[RecordBatch]) -> Result<()> {
        for view in snapshot.catalog.views_of(self.table) {
            let Some(version) = snapshot.views.get(&view.oid) else { continue };
            let counted = gone.iter().map(|rows| select(rows, |lsn| lsn >= view.from_lsn)).collect::<Result<Vec<_>>>()?;
            if version.spec.join().is_some() {
                if counted.iter().all(|rows| rows.num_rows() == 0) {
                    continue;
                }
                if !view.ready {
                    return Err(Error::new(SqlState::OBJECT_IN_USE, format!("materialized view \"{}\" is being built", view.name))
                        .hint("Delete again when it is there."));
                }
                refuse_incomplete(shared, table, &version.spec, &counted)?;
                self.joined.push(view.oid);
                continue;
            }
            let Some(replacement) = Replacement::new(&version.spec, &counted)? else { continue };
            refuse_incomplete(shared, table, &version.spec, &counted)?;
            self.views.push(Correction { replacement, from_lsn: view.from_lsn });
        }
        Ok(())
    }

    /// Shows the views the remaining rows of `state` from `self.read_lsn` on.
    async fn read(&mut self, shared: &Shared, snapshot: &Snapshot, state: &TableState, filters: &[Expr]) -> Result<()> {
        let session = shared.parts.binder.session_state();
        if is_filed(state, self.read_lsn)
            && let Some(plan) = state.scan_cold(&session, None, filters, None)?
        {
            let ordered = self.views.iter().any(|view| depends_on_order(view.replacement.spec()));
            let mut rows = execute_stream(in_order(plan, ordered)?, session.task_ctx()).map_err(unreadable)?;
            while let Some(batch) = rows.next().await {
                self.add(&batch.map_err(unreadable)?)?;
                self.refuse_large(shared)?;
            }
        }
        let read_lsn = self.read_lsn;
        for batch in state.hot.iter().filter(|batch| batch.next_lsn > read_lsn) {
            self.add(batch.rows())?;
        }
        self.refuse_large(shared)?;
        self.read_lsn = snapshot.next_lsn;
        Ok(())
    }

    /// Reads what was committed meanwhile, until little of it is left.
    async fn catch_up(&mut self, shared: &Shared) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let newest = shared.published.load();
            let state = newest.tables.get(&self.table).ok_or_else(moved)?;
            let left: usize = state.hot.iter().filter(|batch| batch.next_lsn > self.read_lsn).map(|batch| batch.num_rows()).sum();
            if left <= LEFT_ROWS_MAX && !is_filed(state, self.read_lsn) {
                break;
            }
            let since = col(Column::from_name(LSN_COLUMN)).gt_eq(lit(self.read_lsn as i64));
            self.read(shared, &newest, state, &[since]).await?;
        }
        Ok(())
    }

    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let (gone, read_lsn) = (&self.gone, self.read_lsn);
        for view in &mut self.views {
            let from_lsn = view.from_lsn.max(read_lsn);
            let rows = select(rows, |lsn| lsn >= from_lsn && !gone.contains(lsn))?;
            if rows.num_rows() > 0 {
                view.replacement.add(&rows)?;
            }
        }
        Ok(())
    }

    fn refuse_large(&self, shared: &Shared) -> Result<()> {
        let bytes_max = shared.parts.limits.store.statement_bytes_max;
        if self.views.iter().map(|view| view.replacement.bytes()).sum::<usize>() <= bytes_max {
            return Ok(());
        }
        shared.parts.metrics.limit_hit("limits.store.statement_bytes_max");
        Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the groups that the deletion changes are too large")
            .detail(format!("A statement can change {bytes_max} bytes of view state."))
            .hint("Delete fewer rows at a time."))
    }
}
