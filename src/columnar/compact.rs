//! Which files to merge, and reading them for it.
//!
//! *Place*: `ColumnTable::compact`, called by the store's background work.
//!
//! Files are looked at by the UTC date of their event times; files of more than one date (small dates share a file) are a
//! group of their own. Within a group: as soon as `merge_files_min` files are of one size class, they and all smaller ones
//! are merged, so a row is rewritten once a size class; else, when more than `overlap_max` files cover one (partition,
//! time), these are merged into files that do not overlap. When nothing is to be merged, files with dead rows are rewritten
//! without them, the one with most first. Whatever is rewritten loses its dead rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::cluster::DAY_US;
use super::error::{ColumnarError, Result};
use super::log::stats::micros_range;
use super::{DataFile, Dead, Deleted, Layout, physical};
use crate::config::limits::ColumnarLimits;

/// Rows of the smallest size class; each further class is four times as large.
const CLASS_ROWS: u64 = 4_096;

/// Rows of a batch read for merging.
const READ_ROWS: usize = 65_536;

/// Event times of a file in microseconds.
fn times(layout: &Layout, file: &DataFile) -> Option<(i64, i64)> {
    micros_range(file.stats.get(layout.event_time?)?.as_ref()?)
}

/// The greatest event time of a file in microseconds.
pub fn last_time(layout: &Layout, file: &DataFile) -> Option<i64> {
    times(layout, file).map(|(_, last)| last)
}

/// Files of which every row is older than `retain_from`.
pub fn expired(layout: &Layout, files: &[Arc<DataFile>], retain_from: i64) -> Vec<Arc<DataFile>> {
    files.iter().filter(|file| times(layout, file).is_some_and(|(_, last)| last < retain_from)).cloned().collect()
}

/// The files that the next round merges: at least two, of at most `rows_max` rows together; none when all is well.
pub fn pick(layout: &Layout, files: &[Arc<DataFile>], rows_max: u64, limits: &ColumnarLimits) -> Vec<Arc<DataFile>> {
    let mut groups: BTreeMap<Option<i64>, Vec<&Arc<DataFile>>> = BTreeMap::new();
    for file in files {
        let date = match times(layout, file) {
            Some((first, last)) if first.div_euclid(DAY_US) == last.div_euclid(DAY_US) => Some(first.div_euclid(DAY_US)),
            _ => None,
        };
        groups.entry(date).or_default().push(file);
    }
    // The newest date first: it is what most queries read, and where small files come in.
    for (date, mut group) in groups.into_iter().rev() {
        group.sort_by_key(|file| (file.rows, file.lsn_range));
        let mut picked = small(&group, rows_max, limits);
        if picked.is_empty() && date.is_some() {
            picked = overlapping(layout, &group, rows_max, limits);
        }
        if !picked.is_empty() {
            return picked;
        }
    }
    Vec::new()
}

/// Of a file with fewer dead rows than one in this many the rewriting can wait.
const DEAD_ONE_IN: u64 = 8;

/// The file with most dead rows, when it is due.
pub fn most_dead(files: &[Arc<DataFile>], dead: &Dead<'_>) -> Option<Arc<DataFile>> {
    let stale = files.iter().filter(|file| dead.deleted.meets(file)).map(|file| (dead.deleted.rows_in(file), file));
    let due = stale.filter(|(rows, file)| dead.thorough || rows.saturating_mul(DEAD_ONE_IN) >= file.rows);
    due.max_by_key(|(rows, _)| *rows).map(|(_, file)| Arc::clone(file))
}

/// The rows of a batch (LSN last) that live.
pub fn living(batch: &RecordBatch, deleted: &Deleted) -> Result<RecordBatch> {
    let lsns = batch.columns().last().and_then(|column| column.as_primitive_opt::<Int64Type>());
    let lsns = lsns.ok_or_else(|| ColumnarError::Invariant("the last column of a layout is the LSN".to_owned()))?;
    match deleted.live(lsns.values()) {
        None => Ok(batch.clone()),
        Some(live) => filter_record_batch(batch, &live).map_err(ColumnarError::encoding("filter")),
    }
}

fn class(rows: u64) -> u32 {
    rows.div_ceil(CLASS_ROWS).max(1).ilog2() / 2
}

