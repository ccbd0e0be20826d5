//! BEGIN, COMMIT, ROLLBACK.
//!
//! *Place*: the state is `session::transaction`'s; this file says what PostgreSQL says about it.

use crate::command::{Response, set};
use crate::error::{Result, SqlState};
use crate::session::Session;
use crate::session::transaction::Status;

/// `BEGIN [ISOLATION LEVEL ...] [READ ONLY | READ WRITE]`, START TRANSACTION.
pub fn begin(session: &mut Session, start: bool, isolation: Option<&str>, read_only: Option<bool>) -> Result<Response> {
    isolation.map_or(Ok(()), set::check_isolation)?;
    if !session.begin() {
        session.warn(SqlState::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress");
    }
    if let Some(level) = isolation {
        session.vars.set("transaction_isolation", level, true)?;
    }
    if let Some(read_only) = read_only {
        session.vars.set("transaction_read_only", if read_only { "on" } else { "off" }, true)?;
    }
    Ok(Response::Done(if start { "START TRANSACTION" } else { "BEGIN" }.to_owned()))
}

/// COMMIT, END. Of a failed transaction it is a ROLLBACK.
pub async fn commit(session: &mut Session) -> Result<Response> {
    warn_outside(session);
    let failed = session.transaction.status() == Status::Failed;
    session.commit().await?;
    Ok(Response::Done(if failed { "ROLLBACK" } else { "COMMIT" }.to_owned()))
}

/// ROLLBACK, ABORT.
pub fn rollback(session: &mut Session) -> Result<Response> {
    warn_outside(session);
    session.rollback();
    Ok(Response::Done("ROLLBACK".to_owned()))
}

fn warn_outside(session: &mut Session) {
    if !session.transaction.in_block() {
        session.warn(SqlState::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress");
    }
}
