//! `CREATE INGEST TOKEN name [FOR STORE 'store']`, `DROP INGEST TOKEN [IF EXISTS] name`.

use super::Statement;
use crate::error::Result;
use crate::sql::reader::Reader;

pub(super) fn parse_create(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CREATE", "INGEST", "TOKEN"])?;
    let name = reader.identifier()?;
    let store = if reader.accept(&["FOR", "STORE"]) { Some(reader.string()?) } else { None };
    Ok(Statement::CreateIngestToken { name, store })
}

pub(super) fn parse_drop(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["DROP", "INGEST", "TOKEN"])?;
    let if_exists = reader.accept(&["IF", "EXISTS"]);
    Ok(Statement::DropIngestToken { name: reader.identifier()?, if_exists })
}
