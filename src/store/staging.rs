//! A statement whose rows do not fit memory: they go into files of their table at once, and one log record names the files.
//!
//! *Place*: `command::copy` and `command::insert` begin one through `Store::stage` and commit it as a part of a transaction;
//! `store::commit` has the last word; `store::recover` reads the record.
//!
//! *Way of a chunk*: its rows are numbered, judged as of now (duplicates, late rows), written as files that nobody lists yet, and
//! the views' deltas are computed and put together. A row's LSN is the commit's first one and its number, so it is known only
//! then: files hold the numbers and their description the rest. What is dropped or late leaves gaps.
//!
//! *Invariants*: (1) nothing of it is visible before the record is durable, and all of it after: the snapshot gets files and
//! deltas in one publication; (2) the sequencer accepts only rows that it would accept now: when other commits have brought a
//! key or moved a watermark past one of these rows, they are judged again, all of them, in its turn; (3) until the flush has
//! listed the files in the table log, the log record keeps them, and the background work keeps that record.
//!
//! *On failure*, and when the statement is given up, the files are deleted; after a crash they are files that nobody names,
//! which the next start deletes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Int64Type;
use tokio::task::JoinHandle;

use crate::catalog::{LateRows, Oid, Table};
use crate::clock::Micros;
use crate::columnar::{ColumnTable, DataFile};
use crate::error::{Error, Result, SqlState};
use crate::store::apply::{self, Accepted};
use crate::store::classify::{Lateness, Watermarks, event_times, partition_keys};
use crate::store::commit::late_rows;
use crate::store::dedupe::{Bounds, Dedupe, Staged as Keys};
use crate::store::positions::{Judged, Positions, dedupe_columns};
use crate::store::record::StagedHeader;
use crate::store::recover::key_bounds;
use crate::store::snapshot::{Snapshot, with_lsn};
use crate::store::unique::{self, Taken};
use crate::store::{Shared, dropped, enrich};
use crate::view;

/// Rows that go into one set of files at most.
const CHUNK_ROWS_MAX: usize = 1 << 20;

/// A statement under way. Dropping it gives up what has been staged.
#[derive(Debug)]
pub struct Staging {
    shared: Arc<Shared>,
    schema: arrow::datatypes::SchemaRef,
    /// Rows that wait for their chunk to be full.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    waiting_rows: usize,
    /// Bytes of rows that make a chunk.
    chunk_bytes: usize,
    /// What is staged, unless a chunk is being written.
    work: Option<Box<Staged>>,
    running: Option<JoinHandle<Result<Box<Staged>>>>,
}

/// What has been staged of a statement.
#[derive(Debug)]
pub struct Staged {
    /// The table as the rows were made for it.
    pub table: Arc<Table>,
    policy: LateRows,
    /// Commits below this LSN were known when the first rows were judged.
    judged_lsn: u64,
    /// The table's files, then those of its `$late` companion.
    parts: Vec<Part>,
    /// The views as they were at the beginning, each with the deltas of the staged rows and nothing else.
    views: Snapshot,
    /// Every key so far, and those within the window by event time.
    keys: Keys,
    recent: Option<Dedupe>,
    bounds: Bounds,
    /// Of a table with PRIMARY KEY or UNIQUE: the keys so far, by the rows' numbers.
    unique: Taken,
    /// Of each partition the accepted rows of least and greatest event time.
    oldest: Option<RecordBatch>,
    newest: Option<RecordBatch>,
    /// The watermarks as the rows moved them, and how many rows were out of order.
    seen: Watermarks,
    /// Rows behind the watermark that were accepted all the same.
    applied: u64,
    /// Number of the next row.
    next: u64,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows for the companion.
    pub late: u64,
    /// Rows dropped.
    pub duplicates: u64,
    bytes: u64,
}

