//! The rows of one statement on their way to the store: in memory, or in files beyond a limit.
//!
//! *Place*: `command::copy` and `command::insert` collect completed rows here and commit them.
//!
//! *Invariants*: (1) however many rows there are, they are committed by one record, whole or not at all; (2) in a
//! transaction that has changed something else rows stay in memory until COMMIT, and there is an end to that (54000); rows in files are
//! then all that it changes.

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::catalog::{LateRows, Table};
use crate::command::insert;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::session::transaction::Status;
use crate::store::{Committed, Staging, Store, Transaction};

/// Memory of rows that are handed over together at most.
const PORTION_BYTES: usize = 4 * 1024 * 1024;

/// Rows of one statement for one table.
#[derive(Debug)]
pub struct Rows {
    store: Arc<Store>,
    table: Arc<Table>,
    late_rows: LateRows,
    may_stage: bool,
    bytes_max: usize,
    kept: Vec<RecordBatch>,
    kept_bytes: usize,
    staging: Option<Box<Staging>>,
}

impl Rows {
    /// No rows yet.
    pub fn new(session: &Session, table: &Arc<Table>) -> Rows {
        // In a block what is staged has to be alone.
        let in_one = matches!(session.transaction.status(), Status::Idle | Status::Implicit { deferred: false });
        let alone = in_one || !session.transaction.is_dirty();
        Rows {
            store: Arc::clone(&session.services.store),
            table: Arc::clone(table),
            late_rows: session.vars.late_rows().unwrap_or(table.options.late_rows),
            may_stage: alone && !session.vars.read_only(),
            bytes_max: session.services.config.limits.store.statement_bytes_max,
            kept: Vec::new(),
            kept_bytes: 0,
            staging: None,
        }
    }

    /// Whether there may be more rows than memory.
    pub fn may_stage(&self) -> bool {
        self.may_stage
    }

    /// Memory of rows that are worth handing over.
    pub fn portion(&self) -> usize {
        (self.bytes_max / 4).min(PORTION_BYTES)
    }

    /// Keeps all rows in memory: they are read again after the commit.
    #[must_use]
    pub fn in_memory(mut self) -> Rows {
        self.may_stage = false;
        self
    }

    /// Takes completed rows, in order. 54000 when they are too many.
    pub async fn add(&mut self, rows: Vec<RecordBatch>) -> Result<()> {
        for batch in rows {
            if let Some(staging) = &mut self.staging {
                staging.add(batch).await?;
                continue;
            }
            self.kept_bytes += batch.get_array_memory_size();
            self.kept.push(batch);
            if self.kept_bytes > self.bytes_max {
                self.stage().await?;
            }
        }
        Ok(())
    }

    async fn stage(&mut self) -> Result<()> {
        if !self.may_stage {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the statement's rows are too large")
                .detail(format!(
                    "After other changes in its transaction, and with RETURNING, a statement can insert {} bytes of rows.",
                    self.bytes_max
                ))
                .hint("Run it on its own, or split it into several statements."));
        }
        let mut staging = Box::new(self.store.stage(&self.table, self.late_rows).await?);
        for batch in self.kept.drain(..) {
            staging.add(batch).await?;
        }
        self.staging = Some(staging);
        Ok(())
    }

    /// The rows, as far as they are in memory.
    pub fn kept(&self) -> &[RecordBatch] {
        &self.kept
    }

    /// Commits them. With `returning`, which needs them in memory, those that were accepted come back.
    pub async fn commit(self, session: &mut Session, table: &Table, returning: bool) -> Result<Committed> {
        let Some(staging) = self.staging else { return insert::commit(session, table, self.kept, returning).await };
        let staged = Some(staging.finish().await?);
        let committed = session.submit(Transaction { staged, ..Transaction::default() }).await?;
        insert::notices(session, table, &committed);
        Ok(committed)
    }
}
