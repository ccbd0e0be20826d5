//! What decides whether a row is accepted: watermarks and the keys seen.
//!
//! *Place*: `store::commit` judges and advances in LSN order; `store::recover` only advances. Saved with each flush.

use std::collections::HashMap;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, LateRows, Oid, Table};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::store::apply::Accepted;
use crate::store::classify::{Lateness, Watermarks, event_times};
use crate::store::dedupe::{Bounds, Dedupe, Staged};
use crate::store::snapshot::{Snapshot, compact_strings};

/// Watermarks and recent keys of every event table, after the commit that ends at `next_lsn`.
#[derive(Debug, Default)]
pub struct Positions {
    /// Commits below this LSN are included.
    pub next_lsn: u64,
    /// By table.
    pub watermarks: HashMap<Oid, Watermarks>,
    /// By table with a `dedup_key`.
    pub dedupe: HashMap<Oid, Dedupe>,
    /// Where the keys go that are too many for memory.
    pub bounds: Option<Bounds>,
}

/// The rows of one batch, sorted out.
#[derive(Debug)]
pub struct Judged {
    /// To be accepted, in arrival order.
    pub accepted: RecordBatch,
    /// Very late rows and how late each is, microseconds.
    pub late: Option<(RecordBatch, Vec<i64>)>,
    /// Of the accepted rows, how many were behind the watermark.
    pub applied: u64,
    /// Rows dropped as duplicates.
    pub duplicates: u64,
}

impl Positions {
    /// Sorts out a batch as of the watermarks before its commit. Nothing is remembered yet but in `staged`, which holds the keys
    /// of earlier batches of the same commit and takes this batch's too.
    pub fn judge(&self, table: &Table, rows: &RecordBatch, policy: LateRows, staged: &mut Staged) -> Result<Judged> {
        let (rows, duplicates) = self.without_duplicates(table, rows, staged)?;
        let late = match self.watermarks.get(&table.oid) {
            None => None,
            Some(watermarks) => watermarks.late(table, &rows)?,
        };
        let Some(late) = late else { return Ok(Judged { accepted: rows, late: None, applied: 0, duplicates }) };
        if policy == LateRows::Apply {
            return Ok(Judged { accepted: rows, late: None, applied: late.true_count() as u64, duplicates });
        }
        if policy == LateRows::Error {
            let rows = match late.true_count() {
                1 => "1 row is".to_owned(),
                count => format!("{count} rows are"),
            };
            return Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("{rows} behind the watermark of table \"{}\"", table.name))
                .hint("SET verus.late_rows = 'apply' accepts them, 'divert' logs them in the table's $late companion."));
        }
        let late_rows = select(&rows, &late)?;
        let lateness = self.watermarks[&table.oid].lateness(table, &late_rows)?;
        let on_time = not(&late).map_err(unselectable)?;
        Ok(Judged { accepted: select(&rows, &on_time)?, late: Some((late_rows, lateness)), applied: 0, duplicates })
    }

    fn without_duplicates(&self, table: &Table, rows: &RecordBatch, staged: &mut Staged) -> Result<(RecordBatch, u64)> {
        let Some((keys, times)) = dedupe_columns(table, rows)? else { return Ok((rows.clone(), 0)) };
        // Before the first accepted row only duplicates within the commit can be found.
        let none = Dedupe::new(table.options.dedup_window_us);
        match self.dedupe.get(&table.oid).unwrap_or(&none).check(keys, times, staged)? {
            None => Ok((rows.clone(), 0)),
            Some(fresh) => Ok((select(rows, &fresh)?, (fresh.len() - fresh.true_count()) as u64)),
        }
    }

    /// Takes in rows that were accepted when the server's clock showed `now`, an event table's or, of `owner`, diverted ones.
    pub fn advance(&mut self, owner: &Table, accepted: &Accepted, now: Micros) -> Result<()> {
        if owner.watermark.is_none() || accepted.rows.num_rows() == 0 {
            return Ok(());
        }
        let watermarks = self.watermarks.entry(owner.oid).or_default();
        if accepted.table == owner.oid {
            watermarks.lateness.applied += accepted.very_late;
            watermarks.advance(owner, &accepted.rows, now)
        } else {
            watermarks.lateness.diverted += accepted.rows.num_rows() as u64;
            Ok(())
        }
    }

    /// Takes in a statement whose rows are in files: of each partition the newest row, and how many were out of order.
    pub fn advance_staged(&mut self, table: &Table, newest: Option<&RecordBatch>, lateness: Lateness, now: Micros) -> Result<()> {
        if table.watermark.is_none() {
            return Ok(());
        }
        let watermarks = self.watermarks.entry(table.oid).or_default();
        let counted = watermarks.lateness;
        newest.map_or(Ok(()), |newest| watermarks.advance(table, newest, now))?;
        // The rows were counted when they came, all of them.
        watermarks.lateness = counted;
        watermarks.lateness += lateness;
        Ok(())
    }

    /// Remembers the keys of accepted rows.
    pub fn remember(&mut self, table: &Table, rows: &RecordBatch) -> Result<()> {
        if let Some((keys, times)) = dedupe_columns(table, rows)? {
            self.dedupe.entry(table.oid).or_insert_with(|| Dedupe::new(table.options.dedup_window_us)).insert(keys, times);
            self.bound_keys();
        }
        Ok(())
    }

    /// Keeps the keys in memory below their limit. A disk that takes none leaves them there, and the next commit tries again:
    /// the commits that brought them are logged already.
    fn bound_keys(&mut self) {
        let Some(bounds) = &self.bounds else { return };
        while self.dedupe.values().map(Dedupe::table_bytes).sum::<usize>() > bounds.bytes_max {
            let Some(largest) = self.dedupe.values_mut().max_by_key(|keys| keys.table_bytes()) else { return };
            if let Err(error) = largest.spill(&bounds.dir) {
                tracing::warn!(%error, "the keys seen lately stay in memory");
                return;
            }
        }
    }

    /// Remembers keys read back: a batch of key and event time.
    pub fn remember_keys(&mut self, table: &Table, rows: &RecordBatch) -> Result<()> {
        let times = event_times(rows, 1)?;
        self.dedupe.entry(table.oid).or_insert_with(|| Dedupe::new(table.options.dedup_window_us)).insert(rows.column(0), times);
        self.bound_keys();
        Ok(())
    }

    /// Takes in the keys of accepted rows that were gathered apart.
    pub fn absorb(&mut self, table: &Table, keys: Dedupe) {
        self.dedupe.entry(table.oid).or_insert_with(|| Dedupe::new(table.options.dedup_window_us)).absorb(keys);
        self.bound_keys();
    }

    /// Forgets a table that is gone or emptied.
    pub fn forget(&mut self, table: Oid) {
        self.watermarks.remove(&table);
        self.dedupe.remove(&table);
    }
}

