//! Where blocks live: RocksDB, the cache of decoded ones, the list of those to delete.
//!
//! *Place*: the store makes one [`Blocks`] when it opens; every [`super::Version`] holds it.
//!
//! *Invariants*: (1) a live block is in Family::Blocks and listed in Family::Index, both written by one batch; (2) a block that
//! is not (or no longer) live but whose bytes may still be there is listed as condemned, so that opening finds it without
//! reading all blocks; (3) a condemned block's bytes go when no version holds it any more, by [`Blocks::sweep`].
//!
//! Keys: `view (4) | group (8) | slot (1) | number (8)` in Family::Blocks, big-endian, the group's sign flipped so that
//! keys sort by time; in Family::Index `b` (live) or `g` (condemned) comes after the view. Family::Meta has `view/` and the view.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::block::{self, Decoded};
use super::cache::Cache;
use super::delta::Work;
use super::portion::Portion;
use super::spec::Spec;
use super::version::Coverage;
use crate::catalog::Oid;
use crate::config::limits::ViewLimits;
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family, State};

/// Where the blocks of all views live.
pub struct Blocks {
    pub(super) state: Arc<State>,
    cache: Cache,
    /// Rows of a block that is written.
    pub(super) rows_max: usize,
    /// Bytes that the upper aggregation of a nested view may take.
    pub(super) fold_bytes_max: usize,
    /// Condemned blocks that nobody holds.
    garbage: Mutex<Vec<(Oid, BlockName)>>,
    /// Of block objects, for the cache.
    objects: AtomicU64,
    /// Of blocks on disk: above all that exist, so that a new block never gets the name of a condemned one.
    numbers: AtomicU64,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("cached_bytes", &self.cache.bytes()).finish_non_exhaustive()
    }
}

/// A block's place in its view: time group, first slot, number. Numbers are not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockName {
    pub(super) group: i64,
    pub(super) slot: u8,
    pub(super) number: u64,
}

/// What the index says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Last slot in it.
    pub(super) slot_last: u8,
    /// Blocks written together by one checkpoint or merge; they do not overlap in keys, or not in values.
    pub(super) run: u64,
    pub(super) first_lsn: u64,
    pub(super) next_lsn: u64,
    /// Least and greatest bucket in the time key's unit.
    pub(super) bucket_min: i64,
    pub(super) bucket_max: i64,
    pub(super) rows: u32,
    pub(super) bytes: u32,
    pub(super) crc: u32,
    /// Whether a group in it failed or replaces older state.
    #[serde(default)]
    pub(super) failed: bool,
    /// One past the LSN of the newest deletion whose rows in it replace or remove older states; 0 where none do.
    #[serde(default)]
    pub(super) marked_lsn: u64,
    /// Which values of sets are in it; all where it has marks.
    #[serde(default)]
    pub(super) portion: Portion,
}

/// Bytes that a state row usually has at most.
const ROW_BYTES: usize = 128;

impl Entry {
    /// How much it is to hold: its rows, or more if they are large.
    pub(super) fn weight(&self) -> usize {
        (self.rows as usize).max(self.bytes as usize / ROW_BYTES)
    }

    /// Groups in it, none of which is in another block of its run.
    pub(super) fn groups(&self) -> u64 {
        if self.portion.is_first() { u64::from(self.rows) } else { 0 }
    }
}

/// A live block, or a condemned one that some version still reads.
pub(super) struct Block {
    home: Arc<Blocks>,
    view: Oid,
    pub(super) name: BlockName,
    pub(super) entry: Entry,
    /// Process-wide, for the cache.
    number: u64,
    condemned: AtomicBool,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("view", &self.view).field("name", &self.name).field("entry", &self.entry).finish()
    }
}

/// What is kept of a view beside its blocks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: u16,
    pub(super) datafusion: String,
    pub(super) fingerprint: u64,
    pub(super) applied_lsn: u64,
    /// See `Version::changes_from`.
    #[serde(default)]
    pub(super) changes_from: u64,
    /// As `failure::to_text` writes it.
    pub(super) poison: Option<String>,
    /// What it took to make the blocks.
    #[serde(default)]
    pub(super) work: Work,
    #[serde(default)]
    pub(super) coverage: Coverage,
}

