//! Names of statements to objects of the catalog, with PostgreSQL's errors.

use std::sync::Arc;

use crate::catalog::{Catalog, OWN_PREFIX, Table, TableKind, View};
use crate::error::{Error, Result, SqlState};
use crate::sql::statement::Name;

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Relation {
    /// A table.
    Table(Arc<Table>),
    /// A view.
    View(Arc<View>),
}

/// The schema of every user object.
const PUBLIC: &str = "public";

/// A table or a view that can be read, or none.
pub fn find(catalog: &Catalog, name: &Name) -> Option<Relation> {
    if let Some("verus") = name.schema.as_deref() {
        let own = catalog.table_named(&format!("{OWN_PREFIX}{}", name.name));
        return own.map(|table| Relation::Table(Arc::clone(table)));
    }
    if !is_public(name) {
        return None;
    }
    let table = catalog.table_named(&name.name).map(|table| Relation::Table(Arc::clone(table)));
    table.or_else(|| catalog.view_named(&name.name).filter(|view| view.ready).map(|view| Relation::View(Arc::clone(view))))
}

/// A table to be changed. 42P01 when nothing has the name, 42809 for a view.
pub fn table(catalog: &Catalog, name: &Name) -> Result<Arc<Table>> {
    match find(catalog, name) {
        Some(Relation::Table(table)) => Ok(table),
        Some(Relation::View(view)) => {
            Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("cannot change materialized view \"{}\"", view.name))
                .hint("It follows the rows of its table."))
        }
        None => Err(missing(name)),
    }
}

/// A table to be written to by users: not a `$late` companion.
pub fn writable(catalog: &Catalog, name: &Name) -> Result<Arc<Table>> {
    let table = table(catalog, name)?;
    if table.kind == TableKind::Late {
        return Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("cannot change table \"{}\"", table.name))
            .detail("It records the rows that came too late for its table."));
    }
    if table.is_own() {
        return Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("cannot change table \"{}\"", table.name))
            .detail("The server keeps it for itself.")
            .hint("Rows can be taken out of it with DELETE."));
    }
    Ok(table)
}

/// A table whose rows UPDATE may change: a plain one. 0A000 for an event table.
pub fn updatable(catalog: &Catalog, name: &Name) -> Result<Arc<Table>> {
    let table = writable(catalog, name)?;
    if table.kind == TableKind::Event {
        return Err(Error::unsupported(format!("cannot update event table \"{}\"", table.name))
            .detail("Events are append-only.")
            .hint("Insert a correcting event, or DELETE the rows and insert them anew."));
    }
    Ok(table)
}

/// A view. 42P01 when nothing has the name, 42809 for a table.
pub fn view(catalog: &Catalog, name: &Name) -> Result<Arc<View>> {
    match find(catalog, name) {
        Some(Relation::View(view)) => Ok(view),
        Some(Relation::Table(table)) => {
            Err(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a materialized view", table.name)))
        }
        None => Err(missing(name)),
    }
}

/// 42P01.
pub fn missing(name: &Name) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{}\" does not exist", shown(name)))
}

/// The name as messages show it.
pub fn shown(name: &Name) -> String {
    match &name.schema {
        Some(schema) => format!("{schema}.{}", name.name),
        None => name.name.clone(),
    }
}

/// Refuses to create an object outside `public`: 3F000 for an unknown schema, 42501 for a system one.
pub fn creatable(name: &Name) -> Result<()> {
    match name.schema.as_deref() {
        None | Some(PUBLIC) if name.name.starts_with(OWN_PREFIX) => {
            Err(Error::new(SqlState::INVALID_NAME, format!("unacceptable name \"{}\"", name.name))
                .detail(format!("The prefix \"{OWN_PREFIX}\" is reserved for tables of the server.")))
        }
        None | Some(PUBLIC) => Ok(()),
        Some(schema @ ("pg_catalog" | "information_schema" | "verus")) => {
            Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied to create \"{}\"", shown(name)))
                .detail(format!("System schema {schema} cannot be changed.")))
        }
        Some(schema) => Err(Error::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist"))),
    }
}

fn is_public(name: &Name) -> bool {
    matches!(name.schema.as_deref(), None | Some(PUBLIC))
}
