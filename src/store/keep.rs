//! The upper aggregations of views of operators, moved along with the commits, so that a reader finds them almost done.
//!
//! *Place*: one task, started and stopped with that of the refreshes.
//!
//! *Invariant*: nothing waits for it: a reader moves what is left to move, and a commit does not know of it.
//!
//! *Budget*: it rests twice as long as it worked, so that at most a third of one core goes into it.
//!
//! *On failure* (a row failed in an entity) readers hear why; it tries again [`FAILED_REST`] later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::store::Shared;
use crate::view::Version;

/// How often it is looked for commits.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long it rests at least after a failure.
const FAILED_REST: Duration = Duration::from_secs(1);

/// Moves them until the store stops.
pub async fn keep_folded(shared: Arc<Shared>) {
    let stop = shared.refresh.stopping().clone();
    let session = Arc::new(shared.parts.binder.session_state());
    let mut rest = LOOK_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
        rest = LOOK_EVERY;
        let snapshot = shared.published.load();
        let lsn = snapshot.next_lsn;
        let views = snapshot.catalog.views().filter(|view| view.by_entity && view.ready);
        let versions = views.filter_map(|view| snapshot.views.get(&view.oid));
        let behind: Vec<Arc<Version>> =
            versions.filter(|version| !version.must_rebuild() && version.is_behind(lsn, true)).cloned().collect();
        drop(snapshot);
        if behind.is_empty() {
            continue;
        }
        let began = Instant::now();
        let session = Arc::clone(&session);
        let work = shared.parts.spawner.cpu(async move {
            let pool = Arc::clone(&session.runtime_env().memory_pool);
            let failures = behind.iter().map(|version| version.fold(lsn, &session, &pool)).filter(Result::is_err).count();
            Ok::<usize, Error>(failures)
        });
        match work.await {
            Ok(Ok(0)) => rest = rest.max(2 * began.elapsed()),
            _ => rest = rest.max(FAILED_REST),
        }
    }
}
