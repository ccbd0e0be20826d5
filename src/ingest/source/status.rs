//! What is known of a source since the server started, for `verus.sources`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::clock::Micros;
use crate::error::Error;

/// Of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The broker that leads it.
    pub leader: String,
    /// One past the last message on the broker.
    pub high_watermark: Option<i64>,
    /// The first message that the broker keeps.
    pub log_start: Option<i64>,
}

/// A moment's view of it.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Whether the last attempt failed; the next one follows.
    pub failed: bool,
    /// Why it failed last, or what it waits for.
    pub error: Option<(String, Micros)>,
    /// When it tries again.
    pub retry_at: Option<Micros>,
    /// By number.
    pub partitions: BTreeMap<i32, PartitionStatus>,
}

/// Shared by the tasks of a source and whoever asks.
#[derive(Debug, Default)]
pub struct Status(Mutex<Shown>);

impl Status {
    /// As it is now.
    pub fn shown(&self) -> Shown {
        self.0.lock().clone()
    }

    /// Messages come.
    pub fn works(&self) {
        let mut shown = self.0.lock();
        shown.failed = false;
        shown.retry_at = None;
    }

    /// An attempt failed. True where the reason is another one than before.
    pub fn fail(&self, error: &Error, now: Micros, retry_at: Micros) -> bool {
        let mut shown = self.0.lock();
        let text = of(error);
        let is_new = !shown.failed || shown.error.as_ref().is_none_or(|(known, _)| *known != text);
        shown.failed = true;
        shown.error = Some((text, now));
        shown.retry_at = Some(retry_at);
        is_new
    }

    /// It waits for something of this server's. True where that is new.
    pub fn waits(&self, error: &Error, now: Micros) -> bool {
        let mut shown = self.0.lock();
        let text = of(error);
        let is_new = shown.error.as_ref().is_none_or(|(known, _)| *known != text);
        shown.error = Some((text, now));
        is_new
    }

    /// The partitions that there are, with their leaders.
    pub fn partitions(&self, leaders: impl Iterator<Item = (i32, String)>) {
        let mut shown = self.0.lock();
        let mut known = std::mem::take(&mut shown.partitions);
        shown.partitions = leaders
            .map(|(partition, leader)| (partition, PartitionStatus { leader, ..known.remove(&partition).unwrap_or_default() }))
            .collect();
    }

    /// A broker's answer about a partition.
    pub fn heard(&self, partition: i32, high_watermark: i64, log_start: Option<i64>) {
        if let Some(status) = self.0.lock().partitions.get_mut(&partition) {
            status.high_watermark = Some(high_watermark);
            status.log_start = log_start.or(status.log_start);
        }
    }
}

/// Message and hint in one line.
fn of(error: &Error) -> String {
    let report = error.report();
    let parts = [Some(report.message.as_str()), report.detail.as_deref(), report.hint.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
