//! Delivery of what waits in the ledger.
//!
//! *Place*: one task, started by [`super::Alerts::start`]; each attempt is a task of its own on the io runtime.
//!
//! *Invariants*: (1) a message is sent until its receiver has taken it or [`give_up`](crate::config::limits::AlertLimits) has passed, at
//! least once, also over restarts; (2) a channel has one attempt under way at a time, so that a dead one delays nothing else; (3) no
//! channel gets more than its `messages_per_minute`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ledger::{Delivery, Outgoing};
use super::{Alerts, Finally, notify};
use crate::catalog::Oid;
use crate::catalog::vault::Options;
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};

/// How often it is looked for messages that are due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const MINUTE_US: Micros = 60_000_000;
/// Secrets shorter than this are no secrets: hiding each `a` would hide the reason.
const SECRET_CHARS_MIN: usize = 4;

/// What the attempts share.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Channels with an attempt under way.
    busy: Mutex<HashSet<Oid>>,
    /// When each channel was sent to in the last minute.
    sent: Mutex<HashMap<Oid, VecDeque<Micros>>>,
    /// Something is due.
    pub wake: Notify,
}

/// Sends until `stop` fires.
pub async fn run(alerts: Arc<Alerts>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = alerts.outbox.wake.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = alerts.parts.clock.now();
        alerts.parts.metrics.notifications_waiting.set(i64::try_from(alerts.ledger.waiting()).unwrap_or(i64::MAX));
        let due = {
            let busy = alerts.outbox.busy.lock();
            alerts.ledger.due(now, &|channel| busy.contains(&channel))
        };
        for outgoing in due {
            if !alerts.outbox.may_send(&alerts, outgoing.channel, now) {
                continue;
            }
            alerts.outbox.busy.lock().insert(outgoing.channel);
            let alerts = Arc::clone(&alerts);
            let spawner = alerts.parts.spawner.clone();
            drop(spawner.io(async move {
                let channel = outgoing.channel;
                let _free = Finally(|| {
                    alerts.outbox.busy.lock().remove(&channel);
                    alerts.outbox.wake.notify_one();
                });
                attempt(&alerts, outgoing).await;
            }));
        }
    }
}

impl Outbox {
    /// Whether a channel's rate leaves room; takes it.
    fn may_send(&self, alerts: &Alerts, channel: Oid, now: Micros) -> bool {
        // What is for a channel that is gone fails at once, which is not a message.
        let Ok(rate) = alerts.options(channel).and_then(|(_, options)| notify::per_minute(&options)) else { return true };
        let mut all = self.sent.lock();
        let sent = all.entry(channel).or_default();
        while sent.front().is_some_and(|at| now.saturating_sub(*at) >= MINUTE_US) {
            sent.pop_front();
        }
        let room = sent.len() < rate as usize;
        if room {
            sent.push_back(now);
        }
        room
    }
}

