//! What a table is: commit, snapshot, flush, recovery.
//!
//! *Place*: `command` and `ingest` commit, `query` reads snapshots. Uses `wal`, `state`, `columnar` and `view`.
//!
//! *Invariants*: (1) one sequencer for the whole database gives every accepted row its LSN, so that one record, one sync and one
//! snapshot cover a transaction over several tables; (2) a commit is published after its record is synced and before it is
//! acknowledged; (3) positions (flushed LSN, applied LSN, catalog and watermark LSN) move with what they stand for, and the
//! log is deleted only below all of them.
//!
//! On disk, below the data directory: `verus.lock`, `wal/` (segments), `state/` (RocksDB), `tables/<name>-<oid>/` (Parquet and
//! `_delta_log`), `spill/` (temporary).

mod apply;
mod backfill;
mod background;
mod classify;
mod commit;
pub mod dedupe;
mod enrich;
mod erase;
pub mod erased;
mod flush;
mod horizon;
mod keep;
mod lock;
pub mod note;
mod positions;
pub mod progress;
mod recent;
mod record;
mod recover;
mod refresh;
pub mod rows;
pub mod snapshot;
pub mod staging;
mod syncer;
mod tidy;
mod ttl;
pub mod unique;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, LateRows, Maintenance, Oid, Table, TableKind, View};
use crate::clock::{Clock, Micros};
use crate::columnar::{ColumnTable, LsnSet};
use crate::config::Limits;
use crate::error::{Error, Result, SqlState};
use crate::state::State;
use crate::task::Spawner;
use crate::telemetry::Metrics;
pub use backfill::Progress;
pub use classify::{Lateness, PartitionClosing};
pub use note::Note;
pub use refresh::Runner;
pub use snapshot::{HotBatch, Snapshot, TableState};
pub use staging::{Staged, Staging};

/// What one statement or transaction changes: durable and visible whole, or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Catalog changes, applied before the rows.
    pub changes: Vec<Change>,
    /// Rows that go, before the others come.
    pub deletes: Vec<Delete>,
    /// Rows, in order.
    pub writes: Vec<Write>,
    /// The rows of a statement that do not fit memory; then there is nothing else in the transaction.
    pub staged: Option<Box<Staged>>,
    /// What was read before and must still hold: tables that have got no row with this LSN or a later one (40001 otherwise).
    pub unwritten: Vec<(Oid, u64)>,
    /// Whether the accepted rows are asked for: see [`Committed::rows`].
    pub returning: bool,
    /// What the server notes about the transaction, in tables of its own.
    pub notes: Vec<Note>,
    /// How far it brings the source of its rows.
    pub progress: Option<progress::Progress>,
}

/// Rows of one table that are to be deleted.
#[derive(Clone, Debug)]
pub struct Delete {
    /// The table.
    pub table: Oid,
    /// The rows, committed ones and an open transaction's own.
    pub rows: LsnSet,
    /// The snapshot in which they were seen held the commits below this LSN.
    pub read_lsn: u64,
    /// The keys that the committed ones leave free.
    pub keys: unique::Keys,
    /// Of an event table: the committed rows themselves, LSN last, for the views that count them.
    pub old: Vec<RecordBatch>,
    /// Of a table that drops duplicates: the dedup keys of the committed rows.
    pub erased: erased::Keys,
}

impl Delete {
    /// Deletes rows seen in `snapshot`. `old` are the table's columns with the LSN last.
    pub fn new(table: &Table, snapshot: &Snapshot, old: &[RecordBatch]) -> Result<Delete> {
        let read_lsn = snapshot.committed_lsn();
        let mut lsns = Vec::new();
        let mut keys: unique::Keys = vec![Vec::new(); table.unique.len()];
        for batch in old {
            let own = batch.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>());
            let own = own.ok_or_else(|| Error::internal("rows without LSNs"))?.values();
            for (all, some) in keys.iter_mut().zip(unique::keys(table, batch)?) {
                all.extend(some.into_iter().zip(own).filter(|(_, lsn)| (**lsn as u64) < read_lsn).map(|(key, _)| key));
            }
            lsns.extend(own.iter().map(|lsn| *lsn as u64));
        }
        let erased =
            if table.kind == TableKind::Plain { erased::Keys::default() } else { erased::Keys::of(&snapshot.catalog, table, old)? };
        let old = if table.kind == TableKind::Event { old.to_vec() } else { Vec::new() };
        Ok(Delete { table: table.oid, rows: lsns.into_iter().collect(), read_lsn, keys, old, erased })
    }
}

