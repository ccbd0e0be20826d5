//! The states of one instance of an alert: ok, pending, firing, resolved.
//!
//! *Place*: `evaluate` and `backtest` feed it observations; it knows no clock, no storage and no channel.
//!
//! *Invariants*: (1) the same observations in the same order give the same transitions, so that a restart, which repeats what was not
//! stored, repeats nothing that was; (2) each message has a number of its own within the instance: with it, the receiver knows a message
//! that it has seen; (3) who was told that something fires is told that it has ended.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::catalog::{Alert, NoData};
use crate::clock::Micros;

/// Where an instance stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The condition does not hold.
    #[default]
    Ok,
    /// It holds, but not for long enough.
    Pending,
    /// It holds.
    Firing,
    /// It has held and does not any more.
    Resolved,
}

impl Phase {
    /// As system views show it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Ok => "ok",
            Phase::Pending => "pending",
            Phase::Firing => "firing",
            Phase::Resolved => "resolved",
        }
    }
}

/// The row that made an instance fire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fired {
    /// When: the end of its window, or the time of the evaluation.
    pub at: Micros,
    /// The start of its window.
    pub window: Option<Micros>,
    /// The row.
    pub values: Map<String, Value>,
}

/// One series of an alert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The columns that tell it from others.
    pub key: Map<String, Value>,
    /// The partition of its rows, where the alert has one.
    pub partition: Option<String>,
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Micros,
    /// Since when the condition holds, while it is pending.
    pub pending_since: Option<Micros>,
    /// What made it fire last.
    pub fired: Option<Fired>,
    /// When it was resolved last.
    pub resolved_at: Option<Micros>,
    /// Somebody was told that it fires.
    pub told: bool,
    /// When somebody was told last, by the server's clock.
    pub told_at: Option<Micros>,
    /// The window looked at last.
    pub window: Option<Micros>,
    /// The row looked at last.
    pub values: Map<String, Value>,
    /// Why it stands there, where its row does not say.
    pub reason: Option<String>,
    /// Messages so far.
    pub serial: u64,
}

/// What an evaluation has seen of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The end of the window, or the time of the evaluation.
    pub at: Micros,
    /// The start of the window.
    pub window: Option<Micros>,
    /// Whether the condition holds; none where there is no row.
    pub holds: Option<bool>,
    /// The row; empty where there is none.
    pub values: Map<String, Value>,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From where.
    pub from: Phase,
    /// To where.
    pub to: Phase,
}

/// What somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It fires.
    Firing,
    /// It still does.
    Reminder,
    /// It does not any more.
    Resolved,
    /// What was told was undone by late rows.
    Correction,
    /// TEST NOTIFICATION CHANNEL.
    Test,
}

impl Kind {
    /// As messages and system views show it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Firing => "firing",
            Kind::Reminder => "reminder",
            Kind::Resolved => "resolved",
            Kind::Correction => "correction",
            Kind::Test => "test",
        }
    }
}

/// Rows that are missing.
pub const NO_DATA: &str = "no data";
/// Late rows that changed a window.
pub const CORRECTED: &str = "corrected";
/// ALTER ALERT ... DISABLE.
pub const DISABLED: &str = "disabled";

impl Instance {
    /// Takes an observation in. `now` is the server's clock, for whom is told when.
    pub fn observe(&mut self, alert: &Alert, seen: &Observation, now: Micros) -> (Option<Transition>, Option<Kind>) {
        let holds = match (seen.holds, alert.no_data) {
            (Some(holds), _) => holds,
            (None, NoData::Ok) => false,
            (None, NoData::Alert) => true,
            (None, NoData::Keep) => return (None, None),
        };
        self.window = seen.window;
        self.values.clone_from(&seen.values);
        self.reason = seen.holds.is_none().then(|| NO_DATA.to_owned());
        let from = self.phase;
        let to = match (holds, from) {
            (true, Phase::Firing) => Phase::Firing,
            (true, _) => {
                let since = *self.pending_since.get_or_insert(seen.at);
                if seen.at.saturating_sub(since) >= alert.for_us { Phase::Firing } else { Phase::Pending }
            }
            (false, Phase::Firing) => Phase::Resolved,
            (false, Phase::Pending) => Phase::Ok,
            (false, calm) => calm,
        };
        if to == from {
            return (None, None);
        }
        self.turn(to, seen.at);
        if to == Phase::Firing {
            self.fired = Some(Fired { at: seen.at, window: seen.window, values: seen.values.clone() });
        }
        let kind = match to {
            Phase::Firing if !is_silenced(alert, now) => Some(Kind::Firing),
            Phase::Resolved if self.told && !is_silenced(alert, now) => Some(Kind::Resolved),
            _ => None,
        };
        (Some(Transition { from, to }), kind.inspect(|kind| self.tell(*kind, now)))
    }

