//! PRIMARY KEY and UNIQUE: which keys of a plain table are taken, and by which row.
//!
//! *Place*: `store::positions` checks a transaction's rows before they are logged and takes their keys in when they are committed;
//! recovery rebuilds the keys from the rows. `Store::overlay` and `Store::conflicts` ask it for open transactions.
//!
//! *Invariants*: (1) a key is the 128-bit XXH3 of its values in Arrow's row form, in which equal values have equal bytes; (2) a
//! row with a NULL in its key is nobody's duplicate; (3) the keys of all tables are bounded by `limits.store.unique_keys_max`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Float32Array, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit};
use arrow::row::{RowConverter, SortField};
use datafusion::physical_plan::execute_stream;
use futures::TryStreamExt;
use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_128;

use crate::catalog::{Table, Unique};
use crate::error::{Error, Result, SqlState};
use crate::store::backfill::unreadable;
use crate::store::snapshot::TableState;
use crate::store::{Delete, Parts};
use crate::types::text::{Style, Writer};

/// A key's hash. Two words rather than one, so that a slot of the index needs no padding.
pub type Key = [u64; 2];

/// The keys of rows by constraint: one entry a row, none where a part is NULL.
pub type Keys = Vec<Vec<Option<Key>>>;

/// The keys of one table, by constraint in the order of [`Table::unique`].
#[derive(Debug, Default)]
pub struct Taken {
    constraints: Vec<HashMap<Key, u64>>,
}

impl Taken {
    /// Keys in all constraints.
    pub fn len(&self) -> usize {
        self.constraints.iter().map(HashMap::len).sum()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row that has a key.
    pub fn row(&self, constraint: usize, key: &Key) -> Option<u64> {
        self.constraints.get(constraint)?.get(key).copied()
    }

    /// Takes the keys of a statement's rows that `committed` rows have not taken, by their numbers; 23505 for the first row at fault.
    pub fn claim(&mut self, table: &Table, committed: Option<&Taken>, rows: &RecordBatch, numbers: &[i64]) -> Result<()> {
        let keys = keys(table, rows)?;
        self.constraints.resize_with(table.unique.len(), HashMap::new);
        for (row, number) in numbers.iter().enumerate() {
            for (constraint, keys) in keys.iter().enumerate() {
                let Some(key) = keys[row] else { continue };
                let present = committed.is_some_and(|taken| taken.row(constraint, &key).is_some());
                if present || self.constraints[constraint].insert(key, number.unsigned_abs()).is_some() {
                    return Err(violation(table, &table.unique[constraint], rows, row));
                }
            }
        }
        Ok(())
    }

    /// The first of these rows whose key `other` has too: constraint and row.
    pub fn first_in(&self, other: &Taken) -> Option<(usize, u64)> {
        let own =
            self.constraints.iter().enumerate().flat_map(|(constraint, keys)| keys.iter().map(move |(key, row)| (constraint, key, *row)));
        let taken = own.filter(|(constraint, key, _)| other.row(*constraint, key).is_some());
        taken.map(|(constraint, _, row)| (constraint, row)).min_by_key(|(_, row)| *row)
    }

    /// Takes in the keys of a statement, whose numbers count from `first_lsn`.
    pub fn absorb(&mut self, statement: Taken, first_lsn: u64) {
        self.constraints.resize_with(statement.constraints.len().max(self.constraints.len()), HashMap::new);
        for (taken, keys) in self.constraints.iter_mut().zip(statement.constraints) {
            taken.reserve(keys.len());
            taken.extend(keys.into_iter().map(|(key, number)| (key, first_lsn + number)));
        }
    }

    /// Takes the keys of rows, whose LSNs begin at `first_lsn` and follow.
    pub fn insert(&mut self, keys: &Keys, first_lsn: u64) {
        self.insert_rows(keys, (first_lsn..).take(keys.first().map_or(0, Vec::len)));
    }

    fn insert_rows(&mut self, keys: &Keys, lsns: impl Iterator<Item = u64> + Clone) {
        self.constraints.resize_with(keys.len().max(self.constraints.len()), HashMap::new);
        for (taken, keys) in self.constraints.iter_mut().zip(keys) {
            taken.reserve(keys.len());
            taken.extend(keys.iter().zip(lsns.clone()).filter_map(|(key, lsn)| Some(((*key)?, lsn))));
        }
    }

    /// Frees the keys of deleted rows.
    pub fn remove(&mut self, freed: &Keys) {
        for (taken, keys) in self.constraints.iter_mut().zip(freed) {
            for key in keys.iter().flatten() {
                taken.remove(key);
            }
        }
    }
}

/// The keys that a transaction takes, and those that it frees, while it is put together.
#[derive(Debug, Default)]
pub struct Staged {
    constraints: Vec<HashSet<Key>>,
    freed: Vec<HashSet<Key>>,
}

impl Staged {
    /// Notes the keys of rows that the transaction deletes.
    pub fn free(&mut self, freed: &Keys) {
        self.freed.resize_with(freed.len().max(self.freed.len()), HashSet::new);
        for (set, keys) in self.freed.iter_mut().zip(freed) {
            set.extend(keys.iter().flatten());
        }
    }

