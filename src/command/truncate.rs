//! TRUNCATE.

use std::sync::Arc;

use crate::catalog::Change;
use crate::command::{Response, relation};
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;
use crate::store::Transaction;

/// `TRUNCATE [TABLE] name [, ...]`: the rows go, the views are as over an empty table.
pub async fn execute(session: &mut Session, names: &[Name]) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let changes = names.iter().map(|name| Ok(Change::Truncate(relation::writable(&catalog, name)?.oid))).collect::<Result<Vec<_>>>()?;
    session.submit(Transaction { changes, ..Transaction::default() }).await?;
    Ok(Response::Done("TRUNCATE TABLE".to_owned()))
}
