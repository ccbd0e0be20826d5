//! What decides whether a row is accepted: watermarks, the keys seen, the keys taken, what was deleted lately.
//!
//! *Place*: `store::commit` judges and advances in LSN order; `store::recover` only advances. Saved with each flush.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Change, LateRows, Oid, Table};
use crate::clock::Micros;
use crate::columnar::{Deleted, LsnSet};
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family, State};
use crate::store::apply::Accepted;
use crate::store::classify::{Lateness, Watermarks, event_times};
use crate::store::dedupe::{Bounds, Dedupe, Staged};
use crate::store::erased::{Erased, Keys};
use crate::store::rows::Recent;
use crate::store::snapshot::{Snapshot, compact_strings};
use crate::store::unique::{self, Taken};
use crate::store::{Delete, Parts, progress};

/// Watermarks and recent keys of every event table, after the commit that ends at `next_lsn`.
#[derive(Debug, Default)]
pub struct Positions {
    /// Commits below this LSN are included.
    pub next_lsn: u64,
    /// By table.
    pub watermarks: HashMap<Oid, Watermarks>,
    /// By table with a `dedup_key`.
    pub dedupe: HashMap<Oid, Dedupe>,
    /// The keys of deleted rows.
    pub erased: Erased,
    /// Where the keys go that are too many for memory.
    pub bounds: Option<Bounds>,
    /// By table with PRIMARY KEY or UNIQUE.
    pub unique: HashMap<Oid, Taken>,
    /// By table, what was deleted lately.
    pub recent: HashMap<Oid, Recent>,
    /// By table, the greatest event time of a row that retention may have removed.
    pub expired: HashMap<Oid, Micros>,
    /// Where sources are.
    pub sources: progress::Positions,
}

/// The rows of one batch, sorted out.
#[derive(Debug)]
pub struct Judged {
    /// To be accepted, in arrival order.
    pub accepted: RecordBatch,
    /// Their keys, for a table with PRIMARY KEY or UNIQUE.
    pub keys: unique::Keys,
    /// Very late rows and how late each is, microseconds.
    pub late: Option<(RecordBatch, Vec<i64>)>,
    /// Of the accepted rows, how many were behind the watermark.
    pub applied: u64,
    /// Rows dropped as duplicates.
    pub duplicates: u64,
}

/// The keys of a transaction that is being put together, by table.
#[derive(Debug, Default)]
pub struct Staging {
    dedupe: HashMap<Oid, Staged>,
    unique: HashMap<Oid, unique::Staged>,
    emptied: HashSet<Oid>,
}

impl Staging {
    /// Of a transaction that makes these changes and deletions first.
    pub fn new(changes: &[Change], deletes: &[Delete]) -> Staging {
        let mut staging = Staging::default();
        for delete in deletes {
            staging.unique.entry(delete.table).or_default().free(&delete.keys);
        }
        staging.emptied.extend(changes.iter().filter_map(|change| match change {
            Change::Truncate(oid) => Some(*oid),
            _ => None,
        }));
        staging
    }
}

impl Positions {
    /// Sorts out a batch as of the watermarks before its commit. Nothing is remembered yet but in `staged`, which holds the keys
    /// of earlier batches of the same commit and takes this batch's too. 23505 where a key is taken.
    pub fn judge(&self, table: &Table, rows: &RecordBatch, policy: LateRows, staged: &mut Staging) -> Result<Judged> {
        let keys = unique::keys(table, rows)?;
        if !keys.is_empty() {
            let taken = self.unique.get(&table.oid).filter(|_| !staged.emptied.contains(&table.oid));
            staged.unique.entry(table.oid).or_default().take(table, taken, rows, &keys)?;
            return Ok(Judged { accepted: rows.clone(), keys, late: None, applied: 0, duplicates: 0 });
        }
        self.sort_out(table, rows, policy, staged.dedupe.entry(table.oid).or_default())
    }