    /// Whether [`Instance::remind`] may ever have something: it fires, or somebody thinks that it does.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Firing || self.told
    }

    /// What is due without an observation: a reminder, or what was not told while the alert was silent.
    pub fn remind(&mut self, alert: &Alert, now: Micros) -> Option<Kind> {
        if is_silenced(alert, now) {
            return None;
        }
        let due = match (self.phase, self.told) {
            (Phase::Firing, false) => Some(Kind::Firing),
            (Phase::Firing, true) => self
                .told_at
                .zip(alert.repeat_us)
                .is_some_and(|(told_at, repeat_us)| now.saturating_sub(told_at) >= repeat_us)
                .then_some(Kind::Reminder),
            (_, true) => Some(Kind::Resolved),
            (_, false) => None,
        };
        due.inspect(|kind| self.tell(*kind, now))
    }

    /// The row that made it fire does not hold any more. `still` is the newest row, if that one holds.
    pub fn correct(&mut self, alert: &Alert, still: Option<&Observation>, at: Micros, now: Micros) -> (Option<Transition>, Option<Kind>) {
        self.reason = Some(CORRECTED.to_owned());
        let told = self.told_at.is_some();
        let transition = match (self.phase, still) {
            (Phase::Firing, Some(still)) => {
                self.fired = Some(Fired { at: still.at, window: still.window, values: still.values.clone() });
                None
            }
            (Phase::Firing, None) => {
                // A correction that is not told, because the alert is silent, leaves the end to be told.
                self.told = self.told && is_silenced(alert, now);
                self.turn(Phase::Resolved, at);
                self.fired = None;
                Some(Transition { from: Phase::Firing, to: Phase::Resolved })
            }
            _ => {
                self.fired = None;
                None
            }
        };
        let kind = (told && !is_silenced(alert, now)).then_some(Kind::Correction);
        (transition, kind.inspect(|_| self.serial += 1))
    }

    /// The alert was disabled.
    pub fn reset(&mut self, at: Micros) -> Option<Transition> {
        let from = self.phase;
        self.told = false;
        self.reason = Some(DISABLED.to_owned());
        if matches!(from, Phase::Ok | Phase::Resolved) {
            return None;
        }
        self.turn(Phase::Ok, at);
        Some(Transition { from, to: Phase::Ok })
    }

    fn turn(&mut self, to: Phase, at: Micros) {
        (self.phase, self.since) = (to, at);
        match to {
            Phase::Pending => {}
            Phase::Resolved => (self.pending_since, self.resolved_at) = (None, Some(at)),
            Phase::Ok | Phase::Firing => self.pending_since = None,
        }
    }

    fn tell(&mut self, kind: Kind, now: Micros) {
        self.serial += 1;
        self.told_at = Some(now);
        self.told = matches!(kind, Kind::Firing | Kind::Reminder);
    }
}

