//! Where rows come from: tables, views, series, system tables.
//!
//! *Place*: bound plans hold [`Unresolved`] sources, which name a relation; `query::resolve` replaces them by providers of
//! the snapshot that a run reads, so that a cached plan runs on later snapshots and pins none.

pub mod folded;
pub mod recomputed;
pub mod rows;
pub mod series;
pub mod states;
pub mod view;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableSource, TableType};

use crate::catalog::{Maintenance, Oid, Table};
use crate::error::{Error, SqlState};
use crate::query::Context;
use crate::query::error::from_datafusion;
use crate::query::system::SystemTables;
use crate::store::snapshot::with_lsn;
use crate::types::LSN_COLUMN;
use crate::view::Recomputed;

/// A schema that no client can name: its tables are those of `public` with the rows' LSNs in a last column, for UPDATE and DELETE.
pub const ROWS_SCHEMA: &str = "\u{1}rows";

/// What a scan in a bound plan reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Relation {
    /// A table's rows.
    Table(Oid),
    /// A table's rows from an LSN on: what a view WITH NO DATA was made from.
    Since(Oid, u64),
    /// A table's rows with their LSNs in a last column.
    Rows(Oid),
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
    /// Of an event table: the column of its event time.
    event_time: Option<String>,
}

impl Unresolved {
    /// A source for bound plans.
    pub fn new(relation: Relation, name: impl Into<String>, schema: SchemaRef) -> Self {
        Self { relation, name: name.into(), schema, event_time: None }
    }

    /// A table by its definition.
    pub fn table(table: &Table) -> Self {
        let event_time = table.watermark.and_then(|watermark| table.columns.get(watermark.column)).map(|column| column.name.clone());
        Self { event_time, ..Self::new(Relation::Table(table.oid), table.name.clone(), table.schema()) }
    }

    /// The name of an event table's event time.
    pub fn event_time(&self) -> Option<&str> {
        self.event_time.as_deref()
    }

    /// A table's rows with their LSNs in a last column.
    #[must_use]
    pub fn with_lsn(mut self) -> Self {
        if self.schema.fields().last().is_none_or(|last| last.name() != LSN_COLUMN) {
            self.schema = with_lsn(&self.schema);
        }
        self
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
            Relation::Table(oid) | Relation::Rows(oid) | Relation::Since(oid, _) => {
                let table = snapshot.tables.get(oid).ok_or_else(|| self.missing())?;
                let mut rows = rows::Rows::new(Arc::clone(table), Arc::clone(state), Arc::clone(&self.schema));
                if let Relation::Since(_, lsn) = self.relation {
                    rows = rows.since(lsn);
                }
                Ok(provider_as_source(Arc::new(rows)))
            }
            Relation::View(oid) => {
                if let Some(recomputed) = snapshot.recomputed.get(oid) {
                    return self.recomputed(Arc::clone(recomputed), context, state, system);
                }
                let version = snapshot.views.get(oid).ok_or_else(|| self.missing())?;
                if let Some(upper) = version.spec.upper() {
                    let (state, schema) = (Arc::clone(state), Arc::clone(&self.schema));
                    let derived = recomputed::Derived::over_groups(version, upper, context, state, schema);
                    return Ok(provider_as_source(Arc::new(derived.map_err(from_datafusion)?)));
                }
                let table = snapshot.tables.get(&version.spec.view.table).cloned();
                let rows = view::ViewRows::new(Arc::clone(version), table, Arc::clone(state), Arc::clone(&self.schema));
                Ok(provider_as_source(Arc::new(rows)))
            }
            Relation::System { schema, name } => {
                let table = system.and_then(|system| system.table(schema, name, context)).ok_or_else(|| self.missing())?;
                Ok(provider_as_source(table))
            }
            Relation::Series(arguments) => {
                Ok(provider_as_source(Arc::new(series::Series::new(arguments, state, Arc::clone(&self.schema), &context.time_zone)?)))
            }
        }
    }

    fn recomputed(
        &self,
        recomputed: Arc<Recomputed>,
        context: &Context,
        state: &Arc<SessionState>,
        system: Option<&Arc<dyn SystemTables>>,
    ) -> Result<Arc<dyn TableSource>, Error> {
        let (state, schema) = (Arc::clone(state), Arc::clone(&self.schema));
        Ok(match recomputed.view.maintenance {
            Maintenance::Refreshed => provider_as_source(Arc::new(recomputed::ResultRows::new(recomputed, state, schema)?)),
            Maintenance::State | Maintenance::Derived => {
                provider_as_source(Arc::new(recomputed::Derived::new(&recomputed, context, state, system, schema)))
            }
        })
    }

    fn missing(&self) -> Error {
        undefined_table(&self.name)
    }
}

/// A bound plan that reads a table's rows from an LSN on instead of all.
pub fn since(plan: LogicalPlan, table: Oid, lsn: u64) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(mut scan) => match scan.source.downcast_ref::<Unresolved>() {
            Some(source) if source.relation == Relation::Table(table) => {
                scan.source = Arc::new(Unresolved { relation: Relation::Since(table, lsn), ..source.clone() });
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            }
            _ => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
        },
        other => Ok(Transformed::no(other)),
    })
    .map(|changed| changed.data)
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
