//! The background work: view checkpoints, flushes, merges, compaction, retention, deletion, truncation of the log.
//!
//! *Place*: one thread, started by `Store::open`. Everything that rewrites stored data happens here, one thing at a time, so
//! that no two of them meet.
//!
//! *Order of a round*: what is out of use is deleted first, so that nothing stored later is deleted with it; checkpoints; flushes;
//! windows that leave or enter view state; one merge per view, and those after deletions; when there was no flush to do, one step of compaction per table; then the log is cut.
//!
//! *On failure*: a round that fails is logged and tried again in the next one; nothing is lost, the log keeps what is not stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::catalog::Oid;
use crate::clock::Micros;
use crate::columnar::{self, Dead, Deleted};
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family};
use crate::store::commit::Message;
use crate::store::flush::{flush, table_dir};
use crate::store::positions::{Saved, save_deleted, save_expired};
use crate::store::{Shared, TableState, apply::Retired, horizon, ttl};

enum Signal {
    Wake,
    Stop,
}

/// The running background work.
#[derive(Debug)]
pub struct Handle {
    signals: SyncSender<Signal>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Signal::Wake => "Wake",
            Signal::Stop => "Stop",
        })
    }
}

impl Handle {
    /// Starts the thread.
    pub fn start(shared: Arc<Shared>, log: mpsc::Sender<Message>) -> Result<Handle> {
        let (signals, inbox) = sync_channel(8);
        let spawner = shared.parts.spawner.clone();
        let now = Instant::now();
        let mut work = Background {
            shared,
            log,
            leaving: Vec::new(),
            flushed: now,
            checkpointed: now,
            log_cut: 0,
            saved_dead: HashMap::new(),
            stale_since: HashMap::new(),
        };
        let thread = spawner
            .background_thread("background", move || work.run(&inbox))
            .map_err(|error| Error::new(SqlState::SYSTEM_ERROR, format!("cannot start the background work: {error}")))?;
        Ok(Handle { signals, thread: Mutex::new(Some(thread)) })
    }

    /// Asks for a round now. A full channel means that one is coming anyway.
    pub fn wake(&self) {
        drop(self.signals.try_send(Signal::Wake));
    }

    /// Asks the thread to end after the present step.
    pub fn stop(&self) {
        drop(self.signals.send(Signal::Stop));
    }

    /// The thread, to be joined; once.
    pub fn take_thread(&self) -> Option<std::thread::JoinHandle<()>> {
        self.thread.lock().take()
    }
}

struct Background {
    shared: Arc<Shared>,
    log: mpsc::Sender<Message>,
    /// Dropped tables whose files are deleted once no snapshot holds them.
    leaving: Vec<Arc<TableState>>,
    flushed: Instant,
    checkpointed: Instant,
    log_cut: u64,
    /// The dead rows of each table as they were saved last.
    saved_dead: HashMap<Oid, (Deleted, u64)>,
    /// Since when a table has files with dead rows.
    stale_since: HashMap<Oid, Instant>,
}

/// How long a round resolves what deletions have left in views; the next one goes on.
const RESOLVING_MAX: Duration = Duration::from_secs(2);

/// Memory of hot rows in the budget for each row that one step of compaction rewrites: they are all in memory, twice while they
/// are put in order.
const BYTES_PER_COMPACTED_ROW: usize = 640;

