//! The dedup keys of deleted rows: an erased event that is sent again is still a duplicate, after a restart as well.
//!
//! *Place*: a deletion's log record carries them; the background work saves them before the log is cut; recovery gives them back to
//! `store::dedupe`, which reads the keys of all other rows back from the rows themselves.
//!
//! *Invariants*: (1) what is kept of a row is its key as `dedupe` has it (128 bits, of a text only a hash) and its event time; (2) a
//! set is kept until its newest event time has left the window, or the table is emptied or dropped.
//!
//! In the state store: `erased/` table (u32 BE), LSN of the last deletion in it (u64 BE), part (u32 BE) -> keys, each of 24 bytes: key
//! (u128 LE), event time (i64 LE, microseconds).

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{Array, RecordBatch};

use crate::catalog::{Catalog, Oid, Table};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family, State};
use crate::store::dedupe::{Key, keys_of};
use crate::store::positions::dedupe_columns;

/// Keys in one value of the state store.
const PART_KEYS_MAX: usize = 65_536;

const KEY_BYTES: usize = 24;

const PREFIX: &[u8] = b"erased/";

/// Keys of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The table that drops duplicates: of rows of its `$late` companion as well.
    pub table: Oid,
    /// Key and event time.
    pub keys: Vec<(Key, Micros)>,
}

/// What is known of the deleted rows of every table.
#[derive(Debug, Default)]
pub struct Erased {
    /// Not yet in the state store: the LSN of the deletion and its keys, oldest first.
    fresh: Vec<(u64, Keys)>,
    stored: Vec<Part>,
}

/// A change of what is in the state store.
#[derive(Debug, Default)]
pub struct Save {
    added: Vec<(Part, Vec<u8>)>,
    removed: HashSet<Vec<u8>>,
    /// Of the newest deletion in it.
    last_lsn: u64,
}

/// A value in the state store.
#[derive(Debug)]
struct Part {
    table: Oid,
    lsn: u64,
    number: u32,
    newest: Micros,
}

impl Keys {
    /// The keys of deleted rows, an event table's or its companion's: its columns come first.
    pub fn of(catalog: &Catalog, table: &Table, rows: &[RecordBatch]) -> Result<Keys> {
        let owner = catalog.tables().find(|owner| owner.late_oid == Some(table.oid)).map_or(table, AsRef::as_ref);
        let mut erased = Keys { table: owner.oid, keys: Vec::new() };
        for batch in rows {
            if let Some((keys, times)) = dedupe_columns(owner, batch)? {
                let pairs = keys_of(keys).into_iter().zip(times.iter().copied()).enumerate();
                erased.keys.extend(pairs.filter(|(row, _)| keys.is_valid(*row)).map(|(_, pair)| pair));
            }
        }
        Ok(erased)
    }

    /// As stored.
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.keys)
    }

    /// The inverse of [`Keys::encode`]; none for anything else.
    pub fn decode(table: Oid, bytes: &[u8]) -> Option<Keys> {
        let (keys, rest) = bytes.as_chunks::<KEY_BYTES>();
        let pair = |bytes: &[u8; KEY_BYTES]| {
            let (key, time) = bytes.split_first_chunk::<16>()?;
            Some((u128::from_le_bytes(*key), Micros::from_le_bytes(time.try_into().ok()?)))
        };
        let keys = keys.iter().map(pair).collect::<Option<Vec<_>>>()?;
        rest.is_empty().then_some(Keys { table, keys })
    }
}

fn encode(keys: &[(Key, Micros)]) -> Vec<u8> {
    keys.iter().flat_map(|(key, time)| [key.to_le_bytes().as_slice(), &time.to_le_bytes()].concat()).collect()
}

fn newest(keys: &[(Key, Micros)]) -> Micros {
    keys.iter().map(|(_, time)| *time).max().unwrap_or(Micros::MIN)
}

impl Part {
    fn key(&self) -> Vec<u8> {
        [PREFIX, &self.table.to_be_bytes(), &self.lsn.to_be_bytes(), &self.number.to_be_bytes()].concat()
    }

    fn parse(key: &[u8], newest: Micros) -> Option<Part> {
        let (table, rest) = key.strip_prefix(PREFIX)?.split_first_chunk::<4>()?;
        let (lsn, number) = rest.split_first_chunk::<8>()?;
        let (table, lsn) = (Oid::from_be_bytes(*table), u64::from_be_bytes(*lsn));
        Some(Part { table, lsn, number: u32::from_be_bytes(number.try_into().ok()?), newest })
    }
}

impl Save {
    /// Puts it into a batch. After that was written comes [`Erased::saved`].
    pub fn put(&mut self, batch: &mut Batch) {
        self.removed.iter().for_each(|key| batch.delete(Family::Meta, key.clone()));
        self.added.iter_mut().for_each(|(part, keys)| batch.put(Family::Meta, part.key(), std::mem::take(keys)));
    }
}

impl Erased {
    /// The deletion at `lsn` has erased rows with these keys.
    pub fn add(&mut self, lsn: u64, keys: Keys) {
        if !keys.keys.is_empty() {
            self.fresh.push((lsn, keys));
        }
    }

    /// What has not been saved.
    pub fn fresh(&self) -> impl Iterator<Item = &Keys> {
        self.fresh.iter().map(|(_, keys)| keys)
    }

    /// Forgets a table that is gone or emptied: it has nothing to remember. The state store follows with the next save.
    pub fn forget(&mut self, table: Oid) {
        self.fresh.retain(|(_, keys)| keys.table != table);
        // Below every event time: it goes as if its window had passed.
        self.stored.iter_mut().filter(|part| part.table == table).for_each(|part| part.newest = Micros::MIN);
    }

