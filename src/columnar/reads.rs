//! Reading data files: whole-file checks, footers, byte ranges.
//!
//! *Place*: the scan's reader factory and compaction.
//!
//! *Invariants*: (1) before the first byte of a file is used in this process, its length and checksum have been compared
//! with the table log; (2) footers in memory are bounded by `metadata_bytes_max`, open files by `open_files_max`.
//!
//! Files of this machine are kept open, and a small part is read where it is asked for: to hand a read of some pages, which are most
//! often in the page cache, to another thread and to open the file there takes several times as long as the read.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::ParquetFileMetrics;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, MetadataFetch};
use parquet::errors::ParquetError;
use parquet::file::metadata::{FileMetaData, KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader};
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::Xxh3;

use super::DataFile;
use super::error::{ColumnarError, Result};
use crate::config::limits::ColumnarLimits;

/// Key of a footer's metadata, in memory only: what is to be added to the LSNs of the file.
pub const LSN_BASE: &str = "verus.lsnBase";

/// Bytes read at once while a file is checked.
const CHECK_STEP_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes at the end of a file that most likely hold footer and page index.
const FOOTER_GUESS_BYTES: usize = 128 * 1024;

/// Bytes that are read without leaving the thread. More are better read by another one while this one decodes.
const INLINE_BYTES_MAX: u64 = 128 * 1024;

/// Reads files of one table, checking each once.
#[derive(Debug)]
pub struct Reads {
    store: Arc<dyn ObjectStore>,
    /// Files whose check has begun; set when it succeeded. One entry a listed file: [`Reads::forget`] removes it.
    checked: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    footers: Mutex<Footers>,
    /// None where the store's objects are no files of this machine.
    opened: Option<Mutex<Opened>>,
}

impl Reads {
    /// Reads of files in `store`, whose objects are files of this machine when `is_local`.
    pub fn new(store: Arc<dyn ObjectStore>, is_local: bool, limits: &ColumnarLimits) -> Reads {
        let footers = Footers { entries: HashMap::new(), bytes: 0, bytes_max: limits.metadata_bytes_max, uses: 0 };
        let opened = Opened { entries: HashMap::new(), files_max: limits.open_files_max, uses: 0 };
        Reads { store, checked: Mutex::default(), footers: Mutex::new(footers), opened: is_local.then(|| Mutex::new(opened)) }
    }

    /// Where files are.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Compares length and checksum with the table log, the first time.
    pub async fn check(&self, file: &DataFile) -> Result<()> {
        let cell = Arc::clone(self.checked.lock().entry(file.path.clone()).or_default());
        cell.get_or_try_init(|| async {
            self.expect_length(file).await?;
            let mut hash = Xxh3::new();
            let mut from = 0;
            while from < file.bytes {
                let to = file.bytes.min(from + CHECK_STEP_BYTES);
                hash.update(&self.range(file, from..to).await?);
                from = to;
            }
            expect_checksum(file, hash.digest())
        })
        .await?;
        Ok(())
    }

    /// The whole file, checked.
    pub async fn whole(&self, file: &DataFile) -> Result<Bytes> {
        self.expect_length(file).await?;
        let bytes = self.range(file, 0..file.bytes).await?;
        expect_checksum(file, xxhash_rust::xxh3::xxh3_64(&bytes))?;
        Ok(bytes)
    }

    /// Footer and page index.
    pub async fn footer(&self, file: &DataFile) -> Result<Arc<ParquetMetaData>> {
        if let Some(found) = self.footers.lock().get(&file.path) {
            return Ok(found);
        }
        self.check(file).await?;
        let loaded = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .with_prefetch_hint(Some(FOOTER_GUESS_BYTES))
            .load_and_finish(Fetch { reads: self, file }, file.bytes)
            .await
            .map_err(|error| ColumnarError::damaged(&file.path, error.to_string()))?;
        let loaded = Arc::new(if file.lsn_base == 0 { loaded } else { with_base(loaded, file.lsn_base) });
        self.footers.lock().put(&file.path, &loaded);
        Ok(loaded)
    }