impl Background {
    fn run(&mut self, inbox: &Receiver<Signal>) {
        let pause = Duration::from_millis(self.shared.parts.limits.store.checkpoint_ms.max(1));
        loop {
            match inbox.recv_timeout(pause) {
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(Signal::Wake) | Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = self.round(pause) {
                tracing::error!(%error, "background work failed and will be tried again");
            }
        }
        // So that the next start replays little. A failure here costs only that.
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "the last checkpoint failed");
        }
    }

    fn round(&mut self, pause: Duration) -> Result<()> {
        self.delete_retired()?;
        // Rounds that were asked for come more often than checkpoints are due.
        let due = self.checkpointed.elapsed() >= pause;
        if due {
            horizon::draw(&self.shared);
            self.checkpoint()?;
            self.checkpointed = Instant::now();
        }
        let flushed = self.flush_due()?;
        if let Err(error) = ttl::evict(&self.shared) {
            tracing::error!(%error, "windows of views stay where they are");
        }
        if due {
            self.merge_views()?;
        }
        if due && !flushed {
            self.compact()?;
        }
        self.collect()?;
        self.shared.tools.blocks.sweep()?;
        if flushed || self.log_cut < self.shared.published.load().next_lsn {
            self.cut_log()?;
        }
        self.measure();
        Ok(())
    }

    /// Deletes the state of views and the files of tables that were dropped or emptied.
    fn delete_retired(&mut self) -> Result<()> {
        let Retired { views, results, tables } = std::mem::take(&mut *self.shared.retired.lock());
        for version in views {
            let mut batch = Batch::default();
            version.drop_state(&mut batch);
            self.shared.state.write(batch)?;
            version.dropped();
        }
        for result in results {
            let mut batch = Batch::default();
            result.drop_state(&mut batch);
            self.shared.state.write(batch)?;
            result.dropped();
        }
        for table in tables {
            if self.shared.published.load().tables.contains_key(&table.table.oid) {
                if let Some(cold) = &table.cold {
                    table.staged.iter().for_each(|file| cold.columns.abandon(std::slice::from_ref(file)));
                }
                self.unlist_truncated(table.table.oid)?;
            } else {
                self.shared.opened.blocking_lock().remove(&table.table.oid);
                self.leaving.push(table);
            }
        }
        self.leaving.retain(|table| {
            if Arc::strong_count(table) > 1 {
                return true;
            }
            let mut batch = Batch::default();
            save_deleted(table.table.oid, &Deleted::default(), 0, &mut batch);
            if let Err(error) = self.shared.state.write(batch) {
                tracing::warn!(%error, "the deleted rows of a dropped table could not be forgotten");
            }
            let dir = table_dir(&self.shared.parts.dir, &table.table);
            match std::fs::remove_dir_all(&dir) {
                Ok(()) => false,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), "the files of a dropped table could not be deleted yet");
                    true
                }
            }
        });
        Ok(())
    }

    /// Takes the files of truncated rows out of the table log, for other readers of it.
    fn unlist_truncated(&self, oid: Oid) -> Result<()> {
        let snapshot = self.shared.published.load();
        let Some((table, cold)) = snapshot.tables.get(&oid).and_then(|table| Some((table, table.cold.as_ref()?))) else { return Ok(()) };
        let listed = cold.columns.version();
        let gone: Vec<_> = listed.files.iter().filter(|file| (file.lsn_range.1 as u64) < table.truncated_lsn).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let flushed_lsn = listed.flushed_lsn.max(table.truncated_lsn);
        let version = self.block_on(cold.columns.commit(Vec::new(), &gone, flushed_lsn))?;
        self.publish_cold(oid, version)
    }

    fn publish_cold(&self, oid: Oid, version: Arc<columnar::Version>) -> Result<()> {
        self.shared.published.update(|snapshot| {
            if let Some(table) = snapshot.table_mut(oid)
                && let Some(cold) = table.cold.take()
            {
                table.set_cold(cold.columns, version);
            }
            Ok(())
        })
    }

    /// Writes the views' deltas as blocks, with the applied LSN.
    fn checkpoint(&mut self) -> Result<()> {
        let started = Instant::now();
        let snapshot = self.shared.published.load();
        for (oid, version) in &snapshot.views {
            // A view under construction gets its blocks and its position from the backfill.
            let ready = snapshot.catalog.view(*oid).is_some_and(|view| view.ready) && !version.must_rebuild();
            if !ready || (version.size().deltas == 0 && version.applied_lsn() > 0 && !version.is_ahead()) {
                continue;
            }
            self.shared.backfills.store(*oid, || self.checkpoint_view(*oid))?;
        }
        self.shared.parts.metrics.checkpoint.observe(started.elapsed());
        Ok(())
    }

    fn checkpoint_view(&self, oid: Oid) -> Result<()> {
        // The newest: its state may have been replaced since the round began.
        let snapshot = self.shared.published.load();
        let Some(version) = snapshot.views.get(&oid) else { return Ok(()) };
        // State that this one has taken the place of goes first: with a position beyond it, a start after a crash would find both.
        if self.shared.retired.lock().views.iter().any(|retired| retired.spec.view.oid == oid) {
            return Ok(());
        }
        let mut batch = Batch::default();
        let checkpoint = version.checkpoint(snapshot.next_lsn, &mut batch)?;
        self.shared.state.write(batch)?;
        let published = self.shared.published.update(|newest| {
            Ok(match newest.views.get_mut(&oid) {
                Some(present) if Arc::ptr_eq(&present.spec, &version.spec) => {
                    *present = Arc::new(present.checkpointed(&checkpoint));
                    true
                }
                _ => false,
            })
        })?;
        if !published {
            // The view was dropped or emptied meanwhile: what was just written goes as well.
            self.shared.retire(Retired { views: vec![Arc::new(version.checkpointed(&checkpoint))], ..Retired::default() });
        }
        Ok(())
    }

    /// Flushes the tables whose hot rows are many or old, or all when memory is short.
    fn flush_due(&mut self) -> Result<bool> {
        let limits = self.shared.parts.limits.store.clone();
        let short = self.is_memory_short();
        let old = self.flushed.elapsed() >= Duration::from_millis(limits.flush_age_ms);
        let snapshot = self.shared.published.load();
        let mut flushed = false;
        for (oid, table) in &snapshot.tables {
            let rows = table.hot_rows();
            // Staged files only have to be listed.
            if !table.staged.is_empty() || (rows > 0 && (rows >= limits.flush_rows || short || old)) {
                flushed |= self.block_on(flush(&self.shared, *oid))?;
            }
        }
        if old {
            self.flushed = Instant::now();
        }
        Ok(flushed)
    }

    fn merge_views(&self) -> Result<()> {
        let snapshot = self.shared.published.load();
        let started = Instant::now();
        for oid in snapshot.views.keys() {
            // Until what deletions have left is resolved queries are not routed to the view.
            while self.shared.backfills.store(*oid, || self.merge_view(*oid))? == Some(true) && started.elapsed() < RESOLVING_MAX {}
        }
        Ok(())
    }

    /// At most one merge. Whether blocks are left that have to be merged soon.
    fn merge_view(&self, oid: Oid) -> Result<bool> {
        // The newest: its state may have been replaced since the round began.
        let snapshot = self.shared.published.load();
        let Some(version) = snapshot.views.get(&oid) else { return Ok(false) };
        let horizons = &self.shared.horizons;
        let settles = version.spec.settles() && version.is_in_blocks();
        let all = || if settles && horizons.is_due(oid, version.applied_lsn()) { version.whole() } else { None };
        let Some(merging) = version.mergeable().or_else(all) else { return Ok(false) };
        let settles = settles && merging.is_whole();
        let horizon = if settles { horizons.take(oid, version.applied_lsn()) } else { None };
        let began = Instant::now();
        let mut batch = Batch::default();
        let merged = version.merge(merging, horizon, &mut batch)?;
        self.shared.state.write(batch)?;
        if horizon.is_some() {
            let least = Duration::from_millis(self.shared.parts.limits.store.settle_ms);
            horizons.settled(oid, least.max(began.elapsed() * horizon::REST_FACTOR));
        }
        let published = self.shared.published.update(|newest| {
            Ok(match newest.views.get_mut(&oid) {
                Some(present) if Arc::ptr_eq(&present.spec, &version.spec) => {
                    *present = Arc::new(present.merged(&merged));
                    Some(present.is_marked())
                }
                _ => None,
            })
        })?;
        if published.is_none() {
            // As for a checkpoint: what was just written goes as well.
            self.shared.retire(Retired { views: vec![Arc::new(version.merged(&merged))], ..Retired::default() });
        }
        Ok(published.unwrap_or(false))
    }

    fn compact(&mut self) -> Result<()> {
        let snapshot = self.shared.published.load();
        let limits = &self.shared.parts.limits;
        let rows_max = ((limits.store.hot_bytes_max / BYTES_PER_COMPACTED_ROW) as u64).min(limits.columnar.step_rows_max);
        for (oid, table) in &snapshot.tables {
            let Some(cold) = &table.cold else { continue };
            // A replay of the log would read files that it names, for views that have not stored them yet.
            if table.files().iter().any(|file| file.lsn_base != 0 && file.lsn_range.1.unsigned_abs() >= self.log_cut) {
                continue;
            }
            let started = Instant::now();
            // Rows stay while windows that only they answer for could not be put back.
            let retain_from = self.retain_from(table).filter(|retain_from| match ttl::before_retention(&self.shared, *oid, *retain_from) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, table = table.table.name, "rows past their retention are kept: windows of a view need them");
                    false
                }
            });
            if let Some(until) = retain_from.and_then(|retain_from| cold.columns.expires(retain_from)) {
                self.note_expired(*oid, until)?;
            }
            let dead = Dead { deleted: &table.deleted, clean_lsn: snapshot.next_lsn, thorough: self.is_due(*oid, table) };
            if let Some(version) = self.block_on(cold.columns.compact(retain_from, rows_max, &dead))? {
                self.publish_cold(*oid, version)?;
                self.shared.parts.metrics.compaction.observe(started.elapsed());
            }
        }
        self.forget_dead()
    }

    /// Notes for good, before it happens, that retention removes rows up to an event time.
    fn note_expired(&self, oid: Oid, until: Micros) -> Result<()> {
        let mut batch = Batch::default();
        save_expired(oid, until, &mut batch);
        self.shared.state.write(batch)?;
        self.shared.state.sync()?;
        let mut positions = self.shared.positions.lock();
        let noted = positions.expired.entry(oid).or_insert(until);
        *noted = (*noted).max(until);
        Ok(())
    }

    /// Whether dead rows have been in a table's files for so long that each of these is to be rewritten.
    fn is_due(&mut self, oid: Oid, table: &TableState) -> bool {
        if !table.files().iter().any(|file| table.deleted.meets(file)) {
            self.stale_since.remove(&oid);
            return false;
        }
        let age = self.stale_since.entry(oid).or_insert_with(Instant::now).elapsed();
        age >= Duration::from_millis(self.shared.parts.limits.store.erase_age_ms)
    }

    /// Forgets deleted rows that are in no file any more. Nothing is being written here: see [`Deleted::forget_absent`].
    fn forget_dead(&mut self) -> Result<()> {
        let with_dead = |table: &TableState| !table.deleted.is_empty();
        if !self.shared.published.load().tables.values().any(|table| with_dead(table)) {
            return Ok(());
        }
        self.shared.published.update(|snapshot| {
            let oids: Vec<Oid> = snapshot.tables.iter().filter(|(_, table)| with_dead(table)).map(|(oid, _)| *oid).collect();
            for oid in oids {
                let Some(table) = snapshot.table_mut(oid) else { continue };
                let mut deleted = std::mem::take(&mut table.deleted);
                deleted.forget_absent(table.files());
                table.deleted = deleted;
            }
            Ok(())
        })
    }

    fn retain_from(&self, table: &TableState) -> Option<Micros> {
        let retention_us = table.table.options.retention_us?;
        let positions = self.shared.positions.lock();
        let (_, newest) = positions.watermarks.get(&table.table.oid)?.range()?;
        Some(newest.saturating_sub(retention_us))
    }

    /// Deletes files that neither the table log nor any snapshot lists any more.
    fn collect(&self) -> Result<()> {
        for table in self.shared.published.load().tables.values() {
            if let Some(cold) = table.cold.as_ref().filter(|cold| cold.columns.has_let_go()) {
                self.block_on(cold.columns.collect())?;
            }
        }
        Ok(())
    }

    /// Saves catalog and watermarks, makes the state store durable, and gives the log below every position free.
    fn cut_log(&mut self) -> Result<()> {
        let (saved, erased) = {
            let positions = self.shared.positions.lock();
            (Saved::of(&positions), positions.erased.save(|table| positions.oldest_key(table)))
        };
        // Positions run ahead of the sync of the log: wait until what they include is published.
        while self.shared.published.load().next_lsn < saved.next_lsn {
            if self.shared.fatal.lock().is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(mut erased) = erased {
            let mut batch = Batch::default();
            erased.put(&mut batch);
            self.shared.state.write(batch)?;
            self.shared.positions.lock().erased.saved(erased);
        }
        let snapshot = self.shared.published.load();
        let hot = snapshot.tables.values().filter_map(|table| Some(table.hot.first()?.first_lsn));
        let views = snapshot.views.values().filter_map(|version| version.first_delta_lsn());
        let staged = snapshot.tables.values().filter_map(|table| table.staged.iter().map(|file| file.lsn_range.0.unsigned_abs()).min());
        let needed = hot.chain(staged).chain(views).min().unwrap_or(saved.next_lsn).min(saved.next_lsn);
        // A view that has no position yet lives from the log alone, from its creation on.
        let building = snapshot.catalog.views().any(|view| !view.ready);
        let unplaced = snapshot.views.values().any(|version| version.applied_lsn() == 0);
        if building || unplaced || needed <= self.log_cut {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.put(Family::Meta, Saved::KEY, saved.with_catalog(&snapshot).encode()?);
        for (oid, table) in &snapshot.tables {
            if self.saved_dead.get(oid).is_none_or(|(saved, lsn)| *lsn != table.deleted_lsn || !saved.is_same(&table.deleted)) {
                save_deleted(*oid, &table.deleted, table.deleted_lsn, &mut batch);
            }
        }
        self.shared.state.write(batch)?;
        self.shared.state.sync()?;
        self.saved_dead = snapshot.tables.iter().map(|(oid, table)| (*oid, (table.deleted.clone(), table.deleted_lsn))).collect();
        // A full queue means load: the next round asks again.
        let (reply, answer) = oneshot::channel();
        if self.log.try_send(Message::CutLog(needed, reply)).is_err() {
            return Ok(());
        }
        // No answer comes from a log that is being closed.
        let Ok(cut) = answer.blocking_recv() else { return Ok(()) };
        self.log_cut = needed;
        cut.remove()
    }

    fn measure(&self) {
        let snapshot = self.shared.published.load();
        let metrics = &self.shared.parts.metrics;
        metrics.hot_rows.set(snapshot.tables.values().map(|table| table.hot_rows() as i64).sum());
        metrics.hot_size.set(snapshot.hot_bytes() as i64);
        let files = || snapshot.tables.values().flat_map(|table| table.files());
        metrics.files.set(files().count() as i64);
        metrics.files_size.set(files().map(|file| file.bytes as i64).sum());
        let sizes: Vec<_> = snapshot.views.values().map(|version| version.size()).collect();
        metrics.view_blocks.set(sizes.iter().map(|size| size.blocks as i64).sum());
        metrics.view_deltas.set(sizes.iter().map(|size| size.deltas as i64).sum());
        metrics.view_state_size.set(sizes.iter().map(|size| size.block_bytes as i64).sum());
    }

    /// Waits for work on files, which yields to clients until memory runs short: then they wait for it.
    fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let spawner = &self.shared.parts.spawner;
        if self.is_memory_short() { spawner.cpu_handle().block_on(work) } else { spawner.background_handle().block_on(work) }
    }

    /// Whether the hot rows take half of what they may.
    fn is_memory_short(&self) -> bool {
        self.shared.hot_bytes.load(std::sync::atomic::Ordering::Acquire) >= self.shared.parts.limits.store.hot_bytes_max / 2
    }
}
