//! The database as of one LSN, and the one place where a new one is published.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{and, concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::catalog::{Catalog, Oid, Table};
use crate::clock::Micros;
use crate::columnar::{Deleted, LsnSet};
use crate::error::{Error, Result};
use crate::store::flush::layout;
use crate::store::progress;
use crate::types::LSN_COLUMN;
use crate::{columnar, view};

/// Immutable; a query holds one from planning to its last row.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rows with an LSN below this are visible.
    pub next_lsn: u64,
    /// The objects.
    pub catalog: Arc<Catalog>,
    /// Rows of every table.
    pub tables: HashMap<Oid, Arc<TableState>>,
    /// State of every view that has any, those still building among them.
    pub views: HashMap<Oid, Arc<view::Version>>,
    /// Every view that has no aggregate state: its query, and its last result if it is refreshed.
    pub recomputed: HashMap<Oid, Arc<view::Recomputed>>,
    /// Rows from this LSN on are an open transaction's own, which only it sees; none where there is no such transaction.
    pub own_from: Option<u64>,
    /// Where sources are.
    pub sources: Arc<progress::Positions>,
}

/// A table's rows: hot and cold are disjoint, together they are the table.
#[derive(Clone, Debug)]
pub struct TableState {
    /// The definition.
    pub table: Arc<Table>,
    /// Rows not yet in Parquet, in LSN order.
    pub hot: Vec<Arc<HotBatch>>,
    /// Rows in Parquet: nothing before the first flush.
    pub cold: Option<ColdRows>,
    /// Files that commits have named and the table log does not list yet; readers find them in `cold`.
    pub staged: Vec<Arc<columnar::DataFile>>,
    /// Rows below this LSN were truncated away, wherever they are still stored.
    pub truncated_lsn: u64,
    /// A flush of the batches below this LSN is under way: they must not be coalesced with later ones.
    pub flushing_lsn: u64,
    /// Rows of event times before this may have been dropped by `retention`.
    pub dropped_us: Option<Micros>,
    /// Rows that were deleted. Hot batches are without them already; of those in Parquet a scan leaves them out.
    pub deleted: Deleted,
    /// One past the LSN of the newest deletion since the store opened, or of those that were saved.
    pub deleted_lsn: u64,
}

/// The cold half of a table.
#[derive(Clone, Debug)]
pub struct ColdRows {
    /// How to read the files.
    pub columns: Arc<columnar::ColumnTable>,
    /// Which files.
    pub version: Arc<columnar::Version>,
}

/// Rows of one commit (or several coalesced ones), perhaps without some that were deleted since.
#[derive(Clone, Debug)]
pub struct HotBatch {
    /// The table's schema plus the hidden `_lsn` (Int64) last; deleted rows are still among them where `live` says so.
    stored: RecordBatch,
    /// Which of the stored rows live; none when all do.
    live: Option<BooleanArray>,
    /// The rows that live, made for the first reader: a commit only marks what it deletes.
    visible: OnceLock<RecordBatch>,
    /// First LSN.
    pub first_lsn: u64,
    /// One past the last LSN.
    pub next_lsn: u64,
    /// Memory that the batch keeps alive.
    pub bytes: usize,
}

/// Rows of a coalesced batch at most: a commit may have to wait for one to be copied.
const COALESCED_ROWS_MAX: usize = 16_384;

/// So many small neighbours are coalesced.
const HOT_FAN_IN: usize = 4;

/// So many are coalesced by the commit that adds to them, because commits follow each other without a pause.
const HOT_RUN_MAX: usize = 32;

/// Neighbouring hot batches, and all their rows in one.
#[derive(Debug)]
pub struct Coalesced {
    run: Vec<Arc<HotBatch>>,
    whole: Arc<HotBatch>,
}

