//! How the storage layers get expressions bound without knowing SQL.
//!
//! *Place*: `view`, `store` and `ingest` call it; `query::engine` implements it; `server` joins them.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{AggregateUDF, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;

use crate::catalog::Catalog;
use crate::clock::Micros;
use crate::error::Result;

/// Turns the SQL texts kept in the catalog into DataFusion's plans and expressions.
pub trait Binder: Send + Sync + fmt::Debug {
    /// The analyzed (typed and coerced, not optimized) plan of a SELECT over `catalog`. Tables appear as `TableScan`s whose
    /// schema is the table's, without the hidden LSN column.
    fn bind_query(&self, catalog: &Arc<Catalog>, query: &str) -> Result<LogicalPlan>;

    /// Physical expressions over rows of `schema`. `targets[i]`, where given, is the Arrow type that expression `i` is cast
    /// to (assignment cast: overflow is an error). NOW() is the statement's time, taken at binding.
    fn bind_expressions(
        &self,
        schema: &SchemaRef,
        expressions: &[String],
        targets: &[Option<arrow::datatypes::DataType>],
    ) -> Result<Vec<Arc<dyn PhysicalExpr>>>;

    /// DataFusion's state with Verus's functions and settings, for planning physical aggregates.
    fn session_state(&self) -> SessionState;

    /// An aggregate function as it is used where its states are kept for long; none for one that is the same there.
    fn kept(&self, _function: &AggregateUDF) -> Option<Arc<AggregateUDF>> {
        None
    }

    /// How the states of an aggregate function become smaller as time goes on that is given these arguments, of these types; none where
    /// they do not.
    fn settle(&self, _function: &AggregateUDF, _arguments: &[Arc<dyn PhysicalExpr>], _types: &[FieldRef]) -> Option<Arc<dyn Settle>> {
        None
    }
}

/// How states of an aggregate function become smaller as time goes on.
pub trait Settle: Send + Sync + fmt::Debug {
    /// The argument that is the time.
    fn time(&self) -> usize;

    /// States (columns of the function's state, one a row) that have all rows, without what cannot decide any more: no row comes that is
    /// older than `horizon`.
    fn settle(&self, states: &[ArrayRef], horizon: Micros) -> datafusion::error::Result<Vec<ArrayRef>>;
}
