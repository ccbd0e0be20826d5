//! Every metric once: name, unit, meaning; and the log on standard error.
//!
//! *Place*: built by `server`, shared by every component, shown by `web` at `/metrics`. A component counts by field
//! (`metrics.rows_accepted.inc_by(n)`).
//!
//! *Invariants*: (1) a metric is declared in one place, the `metrics!` list below: the field, the exported name, the unit and
//! the help text that is also its documentation; (2) names carry no user data (no store, no statement), so their number is bounded.

pub mod log;

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::error::SqlState;

/// A duration in seconds, from 50 microseconds to 52 seconds in factors of two.
#[derive(Clone, Debug)]
pub struct Latency(Histogram);

impl Latency {
    /// Records one duration.
    pub fn observe(&self, elapsed: Duration) {
        self.0.observe(elapsed.as_secs_f64());
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.000_05, 2.0, 21)))
    }
}

/// Label of [`Metrics::errors`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorClass {
    /// The first two characters of the SQLSTATE.
    pub class: &'static str,
}

/// Label of [`Metrics::limits_hit`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitName {
    /// Its key in the configuration, such as `limits.store.hot_bytes_max`.
    pub limit: &'static str,
}

/// How a declared kind enters the registry.
trait Register {
    fn register(&self, registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>);
}

macro_rules! register_by_clone {
    ($($kind:ty),*) => {$(
        impl Register for $kind {
            fn register(&self, registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>) {
                match unit {
                    Some(unit) => registry.register_with_unit(name, help, unit, self.clone()),
                    None => registry.register(name, help, self.clone()),
                }
            }
        }
    )*};
}

register_by_clone!(Counter, Gauge, Family<ErrorClass, Counter>, Family<LimitName, Counter>);

impl Register for Latency {
    fn register(&self, registry: &mut Registry, name: &str, help: &str, _: Option<Unit>) {
        registry.register_with_unit(name, help, Unit::Seconds, self.0.clone());
    }
}

macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $kind:ty $(, $unit:ident)?;)*) => {
        /// Verus's metrics. On the wire each name begins with `verus_`, counters end in `_total`, and units are part of the name.
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
            registry: Registry,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("verus");
                $(
                    let $field = <$kind>::default();
                    // The registry ends every help text with a full stop of its own.
                    let help = $help.trim().trim_end_matches('.');
                    Register::register(&$field, &mut registry, stringify!($field), help, metrics!(@unit $($unit)?));
                )*
                Self { $($field,)* registry }
            }
        }
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
}

