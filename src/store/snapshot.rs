//! The database as of one LSN.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::catalog::{Catalog, Oid, Table};
use crate::{columnar, view};

/// Immutable; a query holds one from planning to its last row.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rows with an LSN below this are visible.
    pub next_lsn: u64,
    /// The objects.
    pub catalog: Arc<Catalog>,
    /// Rows of every table.
    pub tables: HashMap<Oid, Arc<TableState>>,
    /// State of every view.
    pub views: HashMap<Oid, Arc<view::Version>>,
}

/// A table's rows: hot and cold are disjoint, together they are the table.
#[derive(Clone, Debug)]
pub struct TableState {
    /// The definition.
    pub table: Arc<Table>,
    /// Rows not yet in Parquet, in LSN order.
    pub hot: Vec<Arc<HotBatch>>,
    /// Rows in Parquet.
    pub cold: Arc<columnar::Version>,
    /// How to read them.
    pub columns: Arc<columnar::ColumnTable>,
}

/// Rows of one commit (or several coalesced ones).
#[derive(Clone, Debug)]
pub struct HotBatch {
    /// The table's schema plus the hidden `_lsn` (Int64) last.
    pub rows: RecordBatch,
    /// First LSN.
    pub first_lsn: u64,
    /// One past the last LSN.
    pub next_lsn: u64,
}
