//! `EXPLAIN [ANALYZE] [VERBOSE] statement`, `EXPLAIN (option [value], ...) statement`.

use sqlparser::tokenizer::Token;

use super::{Explain, Statement};
use crate::error::{Error, Result, SqlState};
use crate::sql::reader::Reader;

/// Options of PostgreSQL that change what is shown beside the plan: Verus shows what it has.
const SHOWN_ANYWAY: [&str; 8] = ["buffers", "costs", "generic_plan", "memory", "settings", "summary", "timing", "wal"];

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["EXPLAIN"])?;
    let (mut analyze, mut verbose, mut route) = (false, false, false);
    // `EXPLAIN (SELECT 1)` explains a query in parentheses.
    let query_follows = ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|word| reader.word(1).as_deref() == Some(word));
    if reader.sees_token(&Token::LParen) && !query_follows && reader.word(1).is_some() {
        (analyze, verbose, route) = options(reader)?;
    } else {
        analyze |= reader.accept_one(&["ANALYZE", "ANALYSE"]).is_some();
        verbose |= reader.accept(&["VERBOSE"]);
    }
    if reader.sees(&["EXPLAIN"]) {
        return Err(reader.unexpected());
    }
    let statement = super::parse(reader)?;
    match statement {
        Statement::Query(_) => Ok(Statement::Explain(Explain { analyze, verbose, route, statement: Box::new(statement) })),
        _ => Err(Error::unsupported("EXPLAIN of this statement is not supported").hint("EXPLAIN takes a query.")),
    }
}

/// `(ANALYZE, VERBOSE off, ROUTE, COSTS off, FORMAT text)`.
fn options(reader: &mut Reader<'_>) -> Result<(bool, bool, bool)> {
    let (mut analyze, mut verbose, mut route) = (false, false, false);
    reader.expect_token(&Token::LParen)?;
    loop {
        let name = reader.label()?;
        let value = match reader.sees_token(&Token::Comma) || reader.sees_token(&Token::RParen) {
            true => "true".to_owned(),
            false => reader.option_value()?.to_ascii_lowercase(),
        };
        match name.as_str() {
            "analyze" | "analyse" => analyze = boolean(&name, &value)?,
            "verbose" => verbose = boolean(&name, &value)?,
            "route" => route = boolean(&name, &value)?,
            "format" if value == "text" => {}
            "format" => return Err(Error::unsupported(format!("EXPLAIN format {value} is not supported"))),
            "serialize" if value == "none" => {}
            known if SHOWN_ANYWAY.contains(&known) => {
                boolean(&name, &value)?;
            }
            _ => {
                let error = Error::syntax(format!("unrecognized EXPLAIN option \"{name}\""));
                return Err(
                    error.hint("Known are ANALYZE, VERBOSE, ROUTE and FORMAT text; COSTS and the like are accepted and change nothing.")
                );
            }
        }
        if !reader.accept_token(&Token::Comma) {
            break;
        }
    }
    reader.expect_token(&Token::RParen)?;
    if analyze && route {
        return Err(Error::syntax("EXPLAIN options ANALYZE and ROUTE cannot be used together"));
    }
    Ok((analyze, verbose, route))
}

fn boolean(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err(Error::new(SqlState::SYNTAX_ERROR, format!("{name} requires a Boolean value"))),
    }
}
