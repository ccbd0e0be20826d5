//! Alerts and their channels:
//!
//! ```text
//! CREATE NOTIFICATION CHANNEL [IF NOT EXISTS] name TYPE {webhook | slack | email | notify} WITH (option = value, ...)
//! DROP NOTIFICATION CHANNEL [IF EXISTS] name, ... [CASCADE | RESTRICT]
//! TEST NOTIFICATION CHANNEL name
//! CREATE ALERT [IF NOT EXISTS] name [EVERY interval] [FOR interval] [REPEAT EVERY interval] [ON NO DATA {OK | ALERT | KEEP}]
//!     AS query WITH NOTIFICATION channel, ...
//! DROP ALERT [IF EXISTS] name, ...
//! ALTER ALERT name {ENABLE | DISABLE}
//! SILENCE ALERT name FOR interval
//! BACKTEST ALERT name FROM time TO time
//! ```
//!
//! An interval is `INTERVAL '5 minutes'` or `INTERVAL '5' MINUTE`.

use sqlparser::ast;

use super::Statement;
use crate::error::Result;
use crate::sql::reader::Reader;

/// A statement about alerts or channels.
#[derive(Clone, Debug)]
pub enum AlertStatement {
    /// CREATE NOTIFICATION CHANNEL.
    CreateChannel {
        /// New name.
        name: String,
        /// IF NOT EXISTS.
        if_not_exists: bool,
        /// The word after TYPE, folded.
        kind: String,
        /// WITH options as written.
        options: Vec<(String, String)>,
    },
    /// DROP NOTIFICATION CHANNEL.
    DropChannels {
        /// What to drop.
        names: Vec<String>,
        /// IF EXISTS.
        if_exists: bool,
        /// CASCADE.
        cascade: bool,
    },
    /// TEST NOTIFICATION CHANNEL.
    TestChannel(String),
    /// CREATE ALERT.
    Create(CreateAlert),
    /// DROP ALERT.
    Drop {
        /// What to drop.
        names: Vec<String>,
        /// IF EXISTS.
        if_exists: bool,
    },
    /// ALTER ALERT ... ENABLE or DISABLE.
    Enable {
        /// The alert.
        name: String,
        /// ENABLE.
        enabled: bool,
    },
    /// SILENCE ALERT.
    Silence {
        /// The alert.
        name: String,
        /// The interval as text.
        interval: String,
    },
    /// BACKTEST ALERT.
    Backtest {
        /// The alert.
        name: String,
        /// From this time.
        from: Box<ast::Expr>,
        /// To this one.
        to: Box<ast::Expr>,
    },
    /// SHOW CREATE ALERT.
    ShowAlert(String),
    /// SHOW CREATE NOTIFICATION CHANNEL.
    ShowChannel(String),
}

/// See [`AlertStatement::Create`].
#[derive(Clone, Debug)]
pub struct CreateAlert {
    /// New name.
    pub name: String,
    /// IF NOT EXISTS.
    pub if_not_exists: bool,
    /// EVERY, as text.
    pub every: Option<String>,
    /// FOR, as text.
    pub hold: Option<String>,
    /// REPEAT EVERY, as text.
    pub repeat: Option<String>,
    /// ON NO DATA: `OK`, `ALERT` or `KEEP`.
    pub no_data: Option<&'static str>,
    /// What is watched.
    pub query: Box<ast::Query>,
    /// Who is told.
    pub channels: Vec<String>,
}

/// CREATE ALERT, CREATE NOTIFICATION CHANNEL.
pub(super) fn create(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CREATE"])?;
    let statement = if reader.accept(&["ALERT"]) { create_alert(reader)? } else { create_channel(reader)? };
    Ok(Statement::Alert(statement))
}

/// DROP ALERT, DROP NOTIFICATION CHANNEL.
pub(super) fn drop(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["DROP"])?;
    let alert = reader.accept(&["ALERT"]);
    if !alert {
        reader.expect(&["NOTIFICATION", "CHANNEL"])?;
    }
    let if_exists = reader.accept(&["IF", "EXISTS"]);
    let names = reader.separated(Reader::identifier)?;
    let cascade = reader.accept_one(&["CASCADE", "RESTRICT"]) == Some("CASCADE");
    Ok(Statement::Alert(match alert {
        // Nothing depends on an alert.
        true => AlertStatement::Drop { names, if_exists },
        false => AlertStatement::DropChannels { names, if_exists, cascade },
    }))
}

