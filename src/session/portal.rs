//! Portals: a statement with its parameter values, running or about to. SQL cursors are portals too, as in PostgreSQL.
//!
//! *Place*: Bind and DECLARE make them, Execute and FETCH read them, the transaction's end closes them.
//!
//! *Invariants*: (1) a result is never collected: a suspended portal keeps its stream and the rest of one batch; (2) dropping a
//! portal stops its plan.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use parking_lot::Mutex;

use crate::error::Result;
use crate::session::prepared::Prepared;

/// Rows of a running statement.
pub struct Rows {
    /// Columns.
    pub schema: SchemaRef,
    /// The command tag's word.
    pub tag: &'static str,
    // The stream is not `Sync`; a session is shared between threads only by `&mut`, so nobody ever waits for this lock.
    stream: Mutex<SendableRecordBatchStream>,
    rest: Option<RecordBatch>,
    ended: bool,
}

impl Rows {
    /// A result before its first row.
    pub fn new(schema: SchemaRef, stream: SendableRecordBatchStream, tag: &'static str) -> Self {
        Self { schema, tag, stream: Mutex::new(stream), rest: None, ended: false }
    }

    /// The next rows, at most `rows_max` of them; none at the end.
    pub async fn next(&mut self, rows_max: usize) -> Option<Result<RecordBatch>> {
        loop {
            if let Some(batch) = self.rest.take() {
                if batch.num_rows() > rows_max {
                    self.rest = Some(batch.slice(rows_max, batch.num_rows() - rows_max));
                    return Some(Ok(batch.slice(0, rows_max)));
                }
                return Some(Ok(batch));
            }
            if self.ended {
                return None;
            }
            match self.stream.get_mut().next().await {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => self.rest = Some(batch),
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(crate::session::engine_error(error)));
                }
                None => self.ended = true,
            }
        }
    }

    /// True once the last row has been taken.
    pub fn is_done(&self) -> bool {
        self.ended && self.rest.is_none()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("tag", &self.tag).field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// How far a portal has come.
#[derive(Debug)]
pub enum Progress {
    /// Not yet executed.
    Bound,
    /// Rows are left.
    Open(Box<Rows>),
    /// Executed to its end; holds the tag of a repeated Execute.
    Done(String),
}

/// A statement with its values.
#[derive(Debug)]
pub struct Portal {
    /// The statement.
    pub prepared: Arc<Prepared>,
    /// Its values.
    pub parameters: Vec<ScalarValue>,
    /// Format codes of the columns: none (all text), one for all, or one each.
    pub formats: Vec<i16>,
    /// How far it has come.
    pub progress: Progress,
    /// DECLARE made it: FETCH reads it.
    pub cursor: bool,
    /// WITH HOLD: it outlives its transaction.
    pub hold: bool,
}