const LIVE: u8 = b'b';
const CONDEMNED: u8 = b'g';
const SIGN: u64 = 1 << 63;

impl BlockName {
    fn bytes(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&((self.group as u64) ^ SIGN).to_be_bytes());
        bytes[8] = self.slot;
        bytes[9..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 17] = bytes.try_into().ok()?;
        let group = u64::from_be_bytes(bytes[..8].try_into().ok()?) ^ SIGN;
        Some(Self { group: group as i64, slot: bytes[8], number: u64::from_be_bytes(bytes[9..].try_into().ok()?) })
    }

    fn block_key(self, view: Oid) -> Vec<u8> {
        [view.to_be_bytes().as_slice(), &self.bytes()].concat()
    }

    fn index_key(self, view: Oid, kind: u8) -> Vec<u8> {
        [view.to_be_bytes().as_slice(), &[kind], &self.bytes()].concat()
    }
}

fn index_prefix(view: Oid, kind: u8) -> Vec<u8> {
    [view.to_be_bytes().as_slice(), &[kind]].concat()
}

fn meta_key(view: Oid) -> Vec<u8> {
    [b"view/".as_slice(), &view.to_be_bytes()].concat()
}

fn damaged(what: impl fmt::Display) -> Error {
    Error::new(SqlState::DATA_CORRUPTED, format!("the index of view state is damaged: {what}"))
}

impl Blocks {
    /// Made once, when the store opens.
    pub fn new(state: Arc<State>, limits: &ViewLimits) -> Arc<Blocks> {
        Arc::new(Blocks {
            state,
            cache: Cache::new(limits.block_cache_bytes),
            rows_max: limits.block_rows_max.max(1),
            fold_bytes_max: limits.fold_bytes_max,
            garbage: Mutex::default(),
            objects: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
        })
    }

    /// The state store.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Deletes the bytes of condemned blocks that no version holds any more. For the store's background work.
    pub fn sweep(&self) -> Result<usize> {
        let garbage = std::mem::take(&mut *self.garbage.lock());
        if garbage.is_empty() {
            return Ok(0);
        }
        let mut batch = Batch::default();
        for (view, name) in &garbage {
            batch.delete(Family::Blocks, name.block_key(*view));
            batch.delete(Family::Index, name.index_key(*view, CONDEMNED));
        }
        if let Err(error) = self.state.write(batch) {
            self.garbage.lock().extend(garbage);
            return Err(error);
        }
        Ok(garbage.len())
    }

    /// Deletes everything of a view at once: for a view that is not open, such as one found dropped during recovery.
    pub fn forget(&self, view: Oid) -> Result<()> {
        let mut batch = Batch::default();
        batch.delete(Family::Meta, meta_key(view));
        self.state.write(batch)?;
        self.state.delete_prefix(Family::Index, &view.to_be_bytes())?;
        self.state.delete_prefix(Family::Blocks, &view.to_be_bytes())
    }

    /// Bytes of decoded blocks in memory.
    pub fn cached_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// What is kept of a view beside its blocks.
    pub(super) fn meta(&self, view: Oid) -> Result<Option<Meta>> {
        let Some(bytes) = self.state.get(Family::Meta, &meta_key(view))? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Lists a view's live blocks; condemned ones of an earlier run become garbage.
    pub(super) fn list(self: &Arc<Self>, view: Oid) -> Result<Vec<Arc<Block>>> {
        let mut blocks = Vec::new();
        let mut greatest = 0;
        self.state.scan(Family::Index, &index_prefix(view, LIVE), &mut |key, value| {
            let name = BlockName::parse(&key[5..]).ok_or_else(|| damaged("a key"))?;
            let entry: Entry = serde_json::from_slice(value).map_err(damaged)?;
            greatest = greatest.max(name.number).max(entry.run);
            blocks.push(self.block(view, name, entry));
            Ok(())
        })?;
        let mut garbage = Vec::new();
        self.state.scan(Family::Index, &index_prefix(view, CONDEMNED), &mut |key, _| {
            let name = BlockName::parse(&key[5..]).ok_or_else(|| damaged("a key"))?;
            greatest = greatest.max(name.number);
            garbage.push((view, name));
            Ok(())
        })?;
        self.numbers.fetch_max(greatest + 1, Ordering::Relaxed);
        self.garbage.lock().extend(garbage);
        Ok(blocks)
    }

    /// A number for a new block or run.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A block that is (or is about to be) in RocksDB.
    pub(super) fn block(self: &Arc<Self>, view: Oid, name: BlockName, entry: Entry) -> Arc<Block> {
        let number = self.objects.fetch_add(1, Ordering::Relaxed);
        Arc::new(Block { home: Arc::clone(self), view, name, entry, number, condemned: AtomicBool::new(false) })
    }
}

impl Meta {
    /// As of now.
    pub(super) fn new(spec: &Spec, applied_lsn: u64, changes_from: u64, poison: Option<String>, work: Work, coverage: Coverage) -> Self {
        let datafusion = datafusion::DATAFUSION_VERSION.to_owned();
        Self { format: block::FORMAT, datafusion, fingerprint: spec.fingerprint, applied_lsn, changes_from, poison, work, coverage }
    }

