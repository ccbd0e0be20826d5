//! What commits put off: coalescing small hot batches and merging small deltas of views.
//!
//! *Place*: a thread of its own that the sequencer wakes after each group; so a commit only appends and waits for none of this, and the number
//! of pieces that a reader meets stays logarithmic all the same.
//!
//! *Invariants*: a piece takes the place of exactly what it was made of, or of nothing: a flush, a deletion or a checkpoint that came
//! first has precedence.
//!
//! *On failure*: nothing changes, and readers meet more pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::Result;
use crate::store::Shared;

/// The running thread. Dropping this waits until it has ended: it holds the store.
#[derive(Debug)]
pub struct Tidier {
    signals: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tidier {
    /// Starts the thread.
    pub fn start(shared: &Arc<Shared>) -> std::io::Result<Tidier> {
        let (signals, inbox) = sync_channel(1);
        let own = Arc::clone(shared);
        let thread = shared.parts.spawner.background_thread("tidy", move || {
            for () in inbox {
                if let Err(error) = tidy(&own) {
                    tracing::warn!(%error, "small batches stay as they are");
                }
            }
        })?;
        Ok(Tidier { signals: Some(signals), thread: Some(thread) })
    }

    /// There is something new. A full channel means that it is looked at anyway.
    pub fn wake(&self) {
        if let Some(signals) = &self.signals {
            let _ = signals.try_send(());
        }
    }
}

impl Drop for Tidier {
    fn drop(&mut self) {
        drop(self.signals.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that puts small batches together panicked");
        }
    }
}

/// Does what is owed now.
fn tidy(shared: &Shared) -> Result<()> {
    let snapshot = shared.published.load();
    let mut coalesced = Vec::new();
    for (oid, table) in &snapshot.tables {
        coalesced.extend(table.coalesce()?.map(|run| (*oid, run)));
    }
    let merged: Vec<_> = snapshot.views.iter().filter_map(|(oid, version)| Some((*oid, version.tidy()?))).collect();
    if coalesced.is_empty() && merged.is_empty() {
        return Ok(());
    }
    // At once: who commits waits for it, if only a moment.
    shared.published.update(|newest| {
        for (oid, run) in &coalesced {
            if let Some(table) = newest.table_mut(*oid) {
                table.replace_run(run);
            }
        }
        for (oid, merged) in &merged {
            if let Some(version) = newest.views.get_mut(oid)
                && let Some(tidied) = version.tidied(merged)
            {
                *version = tidied.into();
            }
        }
        if !coalesced.is_empty() {
            shared.hot_bytes.store(newest.hot_bytes(), Ordering::Release);
        }
        Ok(())
    })
}
