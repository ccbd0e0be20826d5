//! Cold rows: clustered, checksummed Parquet files committed in a Delta table log, over `object_store`.
//!
//! *Place*: `store::flush` and `store::compact` write, `query::provider` reads. The only importer of `parquet`.
//! Knows Arrow schemas and a [`Layout`], not the catalog.
//!
//! | file | what it is |
//! |---|---|
//! | `cluster`, `encode` | rows into file order, file order into Parquet bytes |
//! | `physical` | which types files hold for the layout's |
//! | `fill` | columns that a file was written without |
//! | `publish` | whole, durable objects |
//! | `log` | the table log: Delta's protocol behind a trait |
//! | `reads`, `scan` | checked reads, footers; the plan |
//! | `compact`, `merge`, `slice` | what to merge; merging it in steps; the rows of one step |
//! | `deleted` | which rows are dead |
//! | `foreign` | files that others have written |
//! | `held` | which versions somebody may read |
//!
//! On disk, below a table's directory: `data/<uuid>.parquet` and `_delta_log/`.
//!
//! *Invariants*: (1) a file is immutable and exists for readers when the table log lists it; (2) file and directory are
//! synced before the commit that names them; (3) a file's length and checksum are in its `add` action and are checked
//! before the first read in a process; (4) a file is deleted only when no version that somebody holds lists it and no write
//! under way made it.
//!
//! *On failure*: a crash leaves unlisted files, which [`ColumnTable::collect`] deletes. A commit whose outcome is unknown
//! closes the table to further commits until it is opened again.

mod cluster;
mod compact;
mod deleted;
mod encode;
mod error;
mod fill;
pub mod foreign;
mod held;
mod log;
mod merge;
mod physical;
mod publish;
mod reads;
mod scan;
mod slice;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::context::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use self::cluster::Cuts;
pub use self::deleted::{Deleted, LsnSet};
use self::encode::{Encoded, Encoder};
use self::error::ColumnarError;
pub use self::fill::Fills;
use self::held::Held;
use self::log::delta::{DeltaLog, LOG_DIR};
use self::log::{Change, Listing, TableLog, stats};
pub use self::merge::Dead;
use self::merge::Merging;
use self::publish::{Created, LocalPublish, Publish};
use self::reads::Reads;
use self::slice::Slice;
use crate::clock::{Clock, SystemClock};
use crate::config::limits::ColumnarLimits;
use crate::error::Result;
use crate::task::Spawner;

/// Directory of the data files.
const DATA_DIR: &str = "data";

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
    /// What added columns are in files that were written before them.
    pub fills: Fills,
    /// Rows this much older than the newest are removed, microseconds: files are kept short against it.
    pub retention_us: Option<i64>,
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
    /// When it was written, milliseconds since 1970.
    pub written_ms: i64,
    /// No row of it was deleted by a commit below this LSN: such rows were left out when it was written.
    pub clean_lsn: u64,
    /// The sorted run that the file is a part of: files that one merge wrote, no two of which hold the same (partition, time, LSN) or
    /// lie between each other. None: it is one by itself.
    pub run: Option<Uuid>,
    /// Added to the LSNs in the file. Not zero for files that were written before their commit's LSNs were known.
    pub lsn_base: i64,
}

impl DataFile {
    /// The file with its LSNs counted from `base` on.
    #[must_use]
    pub fn rebased(mut self, base: i64) -> DataFile {
        self.lsn_base += base;
        self.lsn_range = (self.lsn_range.0 + base, self.lsn_range.1 + base);
        // What the file itself says of its LSNs is no longer so.
        if let Some(stats) = self.stats.last_mut() {
            *stats = None;
        }
        self
    }
}

/// Statistics of one column of one file. Both bounds are NULL when they are unknown or all values are NULL.
#[derive(Clone, Debug)]
pub struct ColumnStats {
    /// At most the least value.
    pub min: ScalarValue,
    /// At least the greatest value.
    pub max: ScalarValue,
    /// Number of NULLs.
    pub nulls: u64,
}