/// The key column and the event times of a table that drops duplicates.
pub fn dedupe_columns<'a>(table: &Table, rows: &'a RecordBatch) -> Result<Option<(&'a ArrayRef, &'a [i64])>> {
    match (table.options.dedup_key, table.watermark) {
        (Some(key), Some(watermark)) => Ok(Some((rows.column(key), event_times(rows, watermark.column)?))),
        _ => Ok(None),
    }
}

fn select(rows: &RecordBatch, which: &BooleanArray) -> Result<RecordBatch> {
    compact_strings(&filter_record_batch(rows, which).map_err(unselectable)?)
}

fn unselectable(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows cannot be selected: {error}"))
}

/// What is saved of catalog and watermarks, so that the log before it can go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    /// Rows below this LSN are in the watermarks.
    pub next_lsn: u64,
    /// Greatest event times.
    pub watermarks: HashMap<Oid, Watermarks>,
    /// Changes below this LSN are in the catalog.
    pub catalog_lsn: u64,
    /// The objects.
    pub catalog: Catalog,
    /// By table, below which LSN rows were truncated away.
    pub truncated: HashMap<Oid, u64>,
}

impl Saved {
    /// Where it is kept in the state store.
    pub const KEY: &'static [u8] = b"saved";

    /// The watermarks as they are now. They may include rows that are not yet published: see [`Saved::with_catalog`].
    pub fn of(positions: &Positions) -> Saved {
        Saved { next_lsn: positions.next_lsn, watermarks: positions.watermarks.clone(), ..Saved::default() }
    }

    /// Adds the catalog of a snapshot that has reached the watermarks' LSN.
    #[must_use]
    pub fn with_catalog(mut self, snapshot: &Snapshot) -> Saved {
        self.catalog_lsn = snapshot.next_lsn;
        self.catalog = (*snapshot.catalog).clone();
        self.truncated =
            snapshot.tables.iter().filter(|(_, table)| table.truncated_lsn > 0).map(|(oid, table)| (*oid, table.truncated_lsn)).collect();
        self
    }

    /// As stored: JSON after one byte of format version.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![Self::FORMAT];
        serde_json::to_writer(&mut bytes, self).map_err(|error| Error::internal(format!("the catalog cannot be saved: {error}")))?;
        Ok(bytes)
    }

    /// Reads what [`Saved::encode`] wrote. XX001 for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Saved> {
        let damaged = |what: String| Error::new(SqlState::DATA_CORRUPTED, format!("the saved catalog cannot be read: {what}"));
        match bytes.split_first() {
            Some((&Self::FORMAT, json)) => serde_json::from_slice(json).map_err(|error| damaged(error.to_string())),
            Some((format, _)) => Err(damaged(format!("format {format} is not known"))),
            None => Err(damaged("it is empty".to_owned())),
        }
    }

    const FORMAT: u8 = 1;
}
