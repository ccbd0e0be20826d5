//! INSERT.
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::query::Bound;
use crate::session::Session;
use crate::sql::statement::{Insert, InsertLiterals};
use crate::types::SqlType;

/// Types the source of an INSERT (`$n` takes its column's type) and its RETURNING columns, for `command::prepare`:
/// `Prepared { bound: plan, parameters: plan.parameters, schema: returning }`.
pub fn bind(session: &mut Session, statement: &Insert, declared: &[Option<SqlType>]) -> Result<(Bound, Option<SchemaRef>)> {
    let _ = (session, statement, declared);
    unimplemented!()
}

/// Any INSERT; `bound` is what [`bind`] gave.
pub async fn execute(
    session: &mut Session,
    statement: &Insert,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let _ = (session, statement, bound, parameters, cancel);
    unimplemented!()
}

/// `INSERT INTO t [(columns)] VALUES` with literals only; `text` is the statement's text (`Parsed::text`).
pub async fn literals(session: &mut Session, statement: &InsertLiterals, text: &str) -> Result<Response> {
    let _ = (session, statement, text);
    unimplemented!()
}
