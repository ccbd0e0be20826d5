//! What is closed of a table, found once for all alerts over it.
//!
//! *Place*: [`super::Alerts`] asks at each look. Whether anything is new to an alert is one comparison, however many partitions the table
//! and however many alerts the server has.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3Default;

use super::evaluate::deletions;
use super::gate::Until;
use super::plan::Compiled;
use super::span::Span;
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::store::{Closed, Snapshot};

/// The closed windows of a table at one moment.
#[derive(Debug)]
pub struct Closings {
    /// Until when windows are closed.
    until: Arc<Until>,
    /// Rows that came into closed windows so far.
    pub very_late: u64,
    /// The newest deletion.
    pub deleted_lsn: u64,
    /// A snapshot has all rows of closed windows once it has reached it.
    pub next_lsn: u64,
    found_at: Instant,
    /// One number for the newest closed windows of all partitions, by length of windows.
    newest: Mutex<HashMap<Span, u64>>,
}

impl Closings {
    /// Of a table's watermarks.
    pub fn new(table: Oid, closed: Closed, snapshot: &Snapshot) -> Closings {
        let found_at = Instant::now();
        let mut until = Until { found_at: Some(found_at), ..Until::everywhere(closed.all) };
        for partition in closed.partitions {
            match partition.key {
                Some(name) => drop(until.partitions.insert(String::from(name), partition.closed_until)),
                None => until.unnamed = Some(partition.closed_until),
            }
        }
        Closings {
            until: Arc::new(until),
            very_late: closed.very_late,
            deleted_lsn: deletions(snapshot, table),
            next_lsn: closed.next_lsn,
            found_at,
            newest: Mutex::default(),
        }
    }

    /// How long ago it was so.
    pub fn age(&self) -> Duration {
        self.found_at.elapsed()
    }

    /// Until when the windows of an alert are closed; none where its only partition is not there yet.
    pub fn until(&self, compiled: &Compiled) -> Option<Arc<Until>> {
        let Some(only) = &compiled.only else {
            return Some(match compiled.partition {
                Some(_) => Arc::clone(&self.until),
                None => Arc::new(self.everywhere(self.until.all)),
            });
        };
        let mut own = self.everywhere(self.until.known(Some(only))?);
        if compiled.partition.is_some() {
            own.partitions.insert(only.clone(), own.all);
        }
        Some(Arc::new(own))
    }

    fn everywhere(&self, time: Micros) -> Until {
        Until { found_at: self.until.found_at, ..Until::everywhere(time) }
    }

    /// Changes when a window of an alert has closed, or when rows of closed windows may have changed.
    pub fn version(&self, compiled: &Compiled) -> u64 {
        let newest = compiled.window.map_or(0, |(_, span)| match &compiled.only {
            Some(only) => self.until.known(Some(only)).map_or(0, |closed| number(&span.ended(i64::MIN, closed, 1))),
            None => *self.newest.lock().entry(span).or_insert_with(|| {
                let of = |(partition, closed): (Option<&str>, Micros)| number(&(partition, span.ended(i64::MIN, closed, 1)));
                // In no order, so the parts are added.
                self.until.each().map(of).fold(number(&span.ended(i64::MIN, self.until.all, 1)), u64::wrapping_add)
            }),
        });
        number(&(newest, self.very_late, self.deleted_lsn))
    }
}

fn number(value: &impl Hash) -> u64 {
    let mut hasher = Xxh3Default::new();
    value.hash(&mut hasher);
    hasher.finish()
}