async fn attempt(alerts: &Alerts, mut outgoing: Outgoing) {
    let parts = &alerts.parts;
    let outcome = deliver(alerts, outgoing.channel, &outgoing).await;
    let now = parts.clock.now();
    outgoing.attempts += 1;
    let give_up_us = i64::try_from(parts.limits.give_up_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
    match outcome {
        Ok(()) => {
            (outgoing.delivery, outgoing.done_at, outgoing.failure) = (Delivery::Delivered, Some(now), None);
            parts.metrics.notifications_delivered.inc();
        }
        Err(failure) => {
            parts.metrics.notifications_failed.inc();
            tracing::debug!(channel = outgoing.channel, attempts = outgoing.attempts, %failure, "a notification could not be delivered");
            let gone = parts.store.snapshot().catalog.channel(outgoing.channel).is_none();
            if gone || now.saturating_sub(outgoing.created_at) >= give_up_us {
                (outgoing.delivery, outgoing.done_at) = (Delivery::Dead, Some(now));
                tracing::warn!(channel = outgoing.channel, alert = outgoing.message.alert, %failure, "a notification was given up");
            } else {
                outgoing.due_at = now.saturating_add(backoff(alerts, outgoing.attempts));
            }
            outgoing.failure = Some(failure);
        }
    }
    if let Err(error) = alerts.ledger.attempted(&outgoing) {
        tracing::error!(%error, "the delivery of a notification could not be recorded: it will be sent again");
    }
}

/// Twice as long after each failure, up to a bound, and up to a quarter more or less.
fn backoff(alerts: &Alerts, attempts: u32) -> Micros {
    let limits = &alerts.parts.limits;
    let doubled = limits.retry_ms_min.saturating_mul(1 << attempts.saturating_sub(1).min(20));
    let base_us = i64::try_from(doubled.min(limits.retry_ms_max).saturating_mul(1_000)).unwrap_or(i64::MAX);
    let quarter = (base_us / 4).max(1);
    base_us.saturating_add(rand::rng().random_range(-quarter..=quarter))
}

/// One attempt: why it failed, without secrets.
async fn deliver(alerts: &Alerts, channel: Oid, outgoing: &Outgoing) -> std::result::Result<(), String> {
    let (kind, options) = alerts.options(channel).map_err(|error| error.to_string())?;
    let outcome = notify::send(kind, &options, &outgoing.message, &alerts.tools).await;
    outcome.map_err(|error| masked(&error, &options))
}

/// TEST NOTIFICATION CHANNEL: one attempt now. The error says why it failed.
pub async fn test(alerts: &Alerts, channel: Oid, message: notify::Message) -> Result<()> {
    let now = alerts.parts.clock.now();
    let mut outgoing = Outgoing {
        number: 0,
        channel,
        message,
        created_at: now,
        attempts: 1,
        due_at: now,
        delivery: Delivery::Delivered,
        done_at: None,
        failure: None,
    };
    let outcome = deliver(alerts, channel, &outgoing).await;
    outgoing.done_at = Some(alerts.parts.clock.now());
    if let Err(failure) = &outcome {
        (outgoing.delivery, outgoing.failure) = (Delivery::Dead, Some(failure.clone()));
    }
    alerts.ledger.sent(outgoing)?;
    outcome.map_err(|failure| Error::new(SqlState::CONNECTION_FAILURE, "the notification channel does not work").detail(failure))
}

/// An error's words, with `...` in place of what the channel's options say.
fn masked(error: &Error, options: &Options) -> String {
    let report = error.report();
    let mut text = report.message.clone();
    for part in [&report.detail, &report.hint].into_iter().flatten() {
        text = format!("{text} ({part})");
    }
    // A URL may be repeated in part: its path, or what is behind its question mark.
    let parts = options.values().flat_map(|value| std::iter::once(value.as_str()).chain(value.split(['/', '?', '&', '=', ':', '@'])));
    let mut parts: Vec<&str> = parts.filter(|part| part.len() >= SECRET_CHARS_MIN && !is_host(part, options)).collect();
    parts.sort_unstable_by_key(|part| std::cmp::Reverse(part.len()));
    parts.into_iter().fold(text, |text, part| text.replace(part, "..."))
}

/// Whether a part of a value may be shown: scheme, host and port.
fn is_host(part: &str, options: &Options) -> bool {
    matches!(part, "http" | "https" | "smtp" | "smtps" | "localhost")
        || options.values().any(|value| {
            let place = value.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
            place.is_some_and(|place| place.rsplit('@').next().is_some_and(|host| host.split(':').any(|piece| piece == part)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_tells_a_secret() {
        let options: Options = [("url", "https://hooks.example:8443/services/T0K3N?key=abcdef"), ("secret", "hunter22")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let error = Error::new(SqlState::CONNECTION_FAILURE, "no secure connection to \"hooks.example\"")
            .detail("POST /services/T0K3N?key=abcdef was signed with hunter22");
        let text = masked(&error, &options);
        assert!(
            text.contains("\"hooks.example\"") && !text.contains("T0K3N") && !text.contains("abcdef") && !text.contains("hunter22"),
            "{text}"
        );
    }
}