    /// Whether blocks written under it can be read.
    pub(super) fn fits(&self, spec: &Spec) -> bool {
        self.format == block::FORMAT && self.datafusion == datafusion::DATAFUSION_VERSION && self.fingerprint == spec.fingerprint
    }

    pub(super) fn put(&self, view: Oid, batch: &mut Batch) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::internal(error.to_string()))?;
        batch.put(Family::Meta, meta_key(view), bytes);
        Ok(())
    }
}

/// Removes a view's position.
pub(super) fn delete_meta(view: Oid, batch: &mut Batch) {
    batch.delete(Family::Meta, meta_key(view));
}

impl Block {
    /// About how many of its bytes are in slots of a range.
    pub(super) fn bytes_in(&self, first: u8, last: u8) -> usize {
        let held = usize::from(self.entry.slot_last - self.name.slot) + 1;
        let within = (usize::from(last.min(self.entry.slot_last)) + 1).saturating_sub(usize::from(first.max(self.name.slot)));
        self.entry.bytes as usize * within / held
    }

    /// Puts the block's bytes into a batch.
    pub(super) fn put(&self, bytes: Vec<u8>, batch: &mut Batch) {
        batch.put(Family::Blocks, self.name.block_key(self.view), bytes);
    }

    /// Lists the block as live.
    pub(super) fn list(&self, batch: &mut Batch) -> Result<()> {
        let entry = serde_json::to_vec(&self.entry).map_err(|error| Error::internal(error.to_string()))?;
        batch.put(Family::Index, self.name.index_key(self.view, LIVE), entry);
        batch.delete(Family::Index, self.name.index_key(self.view, CONDEMNED));
        Ok(())
    }

    /// Lists the block as condemned instead of live.
    pub(super) fn condemn(&self, batch: &mut Batch) {
        batch.delete(Family::Index, self.name.index_key(self.view, LIVE));
        batch.put(Family::Index, self.name.index_key(self.view, CONDEMNED), []);
    }

    /// After the batch with [`Block::condemn`] was written: the bytes go when the last holder does.
    pub(super) fn release(&self) {
        self.condemned.store(true, Ordering::Release);
    }

    /// The block's rows, from the cache or from RocksDB. XX001 when they are damaged or missing.
    pub(super) fn read(&self, fingerprint: u64) -> Result<Arc<Decoded>> {
        if let Some(decoded) = self.home.cache.get(self.number) {
            return Ok(decoded);
        }
        let bytes = self
            .home
            .state
            .get(Family::Blocks, &self.name.block_key(self.view))?
            .ok_or_else(|| Error::new(SqlState::DATA_CORRUPTED, "a block of view state is missing"))?;
        let decoded = Arc::new(block::decode(bytes, self.entry.crc, fingerprint)?);
        self.home.cache.put(self.number, &decoded);
        Ok(decoded)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.cache.remove(self.number);
        if self.condemned.load(Ordering::Acquire) {
            self.home.garbage.lock().push((self.view, self.name));
        }
    }
}
