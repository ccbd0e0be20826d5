//! CREATE MATERIALIZED VIEW.

use std::sync::Arc;

use crate::catalog::{Change, View};
use crate::command::{Response, options, relation};
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql::statement::CreateView;
use crate::store::Transaction;
use crate::view::describe;

/// `CREATE MATERIALIZED VIEW [IF NOT EXISTS] name [(columns)] [WITH (...)] AS query [WITH [NO] DATA]`. With data it returns when the
/// view is complete; without, the view has what comes from now on.
pub async fn execute(session: &mut Session, statement: &CreateView) -> Result<Response> {
    relation::creatable(&statement.name)?;
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let name = &statement.name.name;
    if catalog.table_named(name).is_some() || catalog.view_named(name).is_some() {
        let message = format!("relation \"{name}\" already exists");
        if !statement.if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_TABLE, message));
        }
        session.warn(SqlState::DUPLICATE_TABLE, format!("{message}, skipping"));
        return Ok(Response::Done("CREATE MATERIALIZED VIEW".to_owned()));
    }
    let ttl_us = options::view_ttl(&statement.options)?;
    let query = statement.query.to_string();
    let (table, mut columns) = describe(&*session.services.binder, &catalog, &query)?;
    if statement.columns.len() > columns.len() {
        return Err(Error::syntax("too many column names were specified"));
    }
    for (column, name) in columns.iter_mut().zip(&statement.columns) {
        column.name.clone_from(name);
    }
    for (index, column) in columns.iter().enumerate() {
        if columns[..index].iter().any(|other| other.name == column.name) {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", column.name)));
        }
    }
    let oid = session.services.store.allocate_oid();
    let view = View { oid, name: name.clone(), query, table, columns, ttl_us, ready: !statement.with_data };
    session.submit(Transaction { changes: vec![Change::CreateView(Arc::new(view))], writes: Vec::new() }).await?;
    Ok(Response::Done("CREATE MATERIALIZED VIEW".to_owned()))
}
