//! ALTER TABLE ... ADD COLUMN and ALTER MATERIALIZED VIEW ... SET.

use std::sync::Arc;

use crate::catalog::{Change, Table, TableKind, View};
use crate::command::{Response, create_table, options, relation};
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql::statement::{AlterTable, Name};
use crate::store::Transaction;

/// `ALTER TABLE name ADD [COLUMN] [IF NOT EXISTS] column`: a nullable column, NULL in the rows that are there.
pub async fn table(session: &mut Session, statement: &AlterTable) -> Result<Response> {
    let done = || Ok(Response::Done("ALTER TABLE".to_owned()));
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let table = relation::writable(&catalog, &statement.name)?;
    let column = create_table::column(&statement.column)?;
    if table.column(&column.name).is_some() {
        let message = format!("column \"{}\" of relation \"{}\" already exists", column.name, table.name);
        if !statement.if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, message));
        }
        session.warn(SqlState::DUPLICATE_COLUMN, format!("{message}, skipping"));
        return done();
    }
    if !column.nullable && column.default.is_none() && column.generated.is_none() {
        return Err(Error::new(
            SqlState::NOT_NULL_VIOLATION,
            format!("column \"{}\" of relation \"{}\" contains null values", column.name, table.name),
        )
        .detail("The rows that are already there hold NULL in an added column."));
    }
    if !column.nullable || column.default.is_some() || column.generated.is_some() || !statement.column.checks.is_empty() {
        return Err(Error::unsupported("only a nullable column without default, generation expression and constraints can be added")
            .detail("The rows that are already there hold NULL in it."));
    }
    if table.kind == TableKind::Event && create_table::LATE_COLUMNS.contains(&column.name.as_str()) {
        return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" exists in \"{}$late\"", column.name, table.name)));
    }
    let mut widened = Table::clone(&table);
    widened.columns.push(column.clone());
    let mut changes = vec![Change::AlterTable(Arc::new(widened))];
    if let Some(late) = table.late_oid.and_then(|oid| catalog.table(oid)) {
        let mut late = Table::clone(late);
        late.columns.push(column);
        changes.push(Change::AlterTable(Arc::new(late)));
    }
    session.submit(Transaction { changes, writes: Vec::new() }).await?;
    done()
}

/// `ALTER MATERIALIZED VIEW name SET (ttl = '...', refresh_interval = '...')`.
pub async fn view(session: &mut Session, name: &Name, given: &[(String, String)]) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let view = relation::view(&catalog, name)?;
    let given = options::view(given, view.maintenance)?;
    let (ttl_us, refresh_us) = (given.ttl_us.or(view.ttl_us), given.refresh_us.or(view.refresh_us));
    let altered = View { ttl_us, refresh_us, ..View::clone(&view) };
    session.submit(Transaction { changes: vec![Change::AlterView(Arc::new(altered))], writes: Vec::new() }).await?;
    Ok(Response::Done("ALTER MATERIALIZED VIEW".to_owned()))
}
