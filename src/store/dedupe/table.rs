//! Keys in memory.
//!
//! About 22 bytes a key: 16-byte slots in a table that grows by a quarter, so it is between 64 and 80 % full.

use super::SHARD_BITS;

/// A set of spread keys: open addressing, linear probing, a zero slot is free.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<u128>,
    used: usize,
    has_zero: bool,
}

impl Table {
    const SLOTS_MIN: usize = 8;

    pub(super) fn len(&self) -> usize {
        self.used + usize::from(self.has_zero)
    }

    pub(super) fn contains(&self, key: u128) -> bool {
        match key {
            0 => self.has_zero,
            _ => !self.slots.is_empty() && self.find(key).is_ok(),
        }
    }

    /// False where the key was there before.
    pub(super) fn insert(&mut self, key: u128) -> bool {
        if key == 0 {
            return !std::mem::replace(&mut self.has_zero, true);
        }
        if Self::full(self.used + 1, self.slots.len()) {
            self.resize((self.slots.len() + self.slots.len() / 4).max(Self::SLOTS_MIN));
        }
        match self.find(key) {
            Ok(_) => false,
            Err(free) => {
                self.slots[free] = key;
                self.used += 1;
                true
            }
        }
    }

    /// Memory of the keys.
    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u128>() + size_of::<Table>()
    }

    /// The keys in order.
    pub(super) fn sorted(&self) -> Vec<u128> {
        let mut keys: Vec<u128> = self.slots.iter().copied().filter(|key| *key != 0).collect();
        keys.extend(self.has_zero.then_some(0));
        keys.sort_unstable();
        keys
    }

    /// Takes in another table's keys.
    pub(super) fn absorb(&mut self, other: Table) {
        self.has_zero |= other.has_zero;
        self.reserve(other.used);
        for key in other.slots.into_iter().filter(|key| *key != 0) {
            self.insert(key);
        }
    }

    /// Makes room for `more` keys.
    pub(super) fn reserve(&mut self, more: usize) {
        if Self::full(self.used + more, self.slots.len()) {
            self.resize(((self.used + more) * 5 / 4 + 1).max(Self::SLOTS_MIN));
        }
    }

    /// Probe sequences become long past four fifths.
    fn full(used: usize, slots: usize) -> bool {
        used * 5 > slots * 4
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for key in old.into_iter().filter(|key| *key != 0) {
            if let Err(free) = self.find(key) {
                self.slots[free] = key;
            }
        }
    }

    /// Where the key is, or else the free slot where it belongs. There is always a free one.
    fn find(&self, key: u128) -> Result<usize, usize> {
        // The bits behind those that chose the shard, scaled to the number of slots, which is no power of two.
        let bits = (key >> (u128::BITS - SHARD_BITS - u64::BITS)) as u64;
        let mut slot = ((u128::from(bits) * self.slots.len() as u128) >> u64::BITS) as usize;
        loop {
            match self.slots[slot] {
                found if found == key => return Ok(slot),
                0 => return Err(slot),
                _ => slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 },
            }
        }
    }
}