    /// Whether the transaction frees a key.
    pub fn frees(&self, constraint: usize, key: &Key) -> bool {
        self.freed.get(constraint).is_some_and(|freed| freed.contains(key))
    }

    /// Takes the keys of `rows`; 23505 when one is taken already, by a row of `taken` or by an earlier one of the transaction.
    pub fn take(&mut self, table: &Table, taken: Option<&Taken>, rows: &RecordBatch, keys: &Keys) -> Result<()> {
        self.constraints.resize_with(table.unique.len(), HashSet::new);
        // The first row that is at fault, as if they came one by one.
        for row in 0..rows.num_rows() {
            for (constraint, keys) in keys.iter().enumerate() {
                let Some(key) = keys[row] else { continue };
                let present = taken.is_some_and(|taken| taken.row(constraint, &key).is_some()) && !self.frees(constraint, &key);
                if present || !self.constraints[constraint].insert(key) {
                    return Err(violation(table, &table.unique[constraint], rows, row));
                }
            }
        }
        Ok(())
    }
}

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A committed row, by LSN; perhaps one that is not published yet.
    Committed(u64),
    /// A row that the transaction itself has added, by its LSN in the transaction's overlay.
    Own(u64),
}

/// For each row of `keys` who has a key of it in one of `constraints`: a committed row unless `deletes` free it, or one of `own`
/// (batches with the LSN of their first row).
pub fn holders(
    table: &Table,
    taken: Option<&Taken>,
    deletes: &[Delete],
    own: &[(u64, RecordBatch)],
    keys: &Keys,
    constraints: &[usize],
) -> Result<Vec<Option<Holder>>> {
    let mut staged = Staged::default();
    deletes.iter().filter(|delete| delete.table == table.oid).for_each(|delete| staged.free(&delete.keys));
    let mut added = Taken::default();
    for (first_lsn, rows) in own {
        added.insert(&self::keys(table, rows)?, *first_lsn);
    }
    let holder = |row: usize| {
        constraints.iter().find_map(|constraint| {
            let key = keys[*constraint][row]?;
            let committed = || taken?.row(*constraint, &key).filter(|_| !staged.frees(*constraint, &key)).map(Holder::Committed);
            added.row(*constraint, &key).map(Holder::Own).or_else(committed)
        })
    };
    Ok((0..keys.first().map_or(0, Vec::len)).map(holder).collect())
}

/// The keys of rows of a table's schema.
pub fn keys(table: &Table, rows: &RecordBatch) -> Result<Keys> {
    table.unique.iter().map(|unique| hashes(unique.columns.iter().map(|column| rows.column(*column)), rows.num_rows())).collect()
}

fn hashes<'a>(columns: impl Iterator<Item = &'a ArrayRef>, rows: usize) -> Result<Vec<Option<Key>>> {
    let failed = |error: arrow::error::ArrowError| Error::internal(format!("keys cannot be compared: {error}"));
    let columns: Vec<ArrayRef> = columns.map(comparable).collect();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let encoded = RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns)).map_err(failed)?;
    let nulls: Vec<_> = columns.iter().filter_map(|column| column.logical_nulls()).collect();
    let key = |row: usize| {
        let hash = xxh3_128(encoded.row(row).as_ref());
        [hash as u64, (hash >> 64) as u64]
    };
    Ok((0..rows).map(|row| nulls.iter().all(|nulls| nulls.is_valid(row)).then(|| key(row))).collect())
}

