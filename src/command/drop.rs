//! DROP TABLE and DROP MATERIALIZED VIEW.

use std::sync::Arc;

use crate::catalog::{Alert, Catalog, Change, Oid, TableKind};
use crate::command::Response;
use crate::command::relation::{self, Relation};
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql::statement::{Drop, Name};
use crate::store::Transaction;

/// `DROP {TABLE | MATERIALIZED VIEW} [IF EXISTS] name [, ...] [CASCADE | RESTRICT]`: all of the names or none.
pub async fn execute(session: &mut Session, statement: &Drop) -> Result<Response> {
    let mut catalog = Arc::clone(&session.snapshot()?.catalog);
    let mut changes = Vec::new();
    for name in &statement.names {
        let steps = match find(&catalog, statement, name)? {
            Some(relation) => steps(&catalog, &relation, statement.cascade)?,
            None => {
                let what = if statement.view { "materialized view" } else { "table" };
                session.warn(SqlState("00000"), format!("{what} \"{}\" does not exist, skipping", relation::shown(name)));
                continue;
            }
        };
        for change in steps {
            catalog = Arc::new(catalog.with(&change)?);
            changes.push(change);
        }
    }
    if !changes.is_empty() {
        session.submit(Transaction { changes, ..Transaction::default() }).await?;
    }
    Ok(Response::Done(if statement.view { "DROP MATERIALIZED VIEW" } else { "DROP TABLE" }.to_owned()))
}

fn find(catalog: &Catalog, statement: &Drop, name: &Name) -> Result<Option<Relation>> {
    match (relation::find(catalog, name), statement.view) {
        (Some(Relation::Table(table)), false) if table.kind == TableKind::Late => Err(Error::new(
            SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop table {} because its table requires it", table.name),
        )
        .hint("DROP the table itself instead.")),
        (Some(Relation::Table(table)), false) if table.is_own() => {
            Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("cannot drop table \"{}\"", table.name))
                .detail("The server keeps it for itself."))
        }
        (found @ (Some(Relation::Table(_)) | None), false) | (found @ (Some(Relation::View(_)) | None), true) => match found {
            None if !statement.if_exists => Err(absent(statement, name)),
            found => Ok(found),
        },
        (Some(Relation::Table(table)), true) => {
            Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a materialized view", table.name))
                .hint("Use DROP TABLE to remove a table."))
        }
        (Some(Relation::View(view)), false) => Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", view.name))
            .hint("Use DROP MATERIALIZED VIEW to remove a materialized view.")),
    }
}

fn absent(statement: &Drop, name: &Name) -> Error {
    let what = if statement.view { "materialized view" } else { "table" };
    Error::new(SqlState::UNDEFINED_TABLE, format!("{what} \"{}\" does not exist", relation::shown(name)))
}

fn steps(catalog: &Catalog, relation: &Relation, cascade: bool) -> Result<Vec<Change>> {
    let head = match relation {
        Relation::View(view) => view.oid,
        Relation::Table(table) => table.oid,
    };
    let alerts = if cascade { alerts(catalog, head) } else { Vec::new() };
    let relations = match relation {
        Relation::View(view) => {
            let own = catalog.parts(view.oid).map(|part| Change::DropView(part.oid));
            [dependents(catalog, view.oid, cascade), vec![Change::DropView(view.oid)], own.collect()].concat()
        }
        Relation::Table(table) => [dependents(catalog, table.oid, cascade), vec![Change::DropTable(table.oid)]].concat(),
    };
    let sources = catalog.sources().filter(|source| cascade && source.table == head).map(|source| Change::DropSource(source.oid));
    Ok([alerts, sources.collect(), relations].concat())
}

/// The alerts over a relation and over the views that depend on it.
fn alerts(catalog: &Catalog, oid: Oid) -> Vec<Change> {
    let needed: Vec<Oid> = catalog.dependents(oid).iter().map(|view| view.oid).chain([oid]).collect();
    let reads = |alert: &&Arc<Alert>| alert.sources.iter().any(|source| needed.contains(&source.oid));
    catalog.alerts().filter(reads).map(|alert| Change::DropAlert(alert.oid)).collect()
}

fn dependents(catalog: &Catalog, oid: Oid, cascade: bool) -> Vec<Change> {
    let views = if cascade { catalog.dependents(oid) } else { Vec::new() };
    views.iter().map(|view| Change::DropView(view.oid)).collect()
}
