//! `SUBSCRIBE [TO] view [WITH (option [= value], ...)] [WHERE condition]`, alone or as the source of a COPY TO STDOUT.

use super::{Statement, Subscribe};
use crate::error::Result;
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    subscribe(reader).map(Statement::Subscribe)
}

pub(super) fn subscribe(reader: &mut Reader<'_>) -> Result<Subscribe> {
    reader.expect(&["SUBSCRIBE"])?;
    reader.accept(&["TO"]);
    let view = reader.name()?;
    let options = if reader.accept(&["WITH"]) { reader.options()? } else { Vec::new() };
    let condition = match reader.accept(&["WHERE"]) {
        true => format!(" WHERE {}", reader.run(|parser| parser.parse_expr())?),
        false => String::new(),
    };
    // The snapshot's query, from which the condition is taken too.
    let query = crate::sql::parse_query(&format!("SELECT * FROM {view}{condition}"))?;
    Ok(Subscribe { view, options, query: Box::new(query) })
}
