//! Where rows come from: tables, views, series, system tables.
//!
//! *Place*: bound plans hold [`Unresolved`] sources, which name a relation; `query::resolve` replaces them by providers of
//! the snapshot that a run reads, so that a cached plan runs on later snapshots and pins none.

pub mod rows;
pub mod series;
pub mod view;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableSource, TableType};

use crate::catalog::Oid;
use crate::error::{Error, SqlState};
use crate::query::Context;
use crate::query::system::SystemTables;

/// What a scan in a bound plan reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Relation {
    /// A table's rows.
    Table(Oid),
    /// A view's output.
    View(Oid),
    /// A table of a system schema.
    System {
        /// `pg_catalog`, `information_schema` or `verus`.
        schema: String,
        /// The table.
        name: String,
    },
    /// `generate_series(start, stop [, step])`.
    Series(Vec<Expr>),
}

/// A relation by identity, without rows.
#[derive(Clone, Debug)]
pub struct Unresolved {
    /// What it is.
    pub relation: Relation,
    /// Its name, for errors.
    pub name: String,
    schema: SchemaRef,
}

impl Unresolved {
    /// A source for bound plans.
    pub fn new(relation: Relation, name: impl Into<String>, schema: SchemaRef) -> Self {
        Self { relation, name: name.into(), schema }
    }

    /// The source that reads the relation as of `context`.
    pub fn resolve(
        &self,
        context: &Context,
        state: &Arc<SessionState>,
        system: Option<&Arc<dyn SystemTables>>,
    ) -> Result<Arc<dyn TableSource>, Error> {
        let snapshot = &context.snapshot;
        match &self.relation {
            Relation::Table(oid) => {
                let table = snapshot.tables.get(oid).ok_or_else(|| self.missing())?;
                Ok(provider_as_source(Arc::new(rows::Rows::new(Arc::clone(table), Arc::clone(state), Arc::clone(&self.schema)))))
            }
            Relation::View(oid) => {
                let version = snapshot.views.get(oid).ok_or_else(|| self.missing())?;
                Ok(provider_as_source(Arc::new(view::ViewRows::new(Arc::clone(version), Arc::clone(state), Arc::clone(&self.schema)))))
            }
            Relation::System { schema, name } => {
                let table = system.and_then(|system| system.table(schema, name, context)).ok_or_else(|| self.missing())?;
                Ok(provider_as_source(table))
            }
            Relation::Series(arguments) => {
                Ok(provider_as_source(Arc::new(series::Series::new(arguments, state, Arc::clone(&self.schema))?)))
            }
        }
    }

    fn missing(&self) -> Error {
        undefined_table(&self.name)
    }
}

/// `relation "x" does not exist`.
pub fn undefined_table(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
}

impl TableSource for Unresolved {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