impl HotBatch {
    /// Rows of the table's schema that start at an LSN and follow without gaps.
    pub fn new(rows: &RecordBatch, first_lsn: u64) -> Result<HotBatch> {
        let next_lsn = first_lsn + rows.num_rows() as u64;
        let lsns = Int64Array::from_iter_values(first_lsn as i64..next_lsn as i64);
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(lsns));
        let rows = RecordBatch::try_new(with_lsn(&rows.schema()), columns).map_err(|error| Error::internal(error.to_string()))?;
        Ok(HotBatch::of_rows(rows, first_lsn, next_lsn))
    }

    /// Rows that have their LSNs, all of `first_lsn..next_lsn`, in a last column.
    pub fn of_rows(rows: RecordBatch, first_lsn: u64, next_lsn: u64) -> HotBatch {
        let bytes = rows.get_array_memory_size();
        HotBatch { stored: rows, live: None, visible: OnceLock::new(), first_lsn, next_lsn, bytes }
    }

    /// The rows: the table's schema plus the hidden `_lsn` (Int64) last.
    pub fn rows(&self) -> &RecordBatch {
        let Some(live) = &self.live else { return &self.stored };
        self.visible.get_or_init(|| filter_record_batch(&self.stored, live).expect("a mask is as long as its batch"))
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.live.as_ref().map_or(self.stored.num_rows(), BooleanArray::true_count)
    }

    /// The batch without some rows; none when it holds none of them.
    fn without(&self, dead: &LsnSet) -> Result<Option<HotBatch>> {
        if !dead.meets(self.first_lsn, self.next_lsn) {
            return Ok(None);
        }
        let lsns = self.stored.column(self.stored.num_columns() - 1);
        let lsns = lsns.as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without LSNs"))?;
        let mut live: BooleanArray = lsns.values().iter().map(|lsn| Some(!dead.contains(*lsn as u64))).collect();
        if let Some(before) = &self.live {
            live = and(before, &live).map_err(|error| Error::internal(error.to_string()))?;
        }
        let mut batch = HotBatch { live: Some(live), visible: OnceLock::new(), ..self.clone() };
        if batch.num_rows() * 2 < batch.stored.num_rows() {
            // Mostly dead: from here on it would cost more than it holds.
            let rows = compact_strings(batch.rows())?;
            batch = HotBatch::of_rows(rows, self.first_lsn, self.next_lsn);
        }
        Ok(Some(batch))
    }

    fn concat(batches: &[&HotBatch]) -> Result<HotBatch> {
        let schema = batches[0].stored.schema();
        let rows = concat_batches(&schema, batches.iter().map(|batch| batch.rows())).map_err(|error| Error::internal(error.to_string()))?;
        Ok(HotBatch::of_rows(compact_strings(&rows)?, batches[0].first_lsn, batches[batches.len() - 1].next_lsn))
    }
}

/// A table's schema with the hidden LSN last.
pub fn with_lsn(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(LSN_COLUMN, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// Copies string views whose buffers hold much more than the batch needs: after a filter or a concatenation.
pub fn compact_strings(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = rows
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8View if column.as_string_view().data_buffers().len() > 1 || column.len() < 1024 => {
                Arc::new(column.as_string_view().gc()) as ArrayRef
            }
            _ => Arc::clone(column),
        })
        .collect();
    RecordBatch::try_new(rows.schema(), columns).map_err(|error| Error::internal(error.to_string()))
}

impl TableState {
    /// A table without rows.
    pub fn empty(table: Arc<Table>) -> TableState {
        TableState {
            table,
            hot: Vec::new(),
            cold: None,
            staged: Vec::new(),
            truncated_lsn: 0,
            flushing_lsn: 0,
            dropped_us: None,
            deleted: Deleted::default(),
            deleted_lsn: 0,
        }
    }

    /// Adds a batch. Small neighbours are coalesced beside the commits, by [`TableState::coalesce`]; here only where so many are owed
    /// that readers would feel them.
    pub fn push(&mut self, batch: HotBatch) -> Result<()> {
        self.hot.push(Arc::new(batch));
        if let Some(coalesced) = self.coalesce_tail(HOT_RUN_MAX)? {
            self.replace_run(&coalesced);
        }
        Ok(())
    }

    /// Coalesces the newest batches if enough of them are small, so that the list stays logarithmic in the number of commits: for
    /// [`TableState::replace_run`].
    pub fn coalesce(&self) -> Result<Option<Coalesced>> {
        self.coalesce_tail(HOT_FAN_IN)
    }

    fn coalesce_tail(&self, least: usize) -> Result<Option<Coalesced>> {
        let mut rows = 0;
        let small = self.hot.iter().rev().take_while(|batch| {
            let fits = batch.first_lsn >= self.flushing_lsn && (rows == 0 || batch.num_rows() < 2 * rows);
            rows += batch.num_rows();
            fits && rows <= COALESCED_ROWS_MAX
        });
        let run = self.hot[self.hot.len() - small.count()..].to_vec();
        if run.len() < least {
            return Ok(None);
        }
        let batches: Vec<&HotBatch> = run.iter().map(AsRef::as_ref).collect();
        let whole = Arc::new(HotBatch::concat(&batches)?);
        Ok(Some(Coalesced { run, whole }))
    }

    /// Puts a coalesced batch in the place of those it was made of; false where they are not as they were.
    pub fn replace_run(&mut self, Coalesced { run, whole }: &Coalesced) -> bool {
        let Some(at) = run.first().and_then(|first| self.hot.iter().position(|batch| Arc::ptr_eq(batch, first))) else { return false };
        let end = (at + run.len()).min(self.hot.len());
        let present = &self.hot[at..end];
        let same = present.len() == run.len() && present.iter().zip(run).all(|(batch, known)| Arc::ptr_eq(batch, known));
        if !same || whole.first_lsn < self.flushing_lsn {
            return false;
        }
        self.hot.splice(at..end, [Arc::clone(whole)]);
        true
    }