/// ALTER ALERT.
pub(super) fn alter(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["ALTER", "ALERT"])?;
    let name = reader.identifier()?;
    match reader.accept_one(&["ENABLE", "DISABLE"]) {
        Some(word) => Ok(Statement::Alert(AlertStatement::Enable { name, enabled: word == "ENABLE" })),
        None => Err(reader.unexpected()),
    }
}

/// TEST, SILENCE, BACKTEST.
pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["TEST"]) {
        reader.expect(&["NOTIFICATION", "CHANNEL"])?;
        return Ok(Statement::Alert(AlertStatement::TestChannel(reader.identifier()?)));
    }
    if reader.accept(&["SILENCE"]) {
        reader.expect(&["ALERT"])?;
        let name = reader.identifier()?;
        reader.expect(&["FOR"])?;
        return Ok(Statement::Alert(AlertStatement::Silence { name, interval: interval(reader)? }));
    }
    reader.expect(&["BACKTEST", "ALERT"])?;
    let name = reader.identifier()?;
    reader.expect(&["FROM"])?;
    let from = Box::new(reader.expression_before("TO")?);
    reader.expect(&["TO"])?;
    let to = Box::new(reader.run(|parser| parser.parse_expr())?);
    Ok(Statement::Alert(AlertStatement::Backtest { name, from, to }))
}

/// What SHOW CREATE ALERT or NOTIFICATION CHANNEL shows, after CREATE; none when it is about something else.
pub(super) fn show(reader: &mut Reader<'_>) -> Result<Option<Statement>> {
    let statement = if reader.accept(&["CREATE", "ALERT"]) {
        AlertStatement::ShowAlert(reader.identifier()?)
    } else if reader.accept(&["CREATE", "NOTIFICATION", "CHANNEL"]) {
        AlertStatement::ShowChannel(reader.identifier()?)
    } else {
        return Ok(None);
    };
    Ok(Some(Statement::Alert(statement)))
}

fn create_channel(reader: &mut Reader<'_>) -> Result<AlertStatement> {
    reader.expect(&["NOTIFICATION", "CHANNEL"])?;
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let name = reader.identifier()?;
    reader.expect(&["TYPE"])?;
    let kind = reader.label()?;
    let options = if reader.accept(&["WITH"]) { reader.options()? } else { Vec::new() };
    Ok(AlertStatement::CreateChannel { name, if_not_exists, kind, options })
}

fn create_alert(reader: &mut Reader<'_>) -> Result<AlertStatement> {
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let name = reader.identifier()?;
    let (mut every, mut hold, mut repeat, mut no_data) = (None, None, None, None);
    loop {
        if every.is_none() && reader.accept(&["EVERY"]) {
            every = Some(interval(reader)?);
        } else if hold.is_none() && reader.accept(&["FOR"]) {
            hold = Some(interval(reader)?);
        } else if repeat.is_none() && reader.accept(&["REPEAT", "EVERY"]) {
            repeat = Some(interval(reader)?);
        } else if no_data.is_none() && reader.accept(&["ON", "NO", "DATA"]) {
            no_data = Some(reader.accept_one(&["OK", "ALERT", "KEEP"]).ok_or_else(|| reader.unexpected())?);
        } else {
            break;
        }
    }
    reader.expect(&["AS"])?;
    if !reader.sees_query() {
        return Err(reader.unexpected());
    }
    let query = reader.query()?;
    reader.expect(&["WITH", "NOTIFICATION"])?;
    let channels = reader.separated(Reader::identifier)?;
    Ok(AlertStatement::Create(CreateAlert { name, if_not_exists, every, hold, repeat, no_data, query, channels }))
}

fn interval(reader: &mut Reader<'_>) -> Result<String> {
    const UNITS: [&str; 7] = ["YEAR", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND"];
    reader.expect(&["INTERVAL"])?;
    let text = reader.string()?;
    Ok(match reader.accept_one(&UNITS) {
        Some(unit) => format!("{text} {unit}"),
        None => text,
    })
}
