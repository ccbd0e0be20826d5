//! `PREPARE name [(types)] AS statement`, `EXECUTE name [(arguments)]`, `DEALLOCATE [PREPARE] {name | ALL}`.

use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::Statement;
use crate::error::{Error, Result};
use crate::sql::reader::Reader;
use crate::sql::sql_type;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.accept(&["PREPARE"]) {
        return prepare(reader);
    }
    if reader.accept(&["EXECUTE"]) {
        let name = reader.identifier()?;
        let mut arguments = Vec::new();
        if reader.accept_token(&Token::LParen) {
            arguments = reader.separated(|reader| reader.run(Parser::parse_expr))?;
            reader.expect_token(&Token::RParen)?;
        }
        return Ok(Statement::Execute { name, arguments });
    }
    reader.expect(&["DEALLOCATE"])?;
    reader.accept(&["PREPARE"]);
    if reader.accept(&["ALL"]) {
        return Ok(Statement::Deallocate(None));
    }
    Ok(Statement::Deallocate(Some(reader.identifier()?)))
}

fn prepare(reader: &mut Reader<'_>) -> Result<Statement> {
    if reader.sees(&["TRANSACTION"]) && !reader.sees(&["TRANSACTION", "AS"]) {
        return Err(Error::unsupported("two-phase commit is not supported"));
    }
    let name = reader.identifier()?;
    let mut types = Vec::new();
    if reader.accept_token(&Token::LParen) {
        types = reader.separated(|reader| sql_type(&reader.run(Parser::parse_data_type)?))?;
        reader.expect_token(&Token::RParen)?;
    }
    reader.expect(&["AS"])?;
    match reader.word(0).as_deref() {
        Some("SELECT" | "WITH" | "VALUES" | "TABLE" | "INSERT" | "UPDATE" | "DELETE" | "MERGE") => {}
        _ if reader.sees_token(&Token::LParen) => {}
        _ => return Err(reader.unexpected()),
    }
    Ok(Statement::Prepare { name, types, text: reader.rest_parsed(|_| Ok(()))? })
}
