//! Planning and running SQL over one snapshot.
//!
//! *Place*: `command` calls it; it implements `catalog::bind::Binder` for the layers below.
//!
//! A query's way: `ast::Query` -> [`Engine::bind`] -> [`Bound`] -> [`Engine::run`] -> stream of batches.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;

use crate::clock::Micros;
use crate::error::Result;
use crate::sql::Statement;
use crate::store::Snapshot;
use crate::types::SqlType;

/// What a statement may know about its session.
#[derive(Clone, Debug)]
pub struct Context {
    /// What is visible.
    pub snapshot: Arc<Snapshot>,
    /// NOW(), CURRENT_TIMESTAMP: the transaction's start.
    pub now: Micros,
    /// Session time zone, an IANA name or an offset such as `+02:00`.
    pub time_zone: String,
    /// CURRENT_USER.
    pub user: String,
    /// pg_backend_pid().
    pub backend: i32,
    /// All session variables, for current_setting() and pg_settings.
    pub settings: Arc<std::collections::BTreeMap<String, String>>,
}

/// A typed plan, reusable with other parameter values and on later snapshots of the same catalog.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Analyzed, not optimized: NOW() and parameters are still in it.
    pub plan: LogicalPlan,
    /// Output columns, with [`crate::types::TYPE_KEY`] metadata.
    pub schema: SchemaRef,
    /// Types of $1, $2, ...
    pub parameters: Vec<SqlType>,
}

/// The query engine: DataFusion with Verus's types, functions, providers and limits.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Types a query (or EXPLAIN of one). `declared` are parameter types that the client gave (none where it left them open).
    pub fn bind(&self, context: &Context, statement: &Statement, declared: &[Option<SqlType>]) -> Result<Bound> {
        let _ = (context, statement, declared);
        unimplemented!()
    }

    /// Optimizes and starts a plan. The stream ends with an error when `cancel` fires; dropping it stops the plan.
    pub async fn run(
        &self,
        context: &Context,
        bound: &Bound,
        parameters: &[ScalarValue],
        cancel: tokio_util::sync::CancellationToken,
    ) -> Result<SendableRecordBatchStream> {
        let _ = (context, bound, parameters, cancel);
        unimplemented!()
    }
}
