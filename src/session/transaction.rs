//! The open transaction: its status, its catalog changes and rows, its savepoints.
//!
//! *Place*: `command` submits changes, `command::transaction` begins and ends blocks, `pg` wraps every message in an implicit
//! transaction.
//!
//! *Invariants*: (1) nothing of an open transaction is in the store: COMMIT sends all of it as one [`store::Transaction`], ROLLBACK
//! forgets it; (2) a statement reads one snapshot, with the transaction's own changes on top; under REPEATABLE READ every statement
//! reads the first one's; (3) a failed transaction submits nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;

use crate::bus::Pending;
use crate::catalog::{Change, LateRows, Oid, Table, TableKind};
use crate::clock::Micros;
use crate::columnar::LsnSet;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::session::vars::Saved;
use crate::store::rows::Held;
use crate::store::unique;
use crate::store::{self, Committed, Delete, Snapshot, Staged, Write};

/// Savepoints of one transaction.
const SAVEPOINTS_MAX: usize = 1024;

/// LISTEN and UNLISTEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// LISTEN.
    To(String),
    /// UNLISTEN.
    No(String),
    /// UNLISTEN *.
    Nothing,
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// None is open.
    #[default]
    Idle,
    /// The one around a message. `deferred`: around several statements, so that changes wait for its end.
    Implicit {
        /// Changes wait for the end.
        deferred: bool,
    },
    /// BEGIN was said.
    Block,
    /// A statement of the block failed: only its end is accepted.
    Failed,
}

/// An open transaction, or none.
#[derive(Debug, Default)]
pub struct State {
    status: Status,
    now: Micros,
    changes: Vec<Change>,
    deletes: Vec<Delete>,
    writes: Vec<Write>,
    /// Rows of a statement that do not fit memory; then there is nothing else.
    staged: Option<Box<Staged>>,
    unwritten: Vec<(Oid, u64)>,
    write_bytes: usize,
    /// The committed rows that it has changed.
    locks: Option<Held>,
    savepoints: Vec<Savepoint>,
    listening: Vec<Listening>,
    base: Option<Arc<Snapshot>>,
    overlay: Option<Overlay>,
    /// Counts the changes of `changes`, `deletes`, `writes` and `staged`.
    version: u64,
    /// A statement has read or written: the isolation level stands.
    used: bool,
}

#[derive(Debug)]
struct Savepoint {
    name: String,
    changes: Vec<Change>,
    deletes: Vec<Delete>,
    writes: Vec<Write>,
    write_bytes: usize,
    staged: bool,
    listening: usize,
    notifications: usize,
    vars: Saved,
}

/// The last overlay and what it was made of.
#[derive(Debug)]
struct Overlay {
    base: Arc<Snapshot>,
    version: u64,
    snapshot: Arc<Snapshot>,
}

impl State {
    /// Where it stands.
    pub fn status(&self) -> Status {
        self.status
    }

    /// True between BEGIN and its end.
    pub fn in_block(&self) -> bool {
        matches!(self.status, Status::Block | Status::Failed)
    }

    /// True when its end will send something to the store.
    pub fn is_dirty(&self) -> bool {
        !self.changes.is_empty() || !self.deletes.is_empty() || !self.writes.is_empty() || self.staged.is_some()
    }

    /// True once a statement has read or written.
    pub fn is_used(&self) -> bool {
        self.used
    }

    /// When it started: NOW().
    pub fn now(&self) -> Micros {
        self.now
    }

    fn clear(&mut self) {
        *self = State::default();
    }
}

impl Session {
    /// Opens an implicit transaction unless one is open. Of one around several statements the changes wait for its end.
    pub fn enter(&mut self, deferred: bool) {
        match &mut self.transaction.status {
            Status::Idle => {
                self.transaction.clear();
                self.transaction.status = Status::Implicit { deferred };
                self.transaction.now = self.services.clock.now();
                self.vars.begin();
            }
            Status::Implicit { deferred: waits } => *waits |= deferred,
            Status::Block | Status::Failed => {}
        }
    }

    /// BEGIN. False when a block is open already (25001 is a warning there).
    pub fn begin(&mut self) -> bool {
        self.enter(true);
        let fresh = matches!(self.transaction.status, Status::Implicit { .. });
        if fresh {
            self.transaction.status = Status::Block;
        }
        fresh
    }

    /// Ends the transaction well: durable and visible when it returns. After an error nothing of it is.
    pub async fn commit(&mut self) -> Result<Committed> {
        if self.transaction.status == Status::Failed {
            self.rollback();
            return Ok(Committed::default());
        }
        let notifications = std::mem::take(&mut *self.entry().notifications.lock());
        if notifications.is_empty() {
            return self.commit_silently().await;
        }
        // Held over the commit, so that listeners hear of commits in their order.
        let services = Arc::clone(&self.services);
        let turn = services.bus.turn().await;
        if let Err(error) = turn.admit(&notifications) {
            self.rollback();
            return Err(error);
        }
        let committed = self.commit_silently().await?;
        turn.publish(self.backend, &notifications);
        Ok(committed)
    }

