//! Which alerts are being evaluated, and which of these do not come on.
//!
//! *Place*: [`super::Alerts`] asks it before it starts an evaluation, and before one writes what it has seen.
//!
//! An evaluation runs where a core is idle. While clients keep every core busy it stands still; then it is given up, its alert is evaluated anew on
//! a thread that has a share of its own, and for a time so are the others.
//!
//! *Invariants*: (1) an alert has one evaluation that may write; (2) one that writes is not given up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::catalog::Oid;

/// An evaluation that has run for so long where cores are idle does not come on.
const STARVED_AFTER: Duration = Duration::from_secs(2);

/// How long cores count as busy then.
const BUSY_FOR: Duration = Duration::from_secs(10);

/// Where an evaluation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Where cores are idle.
    Idle,
    /// On threads of low priority, which have a share of busy cores.
    Shared,
}

/// All evaluations.
#[derive(Debug, Default)]
pub struct Running {
    runs: HashMap<Oid, Run>,
    started: u64,
    busy_until: Option<Instant>,
}

#[derive(Debug)]
struct Run {
    number: u64,
    began: Instant,
    lane: Lane,
    cancel: CancellationToken,
    writes: bool,
}

impl Running {
    /// Whether an alert is being evaluated.
    pub fn has(&self, alert: Oid) -> bool {
        self.runs.contains_key(&alert)
    }

    /// Where evaluations run now, as a rule.
    pub fn usual_lane(&self, now: Instant) -> Lane {
        if self.busy_until.is_some_and(|until| now < until) { Lane::Shared } else { Lane::Idle }
    }

    /// Where the next evaluation of an alert is to run; `took` is how long the last one has.
    pub fn lane(&self, took: Duration, now: Instant) -> Lane {
        // What takes long beside idle cores would be taken for starved.
        if self.usual_lane(now) == Lane::Shared || took >= STARVED_AFTER / 2 { Lane::Shared } else { Lane::Idle }
    }

    /// An evaluation begins; its number.
    pub fn begin(&mut self, alert: Oid, lane: Lane, cancel: CancellationToken, now: Instant) -> u64 {
        self.started += 1;
        self.runs.insert(alert, Run { number: self.started, began: now, lane, cancel, writes: false });
        self.started
    }

    /// An evaluation is about to write what it has seen. False where it was given up.
    pub fn write(&mut self, alert: Oid, number: u64) -> bool {
        let run = self.runs.get_mut(&alert).filter(|run| run.number == number);
        run.map(|run| run.writes = true).is_some()
    }

    /// An evaluation has ended. False where it had been given up.
    pub fn end(&mut self, alert: Oid, number: u64) -> bool {
        let own = self.runs.get(&alert).is_some_and(|run| run.number == number);
        if own {
            self.runs.remove(&alert);
        }
        own
    }

    /// Gives up evaluations that do not come on: their alerts.
    pub fn give_up(&mut self, now: Instant) -> Vec<Oid> {
        let starved = |run: &Run| run.lane == Lane::Idle && !run.writes && now.saturating_duration_since(run.began) > STARVED_AFTER;
        let alerts: Vec<Oid> = self.runs.iter().filter(|(_, run)| starved(run)).map(|(alert, _)| *alert).collect();
        for run in alerts.iter().filter_map(|alert| self.runs.remove(alert)) {
            run.cancel.cancel();
            self.busy_until = Some(now + BUSY_FOR);
        }
        alerts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_on_is_given_up_before_it_writes() {
        let (mut running, start) = (Running::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let begin = |running: &mut Running, alert, lane| running.begin(alert, lane, CancellationToken::new(), start);
        assert_eq!(running.lane(Duration::ZERO, start), Lane::Idle);
        let starved = begin(&mut running, 1, Lane::Idle);
        let writing = begin(&mut running, 2, Lane::Idle);
        let sharing = begin(&mut running, 3, Lane::Shared);
        assert!(running.write(2, writing));
        assert!(running.give_up(at(1)).is_empty());
        assert_eq!(running.give_up(at(3)), [1]);
        assert!(!running.has(1) && running.has(2) && running.has(3));
        assert_eq!(running.lane(Duration::ZERO, at(3)), Lane::Shared);
        let again = running.begin(1, Lane::Shared, CancellationToken::new(), at(3));
        assert!(!running.write(1, starved), "the one that was given up does not write");
        assert!(!running.end(1, starved) && running.has(1), "nor does it end the other");
        assert!(running.write(1, again) && running.end(1, again) && running.end(2, writing) && running.end(3, sharing));
        assert_eq!(running.lane(Duration::ZERO, at(14)), Lane::Idle);
        assert_eq!(running.lane(Duration::from_secs(1), at(14)), Lane::Shared);
    }
}
