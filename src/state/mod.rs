//! RocksDB: the only importer of the crate. Column families, atomic batches, prefix scans.
//!
//! *Place*: `view::checkpoint` keeps blocks and positions here, `store` the catalog. Its log is on and unsynced: Verus's own
//! log is the truth, [`State::sync`] comes before segments of that are deleted.

use std::path::Path;

use crate::error::Result;

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Catalog and positions: small.
    Meta,
    /// One small entry per live view block.
    Index,
    /// The blocks' bytes.
    Blocks,
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
pub struct State {}

impl State {
    /// Opens or makes the database in `dir`. `memory_bytes` bounds memtables and block cache together.
    pub fn open(dir: &Path, memory_bytes: usize) -> Result<State> {
        let _ = (dir, memory_bytes);
        unimplemented!()
    }

    /// A value, checked by RocksDB's checksums.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let _ = (family, key);
        unimplemented!()
    }

    /// Several values in one call, in the order of `keys`.
    pub fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        let _ = (family, keys);
        unimplemented!()
    }

    /// All pairs whose key starts with `prefix`, in key order.
    pub fn scan(&self, family: Family, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let _ = (family, prefix, each);
        unimplemented!()
    }

    /// Applies a batch atomically.
    pub fn write(&self, batch: Batch) -> Result<()> {
        let _ = batch;
        unimplemented!()
    }

    /// Deletes every key that starts with `prefix`.
    pub fn delete_prefix(&self, family: Family, prefix: &[u8]) -> Result<()> {
        let _ = (family, prefix);
        unimplemented!()
    }

    /// Makes everything written so far durable (flushes and syncs RocksDB's own log).
    pub fn sync(&self) -> Result<()> {
        unimplemented!()
    }

    /// Bytes on disk, for metrics.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
}