/// The files of one table.
#[derive(Debug)]
struct Part {
    shared: Arc<Shared>,
    table: Arc<Table>,
    columns: Arc<ColumnTable>,
    /// By chunk, in order.
    chunks: Vec<Vec<DataFile>>,
}

impl Drop for Part {
    /// Files that did not come to be part of a commit are deleted.
    fn drop(&mut self) {
        let files: Vec<DataFile> = self.chunks.drain(..).flatten().collect();
        if !files.is_empty() {
            let columns = Arc::clone(&self.columns);
            drop(self.shared.parts.spawner.io(async move { columns.discard(&files).await }));
        }
    }
}

/// The files of a commit, as snapshots and log records hold them.
#[derive(Debug)]
pub struct Files {
    /// The table.
    pub table: Oid,
    /// Its columns.
    pub columns: Arc<ColumnTable>,
    /// By chunk, with their LSNs.
    pub chunks: Vec<Vec<DataFile>>,
}

impl Files {
    /// As log records have it.
    pub(super) fn describe(&self) -> Result<StagedHeader> {
        let chunk = |files: &Vec<DataFile>| files.iter().map(|file| self.columns.describe(file)).collect();
        Ok(StagedHeader { table: self.table, chunks: self.chunks.iter().map(chunk).collect::<Result<_>>()? })
    }

    /// Reads what [`Files::describe`] gave.
    pub(super) fn described(columns: Arc<ColumnTable>, header: &StagedHeader) -> Result<Files> {
        let chunk = |files: &Vec<String>| files.iter().map(|text| columns.described(text)).collect();
        let chunks = header.chunks.iter().map(chunk).collect::<Result<_>>()?;
        Ok(Files { table: header.table, columns, chunks })
    }
}

impl Staging {
    /// Begins a statement that writes to `table`.
    pub(super) async fn begin(shared: &Arc<Shared>, table: &Arc<Table>, policy: LateRows) -> Result<Staging> {
        let snapshot = shared.published.load();
        enrich::refuse_staging(&snapshot, table.oid)?;
        let mut parts = Vec::new();
        for oid in [Some(table.oid), table.late_oid].into_iter().flatten() {
            let state = snapshot.tables.get(&oid).ok_or_else(|| dropped(oid))?;
            let columns = shared.columns(state).await?;
            parts.push(Part { shared: Arc::clone(shared), table: Arc::clone(&state.table), columns, chunks: Vec::new() });
        }
        let staged = Staged::new(shared, &snapshot, table, policy, parts);
        let chunk_bytes = (shared.parts.limits.store.statement_bytes_max / 4).max(1);
        Ok(Staging {
            shared: Arc::clone(shared),
            schema: table.schema(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            waiting_rows: 0,
            chunk_bytes,
            work: Some(Box::new(staged)),
            running: None,
        })
    }

    /// Takes completed rows, in order; waits while the chunk before theirs is written. After an error the statement has failed.
    pub async fn add(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.schema_ref().fields().len() != self.schema.fields().len() {
            return Err(Error::internal("staged rows are not the table's"));
        }
        self.waiting_bytes += rows.get_array_memory_size();
        self.waiting_rows += rows.num_rows();
        self.waiting.push(rows);
        if self.waiting_bytes >= self.chunk_bytes || self.waiting_rows >= CHUNK_ROWS_MAX {
            self.write().await?;
        }
        Ok(())
    }

    /// Starts writing what waits, once the chunk before is done.
    async fn write(&mut self) -> Result<()> {
        let mut work = self.settled().await?;
        let rows = std::mem::take(&mut self.waiting);
        (self.waiting_bytes, self.waiting_rows) = (0, 0);
        let shared = Arc::clone(&self.shared);
        self.running = Some(self.shared.parts.spawner.cpu(async move {
            work.chunk(&shared, rows).await?;
            Ok(work)
        }));
        Ok(())
    }

    async fn settled(&mut self) -> Result<Box<Staged>> {
        match (self.running.take(), self.work.take()) {
            (Some(running), _) => running.await.map_err(|error| Error::internal(format!("staging rows was cut off: {error}")))?,
            (None, Some(work)) => Ok(work),
            (None, None) => Err(Error::internal("a statement goes on after it has failed")),
        }
    }

    /// All rows have come.
    pub async fn finish(mut self) -> Result<Box<Staged>> {
        if !self.waiting.is_empty() {
            self.write().await?;
        }
        self.settled().await
    }
}

impl Staged {
    fn new(shared: &Arc<Shared>, snapshot: &Snapshot, table: &Arc<Table>, policy: LateRows, parts: Vec<Part>) -> Staged {
        let empty = |(oid, version): (&Oid, &Arc<view::Version>)| {
            (*oid, Arc::new(view::Version::new(Arc::clone(&version.spec), &shared.tools.blocks)))
        };
        // Twice: for all keys, and for those within the window.
        let mut bounds = key_bounds(&shared.parts);
        bounds.bytes_max /= 4;
        let views = Snapshot {
            next_lsn: snapshot.next_lsn,
            catalog: Arc::clone(&snapshot.catalog),
            views: snapshot.views.iter().map(empty).collect(),
            ..Snapshot::empty()
        };
        Staged {
            table: Arc::clone(table),
            policy,
            judged_lsn: snapshot.next_lsn,
            parts,
            views,
            keys: Keys::bounded(bounds.clone()),
            recent: None,
            bounds,
            unique: Taken::default(),
            oldest: None,
            newest: None,
            seen: shared.positions.lock().watermarks.get(&table.oid).map(Watermarks::in_order).unwrap_or_default(),
            applied: 0,
            next: 0,
            accepted: 0,
            late: 0,
            duplicates: 0,
            bytes: 0,
        }
    }

