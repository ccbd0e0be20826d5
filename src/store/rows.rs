//! Which rows were deleted lately, and which are being changed: how concurrent statements never lose an update.
//!
//! *Place*: the sequencer asks [`Recent`] before it accepts a deletion; `command` takes [`RowLocks`] before it submits one.
//!
//! *Invariants*: (1) a row is replaced only by who has seen it last: a transaction that deletes a row which another one deleted
//! since its snapshot is refused (40001) by the sequencer, whatever the locks say; (2) a lock is held until its transaction ends,
//! so that who waits for it finds out whether the row is still there; (3) waiting in a circle is 40P01 for who closes it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::Oid;
use crate::columnar::LsnSet;
use crate::error::{Error, Result, SqlState};

/// Deletions remembered of one table; an older snapshot than the oldest of them is taken for stale.
const DELETIONS_MAX: usize = 4096;

/// What was deleted from one table lately, in commit order.
#[derive(Debug, Default)]
pub struct Recent {
    deletions: VecDeque<(u64, Arc<LsnSet>)>,
    /// Of commits below this LSN nothing is known any more.
    forgotten_lsn: u64,
}

impl Recent {
    /// Notes what the commit at `lsn` deletes.
    pub fn add(&mut self, lsn: u64, rows: Arc<LsnSet>) {
        self.deletions.push_back((lsn, rows));
        if self.deletions.len() > DELETIONS_MAX
            && let Some((oldest, _)) = self.deletions.pop_front()
        {
            self.forgotten_lsn = oldest + 1;
        }
    }

    /// The commit at `lsn` removed everything.
    pub fn clear(&mut self, lsn: u64) {
        self.deletions.clear();
        self.forgotten_lsn = lsn + 1;
    }

    /// Whether any of `rows`, seen in a snapshot of the commits below `read_lsn`, may be gone.
    pub fn is_stale(&self, rows: &LsnSet, read_lsn: u64) -> bool {
        let since = self.deletions.iter().rev().take_while(|(lsn, _)| *lsn >= read_lsn);
        read_lsn < self.forgotten_lsn || since.into_iter().any(|(_, gone)| gone.intersects(rows))
    }
}

/// 40001: what a transaction was to change has changed.
pub fn stale() -> Error {
    Error::new(SqlState::SERIALIZATION_FAILURE, "could not serialize access due to concurrent update").hint("Run the transaction again.")
}

/// The rows that transactions under way are changing.
#[derive(Debug, Default)]
pub struct RowLocks {
    owners: Mutex<Owners>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Owners {
    next: u64,
    by_id: HashMap<u64, Owner>,
}

#[derive(Debug, Default)]
struct Owner {
    rows: HashMap<Oid, LsnSet>,
    waits_for: Option<u64>,
}

/// One transaction's locks, let go when it is dropped.
#[derive(Debug)]
pub struct Held {
    locks: Arc<RowLocks>,
    id: u64,
}

impl RowLocks {
    /// Nothing locked yet.
    pub fn hold(self: &Arc<Self>) -> Held {
        let mut owners = self.owners.lock();
        owners.next += 1;
        let id = owners.next;
        owners.by_id.insert(id, Owner::default());
        Held { locks: Arc::clone(self), id }
    }
}

impl Held {
    /// Locks rows; waits for who has any of them. 40P01 where that would be for ever.
    pub async fn lock(&self, table: Oid, rows: &LsnSet) -> Result<()> {
        loop {
            let released = self.locks.released.notified();
            if self.try_lock(table, rows)? {
                return Ok(());
            }
            let waiting = Waiting(self);
            released.await;
            drop(waiting);
        }
    }

    fn try_lock(&self, table: Oid, rows: &LsnSet) -> Result<bool> {
        let mut owners = self.locks.owners.lock();
        let holds = |owner: &Owner| owner.rows.get(&table).is_some_and(|held| held.intersects(rows));
        let Some(holder) = owners.by_id.iter().find(|(id, owner)| **id != self.id && holds(owner)).map(|(id, _)| *id) else {
            let own = owners.by_id.entry(self.id).or_default();
            let held = own.rows.entry(table).or_default();
            *held = held.union(rows);
            own.waits_for = None;
            return Ok(true);
        };
        let mut next = Some(holder);
        while let Some(id) = next {
            if id == self.id {
                return Err(Error::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
                    .detail("Two transactions wait for rows that the other one has changed.")
                    .hint("Run the transaction again."));
            }
            next = owners.by_id.get(&id).and_then(|owner| owner.waits_for);
        }
        owners.by_id.entry(self.id).or_default().waits_for = Some(holder);
        Ok(false)
    }
}

/// Takes the wait back, however it ends: a statement that is cancelled waits for nobody.
struct Waiting<'a>(&'a Held);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(owner) = self.0.locks.owners.lock().by_id.get_mut(&self.0.id) {
            owner.waits_for = None;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.owners.lock().by_id.remove(&self.id);
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lsns: &[u64]) -> LsnSet {
        lsns.iter().copied().collect()
    }

    #[test]
    fn a_row_that_went_since_the_snapshot_is_stale() {
        let mut recent = Recent::default();
        recent.add(10, Arc::new(set(&[3])));
        recent.add(12, Arc::new(set(&[4])));
        assert!(!recent.is_stale(&set(&[3]), 11));
        assert!(recent.is_stale(&set(&[3]), 10));
        assert!(recent.is_stale(&set(&[4, 9]), 11));
        recent.clear(20);
        assert!(recent.is_stale(&set(&[99]), 20));
        assert!(!recent.is_stale(&set(&[99]), 21));
    }

    #[tokio::test]
    async fn who_closes_a_circle_is_told() {
        let locks = Arc::new(RowLocks::default());
        let (one, other) = (locks.hold(), locks.hold());
        one.lock(1, &set(&[1])).await.unwrap();
        other.lock(1, &set(&[2])).await.unwrap();
        assert!(!one.try_lock(1, &set(&[2])).unwrap());
        assert_eq!(other.lock(1, &set(&[1])).await.unwrap_err().state(), SqlState::DEADLOCK_DETECTED);
        drop(other);
        one.lock(1, &set(&[2])).await.unwrap();
    }
}