/// The file list as of one commit of the table log. Immutable; its files exist as long as somebody holds it.
#[derive(Debug)]
pub struct Version {
    /// Commit number of the table log.
    pub version: u64,
    /// Live files.
    pub files: Vec<Arc<DataFile>>,
    /// Rows with an LSN below this are in the files (the `txn` action).
    pub flushed_lsn: u64,
}

/// A table's cold half. One writer at a time (the store's background work). A clone is another handle on the same table,
/// with a layout of its own: old snapshots keep reading by theirs after [`ColumnTable::evolve`].
#[derive(Clone, Debug)]
pub struct ColumnTable {
    shared: Arc<Shared>,
    layout: Layout,
}

#[derive(Debug)]
struct Shared {
    name: String,
    /// Name of the object store in plans, which hold no local path.
    url: ObjectStoreUrl,
    reads: Arc<Reads>,
    publish: Arc<dyn Publish>,
    log: Box<dyn TableLog>,
    current: ArcSwap<Listing>,
    held: Mutex<Held>,
    /// Held by whoever commits. True while a commit is under way and after one whose outcome is unknown.
    unsettled: tokio::sync::Mutex<bool>,
    /// Files that were or are being written and are not listed yet.
    pending: Mutex<HashSet<String>>,
    /// The merge under way, and what could not be merged.
    merging: tokio::sync::Mutex<Merging>,
    limits: ColumnarLimits,
}

impl ColumnTable {
    /// Opens or creates the table in `dir` (a local directory; everything below goes through `object_store`). Leftovers that
    /// no log entry names are removed later by [`ColumnTable::collect`].
    pub async fn open(dir: &Path, name: &str, layout: Layout) -> Result<ColumnTable> {
        Self::open_with(dir, name, layout, ColumnarLimits::default()).await
    }