    /// As [`Positions::judge`], for a table without keys.
    pub fn sort_out(&self, table: &Table, rows: &RecordBatch, policy: LateRows, staged: &mut Staged) -> Result<Judged> {
        let (keys, (rows, duplicates)) = (Vec::new(), self.without_duplicates(table, rows, staged)?);
        let late = match self.watermarks.get(&table.oid) {
            None => None,
            Some(watermarks) => watermarks.late(table, &rows)?,
        };
        let Some(late) = late else { return Ok(Judged { accepted: rows, keys, late: None, applied: 0, duplicates }) };
        if policy == LateRows::Apply {
            return Ok(Judged { accepted: rows, keys, late: None, applied: late.true_count() as u64, duplicates });
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
        Ok(Judged { accepted: select(&rows, &on_time)?, keys, late: Some((late_rows, lateness)), applied: 0, duplicates })
    }

    fn without_duplicates(&self, table: &Table, rows: &RecordBatch, staged: &mut Staged) -> Result<(RecordBatch, u64)> {
        let Some((keys, _)) = dedupe_columns(table, rows)? else { return Ok((rows.clone(), 0)) };
        // Before the first accepted row only duplicates within the commit can be found.
        let none = Dedupe::of(table);
        let dedupe = self.dedupe.get(&table.oid).unwrap_or(&none);
        let past = self.watermarks.get(&table.oid).map(|watermarks| watermarks.behind(table, rows, dedupe.span_us()));
        match dedupe.check(keys, past.transpose()?.flatten().as_ref(), staged)? {
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

    /// Remembers the keys of accepted rows, which the watermarks have been moved past.
    pub fn remember(&mut self, table: &Table, rows: &RecordBatch) -> Result<()> {
        if let Some((keys, times)) = dedupe_columns(table, rows)? {
            let (dedupe, watermarks) = self.keys_of(table);
            dedupe.insert(keys, times, watermarks);
            self.bound_keys();
        }
        Ok(())
    }

    /// The keys of a table, and what says how long they are kept.
    fn keys_of(&mut self, table: &Table) -> (&mut Dedupe, &Watermarks) {
        let dedupe = self.dedupe.entry(table.oid).or_insert_with(|| Dedupe::of(table));
        (dedupe, self.watermarks.entry(table.oid).or_default())
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
        let (dedupe, watermarks) = self.keys_of(table);
        dedupe.insert(rows.column(0), times, watermarks);
        self.bound_keys();
        Ok(())
    }

    /// Remembers the keys of deleted rows.
    pub fn remember_erased(&mut self, table: &Table, erased: &Keys) {
        let (dedupe, watermarks) = self.keys_of(table);
        dedupe.insert_keys(&erased.keys, watermarks);
        self.bound_keys();
    }

    /// The least event time of which a table keeps keys; none when it has not seen any.
    pub fn oldest_key(&self, table: Oid) -> Option<Micros> {
        let (dedupe, watermarks) = (self.dedupe.get(&table)?, self.watermarks.get(&table)?);
        dedupe.reach(watermarks).first().map(|(from, _)| *from)
    }

    /// The event times of which a table keeps keys, as [`Dedupe::reach`] has them.
    pub fn key_reach(&self, table: &Table) -> Vec<(Micros, Micros)> {
        self.watermarks.get(&table.oid).map_or_else(Vec::new, |watermarks| Dedupe::of(table).reach(watermarks))
    }

    /// Takes in the keys of accepted rows that were gathered apart.
    pub fn absorb(&mut self, table: &Table, keys: Dedupe) {
        let (dedupe, watermarks) = self.keys_of(table);
        dedupe.absorb(keys, watermarks);
        self.bound_keys();
    }

    /// Forgets a table that is gone or emptied by the commit at `lsn`.
    pub fn forget(&mut self, table: Oid, lsn: u64) {
        self.watermarks.remove(&table);
        self.dedupe.remove(&table);
        self.erased.forget(table);
        self.unique.remove(&table);
        self.recent.entry(table).or_default().clear(lsn);
    }

    /// Whether any of `rows`, seen in a snapshot of the commits below `read_lsn`, may be gone.
    pub fn is_stale(&self, table: Oid, rows: &LsnSet, read_lsn: u64) -> bool {
        self.recent.get(&table).is_some_and(|recent| recent.is_stale(rows, read_lsn))
    }

    /// The commit at `lsn` deletes rows that had these keys.
    pub fn delete(&mut self, table: Oid, rows: &Arc<LsnSet>, keys: &unique::Keys, lsn: u64) {
        if let Some(taken) = self.unique.get_mut(&table) {
            taken.remove(keys);
        }
        self.recent.entry(table).or_default().add(lsn, Arc::clone(rows));
    }

    /// Keys of all PRIMARY KEY and UNIQUE constraints.
    pub fn unique_keys(&self) -> usize {
        self.unique.values().map(Taken::len).sum()
    }

    /// 53400 when so many keys more are too many.
    pub fn admit_keys(&self, parts: &Parts, keys: usize) -> Result<()> {
        let keys_max = parts.limits.store.unique_keys_max;
        if keys == 0 || self.unique_keys() + keys <= keys_max {
            return Ok(());
        }
        parts.metrics.limit_hit("limits.store.unique_keys_max");
        Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many keys of PRIMARY KEY and UNIQUE constraints")
            .detail(format!("All tables together can hold {keys_max} of them."))
            .hint("Raise limits.store.unique_keys_max or the memory of the server."))
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

fn deleted_key(table: Oid) -> Vec<u8> {
    [b"deleted/".as_slice(), &table.to_be_bytes()].concat()
}

/// Puts a table's dead rows, and where it was deleted from last, into `batch`.
pub fn save_deleted(table: Oid, deleted: &Deleted, deleted_lsn: u64, batch: &mut Batch) {
    let bytes = [deleted_lsn.to_le_bytes().as_slice(), &deleted.encode()].concat();
    match deleted_lsn {
        0 => batch.delete(Family::Meta, deleted_key(table)),
        _ => batch.put(Family::Meta, deleted_key(table), bytes),
    }
}

/// The dead rows of a table, and where it was deleted from last, as they were saved.
pub fn saved_deleted(state: &State, table: Oid) -> Result<(Deleted, u64)> {
    let Some(bytes) = state.get(Family::Meta, &deleted_key(table))? else { return Ok((Deleted::default(), 0)) };
    let read = bytes.split_first_chunk::<8>().and_then(|(lsn, sets)| Some((Deleted::decode(sets)?, u64::from_le_bytes(*lsn))));
    read.ok_or_else(|| Error::new(SqlState::DATA_CORRUPTED, "the saved set of deleted rows cannot be read"))
}

fn expired_key(table: Oid) -> Vec<u8> {
    [b"expired/".as_slice(), &table.to_be_bytes()].concat()
}

/// Puts the greatest event time that retention has removed into `batch`.
pub fn save_expired(table: Oid, until: Micros, batch: &mut Batch) {
    batch.put(Family::Meta, expired_key(table), until.to_be_bytes());
}

/// The greatest event time that retention has removed from a table, if any.
pub fn saved_expired(state: &State, table: Oid) -> Result<Option<Micros>> {
    let Some(bytes) = state.get(Family::Meta, &expired_key(table))? else { return Ok(None) };
    let bytes = bytes.try_into().map_err(|_| Error::new(SqlState::DATA_CORRUPTED, "the saved end of retention cannot be read"))?;
    Ok(Some(Micros::from_be_bytes(bytes)))
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
    /// Where sources are after the rows below `next_lsn`.
    #[serde(default, skip_serializing_if = "progress::Positions::is_empty")]
    pub sources: progress::Positions,
}

impl Saved {
    /// Where it is kept in the state store.
    pub const KEY: &'static [u8] = b"saved";

    /// The watermarks as they are now. They may include rows that are not yet published: see [`Saved::with_catalog`].
    pub fn of(positions: &Positions) -> Saved {
        let (watermarks, sources) = (positions.watermarks.clone(), positions.sources.clone());
        Saved { next_lsn: positions.next_lsn, watermarks, sources, ..Saved::default() }
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
