//! BEGIN, COMMIT, ROLLBACK.
//!
//! *Place*: the state is `session::transaction`'s; this file says what PostgreSQL says about it.

use crate::command::Response;
use crate::error::{Result, SqlState};
use crate::session::Session;
use crate::session::transaction::Status;

/// `BEGIN [READ ONLY]`, START TRANSACTION.
pub fn begin(session: &mut Session, read_only: bool) -> Result<Response> {
    if !session.begin() {
        session.warn(SqlState::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress");
    }
    if read_only {
        session.vars.set("transaction_read_only", "on", true)?;
    }
    Ok(Response::Done("BEGIN".to_owned()))
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