/// Rows for one table: the table's schema (all columns computed and checked), without the hidden LSN.
#[derive(Clone, Debug)]
pub struct Write {
    /// The table.
    pub table: Oid,
    /// In arrival order.
    pub rows: Vec<RecordBatch>,
    /// What to do with rows behind the watermark.
    pub late_rows: LateRows,
}

/// What became of a transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// First LSN of the record.
    pub first_lsn: u64,
    /// One past its last LSN.
    pub next_lsn: u64,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows diverted to `$late`.
    pub late: u64,
    /// Those of each table that has some.
    pub late_of: Vec<(Oid, u64)>,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// The accepted rows, in order, where the transaction asked for them.
    pub rows: Vec<RecordBatch>,
}

impl Committed {
    fn count_late(&mut self, table: Oid, rows: u64) {
        self.late += rows;
        match self.late_of.iter_mut().find(|(known, _)| *known == table) {
            Some((_, count)) => *count += rows,
            None if rows > 0 => self.late_of.push((table, rows)),
            None => {}
        }
    }
}

/// What a store is built from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The data directory.
    pub dir: PathBuf,
    /// Named maxima.
    pub limits: Limits,
    /// Binds the catalog's SQL texts.
    pub binder: Arc<dyn Binder>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runtimes.
    pub spawner: Spawner,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What the sequencer, the background work and the callers share.
#[derive(Debug)]
struct Shared {
    parts: Parts,
    state: Arc<State>,
    tools: apply::Tools,
    published: snapshot::Published,
    positions: Mutex<positions::Positions>,
    hot_bytes: AtomicUsize,
    hot_released: Notify,
    retired: Mutex<apply::Retired>,
    /// Tables whose files were opened for writing; snapshots get them with the first file.
    opened: tokio::sync::Mutex<HashMap<Oid, Arc<ColumnTable>>>,
    locks: Arc<rows::RowLocks>,
    /// Held by the one erasure under way.
    erasing: tokio::sync::Mutex<()>,
    fatal: Mutex<Option<Error>>,
    refresh: refresh::Refreshing,
    lookups: enrich::Lookups,
    backfills: Arc<backfill::Backfills>,
    horizons: horizon::Horizons,
    /// Since when rows can come.
    opened_at: Micros,
}

impl Shared {
    /// Leaves what a change has put out of use to the background work.
    fn retire(&self, retired: apply::Retired) {
        self.retired.lock().add(retired);
    }
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    queue: mpsc::Sender<commit::Message>,
    background: background::Handle,
    sequencer: Mutex<Option<std::thread::JoinHandle<()>>>,
    next_oid: AtomicU32,
    _lock: lock::DirectoryLock,
}

/// How long a commit waits for the flush to make room.
const FLUSH_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// Watermark of an event table, for system views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatermarkRange {
    /// Least watermark over the partitions, microseconds.
    pub least: Micros,
    /// Greatest watermark over the partitions, microseconds.
    pub greatest: Micros,
    /// Number of partitions.
    pub partitions: usize,
    /// Those of them that were not heard from for the table's `idle_timeout`.
    pub idle: usize,
    /// Windows of every partition that end at or before this are closed.
    pub closed_until: Micros,
    /// Rows that were not in order.
    pub lateness: Lateness,
}

/// Until when an event table's windows are closed.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Windows of every partition that end at or before this, microseconds.
    pub all: Micros,
    /// Of each partition.
    pub partitions: Vec<PartitionClosing>,
    /// Rows that came into closed windows since the table was made.
    pub very_late: u64,
    /// Commits below this LSN have moved the watermarks: a snapshot has all rows of closed windows once it has reached it.
    pub next_lsn: u64,
}

impl Store {
    /// Opens or creates the database in `parts.dir` and recovers it. Must not be called on a runtime's worker thread. A directory
    /// that another server holds is refused (55006) with its process id.
    pub fn open(parts: Parts) -> Result<Arc<Store>> {
        let lock = lock::DirectoryLock::acquire(&parts.dir)?;
        let recovered = recover::recover(&parts)?;
        let next_oid = AtomicU32::new(recovered.shared.published.load().catalog.next_oid());
        let (queue, requests) = mpsc::channel(parts.limits.store.commit_queue_max);
        let shared = recovered.shared;
        let cannot_start = |error| Error::new(SqlState::SYSTEM_ERROR, format!("cannot start the sequencer: {error}"));
        let sequencer = commit::Sequencer::start(Arc::clone(&shared), recovered.wal, recovered.next_lsn).map_err(cannot_start)?;
        let thread = parts.spawner.thread("sequencer", move || sequencer.run(requests)).map_err(cannot_start)?;
        let background = background::Handle::start(Arc::clone(&shared), queue.clone())?;
        Ok(Arc::new(Store { shared, queue, background, sequencer: Mutex::new(Some(thread)), next_oid, _lock: lock }))
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.published.load()
    }

