//! `DELETE FROM [ONLY] t [[AS] alias] [USING ...] [WHERE ...] [RETURNING ...]`.

use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::update::{alias, conditions};
use super::{Delete, Statement};
use crate::error::Result;
use crate::sql::query;
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["DELETE", "FROM"])?;
    reader.accept(&["ONLY"]);
    let table = reader.name()?;
    reader.accept_token(&Token::Mul);
    let alias = alias(reader, "USING")?;
    let using = match reader.accept(&["USING"]) {
        true => reader.run(|parser| parser.parse_comma_separated(Parser::parse_table_and_joins))?,
        false => Vec::new(),
    };
    let (selection, returning) = conditions(reader)?;
    let mut delete = Delete { table, alias, using, selection, returning };
    query::check_parts([].into_iter(), &mut delete.using, delete.selection.as_mut(), delete.returning.as_deref_mut())?;
    Ok(Statement::Delete(delete))
}
