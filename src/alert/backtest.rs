//! BACKTEST ALERT: what an alert would have done between two times.
//!
//! Nothing is kept and nobody is told. Instances start as ok; windows that end after the first time and at or before the second are
//! looked at in order, as if each had just closed. Late rows count from the beginning, since they are in the windows now.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::closings::Closings;
use super::evaluate::{Reach, Recorder, observations, rows};
use super::ledger::{Changes, Entry};
use super::lifecycle::Instance;
use super::plan::compile;
use super::{Alerts, ready_snapshot};
use crate::catalog::Alert;
use crate::clock::Micros;
use crate::error::{Error, Result};

/// The transitions, by time.
pub async fn run(alerts: &Alerts, alert: &Alert, from: Micros, to: Micros, cancel: CancellationToken) -> Result<Vec<Entry>> {
    let parts = &alerts.parts;
    let catalog = parts.store.catalog();
    let compiled = compile(&*parts.engine, &catalog, &alert.query, &alert.sources)?;
    let Some(((_, span), table)) = compiled.window.zip(compiled.table) else {
        return Err(Error::unsupported("an alert without a window cannot be run over the past")
            .detail("Its query says how things are, not how they were.")
            .hint("Select the start of a window."));
    };
    let Some(closed) = parts.store.closed(table) else { return Ok(Vec::new()) };
    let snapshot = ready_snapshot(&parts.store, closed.next_lsn).await;
    let Some(until) = Closings::new(table, closed, &snapshot).until(&compiled) else { return Ok(Vec::new()) };
    let reach = Reach::since(&compiled, &until, from, span);
    let range = |partition: Option<&str>| reach.of(partition).map(|(from, closed)| (from, closed.min(to)));
    let wanted = |partition: Option<&String>, window: Option<Micros>| {
        window.is_some_and(|window| span.end(window) <= to && reach.has(partition.map(String::as_str), window))
    };
    let series = rows(parts, &compiled, &snapshot, (Arc::clone(&until), span.earliest(from)), &wanted, cancel).await?;
    let alert = Alert { silenced_until: None, ..alert.clone() };
    let mut recorder = Recorder { alert: &alert, now: to, changes: Changes::default() };
    for (key, (columns, partition, rows)) in series {
        let mut instance = Instance { key: columns, ..Instance::default() };
        let Some(range) = range(partition.as_deref()) else { continue };
        for seen in observations(&compiled, span, range, &rows, false) {
            let (transition, _) = instance.observe(&alert, &seen, seen.at);
            recorder.record(&key, &instance, seen.at, (transition, None), None);
        }
    }
    let mut entries = recorder.changes.history;
    entries.sort_by_key(|entry| entry.at);
    Ok(entries)
}