    /// Numbers, judges and writes the rows of one chunk.
    async fn chunk(&mut self, shared: &Shared, rows: Vec<RecordBatch>) -> Result<()> {
        let mut numbered = Vec::with_capacity(rows.len());
        for rows in rows {
            let next = self.next + rows.num_rows() as u64;
            if u32::try_from(next).is_err() {
                return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many rows in one statement"));
            }
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(self.next as i64..next as i64));
            let columns = rows.columns().iter().cloned().chain([numbers]).collect();
            numbered.push(RecordBatch::try_new(with_lsn(&rows.schema()), columns).map_err(misfit)?);
            self.next = next;
        }
        self.take(shared, numbered, None).await?;
        let bytes_max = shared.parts.limits.store.staged_bytes_max;
        if self.bytes > bytes_max {
            shared.parts.metrics.limit_hit("limits.store.staged_bytes_max");
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the statement's rows are too large")
                .detail(format!("A statement can stage {bytes_max} bytes of files."))
                .hint("Split it into several statements."));
        }
        Ok(())
    }

    /// Judges numbered rows as of now and takes what is accepted. `written` are the files that hold exactly these rows already.
    async fn take(&mut self, shared: &Shared, numbered: Vec<RecordBatch>, written: Option<Vec<DataFile>>) -> Result<()> {
        let (mut accepted, mut late) = (Vec::new(), Vec::new());
        let mut changed = false;
        for rows in numbered {
            let judged = {
                let positions = shared.positions.lock();
                if !self.table.unique.is_empty() {
                    self.unique.claim(&self.table, positions.unique.get(&self.table.oid), &rows, numbers(&rows)?)?;
                    positions.admit_keys(&shared.parts, self.unique.len())?;
                }
                positions.sort_out(&self.table, &rows, self.policy, &mut self.keys)?
            };
            let Judged { accepted: kept, late: behind, applied, duplicates, .. } = judged;
            self.applied += applied;
            changed |= kept.num_rows() != rows.num_rows();
            self.duplicates += duplicates;
            if let Some((rows, lateness)) = behind {
                self.remember_keys(&rows)?;
                late.extend(self.late_rows(shared, rows, lateness)?);
            }
            if kept.num_rows() > 0 {
                self.seen.advance(&self.table, &kept, shared.parts.clock.now())?;
                self.remember(&kept)?;
                accepted.push(kept);
            }
        }
        self.accepted += accepted.iter().map(|rows| rows.num_rows() as u64).sum::<u64>();
        self.late += late.iter().map(|rows| rows.num_rows() as u64).sum::<u64>();
        let written = written.filter(|_| !changed);
        self.keep(0, accepted, written).await?;
        self.keep(1, late, None).await
    }

    fn late_rows(&self, shared: &Shared, rows: RecordBatch, lateness: Vec<i64>) -> Result<Option<RecordBatch>> {
        let numbers = Arc::clone(rows.column(rows.num_columns() - 1));
        let now = shared.parts.clock.now();
        let Some((_, late)) = late_rows(&self.views.catalog, &self.table, Some((rows, lateness)), now)? else { return Ok(None) };
        let columns = late.columns().iter().cloned().chain([numbers]).collect();
        RecordBatch::try_new(with_lsn(&late.schema()), columns).map(Some).map_err(misfit)
    }

    /// Writes numbered rows of the table (0) or its companion (1) and shows them to the views.
    async fn keep(&mut self, part: usize, rows: Vec<RecordBatch>, written: Option<Vec<DataFile>>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let part = self.parts.get_mut(part).ok_or_else(|| Error::internal("late rows without a table for them"))?;
        let files = match written {
            Some(files) => files,
            None => {
                let files = part.columns.write(rows.clone(), 0).await?;
                self.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
                files
            }
        };
        part.chunks.push(files);
        let table = part.table.oid;
        let deltas = deltas(&self.views, table, rows, 0, 0)?;
        apply::rows(&mut self.views, Vec::new(), deltas)
    }

    /// A late row's key counts as well: sent again, it is a duplicate.
    fn remember_keys(&mut self, rows: &RecordBatch) -> Result<()> {
        if let Some((keys, times)) = dedupe_columns(&self.table, rows)? {
            let recent = self.recent.get_or_insert_with(|| Dedupe::of(&self.table));
            recent.insert(keys, times, &self.seen);
            if recent.table_bytes() > self.bounds.bytes_max {
                recent.spill(&self.bounds.dir)?;
            }
        }
        Ok(())
    }

    /// Takes note of keys and event times.
    fn remember(&mut self, rows: &RecordBatch) -> Result<()> {
        self.remember_keys(rows)?;
        if self.table.watermark.is_some() {
            self.oldest = Some(extremes(&self.table, self.oldest.take(), rows, false)?);
            self.newest = Some(extremes(&self.table, self.newest.take(), rows, true)?);
        }
        Ok(())
    }

    /// In the sequencer's turn: what has to be so for the rows to be committed as they are. 40001 when the table is not what it
    /// was; rows that would be judged otherwise by now are judged again.
    pub(super) async fn settle(mut self: Box<Self>, shared: &Arc<Shared>) -> Result<Box<Staged>> {
        let snapshot = shared.published.load();
        let present = snapshot.catalog.table(self.table.oid).ok_or_else(|| dropped(self.table.oid))?;
        let truncated = snapshot.tables.get(&self.table.oid).is_some_and(|state| state.truncated_lsn >= self.judged_lsn);
        if truncated || present.columns.len() != self.table.columns.len() {
            let what = if truncated { "truncated" } else { "altered" };
            return Err(Error::new(SqlState::SERIALIZATION_FAILURE, format!("table \"{}\" was {what} meanwhile", self.table.name))
                .hint("Run the statement again."));
        }
        enrich::refuse_staging(&snapshot, self.table.oid)?;
        self.refuse_taken(shared).await?;
        if !self.overtaken(shared, &snapshot).await? && self.same_views(&snapshot) {
            return Ok(self);
        }
        tracing::info!(table = self.table.name, rows = self.accepted, "staged rows are judged again: other commits came between");
        let parts: Vec<Part> = self
            .parts
            .iter()
            .map(|part| Part {
                shared: Arc::clone(shared),
                table: Arc::clone(&part.table),
                columns: Arc::clone(&part.columns),
                chunks: Vec::new(),
            })
            .collect();
        let mut again = Box::new(Staged::new(shared, &snapshot, &self.table, self.policy, parts));
        (again.next, again.duplicates, again.late, again.bytes) = (self.next, self.duplicates, self.late, self.bytes);
        // The companion's rows stay what they are.
        if let Some(companion) = self.parts.get_mut(1) {
            for files in std::mem::take(&mut companion.chunks) {
                let rows = read(&companion.columns, &files).await?;
                again.keep(1, vec![rows], Some(files)).await?;
            }
        }
        for files in std::mem::take(&mut self.parts[0].chunks) {
            let rows = read(&self.parts[0].columns, &files).await?;
            let kept = again.parts[0].chunks.len();
            again.take(shared, vec![rows], Some(files.clone())).await?;
            let reused = again.parts[0]
                .chunks
                .get(kept)
                .is_some_and(|chunk| chunk.first().map(|file| &file.path) == files.first().map(|file| &file.path));
            if !reused {
                self.parts[0].chunks.push(files);
            }
        }
        Ok(again)
    }

    /// 23505 when other commits have taken a key meanwhile.
    async fn refuse_taken(&self, shared: &Shared) -> Result<()> {
        let taken = {
            let positions = shared.positions.lock();
            positions.admit_keys(&shared.parts, self.unique.len())?;
            positions.unique.get(&self.table.oid).and_then(|taken| self.unique.first_in(taken))
        };
        let Some((constraint, number)) = taken else { return Ok(()) };
        for files in self.parts.iter().take(1).flat_map(|part| &part.chunks) {
            let rows = read(&self.parts[0].columns, files).await?;
            if let Ok(row) = numbers(&rows)?.binary_search(&(number as i64)) {
                return Err(unique::violation(&self.table, &self.table.unique[constraint], &rows, row));
            }
        }
        Err(Error::internal("a staged row is missing"))
    }

    fn same_views(&self, snapshot: &Snapshot) -> bool {
        self.views.views.len() == snapshot.views.len()
            && snapshot
                .views
                .iter()
                .all(|(oid, version)| self.views.views.get(oid).is_some_and(|own| Arc::ptr_eq(&own.spec, &version.spec)))
    }

    /// Whether other commits have made any of the rows late or a duplicate.
    async fn overtaken(&self, shared: &Shared, snapshot: &Snapshot) -> Result<bool> {
        if let (Some(oldest), true) = (&self.oldest, self.policy != LateRows::Apply) {
            let positions = shared.positions.lock();
            if let Some(watermarks) = positions.watermarks.get(&self.table.oid)
                && watermarks.late(&self.table, oldest)?.is_some()
            {
                return Ok(true);
            }
        }
        if self.table.options.dedup_key.is_none() {
            return Ok(false);
        }
        let since = self.judged_lsn;
        for oid in [Some(self.table.oid), self.table.late_oid].into_iter().flatten() {
            let Some(state) = snapshot.tables.get(&oid) else { continue };
            // Keys that were deleted meanwhile are in no row any more, and still taken.
            if state.deleted_lsn > since {
                return Ok(true);
            }
            for batch in state.hot.iter().filter(|batch| batch.next_lsn > since) {
                if self.has_key_of(batch.rows())? {
                    return Ok(true);
                }
            }
            let Some(cold) = &state.cold else { continue };
            for file in state.files().iter().filter(|file| file.lsn_range.1.unsigned_abs() >= since) {
                for rows in cold.columns.read(file).await? {
                    if self.has_key_of(&rows)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn has_key_of(&self, rows: &RecordBatch) -> Result<bool> {
        dedupe_columns(&self.table, rows)?.map_or(Ok(false), |(keys, _)| self.keys.has_any(keys))
    }

    /// The table and the least event time of the accepted rows.
    pub(super) fn floor(&self) -> Result<Option<(Oid, Micros)>> {
        let (Some(oldest), Some(watermark)) = (&self.oldest, self.table.watermark) else { return Ok(None) };
        Ok(event_times(oldest, watermark.column)?.iter().min().map(|least| (self.table.oid, *least)))
    }

    /// Rows numbered so far: the LSNs that the commit takes.
    pub fn numbers(&self) -> u64 {
        self.next
    }

    /// Whether there is anything to commit.
    pub(super) fn is_empty(&self) -> bool {
        self.accepted == 0 && self.late == 0
    }

    /// The rows that move the watermarks, without their numbers.
    pub(super) fn newest(&self) -> Result<Option<RecordBatch>> {
        self.newest.as_ref().map(declared).transpose()
    }

    /// Takes the files out, with the LSNs of a commit that begins at `first_lsn`. From now on they are not deleted with this.
    pub(super) fn files(&mut self, first_lsn: u64) -> Vec<Files> {
        self.parts
            .iter_mut()
            .filter(|part| !part.chunks.is_empty())
            .map(|part| {
                let chunks = std::mem::take(&mut part.chunks);
                let chunks = chunks.into_iter().map(|files| files.into_iter().map(|file| file.rebased(first_lsn as i64)).collect());
                Files { table: part.table.oid, columns: Arc::clone(&part.columns), chunks: chunks.collect() }
            })
            .collect()
    }

    /// The files as an open transaction sees them, with LSNs from `first_lsn` on.
    fn shown(&self, first_lsn: u64) -> Vec<Files> {
        let rebased = |files: &Vec<DataFile>| files.iter().map(|file| file.clone().rebased(first_lsn as i64)).collect();
        let parts = self.parts.iter().filter(|part| !part.chunks.is_empty());
        parts
            .map(|part| Files {
                table: part.table.oid,
                columns: Arc::clone(&part.columns),
                chunks: part.chunks.iter().map(rebased).collect(),
            })
            .collect()
    }

    /// Shows an open transaction the rows as they were judged, with LSNs from `first_lsn` on. Gives one past the last of these.
    pub fn show(&self, snapshot: &mut Snapshot, first_lsn: u64) -> Result<u64> {
        let next_lsn = first_lsn + self.next;
        apply::files(snapshot, self.shown(first_lsn));
        // A view that came since the rows were staged has not been shown them.
        let views = self.views.views.iter().map(|(oid, version)| (*oid, &version.spec)).collect::<HashMap<_, _>>();
        let strange = |(oid, version): &(&Oid, &mut Arc<view::Version>)| {
            version.spec.view.table == self.table.oid && !views.get(*oid).is_some_and(|spec| Arc::ptr_eq(spec, &version.spec))
        };
        for (_, version) in snapshot.views.iter_mut().filter(strange) {
            let message =
                format!("cannot read materialized view \"{}\", which is newer than rows of the transaction", version.spec.view.name);
            *version = Arc::new(version.failing(Error::unsupported(message).hint("COMMIT first.")));
        }
        apply::rows(snapshot, Vec::new(), self.deltas(first_lsn, next_lsn))?;
        Ok(next_lsn)
    }

    /// Puts files back that [`Staged::files`] took out, when the commit did not come about.
    pub(super) fn give_back(&mut self, files: Vec<Files>) {
        for files in files {
            if let Some(part) = self.parts.iter_mut().find(|part| part.table.oid == files.table) {
                part.chunks = files.chunks;
            }
        }
    }

    /// The views' deltas, as those of one commit.
    pub(super) fn deltas(&self, first_lsn: u64, next_lsn: u64) -> apply::Deltas {
        self.views.views.iter().map(|(oid, version)| (*oid, version.as_commit(first_lsn, next_lsn))).collect()
    }

    /// How many rows were out of order when they were judged.
    pub(super) fn lateness(&self) -> Lateness {
        Lateness { late: self.seen.lateness.late, diverted: self.late, applied: self.applied }
    }

    /// Takes the rows into what decides about later ones, at a time of the server's clock.
    pub(super) fn advance(&mut self, positions: &mut Positions, first_lsn: u64, now: Micros) -> Result<()> {
        if !self.unique.is_empty() {
            positions.unique.entry(self.table.oid).or_default().absorb(std::mem::take(&mut self.unique), first_lsn);
        }
        positions.advance_staged(&self.table, self.newest.as_ref(), self.lateness(), now)?;
        if let Some(recent) = self.recent.take() {
            positions.absorb(&self.table, recent);
        }
        Ok(())
    }
}

/// The deltas that numbered rows mean for the views of a snapshot, as those of one commit.
pub fn deltas(views: &Snapshot, table: Oid, rows: Vec<RecordBatch>, first_lsn: u64, next_lsn: u64) -> Result<apply::Deltas> {
    let accepted = rows
        .into_iter()
        .map(|rows| Ok(Accepted { table, rows: declared(&rows)?, first_lsn: 0, very_late: 0, found: Vec::new() }))
        .collect::<Result<Vec<_>>>()?;
    let mut deltas = apply::deltas(views, &accepted, 1)?;
    for delta in deltas.values_mut().flatten() {
        (delta.first_lsn, delta.next_lsn) = (first_lsn, next_lsn);
    }
    Ok(deltas)
}

fn numbers(numbered: &RecordBatch) -> Result<&[i64]> {
    let last = numbered.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>());
    last.map(|numbers| numbers.values().as_ref()).ok_or_else(|| Error::internal("rows without numbers"))
}

fn declared(numbered: &RecordBatch) -> Result<RecordBatch> {
    numbered.project(&(0..numbered.num_columns() - 1).collect::<Vec<_>>()).map_err(misfit)
}

/// The rows of a chunk's files in the order in which they came.
pub async fn read(columns: &ColumnTable, files: &[DataFile]) -> Result<RecordBatch> {
    let mut batches = Vec::new();
    for file in files {
        batches.extend(columns.read(file).await?);
    }
    let rows = concat_batches(&columns.layout().schema, &batches).map_err(misfit)?;
    let lsns = rows.column(rows.num_columns() - 1).as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without LSNs"))?;
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_unstable_by_key(|row| lsns.value(*row as usize));
    take_record_batch(&rows, &UInt32Array::from(order)).map_err(misfit)
}

/// Of each partition the row of least (or greatest) event time, among those kept so far and `rows`.
fn extremes(table: &Table, kept: Option<RecordBatch>, rows: &RecordBatch, greatest: bool) -> Result<RecordBatch> {
    let Some(watermark) = table.watermark else { return Ok(rows.slice(0, 0)) };
    let all = match kept {
        Some(kept) => concat_batches(&rows.schema(), [&kept, rows]).map_err(misfit)?,
        None => rows.clone(),
    };
    let times = event_times(&all, watermark.column)?;
    let keys = partition_keys(table, &all)?;
    let mut best: HashMap<Option<&str>, u32> = HashMap::new();
    for (row, time) in times.iter().enumerate() {
        use arrow::array::Array;
        let key = keys.as_ref().filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row));
        let found = best.entry(key).or_insert(row as u32);
        let before = times[*found as usize];
        if if greatest { *time > before } else { *time < before } {
            *found = row as u32;
        }
    }
    let rows: Vec<u32> = best.into_values().collect();
    let taken = take_record_batch(&all, &UInt32Array::from(rows)).map_err(misfit)?;
    crate::store::snapshot::compact_strings(&taken)
}

fn misfit(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("staged rows cannot be put together: {error}"))
}
