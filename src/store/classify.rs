//! Watermarks: which rows of a commit are very late, and which windows are closed.
//!
//! *Place*: `store::commit` asks before it assigns LSNs; `store::recover` replays the accepted rows through [`Watermarks::advance`].
//! System views and whoever acts on closed windows ask [`Watermarks::closing`].
//!
//! Two questions, two answers. *Is a row very late?* is decided by event times alone. *Is a window closed?* also looks at the
//! clock where the table has an `idle_timeout`: a partition that was not heard from for so long is taken to be silent, its event
//! time to have gone on with the clock, and the table does not wait for it. It never decides what is accepted.
//!
//! *Invariants*: (1) a partition's watermark is its greatest accepted event time less the allowed lateness; (2) it moves after
//! a commit, so rows of one commit are never late because of each other; (3) it depends on accepted rows in LSN order only, so
//! replay decides the same; (4) the clock of the last accepted row is that of its log record.

use std::ops::AddAssign;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::catalog::Table;
use crate::clock::Micros;
use crate::error::{Error, Result};

/// Greatest accepted event time per partition of one event table, and how many rows were out of order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub struct Watermarks {
    /// By the partition key's text; a NULL key is none.
    partitions: HashMap<Option<Box<str>>, Partition>,
    /// Greatest event time of all.
    newest: Option<Micros>,
    /// Rows that were not in order.
    pub lateness: Lateness,
}

/// What is known of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Greatest event time.
    pub newest: Micros,
    /// The server's clock when its last row was accepted.
    pub heard: Micros,
}

/// Counts of rows that were not in order, since the table was made or emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lateness {
    /// Accepted, older than a row of their partition that came before them.
    pub late: u64,
    /// Behind the watermark and diverted.
    pub diverted: u64,
    /// Behind the watermark and accepted all the same; they count as late, too.
    pub applied: u64,
}

/// Watermarks as they are stored.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Full {
        partitions: Vec<(Option<Box<str>>, Micros, Micros)>,
        lateness: Lateness,
    },
    /// Of a version that did not know when a partition was heard from.
    Newest(Vec<(Option<Box<str>>, Micros)>),
}

impl AddAssign for Lateness {
    fn add_assign(&mut self, other: Self) {
        self.late += other.late;
        self.diverted += other.diverted;
        self.applied += other.applied;
    }
}

impl From<Kept> for Watermarks {
    fn from(kept: Kept) -> Self {
        let (partitions, lateness): (HashMap<_, _>, _) = match kept {
            Kept::Full { partitions, lateness } => {
                (partitions.into_iter().map(|(key, newest, heard)| (key, Partition { newest, heard })).collect(), lateness)
            }
            Kept::Newest(pairs) => {
                let partitions = pairs.into_iter().map(|(key, newest)| (key, Partition { newest, heard: newest }));
                (partitions.collect(), Lateness::default())
            }
        };
        let newest = partitions.values().map(|partition| partition.newest).max();
        Watermarks { partitions, newest, lateness }
    }
}

impl From<Watermarks> for Kept {
    fn from(watermarks: Watermarks) -> Self {
        let partitions = watermarks.partitions.into_iter().map(|(key, partition)| (key, partition.newest, partition.heard)).collect();
        Kept::Full { partitions, lateness: watermarks.lateness }
    }
}

/// What a partition's watermark says about closed windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionClosing {
    /// The partition key's text; none for NULL, and for a table without partitions.
    pub key: Option<Box<str>>,
    /// Greatest event time.
    pub newest: Micros,
    /// Rows with an event time below this are very late.
    pub watermark: Micros,
    /// The server's clock when its last row was accepted.
    pub heard: Micros,
    /// It was not heard from for the table's `idle_timeout`.
    pub idle: bool,
    /// Windows that end at or before this are closed.
    pub closed_until: Micros,
}

/// What a table's watermarks say about closed windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Partitions seen.
    pub partitions: usize,
    /// Those of them that are idle.
    pub idle: usize,
    /// Windows of every partition that end at or before this are closed: the least of the partitions that are not idle; where all
    /// are, the greatest.
    pub closed_until: Micros,
}

impl Watermarks {
    /// Of partitions by key, greatest event time and the clock when they were heard from.
    #[cfg(test)]
    pub fn of(partitions: &[(Option<&str>, Micros, Micros)]) -> Watermarks {
        Kept::Full {
            partitions: partitions.iter().map(|(key, newest, heard)| (key.map(Box::from), *newest, *heard)).collect(),
            lateness: Lateness::default(),
        }
        .into()
    }

    /// The same watermarks, with nothing counted.
    pub fn in_order(&self) -> Watermarks {
        Watermarks { partitions: self.partitions.clone(), newest: self.newest, lateness: Lateness::default() }
    }

    /// For each row whether it lies behind its partition's watermark; none when no row does.
    pub fn late(&self, table: &Table, rows: &RecordBatch) -> Result<Option<BooleanArray>> {
        self.behind(table, rows, table.watermark.map_or(0, |watermark| watermark.lateness_us))
    }

