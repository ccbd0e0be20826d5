//! The stored result of a refreshed view.
//!
//! *Place*: `store::refresh` writes it from a run of the view's query, `query::provider` reads it.
//!
//! *Invariants*: (1) a result is live when the batch is written that holds its position and lists its blocks; until then its blocks
//! are listed as condemned, so a crash leaves the last result and garbage that is found; (2) the position says what the result was
//! computed from: a view is behind exactly when its sources are not as the position has them.
//!
//! Rows are blocks as of aggregate state (`block`), in one slot, by groups of windows where the view is local (`local`), else all in
//! one, in the order of their numbers. Family::Meta has `result/` and the view.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::UInt8Array;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::block::{self, FORMAT, Header};
use super::blocks::{Block, BlockName, Blocks, Entry};
use super::failure::arrow_failure;
use super::groups::indices;
use super::local::group_numbers;
use super::portion::Portion;
use crate::catalog::{Oid, View};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family};

/// What a result was computed from, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Rows with an LSN below this were visible.
    pub lsn: u64,
    /// Of every table below the view, the LSN of its last change.
    pub sources: BTreeMap<Oid, u64>,
    /// When it was complete, microseconds.
    pub refreshed_at: Micros,
    /// How long it took, microseconds.
    pub took_us: i64,
    /// Whether its blocks are by groups of windows.
    #[serde(default)]
    pub windowed: bool,
}

/// A complete result. Immutable; its bytes go when the last reader of a replaced one is done.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it was computed from.
    pub position: Position,
    view: Oid,
    fingerprint: u64,
    blocks: Vec<Arc<Block>>,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    format: u16,
    datafusion: String,
    fingerprint: u64,
    position: Position,
}

/// A block is cut earlier when its rows are large.
const BLOCK_BYTES_MAX: usize = 4 * 1024 * 1024;

fn meta_key(view: Oid) -> Vec<u8> {
    [b"result/".as_slice(), &view.to_be_bytes()].concat()
}

/// Changes whenever stored rows would mean something else.
fn fingerprint(view: &View) -> u64 {
    let types: Vec<_> = view.columns.iter().map(|column| &column.sql_type).collect();
    xxh3_64(format!("result {FORMAT} {} {types:?}", view.query).as_bytes())
}

impl Stored {
    /// The last complete result, or none. One of another format or DataFusion version is deleted.
    pub fn open(view: &View, home: &Arc<Blocks>) -> Result<Option<Stored>> {
        let blocks = home.list(view.oid)?;
        let meta: Option<Meta> = match home.state.get(Family::Meta, &meta_key(view.oid))? {
            Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(SqlState::DATA_CORRUPTED, format!("the position of materialized view {} is damaged: {error}", view.name))
            })?),
            None => None,
        };
        let fingerprint = fingerprint(view);
        let fits =
            |meta: &Meta| meta.format == FORMAT && meta.datafusion == datafusion::DATAFUSION_VERSION && meta.fingerprint == fingerprint;
        match meta.filter(fits) {
            Some(meta) => Ok(Some(Stored { position: meta.position, view: view.oid, fingerprint, blocks })),
            None => {
                let mut batch = Batch::default();
                batch.delete(Family::Meta, meta_key(view.oid));
                blocks.iter().for_each(|block| block.condemn(&mut batch));
                home.state.write(batch)?;
                blocks.iter().for_each(|block| block.release());
                Ok(None)
            }
        }
    }

    /// Rows in it.
    pub fn rows(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.entry.rows)).sum()
    }

    /// Bytes in RocksDB.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.entry.bytes)).sum()
    }

    /// Its blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// For DROP: removes position and index in `batch`. After it was written, call [`Stored::dropped`].
    pub fn drop_state(&self, batch: &mut Batch) {
        batch.delete(Family::Meta, meta_key(self.view));
        self.blocks.iter().for_each(|block| block.condemn(batch));
    }

    /// After a batch that condemned it was written: the bytes go with the last reader.
    pub fn dropped(&self) {
        self.blocks.iter().for_each(|block| block.release());
    }

    /// After the batch was written that put `next` in its place: the bytes that this one has alone go with the last reader.
    pub fn replaced_by(&self, next: &Stored) {
        let kept = |block: &&Arc<Block>| next.blocks.iter().any(|other| Arc::ptr_eq(other, block));
        self.blocks.iter().filter(|block| !kept(block)).for_each(|block| block.release());
    }

    /// A plan that reads it: the columns of `schema`, the view's, by `projection`.
    pub fn scan(
        &self,
        view: &View,
        schema: &SchemaRef,
        projection: Option<&Vec<usize>>,
        partitions: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let schema = Arc::new(schema.project(&projection).map_err(arrow_failure)?);
        let partitions = partitions.min(self.blocks.len()).max(1);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let shown = format!(
            "view={}, maintenance=refreshed, reason={:?}, as_of_lsn={}",
            view.name,
            view.reason.as_deref().unwrap_or_default(),
            self.position.lsn
        );
        Ok(Arc::new(ResultScan { stored: self.clone(), projection, schema, shown, properties, metrics: ExecutionPlanMetricsSet::new() }))
    }
}

