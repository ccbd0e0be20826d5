//! Routed queries that are run again as scans, now and then, beside the clients.
//!
//! *Place*: `Engine::run` offers every routed aggregation; one in `limits.query.verify_every` is taken, if none is under way and the
//! time that verification has used leaves room in its share (`limits.query.verify_percent` of one core's time).
//!
//! *On a difference* the view is distrusted: it answers no routed query until it is rebuilt or the server starts again. The log,
//! a metric and `verus.views` say so. A comparison that fails (too many groups, memory) says nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::verify::Pair;
use crate::clock::{Clock, Micros};
use crate::config::limits::QueryLimits;
use crate::telemetry::Metrics;

/// Decides which queries are verified.
pub struct Shadow {
    every: u64,
    percent: u64,
    seen: AtomicU64,
    running: AtomicBool,
    /// Before this time the share is used up.
    not_before: Mutex<Micros>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Shadow {
    /// As the limits say.
    pub fn new(limits: &QueryLimits, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Shadow {
        Shadow {
            every: limits.verify_every,
            percent: limits.verify_percent.clamp(1, 100),
            seen: AtomicU64::new(0),
            running: AtomicBool::new(false),
            not_before: Mutex::new(Micros::MIN),
            clock,
            metrics,
        }
    }

    /// Whether this one is to be verified now; then [`Turn`] must be kept until it is done.
    pub fn take(self: &Arc<Self>) -> Option<Turn> {
        if self.every == 0 || self.seen.fetch_add(1, Ordering::Relaxed) % self.every != self.every - 1 {
            return None;
        }
        let now = self.clock.now();
        if now < *self.not_before.lock() || self.running.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Turn { shadow: Arc::clone(self), started: now })
    }
}

/// A verification under way.
pub struct Turn {
    shadow: Arc<Shadow>,
    started: Micros,
}

impl Turn {
    /// Notes an outcome: what differs, or nothing.
    pub fn verified(&self, pair: &Pair, difference: Option<&str>) {
        self.shadow.metrics.routes_verified.inc();
        if let Some(difference) = difference {
            self.shadow.metrics.routes_wrong.inc();
            pair.spec.distrust(difference);
            tracing::warn!(
                view = pair.spec.view.name,
                difference,
                "a routed query differs from its scan: the view answers no more of them"
            );
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = self.shadow.clock.now();
        let used = now.saturating_sub(self.started).max(0);
        let pause = used.saturating_mul(100) / self.shadow.percent as i64;
        *self.shadow.not_before.lock() = now.saturating_add(pause);
        self.shadow.running.store(false, Ordering::Release);
    }
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").field("every", &self.every).finish_non_exhaustive()
    }
}
