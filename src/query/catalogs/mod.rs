//! The system schemas: `pg_catalog` and `information_schema` as PostgreSQL has them, and `verus`.
//!
//! *Place*: `server` gives a [`SystemCatalogs`] to the engine, which asks it for tables and functions ([`SystemTables`]) and
//! calls [`rewrite::query`] on statements before planning.
//!
//! *Invariants*: (1) rows are made from one snapshot when a table is scanned, and nothing is kept between scans; (2) OIDs are
//! the same in every statement: built-in objects have PostgreSQL's, tables and views their own, what hangs on them one
//! derived from it ([`objects`]); (3) a relation that Verus has no objects for is there with its columns, and empty.

pub mod alerts;
pub mod functions;
mod information_schema;
mod notify;
mod objects;
mod pg_catalog;
mod pg_class;
mod pg_proc;
mod pg_type;
mod relation;
pub mod rewrite;
mod rows;
pub mod signal;
pub mod sources;
#[cfg(test)]
mod tests;
mod verus;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, ScalarUDF, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::catalog::{Oid, View};
use crate::clock::Micros;
use crate::error::Result;
use crate::query::Context;
use crate::query::system::{INFORMATION_SCHEMA, PG_CATALOG, SystemTables, VERUS};
use crate::store::{PartitionClosing, Progress, WatermarkRange};
use relation::Relation;
use rows::Rows;

/// What goes on in the server, which the layers above know.
pub trait Activity: Send + Sync + Debug {
    /// Open connections.
    fn sessions(&self) -> Vec<SessionRow>;

    /// The newest statements that have ended.
    fn query_log(&self) -> Vec<LogRow>;

    /// pg_notify() in a query of a session: said when its transaction commits.
    fn notify(&self, backend: i32, channel: &str, payload: &str) -> Result<()>;

    /// Stops a session's statement, or the session: false when there is no such session.
    fn signal(&self, backend: i32, signal: signal::Signal) -> bool;

    /// The server's clock.
    fn now(&self) -> Micros;

    /// The watermarks of an event table over its partitions; none before its first row.
    fn watermark(&self, table: Oid) -> Option<WatermarkRange>;

    /// The watermark of each partition of an event table.
    fn partitions(&self, table: Oid) -> Vec<PartitionClosing>;

    /// Why the last refresh of a view failed, if it did.
    fn refresh_failure(&self, view: Oid) -> Option<String>;

    /// Least time between two refreshes of a view that does not say its own, microseconds.
    fn refresh_interval_us(&self) -> i64;

    /// What is known of an alert.
    fn alert(&self, alert: &crate::catalog::Alert) -> alerts::AlertRow;

    /// The history of alerts.
    fn alert_history(&self) -> Result<Vec<alerts::HistoryRow>>;

    /// Messages to notification channels.
    fn notifications(&self) -> Vec<alerts::NotificationRow>;

    /// What is known of a source.
    fn source(&self, source: Oid) -> sources::SourceRow;

    /// How far the backfill of a view is, if one is running.
    fn backfill(&self, view: Oid) -> Option<Progress>;

    /// All metrics in Prometheus's text format.
    fn metrics(&self) -> String;
}

/// A COPY under way.
#[derive(Clone, Copy, Debug)]
pub struct CopyRow {
    /// Its table, 0 for a query.
    pub table: Oid,
    /// COPY FROM.
    pub from: bool,
    /// Bytes that have come or gone.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// One connection.
#[derive(Clone, Debug, Default)]
pub struct SessionRow {
    /// pg_backend_pid().
    pub backend: i32,
    /// Who logged in.
    pub user: String,
    /// To which database.
    pub database: String,
    /// As the client named itself.
    pub application: String,
    /// Where the client is, when it came by TCP.
    pub client: Option<SocketAddr>,
    /// When it connected.
    pub connected: Micros,
    /// When the open transaction began.
    pub transaction_start: Option<Micros>,
    /// Its COPY.
    pub copying: Option<CopyRow>,
    /// When the statement that runs, or ran last, began.
    pub query_start: Option<Micros>,
    /// `active`, `idle`, `idle in transaction` or `idle in transaction (aborted)`.
    pub state: &'static str,
    /// The statement that runs, or ran last.
    pub query: Arc<str>,
}

/// One statement that has ended.
#[derive(Clone, Debug)]
pub struct LogRow {
    /// Who sent it; its `query` and `query_start` are the statement's.
    pub session: SessionRow,
    /// How long it took.
    pub took_us: Micros,
    /// Its command tag, or its error's SQLSTATE and message.
    pub outcome: std::result::Result<String, (String, String)>,
}

/// The system schemas of one server.
#[derive(Clone, Debug)]
pub struct SystemCatalogs {
    activity: Arc<dyn Activity>,
}

/// What the rows of system relations are made from.
#[derive(Clone, Debug)]
pub struct World {
    /// The snapshot and the session.
    pub context: Context,
    /// The server.
    pub activity: Arc<dyn Activity>,
}

impl World {
    /// Whether a view can be read.
    pub fn is_populated(&self, view: &View) -> bool {
        let recomputed = self.context.snapshot.recomputed.get(&view.oid);
        view.ready && (view.is_incremental() || recomputed.is_some_and(|recomputed| recomputed.result.is_some()))
    }
}

impl SystemCatalogs {
    /// Over a server's activity.
    pub fn new(activity: Arc<dyn Activity>) -> Self {
        Self { activity }
    }

    fn world(&self, context: &Context) -> Arc<World> {
        Arc::new(World { context: context.clone(), activity: Arc::clone(&self.activity) })
    }
}

impl SystemTables for SystemCatalogs {
    fn table(&self, schema: &str, name: &str, context: &Context) -> Option<Arc<dyn TableProvider>> {
        let relation = relation::relation(schema, name)?;
        Some(Arc::new(SystemTable { relation, world: self.world(context) }))
    }

    fn function(&self, name: &str, context: &Context) -> Option<Arc<ScalarUDF>> {
        if let Some(signal) = signal::Signal::named(name) {
            return Some(signal::function(signal, self.world(context)));
        }
        match name {
            notify::NAME => Some(notify::function(self.world(context))),
            _ => functions::function(name, || self.world(context)),
        }
    }
}

/// One system relation as of one snapshot.
#[derive(Debug)]
struct SystemTable {
    relation: &'static Relation,
    world: Arc<World>,
}

/// The rows of a relation.
fn batch(relation: &'static Relation, world: &World) -> Result<RecordBatch> {
    let mut rows = Rows::new(relation);
    match relation.schema {
        PG_CATALOG => pg_catalog::fill(relation.name, world, &mut rows),
        INFORMATION_SCHEMA => information_schema::fill(relation.name, world, &mut rows),
        VERUS if alerts::fill(relation.name, world, &mut rows)? => {}
        VERUS if sources::fill(relation.name, world, &mut rows) => {}
        VERUS => verus::fill(relation.name, world, &mut rows),
        _ => {}
    }
    rows.finish()
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        self.relation.arrow_schema()
    }

    fn table_type(&self) -> TableType {
        if self.relation.kind == "v" { TableType::View } else { TableType::Base }
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let rows = batch(self.relation, &self.world)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], self.schema(), projection.cloned())?)
    }
}
