//! What a table is: commit, snapshot, flush, recovery.
//!
//! *Place*: `command` and `ingest` commit, `query` reads snapshots. Uses `wal`, `state`, `columnar` and `view`.

pub mod dedupe;
pub mod snapshot;

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::catalog::{Change, LateRows, Oid};
use crate::error::Result;
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
    /// One past the last LSN.
    pub next_lsn: u64,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows diverted to `$late`.
    pub late: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
}

/// The open database.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        unimplemented!()
    }

    /// Commits: returns when durable and visible. Backfills of created views are complete when it returns.
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed> {
        let _ = transaction;
        unimplemented!()
    }

    /// `base` with an open transaction's changes and rows on top, for its own reads. Rows are classified as at commit.
    pub fn overlay(&self, base: &Arc<Snapshot>, changes: &[Change], writes: &[Write]) -> Result<Arc<Snapshot>> {
        let _ = (base, changes, writes);
        unimplemented!()
    }
}
