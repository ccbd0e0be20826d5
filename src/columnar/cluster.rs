//! The order of rows in files: by UTC date where files are cut by it, then partition, event time and LSN.
//!
//! *Place*: the first half of `ColumnTable::write`; `encode` is the second.
//!
//! Rows arrive nearly in order within a partition, so the partition value is interned, rows are put in order by stable
//! counting sorts, and only partitions whose rows are out of order are sorted for real. (A comparison sort of all rows
//! costs more than encoding them.)

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringViewArray};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use xxhash_rust::xxh3::xxh3_64;

use super::Layout;
use super::error::{ColumnarError, Result};
use super::physical;

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// Rows in file order.
#[derive(Debug)]
pub struct Clustered {
    /// Columns of the file schema, rows as they came.
    pub columns: Vec<ArrayRef>,
    /// Row numbers in file order.
    pub order: Vec<u32>,
    /// Ranges of `order` that may share a file: one date, or several small ones.
    pub cuts: Vec<std::ops::Range<usize>>,
    /// LSN of each row, as they came.
    pub lsns: Vec<i64>,
    /// Distinct partition values.
    pub partitions: usize,
}

/// Where files are cut, apart from their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuts {
    /// By UTC date. A date of fewer than `rows_min` rows shares a cut with the next one of the same window of `days` days.
    Dates {
        /// Rows.
        rows_min: usize,
        /// Days of a window; windows begin at multiples of their length since 1970.
        days: i64,
    },
    /// Nowhere.
    None,
}

/// Puts `batches` in file order.
pub fn cluster(layout: &Layout, batches: &[RecordBatch], cut: Cuts) -> Result<Clustered> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if u32::try_from(rows).is_err() {
        return Err(ColumnarError::Invariant(format!("{rows} rows are too many for one write")));
    }
    let raw = concatenated(layout, batches)?;
    let lsns = raw
        .last()
        .and_then(|column| column.as_primitive_opt::<Int64Type>())
        .filter(|column| column.null_count() == 0)
        .map(|column| column.values().to_vec())
        .ok_or_else(|| ColumnarError::Invariant("the last column of a layout is the LSN".to_owned()))?;
    let times = layout.event_time.and_then(|index| event_times(&raw[index]));
    let time_of = |row: u32| times.as_ref().map_or(0, |times| times[row as usize]);
    let (ids, partitions) = match layout.partition_by {
        Some(index) => partition_ranks(&raw[index])?,
        None => (vec![0; rows], 1),
    };

    let mut order: Vec<u32> = (0..rows as u32).collect();
    if partitions > 1 {
        order = counting_sort(&order, partitions, |row| ids[row as usize]);
    }
    let mut cuts = Vec::new();
    match (&times, cut) {
        (None, _) | (_, Cuts::None) => sort_runs(&mut order, 0..rows, |row| ids[row as usize], |row| (time_of(row), lsns[row as usize])),
        (Some(times), Cuts::Dates { rows_min, days: window }) => {
            let (days, distinct) = day_ranks(times);
            if distinct > 1 {
                order = counting_sort(&order, distinct, |row| days[row as usize]);
            }
            let mut from = 0;
            while from < rows {
                let day = days[order[from] as usize];
                let to = from + order[from..].partition_point(|row| days[*row as usize] == day);
                sort_runs(&mut order, from..to, |row| ids[row as usize], |row| (times[row as usize], lsns[row as usize]));
                let first = cuts.last().map(|cut: &std::ops::Range<usize>| order[cut.start]);
                let window_of = |row: u32| times[row as usize].div_euclid(DAY_US).div_euclid(window);
                let shares = first.is_some_and(|first| window_of(first) == window_of(order[from]));
                push_cut(&mut cuts, from..to, if shares { rows_min } else { 0 });
                from = to;
            }
        }
    }
    if cuts.is_empty() && rows > 0 {
        cuts.push(0..rows);
    }
    let columns = raw
        .iter()
        .zip(layout.schema.fields())
        .map(|(column, field)| match physical::file_type(field.data_type()) {
            Some(to) => physical::cast(column, &to),
            None => Err(ColumnarError::Invariant(format!("type {} cannot be stored", field.data_type()))),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Clustered { columns, order, cuts, lsns, partitions })
}

