//! `BEGIN [WORK | TRANSACTION] [modes]`, `START TRANSACTION [modes]`, COMMIT, END, ROLLBACK, ABORT, SAVEPOINT, RELEASE,
//! `ROLLBACK TO`.
//!
//! Modes: `ISOLATION LEVEL ...` (a transaction reads snapshots whatever it asks for), `READ ONLY | READ WRITE`, `[NOT] DEFERRABLE`.

use sqlparser::tokenizer::Token;

use super::Statement;
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["BEGIN"]) {
        reader.accept_one(&["WORK", "TRANSACTION"]);
        return begin(reader, false);
    }
    if reader.accept(&["START"]) {
        reader.expect(&["TRANSACTION"])?;
        return begin(reader, true);
    }
    if reader.accept(&["SAVEPOINT"]) {
        return Ok(Statement::Savepoint(reader.identifier()?));
    }
    if reader.accept(&["RELEASE"]) {
        reader.accept(&["SAVEPOINT"]);
        return Ok(Statement::Release(reader.identifier()?));
    }
    let commit = reader.accept_one(&["COMMIT", "END"]).is_some();
    if !commit && reader.accept_one(&["ROLLBACK", "ABORT"]).is_none() {
        return Err(reader.unexpected());
    }
    if reader.sees(&["PREPARED"]) {
        return Err(Error::unsupported("two-phase commit is not supported"));
    }
    reader.accept_one(&["WORK", "TRANSACTION"]);
    if !commit && reader.accept(&["TO"]) {
        reader.accept(&["SAVEPOINT"]);
        return Ok(Statement::RollbackTo(reader.identifier()?));
    }
    if reader.accept(&["AND"]) && !reader.accept(&["NO"]) {
        return Err(Error::unsupported("AND CHAIN is not supported"));
    }
    reader.accept(&["CHAIN"]);
    Ok(if commit { Statement::Commit } else { Statement::Rollback })
}

fn begin(reader: &mut Reader<'_>, start: bool) -> Result<Statement> {
    let modes = modes(reader)?;
    Ok(Statement::Begin { start, isolation: modes.isolation, read_only: modes.read_only })
}

/// What a list of transaction modes says.
#[derive(Default)]
pub(super) struct Modes {
    /// In lower case: `read committed`.
    pub isolation: Option<String>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// `[NOT] DEFERRABLE`.
    pub deferrable: Option<bool>,
}

/// Transaction modes up to the end of the statement, with or without commas between.
pub(super) fn modes(reader: &mut Reader<'_>) -> Result<Modes> {
    let mut modes = Modes::default();
    while !reader.at_end() {
        if reader.accept(&["ISOLATION"]) {
            reader.expect(&["LEVEL"])?;
            modes.isolation = Some(isolation(reader)?.to_owned());
        } else if reader.accept(&["READ", "ONLY"]) {
            modes.read_only = Some(true);
        } else if reader.accept(&["READ", "WRITE"]) {
            modes.read_only = Some(false);
        } else if reader.accept(&["NOT", "DEFERRABLE"]) {
            modes.deferrable = Some(false);
        } else if reader.accept(&["DEFERRABLE"]) {
            modes.deferrable = Some(true);
        } else {
            return Err(reader.unexpected());
        }
        if reader.accept_token(&Token::Comma) && reader.at_end() {
            return Err(reader.unexpected());
        }
    }
    Ok(modes)
}

fn isolation(reader: &mut Reader<'_>) -> Result<&'static str> {
    if reader.accept(&["SERIALIZABLE"]) {
        return Ok("serializable");
    }
    if reader.accept(&["REPEATABLE"]) {
        reader.expect(&["READ"])?;
        return Ok("repeatable read");
    }
    reader.expect(&["READ"])?;
    match reader.accept_one(&["COMMITTED", "UNCOMMITTED"]) {
        Some("COMMITTED") => Ok("read committed"),
        Some(_) => Ok("read uncommitted"),
        None => Err(reader.unexpected()),
    }
}