/// Writes a result, in bounded memory.
#[derive(Debug)]
pub struct Writer {
    home: Arc<Blocks>,
    view: Oid,
    fingerprint: u64,
    run: u64,
    schema: SchemaRef,
    blocks: Vec<Arc<Block>>,
    /// The column whose windows the blocks are cut by.
    window: Option<usize>,
    /// By group of windows; one where they are not cut.
    pending: BTreeMap<i64, Vec<RecordBatch>>,
    pending_rows: usize,
    pending_bytes: usize,
}

impl Writer {
    /// For a new result of `view`, cut by the windows of a column.
    pub fn new(view: &View, home: &Arc<Blocks>, window: Option<usize>) -> Writer {
        Writer {
            home: Arc::clone(home),
            view: view.oid,
            fingerprint: fingerprint(view),
            run: home.number(),
            schema: view.schema(),
            blocks: Vec::new(),
            window,
            pending: BTreeMap::new(),
            pending_rows: 0,
            pending_bytes: 0,
        }
    }

    /// Adds rows: columns of the view's types, in order.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let row_bytes = rows.get_array_memory_size() / rows.num_rows().max(1) + 1;
        let rows_max = self.home.rows_max.min(BLOCK_BYTES_MAX / row_bytes).max(1);
        for (group, rows) in self.grouped(rows)? {
            let mut start = 0;
            while start < rows.num_rows() {
                let count = rows_max.saturating_sub(self.pending_rows).clamp(1, rows.num_rows() - start);
                self.pending.entry(group).or_default().push(rows.slice(start, count));
                self.pending_rows += count;
                self.pending_bytes += count * row_bytes;
                start += count;
                if self.pending_rows >= rows_max || self.pending_bytes >= BLOCK_BYTES_MAX {
                    self.write_blocks()?;
                }
            }
        }
        Ok(())
    }

    /// The rows by group of windows.
    fn grouped(&self, rows: &RecordBatch) -> Result<Vec<(i64, RecordBatch)>> {
        let Some(window) = self.window else { return Ok(vec![(0, rows.clone())]) };
        let mut chosen: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (row, group) in group_numbers(rows.column(window))?.into_iter().enumerate() {
            chosen.entry(group).or_default().push(row);
        }
        if chosen.len() == 1 {
            return Ok(chosen.into_keys().map(|group| (group, rows.clone())).collect());
        }
        let one = |(group, chosen): (i64, Vec<usize>)| {
            Ok((group, arrow::compute::take_record_batch(rows, &indices(chosen)).map_err(arrow_failure)?))
        };
        chosen.into_iter().map(one).collect()
    }

    /// Writes what is pending, a block a group, listed as condemned until the result is complete.
    fn write_blocks(&mut self) -> Result<()> {
        (self.pending_rows, self.pending_bytes) = (0, 0);
        for (group, pending) in std::mem::take(&mut self.pending) {
            self.write_block(group, &pending)?;
        }
        Ok(())
    }

    fn write_block(&mut self, group: i64, pending: &[RecordBatch]) -> Result<()> {
        let Some(first) = pending.first() else { return Ok(()) };
        let rows = arrow::compute::concat_batches(&first.schema(), pending).map_err(arrow_failure)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows())).with_match_field_names(false);
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), rows.columns().to_vec(), &options).map_err(arrow_failure)?;
        let header = Header { fingerprint: self.fingerprint, first_lsn: 0, next_lsn: 0 };
        let bytes = block::encode(header, UInt8Array::from(vec![0; rows.num_rows()]), &rows)?;
        let name = BlockName { group, slot: 0, number: self.home.number() };
        let entry = Entry {
            slot_last: 0,
            run: self.run,
            first_lsn: 0,
            next_lsn: 0,
            bucket_min: 0,
            bucket_max: 0,
            rows: rows.num_rows() as u32,
            bytes: u32::try_from(bytes.len()).map_err(|_| Error::internal("a block of a view's result exceeds 4 GiB"))?,
            crc: block::crc(&bytes),
            failed: false,
            marked_lsn: 0,
            portion: Portion::ALL,
        };
        let block = self.home.block(self.view, name, entry);
        let mut batch = Batch::default();
        block.put(bytes, &mut batch);
        block.condemn(&mut batch);
        self.home.state.write(batch)?;
        self.blocks.push(block);
        Ok(())
    }

    /// Makes the result live in place of `previous`, of which it stands in for the given groups of windows, or for all. The caller
    /// publishes it and then calls [`Stored::replaced_by`] on the previous one.
    pub fn finish(mut self, position: Position, previous: Option<&Stored>, groups: Option<(i64, i64)>) -> Result<Stored> {
        self.write_blocks()?;
        let mut batch = Batch::default();
        self.blocks.iter().try_for_each(|block| block.list(&mut batch))?;
        let is_new = |block: &Arc<Block>| groups.is_none_or(|(first, last)| (first..=last).contains(&block.name.group));
        let (gone, kept): (Vec<_>, Vec<_>) = previous.map_or(&[][..], |previous| &previous.blocks).iter().cloned().partition(is_new);
        gone.iter().for_each(|block| block.condemn(&mut batch));
        let meta = Meta {
            format: FORMAT,
            datafusion: datafusion::DATAFUSION_VERSION.to_owned(),
            fingerprint: self.fingerprint,
            position: position.clone(),
        };
        let bytes = serde_json::to_vec(&meta).map_err(|error| Error::internal(error.to_string()))?;
        batch.put(Family::Meta, meta_key(self.view), bytes);
        self.home.state.write(batch)?;
        let blocks = [kept, std::mem::take(&mut self.blocks)].concat();
        Ok(Stored { position, view: self.view, fingerprint: self.fingerprint, blocks })
    }
}

impl Drop for Writer {
    /// What an unfinished run has written is listed as condemned already: its bytes go with the next sweep.
    fn drop(&mut self) {
        self.blocks.iter().for_each(|block| block.release());
    }
}

/// Reads a result.
#[derive(Debug)]
struct ResultScan {
    stored: Stored,
    projection: Vec<usize>,
    schema: SchemaRef,
    shown: String,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DisplayAs for ResultScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResultScan: {}, blocks={}", self.shown, self.stored.blocks.len())
    }
}

impl ExecutionPlan for ResultScan {
    fn name(&self) -> &str {
        "ResultScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let partitions = self.properties.partitioning.partition_count();
        let blocks: Vec<_> = self.stored.blocks.iter().skip(partition).step_by(partitions).cloned().collect();
        let (schema, projection, fingerprint) = (Arc::clone(&self.schema), self.projection.clone(), self.stored.fingerprint);
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let batches = blocks.into_iter().map(move |block| {
            let decoded = block.read(fingerprint)?;
            let columns = projection.iter().map(|column| Arc::clone(&decoded.columns[*column])).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(decoded.slots.len()));
            baseline.record_output(decoded.slots.len());
            Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::iter(batches))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
