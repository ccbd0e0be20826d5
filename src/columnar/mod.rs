//! Cold rows: clustered, checksummed Parquet files committed in a Delta table log, over `object_store`.
//!
//! *Place*: `store::flush` and `store::compact` write, `query::provider` reads. The only importer of `parquet`.
//! Knows Arrow schemas and a [`Layout`], not the catalog.
//!
//! *Invariants*: (1) a file is immutable and exists for readers when the table log lists it; (2) file and directory are
//! synced before the commit that names them; (3) a file's length and checksum are in its `add` action and are checked
//! before the first read in a process.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use object_store::ObjectStore;

use crate::error::Result;

/// What a table's files look like.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The columns, then the hidden `_lsn` (Int64, not null) last.
    pub schema: SchemaRef,
    /// Column to cluster by and keep bloom filters on, if any.
    pub partition_by: Option<usize>,
    /// Event-time column: rows are sorted by (partition_by, event time, LSN) and files cut by its UTC date.
    pub event_time: Option<usize>,
    /// zstd level 1 when true, else Snappy.
    pub zstd: bool,
}

/// A file that the table log lists.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Path below the table's directory.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// xxh3-64 of the whole file.
    pub checksum: u64,
    /// Least and greatest LSN.
    pub lsn_range: (i64, i64),
    /// Per column of the layout: least and greatest value (exact or widened bounds) and null count, where known.
    pub stats: Vec<Option<ColumnStats>>,
}

/// Statistics of one column of one file.
#[derive(Clone, Debug)]
pub struct ColumnStats {
    /// At most the least value.
    pub min: ScalarValue,
    /// At least the greatest value.
    pub max: ScalarValue,
    /// Number of NULLs.
    pub nulls: u64,
}

/// The file list as of one commit of the table log. Immutable; held by snapshots.
#[derive(Clone, Debug)]
pub struct Version {
    /// Commit number of the table log.
    pub version: u64,
    /// Live files.
    pub files: Vec<Arc<DataFile>>,
    /// Rows with an LSN below this are in the files (the `txn` action).
    pub flushed_lsn: u64,
}

/// A table's cold half. One writer at a time (the store's background work).
#[derive(Debug)]
pub struct ColumnTable {
    store: Arc<dyn ObjectStore>,
    layout: Layout,
}

impl ColumnTable {
    /// Opens or creates the table in `dir` (a local directory; everything below goes through `object_store`). Leftovers that
    /// no log entry names are removed later by [`ColumnTable::collect`].
    pub async fn open(dir: &Path, name: &str, layout: Layout) -> Result<ColumnTable> {
        let _ = (dir, name, layout);
        unimplemented!()
    }

    /// The newest version.
    pub fn version(&self) -> Arc<Version> {
        unimplemented!("{:?} {:?}", self.store, self.layout)
    }

    /// Clusters, cuts and writes `batches` (layout schema, any order) as one or more synced files, not yet listed.
    pub async fn write(&self, batches: Vec<RecordBatch>) -> Result<Vec<DataFile>> {
        let _ = batches;
        unimplemented!()
    }

    /// Lists `adds`, unlists `removes` and moves the flushed LSN, in one commit of the table log. Returns the new version.
    pub async fn commit(&self, adds: Vec<DataFile>, removes: &[Arc<DataFile>], flushed_lsn: u64) -> Result<Arc<Version>> {
        let _ = (adds, removes, flushed_lsn);
        unimplemented!()
    }

    /// Picks small or overlapping files of one date and merges them into better ones, and unlists files whose rows all lie
    /// before `retain_from` (microseconds of event time). None when there is nothing to do. `rows_max` bounds one round.
    pub async fn compact(&self, retain_from: Option<i64>, rows_max: u64) -> Result<Option<Arc<Version>>> {
        let _ = (retain_from, rows_max);
        unimplemented!()
    }

    /// Deletes files that no live version lists. `live` are the versions that snapshots still hold.
    pub async fn collect(&self, live: &[Arc<Version>]) -> Result<usize> {
        let _ = live;
        unimplemented!()
    }

    /// A plan that reads the files of `version`: files pruned by `filters` against their statistics, row groups, pages and
    /// bloom filters by DataFusion's Parquet source. Yields `projection` of the layout's schema. Filters are hints only.
    pub fn scan(
        &self,
        state: &SessionState,
        version: &Version,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let _ = (state, version, projection, filters, limit);
        unimplemented!()
    }

    /// Widens the layout by nullable columns at the end of the declared ones (before `_lsn`).
    pub async fn evolve(&mut self, layout: Layout) -> Result<()> {
        let _ = layout;
        unimplemented!()
    }
}
