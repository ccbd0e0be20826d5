//! The thread that syncs the log, so that the sequencer computes what the views gain in the meantime.
//!
//! *Place*: owned by `store::commit`; ends with it.
//!
//! *Invariant*: one sync at a time, and its outcome is taken before the log is written to again.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::task::Spawner;

/// What a sync gave, and how long it took.
type Outcome = (io::Result<()>, Duration);

/// A running thread.
#[derive(Debug)]
pub struct Syncer {
    files: SyncSender<Arc<File>>,
    outcomes: Receiver<Outcome>,
}

impl Syncer {
    /// Starts the thread.
    pub fn start(spawner: &Spawner) -> io::Result<Syncer> {
        let (files, inbox) = sync_channel::<Arc<File>>(1);
        let (answers, outcomes) = sync_channel(1);
        drop(spawner.thread("log-sync", move || {
            for file in inbox {
                let started = Instant::now();
                let outcome = file.sync_data();
                if answers.send((outcome, started.elapsed())).is_err() {
                    return;
                }
            }
        })?);
        Ok(Syncer { files, outcomes })
    }

    /// fdatasync of the file while `work` runs on this thread.
    pub fn sync_during<T>(&self, file: Arc<File>, work: impl FnOnce() -> T) -> (Outcome, T) {
        let sent = self.files.send(file);
        let done = work();
        let ended = || (Err(io::Error::other("the thread that syncs the log has ended")), Duration::ZERO);
        let outcome = sent.ok().and_then(|()| self.outcomes.recv().ok()).unwrap_or_else(ended);
        (outcome, done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_disk_says_is_heard() {
        let syncer = Syncer::start(&Spawner::current()).unwrap();
        let good = Arc::new(tempfile::tempfile().unwrap());
        // A pipe cannot be synced.
        let (reader, _writer) = io::pipe().unwrap();
        let bad = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        for (file, expected) in [(&good, true), (&bad, false), (&good, true)] {
            let ((outcome, _), done) = syncer.sync_during(Arc::clone(file), || 7);
            assert_eq!((outcome.is_ok(), done), (expected, 7));
        }
    }
}
