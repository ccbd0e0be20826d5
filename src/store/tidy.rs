//! What commits put off: coalescing small hot batches and merging small deltas of views.
//!
//! *Place*: the sequencer does it between two groups, while nobody waits; so a commit only appends, and the number of pieces that a
//! reader meets stays logarithmic all the same.
//!
//! *Invariants*: a piece takes the place of exactly what it was made of, or of nothing: a flush, a deletion or a checkpoint that came
//! first has precedence.
//!
//! *On failure*: nothing changes, and readers meet more pieces.

use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::store::Shared;

/// Does what is owed, a piece at a time, until nothing is or somebody waits.
pub fn tidy(shared: &Shared, is_awaited: impl Fn() -> bool) -> Result<()> {
    let snapshot = shared.published.load();
    for (oid, table) in &snapshot.tables {
        if is_awaited() {
            return Ok(());
        }
        let Some(coalesced) = table.coalesce()? else { continue };
        shared.published.update(|newest| {
            if let Some(table) = newest.table_mut(*oid) {
                table.replace_run(&coalesced);
            }
            shared.hot_bytes.store(newest.hot_bytes(), Ordering::Release);
            Ok(())
        })?;
    }
    for (oid, version) in &snapshot.views {
        if is_awaited() {
            return Ok(());
        }
        let Some(merged) = version.tidy() else { continue };
        shared.published.update(|newest| {
            if let Some(version) = newest.views.get_mut(oid)
                && let Some(tidied) = version.tidied(&merged)
            {
                *version = tidied.into();
            }
            Ok(())
        })?;
    }
    Ok(())
}