    /// Where the rows changed last: one past the newest row, past the newest deletion, or where the table was emptied.
    pub fn changed_lsn(&self) -> u64 {
        let hot = self.hot.last().map_or(0, |batch| batch.next_lsn);
        let cold = self.files().iter().map(|file| file.lsn_range.1 as u64 + 1).max().unwrap_or(0);
        // Emptying takes an LSN of its own, which may be the one after the last row.
        let truncated = if self.truncated_lsn > 0 { self.truncated_lsn + 1 } else { 0 };
        hot.max(cold).max(truncated).max(self.deleted_lsn)
    }

    /// The least and greatest event time of the rows from an LSN on, perhaps of more; none where files do not say theirs, or there are
    /// no rows.
    pub fn times_since(&self, lsn: u64) -> Option<(i64, i64)> {
        let column = self.table.watermark?.column;
        let mut found: Option<(i64, i64)> = None;
        let mut add = |least: i64, greatest: i64| {
            found = Some(found.map_or((least, greatest), |(first, last)| (first.min(least), last.max(greatest))));
        };
        for batch in self.hot.iter().filter(|batch| batch.next_lsn > lsn) {
            let lsns = batch.rows().column(batch.rows().num_columns() - 1).as_primitive::<Int64Type>();
            let start = lsns.values().partition_point(|row| (*row as u64) < lsn);
            let times = batch.rows().column(column).as_primitive_opt::<TimestampMicrosecondType>()?;
            let times = times.slice(start, times.len() - start);
            if let (Some(least), Some(greatest)) = (arrow::compute::min(&times), arrow::compute::max(&times)) {
                add(least, greatest);
            }
        }
        for file in self.files().iter().filter(|file| file.lsn_range.1 as u64 >= lsn) {
            let stats = file.stats.get(column)?.as_ref()?;
            match (&stats.min, &stats.max) {
                (ScalarValue::TimestampMicrosecond(Some(least), _), ScalarValue::TimestampMicrosecond(Some(greatest), _)) => {
                    add(*least, *greatest);
                }
                _ => return None,
            }
        }
        found
    }

    /// Deletes rows, as the commit at `committed_lsn`.
    pub fn delete(&mut self, dead: &Arc<LsnSet>, committed_lsn: u64) -> Result<()> {
        for batch in &mut self.hot {
            if let Some(rest) = batch.without(dead)? {
                *batch = Arc::new(rest);
            }
        }
        let flushing_lsn = self.flushing_lsn;
        // An empty batch of a flush under way stays: it goes with the others when the flush is done.
        self.hot.retain(|batch| batch.num_rows() > 0 || batch.first_lsn < flushing_lsn);
        self.deleted.add(Arc::clone(dead), committed_lsn);
        self.deleted_lsn = self.deleted_lsn.max(committed_lsn + 1);
        Ok(())
    }

    /// A plan that reads the rows in Parquet, the deleted ones left out; none where there are no files. `projection` is over the
    /// declared columns and the hidden LSN after them; filters only prune.
    pub fn scan_cold(
        &self,
        session: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(cold) = self.cold.as_ref().filter(|cold| !cold.version.files.is_empty()) else { return Ok(None) };
        cold.columns.scan(session, &cold.version, &self.deleted, projection, filters, limit).map(Some)
    }

    /// Rows in memory.
    pub fn hot_rows(&self) -> usize {
        self.hot.iter().map(|batch| batch.num_rows()).sum()
    }

    /// Bytes in memory.
    pub fn hot_bytes(&self) -> usize {
        self.hot.iter().map(|batch| batch.bytes).sum()
    }

    /// Whether no row is known to have, or may have, NULL in a declared column: by the statistics of files, and counts of hot rows.
    pub fn is_never_null(&self, column: usize) -> bool {
        let width = self.cold.as_ref().map_or(0, |cold| cold.columns.layout().schema.fields().len());
        let has_none = |file: &Arc<columnar::DataFile>| {
            file.stats.len() == width && file.stats.get(column).and_then(Option::as_ref).is_some_and(|stats| stats.nulls == 0)
        };
        self.files().iter().all(has_none) && self.hot.iter().all(|batch| batch.rows().column(column).null_count() == 0)
    }

    /// The live files.
    pub fn files(&self) -> &[Arc<columnar::DataFile>] {
        self.cold.as_ref().map_or(&[], |cold| &cold.version.files)
    }

