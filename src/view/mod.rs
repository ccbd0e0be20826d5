//! Incremental views: compile a query, apply batches to it, merge and store its state, read it back.
//!
//! *Place*: `store::commit` applies, `store::background` checkpoints and merges, `query::provider` reads.
//!
//! *Invariants*: (1) a view's state at a snapshot equals its query over the rows accepted so far; (2) blocks and the applied
//! LSN go in one RocksDB batch; (3) a delta or block is immutable.
//!
//! Life of state: a commit's rows become one [`Delta`] per view (unmerged partial aggregates); small deltas are merged with
//! their neighbours as they pile up; about once a second the deltas of a view are merged, cut by time bucket and slot
//! range and appended to RocksDB as blocks; background merges keep few blocks a bucket; readers merge on read.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Table, View};
use crate::error::Result;
use crate::state::{Batch, State};

/// A compiled view: filter, keys, aggregates, output.
#[derive(Debug)]
pub struct Spec {
    /// Its definition.
    pub view: Arc<View>,
}

/// The partial aggregates that one commit, or several merged ones, contribute to a view.
#[derive(Debug)]
pub struct Delta {
    /// Key columns, then state columns.
    pub rows: RecordBatch,
    /// First LSN covered.
    pub first_lsn: u64,
    /// One past the last LSN covered.
    pub next_lsn: u64,
}

/// A view's state as of one snapshot: immutable, cheap to clone and to extend.
#[derive(Clone, Debug)]
pub struct Version {
    /// The compiled view.
    pub spec: Arc<Spec>,
}

impl Spec {
    /// Compiles a definition. 0A000 with the reason for what cannot be kept incrementally.
    pub fn compile(binder: &dyn Binder, catalog: &Arc<Catalog>, table: &Table, view: &Arc<View>) -> Result<Spec> {
        let _ = (binder, catalog, table, view);
        unimplemented!()
    }
}

/// Derives a view's output columns and checks that it can be kept; for CREATE MATERIALIZED VIEW.
pub fn describe(binder: &dyn Binder, catalog: &Arc<Catalog>, query: &str) -> Result<(crate::catalog::Oid, Vec<crate::catalog::Column>)> {
    let _ = (binder, catalog, query);
    unimplemented!()
}

/// Computes the deltas of several views of one table for the same rows (table schema, without LSN), sharing filter, key
/// and grouping work between them. One entry per spec, none where no row passes. Runs on the caller's thread; `threads`
/// more may help.
pub fn apply(specs: &[Arc<Spec>], rows: &RecordBatch, first_lsn: u64, next_lsn: u64, threads: usize) -> Result<Vec<Option<Delta>>> {
    let _ = (specs, rows, first_lsn, next_lsn, threads);
    unimplemented!()
}

impl Version {
    /// Loads the live blocks' index of a view from RocksDB. Blocks of another format, DataFusion version or fingerprint
    /// are discarded, and the version says that it has to be rebuilt.
    pub fn open(spec: Arc<Spec>, state: &Arc<State>) -> Result<Version> {
        let _ = state;
        Ok(Version { spec })
    }

    /// Every row with an LSN below this is in the blocks in RocksDB.
    pub fn applied_lsn(&self) -> u64 {
        unimplemented!()
    }

    /// The version with one more delta; merges small neighbours, so the number of deltas stays logarithmic.
    pub fn with_delta(&self, delta: Delta) -> Result<Version> {
        let _ = delta;
        unimplemented!()
    }

    /// Writes the deltas up to and including `next_lsn` as blocks plus the applied LSN into `batch`. The caller writes the
    /// batch and then calls [`Version::checkpointed`].
    pub fn checkpoint(&self, next_lsn: u64, batch: &mut Batch) -> Result<Checkpoint> {
        let _ = (next_lsn, batch);
        unimplemented!()
    }

    /// The version after a checkpoint's batch was written: its deltas replaced by the new blocks. Deltas that came meanwhile stay.
    pub fn checkpointed(&self, checkpoint: &Checkpoint) -> Version {
        let _ = checkpoint;
        unimplemented!()
    }

    /// A plan that reads the view: the output columns by `projection`, groups merged, pruned by `filters` over key columns.
    /// Filters are applied again above unless exact.
    pub fn scan(
        &self,
        state: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let _ = (state, projection, filters, limit);
        unimplemented!()
    }
}

/// The outcome of [`Version::checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {}
