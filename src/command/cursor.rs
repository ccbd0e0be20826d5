//! DECLARE, FETCH, CLOSE.
//!
//! *Place*: a cursor is one of the session's portals; `pg` streams what FETCH takes from it.
//!
//! *Invariants*: a cursor reads the snapshot of its DECLARE and computes no row before a FETCH asks for it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use tokio_util::sync::CancellationToken;

use crate::command::prepare::only;
use crate::command::{self, Response};
use crate::error::{Error, Result, SqlState};
use crate::session::{Portal, Progress, Rows, Session};
use crate::sql::Statement;
use crate::types::SqlType;

/// `DECLARE name [NO SCROLL] CURSOR [WITH | WITHOUT HOLD] FOR query`.
///
/// `arguments` are the types and values of the query's parameters.
pub async fn declare(
    session: &mut Session,
    name: &str,
    text: &str,
    hold: bool,
    arguments: (&[SqlType], &[ScalarValue]),
    cancel: CancellationToken,
) -> Result<Response> {
    if !hold && !session.transaction.in_block() {
        return Err(Error::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, "DECLARE CURSOR can only be used in transaction blocks"));
    }
    let parsed = only(text)?;
    if !matches!(&*parsed.statement, Statement::Query(_)) {
        return Err(Error::new(SqlState("42P11"), "DECLARE CURSOR must specify a query"));
    }
    let (types, values) = arguments;
    let declared: Vec<_> = types.iter().cloned().map(Some).collect();
    let prepared = Arc::new(command::prepare(session, Some(parsed), &declared)?);
    // Boxed: futures do not nest in themselves.
    let response = Box::pin(command::execute(session, &prepared, values, cancel)).await?;
    let Response::Rows { schema, stream, .. } = response else {
        return Err(Error::internal("a query answered without rows"));
    };
    let progress = Progress::Open(Box::new(Rows::new(schema, stream, "FETCH")));
    session.add_portal(name, Portal { prepared, parameters: Vec::new(), formats: Vec::new(), progress, cursor: true, hold })?;
    Ok(Response::Done("DECLARE CURSOR".to_owned()))
}

/// `FETCH [count | ALL | NEXT | FORWARD n] [FROM | IN] name`.
pub fn fetch(session: &mut Session, name: &str, count: Option<u64>) -> Result<Response> {
    find(session, name)?;
    let rows_max = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    Ok(Response::Fetch { cursor: name.to_owned(), rows_max })
}

/// `CLOSE name | ALL`.
pub fn close(session: &mut Session, name: Option<&str>) -> Result<Response> {
    match name {
        None => {
            session.portals.retain(|_, portal| !portal.cursor);
            Ok(Response::Done("CLOSE CURSOR ALL".to_owned()))
        }
        Some(name) => {
            find(session, name)?;
            session.portals.remove(name);
            Ok(Response::Done("CLOSE CURSOR".to_owned()))
        }
    }
}

/// Columns of a cursor, for Describe of FETCH.
pub fn schema(session: &Session, name: &str) -> Result<Option<SchemaRef>> {
    find(session, name).map(|portal| portal.prepared.schema.clone())
}

fn find<'a>(session: &'a Session, name: &str) -> Result<&'a Portal> {
    session.portals.get(name).ok_or_else(|| Error::new(SqlState::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist")))
}
