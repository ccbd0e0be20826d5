//! The sequencer: the only thread that assigns LSNs and writes the log.
//!
//! *Place*: fed by `Store::commit` through a bounded queue.
//!
//! *Way of a group*: take what has queued; judge each transaction's rows against the watermarks, give them LSNs and append
//! its record; then sync the log once while the views' deltas are computed on the other cores; publish one snapshot; answer.
//! Throughput grows with load because the sync is paid once a group.
//!
//! *On failure*: a transaction that is refused (late rows, a name that is taken) leaves nothing behind. A failed append or sync
//! stops the store for good: what was promised durable may not be, and only a restart can tell.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, IntervalMonthDayNanoArray, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::buffer::Buffer;
use arrow::datatypes::IntervalMonthDayNano;
use tokio::sync::{mpsc, oneshot};

use crate::catalog::{Catalog, Change, Oid, Table};
use crate::clock::Micros;
use crate::columnar::ColumnTable;
use crate::error::{Error, Result, SqlState};
use crate::store::apply::{self, Accepted, Deltas, Gone};
use crate::store::backfill::Rebuilt;
use crate::store::enrich::{self, Found};
use crate::store::erase::{self, Corrections};
use crate::store::erased;
use crate::store::flush::layout;
use crate::store::horizon::Admitted;
use crate::store::positions::{Judged, Staging};
use crate::store::progress::{self, Logged};
use crate::store::record::{
    CorrectionHeader, DeletesHeader, Encoder, ErasedHeader, FoundHeader, Header, RowsHeader, encode_header, encode_states,
};
use crate::store::rows::stale;
use crate::store::snapshot::Snapshot;
use crate::store::staging::{Files, Staged};
use crate::store::syncer::Syncer;
use crate::store::tidy::Tidier;
use crate::store::unique::Keys;
use crate::store::{Committed, Delete, Shared, Transaction, Write, dropped};
use crate::types::UTC;
use crate::wal::{Cut, Wal};

/// What the sequencer is asked to do.
#[derive(Debug)]
pub enum Message {
    /// Commit a transaction and answer.
    Commit(Box<Request>),
    /// Everything below the LSN is durable elsewhere: hand over what the log no longer needs.
    CutLog(u64, oneshot::Sender<Cut>),
    /// Finish and end.
    Stop,
}

/// A transaction and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What to commit.
    pub transaction: Transaction,
    /// Of the views that its deletions change.
    pub corrections: Option<Corrections>,
    /// Kept until the rows are visible.
    pub admitted: Option<Admitted>,
    /// Hears the outcome.
    pub reply: oneshot::Sender<Result<Committed>>,
}

/// State of the sequencer's thread.
#[derive(Debug)]
pub struct Sequencer {
    shared: Arc<Shared>,
    wal: Wal,
    syncer: Syncer,
    tidier: Tidier,
    next_lsn: u64,
    encoder: Encoder,
}

/// A transaction whose record is appended but not yet synced.
struct Waiting {
    reply: oneshot::Sender<Result<Committed>>,
    committed: Committed,
    /// Dropped when the rows are visible.
    _admitted: Option<Admitted>,
}

/// What a group adds to the snapshot.
#[derive(Default)]
struct Group {
    waiting: Vec<Waiting>,
    gone: Vec<Gone>,
    corrections: erase::Completed,
    /// LSN of the commit with the corrections, which is alone in its group.
    corrections_lsn: u64,
    accepted: Vec<Accepted>,
    changes: Vec<Change>,
    changes_lsn: u64,
    /// Files and deltas of a statement that did not fit memory.
    staged: Option<(Vec<Files>, Deltas)>,
    /// Where sources are then.
    sources: Vec<Logged>,
}

/// What one transaction adds.
#[derive(Default)]
struct Additions {
    gone: Vec<Gone>,
    corrections: erase::Completed,
    accepted: Vec<Accepted>,
    /// Keys of the rows that go.
    erased: Vec<erased::Keys>,
    /// Keys taken by rows whose LSNs begin at the last member.
    keys: Vec<(Oid, Keys, u64)>,
    /// Where its source is then.
    sources: Vec<Logged>,
}

