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
mod flush;
mod lock;
mod positions;
mod recent;
mod record;
mod recover;
pub mod snapshot;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arrow::record_batch::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Change, LateRows, Oid};
use crate::clock::{Clock, Micros};
use crate::config::Limits;
use crate::error::{Error, Result, SqlState};
use crate::state::State;
use crate::task::Spawner;
use crate::telemetry::Metrics;
pub use snapshot::{HotBatch, Snapshot, TableState};

/// What one statement or transaction changes: durable and visible whole, or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Catalog changes, applied before the rows.
    pub changes: Vec<Change>,
    /// Rows, in order.
    pub writes: Vec<Write>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// First LSN of the record.
    pub first_lsn: u64,
    /// One past its last LSN.
    pub next_lsn: u64,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows diverted to `$late`.
    pub late: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
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
    fatal: Mutex<Option<Error>>,
}

impl Shared {
    /// Leaves what a change has put out of use to the background work.
    fn retire(&self, retired: apply::Retired) {
        let mut waiting = self.retired.lock();
        waiting.views.extend(retired.views);
        waiting.tables.extend(retired.tables);
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
        let sequencer = commit::Sequencer::new(Arc::clone(&shared), recovered.wal, recovered.next_lsn);
        let thread = parts
            .spawner
            .thread("sequencer", move || sequencer.run(requests))
            .map_err(|error| Error::new(SqlState::SYSTEM_ERROR, format!("cannot start the sequencer: {error}")))?;
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
        let building: Vec<Oid> = transaction
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::CreateView(view) if !view.ready => Some(view.oid),
                _ => None,
            })
            .collect();
        let committed = self.submit(transaction).await?;
        for view in building {
            self.build(view, committed.first_lsn).await?;
        }
        Ok(committed)
    }

    async fn build(&self, view: Oid, lsn: u64) -> Result<()> {
        match backfill::run(&self.shared, view, lsn).await {
            Ok(()) => {
                self.submit(Transaction { changes: vec![Change::ViewReady(view)], writes: Vec::new() }).await?;
                Ok(())
            }
            Err(error) => {
                self.submit(Transaction { changes: vec![Change::DropView(view)], writes: Vec::new() }).await?;
                Err(error)
            }
        }
    }

    async fn submit(&self, transaction: Transaction) -> Result<Committed> {
        self.wait_for_memory().await?;
        let (reply, answer) = oneshot::channel();
        let stopped = || match self.shared.fatal.lock().clone() {
            Some(error) => error,
            None => Error::new(SqlState::ADMIN_SHUTDOWN, "the server is shutting down"),
        };
        self.queue.send(commit::Message::Commit(commit::Request { transaction, reply })).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
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

    /// `base` with an open transaction's changes and rows on top, for its own reads. Rows are classified as at commit.
    pub fn overlay(&self, base: &Arc<Snapshot>, changes: &[Change], writes: &[Write]) -> Result<Arc<Snapshot>> {
        let mut next = (**base).clone();
        apply::changes(&mut next, changes, base.next_lsn, &self.shared.tools)?;
        let mut accepted = Vec::new();
        {
            let positions = self.shared.positions.lock();
            let mut lsn = base.next_lsn;
            let mut staged: HashMap<Oid, dedupe::Staged> = HashMap::new();
            for write in writes {
                let table = next.tables.get(&write.table).ok_or_else(|| dropped(write.table))?.table.clone();
                for rows in &write.rows {
                    let judged = positions.judge(&table, rows, write.late_rows, staged.entry(write.table).or_default())?;
                    let first_lsn = lsn;
                    lsn += judged.accepted.num_rows() as u64;
                    accepted.push(apply::Accepted { table: write.table, rows: judged.accepted, first_lsn });
                }
            }
        }
        let deltas = apply::deltas(&next, &accepted, 0)?;
        next.next_lsn = accepted.last().map_or(next.next_lsn, apply::Accepted::next_lsn);
        apply::rows(&mut next, apply::hot(&accepted)?, deltas)?;
        Ok(Arc::new(next))
    }

    /// The watermarks of an event table; none before its first row.
    pub fn watermark(&self, table: Oid) -> Option<WatermarkRange> {
        let snapshot = self.snapshot();
        let lateness = snapshot.catalog.table(table)?.watermark?.lateness_us;
        let positions = self.shared.positions.lock();
        let watermarks = positions.watermarks.get(&table)?;
        let (least, greatest) = watermarks.range()?;
        Some(WatermarkRange { least: least - lateness, greatest: greatest - lateness, partitions: watermarks.partitions() })
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
