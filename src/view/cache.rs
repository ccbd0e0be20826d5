//! Decoded blocks in memory, bounded in bytes and shared by all views.
//!
//! *Place*: `blocks` reads through it. A sharded clock: a block that was read since the hand last passed stays.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::block::Decoded;

const SHARDS: usize = 16;

/// Decoded blocks by their process-wide number.
#[derive(Debug)]
pub(super) struct Cache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<u64, Slot>,
    /// The clock's face; numbers of removed blocks are skipped when the hand comes to them.
    ring: VecDeque<u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    block: Arc<Decoded>,
    read: AtomicBool,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), shard_bytes_max: bytes_max / SHARDS }
    }

    fn shard(&self, number: u64) -> &Mutex<Shard> {
        &self.shards[(number % SHARDS as u64) as usize]
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Decoded>> {
        let shard = self.shard(number).lock();
        let slot = shard.slots.get(&number)?;
        slot.read.store(true, Ordering::Relaxed);
        Some(Arc::clone(&slot.block))
    }

    /// Keeps a block unless it is larger than a shard.
    pub(super) fn put(&self, number: u64, block: &Arc<Decoded>) {
        if block.bytes > self.shard_bytes_max {
            return;
        }
        let mut shard = self.shard(number).lock();
        if shard.slots.insert(number, Slot { block: Arc::clone(block), read: AtomicBool::new(false) }).is_some() {
            return;
        }
        shard.bytes += block.bytes;
        shard.ring.push_back(number);
        while shard.bytes > self.shard_bytes_max {
            let Some(oldest) = shard.ring.pop_front() else { break };
            match shard.slots.get(&oldest) {
                Some(slot) if slot.read.swap(false, Ordering::Relaxed) => shard.ring.push_back(oldest),
                Some(_) => shard.remove(oldest),
                None => {}
            }
        }
    }

    pub(super) fn remove(&self, number: u64) {
        let mut shard = self.shard(number).lock();
        if shard.slots.contains_key(&number) {
            shard.remove(number);
            shard.ring.retain(|other| *other != number);
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }
}

impl Shard {
    fn remove(&mut self, number: u64) {
        if let Some(slot) = self.slots.remove(&number) {
            self.bytes -= slot.block.bytes;
        }
    }
}