    /// Sets the cold half: the files of `version` and those that are staged, without what was truncated away.
    pub fn set_cold(&mut self, columns: Arc<columnar::ColumnTable>, version: Arc<columnar::Version>) {
        let truncated = self.truncated_lsn as i64;
        let listed: HashSet<&str> = version.files.iter().map(|file| file.path.as_str()).collect();
        let unlisted: Vec<_> = self.staged.iter().filter(|file| !listed.contains(file.path.as_str())).cloned().collect();
        let version = if !unlisted.is_empty() || version.files.iter().any(|file| file.lsn_range.1 < truncated) {
            let files = version.files.iter().cloned().chain(unlisted).filter(|file| file.lsn_range.1 >= truncated).collect();
            columns.with_files(&version, files)
        } else {
            version
        };
        self.cold = Some(ColdRows { columns, version });
    }

    /// Adds the files of a commit.
    pub fn stage(&mut self, columns: &Arc<columnar::ColumnTable>, files: Vec<Arc<columnar::DataFile>>) {
        self.staged.extend(files);
        let ColdRows { columns, version } =
            self.cold.take().unwrap_or_else(|| ColdRows { columns: Arc::clone(columns), version: columns.version() });
        self.set_cold(columns, version);
    }

    /// Forgets every row below an LSN.
    pub fn truncate(&mut self, lsn: u64) {
        self.truncated_lsn = lsn;
        self.hot.retain(|batch| batch.first_lsn >= lsn);
        self.staged.retain(|file| file.lsn_range.0.unsigned_abs() >= lsn);
        self.deleted = Deleted::default();
        if let Some(ColdRows { columns, version }) = self.cold.take() {
            self.set_cold(columns, version);
        }
    }

    /// Takes over a wider definition: rows in memory get the new columns, files are read as if they had them.
    pub fn widen(&mut self, table: Arc<Table>) -> Result<()> {
        let schema = with_lsn(&table.schema());
        if let Some(cold) = &mut self.cold {
            cold.columns = Arc::new(cold.columns.reading(layout(&table)?));
        }
        self.hot = self
            .hot
            .iter()
            .map(|batch| {
                let mut columns = batch.stored.columns().to_vec();
                let lsns = columns.pop().expect("every hot batch ends with its LSNs");
                for column in &table.columns[columns.len()..] {
                    columns.push(column.filled(batch.stored.num_rows())?);
                }
                columns.push(lsns);
                let rows = RecordBatch::try_new(schema.clone(), columns).map_err(|error| Error::internal(error.to_string()))?;
                let bytes = rows.get_array_memory_size();
                Ok(Arc::new(HotBatch { stored: rows, visible: OnceLock::new(), bytes, ..(**batch).clone() }))
            })
            .collect::<Result<_>>()?;
        self.table = table;
        Ok(())
    }
}

impl Snapshot {
    /// A database without objects.
    pub fn empty() -> Snapshot {
        Snapshot {
            next_lsn: 1,
            catalog: Arc::new(Catalog::default()),
            tables: HashMap::new(),
            views: HashMap::new(),
            recomputed: HashMap::new(),
            own_from: None,
            sources: Arc::default(),
        }
    }

    /// Commits below this LSN are in it; rows from here on are an open transaction's own.
    pub fn committed_lsn(&self) -> u64 {
        self.own_from.unwrap_or(self.next_lsn)
    }

    /// The table's state, to be changed.
    pub fn table_mut(&mut self, oid: Oid) -> Option<&mut TableState> {
        self.tables.get_mut(&oid).map(Arc::make_mut)
    }

    /// Bytes of all hot rows.
    pub fn hot_bytes(&self) -> usize {
        self.tables.values().map(|table| table.hot_bytes()).sum()
    }
}

/// The newest snapshot. Readers load it without waiting; those that change it take turns.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    turn: Mutex<()>,
    /// Counts the snapshots that showed more than the one before.
    news: watch::Sender<u64>,
}

impl Published {
    /// Starts from a recovered snapshot.
    pub fn new(snapshot: Snapshot) -> Published {
        Published { current: ArcSwap::from_pointee(snapshot), turn: Mutex::new(()), news: watch::Sender::new(0) }
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Hears of every snapshot that is published from now on. The value counts those with a higher LSN than the one before; a
    /// listener that comes late finds the newest snapshot and, by the count, how many it has missed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Derives the next snapshot from the newest one. Nothing changes when `derive` fails.
    pub fn update<T>(&self, derive: impl FnOnce(&mut Snapshot) -> Result<T>) -> Result<T> {
        let turn = self.turn.lock();
        let mut next = (*self.current.load_full()).clone();
        let shown = next.next_lsn;
        let outcome = derive(&mut next)?;
        let advances = next.next_lsn > shown;
        let before = self.current.swap(Arc::new(next));
        self.news.send_modify(|count| *count += u64::from(advances));
        drop(turn);
        // What only the old one held can be much to free, which nobody has to wait for.
        drop(before);
        Ok(outcome)
    }
}
