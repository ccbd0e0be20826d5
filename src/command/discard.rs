//! DISCARD ALL, PLANS, SEQUENCES, TEMP.

use crate::command::Response;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;

/// DISCARD. ALL is what connection pools send between two clients: nothing of the first may stay.
pub fn execute(session: &mut Session, what: &str) -> Result<Response> {
    let what = what.to_ascii_uppercase();
    match what.as_str() {
        "ALL" if session.transaction.in_block() => {
            return Err(Error::new(SqlState::ACTIVE_SQL_TRANSACTION, "DISCARD ALL cannot run inside a transaction block"));
        }
        "ALL" => {
            session.portals.clear();
            session.statements.clear();
            session.plans.clear();
            session.listener.unlisten_all();
            session.vars.reset_all();
        }
        "PLANS" => session.plans.clear(),
        // There are no sequences and no temporary tables.
        _ => {}
    }
    Ok(Response::Done(format!("DISCARD {what}")))
}
