//! CREATE MATERIALIZED VIEW.

use std::sync::Arc;

use crate::catalog::{Catalog, Change, Maintenance, View};
use crate::command::{Response, options, relation, view_parts};
use crate::error::{Error, Result, SqlState};
use crate::query::rewrite::shown;
use crate::session::Session;
use crate::sql::statement::CreateView;
use crate::store::Transaction;
use crate::view::describe;

/// `CREATE MATERIALIZED VIEW [IF NOT EXISTS] name [(columns)] [WITH (...)] AS query [WITH [NO] DATA]`. With data it returns when the
/// view is complete; without, an incremental view has what comes from now on, and a refreshed one gets its first result in the
/// background.
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
    let query = statement.query.to_string();
    let mut view = describe(&*session.services.binder, &catalog, &query)?;
    within_limit(session, &catalog, &view)?;
    name_columns(&mut view, &statement.columns)?;
    view.oid = session.services.store.allocate_oid();
    let parts = match view.maintenance {
        Maintenance::Refreshed => {
            let services = &session.services;
            view_parts::split(&mut view, &statement.query, name, &*services.binder, &catalog, &services.store)
        }
        Maintenance::State | Maintenance::Derived => Vec::new(),
    };
    let given = options::view(&statement.options, &view)?;
    if view.maintenance == Maintenance::Derived && parts.is_empty() && !statement.with_data {
        return Err(Error::unsupported("WITH NO DATA for a view that is computed from another view's state is not supported")
            .detail(view.reason.unwrap_or_default())
            .hint("It keeps nothing of its own, so there is nothing to fill: create it WITH DATA."));
    }
    view.name.clone_from(name);
    (view.ttl_us, view.refresh_us) = (given.ttl_us, given.refresh_us);
    view.ready = !statement.with_data || (view.maintenance == Maintenance::Derived && parts.is_empty());
    let mut changes = Vec::with_capacity(parts.len() + 1);
    for mut part in parts {
        part.ready = !statement.with_data || part.maintenance == Maintenance::Derived;
        changes.push(Change::CreateView(Arc::new(part)));
    }
    changes.push(Change::CreateView(Arc::new(view)));
    session.submit(Transaction { changes, ..Transaction::default() }).await?;
    Ok(Response::Done("CREATE MATERIALIZED VIEW".to_owned()))
}

/// Gives the columns the names that the statement says, the others those of the query. 42701 when two are the same.
fn name_columns(view: &mut View, names: &[String]) -> Result<()> {
    let columns = &mut view.columns;
    if names.len() > columns.len() {
        return Err(Error::syntax("too many column names were specified"));
    }
    for (index, column) in columns.iter_mut().enumerate() {
        column.name = names.get(index).cloned().unwrap_or_else(|| shown(&column.name).to_owned());
    }
    for (index, column) in columns.iter().enumerate() {
        if columns[..index].iter().any(|other| other.name == column.name) {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", column.name))
                .hint("Give the columns different names with AS."));
        }
    }
    Ok(())
}

/// Refuses views over views over views without end: reading one plans all that are below it.
fn within_limit(session: &Session, catalog: &Catalog, view: &View) -> Result<()> {
    let nesting_max = session.services.config.limits.view.nesting_max;
    if catalog.nesting(view) <= nesting_max {
        return Ok(());
    }
    session.services.metrics.limit_hit("limits.view.nesting_max");
    Err(Error::new(SqlState::STATEMENT_TOO_COMPLEX, "materialized views are nested too deeply")
        .detail(format!("A view can have {} others below it, one over the other.", nesting_max - 1)))
}
