//! `SET [SESSION | LOCAL] name {= | TO} {value, ... | DEFAULT}`, SET TIME ZONE, SET NAMES, SET TRANSACTION, SET SESSION
//! CHARACTERISTICS, `SHOW name | ALL`, `SHOW CREATE {TABLE | MATERIALIZED VIEW} name`, `RESET name | ALL`, DISCARD.

use sqlparser::tokenizer::Token;

use super::transaction::{Modes, modes};
use super::{Statement, quote_identifier};
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["SET"]) {
        return set(reader);
    }
    if reader.accept(&["SHOW"]) {
        return show(reader);
    }
    if reader.accept(&["RESET"]) {
        return Ok(Statement::Reset(parameter(reader)?));
    }
    reader.expect(&["DISCARD"])?;
    match reader.accept_one(&["ALL", "PLANS", "SEQUENCES", "TEMPORARY", "TEMP"]) {
        Some("TEMPORARY") => Ok(Statement::Discard("TEMP".into())),
        Some(what) => Ok(Statement::Discard(what.into())),
        None => Err(reader.unexpected()),
    }
}

fn set(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["SESSION", "CHARACTERISTICS"]) {
        reader.expect(&["AS", "TRANSACTION"])?;
        return transaction(modes(reader)?, "default_transaction", false).ok_or_else(|| one_mode(reader));
    }
    if reader.accept(&["SESSION", "AUTHORIZATION"]) {
        return Ok(assign("session_authorization", value_or_default(reader)?, false));
    }
    let local = reader.accept_one(&["SESSION", "LOCAL"]) == Some("LOCAL");
    if reader.accept(&["TRANSACTION"]) {
        return transaction(modes(reader)?, "transaction", true).ok_or_else(|| one_mode(reader));
    }
    if reader.accept(&["TIME", "ZONE"]) {
        return Ok(assign("timezone", time_zone(reader)?, local));
    }
    if reader.accept(&["NAMES"]) {
        return Ok(assign("client_encoding", value_or_default(reader)?, local));
    }
    if reader.accept(&["SCHEMA"]) {
        return Ok(assign("search_path", Some(reader.string()?), local));
    }
    if reader.accept(&["ROLE"]) {
        return Ok(assign("role", value_or_default(reader)?, local));
    }
    let name = dotted(reader)?;
    if !reader.accept_token(&Token::Eq) {
        reader.expect(&["TO"])?;
    }
    if reader.accept(&["DEFAULT"]) {
        return Ok(assign(&name, None, local));
    }
    let first = value(reader)?;
    let mut all = vec![first];
    while reader.accept_token(&Token::Comma) {
        all.push(value(reader)?);
    }
    let value = match all.as_slice() {
        [(value, _)] => value.clone(),
        // A list keeps its names apart as SHOW prints them: "$user", public.
        list => list.iter().map(|(value, _)| quote_identifier(value)).collect::<Vec<_>>().join(", "),
    };
    Ok(assign(&name, Some(value), local))
}

fn assign(name: &str, value: Option<String>, local: bool) -> Statement {
    Statement::Set { name: name.to_owned(), value, local }
}

/// One mode becomes one variable; none when there are several or none.
fn transaction(modes: Modes, prefix: &str, local: bool) -> Option<Statement> {
    let flag = |value: bool| if value { "on" } else { "off" }.to_owned();
    let (suffix, value) = match modes {
        Modes { isolation: Some(level), read_only: None, deferrable: None } => ("isolation", level),
        Modes { isolation: None, read_only: Some(read_only), deferrable: None } => ("read_only", flag(read_only)),
        Modes { isolation: None, read_only: None, deferrable: Some(deferrable) } => ("deferrable", flag(deferrable)),
        _ => return None,
    };
    Some(assign(&format!("{prefix}_{suffix}"), Some(value), local))
}

fn one_mode(reader: &Reader<'_>) -> Error {
    match reader.word(0) {
        Some(_) => reader.unexpected(),
        None => Error::unsupported("setting several transaction modes at once is not supported").hint("Set one mode at a time."),
    }
}

/// A value and whether it was a string.
fn value(reader: &mut Reader<'_>) -> Result<(String, bool)> {
    match reader.string() {
        Ok(text) => Ok((text, true)),
        Err(_) => {
            reader.accept_token(&Token::Plus);
            Ok((reader.option_value()?, false))
        }
    }
}

fn value_or_default(reader: &mut Reader<'_>) -> Result<Option<String>> {
    if reader.accept(&["DEFAULT"]) { Ok(None) } else { Ok(Some(value(reader)?.0)) }
}

/// `'Europe/Berlin'`, `LOCAL`, `DEFAULT`, `-7`, `INTERVAL '-08:00' HOUR TO MINUTE`.
fn time_zone(reader: &mut Reader<'_>) -> Result<Option<String>> {
    if reader.accept_one(&["LOCAL", "DEFAULT"]).is_some() {
        return Ok(None);
    }
    if reader.accept(&["INTERVAL"]) {
        let offset = reader.string()?;
        reader.accept(&["HOUR", "TO", "MINUTE"]);
        return Ok(Some(offset));
    }
    Ok(Some(value(reader)?.0))
}

fn dotted(reader: &mut Reader<'_>) -> Result<String> {
    let mut name = reader.identifier()?.to_ascii_lowercase();
    while reader.accept_token(&Token::Period) {
        name = format!("{name}.{}", reader.label()?.to_ascii_lowercase());
    }
    Ok(name)
}

/// A parameter's name with its two-word spellings, or ALL.
fn parameter(reader: &mut Reader<'_>) -> Result<String> {
    if reader.accept(&["ALL"]) {
        return Ok("all".into());
    }
    if reader.accept(&["TIME", "ZONE"]) {
        return Ok("timezone".into());
    }
    if reader.accept(&["TRANSACTION", "ISOLATION", "LEVEL"]) {
        return Ok("transaction_isolation".into());
    }
    if reader.accept(&["SESSION", "AUTHORIZATION"]) {
        return Ok("session_authorization".into());
    }
    dotted(reader)
}

fn show(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["CREATE", "TABLE"]) || reader.accept(&["CREATE", "MATERIALIZED", "VIEW"]) {
        return Ok(Statement::ShowCreate(reader.name()?));
    }
    if let Some(statement) = super::alert::show(reader)? {
        return Ok(statement);
    }
    if let Some(statement) = super::source::show(reader)? {
        return Ok(statement);
    }
    Ok(Statement::Show(parameter(reader)?))
}
