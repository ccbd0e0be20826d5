//! Watermarks: which rows of a commit are very late.
//!
//! *Place*: `store::commit` asks before it assigns LSNs; `store::recover` replays the accepted rows through [`Watermarks::advance`].
//!
//! *Invariants*: (1) a partition's watermark is its greatest accepted event time less the allowed lateness; (2) it moves after
//! a commit, so rows of one commit are never late because of each other; (3) it depends on accepted rows in LSN order only, so
//! replay decides the same.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::catalog::Table;
use crate::clock::Micros;
use crate::error::{Error, Result};

/// Greatest accepted event time per partition of one event table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(Option<Box<str>>, Micros)>", into = "Vec<(Option<Box<str>>, Micros)>")]
pub struct Watermarks {
    /// By the partition key's text; a NULL key is none.
    newest: HashMap<Option<Box<str>>, Micros>,
}

impl From<Vec<(Option<Box<str>>, Micros)>> for Watermarks {
    fn from(pairs: Vec<(Option<Box<str>>, Micros)>) -> Self {
        Watermarks { newest: pairs.into_iter().collect() }
    }
}

impl From<Watermarks> for Vec<(Option<Box<str>>, Micros)> {
    fn from(watermarks: Watermarks) -> Self {
        watermarks.newest.into_iter().collect()
    }
}

impl Watermarks {
    /// For each row whether it lies behind its partition's watermark; none when no row does.
    pub fn late(&self, table: &Table, rows: &RecordBatch) -> Result<Option<BooleanArray>> {
        let Some(watermark) = table.watermark else { return Ok(None) };
        if self.newest.is_empty() {
            return Ok(None);
        }
        let times = event_times(rows, watermark.column)?;
        let mut late = BooleanBuilder::with_capacity(rows.num_rows());
        let mut any = false;
        self.walk(table, rows, |row, newest| {
            let is_late = newest.is_some_and(|newest| times[row] < newest.saturating_sub(watermark.lateness_us));
            any |= is_late;
            late.append_value(is_late);
        })?;
        Ok(any.then(|| late.finish()))
    }

    /// By how much a late row lies behind its watermark, microseconds.
    pub fn lateness(&self, table: &Table, rows: &RecordBatch) -> Result<Vec<i64>> {
        let Some(watermark) = table.watermark else { return Ok(vec![0; rows.num_rows()]) };
        let times = event_times(rows, watermark.column)?;
        let mut lateness = Vec::with_capacity(rows.num_rows());
        self.walk(table, rows, |row, newest| {
            lateness.push(newest.map_or(0, |newest| newest.saturating_sub(watermark.lateness_us).saturating_sub(times[row])));
        })?;
        Ok(lateness)
    }

    /// Moves the watermarks past accepted rows.
    pub fn advance(&mut self, table: &Table, rows: &RecordBatch) -> Result<()> {
        let Some(watermark) = table.watermark else { return Ok(()) };
        let times = event_times(rows, watermark.column)?;
        let Some(keys) = partition_keys(table, rows)? else {
            let newest = times.iter().copied().max();
            if let Some(newest) = newest {
                let entry = self.newest.entry(None).or_insert(newest);
                *entry = (*entry).max(newest);
            }
            return Ok(());
        };
        for (row, time) in times.iter().enumerate() {
            let key = keys.is_valid(row).then(|| keys.value(row));
            match self.newest.get_mut(&key as &dyn PartitionKey) {
                Some(newest) => *newest = (*newest).max(*time),
                None => {
                    self.newest.insert(key.map(Box::from), *time);
                }
            }
        }
        Ok(())
    }

    /// Least and greatest newest event time over the partitions.
    pub fn range(&self) -> Option<(Micros, Micros)> {
        Some((self.newest.values().copied().min()?, self.newest.values().copied().max()?))
    }

    /// Number of partitions seen.
    pub fn partitions(&self) -> usize {
        self.newest.len()
    }

    fn walk(&self, table: &Table, rows: &RecordBatch, mut each: impl FnMut(usize, Option<Micros>)) -> Result<()> {
        match partition_keys(table, rows)? {
            None => {
                let newest = self.newest.get(&None as &Option<Box<str>>).copied();
                (0..rows.num_rows()).for_each(|row| each(row, newest));
            }
            Some(keys) => {
                for row in 0..rows.num_rows() {
                    let key = keys.is_valid(row).then(|| keys.value(row));
                    each(row, self.newest.get(&key as &dyn PartitionKey).copied());
                }
            }
        }
        Ok(())
    }
}

/// Lets the map be asked with a borrowed key.
trait PartitionKey {
    fn key(&self) -> Option<&str>;
}

impl PartitionKey for Option<&str> {
    fn key(&self) -> Option<&str> {
        *self
    }
}

impl std::hash::Hash for dyn PartitionKey + '_ {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl hashbrown::Equivalent<Option<Box<str>>> for dyn PartitionKey + '_ {
    fn equivalent(&self, key: &Option<Box<str>>) -> bool {
        self.key() == key.as_deref()
    }
}

/// The event times of a batch. The column is NOT NULL and a timestamp by the table's definition.
pub fn event_times(rows: &RecordBatch, column: usize) -> Result<&[i64]> {
    rows.column(column)
        .as_primitive_opt::<TimestampMicrosecondType>()
        .map(|times| times.values().as_ref())
        .ok_or_else(|| Error::internal("the event-time column is not a timestamp"))
}

/// The partition key as text, whatever its type; none when the table has no partition key.
pub fn partition_keys(table: &Table, rows: &RecordBatch) -> Result<Option<StringViewArray>> {
    let Some(column) = table.options.partition_by else { return Ok(None) };
    let keys: &ArrayRef = rows.column(column);
    let text = match keys.data_type() {
        DataType::Utf8View => keys.clone(),
        DataType::FixedSizeBinary(_) => cast(&cast(keys, &DataType::Binary).map_err(unreadable)?, &DataType::BinaryView)
            .and_then(|bytes| hex(&bytes))
            .map_err(unreadable)?,
        _ => cast(keys, &DataType::Utf8View).map_err(unreadable)?,
    };
    Ok(Some(text.as_string_view().clone()))
}

fn hex(bytes: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    let bytes = bytes.as_binary_view();
    let text: StringViewArray = bytes
        .iter()
        .map(|value| value.map(|value| value.iter().fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"))))
        .collect();
    Ok(std::sync::Arc::new(text))
}

fn unreadable(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("the partition key cannot be read: {error}"))
}