    /// Commits all but the notifications.
    async fn commit_silently(&mut self) -> Result<Committed> {
        let listening = std::mem::take(&mut self.transaction.listening);
        if !self.transaction.is_dirty() {
            self.end(true);
            self.listen(listening);
            return Ok(Committed::default());
        }
        let state = &mut self.transaction;
        let (changes, deletes) = (std::mem::take(&mut state.changes), std::mem::take(&mut state.deletes));
        let (writes, unwritten) = (std::mem::take(&mut state.writes), std::mem::take(&mut state.unwritten));
        let staged = state.staged.take();
        let outcome = self.send(store::Transaction { changes, deletes, writes, staged, unwritten, ..store::Transaction::default() }).await;
        self.end(outcome.is_ok());
        let committed = outcome?;
        self.listen(listening);
        let catalog = self.services.store.catalog();
        for (table, rows) in &committed.late_of {
            if let Some(table) = catalog.table(*table) {
                self.notice_late(&table.name, *rows);
            }
        }
        Ok(committed)
    }

    /// Ends the transaction without a trace.
    pub fn rollback(&mut self) {
        self.end(false);
    }

    /// Ends an implicit transaction as its statements went; a block stays, and fails when they did.
    pub async fn leave(&mut self, well: bool) -> Result<()> {
        match (self.transaction.status, well) {
            (Status::Implicit { .. }, true) => self.commit().await.map(|_| ()),
            (Status::Implicit { .. }, false) => {
                self.rollback();
                Ok(())
            }
            (Status::Block, false) => {
                self.transaction.status = Status::Failed;
                if self.transaction.savepoints.is_empty() {
                    // Nothing of it can be saved any more: nobody need wait for it.
                    self.transaction.locks = None;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// LISTEN or UNLISTEN when the transaction commits.
    pub fn listening(&mut self, change: Listening) {
        self.transaction.listening.push(change);
    }

    fn listen(&mut self, changes: Vec<Listening>) {
        for change in changes {
            match change {
                Listening::To(channel) => self.listener.listen(&channel),
                Listening::No(channel) => self.listener.unlisten(&channel),
                Listening::Nothing => self.listener.unlisten_all(),
            }
        }
    }

    fn end(&mut self, well: bool) {
        *self.entry().notifications.lock() = Pending::default();
        self.transaction.clear();
        if well {
            self.vars.commit();
        } else {
            self.vars.rollback();
        }
        self.portals.retain(|_, portal| portal.hold && well);
    }

    /// SAVEPOINT. 25P01 outside a block.
    pub fn savepoint(&mut self, name: &str) -> Result<()> {
        self.only_in_block("SAVEPOINT")?;
        if self.transaction.savepoints.len() >= SAVEPOINTS_MAX {
            return Err(Error::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("a transaction can have at most {SAVEPOINTS_MAX} savepoints"),
            ));
        }
        let notifications = self.entry().notifications.lock().len();
        let state = &mut self.transaction;
        state.savepoints.push(Savepoint {
            name: name.to_owned(),
            changes: state.changes.clone(),
            deletes: state.deletes.clone(),
            writes: state.writes.clone(),
            write_bytes: state.write_bytes,
            staged: state.staged.is_some(),
            listening: state.listening.len(),
            notifications,
            vars: self.vars.save(),
        });
        Ok(())
    }

    /// RELEASE: the savepoint and those after it are forgotten, their changes stay. 3B001 when there is none.
    pub fn release(&mut self, name: &str) -> Result<()> {
        self.only_in_block("RELEASE SAVEPOINT")?;
        let at = self.find_savepoint(name)?;
        self.transaction.savepoints.truncate(at);
        Ok(())
    }

    /// ROLLBACK TO: what came after the savepoint is forgotten, the savepoint stays, a failed block lives again.
    pub fn rollback_to(&mut self, name: &str) -> Result<()> {
        self.only_in_block("ROLLBACK TO SAVEPOINT")?;
        let at = self.find_savepoint(name)?;
        let entry = Arc::clone(self.entry());
        let state = &mut self.transaction;
        state.savepoints.truncate(at + 1);
        if let Some(savepoint) = state.savepoints.last() {
            state.changes = savepoint.changes.clone();
            state.deletes = savepoint.deletes.clone();
            state.writes = savepoint.writes.clone();
            state.write_bytes = savepoint.write_bytes;
            state.staged = state.staged.take().filter(|_| savepoint.staged);
            state.listening.truncate(savepoint.listening);
            entry.notifications.lock().truncate(savepoint.notifications);
            self.vars.restore(&savepoint.vars);
        }
        state.version += 1;
        state.status = Status::Block;
        Ok(())
    }

    fn find_savepoint(&self, name: &str) -> Result<usize> {
        self.transaction
            .savepoints
            .iter()
            .rposition(|savepoint| savepoint.name == name)
            .ok_or_else(|| Error::new(SqlState("3B001"), format!("savepoint \"{name}\" does not exist")))
    }

    fn only_in_block(&self, command: &str) -> Result<()> {
        if self.transaction.in_block() {
            return Ok(());
        }
        Err(Error::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, format!("{command} can only be used in transaction blocks")))
    }

    /// What the statement sees: the newest snapshot (under REPEATABLE READ the transaction's first one) with the transaction's own
    /// changes on top. Take it once a statement.
    pub fn snapshot(&mut self) -> Result<Arc<Snapshot>> {
        self.transaction.used = true;
        let base = match &self.transaction.base {
            Some(base) => Arc::clone(base),
            None => {
                let newest = self.services.store.snapshot();
                if self.vars.repeatable_read() {
                    self.transaction.base = Some(Arc::clone(&newest));
                }
                newest
            }
        };
        let state = &mut self.transaction;
        if !state.is_dirty() {
            return Ok(base);
        }
        if let Some(overlay) = &state.overlay
            && overlay.version == state.version
            && Arc::ptr_eq(&overlay.base, &base)
        {
            return Ok(Arc::clone(&overlay.snapshot));
        }
        let snapshot = self.services.store.overlay(&base, &state.changes, &state.deletes, &state.writes, state.staged.as_deref())?;
        state.overlay = Some(Overlay { base, version: state.version, snapshot: Arc::clone(&snapshot) });
        Ok(snapshot)
    }

    /// Makes changes: at once and durably outside a block; inside one they are checked, kept, and sent by COMMIT. Inside, all rows
    /// count as accepted: which of them are late or duplicates is decided at COMMIT.
    pub async fn submit(&mut self, transaction: store::Transaction) -> Result<Committed> {
        if self.vars.read_only() {
            return Err(Error::new(SqlState::READ_ONLY_SQL_TRANSACTION, "cannot change data in a read-only transaction"));
        }
        self.transaction.used = true;
        match self.transaction.status {
            Status::Idle | Status::Implicit { deferred: false } => self.send(transaction).await,
            Status::Implicit { deferred: true } | Status::Block => self.buffer(transaction),
            Status::Failed => Err(aborted()),
        }
    }

    /// The one way to the store. Marked, so that whoever stops the statement waits for the outcome.
    async fn send(&mut self, transaction: store::Transaction) -> Result<Committed> {
        struct Mark(Arc<AtomicBool>);
        impl Drop for Mark {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        let mark = Mark(self.committing());
        mark.0.store(true, Ordering::Release);
        self.services.store.commit(transaction).await
    }

    /// Keeps changes until COMMIT. On an error the transaction is as before.
    fn buffer(&mut self, transaction: store::Transaction) -> Result<Committed> {
        if self.transaction.staged.is_some() {
            return Err(Error::unsupported("cannot change anything more in a transaction that has written more rows than memory")
                .hint("COMMIT first."));
        }
        if let Some(staged) = transaction.staged {
            if self.transaction.is_dirty() {
                return Err(Error::internal("staged rows are the first change of their transaction"));
            }
            let accepted = staged.numbers();
            self.transaction.staged = Some(staged);
            self.transaction.version += 1;
            return Ok(Committed { accepted, ..Committed::default() });
        }
        let bytes_max = self.services.config.limits.store.statement_bytes_max;
        let rows_of = |writes: &[Write]| writes.iter().flat_map(|write| &write.rows).map(|rows| rows.num_rows() as u64).sum::<u64>();
        let bytes: usize = transaction.writes.iter().flat_map(|write| &write.rows).map(|rows| rows.get_array_memory_size()).sum();
        let write_bytes = self.transaction.write_bytes.saturating_add(bytes);
        if write_bytes > bytes_max {
            return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "the transaction's rows are too large")
                .detail(format!("A transaction can hold {bytes_max} bytes of rows."))
                .hint("COMMIT more often."));
        }
        let catalog = Arc::clone(&self.snapshot()?.catalog);
        let keyed = |table: Oid| catalog.table(table).is_some_and(|table| !table.unique.is_empty());
        let checked = |write: &Write| write.late_rows == LateRows::Error || keyed(write.table);
        let must_check = !transaction.changes.is_empty() || transaction.writes.iter().any(checked);
        let rows =
            if transaction.returning { transaction.writes.iter().flat_map(|write| write.rows.clone()).collect() } else { Vec::new() };
        let accepted = rows_of(&transaction.writes);
        let state = &self.transaction;
        let before = (state.changes.clone(), state.deletes.clone(), state.writes.clone(), state.write_bytes);
        for change in &transaction.changes {
            match change {
                // Changes go before rows at COMMIT, so rows that this one removes must not be sent at all.
                Change::DropTable(oid) | Change::Truncate(oid) => {
                    self.transaction.writes.retain(|write| write.table != *oid);
                    self.transaction.deletes.retain(|delete| delete.table != *oid);
                }
                Change::AlterTable(table) if self.has_rows_for(table.oid) => {
                    return Err(Error::unsupported(format!(
                        "cannot alter table {} after adding rows to it in the same transaction",
                        table.name
                    ))
                    .hint("COMMIT first."));
                }
                _ => {}
            }
        }
        for mut delete in transaction.deletes {
            let (committed, own) = delete.rows.split(delete.read_lsn);
            if !own.is_empty() && catalog.table(delete.table).is_some_and(|table| table.kind == TableKind::Event) {
                // Which of them will be accepted is not decided yet.
                return Err(Error::unsupported("cannot delete events that were added in the same transaction").hint("COMMIT first."));
            }
            self.take_back(&own, delete.read_lsn)?;
            delete.rows = committed;
            if !delete.rows.is_empty() {
                self.transaction.deletes.push(delete);
            }
        }
        let state = &mut self.transaction;
        state.changes.extend(transaction.changes);
        state.writes.extend(transaction.writes);
        // A change that is rolled back to a savepoint leaves its expectation behind, which then costs a retry at worst.
        state.unwritten.extend(transaction.unwritten);
        state.write_bytes = write_bytes;
        state.version += 1;
        if must_check && let Err(error) = self.snapshot() {
            let state = &mut self.transaction;
            (state.changes, state.deletes, state.writes, state.write_bytes) = before;
            state.version += 1;
            return Err(error);
        }
        Ok(Committed { accepted, rows, ..Committed::default() })
    }

    /// Takes rows that the transaction itself has added out of it: the overlay numbered them from `first_lsn` on.
    fn take_back(&mut self, own: &LsnSet, first_lsn: u64) -> Result<()> {
        let mut lsn = first_lsn;
        for rows in self.transaction.writes.iter_mut().flat_map(|write| &mut write.rows) {
            let next_lsn = lsn + rows.num_rows() as u64;
            if own.meets(lsn, next_lsn) {
                let kept: BooleanArray = (lsn..next_lsn).map(|lsn| Some(!own.contains(lsn))).collect();
                *rows = filter_record_batch(rows, &kept).map_err(|error| Error::internal(error.to_string()))?;
            }
            lsn = next_lsn;
        }
        Ok(())
    }

    /// For each row of `keys` who has a key of it in one of `constraints`, as the transaction sees it.
    pub fn key_holders(&mut self, table: &Table, keys: &unique::Keys, constraints: &[usize]) -> Result<Vec<Option<unique::Holder>>> {
        let mut lsn = self.snapshot()?.committed_lsn();
        let mut own = Vec::new();
        for write in &self.transaction.writes {
            for rows in &write.rows {
                if write.table == table.oid {
                    own.push((lsn, rows.clone()));
                }
                lsn += rows.num_rows() as u64;
            }
        }
        let emptied = self.transaction.changes.iter().any(|change| matches!(change, Change::Truncate(oid) if *oid == table.oid));
        self.services.store.key_holders(table, emptied, &self.transaction.deletes, &own, keys, constraints)
    }

    /// Locks the committed rows that a statement is to delete or replace, until the transaction ends. False when some of them are
    /// gone since the statement's snapshot: it has to be evaluated again, or to fail (40001).
    pub async fn lock_rows(&mut self, delete: &Delete) -> Result<bool> {
        let (rows, _) = delete.rows.split(delete.read_lsn);
        let store = Arc::clone(&self.services.store);
        self.transaction.locks.get_or_insert_with(|| store.row_locks()).lock(delete.table, &rows).await?;
        Ok(!store.is_stale(delete.table, &rows, delete.read_lsn))
    }

    fn has_rows_for(&self, table: Oid) -> bool {
        self.transaction.writes.iter().any(|write| write.table == table)
    }

    /// Tells the client how many rows went to a table's companion.
    pub fn notice_late(&mut self, table: &str, rows: u64) {
        let rows = if rows == 1 { "1 row behind the watermark was".to_owned() } else { format!("{rows} rows behind the watermark were") };
        self.notices.push(
            Error::new(SqlState("00000"), format!("{rows} diverted to {table}$late"))
                .hint("SET verus.late_rows = 'apply' accepts late rows."),
        );
    }
}

/// What every statement but the block's end gets in a failed one.
pub fn aborted() -> Error {
    Error::new(SqlState::IN_FAILED_SQL_TRANSACTION, "current transaction is aborted, commands ignored until end of transaction block")
}
