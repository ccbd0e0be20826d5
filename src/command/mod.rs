//! One file a statement: execute(session, statement) -> response. This file only dispatches.
//!
//! *Place*: called by `pg::simple` and `pg::extended` for each statement.

pub mod alter;
pub mod check;
pub mod copy;
pub mod create_table;
pub mod create_view;
pub mod drop;
pub mod explain;
pub mod insert;
pub mod refresh;
pub mod select;
pub mod truncate;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;

use crate::error::Result;
use crate::query::Bound;
use crate::session::Session;
use crate::sql::Parsed;

/// What a statement answers.
pub enum Response {
    /// Rows; the tag is `SELECT n`, `FETCH n`, `SHOW`, `EXPLAIN`.
    Rows {
        /// Columns with SQL types in their metadata.
        schema: SchemaRef,
        /// The batches.
        stream: SendableRecordBatchStream,
        /// The command tag's word; the row count is added for SELECT, FETCH, INSERT ... RETURNING.
        tag: &'static str,
    },
    /// No rows; the whole command tag (`INSERT 0 3`, `CREATE TABLE`).
    Done(String),
    /// COPY FROM STDIN: `pg::copy` feeds the load and calls its finish.
    CopyIn(Box<copy::CopyIn>),
    /// COPY TO STDOUT.
    CopyOut(Box<copy::CopyOut>),
    /// An empty query text.
    Empty,
}

/// A statement prepared for execution: parsed, and typed where it is a query.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The statement.
    pub parsed: Parsed,
    /// Its plan, for statements that DataFusion plans.
    pub bound: Option<Arc<Bound>>,
    /// Parameter types.
    pub parameters: Vec<crate::types::SqlType>,
    /// Output columns, or none when it returns no rows.
    pub schema: Option<SchemaRef>,
}

/// Types a statement: parameters and output columns, for Parse and Describe.
pub fn prepare(session: &mut Session, parsed: Parsed, declared: &[Option<crate::types::SqlType>]) -> Result<Prepared> {
    let _ = (session, parsed, declared);
    unimplemented!()
}

/// Executes a prepared statement with parameter values. `cancel` stops it.
pub async fn execute(
    session: &mut Session,
    prepared: &Prepared,
    parameters: &[ScalarValue],
    cancel: tokio_util::sync::CancellationToken,
) -> Result<Response> {
    let _ = (session, prepared, parameters, cancel);
    unimplemented!()
}