/// Adds the rows of one date, to the cut before when that is small.
fn push_cut(cuts: &mut Vec<std::ops::Range<usize>>, rows: std::ops::Range<usize>, rows_min: usize) {
    match cuts.last_mut() {
        Some(last) if last.len() < rows_min && rows.len() < rows_min => last.end = rows.end,
        _ => cuts.push(rows),
    }
}

fn concatenated(layout: &Layout, batches: &[RecordBatch]) -> Result<Vec<ArrayRef>> {
    let fields = layout.schema.fields();
    for batch in batches {
        let same = batch.num_columns() == fields.len()
            && batch.columns().iter().zip(fields).all(|(column, field)| column.data_type() == field.data_type());
        if !same {
            return Err(ColumnarError::Invariant(format!("rows of schema {} do not fit the table's files", batch.schema())));
        }
    }
    (0..fields.len())
        .map(|index| {
            let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(index).as_ref()).collect();
            concat(&parts).map_err(ColumnarError::encoding("gather"))
        })
        .collect()
}

/// Event times in microseconds; a NULL sorts first. None for a type that is no time.
fn event_times(column: &ArrayRef) -> Option<Vec<i64>> {
    let mut times = match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => column.as_primitive::<TimestampMicrosecondType>().values().to_vec(),
        DataType::Date32 => column.as_primitive::<Date32Type>().values().iter().map(|day| i64::from(*day) * DAY_US).collect(),
        _ => return None,
    };
    if column.null_count() > 0 {
        for row in (0..times.len()).filter(|row| column.is_null(*row)) {
            times[row] = i64::MIN;
        }
    }
    Some(times)
}

/// The rank of each row's partition value among the distinct ones (NULL last), and their number.
fn partition_ranks(column: &ArrayRef) -> Result<(Vec<u32>, usize)> {
    if let Some(strings) = column.as_any().downcast_ref::<StringViewArray>()
        && strings.null_count() == 0
    {
        return Ok(ranks((0..strings.len()).map(|row| strings.value(row).as_bytes())));
    }
    let converter = RowConverter::new(vec![SortField::new_with_options(
        column.data_type().clone(),
        arrow::compute::SortOptions { descending: false, nulls_first: false },
    )]);
    let rows = converter
        .and_then(|converter| converter.convert_columns(std::slice::from_ref(column)))
        .map_err(ColumnarError::encoding("cluster"))?;
    Ok(ranks((0..rows.num_rows()).map(|row| rows.row(row).data())))
}

fn ranks<'a>(values: impl Iterator<Item = &'a [u8]>) -> (Vec<u32>, usize) {
    let mut table: HashTable<u32> = HashTable::new();
    let mut distinct: Vec<&[u8]> = Vec::new();
    let mut ids = Vec::with_capacity(values.size_hint().0);
    for value in values {
        // Events of one partition often follow each other.
        if let Some(last) = ids.last().copied()
            && distinct[last as usize] == value
        {
            ids.push(last);
            continue;
        }
        let hash = xxh3_64(value);
        let id = match table.entry(hash, |id| distinct[*id as usize] == value, |id| xxh3_64(distinct[*id as usize])) {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(place) => {
                let id = distinct.len() as u32;
                place.insert(id);
                distinct.push(value);
                id
            }
        };
        ids.push(id);
    }
    let mut by_value: Vec<u32> = (0..distinct.len() as u32).collect();
    by_value.sort_unstable_by_key(|id| distinct[*id as usize]);
    let mut rank_of = vec![0; distinct.len()];
    for (rank, id) in by_value.iter().enumerate() {
        rank_of[*id as usize] = rank as u32;
    }
    for id in &mut ids {
        *id = rank_of[*id as usize];
    }
    (ids, distinct.len())
}