    /// Lets go of what is known of a deleted file.
    pub fn forget(&self, path: &str) {
        self.checked.lock().remove(path);
        self.footers.lock().remove(path);
        if let Some(opened) = &self.opened {
            opened.lock().entries.remove(path);
        }
    }

    /// Parts of a file, checked.
    async fn ranges(&self, file: &DataFile, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check(file).await?;
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if bytes <= INLINE_BYTES_MAX
            && let Some(opened) = self.open(file).await?
        {
            // A scan that never waits would keep the plan's other tasks from the other threads.
            tokio::task::yield_now().await;
            return ranges
                .iter()
                .map(|range| read_at(&opened, range))
                .collect::<std::io::Result<_>>()
                .map_err(ColumnarError::io("read", &file.path));
        }
        let path = Path::from(file.path.as_str());
        self.store.get_ranges(&path, ranges).await.map_err(ColumnarError::storage("read", &file.path))
    }

    /// A file of this machine.
    async fn open(&self, file: &DataFile) -> Result<Option<Arc<File>>> {
        let Some(opened) = &self.opened else { return Ok(None) };
        if let Some(found) = opened.lock().get(&file.path) {
            return Ok(Some(found));
        }
        let got = self.store.get(&Path::from(file.path.as_str())).await.map_err(ColumnarError::storage("read", &file.path))?;
        let GetResultPayload::File(found, _) = got.payload else { return Ok(None) };
        let found = Arc::new(found);
        opened.lock().put(&file.path, &found);
        Ok(Some(found))
    }

    async fn expect_length(&self, file: &DataFile) -> Result<()> {
        let found = match self.store.head(&Path::from(file.path.as_str())).await {
            Ok(found) => found.size,
            Err(object_store::Error::NotFound { .. }) => return Err(ColumnarError::damaged(&file.path, "it is missing")),
            Err(error) => return Err(ColumnarError::storage("read", &file.path)(error)),
        };
        if found != file.bytes {
            return Err(ColumnarError::damaged(&file.path, format!("it has {found} bytes instead of {}", file.bytes)));
        }
        Ok(())
    }

    async fn range(&self, file: &DataFile, range: Range<u64>) -> Result<Bytes> {
        self.store.get_range(&Path::from(file.path.as_str()), range).await.map_err(ColumnarError::storage("read", &file.path))
    }
}

/// Tells the scan's expressions, which see nothing of a file but its footer, what to add to its LSNs.
fn with_base(footer: ParquetMetaData, base: i64) -> ParquetMetaData {
    let told = footer.file_metadata();
    let mut pairs = told.key_value_metadata().cloned().unwrap_or_default();
    pairs.push(KeyValue::new(LSN_BASE.to_owned(), base.to_string()));
    let told = FileMetaData::new(
        told.version(),
        told.num_rows(),
        told.created_by().map(str::to_owned),
        Some(pairs),
        told.schema_descr_ptr(),
        told.column_orders().cloned(),
    );
    let row_groups = footer.row_groups().to_vec();
    ParquetMetaDataBuilder::new(told)
        .set_row_groups(row_groups)
        .set_column_index(footer.column_index().cloned())
        .set_offset_index(footer.offset_index().cloned())
        .build()
}

fn expect_checksum(file: &DataFile, found: u64) -> Result<()> {
    if found == file.checksum {
        return Ok(());
    }
    Err(ColumnarError::damaged(&file.path, "its checksum does not fit"))
}

/// Footers by path, the least recently used given up first.
#[derive(Debug)]
struct Footers {
    entries: HashMap<String, Footer>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

#[derive(Debug)]
struct Footer {
    metadata: Arc<ParquetMetaData>,
    bytes: usize,
    used: u64,
}

impl Footers {
    fn get(&mut self, path: &str) -> Option<Arc<ParquetMetaData>> {
        let found = self.entries.get_mut(path)?;
        self.uses += 1;
        found.used = self.uses;
        Some(Arc::clone(&found.metadata))
    }

