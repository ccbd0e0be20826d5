//! `INSERT INTO t [AS alias] [(columns)] {query | VALUES ... | DEFAULT VALUES} [ON CONFLICT ...] [RETURNING ...]`.

use sqlparser::ast;
use sqlparser::parser::Parser;

use super::{Insert, Statement};
use crate::error::{Error, Result};
use crate::sql::query;
use crate::sql::reader::{Reader, fold, name_of};

pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Statement> {
    let column_defaults = default_values(reader)?;
    if let Some(insert) = column_defaults {
        return Ok(Statement::Insert(insert));
    }
    let parsed = reader.run(Parser::parse_statement)?;
    let ast::Statement::Insert(insert) = parsed else { return Err(Error::unsupported("this form of INSERT is not supported")) };
    let foreign = insert.or.is_some()
        || insert.ignore
        || insert.overwrite
        || insert.replace_into
        || insert.has_table_keyword
        || !insert.into
        || !insert.assignments.is_empty()
        || !insert.after_columns.is_empty()
        || insert.partitioned.is_some()
        || insert.output.is_some()
        || insert.priority.is_some()
        || insert.insert_alias.is_some()
        || insert.settings.is_some()
        || insert.format_clause.is_some()
        || insert.multi_table_insert_type.is_some()
        || !insert.multi_table_into_clauses.is_empty();
    let (ast::TableObject::TableName(table), false, Some(mut source)) = (&insert.table, foreign, insert.source) else {
        return Err(Error::syntax("this form of INSERT is not PostgreSQL's"));
    };
    query::check(&mut source)?;
    Ok(Statement::Insert(Insert {
        table: name_of(table)?,
        columns: insert.columns.iter().map(column).collect::<Result<_>>()?,
        source: Some(source),
        returning: insert.returning,
        on_conflict: insert.on,
    }))
}

fn column(name: &ast::ObjectName) -> Result<String> {
    match name.0.as_slice() {
        [ast::ObjectNamePart::Identifier(ident)] => Ok(fold(&ident.value, ident.quote_style)),
        _ => Err(Error::unsupported(format!("assigning to a part of a column is not supported: {name}"))),
    }
}

/// `INSERT INTO t DEFAULT VALUES`, which sqlparser does not tell apart from other sources.
fn default_values(reader: &mut Reader<'_>) -> Result<Option<Insert>> {
    let ahead = (3..=5).find(|ahead| reader.word(*ahead).as_deref() == Some("DEFAULT"));
    let found = ahead.is_some_and(|ahead| reader.word(ahead + 1).as_deref() == Some("VALUES"));
    if !found {
        return Ok(None);
    }
    reader.expect(&["INSERT", "INTO"])?;
    let table = reader.name()?;
    reader.expect(&["DEFAULT", "VALUES"])?;
    let returning = match reader.accept(&["RETURNING"]) {
        true => Some(reader.run(|parser| parser.parse_comma_separated(Parser::parse_select_item))?),
        false => None,
    };
    Ok(Some(Insert { table, columns: Vec::new(), source: None, returning, on_conflict: None }))
}
