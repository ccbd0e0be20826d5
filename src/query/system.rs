//! What the system schemas are to the engine: `pg_catalog`, `information_schema` and `verus`.
//!
//! *Place*: implemented by `query::catalogs`, given to the engine by `server`.

use std::fmt::Debug;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::logical_expr::ScalarUDF;

use crate::query::Context;

/// The schema of PostgreSQL's catalogs, which is searched for unqualified names after `public`.
pub const PG_CATALOG: &str = "pg_catalog";
/// The standard's catalogs.
pub const INFORMATION_SCHEMA: &str = "information_schema";
/// The server's own views.
pub const VERUS: &str = "verus";

/// Tables and functions that describe the server.
pub trait SystemTables: Send + Sync + Debug {
    /// A table as of `context`, or none. Its rows are made when it is scanned.
    fn table(&self, schema: &str, name: &str, context: &Context) -> Option<Arc<dyn TableProvider>>;

    /// A function of `pg_catalog` (`format_type`, `pg_get_viewdef`, and `regclass(text)` for `text::regclass`), or none.
    fn function(&self, name: &str, context: &Context) -> Option<Arc<ScalarUDF>>;
}

/// Whether a schema's tables come from [`SystemTables`].
pub fn is_system_schema(schema: &str) -> bool {
    matches!(schema, PG_CATALOG | INFORMATION_SCHEMA | VERUS)
}