    /// For each row whether it lies more than `by_us` behind the newest of its partition; none when no row does.
    pub fn behind(&self, table: &Table, rows: &RecordBatch, by_us: i64) -> Result<Option<BooleanArray>> {
        let (Some(watermark), Some(newest)) = (table.watermark, self.newest) else { return Ok(None) };
        let times = event_times(rows, watermark.column)?;
        // What is near the newest of all is near that of its partition: mostly nothing has to be looked up.
        if times.iter().min().is_none_or(|least| *least >= newest.saturating_sub(by_us)) {
            return Ok(None);
        }
        let mut behind = BooleanBuilder::with_capacity(rows.num_rows());
        let mut any = false;
        self.walk(table, rows, |row, newest| {
            let is_behind = newest.is_some_and(|newest| times[row] < newest.saturating_sub(by_us));
            any |= is_behind;
            behind.append_value(is_behind);
        })?;
        Ok(any.then(|| behind.finish()))
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

    /// Moves the watermarks past rows that were accepted when the server's clock showed `now`.
    pub fn advance(&mut self, table: &Table, rows: &RecordBatch, now: Micros) -> Result<()> {
        let Some(watermark) = table.watermark else { return Ok(()) };
        let times = event_times(rows, watermark.column)?;
        let keys = partition_keys(table, rows)?;
        let key_of = |row: usize| keys.as_ref().filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row));
        // Neighbours are mostly of one partition: it is looked up once for a run of them.
        let mut row = 0;
        while row < times.len() {
            let key = key_of(row);
            let partition = match self.partitions.get_mut(&key as &dyn PartitionKey) {
                Some(partition) => partition,
                None => self.partitions.entry(key.map(Box::from)).or_insert(Partition { newest: times[row], heard: now }),
            };
            partition.heard = partition.heard.max(now);
            while row < times.len() && key_of(row) == key {
                self.lateness.late += u64::from(times[row] < partition.newest);
                partition.newest = partition.newest.max(times[row]);
                row += 1;
            }
        }
        self.newest = self.newest.max(times.iter().copied().max());
        Ok(())
    }

    /// Least and greatest newest event time over the partitions.
    pub fn range(&self) -> Option<(Micros, Micros)> {
        Some((self.each().map(|partition| partition.newest).min()?, self.newest?))
    }

    /// Every partition, in no order.
    pub fn each(&self) -> impl Iterator<Item = &Partition> + Clone {
        self.partitions.values()
    }

    /// The least watermark of the partitions that were heard from since a time of the server's clock.
    pub fn least_since(&self, table: &Table, since: Micros) -> Option<Micros> {
        let lateness_us = table.watermark?.lateness_us;
        let heard = self.partitions.values().filter(|partition| partition.heard >= since);
        heard.map(|partition| partition.newest.saturating_sub(lateness_us)).min()
    }

    /// What is closed at a time of the server's clock, per partition and in no order. `listening` is since when rows could come: a
    /// partition cannot be silent while nobody listens.
    pub fn partitions_closing<'a>(
        &'a self,
        table: &'a Table,
        now: Micros,
        listening: Micros,
    ) -> impl Iterator<Item = PartitionClosing> + 'a {
        let lateness_us = table.watermark.map_or(0, |watermark| watermark.lateness_us);
        self.partitions.iter().map(move |(key, Partition { newest, heard })| {
            let watermark = newest.saturating_sub(lateness_us);
            let idle = table.options.idle_timeout_us.is_some_and(|timeout| now.saturating_sub((*heard).max(listening)) >= timeout);
            let closed_until = if idle { watermark.saturating_add(now.saturating_sub(*heard).max(0)) } else { watermark };
            PartitionClosing { key: key.clone(), newest: *newest, watermark, heard: *heard, idle, closed_until }
        })
    }

    /// What is closed in the whole table; none before the first row.
    pub fn closing(&self, table: &Table, now: Micros, listening: Micros) -> Option<Closing> {
        let mut closing: Option<Closing> = None;
        for partition in self.partitions_closing(table, now, listening) {
            closing = Some(match closing {
                None => Closing { partitions: 1, idle: usize::from(partition.idle), closed_until: partition.closed_until },
                Some(so_far) => {
                    let closed_until = match (so_far.idle == so_far.partitions, partition.idle) {
                        (true, true) => so_far.closed_until.max(partition.closed_until),
                        (true, false) => partition.closed_until,
                        (false, true) => so_far.closed_until,
                        (false, false) => so_far.closed_until.min(partition.closed_until),
                    };
                    Closing { partitions: so_far.partitions + 1, idle: so_far.idle + usize::from(partition.idle), closed_until }
                }
            });
        }
        closing
    }

    /// Number of partitions seen.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    fn walk(&self, table: &Table, rows: &RecordBatch, mut each: impl FnMut(usize, Option<Micros>)) -> Result<()> {
        match partition_keys(table, rows)? {
            None => {
                let newest = self.partitions.get(&None as &Option<Box<str>>).map(|partition| partition.newest);
                (0..rows.num_rows()).for_each(|row| each(row, newest));
            }
            Some(keys) => {
                for row in 0..rows.num_rows() {
                    let key = keys.is_valid(row).then(|| keys.value(row));
                    each(row, self.partitions.get(&key as &dyn PartitionKey).map(|partition| partition.newest));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringViewArray, TimestampMicrosecondArray};

    use super::{Closing, Lateness, Watermarks};
    use crate::catalog::{Column, Table, TableKind, TableOptions, Watermark};
    use crate::types::{SqlType, UTC};

    const MINUTE: i64 = 60_000_000;

    fn table(idle_timeout_us: Option<i64>) -> Table {
        let column =
            |name: &str, sql_type| Column { name: name.to_owned(), sql_type, nullable: true, default: None, generated: None, fill: None };
        Table {
            oid: 1,
            name: "events".to_owned(),
            kind: TableKind::Event,
            columns: vec![column("at", SqlType::Timestamptz), column("store", SqlType::Text)],
            checks: Vec::new(),
            primary_key: Vec::new(),
            unique: Vec::new(),
            watermark: Some(Watermark { column: 0, lateness_us: 5 * MINUTE }),
            options: TableOptions { partition_by: Some(1), idle_timeout_us, ..TableOptions::default() },
            late_oid: None,
        }
    }

    fn rows(table: &Table, rows: &[(i64, &str)]) -> RecordBatch {
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(time, _)| time * MINUTE)).with_timezone(UTC);
        let stores = StringViewArray::from_iter_values(rows.iter().map(|(_, store)| *store));
        RecordBatch::try_new(table.schema(), vec![Arc::new(times) as ArrayRef, Arc::new(stores)]).expect("two columns")
    }

    fn advanced(table: &Table, commits: &[(i64, &[(i64, &str)])]) -> Watermarks {
        let mut watermarks = Watermarks::default();
        for (now, batch) in commits {
            watermarks.advance(table, &rows(table, batch), now * MINUTE).expect("a batch of the table");
        }
        watermarks
    }

    #[track_caller]
    fn check(watermarks: &Watermarks, table: &Table, now: i64, listening: i64, idle: usize, closed_until: i64) {
        let expected = Closing { partitions: 2, idle, closed_until: closed_until * MINUTE };
        assert_eq!(watermarks.closing(table, now * MINUTE, listening * MINUTE), Some(expected));
    }

    #[test]
    fn a_silent_partition_does_not_keep_windows_open() {
        let table = table(Some(10 * MINUTE));
        let mut watermarks = advanced(&table, &[(100, &[(90, "a"), (95, "b")])]);
        check(&watermarks, &table, 109, 0, 0, 85);
        watermarks.advance(&table, &rows(&table, &[(108, "b")]), 109 * MINUTE).expect("a batch of the table");
        check(&watermarks, &table, 109, 0, 0, 85);
        // From ten minutes of silence on, only b is waited for; a's own windows close as the clock goes on.
        check(&watermarks, &table, 110, 0, 1, 103);
        let a = |now: i64| watermarks.partitions_closing(&table, now * MINUTE, 0).find(|partition| partition.key.as_deref() == Some("a"));
        assert_eq!(a(109).map(|a| (a.idle, a.closed_until)), Some((false, 85 * MINUTE)));
        assert_eq!(a(112).map(|a| (a.idle, a.closed_until)), Some((true, 97 * MINUTE)));
        // Both silent: nobody is waited for.
        check(&watermarks, &table, 120, 0, 2, 114);
        // Nobody listened until now.
        check(&watermarks, &table, 120, 119, 0, 85);
        // What is very late does not depend on any of it.
        let late = watermarks.late(&table, &rows(&table, &[(85, "a"), (84, "a"), (103, "b"), (102, "b")]));
        assert_eq!(late.ok().flatten().map(|late| late.iter().flatten().collect::<Vec<_>>()), Some(vec![false, true, false, true]));
    }

    #[test]
    fn without_a_time_out_every_partition_is_waited_for() {
        let table = table(None);
        let watermarks = advanced(&table, &[(100, &[(90, "a")]), (5_000, &[(4_990, "b")])]);
        check(&watermarks, &table, 9_000, 0, 0, 85);
    }

    #[test]
    fn rows_out_of_order_are_counted_and_kept() {
        let table = table(None);
        let mut watermarks = advanced(&table, &[(1, &[(10, "a"), (9, "a"), (11, "b"), (11, "b")]), (2, &[(8, "a"), (12, "b"), (11, "b")])]);
        watermarks.lateness.applied = 1;
        assert_eq!(watermarks.lateness, Lateness { late: 3, diverted: 0, applied: 1 });
        let text = serde_json::to_string(&watermarks).expect("written as JSON");
        let read: Watermarks = serde_json::from_str(&text).expect("read back");
        assert_eq!((read.lateness, read.partitions), (watermarks.lateness, watermarks.partitions));
        // As an earlier version wrote it.
        let read: Watermarks = serde_json::from_str(r#"[["a", 60000000], [null, 5]]"#).expect("read back");
        assert_eq!(read.range(), Some((5, MINUTE)));
    }
}
