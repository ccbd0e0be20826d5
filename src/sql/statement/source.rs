//! Sources of events:
//!
//! ```text
//! CREATE SOURCE [IF NOT EXISTS] name FROM KAFKA (option = value, ...) INTO table
//! DROP SOURCE [IF EXISTS] name, ... [CASCADE | RESTRICT]
//! ALTER SOURCE name {PAUSE | RESUME | SET (option = value, ...)}
//! SHOW CREATE SOURCE name
//! ```

use super::{Name, Statement};
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

/// A statement about sources.
#[derive(Clone, Debug)]
pub enum SourceStatement {
    /// CREATE SOURCE.
    Create {
        /// New name.
        name: String,
        /// IF NOT EXISTS.
        if_not_exists: bool,
        /// Options as written.
        options: Vec<(String, String)>,
        /// Where the rows go.
        table: Name,
    },
    /// DROP SOURCE.
    Drop {
        /// What to drop.
        names: Vec<String>,
        /// IF EXISTS.
        if_exists: bool,
    },
    /// ALTER SOURCE ... PAUSE or RESUME.
    Pause {
        /// The source.
        name: String,
        /// PAUSE.
        paused: bool,
    },
    /// ALTER SOURCE ... SET.
    Set {
        /// The source.
        name: String,
        /// Options as written.
        options: Vec<(String, String)>,
    },
    /// SHOW CREATE SOURCE.
    Show(String),
}

pub(super) fn create(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CREATE", "SOURCE"])?;
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let name = reader.identifier()?;
    reader.expect(&["FROM"])?;
    if !reader.accept(&["KAFKA"]) {
        return Err(match reader.word(0) {
            Some(word) => reader.raise(Error::unsupported(format!("sources from {word} are not supported")).hint("Known is KAFKA.")),
            None => reader.unexpected(),
        });
    }
    let options = reader.options()?;
    reader.expect(&["INTO"])?;
    Ok(Statement::Source(SourceStatement::Create { name, if_not_exists, options, table: reader.name()? }))
}

pub(super) fn drop(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["DROP", "SOURCE"])?;
    let if_exists = reader.accept(&["IF", "EXISTS"]);
    let names = reader.separated(Reader::identifier)?;
    // Nothing depends on a source.
    reader.accept_one(&["CASCADE", "RESTRICT"]);
    Ok(Statement::Source(SourceStatement::Drop { names, if_exists }))
}

pub(super) fn alter(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["ALTER", "SOURCE"])?;
    let name = reader.identifier()?;
    let statement = match reader.accept_one(&["PAUSE", "RESUME", "SET"]) {
        Some("SET") => SourceStatement::Set { name, options: reader.options()? },
        Some(word) => SourceStatement::Pause { name, paused: word == "PAUSE" },
        None => return Err(reader.unexpected()),
    };
    Ok(Statement::Source(statement))
}

/// What SHOW CREATE SOURCE shows, after SHOW; none when it is about something else.
pub(super) fn show(reader: &mut Reader<'_>) -> Result<Option<Statement>> {
    match reader.accept(&["CREATE", "SOURCE"]) {
        true => Ok(Some(Statement::Source(SourceStatement::Show(reader.identifier()?)))),
        false => Ok(None),
    }
}
