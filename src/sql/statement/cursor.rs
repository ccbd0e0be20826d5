//! `DECLARE name [NO SCROLL] CURSOR [WITH | WITHOUT HOLD] FOR query`, `FETCH [count | ALL | NEXT | FORWARD [n | ALL]]
//! [FROM | IN] name`, `CLOSE {name | ALL}`. Cursors go forward only.

use sqlparser::tokenizer::Token;

use super::Statement;
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["DECLARE"]) {
        return declare(reader);
    }
    if reader.accept(&["FETCH"]) {
        let count = count(reader)?;
        reader.accept_one(&["FROM", "IN"]);
        return Ok(Statement::Fetch { name: reader.identifier()?, count });
    }
    reader.expect(&["CLOSE"])?;
    if reader.accept(&["ALL"]) {
        return Ok(Statement::Close(None));
    }
    Ok(Statement::Close(Some(reader.identifier()?)))
}

fn declare(reader: &mut Reader<'_>) -> Result<Statement> {
    let name = reader.identifier()?;
    loop {
        if reader.accept(&["BINARY"]) {
            return Err(Error::unsupported("binary cursors are not supported"));
        } else if reader.accept(&["SCROLL"]) {
            return Err(Error::unsupported("scrollable cursors are not supported").hint("Leave SCROLL out and read forward."));
        } else if !reader.accept(&["NO", "SCROLL"]) && reader.accept_one(&["INSENSITIVE", "ASENSITIVE"]).is_none() {
            break;
        }
    }
    reader.expect(&["CURSOR"])?;
    let hold = reader.accept(&["WITH", "HOLD"]);
    if !hold {
        reader.accept(&["WITHOUT", "HOLD"]);
    }
    reader.expect(&["FOR"])?;
    if !reader.sees_query() {
        return Err(reader.unexpected());
    }
    let text = reader.rest_parsed(|statement| match statement {
        Statement::Query(_) => Ok(()),
        _ => Err(Error::syntax("a cursor needs a query")),
    })?;
    Ok(Statement::Declare { name, text, hold })
}

/// Rows to fetch; none for ALL.
fn count(reader: &mut Reader<'_>) -> Result<Option<u64>> {
    if let Some(word) = reader.accept_one(&["PRIOR", "FIRST", "LAST", "ABSOLUTE", "RELATIVE", "BACKWARD"]) {
        return Err(Error::unsupported(format!("FETCH {word} is not supported")).hint("Cursors go forward only."));
    }
    if reader.accept(&["NEXT"]) {
        return Ok(Some(1));
    }
    reader.accept(&["FORWARD"]);
    if reader.accept(&["ALL"]) {
        return Ok(None);
    }
    if reader.sees_token(&Token::Minus) {
        return Err(Error::unsupported("FETCH backward is not supported").hint("Cursors go forward only."));
    }
    if reader.sees_number() { reader.count().map(Some) } else { Ok(Some(1)) }
}
