//! What the system views show of the running server.

use std::sync::Arc;

use crate::catalog::Oid;
use crate::clock::Micros;
use crate::query::catalogs::{Activity, SessionRow};
use crate::session::Services;

/// Reads registry, store and metrics.
#[derive(Debug)]
pub struct ServerActivity(pub Arc<Services>);

impl Activity for ServerActivity {
    fn sessions(&self) -> Vec<SessionRow> {
        let rows = self.0.registry.rows().into_iter();
        rows.map(|row| SessionRow {
            backend: row.backend,
            user: row.user,
            database: row.database,
            application: row.application,
            client: row.client,
            connected: row.connected,
            transaction_start: row.transaction_start,
            query_start: row.query_start,
            state: row.state.name(),
            query: row.query,
        })
        .collect()
    }

    fn watermark(&self, table: Oid) -> Option<(Micros, Micros, usize)> {
        let range = self.0.store.watermark(table)?;
        Some((range.least, range.greatest, range.partitions))
    }

    fn metrics(&self) -> String {
        // Formatting into a string does not fail; an empty answer says so if it ever does.
        self.0.metrics.encode().unwrap_or_default()
    }
}
