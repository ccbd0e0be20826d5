//! What the server notes about a transaction, in tables of its own: committed with it, or not at all.
//!
//! *Place*: `ingest::ledger` makes them, `store::commit` completes them.
//!
//! *Invariants*: (1) rows of a note are accepted as they are: no watermark, no dedup key; (2) they are not counted among the
//! transaction's rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};

use crate::catalog::{Catalog, Oid};
use crate::error::{Error, Result};
use crate::store::{Committed, dropped};

/// The columns of a note's table that tell what became of the transaction's rows; the store fills them in.
pub const COUNTS: [&str; 3] = ["accepted", "duplicates", "late"];

/// Rows for one of the server's tables.
#[derive(Clone, Debug)]
pub struct Note {
    /// The table.
    pub table: Oid,
    /// Its schema.
    pub rows: RecordBatch,
}

impl Note {
    /// The rows, with the counts where the table has columns for them (bigint).
    pub fn complete(&self, catalog: &Catalog, committed: &Committed) -> Result<RecordBatch> {
        let table = catalog.table(self.table).ok_or_else(|| dropped(self.table))?;
        let counts = COUNTS.into_iter().zip([committed.accepted, committed.duplicates, committed.late]);
        let counts: Vec<_> = counts.filter_map(|(name, count)| Some((table.column(name)?, count))).collect();
        if counts.is_empty() {
            return Ok(self.rows.clone());
        }
        let mut columns = self.rows.columns().to_vec();
        for (column, count) in counts {
            let filled: ArrayRef = Arc::new(Int64Array::from_value(count as i64, self.rows.num_rows()));
            *columns.get_mut(column).ok_or_else(|| Error::internal("a note has too few columns"))? = filled;
        }
        RecordBatch::try_new(self.rows.schema(), columns).map_err(|error| Error::internal(format!("a note does not fit: {error}")))
    }
}
