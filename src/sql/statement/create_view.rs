//! `CREATE MATERIALIZED VIEW [IF NOT EXISTS] name [(columns)] [WITH (option = value, ...)] AS query [WITH [NO] DATA]`,
//! `REFRESH MATERIALIZED VIEW v`, `CHECK MATERIALIZED VIEW v`.

use super::{CreateView, Statement};
use crate::error::{Error, Result};
use crate::sql::reader::Reader;

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CREATE", "MATERIALIZED", "VIEW"])?;
    let if_not_exists = reader.accept(&["IF", "NOT", "EXISTS"]);
    let name = reader.name()?;
    let columns = reader.column_list()?;
    let options = if reader.accept(&["WITH"]) { reader.options()? } else { Vec::new() };
    reader.expect(&["AS"])?;
    if !reader.sees_query() {
        return Err(reader.unexpected());
    }
    let query = reader.query()?;
    Ok(Statement::CreateView(CreateView { name, if_not_exists, columns, options, query, with_data: with_data(reader)? }))
}

fn with_data(reader: &mut Reader<'_>) -> Result<bool> {
    if !reader.accept(&["WITH"]) {
        return Ok(true);
    }
    let with_data = !reader.accept(&["NO"]);
    reader.expect(&["DATA"])?;
    Ok(with_data)
}

pub(super) fn parse_refresh(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["REFRESH", "MATERIALIZED", "VIEW"])?;
    // A refresh never blocks readers here, so CONCURRENTLY asks for nothing more.
    reader.accept(&["CONCURRENTLY"]);
    let name = reader.name()?;
    if with_data(reader)? {
        Ok(Statement::RefreshView(name))
    } else {
        Err(Error::unsupported("REFRESH MATERIALIZED VIEW ... WITH NO DATA is not supported"))
    }
}

pub(super) fn parse_check(reader: &mut Reader<'_>) -> Result<Statement> {
    reader.expect(&["CHECK", "MATERIALIZED", "VIEW"])?;
    Ok(Statement::CheckView(reader.name()?))
}