metrics! {
    /// Commits acknowledged.
    commits: Counter;
    /// From the arrival of a transaction at the sequencer to its acknowledgement.
    commit: Latency;
    /// Transactions that shared a log record and its sync with others.
    group_commits: Counter;
    /// Rows accepted into tables.
    rows_accepted: Counter;
    /// Rows behind the watermark, diverted to a late table.
    rows_late: Counter;
    /// Rows dropped as duplicates.
    rows_duplicate: Counter;
    /// Syncs of the write-ahead log.
    log_sync: Latency;
    /// Written to the write-ahead log.
    log_written: Counter, Bytes;
    /// Write-ahead log on disk.
    log_size: Gauge, Bytes;
    /// Rows in memory and not yet in Parquet.
    hot_rows: Gauge;
    /// Memory of hot rows.
    hot_size: Gauge, Bytes;
    /// Flushes of hot rows to Parquet.
    flush: Latency;
    /// Rows flushed to Parquet.
    rows_flushed: Counter;
    /// Rounds of merging Parquet files.
    compaction: Latency;
    /// Live Parquet files.
    files: Gauge;
    /// Live Parquet files on disk.
    files_size: Gauge, Bytes;
    /// Writing of view deltas to the state store.
    checkpoint: Latency;
    /// Stored blocks of view state.
    view_blocks: Gauge;
    /// View state on disk.
    view_state_size: Gauge, Bytes;
    /// View deltas in memory.
    view_deltas: Gauge;
    /// Statements that returned rows.
    queries: Counter;
    /// From the arrival of such a statement to its last row.
    query: Latency;
    /// Streams of the operators of plans that run.
    plan_streams: Gauge;
    /// Query texts answered by a plan that another one had been given.
    shared_plans_used: Counter;
    /// Queries answered from view state that were run again from the table.
    routes_verified: Counter;
    /// Of these, the ones that differed: their views answer no more.
    routes_wrong: Counter;
    /// Messages read by sources.
    source_messages: Counter;
    /// Messages of sources that were refused.
    source_messages_rejected: Counter;
    /// Messages of sources without a value.
    source_tombstones: Counter;
    /// Offsets whose messages a broker did not have any more when a source came to them.
    source_offsets_lost: Counter;
    /// Read from brokers by sources.
    source_received: Counter, Bytes;
    /// Fetched or asked for by sources, and not yet committed.
    source_in_flight: Gauge, Bytes;
    /// Failures of sources, each followed by another attempt.
    source_failures: Counter;
    /// Messages behind the ends of the topics that are read.
    source_lag: Gauge;
    /// Open PostgreSQL connections.
    connections: Gauge;
    /// PostgreSQL connections accepted.
    connections_opened: Counter;
    /// Errors sent to clients, by the class of their SQLSTATE.
    errors: Family<ErrorClass, Counter>;
    /// How often a limit of the configuration refused or delayed something.
    limits_hit: Family<LimitName, Counter>;
    /// Received by COPY FROM STDIN.
    copy_received: Counter, Bytes;
    /// Sent by COPY TO STDOUT.
    copy_sent: Counter, Bytes;
    /// Received in bodies of events over HTTP, as they came.
    http_received: Counter, Bytes;
    /// Bodies of requests that are not yet committed.
    http_bodies_size: Gauge, Bytes;
    /// Events that broke a rule and were refused one by one.
    events_refused: Counter;
    /// Running subscriptions to views.
    subscribers: Gauge;
    /// Rows sent to subscribers, snapshots' among them.
    changes_sent: Counter;
    /// Snapshots that a subscriber was too slow for: it was shown a later one instead.
    snapshots_skipped: Counter;
    /// Notifications that wait for their channels.
    notifications_waiting: Gauge;
    /// Notifications that their receivers have taken.
    notifications_delivered: Counter;
    /// Attempts to deliver a notification that failed.
    notifications_failed: Counter;
    /// Resident memory of the process.
    resident_memory: Gauge, Bytes;
    /// Greatest resident memory of the process since its start.
    resident_memory_peak: Gauge, Bytes;
}

impl Metrics {
    /// Counts an error sent to a client.
    pub fn error(&self, state: SqlState) {
        self.errors.get_or_create(&ErrorClass { class: state.0.get(..2).unwrap_or("XX") }).inc();
    }

    /// Counts that a limit refused or delayed something; `limit` is its key (`limits.wire.connections_max`).
    pub fn limit_hit(&self, limit: &'static str) {
        self.limits_hit.get_or_create(&LimitName { limit }).inc();
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            self.resident_memory.set(bytes);
        }
        if let Some(bytes) = status_bytes("VmHWM:") {
            self.resident_memory_peak.set(bytes);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Resident memory of this process, where `/proc` tells it.
pub fn resident_bytes() -> Option<i64> {
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_their_names() {
        let metrics = Metrics::default();
        metrics.rows_accepted.inc_by(3);
        metrics.commit.observe(Duration::from_millis(2));
        metrics.error(SqlState::UNDEFINED_TABLE);
        metrics.limit_hit("limits.wire.connections_max");
        let text = metrics.encode().unwrap();
        for line in [
            "# HELP verus_rows_accepted Rows accepted into tables.\n",
            "verus_rows_accepted_total 3\n",
            "verus_commit_seconds_count 1\n",
            "verus_errors_total{class=\"42\"} 1\n",
            "verus_limits_hit_total{limit=\"limits.wire.connections_max\"} 1\n",
            "verus_log_size_bytes 0\n",
            "# EOF\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
