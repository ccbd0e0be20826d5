//! SET, SET LOCAL, RESET.
//!
//! *Place*: the rules of each variable are `session::variable`'s; here are those that depend on the transaction.

use crate::command::Response;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;

/// `SET [SESSION | LOCAL] name {= | TO} value | DEFAULT`.
pub fn execute(session: &mut Session, name: &str, value: Option<&str>, local: bool) -> Result<Response> {
    let done = || Ok(Response::Done("SET".to_owned()));
    let name = alias(name);
    if matches!(name, "role" | "session_authorization") {
        return authorize(session, value).and_then(|()| done());
    }
    let of_transaction = matches!(name, "transaction_isolation" | "transaction_read_only");
    if name.ends_with("transaction_isolation") {
        value.map_or(Ok(()), check_isolation)?;
    }
    if (local || of_transaction) && !session.transaction.in_block() {
        let command = if of_transaction { "SET TRANSACTION" } else { "SET LOCAL" };
        session.warn(SqlState::NO_ACTIVE_SQL_TRANSACTION, format!("{command} can only be used in transaction blocks"));
    }
    if name == "transaction_isolation" && session.transaction.is_used() {
        return Err(Error::new(SqlState::ACTIVE_SQL_TRANSACTION, "SET TRANSACTION ISOLATION LEVEL must be called before any query"));
    }
    if name == "transaction_read_only"
        && session.vars.read_only()
        && session.transaction.is_used()
        && value.and_then(crate::session::variable::boolean) == Some(false)
    {
        return Err(Error::new(SqlState::ACTIVE_SQL_TRANSACTION, "transaction read-write mode must be set before any query"));
    }
    match value {
        Some(value) => session.vars.set(name, value, local || of_transaction)?,
        None => session.vars.reset(name, local || of_transaction)?,
    }
    done()
}

/// Refuses the level that the server could not keep its promise for.
pub(super) fn check_isolation(level: &str) -> Result<()> {
    if level.eq_ignore_ascii_case("serializable") {
        return Err(Error::unsupported("isolation level SERIALIZABLE is not supported")
            .hint("REPEATABLE READ gives every statement of the transaction the same snapshot."));
    }
    Ok(())
}

/// `RESET name | ALL`.
pub fn reset(session: &mut Session, name: &str) -> Result<Response> {
    match alias(name) {
        name if name.eq_ignore_ascii_case("all") => session.vars.reset_all(),
        "role" | "session_authorization" => {}
        name => session.vars.reset(name, false)?,
    }
    Ok(Response::Done("RESET".to_owned()))
}

/// SQL's own names of some variables.
pub(super) fn alias(name: &str) -> &str {
    match name {
        "time zone" => "timezone",
        "names" => "client_encoding",
        "transaction isolation level" => "transaction_isolation",
        "session authorization" => "session_authorization",
        name => name,
    }
}

/// There is one role.
fn authorize(session: &Session, value: Option<&str>) -> Result<()> {
    match value.map(|value| value.trim_matches(['"', '\''])) {
        None | Some("none" | "default") => Ok(()),
        Some(role) if role == session.user() => Ok(()),
        Some(role) => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("role \"{role}\" does not exist"))),
    }
}
