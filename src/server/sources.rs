//! Sources as the system schemas show them, and the room for what they refuse.

use std::sync::{Arc, Weak};

use crate::ingest::source::{RejectedRoom, Sources};
use crate::query::catalogs::sources::{PartitionRow, SourceRow};
use crate::session::Services;
use crate::web;

pub(super) fn source(sources: &Sources, oid: crate::catalog::Oid) -> SourceRow {
    let shown = sources.shown(oid);
    let partition = |(partition, status): (i32, crate::ingest::source::status::PartitionStatus)| PartitionRow {
        partition,
        leader: status.leader,
        high_watermark: status.high_watermark,
        log_start: status.log_start,
    };
    SourceRow {
        failed: shown.failed,
        error: shown.error,
        retry_at: shown.retry_at,
        partitions: shown.partitions.into_iter().map(partition).collect(),
    }
}

/// `verus.rejected_events` as sources see it.
#[derive(Debug)]
pub(super) struct Room {
    /// Shared with HTTP.
    pub prune: Arc<web::Prune>,
    /// Weak, because they hold the sources.
    pub services: Weak<Services>,
}

impl RejectedRoom for Room {
    fn has_room(&self) -> bool {
        self.services.upgrade().is_none_or(|services| self.prune.has_room(&services))
    }

    fn look(&self) {
        if let Some(services) = self.services.upgrade() {
            self.prune.look(&services);
        }
    }
}
