//! Keeps `verus.rejected_events` within `limits.ingest.rejected_bytes_max`: beyond it the older half of the rows goes.
//!
//! Bytes of deleted rows are free only when files have been rewritten without them, so this is done once in [`BETWEEN_US`]; while the table is
//! twice as large as it may be, refused events are answered and counted, and not kept.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Micros;
use crate::command::{self, Response};
use crate::error::{Error, Result};
use crate::ingest::ledger;
use crate::session::{Services, Session};

/// Least time between two deletions: long enough for files to be rewritten.
const BETWEEN_US: Micros = 120_000_000;

const DELETE: &str = "DELETE FROM verus.rejected_events WHERE rejected_at <= \
    (SELECT min(rejected_at) + (max(rejected_at) - min(rejected_at)) / 2 FROM verus.rejected_events) \
    AND rejected_at < (SELECT max(rejected_at) FROM verus.rejected_events)";

/// When that was done last.
#[derive(Debug)]
pub struct Prune {
    bytes_max: usize,
    last: Mutex<Option<Micros>>,
}

impl Prune {
    /// Not done yet.
    pub fn new(bytes_max: usize) -> Prune {
        Prune { bytes_max, last: Mutex::default() }
    }

    /// Whether more refused events may be kept.
    pub fn has_room(&self, services: &Services) -> bool {
        let has_room = ledger::rejected_bytes(&services.store.snapshot()) < self.bytes_max.saturating_mul(2);
        if !has_room {
            services.metrics.limit_hit("limits.ingest.rejected_bytes_max");
        }
        has_room
    }

    /// Deletes beside the clients what is too much.
    pub fn look(&self, services: &Arc<Services>) {
        if ledger::rejected_bytes(&services.store.snapshot()) < self.bytes_max {
            return;
        }
        services.metrics.limit_hit("limits.ingest.rejected_bytes_max");
        let now = services.clock.now();
        let mut last = self.last.lock();
        if last.is_some_and(|last| (last..last.saturating_add(BETWEEN_US)).contains(&now)) {
            return;
        }
        *last = Some(now);
        let own = Arc::clone(services);
        services.spawner.cpu(async move {
            if let Err(error) = delete(&own).await {
                tracing::warn!(%error, "old rejected events could not be deleted; the next attempt follows");
            }
        });
    }
}

async fn delete(services: &Arc<Services>) -> Result<()> {
    let registration = services.registry.enter("verus", "verus", None, services.clock.now(), false);
    let mut session = Session::new(Arc::clone(services), registration);
    for parsed in crate::sql::parse(DELETE)? {
        let prepared = command::prepare(&mut session, Some(parsed), &[])?;
        match command::execute(&mut session, &prepared, &[], CancellationToken::new()).await? {
            Response::Done(tag) => tracing::info!(%tag, "the older rejected events are deleted"),
            _ => return Err(Error::internal("a deletion gave rows")),
        }
    }
    Ok(())
}
