//! Slices of the partitions of files, so that a merge of more rows than memory goes on in steps; and reading rows for merging.
//!
//! *Place*: `merge`, and `ColumnTable::read`.
//!
//! *Invariants*: (1) the slices of a merge cover every partition value, NULL too, exactly once; (2) page statistics only say which pages
//! are read for a slice and how many rows it may have: which rows are in it is decided row by row.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, Scalar};
use arrow::compute::kernels::cmp::{gt_eq, lt};
use arrow::compute::{and, filter_record_batch, not, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use super::error::{ColumnarError, Result};
use super::{DataFile, Layout, physical};

/// Rows of a batch read for merging.
const READ_ROWS: usize = 65_536;

/// Partition values from one (or the least) up to another that is not among them (or the greatest and NULL).
#[derive(Clone, Debug, Default)]
pub struct Slice {
    from: Option<ScalarValue>,
    to: Option<ScalarValue>,
}

impl Slice {
    /// Which values are in it. NULL is greater than all.
    fn contains(&self, values: &ArrayRef) -> Result<BooleanArray> {
        let all = || BooleanArray::from(vec![true; values.len()]);
        let from = match below(values, self.from.as_ref())? {
            None => all(),
            Some(below) => invert(&below)?,
        };
        let to = below(values, self.to.as_ref())?.unwrap_or_else(all);
        and(&from, &to).map_err(ColumnarError::encoding("compare"))
    }

    /// Whether a page whose values lie between two bounds may hold any of it. Unknown bounds may.
    fn meets(&self, least: &ArrayRef, greatest: &ArrayRef) -> Result<BooleanArray> {
        let all = || BooleanArray::from(vec![true; least.len()]);
        let from = match below(greatest, self.from.as_ref())? {
            None => all(),
            Some(before) => invert(&before)?,
        };
        let behind = match &self.to {
            None => None,
            Some(to) => Some(gt_eq(least, &scalar(to)?).map_err(ColumnarError::encoding("compare"))?),
        };
        let to = match behind {
            None => all(),
            Some(behind) => invert(&unset(behind))?,
        };
        and(&from, &to).map_err(ColumnarError::encoding("compare"))
    }
}

fn scalar(value: &ScalarValue) -> Result<Scalar<ArrayRef>> {
    value.to_scalar().map_err(ColumnarError::encoding("compare"))
}

/// Which values are less than `bound`; NULL is not.
fn below(values: &ArrayRef, bound: Option<&ScalarValue>) -> Result<Option<BooleanArray>> {
    let Some(bound) = bound else { return Ok(None) };
    Ok(Some(unset(lt(values, &scalar(bound)?).map_err(ColumnarError::encoding("compare"))?)))
}

/// False where unknown.
fn unset(mask: BooleanArray) -> BooleanArray {
    if mask.null_count() > 0 { prep_null_mask_filter(&mask) } else { mask }
}

fn invert(mask: &BooleanArray) -> Result<BooleanArray> {
    not(mask).map_err(ColumnarError::encoding("compare"))
}

/// What is known of the pages of a file's partition column.
pub struct Pages {
    least: ArrayRef,
    greatest: ArrayRef,
    /// Rows of each.
    rows: Vec<usize>,
}

impl Pages {
    /// From a footer with its page index; none where it does not say.
    pub fn of(layout: &Layout, footer: &ParquetMetaData) -> Result<Option<Pages>> {
        let Some(index) = layout.partition_by else { return Ok(None) };
        let (Some(columns), Some(offsets)) = (footer.column_index(), footer.offset_index()) else { return Ok(None) };
        let refused = |error| ColumnarError::encoding("read the statistics of")(error);
        let file_schema = physical::file_schema(&layout.schema).map_err(ColumnarError::Invariant)?;
        let schema = footer.file_metadata().schema_descr();
        let converter = StatisticsConverter::try_new(layout.schema.field(index).name(), &file_schema, schema).map_err(refused)?;
        let groups: Vec<usize> = (0..footer.num_row_groups()).collect();
        let least = converter.data_page_mins(columns, offsets, &groups).map_err(refused)?;
        let greatest = converter.data_page_maxes(columns, offsets, &groups).map_err(refused)?;
        let Some(rows) = converter.data_page_row_counts(offsets, footer.row_groups(), &groups).map_err(refused)? else { return Ok(None) };
        let rows: Vec<usize> = rows.values().iter().map(|rows| *rows as usize).collect();
        let total: usize = footer.row_groups().iter().map(|group| group.num_rows().unsigned_abs() as usize).sum();
        if rows.len() != least.len() || rows.len() != greatest.len() || rows.iter().sum::<usize>() != total {
            return Ok(None);
        }
        let to = layout.schema.field(index).data_type();
        Ok(Some(Pages { least: physical::cast(&least, to)?, greatest: physical::cast(&greatest, to)?, rows }))
    }

    fn selection(&self, slice: &Slice) -> Result<RowSelection> {
        let met = slice.meets(&self.least, &self.greatest)?;
        let selectors = self.rows.iter().enumerate().map(|(page, rows)| match met.value(page) {
            true => RowSelector::select(*rows),
            false => RowSelector::skip(*rows),
        });
        Ok(selectors.collect::<Vec<_>>().into())
    }
}

/// Slices of about `rows_target` rows of files with these pages. None when there is a partition of more than `rows_max`, or nothing is
/// known of some pages.
pub fn slices(pages: &[Pages], rows_target: u64, rows_max: u64) -> Result<Option<Vec<Slice>>> {
    // Half of a page's rows are counted where it begins, half where it ends.
    let mut points = Vec::new();
    for file in pages {
        for bounds in [&file.least, &file.greatest] {
            for (page, rows) in file.rows.iter().enumerate() {
                let value = ScalarValue::try_from_array(bounds, page).map_err(ColumnarError::encoding("compare"))?;
                points.push((value, rows.div_ceil(2) as u64));
            }
        }
    }
    // Pages of NULLs are in the last slice.
    let (nulls, mut points): (Vec<_>, Vec<_>) = points.into_iter().partition(|(value, _)| value.is_null());
    if nulls.iter().map(|(_, rows)| rows).sum::<u64>() > rows_max
        || points.iter().any(|(value, _)| value.partial_cmp(&points[0].0).is_none())
    {
        return Ok(None);
    }
    points.sort_by(|left, right| left.0.partial_cmp(&right.0).unwrap_or(Ordering::Equal));
    let mut slices = vec![Slice::default()];
    let mut rows = 0;
    for equal in points.chunk_by(|left, right| left.0 == right.0) {
        let more: u64 = equal.iter().map(|(_, rows)| rows).sum();
        if more > rows_max {
            return Ok(None);
        }
        if rows > 0 && rows + more > rows_target {
            let open = slices.len() - 1;
            slices[open].to = Some(equal[0].0.clone());
            slices.push(Slice { from: Some(equal[0].0.clone()), to: None });
            rows = 0;
        }
        rows += more;
    }
    Ok(Some(slices))
}

/// The rows of a file in the layout's schema, with the columns that the file was written without: all, or those of a slice.
pub fn rows(layout: &Layout, file: &DataFile, bytes: Bytes, slice: Option<&Slice>) -> Result<Vec<RecordBatch>> {
    let refused = |problem: String| ColumnarError::damaged(&file.path, problem);
    let policy = if slice.is_some() { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let options = || ArrowReaderOptions::new().with_page_index_policy(policy);
    let plain = ArrowReaderMetadata::load(&bytes, options()).map_err(|error| refused(error.to_string()))?;
    // Strings are decoded as views, which is what the layout has; all else as it lies.
    let fields = plain.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Arc::new(Field::clone(field).with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    });
    let options = options().with_schema(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
    let metadata = ArrowReaderMetadata::try_new(Arc::clone(plain.metadata()), options).map_err(|error| refused(error.to_string()))?;
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata).with_batch_size(READ_ROWS);
    if let Some(slice) = slice
        && let Some(pages) = Pages::of(layout, plain.metadata())?
    {
        builder = builder.with_row_selection(pages.selection(slice)?);
    }
    let reader = builder.build().map_err(|error| refused(error.to_string()))?;
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
        let mut batch = RecordBatch::try_new(Arc::clone(&layout.schema), columns).map_err(|error| refused(error.to_string()))?;
        if let Some((slice, index)) = slice.zip(layout.partition_by) {
            let within = slice.contains(batch.column(index))?;
            batch = filter_record_batch(&batch, &within).map_err(ColumnarError::encoding("filter"))?;
        }
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    Ok(batches)
}
