//! What the system schemas show of the running server: sessions, watermarks, metrics.
//!
//! *Place*: given to `query::catalogs` by [`super::build`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use crate::alert::Alerts;
use crate::bus::{Bus, Message};
use crate::catalog::Oid;
use crate::clock::{Clock, Micros};
use crate::error::Result;
use crate::ingest::source::Sources;
use crate::query::catalogs::alerts::{AlertRow, HistoryRow, NotificationRow};
use crate::query::catalogs::signal::Signal;
use crate::query::catalogs::sources::SourceRow;
use crate::query::catalogs::{Activity, CopyRow, LogRow, SessionRow};
use crate::session::Registry;
use crate::session::history::{Finished, History};
use crate::store::{PartitionClosing, Progress, Store, WatermarkRange};
use crate::telemetry::Metrics;

/// The joined components.
#[derive(Debug)]
pub struct Running {
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Statements that have ended.
    pub history: Arc<History>,
    /// Weak, because the store holds the engine, which holds this.
    pub store: Weak<Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// LISTEN and NOTIFY.
    pub bus: Arc<Bus>,
    /// Alerts, joined after this; weak, because they hold the store.
    pub alerts: Arc<OnceLock<Weak<Alerts>>>,
    /// Sources, joined after this; weak, because they hold the store.
    pub sources: Arc<OnceLock<Weak<Sources>>>,
    /// The default `refresh_interval`.
    pub refresh_interval_ms: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Running {
    fn alerts(&self) -> Option<Arc<Alerts>> {
        self.alerts.get()?.upgrade()
    }
}

impl Activity for Running {
    fn sessions(&self) -> Vec<SessionRow> {
        let row = |row: crate::session::registry::Row| SessionRow {
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
            copying: row.copying.map(|copying| CopyRow {
                table: copying.table,
                from: copying.from,
                bytes: copying.bytes.load(Ordering::Relaxed),
                rows: copying.rows.load(Ordering::Relaxed),
            }),
        };
        self.registry.rows().into_iter().map(row).collect()
    }

    fn query_log(&self) -> Vec<LogRow> {
        let row = |finished: Arc<Finished>| LogRow {
            session: SessionRow {
                backend: finished.backend,
                user: finished.user.clone(),
                database: finished.database.clone(),
                application: finished.application.clone(),
                client: finished.client,
                query_start: Some(finished.started),
                query: Arc::clone(&finished.query),
                ..SessionRow::default()
            },
            took_us: finished.took_us,
            outcome: finished.outcome.clone(),
        };
        self.history.all().into_iter().map(row).collect()
    }

    fn notify(&self, backend: i32, channel: &str, payload: &str) -> Result<()> {
        let message = Message::new(channel, payload)?;
        // A session that has just gone has nothing to say.
        self.registry.entry(backend).map_or(Ok(()), |entry| entry.notifications.lock().add(message, self.bus.bytes_max()))
    }

    fn signal(&self, backend: i32, signal: Signal) -> bool {
        match signal {
            Signal::Cancel => self.registry.cancel_backend(backend),
            Signal::Terminate => self.registry.terminate_backend(backend),
        }
    }

    fn alert(&self, alert: &crate::catalog::Alert) -> AlertRow {
        self.alerts().map(|alerts| super::alerts::alert(&alerts, alert)).unwrap_or_default()
    }

    fn alert_history(&self) -> Result<Vec<HistoryRow>> {
        self.alerts().map_or(Ok(Vec::new()), |alerts| super::alerts::history(&alerts))
    }

    fn notifications(&self) -> Vec<NotificationRow> {
        self.alerts().map(|alerts| super::alerts::notifications(&alerts)).unwrap_or_default()
    }

    fn source(&self, source: Oid) -> SourceRow {
        let sources = self.sources.get().and_then(Weak::upgrade);
        sources.map(|sources| super::sources::source(&sources, source)).unwrap_or_default()
    }

    fn now(&self) -> Micros {
        self.clock.now()
    }

    fn watermark(&self, table: Oid) -> Option<WatermarkRange> {
        self.store.upgrade()?.watermark(table)
    }

    fn partitions(&self, table: Oid) -> Vec<PartitionClosing> {
        self.store.upgrade().map(|store| store.partitions(table)).unwrap_or_default()
    }

    fn refresh_failure(&self, view: Oid) -> Option<String> {
        Some(self.store.upgrade()?.refresh_failure(view)?.report().message.to_string())
    }

    fn refresh_interval_us(&self) -> i64 {
        i64::try_from(self.refresh_interval_ms.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }

    fn backfill(&self, view: Oid) -> Option<Progress> {
        self.store.upgrade()?.backfill_progress(view)
    }

    fn metrics(&self) -> String {
        // Formatting into memory fails only where there is no memory.
        self.metrics.encode().unwrap_or_default()
    }
}