    /// Hears of new snapshots: see [`snapshot::Published::news`].
    pub fn news(&self) -> watch::Receiver<u64> {
        self.shared.published.news()
    }

    /// An OID that no other object has or will have.
    pub fn allocate_oid(&self) -> Oid {
        self.next_oid.fetch_add(1, Ordering::Relaxed)
    }

    /// Commits: returns when durable and visible. Backfills of created views are complete when it returns. Waits while the
    /// hot rows fill their memory.
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed> {
        let building: Vec<Arc<View>> = transaction
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::CreateView(view) if !view.ready => Some(Arc::clone(view)),
                _ => None,
            })
            .collect();
        let altered = transaction.changes.iter().any(|change| matches!(change, Change::AlterView(_)));
        let committed = match erase::is_needed(&self.catalog(), &transaction.deletes) {
            true => self.erase(transaction).await?,
            false => self.submit(transaction, None).await?,
        };
        if altered {
            self.background.wake();
        }
        for view in building {
            self.build(&view, committed.first_lsn).await?;
        }
        Ok(committed)
    }

    async fn build(&self, view: &View, lsn: u64) -> Result<()> {
        let built = match view.maintenance {
            Maintenance::State => backfill::run(&self.shared, view.oid, lsn).await,
            Maintenance::Derived => Ok(()),
            Maintenance::Refreshed => refresh::refresh(&self.shared, view.oid).await,
        };
        let changes = match built {
            Ok(()) => vec![Change::ViewReady(view.oid)],
            Err(_) => self.catalog().family(view).into_iter().map(Change::DropView).collect(),
        };
        self.submit(Transaction { changes, ..Transaction::default() }, None).await?;
        built
    }

    /// Joins what runs the queries of refreshed views, once, and starts to keep them fresh.
    pub fn keep_fresh(&self, runner: Arc<dyn Runner>) {
        refresh::start(&self.shared, runner);
    }

    /// Evaluates a view anew: a refreshed one, or one that joins plain tables, whose rows are then as they are now. Returns when the
    /// result is durable and visible; at once for any other view, which is always fresh.
    pub async fn refresh(&self, view: Oid) -> Result<()> {
        let snapshot = self.snapshot();
        if snapshot.recomputed.get(&view).is_some_and(|recomputed| !recomputed.view.is_incremental()) {
            return refresh::refresh(&self.shared, view).await;
        }
        match snapshot.views.get(&view).is_some_and(|version| version.spec.join().is_some()) {
            true => backfill::rebuild(&self.shared, view, |_| true).await,
            false => Ok(()),
        }
    }

    /// How far the backfill of a view is, if one is running.
    pub fn backfill_progress(&self, view: Oid) -> Option<Progress> {
        self.shared.backfills.progress(view)
    }

    /// Why the last refresh of a view failed, if it did.
    pub fn refresh_failure(&self, view: Oid) -> Option<Error> {
        self.shared.refresh.failure(view)
    }

    /// Begins a statement whose rows do not fit memory: what it gives is committed in a transaction of its own.
    pub async fn stage(&self, table: &Arc<Table>, late_rows: LateRows) -> Result<Staging> {
        Staging::begin(&self.shared, table, late_rows).await
    }

    /// Commits deletions from tables that have views: with the views' corrections.
    async fn erase(&self, transaction: Transaction) -> Result<Committed> {
        if !transaction.changes.is_empty() {
            return Err(Error::unsupported("cannot delete events in a transaction that changes tables or views").hint("COMMIT first."));
        }
        let _turn = self.shared.erasing.lock().await;
        let mut attempts = 0;
        loop {
            let corrections = erase::prepare(Arc::clone(&self.shared), transaction.deletes.clone()).await?;
            let Transaction { deletes, writes, unwritten, .. } = &transaction;
            let attempt = Transaction {
                deletes: deletes.clone(),
                writes: writes.clone(),
                unwritten: unwritten.clone(),
                returning: transaction.returning,
                notes: transaction.notes.clone(),
                ..Transaction::default()
            };
            let outcome = self.submit(attempt, Some(corrections)).await;
            attempts += 1;
            match outcome {
                Err(error) if erase::is_moved(&error) && attempts < self.shared.parts.limits.store.retries_max => {}
                outcome => return outcome,
            }
        }
    }

    async fn submit(&self, transaction: Transaction, corrections: Option<erase::Corrections>) -> Result<Committed> {
        self.wait_for_memory().await?;
        let admitted = horizon::admit(&self.shared, &transaction).await?;
        let (reply, answer) = oneshot::channel();
        let stopped = || match self.shared.fatal.lock().clone() {
            Some(error) => error,
            None => Error::new(SqlState::ADMIN_SHUTDOWN, "the server is shutting down"),
        };
        self.queue
            .send(commit::Message::Commit(Box::new(commit::Request { transaction, corrections, admitted, reply })))
            .await
            .map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Whether a commit would not have to wait for the flush.
    pub fn has_room(&self) -> bool {
        self.shared.hot_bytes.load(Ordering::Acquire) < self.shared.parts.limits.store.hot_bytes_max
    }

    /// Back-pressure: a commit waits until the flush has made room. 53200 when that takes too long: the disk does not keep up.
    async fn wait_for_memory(&self) -> Result<()> {
        if self.shared.hot_bytes.load(Ordering::Acquire) < self.shared.parts.limits.store.hot_bytes_max {
            return Ok(());
        }
        self.shared.parts.metrics.limit_hit("limits.store.hot_bytes_max");
        tokio::time::timeout(FLUSH_WITHIN, self.memory()).await.map_err(|_| {
            Error::new(SqlState::OUT_OF_MEMORY, "rows cannot be written to disk fast enough")
                .detail("The memory for rows that are not yet in Parquet is full.")
                .hint("Look at the server's log for errors of the flush.")
        })
    }

    async fn memory(&self) {
        let bytes_max = self.shared.parts.limits.store.hot_bytes_max;
        loop {
            let released = self.shared.hot_released.notified();
            if self.shared.hot_bytes.load(Ordering::Acquire) < bytes_max {
                return;
            }
            self.background.wake();
            released.await;
        }
    }

    /// `base` with what an open transaction does on top, for its own reads. Rows are classified as at commit, and have LSNs from
    /// [`Snapshot::own_from`] on, one for each that was submitted. 23505 where a key is taken twice.
    /// `staged` are the rows of a statement that is alone in the transaction.
    pub fn overlay(
        &self,
        base: &Arc<Snapshot>,
        changes: &[Change],
        deletes: &[Delete],
        writes: &[Write],
        staged: Option<&Staged>,
    ) -> Result<Arc<Snapshot>> {
        let mut next = (**base).clone();
        next.own_from = Some(base.next_lsn);
        apply::changes(&mut next, changes, base.next_lsn, &self.shared.tools)?;
        let gone =
            deletes.iter().map(|delete| apply::Gone { table: delete.table, rows: Arc::new(delete.rows.clone()), lsn: base.next_lsn });
        apply::deletes(&mut next, &gone.collect::<Vec<_>>())?;
        for delete in deletes {
            apply::hide_views(&mut next, delete.table);
        }
        let mut accepted = Vec::new();
        let mut lsn = base.next_lsn;
        {
            let positions = self.shared.positions.lock();
            let mut staged = positions::Staging::new(changes, deletes);
            for write in writes {
                let table = next.tables.get(&write.table).ok_or_else(|| dropped(write.table))?.table.clone();
                for rows in &write.rows {
                    let judged = positions.judge(&table, rows, write.late_rows, &mut staged)?;
                    let (first_lsn, very_late) = (lsn, judged.applied);
                    lsn += rows.num_rows() as u64;
                    accepted.push(apply::Accepted { table: write.table, rows: judged.accepted, first_lsn, very_late, found: Vec::new() });
                }
            }
        }
        if let Some(staged) = staged {
            lsn = staged.show(&mut next, lsn)?;
        }
        horizon::hide_views(&mut next, &accepted, staged)?;
        next.next_lsn = lsn;
        apply::rows(&mut next, apply::hot(&accepted)?, apply::Deltas::new())?;
        enrich::find(&self.shared.parts, &self.shared.lookups, &next, &mut accepted, false)?;
        let deltas = apply::deltas(&next, &accepted, 0)?;
        apply::rows(&mut next, Vec::new(), deltas)?;
        Ok(Arc::new(next))
    }

    /// Locks for a transaction that changes rows.
    pub fn row_locks(&self) -> rows::Held {
        self.shared.locks.hold()
    }

    /// See [`unique::holders`]. With `emptied`, no committed row counts.
    pub fn key_holders(
        &self,
        table: &Table,
        emptied: bool,
        deletes: &[Delete],
        own: &[(u64, RecordBatch)],
        keys: &unique::Keys,
        constraints: &[usize],
    ) -> Result<Vec<Option<unique::Holder>>> {
        let positions = self.shared.positions.lock();
        unique::holders(table, positions.unique.get(&table.oid).filter(|_| !emptied), deletes, own, keys, constraints)
    }

    /// Whether any of `rows`, seen in a snapshot of the commits below `read_lsn`, was deleted since.
    pub fn is_stale(&self, table: Oid, rows: &LsnSet, read_lsn: u64) -> bool {
        self.shared.positions.lock().is_stale(table, rows, read_lsn)
    }

    /// The watermarks of an event table; none before its first row.
    pub fn watermark(&self, table: Oid) -> Option<WatermarkRange> {
        let snapshot = self.snapshot();
        let table = snapshot.catalog.table(table)?;
        let lateness = table.watermark?.lateness_us;
        let positions = self.shared.positions.lock();
        let watermarks = positions.watermarks.get(&table.oid)?;
        let (least, greatest) = watermarks.range()?;
        let closing = watermarks.closing(table, self.shared.parts.clock.now(), self.shared.opened_at)?;
        Some(WatermarkRange {
            least: least.saturating_sub(lateness),
            greatest: greatest.saturating_sub(lateness),
            partitions: watermarks.partitions(),
            idle: closing.idle,
            closed_until: closing.closed_until,
            lateness: watermarks.lateness,
        })
    }

    /// Until when the windows of an event table are closed; none before its first row. See [`Closed`].
    pub fn closed(&self, table: Oid) -> Option<Closed> {
        let snapshot = self.snapshot();
        let table = snapshot.catalog.table(table)?;
        let now = self.shared.parts.clock.now();
        let positions = self.shared.positions.lock();
        let watermarks = positions.watermarks.get(&table.oid)?;
        Some(Closed {
            all: watermarks.closing(table, now, self.shared.opened_at)?.closed_until,
            partitions: watermarks.partitions_closing(table, now, self.shared.opened_at).collect(),
            very_late: watermarks.lateness.applied,
            next_lsn: positions.next_lsn,
        })
    }

    /// RocksDB, for what is kept beside tables and views.
    pub fn state(&self) -> &Arc<State> {
        &self.shared.state
    }

    /// The watermark of each partition of an event table, and until when its windows are closed; in no order.
    pub fn partitions(&self, table: Oid) -> Vec<PartitionClosing> {
        let snapshot = self.snapshot();
        let Some(table) = snapshot.catalog.table(table) else { return Vec::new() };
        let now = self.shared.parts.clock.now();
        let positions = self.shared.positions.lock();
        let watermarks = positions.watermarks.get(&table.oid);
        watermarks.into_iter().flat_map(|watermarks| watermarks.partitions_closing(table, now, self.shared.opened_at)).collect()
    }

    /// Why the store has stopped taking commits, if it has.
    pub fn fatal(&self) -> Option<Error> {
        self.shared.fatal.lock().clone()
    }

    /// Finishes what is under way and stops the sequencer and the background work. Later commits are refused (57P01).
    pub async fn close(&self) {
        // An error means that the sequencer has stopped already, which is what is wanted.
        let _ = self.queue.send(commit::Message::Stop).await;
        self.background.stop();
        self.shared.refresh.stop().await;
        let sequencer = self.sequencer.lock().take();
        let background = self.background.take_thread();
        let joined = self.shared.parts.spawner.blocking(move || {
            for thread in [sequencer, background].into_iter().flatten() {
                if thread.join().is_err() {
                    tracing::error!("a storage thread panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("waiting for the storage threads failed");
        }
    }

    /// The catalog of the newest snapshot.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.snapshot().catalog)
    }
}

fn dropped(table: Oid) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation with OID {table} does not exist")).detail("It was dropped meanwhile.")
}