impl Sequencer {
    /// Continues the log at `next_lsn`, with two threads that help.
    pub fn start(shared: Arc<Shared>, wal: Wal, next_lsn: u64) -> std::io::Result<Sequencer> {
        let (syncer, tidier) = (Syncer::start(&shared.parts.spawner)?, Tidier::start(&shared)?);
        Ok(Sequencer { shared, wal, syncer, tidier, next_lsn, encoder: Encoder::default() })
    }

    /// Serves the queue until it is closed, told to stop, or the log fails.
    pub fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut held = None;
        loop {
            let Some(message) = held.take().or_else(|| queue.blocking_recv()) else { return };
            match message {
                Message::Stop => {
                    queue.close();
                    while let Some(message) = queue.blocking_recv() {
                        if let Message::Commit(request) = message {
                            self.group(vec![*request]);
                        }
                    }
                    return;
                }
                Message::CutLog(lsn, reply) => {
                    match self.wal.cut_before(lsn) {
                        Ok(cut) => drop(reply.send(cut)),
                        Err(error) => tracing::warn!(%error, "the log was not cut; the next attempt follows"),
                    }
                    self.shared.parts.metrics.log_size.set(self.wal.bytes() as i64);
                }
                Message::Commit(request) => {
                    let rows_max = self.shared.parts.limits.store.group_rows_max;
                    let (requests, next) = gather(*request, &mut queue, rows_max, |request| self.is_alone(request));
                    held = next;
                    self.group(requests);
                    self.tidier.wake();
                }
            }
        }
    }

    /// Commits a group of transactions with one sync and one snapshot.
    fn group(&mut self, requests: Vec<Request>) {
        let started = std::time::Instant::now();
        let mut group = Group::default();
        for Request { transaction, corrections, admitted, reply } in requests {
            let fatal = self.shared.fatal.lock().clone();
            let outcome = match fatal {
                Some(fatal) => Err(fatal),
                None => self.stage(transaction, corrections, &mut group),
            };
            match outcome {
                Ok(committed) => group.waiting.push(Waiting { reply, committed, _admitted: admitted }),
                // The client may have gone: nobody is left to hear it.
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        if group.waiting.is_empty() {
            return;
        }
        let outcome = self.make_durable_and_visible(&mut group);
        self.shared.parts.metrics.commit.observe(started.elapsed());
        match outcome {
            Ok(()) => {
                for Waiting { reply, committed, .. } in group.waiting {
                    self.count(&committed);
                    drop(reply.send(Ok(committed)));
                }
            }
            Err(error) => {
                self.stop(&error);
                group.waiting.into_iter().for_each(|staged| drop(staged.reply.send(Err(error.clone()))));
            }
        }
    }

    /// Takes no commit from here on.
    fn stop(&self, error: &Error) {
        tracing::error!(%error, "the log or the snapshot failed; no further commits are taken");
        *self.shared.fatal.lock() = Some(error.clone());
    }

    fn count(&self, committed: &Committed) {
        let metrics = &self.shared.parts.metrics;
        metrics.commits.inc();
        metrics.rows_accepted.inc_by(committed.accepted);
        metrics.rows_late.inc_by(committed.late);
        metrics.rows_duplicate.inc_by(committed.duplicates);
    }

    /// Judges a transaction's rows, assigns LSNs and appends its record. On error nothing has changed.
    fn stage(&mut self, transaction: Transaction, corrections: Option<Corrections>, group: &mut Group) -> Result<Committed> {
        let Transaction { changes, deletes, writes, staged, unwritten, returning, notes, progress } = transaction;
        if let Some(staged) = staged {
            return self.stage_files(staged, group);
        }
        let snapshot = self.shared.published.load();
        unwritten.iter().try_for_each(|(table, lsn)| expect_unwritten(&snapshot, *table, *lsn))?;
        let mut catalog = Arc::clone(&snapshot.catalog);
        for change in &changes {
            catalog = Arc::new(catalog.with(change)?);
        }
        if !changes.is_empty() {
            // Compiles new views once more at publication; here it proves that they can be.
            apply::changes(&mut (*snapshot).clone(), &changes, self.next_lsn, &self.shared.tools)?;
        }
        if let Some(progress) = &progress {
            progress::check(progress, &catalog, &self.shared.positions.lock().sources)?;
        }
        let mut committed = Committed::default();
        let mut staged = Additions::default();
        let mut lsn = self.next_lsn;
        let now = self.shared.parts.clock.now();
        let mut staging = Staging::new(&changes, &deletes);
        staged.gone = self.gone(&catalog, &deletes)?;
        staged.erased = self.erased(&deletes);
        staged.corrections = match corrections {
            Some(corrections) => corrections.complete(&snapshot, self.next_lsn)?,
            None if erase::is_needed(&catalog, &deletes) => return Err(erase::moved()),
            None => erase::Completed::default(),
        };
        for (table, judged) in self.judge(&catalog, writes, &mut staging, &mut committed)? {
            let Judged { accepted: rows, keys, late, applied, .. } = judged;
            if returning && rows.num_rows() > 0 {
                committed.rows.push(rows.clone());
            }
            if !keys.is_empty() {
                staged.keys.push((table.oid, keys, lsn));
            }
            let diverted = late_rows(&catalog, &table, late, now)?.map(|(companion, rows)| (companion, rows, 0));
            for (table, rows, very_late) in [Some((table.oid, rows, applied)), diverted].into_iter().flatten() {
                if rows.num_rows() > 0 {
                    staged.accepted.push(Accepted { table, first_lsn: lsn, rows, very_late, found: Vec::new() });
                    lsn = staged.accepted[staged.accepted.len() - 1].next_lsn();
                }
            }
        }
        for note in notes {
            let rows = note.complete(&catalog, &committed)?;
            staged.accepted.push(Accepted { table: note.table, first_lsn: lsn, rows, very_late: 0, found: Vec::new() });
            lsn = staged.accepted[staged.accepted.len() - 1].next_lsn();
        }
        if let Some(progress) = &progress {
            staged.sources = progress::logged(progress, &self.shared.positions.lock().sources, &committed, now);
        }
        if staged.accepted.is_empty() && staged.gone.is_empty() && changes.is_empty() && staged.sources.is_empty() {
            committed.next_lsn = self.next_lsn;
            return Ok(committed);
        }
        self.look_up(&snapshot, &changes, &mut staged)?;
        let next_lsn = lsn.max(self.next_lsn + 1);
        self.append(&changes, &staged, next_lsn, now)?;
        // The log has it: a restart would show what was refused here.
        self.advance(&catalog, &changes, &deletes, &mut staged, next_lsn, now).inspect_err(|error| self.stop(error))?;
        committed.first_lsn = self.next_lsn;
        committed.next_lsn = next_lsn;
        group.changes_lsn = self.next_lsn;
        group.changes.extend(changes);
        group.gone.extend(staged.gone);
        group.corrections.deltas.extend(staged.corrections.deltas);
        group.corrections.rebuilt.extend(staged.corrections.rebuilt);
        group.corrections_lsn = committed.first_lsn;
        group.accepted.extend(staged.accepted);
        group.sources.extend(staged.sources);
        self.next_lsn = next_lsn;
        Ok(committed)
    }

    /// Finds what views join the accepted rows with, as of the newest snapshot with this transaction on top.
    fn look_up(&self, newest: &Arc<Snapshot>, changes: &[Change], staged: &mut Additions) -> Result<()> {
        let parts = &self.shared.parts;
        let accepted = &mut staged.accepted;
        let mut base = Arc::clone(newest);
        if !changes.is_empty() {
            apply::changes(Arc::make_mut(&mut base), changes, self.next_lsn, &self.shared.tools)?;
        }
        let own: Vec<Accepted> = accepted.iter().filter(|rows| enrich::is_joined(&base.catalog, rows.table)).cloned().collect();
        for rows in &own {
            if let Some(table) = base.tables.get(&rows.table) {
                enrich::within_limit(parts, table, rows.rows.num_rows())?;
            }
        }
        if !enrich::is_needed(&base, accepted) {
            return Ok(());
        }
        let gone: Vec<Gone> = staged.gone.iter().filter(|gone| enrich::is_joined(&base.catalog, gone.table)).cloned().collect();
        if !gone.is_empty() {
            apply::deletes(Arc::make_mut(&mut base), &gone)?;
        }
        if !own.is_empty() {
            apply::rows(Arc::make_mut(&mut base), apply::hot(&own)?, apply::Deltas::new())?;
        }
        enrich::find(parts, &self.shared.lookups, &base, accepted, true)
    }

    /// Whether a transaction makes a group of its own: others are staged against the catalog and the joined tables that it leaves,
    /// and staged files are compared with what is published.
    fn is_alone(&self, Request { transaction, corrections, .. }: &Request) -> bool {
        let catalog = &self.shared.published.load().catalog;
        let touched = transaction.writes.iter().map(|write| write.table).chain(transaction.deletes.iter().map(|delete| delete.table));
        !transaction.changes.is_empty()
            || transaction.staged.is_some()
            || corrections.is_some()
            || touched.into_iter().any(|table| enrich::is_joined(catalog, table))
    }

    /// Commits the rows of a statement that are in files already. On error nothing has changed.
    fn stage_files(&mut self, staged: Box<Staged>, group: &mut Group) -> Result<Committed> {
        let mut staged = self.shared.parts.spawner.cpu_handle().block_on(staged.settle(&self.shared))?;
        let (first_lsn, next_lsn) = (self.next_lsn, self.next_lsn + staged.numbers().max(1));
        let (accepted, late, duplicates) = (staged.accepted, staged.late, staged.duplicates);
        if staged.is_empty() {
            return Ok(Committed { next_lsn: first_lsn, duplicates, ..Committed::default() });
        }
        let files = staged.files(first_lsn);
        let now = self.shared.parts.clock.now();
        if let Err(error) = self.append_files(&staged, &files, next_lsn, now) {
            staged.give_back(files);
            return Err(error);
        }
        let deltas = staged.deltas(first_lsn, next_lsn);
        let mut positions = self.shared.positions.lock();
        staged.advance(&mut positions, first_lsn, now).inspect_err(|error| self.stop(error))?;
        positions.next_lsn = next_lsn;
        group.staged = Some((files, deltas));
        self.next_lsn = next_lsn;
        let late_of = if late > 0 { vec![(staged.table.oid, late)] } else { Vec::new() };
        Ok(Committed { first_lsn, next_lsn, accepted, late, late_of, duplicates, rows: Vec::new() })
    }

    fn append_files(&mut self, staged: &Staged, files: &[Files], next_lsn: u64, now: Micros) -> Result<()> {
        let mut header = Header { lateness: staged.lateness(), committed_at: now, ..Header::default() };
        for files in files {
            header.staged.push(files.describe()?);
        }
        let mut buffers: Vec<Buffer> = Vec::new();
        if let Some(newest) = staged.newest()? {
            buffers = self.encoder.encode(staged.table.oid, &newest)?;
            let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
            let (table, first_lsn, columns) = (staged.table.oid, self.next_lsn, newest.num_columns());
            header.newest = Some(RowsHeader { table, first_lsn, columns, bytes, very_late: 0 });
        }
        self.write(&header, &buffers, next_lsn)
    }

    /// The rows that a transaction deletes, all of which must still be there (40001).
    fn gone(&self, catalog: &Catalog, deletes: &[Delete]) -> Result<Vec<Gone>> {
        let positions = self.shared.positions.lock();
        let mut gone: Vec<Gone> = Vec::new();
        for delete in deletes.iter().filter(|delete| !delete.rows.is_empty()) {
            catalog.table(delete.table).ok_or_else(|| dropped(delete.table))?;
            if positions.is_stale(delete.table, &delete.rows, delete.read_lsn) {
                return Err(stale());
            }
            match gone.iter_mut().find(|gone| gone.table == delete.table) {
                Some(gone) => gone.rows = Arc::new(gone.rows.union(&delete.rows)),
                None => gone.push(Gone { table: delete.table, rows: Arc::new(delete.rows.clone()), lsn: self.next_lsn }),
            }
        }
        Ok(gone)
    }

    /// The keys of the rows that go, as far as their tables still look at them.
    fn erased(&self, deletes: &[Delete]) -> Vec<erased::Keys> {
        let positions = self.shared.positions.lock();
        let mut erased = Vec::new();
        for erased::Keys { table, keys } in deletes.iter().map(|delete| &delete.erased) {
            let Some(oldest) = positions.oldest_key(*table) else { continue };
            let keys: Vec<_> = keys.iter().filter(|(_, time)| *time >= oldest).copied().collect();
            if !keys.is_empty() {
                erased.push(erased::Keys { table: *table, keys });
            }
        }
        erased
    }

    fn judge(
        &self,
        catalog: &Catalog,
        writes: Vec<Write>,
        staging: &mut Staging,
        committed: &mut Committed,
    ) -> Result<Vec<(Arc<Table>, Judged)>> {
        let positions = self.shared.positions.lock();
        let mut sorted = Vec::new();
        let mut keys = 0;
        for write in writes {
            let table = catalog.table(write.table).ok_or_else(|| dropped(write.table))?;
            let schema = table.schema();
            for rows in write.rows {
                if rows.schema().fields().len() != schema.fields().len() {
                    return Err(Error::new(SqlState::SERIALIZATION_FAILURE, format!("table \"{}\" was altered meanwhile", table.name))
                        .hint("Run the statement again."));
                }
                let judged = positions.judge(table, &rows, write.late_rows, staging)?;
                committed.accepted += judged.accepted.num_rows() as u64;
                committed.count_late(table.oid, judged.late.as_ref().map_or(0, |(rows, _)| rows.num_rows() as u64));
                committed.duplicates += judged.duplicates;
                keys += judged.keys.iter().map(Vec::len).sum::<usize>();
                sorted.push((Arc::clone(table), judged));
            }
        }
        positions.admit_keys(&self.shared.parts, keys)?;
        Ok(sorted)
    }

    fn append(&mut self, changes: &[Change], staged: &Additions, next_lsn: u64, now: i64) -> Result<()> {
        let sources = staged.sources.clone();
        let mut header = Header { changes: changes.to_vec(), sources, committed_at: now, ..Header::default() };
        let mut buffers: Vec<Buffer> = Vec::new();
        for Accepted { table, rows, first_lsn, very_late, .. } in &staged.accepted {
            let message = self.encoder.encode(*table, rows)?;
            let bytes = message.iter().map(|buffer| buffer.len() as u64).sum();
            header.rows.push(RowsHeader {
                table: *table,
                first_lsn: *first_lsn,
                columns: rows.num_columns(),
                bytes,
                very_late: *very_late,
            });
            buffers.extend(message);
        }
        for (index, accepted) in staged.accepted.iter().enumerate() {
            for Found { views, rows } in &accepted.found {
                let stream = views.first().copied().ok_or_else(|| Error::internal("a join of no view"))?;
                let message = self.encoder.encode(stream, rows)?;
                let bytes = message.iter().map(|buffer| buffer.len() as u64).sum();
                header.found.push(FoundHeader { batch: index, views: views.clone(), bytes });
                buffers.extend(message);
            }
        }
        for Gone { table, rows, .. } in &staged.gone {
            let mut bytes = Vec::new();
            rows.encode(&mut bytes);
            header.deletes.push(DeletesHeader { table: *table, bytes: bytes.len() as u64 });
            buffers.push(Buffer::from_vec(bytes));
        }
        header.rebuilt.extend(staged.corrections.rebuilt.iter().map(Rebuilt::view));
        for (view, delta) in &staged.corrections.deltas {
            let bytes = encode_states(&delta.rows)?;
            header.corrections.push(CorrectionHeader { view: *view, bytes: bytes.len() as u64 });
            buffers.push(Buffer::from_vec(bytes));
        }
        for keys in &staged.erased {
            let bytes = keys.encode();
            header.erased.push(ErasedHeader { table: keys.table, bytes: bytes.len() as u64 });
            buffers.push(Buffer::from_vec(bytes));
        }
        self.write(&header, &buffers, next_lsn)
    }

    fn write(&mut self, header: &Header, buffers: &[Buffer], next_lsn: u64) -> Result<()> {
        let head = encode_header(header)?;
        let mut parts: Vec<&[u8]> = Vec::with_capacity(buffers.len() + 1);
        parts.push(&head);
        parts.extend(buffers.iter().map(Buffer::as_slice));
        self.wal.append(self.next_lsn, next_lsn, &parts)?;
        Ok(())
    }

    fn advance(
        &self,
        catalog: &Catalog,
        changes: &[Change],
        deletes: &[Delete],
        staged: &mut Additions,
        next_lsn: u64,
        now: Micros,
    ) -> Result<()> {
        let mut positions = self.shared.positions.lock();
        for change in changes {
            if let Change::DropTable(oid) | Change::Truncate(oid) = change {
                positions.forget(*oid, self.next_lsn);
            }
            if let Change::DropSource(oid) = change {
                positions.sources.remove(oid);
            }
        }
        for delete in deletes {
            positions.delete(delete.table, &Arc::new(delete.rows.clone()), &delete.keys, self.next_lsn);
        }
        for keys in staged.erased.drain(..) {
            positions.erased.add(self.next_lsn, keys);
        }
        for (table, keys, first_lsn) in &staged.keys {
            positions.unique.entry(*table).or_default().insert(keys, *first_lsn);
        }
        for rows in &staged.accepted {
            if let Some(table) = catalog.table(rows.table) {
                let owner = catalog.tables().find(|owner| owner.late_oid == Some(table.oid)).unwrap_or(table);
                positions.advance(owner, rows, now)?;
                // A late row's key counts as well: sent again, it is a duplicate and not late once more.
                positions.remember(owner, &rows.rows)?;
            }
        }
        progress::advance(&mut positions.sources, &staged.sources);
        positions.next_lsn = next_lsn;
        Ok(())
    }

    /// Syncs the log while the deltas are computed, then publishes.
    fn make_durable_and_visible(&mut self, group: &mut Group) -> Result<()> {
        let base = self.with_changes(group)?;
        let accepted = &group.accepted;
        let threads = usize::from(accepted.iter().map(|rows| rows.rows.num_rows()).sum::<usize>() > PARALLEL_ROWS_MIN) + 1;
        let deltas = || apply::deltas(&base, accepted, threads);
        let (outcome, deltas) = match self.wal.unsynced() {
            Some(file) => {
                let ((outcome, elapsed), deltas) = self.syncer.sync_during(file, deltas);
                self.shared.parts.metrics.log_sync.observe(elapsed);
                (outcome, deltas)
            }
            None => (Ok(()), deltas()),
        };
        self.wal.synced(outcome)?;
        let (hot, deltas) = (apply::hot(accepted)?, deltas?);
        let next_lsn = self.next_lsn;
        let widened = self.widen_files(&base, &group.changes)?;
        // Whoever sees emptied or dropped state finds the old one among what has to go first: see the background work.
        let mut waiting = self.shared.retired.lock();
        let retired = self.shared.published.update(|snapshot| {
            let retired = apply::changes(snapshot, &group.changes, group.changes_lsn, &self.shared.tools)?;
            for (table, columns) in widened {
                if let Some(table) = snapshot.table_mut(table) {
                    let version = columns.version();
                    table.set_cold(columns, version);
                }
            }
            apply::deletes(snapshot, &group.gone)?;
            apply::corrections(snapshot, std::mem::take(&mut group.corrections.deltas))?;
            apply::rebuilt(snapshot, &mut group.corrections.rebuilt, group.corrections_lsn);
            apply::rows(snapshot, hot, deltas)?;
            if let Some((files, deltas)) = group.staged.take() {
                apply::files(snapshot, files);
                apply::rows(snapshot, Vec::new(), deltas)?;
            }
            progress::publish(snapshot, &group.sources, &group.changes);
            snapshot.next_lsn = next_lsn;
            self.shared.hot_bytes.store(snapshot.hot_bytes(), Ordering::Release);
            Ok(retired)
        })?;
        waiting.add(retired);
        Ok(())
    }

    /// The files of altered tables, to be read with their new columns.
    fn widen_files(&self, changed: &Snapshot, changes: &[Change]) -> Result<Vec<(Oid, Arc<ColumnTable>)>> {
        let mut widened = Vec::new();
        for change in changes {
            if let Change::AlterTable(table) = change
                && let Some(cold) = changed.tables.get(&table.oid).and_then(|state| state.cold.as_ref())
            {
                let mut columns = (*cold.columns).clone();
                self.shared.parts.spawner.cpu_handle().block_on(columns.evolve(layout(table)?))?;
                widened.push((table.oid, Arc::new(columns)));
            }
        }
        Ok(widened)
    }

    /// The snapshot that the group's rows are applied to: the newest one with the group's catalog changes.
    fn with_changes(&self, group: &Group) -> Result<Arc<Snapshot>> {
        let base = self.shared.published.load();
        if group.changes.is_empty() {
            return Ok(base);
        }
        let mut changed = (*base).clone();
        apply::changes(&mut changed, &group.changes, group.changes_lsn, &self.shared.tools)?;
        Ok(Arc::new(changed))
    }
}

/// 40001 when a table has got rows from `lsn` on. A transaction with such an expectation that changes the catalog is alone in its
/// group, so the snapshot has everything before it.
fn expect_unwritten(snapshot: &Snapshot, table: Oid, lsn: u64) -> Result<()> {
    let state = snapshot.tables.get(&table).ok_or_else(|| dropped(table))?;
    let written =
        state.hot.iter().any(|batch| batch.next_lsn > lsn) || state.files().iter().any(|file| file.lsn_range.1.unsigned_abs() >= lsn);
    match written {
        true => Err(Error::new(SqlState::SERIALIZATION_FAILURE, format!("rows came into table \"{}\" meanwhile", state.table.name))
            .hint("Run the statement again.")),
        false => Ok(()),
    }
}

/// Below this many rows a second thread costs more than it saves.
const PARALLEL_ROWS_MIN: usize = 4_096;

/// Takes what has queued, up to a number of rows. A transaction that has to be `alone` makes a group of its own, so that every
/// one is staged against the catalog and the joined tables that it will meet; so does one that corrects views, which has to know all
/// rows before it.
fn gather(
    first: Request,
    queue: &mut mpsc::Receiver<Message>,
    rows_max: usize,
    is_alone: impl Fn(&Request) -> bool,
) -> (Vec<Request>, Option<Message>) {
    let mut rows = row_count(&first.transaction);
    let alone = is_alone(&first);
    let mut group = vec![first];
    while !alone && rows < rows_max {
        match queue.try_recv() {
            Ok(Message::Commit(request)) if !is_alone(&request) => {
                rows += row_count(&request.transaction);
                group.push(*request);
            }
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

fn row_count(transaction: &Transaction) -> usize {
    transaction.writes.iter().flat_map(|write| &write.rows).map(RecordBatch::num_rows).sum()
}

/// The very late rows as rows of the table's `$late` companion: its columns, then lateness, arrival time and disposition.
pub fn late_rows(catalog: &Catalog, table: &Table, late: Option<(RecordBatch, Vec<i64>)>, now: i64) -> Result<Option<(Oid, RecordBatch)>> {
    let (Some((rows, lateness)), Some(companion)) = (late, table.late_oid.and_then(|oid| catalog.table(oid))) else { return Ok(None) };
    let count = rows.num_rows();
    let lateness: IntervalMonthDayNanoArray =
        lateness.into_iter().map(|us| Some(IntervalMonthDayNano::new(0, 0, us.saturating_mul(1_000)))).collect();
    let arrived: ArrayRef = Arc::new(TimestampMicrosecondArray::from_value(now, count).with_timezone(UTC));
    let disposition: ArrayRef = Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n("diverted", count)));
    let added: [(&str, ArrayRef); 3] = [("lateness", Arc::new(lateness)), ("arrived_at", arrived), ("disposition", disposition)];
    // By name: columns that the table got later stand behind the added ones.
    let columns = companion
        .columns
        .iter()
        .map(|column| match table.column(&column.name) {
            Some(index) => Ok(Arc::clone(rows.column(index))),
            None => added
                .iter()
                .find(|(name, _)| *name == column.name)
                .map(|(_, array)| Arc::clone(array))
                .ok_or_else(|| Error::internal(format!("column {} of {} has no source", column.name, companion.name))),
        })
        .collect::<Result<Vec<_>>>()?;
    let rows =
        RecordBatch::try_new(companion.schema(), columns).map_err(|error| Error::internal(format!("late rows do not fit: {error}")))?;
    Ok(Some((companion.oid, rows)))
}
