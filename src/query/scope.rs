//! What names mean in one query: tables, views, functions, types, as DataFusion's SQL planner asks for them.
//!
//! *Place*: made for each binding by `query::bind`, over a catalog snapshot.
//!
//! *Invariants*: (1) unqualified names are searched in `public`, then in `pg_catalog`; (2) a view that is still being built
//! does not exist; (3) nothing but catalog objects, system tables and series can be scanned: no files, no URLs.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Result, TableReference};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};

use super::aliases::Aliases;
use super::operator::Operators;
use super::provider::{ROWS_SCHEMA, Relation, Unresolved, series, undefined_table};
use super::sets::Sets;
use super::system::{SystemTables, is_system_schema};
use super::{Context, functions, typing};
use crate::catalog::{Catalog, OWN_PREFIX};
use crate::error::{Error, SqlState};
use crate::store::snapshot::with_lsn;

/// The default schema.
const PUBLIC: &str = "public";
/// The one database.
const DATABASE: &str = "verus";

/// The names of one binding.
pub struct Scope<'a> {
    /// Functions and configuration.
    pub state: &'a SessionState,
    /// Expression planners, Verus's first.
    pub planners: &'a [Arc<dyn ExprPlanner>],
    /// Tables and views.
    pub catalog: &'a Arc<Catalog>,
    /// For system tables and functions; none while binding what the catalog itself keeps.
    pub context: Option<&'a Context>,
    /// The system schemas, once the server has joined them.
    pub system: Option<&'a Arc<dyn SystemTables>>,
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

impl Scope<'_> {
    fn relation(&self, schema: Option<&str>, name: &str) -> Option<Unresolved> {
        match schema {
            None => self.user_relation(name).or_else(|| self.system_table(super::system::PG_CATALOG, name)),
            Some(PUBLIC) => self.user_relation(name),
            Some(ROWS_SCHEMA) => {
                let table = self.catalog.table_named(name)?;
                Some(Unresolved::new(Relation::Rows(table.oid), name, with_lsn(&table.schema())))
            }
            Some(schema @ super::system::VERUS) => self.own_table(name).or_else(|| self.system_table(schema, name)),
            Some(schema) if is_system_schema(schema) => self.system_table(schema, name),
            Some(_) => None,
        }
    }

    fn user_relation(&self, name: &str) -> Option<Unresolved> {
        if let Some(table) = self.catalog.table_named(name) {
            return Some(Unresolved::table(table));
        }
        let view = self.catalog.view_named(name).filter(|view| view.ready)?;
        Some(Unresolved::new(Relation::View(view.oid), name, view.schema()))
    }

    /// A table that the server keeps for itself.
    fn own_table(&self, name: &str) -> Option<Unresolved> {
        let table = self.catalog.table_named(&format!("{OWN_PREFIX}{name}"))?;
        Some(Unresolved::new(Relation::Table(table.oid), &table.name, table.schema()))
    }

    fn is_building(&self, schema: Option<&str>, name: &str) -> bool {
        schema.is_none_or(|schema| schema == PUBLIC) && self.catalog.view_named(name).is_some_and(|view| !view.ready)
    }

    fn system_table(&self, schema: &str, name: &str) -> Option<Unresolved> {
        let table = self.system?.table(schema, name, self.context?)?;
        let relation = Relation::System { schema: schema.to_owned(), name: name.to_owned() };
        Some(Unresolved::new(relation, format!("{schema}.{name}"), table.schema()))
    }
}

impl ContextProvider for Scope<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        if let Some(database) = name.catalog()
            && database != DATABASE
        {
            return Err(Error::unsupported(format!("cross-database references are not implemented: \"{name}\"")).into());
        }
        if let Some(schema) = name.schema()
            && schema != PUBLIC
            && schema != ROWS_SCHEMA
            && !is_system_schema(schema)
        {
            return Err(undefined_table(&format!("{schema}.{}", name.table())).into());
        }
        match self.relation(name.schema(), name.table()) {
            Some(relation) => Ok(Arc::new(relation)),
            None if self.is_building(name.schema(), name.table()) => {
                let message = format!("materialized view \"{}\" has not been populated", name.table());
                Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                    .hint("It can be read when the statement or transaction that creates it has ended.")
                    .into())
            }
            None => {
                let shown = match name.schema() {
                    Some(schema) => format!("{schema}.{}", name.table()),
                    None => name.table().to_owned(),
                };
                Err(undefined_table(&shown).into())
            }
        }
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        if !name.eq_ignore_ascii_case("generate_series") {
            let error = Error::new(SqlState::UNDEFINED_FUNCTION, format!("function {name} does not exist"))
                .hint("No function matches the given name and argument types. You might need to add explicit type casts.");
            return Err(error.into());
        }
        let empty = datafusion::common::DFSchema::empty();
        let args = args.into_iter().map(|argument| Ok(typing::expression(argument, &empty)?.data)).collect::<Result<Vec<_>>>()?;
        let args = series::typed(args)?;
        let schema = series::schema(&args)?;
        Ok(Arc::new(Unresolved::new(Relation::Series(args), name, schema)))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.planners
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        static PLANNERS: LazyLock<[Arc<dyn RelationPlanner>; 3]> =
            LazyLock::new(|| [Arc::new(Aliases), Arc::new(Operators), Arc::new(Sets)]);
        PLANNERS.as_slice()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(typing::planner::Postgres))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let known = self.state.scalar_functions().get(name).cloned().or_else(|| self.system?.function(name, self.context?));
        // UNNEST is a form of the planner's own.
        let other = name == "unnest"
            || self.state.aggregate_functions().contains_key(name)
            || self.state.window_functions().contains_key(name)
            || self.state.higher_order_functions().contains_key(name);
        match known {
            None if !other => {
                let names = self.state.scalar_functions().keys().chain(self.state.aggregate_functions().keys());
                Some(functions::missing::function(name, names.map(String::as_str)))
            }
            known => known,
        }
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