    fn put(&mut self, path: &str, metadata: &Arc<ParquetMetaData>) {
        let bytes = metadata.memory_size();
        if bytes > self.bytes_max {
            return;
        }
        self.remove(path);
        while self.bytes + bytes > self.bytes_max {
            let oldest = self.entries.iter().min_by_key(|(_, footer)| footer.used).map(|(path, _)| path.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
        self.uses += 1;
        self.bytes += bytes;
        self.entries.insert(path.to_owned(), Footer { metadata: Arc::clone(metadata), bytes, used: self.uses });
    }

    fn remove(&mut self, path: &str) {
        if let Some(removed) = self.entries.remove(path) {
            self.bytes -= removed.bytes;
        }
    }
}

/// Open files by path, the least recently used closed first.
#[derive(Debug)]
struct Opened {
    entries: HashMap<String, (Arc<File>, u64)>,
    files_max: usize,
    uses: u64,
}

impl Opened {
    fn get(&mut self, path: &str) -> Option<Arc<File>> {
        let (file, used) = self.entries.get_mut(path)?;
        self.uses += 1;
        *used = self.uses;
        Some(Arc::clone(file))
    }

    fn put(&mut self, path: &str, file: &Arc<File>) {
        while self.entries.len() >= self.files_max.max(1) {
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            let Some(oldest) = oldest else { break };
            self.entries.remove(&oldest);
        }
        self.uses += 1;
        self.entries.insert(path.to_owned(), (Arc::clone(file), self.uses));
    }
}

fn read_at(file: &File, range: &Range<u64>) -> std::io::Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

struct Fetch<'a> {
    reads: &'a Reads,
    file: &'a DataFile,
}

impl MetadataFetch for Fetch<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        let (reads, file) = (self.reads, self.file);
        async move { reads.range(file, range).await.map_err(external) }.boxed()
    }
}

/// Carries the client's error through Parquet and DataFusion.
fn external(error: ColumnarError) -> ParquetError {
    ParquetError::External(Box::new(crate::error::Error::from(error)))
}

/// Opens the files of a scan, each of which carries its [`DataFile`] as an extension.
#[derive(Debug)]
pub struct Readers(pub Arc<Reads>);

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        partition_index: usize,
        partitioned_file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::error::Result<Box<dyn AsyncFileReader + Send>> {
        let file = partitioned_file
            .extension::<Arc<DataFile>>()
            .ok_or_else(|| DataFusionError::Internal("a scanned file does not say what it is".to_owned()))?;
        let metrics = ParquetFileMetrics::new(partition_index, &file.path, metrics);
        Ok(Box::new(Reader { reads: Arc::clone(&self.0), file: Arc::clone(file), metrics }))
    }
}

struct Reader {
    reads: Arc<Reads>,
    file: Arc<DataFile>,
    metrics: ParquetFileMetrics,
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.metrics.bytes_scanned.add((range.end - range.start) as usize);
        async move {
            let mut read = self.reads.ranges(&self.file, std::slice::from_ref(&range)).await.map_err(external)?;
            read.pop().ok_or_else(|| ParquetError::General("nothing was read".to_owned()))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.metrics.bytes_scanned.add(ranges.iter().map(|range| (range.end - range.start) as usize).sum());
        async move { self.reads.ranges(&self.file, &ranges).await.map_err(external) }.boxed()
    }

    /// Always with the page index: it is small, and a second request for it would cost more.
    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move { self.reads.footer(&self.file).await.map_err(external) }.boxed()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.metrics.scan_efficiency_ratio.add_part(self.metrics.bytes_scanned.value());
        self.metrics.scan_efficiency_ratio.set_total(usize::try_from(self.file.bytes).unwrap_or(usize::MAX));
    }
}
