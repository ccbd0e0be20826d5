//! How far sources have come: of each partition the offset that is read next, and what became of the messages before it.
//!
//! *Place*: a transaction says how far its rows bring its source ([`Progress`]); `store::commit` checks it and logs it in the record of the
//! rows; saved with watermarks and catalog, so that the log can be cut. Snapshots hold it as of their LSN.
//!
//! *Invariants*: (1) an offset moves with the rows that it stands for, in one record; (2) a transaction that begins at another offset than
//! its partition has come to is refused (55006): no message counts twice, whoever reads; (3) after a source is paused or
//! dropped nothing of it is committed (55000).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Change, Oid};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::store::{Committed, Snapshot};

/// What a transaction brings a source on by.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The source.
    pub source: Oid,
    /// By partition. The transaction's rows are of the first one.
    pub steps: Vec<Step>,
}

/// A partition's part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The partition.
    pub partition: i32,
    /// The offset that it begins at; none where nothing was read of the partition yet.
    pub from: Option<i64>,
    /// The offset that is read next.
    pub to: i64,
    /// Messages that are in `verus.rejected_events` now.
    pub rejected: u64,
    /// Messages without a value.
    pub tombstones: u64,
    /// Offsets whose messages the broker did not have any more.
    pub lost: u64,
}

/// Where a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The offset that is read next.
    pub offset: i64,
    /// Rows accepted.
    pub accepted: u64,
    /// Rows in the table's `$late` companion.
    pub late: u64,
    /// Rows dropped as duplicates.
    pub duplicates: u64,
    /// Messages refused.
    pub rejected: u64,
    /// Messages without a value.
    pub tombstones: u64,
    /// Offsets whose messages the broker did not have any more.
    pub lost: u64,
    /// The server's clock at the commit that brought it here.
    pub at: Micros,
}

/// A step as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// The source.
    pub source: Oid,
    /// The partition.
    pub partition: i32,
    /// Where it is after the record.
    pub position: Position,
}

/// Of every source, by partition.
pub type Positions = BTreeMap<Oid, BTreeMap<i32, Position>>;

/// Checks that a transaction may move its source on.
pub fn check(progress: &Progress, catalog: &Catalog, positions: &Positions) -> Result<()> {
    match catalog.source(progress.source) {
        Some(source) if !source.paused => {}
        _ => {
            return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "the source was paused or dropped meanwhile"));
        }
    }
    let known = positions.get(&progress.source);
    for step in &progress.steps {
        if known.and_then(|known| known.get(&step.partition)).map(|position| position.offset) != step.from {
            return Err(Error::new(SqlState::OBJECT_IN_USE, format!("partition {} was read by another task", step.partition)));
        }
    }
    Ok(())
}

/// Where the partitions are after a transaction of which this became.
pub fn logged(progress: &Progress, positions: &Positions, committed: &Committed, at: Micros) -> Vec<Logged> {
    let known = positions.get(&progress.source);
    let one = |(index, step): (usize, &Step)| {
        let mut position = known.and_then(|known| known.get(&step.partition)).copied().unwrap_or_default();
        position.offset = step.to;
        position.rejected += step.rejected;
        position.tombstones += step.tombstones;
        position.lost += step.lost;
        position.at = at;
        if index == 0 {
            position.accepted += committed.accepted;
            position.late += committed.late;
            position.duplicates += committed.duplicates;
        }
        Logged { source: progress.source, partition: step.partition, position }
    };
    progress.steps.iter().enumerate().map(one).collect()
}

/// Takes a record's steps in.
pub fn advance(positions: &mut Positions, logged: &[Logged]) {
    for Logged { source, partition, position } in logged {
        positions.entry(*source).or_default().insert(*partition, *position);
    }
}

/// Shows a group's steps, after its changes.
pub fn publish(snapshot: &mut Snapshot, logged: &[Logged], changes: &[Change]) {
    if !logged.is_empty() {
        advance(Arc::make_mut(&mut snapshot.sources), logged);
    }
    if changes.iter().any(|change| matches!(change, Change::DropSource(_))) {
        forget(Arc::make_mut(&mut snapshot.sources), &snapshot.catalog);
    }
}

/// Forgets sources that are gone.
pub fn forget(positions: &mut Positions, catalog: &Catalog) {
    positions.retain(|source, _| catalog.source(*source).is_some());
}