/// The files of the smallest class that is full, with all smaller ones. `group` is in order of rows.
fn small(group: &[&Arc<DataFile>], rows_max: u64, limits: &ColumnarLimits) -> Vec<Arc<DataFile>> {
    // Files that were closed for their size are as large as files get.
    let mergeable: Vec<_> = group.iter().filter(|file| file.bytes < limits.file_bytes_max as u64 / 2).collect();
    for run in mergeable.chunk_by(|left, right| class(left.rows) == class(right.rows)) {
        if run.len() >= limits.merge_files_min.max(2) {
            let last = run[run.len() - 1].rows;
            let picked = bounded(mergeable.iter().filter(|file| file.rows <= last).map(|file| **file), rows_max);
            if picked.len() >= 2 {
                return picked;
            }
        }
    }
    Vec::new()
}

fn bounded<'a>(files: impl Iterator<Item = &'a Arc<DataFile>>, rows_max: u64) -> Vec<Arc<DataFile>> {
    let mut rows = 0;
    let fitting = files.take_while(|file| {
        rows += file.rows;
        rows <= rows_max
    });
    fitting.cloned().collect()
}

/// The files around the (partition, time) that most files cover, when they are too many. Parts of one sorted sequence
/// never count as overlapping more than three times: see [`Span`].
fn overlapping(layout: &Layout, group: &[&Arc<DataFile>], rows_max: u64, limits: &ColumnarLimits) -> Vec<Arc<DataFile>> {
    let spans: Vec<(Span, &Arc<DataFile>)> = group.iter().filter_map(|file| Some((Span::of(layout, file)?, *file))).collect();
    let covering = |point: &Key| spans.iter().filter(|(span, _)| span.covers(point)).count();
    let deepest = spans.iter().map(|(span, _)| &span.first).max_by_key(|point| covering(point));
    let Some(point) = deepest.filter(|point| covering(point) > limits.overlap_max) else { return Vec::new() };
    let picked = bounded(spans.iter().filter(|(span, _)| span.covers(point)).map(|(_, file)| *file), rows_max);
    if picked.len() < 2 { Vec::new() } else { picked }
}

/// A place in the order of rows within one date.
type Key = (Option<ScalarValue>, i64);

/// From (least partition, least time) to (greatest partition, greatest time): at least what a file covers, and exactly
/// that for a file of one partition.
struct Span {
    first: Key,
    last: Key,
}

impl Span {
    fn of(layout: &Layout, file: &DataFile) -> Option<Span> {
        let (first, last) = times(layout, file)?;
        let (least, greatest) = match layout.partition_by {
            None => (None, None),
            Some(index) => {
                let stats = file.stats.get(index)?.as_ref()?;
                (Some(stats.min.clone()), Some(stats.max.clone()))
            }
        };
        Some(Span { first: (least, first), last: (greatest, last) })
    }

    fn covers(&self, point: &Key) -> bool {
        self.first <= *point && *point <= self.last
    }
}

/// All rows of a file in the layout's schema, with the columns that the file was written without.
pub fn rows(layout: &Layout, file: &DataFile, bytes: Bytes) -> Result<Vec<RecordBatch>> {
    let refused = |problem: String| ColumnarError::damaged(&file.path, problem);
    let plain = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(|error| refused(error.to_string()))?;
    // Strings are decoded as views, which is what the layout has; all else as it lies.
    let fields = plain.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Arc::new(Field::clone(field).with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    });
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)
        .and_then(|builder| builder.with_batch_size(READ_ROWS).build())
        .map_err(|error| refused(error.to_string()))?;
    let mut batches = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| refused(error.to_string()))?;
        let columns = layout.schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
            Some(column) => physical::cast(column, field.data_type()),
            None => layout.fills.column(field, batch.num_rows()),
        });
        let mut columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        if file.lsn_base != 0
            && let Some(lsns) = columns.last_mut()
        {
            let numbers = lsns.as_primitive_opt::<Int64Type>().ok_or_else(|| refused("its LSNs are no numbers".to_owned()))?;
            *lsns = Arc::new(numbers.unary::<_, Int64Type>(|lsn| lsn + file.lsn_base));
        }
        let batch = RecordBatch::try_new(Arc::clone(&layout.schema), columns).map_err(|error| refused(error.to_string()))?;
        batches.push(batch);
    }
    Ok(batches)
}