    /// [`ColumnTable::open`] with limits.
    pub async fn open_with(dir: &Path, name: &str, layout: Layout, limits: ColumnarLimits) -> Result<ColumnTable> {
        physical::file_schema(&layout.schema)
            .map_err(|problem| ColumnarError::Incompatible { table: name.to_owned(), problem: format!("{problem} cannot be stored") })?;
        let root = dir.to_owned();
        let publish = Spawner::current()
            .blocking(move || LocalPublish::open(&root, &[DATA_DIR, LOG_DIR]))
            .await
            .map_err(|stopped| ColumnarError::Invariant(format!("opening a table was cut off: {stopped}")))?
            .map_err(ColumnarError::io("open", LOG_DIR))?;
        let publish: Arc<dyn Publish> = Arc::new(publish);
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(ColumnarError::storage("open", LOG_DIR))?);
        let log = DeltaLog::new(name, Arc::clone(&store), Arc::clone(&publish), limits.checkpoint_commits);
        let listing = log.open(&layout).await?;
        let mut held = Held::default();
        held.note(&listing.version);
        let shared = Shared {
            name: name.to_owned(),
            url: url(name)?,
            reads: Arc::new(Reads::new(store, true, &limits)),
            publish,
            log: Box::new(log),
            current: ArcSwap::from_pointee(listing),
            held: Mutex::new(held),
            unsettled: tokio::sync::Mutex::new(false),
            pending: Mutex::default(),
            merging: tokio::sync::Mutex::default(),
            limits,
        };
        Ok(ColumnTable { shared: Arc::new(shared), layout })
    }

    /// What this handle reads and writes.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The newest version.
    pub fn version(&self) -> Arc<Version> {
        Arc::clone(&self.shared.current.load().version)
    }

    /// A version with other files: of a version that is held, or in this table's care ([`ColumnTable::adopt`]).
    pub fn with_files(&self, version: &Version, files: Vec<Arc<DataFile>>) -> Arc<Version> {
        let version = Arc::new(Version { files, ..*version });
        self.shared.held.lock().note(&version);
        version
    }

    fn set_current(&self, listing: Listing) {
        self.shared.held.lock().note(&listing.version);
        self.shared.current.store(Arc::new(listing));
    }

    /// Another handle for readers of a wider `layout`, whether the log has its columns already or not.
    pub fn reading(&self, layout: Layout) -> ColumnTable {
        ColumnTable { shared: Arc::clone(&self.shared), layout }
    }

    /// Clusters, cuts and writes `batches` (layout schema, any order) as one or more synced files, not yet listed. They are
    /// safe from [`ColumnTable::collect`] until they are committed or given to [`ColumnTable::abandon`].
    /// Rows that commits below `clean_lsn` deleted are not among them.
    pub async fn write(&self, batches: Vec<RecordBatch>, clean_lsn: u64) -> Result<Vec<DataFile>> {
        let days = compact::spans(&self.layout, &self.shared.limits)[0];
        let cuts = Cuts::Dates { rows_min: self.shared.limits.date_rows_min, days };
        Ok(self.write_cut(batches, clean_lsn, cuts).await?)
    }

    async fn write_cut(&self, batches: Vec<RecordBatch>, clean_lsn: u64, cuts: Cuts) -> error::Result<Vec<DataFile>> {
        let mut files = Vec::new();
        match self.write_into(batches, clean_lsn, cuts, &mut files).await {
            Ok(()) => Ok(files),
            Err(error) => {
                self.abandon(&files);
                Err(error)
            }
        }
    }

    async fn write_into(&self, batches: Vec<RecordBatch>, clean_lsn: u64, cuts: Cuts, files: &mut Vec<DataFile>) -> error::Result<()> {
        if batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(());
        }
        let schema = physical::file_schema(&self.layout.schema).map_err(ColumnarError::Invariant)?;
        let layout = self.layout.clone();
        let clustered = Spawner::current()
            .blocking(move || cluster::cluster(&layout, &batches, cuts))
            .await
            .map_err(|stopped| ColumnarError::Invariant(format!("clustering was cut off: {stopped}")))??;
        let clustered = Arc::new(clustered);
        let encoder = Encoder::new(&self.layout, Arc::clone(&schema), Arc::clone(&clustered), &self.shared.limits)?;
        for cut in &clustered.cuts {
            let mut from = cut.start;
            while from < cut.end {
                let (encoded, next) = encoder.file(cut, from).await?;
                files.push(self.publish_file(&schema, encoded, clean_lsn).await?);
                from = next;
            }
        }
        Ok(())
    }

    async fn publish_file(&self, schema: &SchemaRef, encoded: Encoded, clean_lsn: u64) -> error::Result<DataFile> {
        let file = DataFile {
            path: format!("{DATA_DIR}/{}.parquet", Uuid::now_v7()),
            bytes: encoded.bytes.len() as u64,
            rows: encoded.rows,
            checksum: xxh3_64(&encoded.bytes),
            lsn_range: encoded.lsn_range,
            stats: stats::from_footer(&self.layout, schema, &encoded.footer)?,
            written_ms: SystemClock.now() / 1000,
            lsn_base: 0,
            clean_lsn,
            run: None,
        };
        self.shared.pending.lock().insert(file.path.clone());
        let created = self.shared.publish.create(&file.path, encoded.bytes).await;
        match created {
            Ok(Created::Yes) => Ok(file),
            Ok(Created::Exists) => Err(ColumnarError::Invariant(format!("new file \"{}\" exists", file.path))),
            Err(error) => {
                self.abandon(std::slice::from_ref(&file));
                Err(error)
            }
        }
    }

    /// Lets go of written files that will not be committed; [`ColumnTable::collect`] deletes them.
    pub fn abandon(&self, files: &[DataFile]) {
        let mut pending = self.shared.pending.lock();
        for file in files {
            pending.remove(&file.path);
        }
    }

    /// Takes files that were written before (and are named somewhere) into the care of this table until they are listed.
    pub fn adopt<'a>(&self, files: impl Iterator<Item = &'a DataFile>) {
        self.shared.pending.lock().extend(files.map(|file| file.path.clone()));
    }

    /// Deletes written files that will not be committed. What cannot be deleted now is left to [`ColumnTable::collect`].
    pub async fn discard(&self, files: &[DataFile]) {
        for file in files {
            if let Err(error) = self.shared.reads.store().delete(&ObjectPath::from(file.path.as_str())).await {
                tracing::warn!(%error, path = file.path, "a file that is not needed could not be deleted yet");
            }
            self.shared.reads.forget(&file.path);
        }
        self.abandon(files);
    }

    /// A file's description as text, for [`ColumnTable::described`].
    pub fn describe(&self, file: &DataFile) -> Result<String> {
        Ok(log::delta::describe(file, &self.layout.schema)?)
    }

    /// Reads what [`ColumnTable::describe`] wrote, be it under a narrower layout. XX001 for anything else.
    pub fn described(&self, text: &str) -> Result<DataFile> {
        Ok(log::delta::described(text, &self.layout.schema)?)
    }

    /// All rows of a file, checked, in this handle's layout and in file order.
    pub async fn read(&self, file: &DataFile) -> Result<Vec<RecordBatch>> {
        Ok(self.rows_of(file, None).await?)
    }

    /// Those rows of a file whose partition is in a slice, or all.
    async fn rows_of(&self, file: &DataFile, slice: Option<Arc<Slice>>) -> error::Result<Vec<RecordBatch>> {
        let bytes = self.shared.reads.whole(file).await?;
        let (layout, file) = (self.layout.clone(), file.clone());
        let read = Spawner::current().blocking(move || slice::rows(&layout, &file, bytes, slice.as_deref())).await;
        read.map_err(|stopped| ColumnarError::Invariant(format!("reading was cut off: {stopped}")))?
    }

    /// Lists `adds`, unlists `removes` and moves the flushed LSN, in one commit of the table log. Returns the new version.
    pub async fn commit(&self, adds: Vec<DataFile>, removes: &[Arc<DataFile>], flushed_lsn: u64) -> Result<Arc<Version>> {
        Ok(self.commit_change(adds, removes.to_vec(), Some(flushed_lsn), true).await?)
    }

    /// `flushed_lsn` none: as it is.
    async fn commit_change(
        &self,
        adds: Vec<DataFile>,
        removes: Vec<Arc<DataFile>>,
        flushed_lsn: Option<u64>,
        data_change: bool,
    ) -> error::Result<Arc<Version>> {
        let shared = &self.shared;
        let mut unsettled = shared.unsettled.lock().await;
        if *unsettled {
            return Err(ColumnarError::Unsettled { table: shared.name.clone() });
        }
        let base = shared.current.load_full();
        let flushed_lsn = flushed_lsn.unwrap_or(base.version.flushed_lsn);
        if flushed_lsn < base.version.flushed_lsn {
            let problem = format!("flushed LSN {flushed_lsn} of \"{}\" is behind {}", shared.name, base.version.flushed_lsn);
            return Err(ColumnarError::Invariant(problem));
        }
        if adds.is_empty() && removes.is_empty() && flushed_lsn == base.version.flushed_lsn {
            return Ok(Arc::clone(&base.version));
        }
        let listed: HashSet<&str> = base.version.files.iter().map(|file| file.path.as_str()).collect();
        if let Some(gone) = removes.iter().find(|file| !listed.contains(file.path.as_str())) {
            let problem = format!("file \"{}\" is no longer listed", gone.path);
            return Err(ColumnarError::Conflict { table: shared.name.clone(), problem });
        }
        let paths: Vec<String> = adds.iter().map(|file| file.path.clone()).collect();
        let adds = self.under_logged_schema(adds, &base.schema);
        *unsettled = true;
        let done = shared.log.commit(&base, Change { adds, removes, flushed_lsn, data_change }).await;
        *unsettled = matches!(done, Err(ColumnarError::Unknown { .. }));
        let listing = done?;
        let version = Arc::clone(&listing.version);
        // Listed first, no longer pending second: `collect` looks at them the other way round.
        self.set_current(listing);
        let mut pending = shared.pending.lock();
        for path in &paths {
            pending.remove(path);
        }
        Ok(version)
    }

    /// The log may have got columns since this handle was made and its files written; of these it knows nothing.
    fn under_logged_schema(&self, files: Vec<DataFile>, logged: &SchemaRef) -> Vec<DataFile> {
        if self.layout.schema == *logged {
            return files;
        }
        let under = |file: DataFile| {
            let stats = stats::under_schema(&self.layout.schema, &file.stats, file.rows, logged, &|_| false);
            DataFile { stats, ..file }
        };
        files.into_iter().map(under).collect()
    }

    /// Whether [`ColumnTable::collect`] may find something: versions were let go since.
    pub fn has_let_go(&self) -> bool {
        self.shared.held.lock().has_let_go()
    }

    /// Deletes files that no version lists which somebody holds, and returns their number.
    pub async fn collect(&self) -> Result<usize> {
        let collected = self.delete_free().await;
        if collected.is_err() {
            self.shared.held.lock().failed();
        }
        Ok(collected?)
    }

    async fn delete_free(&self) -> error::Result<usize> {
        let shared = &self.shared;
        let settled = shared.unsettled.lock().await;
        if *settled {
            return Ok(0);
        }
        let directory = ObjectPath::from(DATA_DIR);
        let found: Vec<ObjectPath> = shared
            .reads
            .store()
            .list(Some(&directory))
            .map_ok(|object| object.location)
            .try_collect()
            .await
            .map_err(ColumnarError::storage("list", DATA_DIR))?;
        // In this order: what was pending when listed is pending now, or is in the version read after.
        let mut kept: HashSet<String> = shared.pending.lock().clone();
        let live = shared.held.lock().collecting();
        for version in &live {
            kept.extend(version.files.iter().map(|file| file.path.clone()));
        }
        // A file being written has its final name as a prefix.
        let is_kept = |path: &ObjectPath| {
            let path: &str = path.as_ref();
            let end = path.find(".parquet").map_or(path.len(), |at| at + ".parquet".len());
            kept.contains(&path[..end])
        };
        let gone: Vec<ObjectPath> = found.into_iter().filter(|path| !is_kept(path)).collect();
        for path in &gone {
            match shared.reads.store().delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => shared.reads.forget(path.as_ref()),
                Err(error) => return Err(ColumnarError::storage("delete", path.as_ref())(error)),
            }
        }
        Ok(gone.len())
    }

    /// A plan that reads the files of `version`, less the rows that are dead: files pruned by `filters` against their statistics, row groups, pages and
    /// bloom filters by DataFusion's Parquet source. Yields `projection` of the layout's schema. Filters are hints only.
    pub fn scan(
        &self,
        state: &SessionState,
        version: &Version,
        deleted: &Deleted,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let scan = scan::Scan { layout: &self.layout, url: &self.shared.url, reads: &self.shared.reads, version, deleted };
        Ok(scan.plan(state, projection, filters, limit)?)
    }

    /// Widens the layout by columns at the end of the declared ones (before `_lsn`). Older files read as the layout's fills
    /// there. Other handles keep their layout.
    pub async fn evolve(&mut self, layout: Layout) -> Result<()> {
        physical::file_schema(&layout.schema).map_err(|problem| ColumnarError::Incompatible {
            table: self.shared.name.clone(),
            problem: format!("{problem} cannot be stored"),
        })?;
        let mut unsettled = self.shared.unsettled.lock().await;
        if *unsettled {
            return Err(ColumnarError::Unsettled { table: self.shared.name.clone() }.into());
        }
        let base = self.shared.current.load_full();
        *unsettled = true;
        let done = self.shared.log.widen(&base, &layout).await;
        *unsettled = matches!(done, Err(ColumnarError::Unknown { .. }));
        self.set_current(done?);
        drop(unsettled);
        self.layout = layout;
        Ok(())
    }
}

/// `columnar://name`, with what cannot stand in a host name replaced and told apart by a hash.
fn url(name: &str) -> error::Result<ObjectStoreUrl> {
    let plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    let host = if !name.is_empty() && name.chars().all(plain) {
        format!("t-{name}")
    } else {
        let replaced: String = name.chars().map(|character| if plain(character) { character } else { '-' }).collect();
        format!("t-{replaced}-{:08x}", xxh3_64(name.as_bytes()) >> 32)
    };
    ObjectStoreUrl::parse(format!("columnar://{host}")).map_err(ColumnarError::encoding("name"))
}