fn day_ranks(times: &[i64]) -> (Vec<u32>, usize) {
    let mut days: Vec<i64> = Vec::new();
    let mut of_row = Vec::with_capacity(times.len());
    for time in times {
        let day = time.div_euclid(DAY_US);
        if days.last() != Some(&day) {
            days.push(day);
        }
        of_row.push(day);
    }
    days.sort_unstable();
    days.dedup();
    let rank = |day: &i64| days.partition_point(|other| other < day) as u32;
    let ranks = if days.len() <= 1 { vec![0; of_row.len()] } else { of_row.iter().map(rank).collect() };
    (ranks, days.len())
}

/// Stable, in two passes.
fn counting_sort(order: &[u32], keys: usize, key: impl Fn(u32) -> u32) -> Vec<u32> {
    let mut next = vec![0u32; keys + 1];
    for row in order {
        next[key(*row) as usize + 1] += 1;
    }
    for index in 1..next.len() {
        next[index] += next[index - 1];
    }
    let mut sorted = vec![0u32; order.len()];
    for row in order {
        let place = &mut next[key(*row) as usize];
        sorted[*place as usize] = *row;
        *place += 1;
    }
    sorted
}

/// Sorts those runs of one partition within `rows` that are not in order already.
fn sort_runs(order: &mut [u32], rows: std::ops::Range<usize>, id: impl Fn(u32) -> u32, key: impl Fn(u32) -> (i64, i64)) {
    for run in order[rows].chunk_by_mut(|left, right| id(*left) == id(*right)) {
        if !run.is_sorted_by_key(|row| key(*row)) {
            run.sort_unstable_by_key(|row| key(*row));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn rows_are_in_order_of_date_partition_time_and_lsn() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("store", DataType::Utf8View, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            Field::new("_lsn", DataType::Int64, false),
        ]));
        let layout = Layout {
            schema: Arc::clone(&schema),
            partition_by: Some(0),
            event_time: Some(1),
            zstd: true,
            fills: Default::default(),
            retention_us: None,
        };
        let batch = |stores: Vec<Option<&str>>, times: Vec<i64>, lsns: Vec<i64>| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringViewArray::from(stores)),
                Arc::new(TimestampMicrosecondArray::from(times)),
                Arc::new(Int64Array::from(lsns)),
            ];
            RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
        };
        let batches = [
            batch(vec![Some("b"), Some("a"), None, Some("b")], vec![5, DAY_US + 1, 3, 4], vec![0, 1, 2, 3]),
            batch(vec![Some("a"), Some("b"), Some("a")], vec![7, -1, 7], vec![6, 5, 4]),
        ];
        let dates = |rows_min| Cuts::Dates { rows_min, days: 32 };
        let clustered = cluster(&layout, &batches, dates(0)).unwrap();
        let lsns: Vec<i64> = clustered.order.iter().map(|row| clustered.lsns[*row as usize]).collect();
        assert_eq!(lsns, [5, 4, 6, 3, 0, 2, 1]);
        assert_eq!(clustered.cuts, [0..1, 1..6, 6..7]);
        assert_eq!(clustered.partitions, 3);
        // The first is of 1969, which is another window.
        assert_eq!(cluster(&layout, &batches, dates(100)).unwrap().cuts, [0..1, 1..7]);
        assert_eq!(cluster(&layout, &batches, Cuts::Dates { rows_min: 100, days: 1 }).unwrap().cuts, [0..1, 1..6, 6..7]);
        let whole = cluster(&layout, &batches, Cuts::None).unwrap();
        assert_eq!(whole.order.iter().map(|row| whole.lsns[*row as usize]).collect::<Vec<_>>(), [4, 6, 1, 5, 3, 0, 2]);
        assert_eq!(whole.cuts, vec![0..7]);
    }
}