/// Whether nobody is told at a time.
pub fn is_silenced(alert: &Alert, now: Micros) -> bool {
    alert.silenced_until.is_some_and(|until| now < until)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Micros = 60_000_000;

    fn alert(for_us: Micros, no_data: NoData) -> Alert {
        Alert { for_us, no_data, enabled: true, repeat_us: Some(10 * MINUTE), ..Alert::default() }
    }

    fn seen(minute: Micros, holds: Option<bool>) -> Observation {
        Observation { at: minute * MINUTE, window: Some((minute - 1) * MINUTE), holds, values: Map::new() }
    }

    fn run(alert: &Alert, rows: &[Option<bool>]) -> (Vec<Phase>, Vec<Kind>) {
        let mut instance = Instance::default();
        let mut kinds = Vec::new();
        let phases = rows.iter().zip(1..).map(|(holds, minute)| {
            kinds.extend(instance.observe(alert, &seen(minute, *holds), minute * MINUTE).1);
            instance.phase
        });
        (phases.collect(), kinds)
    }

    #[test]
    fn a_condition_must_hold_for_its_time() {
        use Phase::{Firing, Ok, Pending, Resolved};
        let (yes, no) = (Some(true), Some(false));
        let (phases, kinds) = run(&alert(2 * MINUTE, NoData::Ok), &[no, yes, yes, no, yes, yes, yes, yes, no, no, yes]);
        assert_eq!(phases, [Ok, Pending, Pending, Ok, Pending, Pending, Firing, Firing, Resolved, Resolved, Pending]);
        assert_eq!(kinds, [Kind::Firing, Kind::Resolved]);
    }

    #[test]
    fn missing_rows_mean_what_is_said() {
        use Phase::{Firing, Ok, Resolved};
        let rows = [Some(true), None, Some(false), None];
        assert_eq!(run(&alert(0, NoData::Ok), &rows).0, [Firing, Resolved, Resolved, Resolved]);
        assert_eq!(run(&alert(0, NoData::Alert), &rows).0, [Firing, Firing, Resolved, Firing]);
        assert_eq!(run(&alert(0, NoData::Keep), &rows).0, [Firing, Firing, Resolved, Resolved]);
        assert_eq!(run(&alert(0, NoData::Keep), &[None]).0, [Ok]);
    }

    #[test]
    fn reminders_and_silence() {
        let mut alert = alert(0, NoData::Ok);
        alert.silenced_until = Some(5 * MINUTE);
        let mut instance = Instance::default();
        assert_eq!(instance.observe(&alert, &seen(1, Some(true)), MINUTE).1, None);
        assert_eq!(instance.remind(&alert, 4 * MINUTE), None);
        assert_eq!(instance.remind(&alert, 5 * MINUTE), Some(Kind::Firing));
        assert_eq!(instance.remind(&alert, 14 * MINUTE), None);
        assert_eq!(instance.remind(&alert, 15 * MINUTE), Some(Kind::Reminder));
        assert_eq!(instance.observe(&alert, &seen(16, Some(false)), 16 * MINUTE).1, Some(Kind::Resolved));
        assert_eq!(instance.remind(&alert, 99 * MINUTE), None);
    }

    #[test]
    fn an_end_under_silence_is_told_after_it() {
        for corrected in [false, true] {
            let mut alert = alert(0, NoData::Ok);
            let mut instance = Instance::default();
            assert_eq!(instance.observe(&alert, &seen(1, Some(true)), MINUTE).1, Some(Kind::Firing));
            alert.silenced_until = Some(5 * MINUTE);
            let silent = match corrected {
                true => instance.correct(&alert, None, 2 * MINUTE, 2 * MINUTE),
                false => instance.observe(&alert, &seen(2, Some(false)), 2 * MINUTE),
            };
            assert_eq!(silent, (Some(Transition { from: Phase::Firing, to: Phase::Resolved }), None));
            assert_eq!(instance.remind(&alert, 4 * MINUTE), None);
            assert_eq!(instance.remind(&alert, 5 * MINUTE), Some(Kind::Resolved));
            assert_eq!(instance.remind(&alert, 6 * MINUTE), None);
        }
    }

    #[test]
    fn late_rows_undo_what_was_told() {
        let alert = alert(0, NoData::Ok);
        let mut instance = Instance::default();
        instance.observe(&alert, &seen(1, Some(true)), MINUTE);
        let mut other = instance.clone();
        assert_eq!(
            instance.correct(&alert, None, 2 * MINUTE, 2 * MINUTE),
            (Some(Transition { from: Phase::Firing, to: Phase::Resolved }), Some(Kind::Correction))
        );
        assert_eq!(other.correct(&alert, Some(&seen(2, Some(true))), 2 * MINUTE, 2 * MINUTE), (None, Some(Kind::Correction)));
        assert_eq!((other.phase, other.fired.and_then(|fired| fired.window)), (Phase::Firing, Some(MINUTE)));
    }

    proptest! {
        /// Stopping anywhere, storing and going on gives the same transitions and messages as going through.
        #[test]
        fn a_restart_changes_nothing(
            rows in prop::collection::vec(prop::option::of(any::<bool>()), 0..60),
            stops in prop::collection::vec(0_usize..60, 0..6),
            for_minutes in 0_i64..4,
            no_data in prop::sample::select(vec![NoData::Ok, NoData::Alert, NoData::Keep]),
        ) {
            let alert = alert(for_minutes * MINUTE, no_data);
            let (mut through, mut stopped) = (Instance::default(), Instance::default());
            let (mut told_through, mut told_stopped) = (Vec::new(), Vec::new());
            let mut firing: i64 = 0;
            for (index, holds) in rows.iter().enumerate() {
                let minute = index as i64 + 1;
                if stops.contains(&index) {
                    let stored = serde_json::to_vec(&stopped).unwrap();
                    stopped = serde_json::from_slice(&stored).unwrap();
                }
                for (instance, told) in [(&mut through, &mut told_through), (&mut stopped, &mut told_stopped)] {
                    let (transition, kind) = instance.observe(&alert, &seen(minute, *holds), minute * MINUTE);
                    prop_assert!(transition.is_none_or(|step| step.from != step.to));
                    let reminder = instance.remind(&alert, minute * MINUTE);
                    told.extend(kind.into_iter().chain(reminder).map(|kind| (minute, kind, instance.serial)));
                }
            }
            prop_assert_eq!(&through, &stopped);
            prop_assert_eq!(&told_through, &told_stopped);
            // Firing and resolved take turns, and no number is used twice.
            for (_, kind, _) in &told_through {
                match kind {
                    Kind::Firing => { prop_assert_eq!(firing, 0); firing = 1; }
                    Kind::Resolved => { prop_assert_eq!(firing, 1); firing = 0; }
                    _ => prop_assert_eq!(firing, 1),
                }
            }
            prop_assert!(told_through.windows(2).all(|pair| pair[0].2 < pair[1].2));
        }
    }
}