    /// What the state store has to learn: what is new, and that it can forget what no table looks at any more. `oldest` gives the
    /// least event time that a table does, none for a table that is gone. None when there is nothing to do.
    pub fn save(&self, oldest: impl Fn(Oid) -> Option<Micros>) -> Option<Save> {
        let passed = |part: &&Part| oldest(part.table).is_none_or(|oldest| part.newest < oldest);
        let mut save = Save { removed: self.stored.iter().filter(passed).map(Part::key).collect(), ..Save::default() };
        let mut tables: BTreeMap<Oid, (u64, Vec<(Key, Micros)>)> = BTreeMap::new();
        for (lsn, Keys { table, keys }) in &self.fresh {
            let (last, present) = tables.entry(*table).or_default();
            *last = *lsn;
            present.extend(keys);
            save.last_lsn = *lsn;
        }
        for (table, (lsn, keys)) in tables {
            for (number, keys) in (0..).zip(keys.chunks(PART_KEYS_MAX)) {
                save.added.push((Part { table, lsn, number, newest: newest(keys) }, encode(keys)));
            }
        }
        (!save.added.is_empty() || !save.removed.is_empty()).then_some(save)
    }

    /// The state store has learned it.
    pub fn saved(&mut self, save: Save) {
        let Save { added, removed, last_lsn } = save;
        self.stored.retain(|part| !removed.contains(&part.key()));
        for (mut part, _) in added {
            // Meanwhile the table may have been emptied.
            if !self.fresh.iter().any(|(lsn, keys)| keys.table == part.table && *lsn <= last_lsn) {
                part.newest = Micros::MIN;
            }
            self.stored.push(part);
        }
        self.fresh.retain(|(lsn, _)| *lsn > last_lsn);
    }

    /// Finds what was saved and gives `each` the keys of every set that is still `wanted` (by table and LSN). To be called once, after
    /// the log was replayed. XX001 when a set cannot be read.
    pub fn open(&mut self, state: &State, wanted: impl Fn(Oid, u64) -> bool, each: &mut dyn FnMut(&Keys)) -> Result<()> {
        let damaged = || Error::new(SqlState::DATA_CORRUPTED, "the saved keys of deleted rows cannot be read");
        let stored = &mut self.stored;
        state.scan(Family::Meta, PREFIX, &mut |key, value| {
            let mut part = Part::parse(key, Micros::MIN).ok_or_else(damaged)?;
            if wanted(part.table, part.lsn) {
                let keys = Keys::decode(part.table, value).ok_or_else(damaged)?;
                part.newest = newest(&keys.keys);
                each(&keys);
            }
            stored.push(part);
            Ok(())
        })?;
        // What a log record holds was saved already if a later set is there.
        let mut last: HashMap<Oid, u64> = HashMap::new();
        for part in &self.stored {
            last.entry(part.table).and_modify(|lsn| *lsn = part.lsn.max(*lsn)).or_insert(part.lsn);
        }
        self.fresh.retain(|(lsn, keys)| last.get(&keys.table).is_none_or(|last| last < lsn));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(table: Oid, range: std::ops::Range<i64>) -> Keys {
        Keys { table, keys: range.map(|number| ((number as u128).wrapping_mul(7), number)).collect() }
    }

    fn opened(state: &State, erased: &mut Erased, truncated_lsn: u64) -> Vec<(Oid, usize)> {
        let mut found = Vec::new();
        erased.open(state, |_, lsn| lsn >= truncated_lsn, &mut |keys| found.push((keys.table, keys.keys.len()))).unwrap();
        found
    }

    #[test]
    fn keys_are_saved_until_their_window_has_passed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), 1 << 20).unwrap();
        let mut erased = Erased::default();
        erased.add(5, keys(1, 0..10));
        erased.add(6, keys(2, 0..70_000));
        erased.add(7, keys(1, 10..20));
        let save = |erased: &mut Erased, oldest: Micros| {
            let (mut batch, mut save) = (Batch::default(), erased.save(|_| Some(oldest)).unwrap());
            save.put(&mut batch);
            state.write(batch).unwrap();
            erased.saved(save);
        };
        save(&mut erased, 0);
        assert!(erased.save(|_| Some(0)).is_none());
        // The records of the log that were saved are not saved twice.
        let mut replayed = Erased::default();
        replayed.add(7, keys(1, 10..20));
        replayed.add(8, keys(1, 20..21));
        assert_eq!(opened(&state, &mut replayed, 0), [(1, 20), (2, PART_KEYS_MAX), (2, 70_000 - PART_KEYS_MAX)]);
        assert_eq!(replayed.fresh().count(), 1);
        assert_eq!(opened(&state, &mut Erased::default(), 7), [(1, 20)]);
        // The window has passed all of table 1's and the first part of table 2's.
        save(&mut erased, 66_000);
        assert_eq!(opened(&state, &mut Erased::default(), 0), [(2, 70_000 - PART_KEYS_MAX)]);
        erased.forget(2);
        save(&mut erased, 0);
        assert_eq!(opened(&state, &mut Erased::default(), 0), []);
    }

    #[test]
    fn keys_round_trip() {
        let some = keys(3, -2..2);
        assert_eq!(Keys::decode(3, &some.encode()), Some(some.clone()));
        assert_eq!(Keys::decode(3, &some.encode()[1..]), None);
    }
}
