//! RocksDB: the only importer of the crate. Column families, atomic batches, prefix scans.
//!
//! *Place*: `view::checkpoint` keeps blocks and positions here, `store` the catalog. Its log is on and unsynced: Verus's own
//! log is the truth, [`State::sync`] comes before segments of that are deleted.
//!
//! *Invariants*: (1) after a crash the database is as of some write not older than the last [`State::sync`], whole batches
//! only; (2) everything read is checked against RocksDB's checksums.
//!
//! *On failure*: the file `SYNCED` in the directory holds the number of the newest synced write (u64, then the CRC-32 of it,
//! little-endian; replaced by rename). A database that opens with fewer has lost synced writes: an error (XX001), as is
//! any damaged table or blob file, when it is read.

mod error;
mod options;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, ReadOptions, WriteBatch};

use crate::error::{Error, Result};
pub use error::StateError;

const SYNCED_FILE: &str = "SYNCED";
/// Read ahead by a scan.
const SCAN_READAHEAD_BYTES: usize = 256 * 1024;

/// What a scan does with each key and value; an error ends the scan.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Catalog and positions: small.
    Meta,
    /// One small entry per live view block.
    Index,
    /// The blocks' bytes.
    Blocks,
    /// What has become of alerts, and what is to be sent: small.
    Alerts,
}

impl Family {
    const ALL: [Family; 4] = [Family::Meta, Family::Index, Family::Blocks, Family::Alerts];

    fn name(self) -> &'static str {
        match self {
            Family::Meta => "meta",
            Family::Index => "index",
            Family::Blocks => "blocks",
            Family::Alerts => "alerts",
        }
    }
}

/// A batch of writes that is applied whole or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    /// (family, key, value or none for a deletion), in order.
    pub writes: Vec<(Family, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Adds a put.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.push((family, key.into(), Some(value.into())));
    }

    /// Adds a deletion.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.writes.push((family, key.into(), None));
    }
}

/// The open database.
#[derive(Debug)]
pub struct State {
    db: DB,
    dir: PathBuf,
    /// Number of the newest write known to be durable.
    synced: Mutex<u64>,
}

impl State {
    /// Opens or makes the database in `dir`. `memory_bytes` bounds memtables and block cache together. 55006 when another
    /// process has it open.
    pub fn open(dir: &Path, memory_bytes: usize) -> Result<State> {
        fs::create_dir_all(dir).map_err(StateError::io("create", dir))?;
        let synced = read_synced(&dir.join(SYNCED_FILE))?;
        let cache = options::cache(memory_bytes);
        let families = Family::ALL.map(|family| {
            let options = options::family(family, memory_bytes, &cache);
            ColumnFamilyDescriptor::new(family.name(), options)
        });
        let db = DB::open_cf_descriptors(&options::database(memory_bytes), dir, families).map_err(StateError::rocks("open"))?;
        let found = db.latest_sequence_number();
        if found < synced {
            return Err(StateError::Lost { path: dir.to_owned(), found, synced }.into());
        }
        Ok(State { db, dir: dir.to_owned(), synced: Mutex::new(synced) })
    }

    /// A value, checked by RocksDB's checksums.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.db.get_cf(self.family(family)?, key).map_err(StateError::rocks("read"))?)
    }

    /// Several values in one call, in the order of `keys`.
    pub fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        let values = self.db.batched_multi_get_cf(self.family(family)?, keys, keys.is_sorted());
        let values = values.into_iter().map(|value| value.map(|value| value.map(|bytes| bytes.to_vec())));
        Ok(values.collect::<std::result::Result<_, _>>().map_err(StateError::rocks("read"))?)
    }

    /// All pairs whose key starts with `prefix`, in key order.
    pub fn scan(&self, family: Family, prefix: &[u8], each: &mut Visitor<'_>) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_readahead_size(SCAN_READAHEAD_BYTES);
        options.fill_cache(family != Family::Blocks);
        if let Some(end) = successor(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(family)?, options);
        iterator.seek(prefix);
        while let Some((key, value)) = iterator.item() {
            each(key, value)?;
            iterator.next();
        }
        Ok(iterator.status().map_err(StateError::rocks("read"))?)
    }

    /// Applies a batch atomically. It survives the end of the process, and after [`State::sync`] that of the machine.
    pub fn write(&self, batch: Batch) -> Result<()> {
        let mut writes = WriteBatch::default();
        for (family, key, value) in &batch.writes {
            let family = self.family(*family)?;
            match value {
                Some(value) => writes.put_cf(family, key, value),
                None => writes.delete_cf(family, key),
            }
        }
        Ok(self.db.write(writes).map_err(StateError::rocks("write"))?)
    }

    /// Deletes every key that starts with `prefix`, and gives the space of blocks back.
    pub fn delete_prefix(&self, family: Family, prefix: &[u8]) -> Result<()> {
        let handle = self.family(family)?;
        let Some(end) = successor(prefix).map(Ok).or_else(|| self.beyond_last(handle).transpose()).transpose()? else {
            return Ok(());
        };
        let mut writes = WriteBatch::default();
        writes.delete_range_cf(handle, prefix, &end);
        self.db.write(writes).map_err(StateError::rocks("write"))?;
        if family == Family::Blocks {
            // The tree holds keys only, so this is cheap; without it the blob files would stay until enough is written.
            self.db.compact_range_cf(handle, Some(prefix), Some(end.as_slice()));
        }
        Ok(())
    }

    /// Makes everything written so far durable (flushes and syncs RocksDB's own log).
    pub fn sync(&self) -> Result<()> {
        let mut synced = self.synced.lock();
        let newest = self.db.latest_sequence_number();
        if newest == *synced {
            return Ok(());
        }
        self.db.flush_wal(true).map_err(StateError::rocks("sync"))?;
        write_synced(&self.dir, newest)?;
        *synced = newest;
        Ok(())
    }

    /// Bytes on disk, for metrics.
    pub fn bytes(&self) -> u64 {
        let Ok(entries) = fs::read_dir(&self.dir) else { return 0 };
        entries.filter_map(|entry| entry.and_then(|entry| entry.metadata()).ok()).map(|file| file.len()).sum()
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily> {
        self.db.cf_handle(family.name()).ok_or_else(|| Error::internal(format!("no column family \"{}\"", family.name())))
    }

    /// The least key above all keys of a family, none where it is empty.
    fn beyond_last(&self, family: &ColumnFamily) -> Result<Option<Vec<u8>>> {
        let mut iterator = self.db.raw_iterator_cf(family);
        iterator.seek_to_last();
        iterator.status().map_err(StateError::rocks("read"))?;
        Ok(iterator.key().map(|key| [key, &[0]].concat()))
    }
}

/// The least key above all keys that start with `prefix`, none where there is no such key.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn read_synced(path: &Path) -> Result<u64, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(StateError::io("read", path)(error)),
    };
    let bytes: [u8; 12] = bytes.try_into().map_err(|_| StateError::Damaged { path: path.to_owned() })?;
    let [a, b, c, d, e, f, g, h, crc @ ..] = bytes;
    let number = [a, b, c, d, e, f, g, h];
    if u32::from_le_bytes(crc) != crc32fast::hash(&number) {
        return Err(StateError::Damaged { path: path.to_owned() });
    }
    Ok(u64::from_le_bytes(number))
}

fn write_synced(dir: &Path, synced: u64) -> Result<(), StateError> {
    let (path, new) = (dir.join(SYNCED_FILE), dir.join("SYNCED.new"));
    let number = synced.to_le_bytes();
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(&[&number[..], &crc32fast::hash(&number).to_le_bytes()].concat())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(StateError::io("write", &path))
}