/// Values that PostgreSQL calls equal have equal bytes: both zeros, every NaN, a month and thirty days.
fn comparable(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float32 => {
            let plain = |value: f32| if value.is_nan() { f32::NAN } else { value + 0.0 };
            let values: Float32Array = column.as_primitive::<Float32Type>().unary(plain);
            Arc::new(values)
        }
        DataType::Float64 => {
            let plain = |value: f64| if value.is_nan() { f64::NAN } else { value + 0.0 };
            let values: Float64Array = column.as_primitive::<Float64Type>().unary(plain);
            Arc::new(values)
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            const DAY: i128 = 86_400_000_000_000;
            let intervals = column.as_primitive::<IntervalMonthDayNanoType>().iter();
            let length = intervals.map(|value| {
                value.map(|value| (i128::from(value.months) * 30 + i128::from(value.days)) * DAY + i128::from(value.nanoseconds))
            });
            Arc::new(length.collect::<Decimal128Array>())
        }
        _ => Arc::clone(column),
    }
}

/// 23505, as PostgreSQL words it.
pub fn violation(table: &Table, unique: &Unique, rows: &RecordBatch, row: usize) -> Error {
    let names: Vec<&str> = unique.columns.iter().map(|column| table.columns[*column].name.as_str()).collect();
    let values: Vec<String> = unique.columns.iter().map(|column| shown(table, rows, row, *column)).collect();
    Error::new(SqlState::UNIQUE_VIOLATION, format!("duplicate key value violates unique constraint \"{}\"", unique.name)).detail(format!(
        "Key ({})=({}) already exists.",
        names.join(", "),
        values.join(", ")
    ))
}

fn shown(table: &Table, rows: &RecordBatch, row: usize, column: usize) -> String {
    let value = rows.column(column).slice(row, 1);
    let Ok(writer) = Writer::new(value.as_ref(), &table.columns[column].sql_type, &Style::default()) else { return "?".to_owned() };
    let mut text = Vec::new();
    if writer.is_null(0) {
        return "null".to_owned();
    }
    writer.write(0, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The keys of all rows of a table, read back when the store opens.
pub async fn read_back(parts: &Parts, state: &TableState) -> Result<Taken> {
    let table = &state.table;
    let mut taken = Taken::default();
    let mut columns: Vec<usize> = table.unique.iter().flat_map(|unique| unique.columns.iter().copied()).collect();
    columns.sort_unstable();
    columns.dedup();
    // The LSN comes after the declared columns.
    columns.push(table.columns.len());
    let position = |column: &usize| columns.iter().position(|other| other == column).unwrap_or(0);
    let narrow: Vec<Vec<usize>> = table.unique.iter().map(|unique| unique.columns.iter().map(position).collect()).collect();
    let mut add = |rows: &RecordBatch| -> Result<()> {
        let lsns = rows.column(columns.len() - 1).as_primitive_opt::<Int64Type>().ok_or_else(|| Error::internal("rows without LSNs"))?;
        let keys = narrow.iter().map(|own| hashes(own.iter().map(|column| rows.column(*column)), rows.num_rows()));
        taken.insert_rows(&keys.collect::<Result<_>>()?, lsns.values().iter().map(|lsn| *lsn as u64));
        Ok(())
    };
    let session = parts.binder.session_state();
    if let Some(plan) = state.scan_cold(&session, Some(&columns), &[], None)? {
        let plan = Arc::new(datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec::new(plan));
        let mut rows = execute_stream(plan, session.task_ctx()).map_err(unreadable)?;
        while let Some(batch) = rows.try_next().await.map_err(unreadable)? {
            add(&batch)?;
        }
    }
    for batch in &state.hot {
        add(&batch.rows().project(&columns).map_err(|error| Error::internal(error.to_string()))?)?;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_equal_keys() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.0), Some(-0.0), Some(f64::NAN), Some(-f64::NAN), None]));
        let keys = hashes(std::iter::once(&floats), 5).unwrap();
        assert_eq!((keys[0] == keys[1], keys[2] == keys[3], keys[0] == keys[2], keys[4]), (true, true, false, None));
    }
}
