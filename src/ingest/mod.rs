//! What every row passes on its way in: column order, coercion, defaults, generated columns, NOT NULL, CHECK, max_future.
//!
//! *Place*: called on the connection's own task by `command::insert` and `command::copy`; the rows then go to
//! `store::commit`.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::catalog::Table;
use crate::catalog::bind::Binder;
use crate::clock::Micros;
use crate::error::Result;
use crate::sql::statement::CopyOptions;
use crate::task::Spawner;
use crate::types::zone::Zone;

/// The rules of one table, bound once a statement.
#[derive(Debug)]
pub struct Pipeline {}

impl Pipeline {
    /// Binds defaults, generated columns and checks. `columns` are the target columns in the source's order (indexes into
    /// the table). 42601/428C9 when a generated column is named.
    pub fn new(binder: &dyn Binder, table: &Arc<Table>, columns: &[usize], now: Micros) -> Result<Pipeline> {
        let _ = (binder, table, columns, now);
        unimplemented!()
    }

    /// With the session's time zone, for literals without an offset and for the rows in errors. UTC without it.
    #[must_use]
    pub fn in_zone(self, zone: Zone) -> Pipeline {
        let _ = zone;
        unimplemented!()
    }

    /// Turns a batch of source columns (already of the target columns' Arrow types, in `columns` order) into a batch of the
    /// table's schema. 23502, 23514, 22008 and 22001 name the row in the detail, as PostgreSQL ("Failing row contains (...).").
    pub fn complete(&self, source: RecordBatch) -> Result<RecordBatch> {
        let _ = source;
        unimplemented!()
    }

    /// Decodes the row list of a literal INSERT (`(1, 'a'), (2, NULL)`) and completes it.
    pub fn literals(&self, rows: &str) -> Result<RecordBatch> {
        let _ = rows;
        unimplemented!()
    }
}

/// One COPY FROM STDIN: bytes in, completed batches out. Decodes whole lines in parallel on the cpu runtime; at most
/// `in_flight_bytes_max` undecoded bytes are held, so a fast client waits.
#[derive(Debug)]
pub struct CopyLoad {}

impl CopyLoad {
    /// Starts a load.
    pub fn new(
        pipeline: Arc<Pipeline>,
        options: CopyOptions,
        time_zone: String,
        spawner: Spawner,
        in_flight_bytes_max: usize,
    ) -> Result<CopyLoad> {
        let _ = (pipeline, options, time_zone, spawner, in_flight_bytes_max);
        unimplemented!()
    }

    /// With a bound on the bytes of the whole load (54000 beyond it), in place of the default of
    /// `StoreLimits::statement_bytes_max`.
    #[must_use]
    pub fn with_bytes_max(self, statement_bytes_max: usize) -> CopyLoad {
        let _ = statement_bytes_max;
        unimplemented!()
    }

    /// One CopyData message, cut anywhere.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        let _ = bytes;
        unimplemented!()
    }

    /// CopyDone: the rest, and all rows in order. Errors name the line ("COPY events, line 3, column revenue: ...").
    pub async fn finish(self) -> Result<Vec<RecordBatch>> {
        unimplemented!()
    }
}
