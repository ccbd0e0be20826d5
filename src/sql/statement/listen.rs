//! `LISTEN channel`, `UNLISTEN {channel | *}`, `NOTIFY channel [, 'payload']`.

use sqlparser::tokenizer::Token;

use super::Statement;
use crate::error::Result;
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["LISTEN"]) {
        return Ok(Statement::Listen(reader.identifier()?));
    }
    if reader.accept(&["UNLISTEN"]) {
        let channel = if reader.accept_token(&Token::Mul) { None } else { Some(reader.identifier()?) };
        return Ok(Statement::Unlisten(channel));
    }
    reader.expect(&["NOTIFY"])?;
    let channel = reader.identifier()?;
    let payload = if reader.accept_token(&Token::Comma) { reader.string()? } else { String::new() };
    Ok(Statement::Notify { channel, payload })
}
