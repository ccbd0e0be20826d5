//! Alerts: queries that are watched, and the channels over which somebody is told.
//!
//! *Place*: built and started by `server`; `command` defines alerts and channels, `query::catalogs` shows them. It reads snapshots and
//! RocksDB through the store and runs queries on the engine.
//!
//! An alert's way: [`Alerts::look`] sees that a window has closed or that EVERY is due -> [`plan`] -> [`evaluate`] -> [`lifecycle`] ->
//! one batch in the [`ledger`] -> [`outbox`] -> [`notify`] -> somebody.
//!
//! *Invariants*: (1) an alert is evaluated by one task at a time; (2) nothing here is on the way of a commit or a query; (3) after an
//! evaluation an alert rests four times as long as it took, so that each takes at most a fifth of one core.
//!
//! *On failure* an evaluation's error is kept for `verus.alerts` and the alert rests [`FAILED_REST`]; what it has not looked at it
//! looks at later.

mod backtest;
mod closings;
mod evaluate;
mod gate;
pub mod ledger;
pub mod lifecycle;
pub mod notify;
mod outbox;
pub mod plan;
mod running;
pub mod span;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Map;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::closings::Closings;
use self::ledger::{Book, Changes, Entry, Ledger, Outgoing};
use self::lifecycle::Kind;
use self::notify::guard::Guard;
use self::plan::Compiled;
use self::running::{Lane, Running};
use crate::bus::Bus;
use crate::catalog::vault::{Options, Vault};
use crate::catalog::{Alert, Catalog, Channel, ChannelKind, Oid};
use crate::clock::{Clock, Micros};
use crate::config::limits::AlertLimits;
use crate::error::{Error, Result, SqlState};
use crate::query::Engine;
use crate::store::{Snapshot, Store};
use crate::task::Spawner;
use crate::telemetry::Metrics;

/// How often it is looked whether a window has closed or an evaluation is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked for reminders.
const REMIND_EVERY: Duration = Duration::from_secs(1);

/// How long an alert rests after an evaluation that failed.
const FAILED_REST: Duration = Duration::from_secs(5);

/// An alert rests so many times as long as its evaluation took ...
const REST_FACTOR: u32 = 4;

/// ... and no longer than this, or than the evaluation: beside busy cores most of that time is waiting.
const REST_MAX: Duration = Duration::from_secs(10);

/// Evaluations at a time where cores are idle.
const IDLE_MAX: u32 = 2;

/// Evaluations at a time on threads with a share of busy cores: a tenth of one core at most is taken from clients.
const SHARED_MAX: u32 = 1;

/// What alerts are built from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Snapshots, watermarks, RocksDB.
    pub store: Arc<Store>,
    /// Runs the queries. Everything has been joined to it.
    pub engine: Arc<Engine>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runtimes.
    pub spawner: Spawner,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// NOTIFY.
    pub bus: Arc<Bus>,
    /// Seals the options of channels.
    pub vault: Arc<Vault>,
    /// Which addresses may be called.
    pub guard: Arc<Guard>,
    /// Named maxima.
    pub limits: AlertLimits,
}

/// All alerts of a server.
#[derive(Debug)]
pub struct Alerts {
    parts: Parts,
    /// Runs evaluations where cores are idle.
    idle_engine: Arc<Engine>,
    /// Runs them where none is for long.
    shared_engine: Arc<Engine>,
    ledger: Ledger,
    outbox: outbox::Outbox,
    tools: notify::Tools,
    compiled: Mutex<HashMap<Oid, Ready>>,
    status: Mutex<HashMap<Oid, Status>>,
    /// What is closed, by event table.
    closings: Mutex<HashMap<Oid, Arc<Closings>>>,
    running: Mutex<Running>,
    idle_places: Arc<Semaphore>,
    shared_places: Arc<Semaphore>,
    /// A place has become free.
    freed: Notify,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A compiled query and what it was compiled for.
#[derive(Clone, Debug)]
struct Ready {
    catalog: Arc<Catalog>,
    alert: Arc<Alert>,
    compiled: Arc<Compiled>,
}

/// What is known of an alert's evaluations since the start.
#[derive(Clone, Debug, Default)]
struct Status {
    failure: Option<Error>,
    took: Duration,
    resting_until: Option<Instant>,
    /// What was closed at the last look, as one number.
    seen: Option<u64>,
}

/// An alert as `verus.alerts` shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// How far it has looked, and its instances.
    pub book: Arc<Book>,
    /// Why the last evaluation failed.
    pub failure: Option<String>,
    /// How long the last one took.
    pub took_us: Micros,
    /// When the next one is due, for an alert with EVERY.
    pub due_at: Option<Micros>,
}

impl Alerts {
    /// Reads what is kept of alerts.
    pub fn open(parts: Parts) -> Result<Arc<Alerts>> {
        let ledger = Ledger::open(Arc::clone(parts.store.state()), parts.limits.clone())?;
        let tools = notify::Tools { guard: Arc::clone(&parts.guard), bus: Arc::clone(&parts.bus) };
        Ok(Arc::new(Alerts {
            idle_engine: parts.engine.on(parts.spawner.watching()),
            shared_engine: parts.engine.on(parts.spawner.behind()),
            ledger,
            outbox: outbox::Outbox::default(),
            tools,
            compiled: Mutex::default(),
            status: Mutex::default(),
            closings: Mutex::default(),
            running: Mutex::default(),
            idle_places: Arc::new(Semaphore::new(IDLE_MAX as usize)),
            shared_places: Arc::new(Semaphore::new(SHARED_MAX as usize)),
            freed: Notify::new(),
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
            parts,
        }))
    }

    /// Starts to watch and to deliver.
    pub fn start(self: &Arc<Self>) {
        let spawner = &self.parts.spawner;
        // On a thread of its own: an evaluation may be kept from its core while it holds what this looks at.
        let (alerts, io) = (Arc::clone(self), spawner.io_handle().clone());
        let watching = spawner.blocking(move || io.block_on(alerts.watch()));
        let delivering = spawner.io(outbox::run(Arc::clone(self), self.stop.clone()));
        self.tasks.lock().extend([watching, delivering]);
    }

    /// Ends both, and waits for evaluations that are running.
    pub async fn stop(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if task.await.is_err() {
                tracing::error!("a task of the alerts panicked");
            }
        }
        // Closed by nobody, so it is there.
        drop(self.idle_places.acquire_many(IDLE_MAX).await);
        drop(self.shared_places.acquire_many(SHARED_MAX).await);
    }

    /// A new channel. Errors: see [`notify::check`].
    pub fn channel(&self, oid: Oid, name: &str, kind: ChannelKind, given: &[(String, String)]) -> Result<Channel> {
        let mut options = Options::new();
        for (key, value) in given {
            if options.insert(key.clone(), value.clone()).is_some() {
                return Err(Error::syntax("conflicting or redundant options"));
            }
        }
        let shown = notify::check(kind, &options)?;
        Ok(Channel { oid, name: name.to_owned(), kind, shown, sealed: self.parts.vault.seal(oid, &options)? })
    }

    /// The kind and the options of a channel.
    fn options(&self, oid: Oid) -> Result<(ChannelKind, Options)> {
        let snapshot = self.parts.store.snapshot();
        let channel = snapshot.catalog.channel(oid);
        let channel = channel.ok_or_else(|| Error::new(SqlState::UNDEFINED_OBJECT, "the notification channel was dropped"))?;
        Ok((channel.kind, self.parts.vault.open(oid, &channel.sealed)?))
    }

    /// TEST NOTIFICATION CHANNEL: sends a message now. 08006 with the reason when it does not arrive.
    pub async fn test(&self, channel: &Channel) -> Result<()> {
        let at = self.parts.clock.now();
        let message = notify::Message {
            id: uuid::Uuid::new_v4().to_string(),
            kind: Kind::Test,
            alert: String::new(),
            instance: Map::new(),
            at,
            window: None,
            values: Map::new(),
            told: None,
            reason: Some(format!("TEST NOTIFICATION CHANNEL {}", channel.name)),
        };
        outbox::test(self, channel.oid, message).await
    }

    /// What BACKTEST ALERT answers.
    pub async fn backtest(&self, alert: &Alert, from: Micros, to: Micros, cancel: CancellationToken) -> Result<Vec<Entry>> {
        backtest::run(self, alert, from, to, cancel).await
    }

    /// An alert as system views show it.
    pub fn shown(&self, alert: &Alert) -> Shown {
        let book = self.ledger.book(alert.oid);
        let status = self.status.lock().get(&alert.oid).cloned().unwrap_or_default();
        let due_at =
            alert.every_us.filter(|_| alert.enabled).map(|every| book.progress.evaluated_at.map_or(0, |at| at.saturating_add(every)));
        Shown {
            book,
            failure: status.failure.map(|error| error.report().message.clone()),
            took_us: i64::try_from(status.took.as_micros()).unwrap_or(i64::MAX),
            due_at,
        }
    }

    /// The history of all alerts.
    pub fn history(&self) -> Result<Vec<Entry>> {
        self.ledger.history()
    }

    /// Messages that wait, and the newest of the others.
    pub fn messages(&self) -> Vec<Outgoing> {
        self.ledger.messages()
    }

    async fn watch(self: Arc<Self>) {
        let mut reminded = Instant::now();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The alert that is looked at first: none is always behind the others.
        let mut first = 0;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = looks.tick() => {}
                () = self.freed.notified() => {
                    self.start_due(&self.parts.store.catalog(), &mut first);
                    continue;
                }
            }
            let starved = self.running.lock().give_up(Instant::now());
            for alert in starved {
                // What was closed for it has not been looked at.
                self.status.lock().entry(alert).or_default().seen = None;
            }
            let catalog = self.parts.store.catalog();
            let remind = reminded.elapsed() >= REMIND_EVERY;
            if remind {
                reminded = Instant::now();
                self.forget(&catalog);
            }
            for alert in catalog.alerts() {
                if self.running.lock().has(alert.oid) {
                    continue;
                }
                if !alert.enabled {
                    self.keep(alert, self.disabled(alert));
                    continue;
                }
                if remind {
                    let open = self.ledger.open_instances(alert.oid);
                    self.keep(alert, evaluate::reminders(alert, open, self.parts.clock.now()));
                }
            }
            self.start_due(&catalog, &mut first);
        }
    }

    /// Starts evaluations until all places are taken, or nothing more is new.
    fn start_due(self: &Arc<Self>, catalog: &Arc<Catalog>, first: &mut usize) {
        let alerts: Vec<_> = catalog.alerts().filter(|alert| alert.enabled).collect();
        let from = *first;
        for offset in 0..alerts.len() {
            let lane = self.running.lock().usual_lane(Instant::now());
            if self.places(lane).available_permits() == 0 {
                return;
            }
            let index = (from + offset) % alerts.len();
            if !self.running.lock().has(alerts[index].oid) && self.look(catalog, alerts[index]) {
                *first = index + 1;
            }
        }
    }

    /// Starts an evaluation when something may be new; whether it did.
    fn look(self: &Arc<Self>, catalog: &Arc<Catalog>, alert: &Arc<Alert>) -> bool {
        let resting =
            self.status.lock().get(&alert.oid).is_some_and(|status| status.resting_until.is_some_and(|until| Instant::now() < until));
        if resting {
            return false;
        }
        let version = match alert.every_us {
            Some(every) => {
                let last = self.ledger.evaluated_at(alert.oid);
                if last.is_some_and(|last| self.parts.clock.now().saturating_sub(last) < every) {
                    return false;
                }
                None
            }
            None => self.version(catalog, alert),
        };
        if version.is_some() && self.status.lock().get(&alert.oid).is_some_and(|status| status.seen == version) {
            return false;
        }
        let took = self.status.lock().get(&alert.oid).map_or(Duration::ZERO, |status| status.took);
        let lane = self.running.lock().lane(took, Instant::now());
        let Ok(place) = Arc::clone(self.places(lane)).try_acquire_owned() else { return false };
        let engine = match lane {
            Lane::Idle => Arc::clone(&self.idle_engine),
            Lane::Shared => Arc::clone(&self.shared_engine),
        };
        self.status.lock().entry(alert.oid).or_default().seen = version;
        let cancel = self.stop.child_token();
        let number = self.running.lock().begin(alert.oid, lane, cancel.clone(), Instant::now());
        let (alerts, catalog, alert) = (Arc::clone(self), Arc::clone(catalog), Arc::clone(alert));
        let parts = Parts { engine: Arc::clone(&engine), ..self.parts.clone() };
        drop(engine.spawner().cpu(async move {
            let began = Instant::now();
            // Last, when the place is free.
            let _freed = Finally(|| alerts.freed.notify_one());
            let _place = place;
            // After a panic too.
            let _over = Finally(|| {
                alerts.running.lock().end(alert.oid, number);
            });
            let outcome = alerts.evaluate(&parts, &catalog, &alert, (number, cancel)).await;
            if !alerts.running.lock().end(alert.oid, number) {
                // It was given up: another one has its alert.
                return;
            }
            let took = began.elapsed();
            let mut rest = took.saturating_mul(REST_FACTOR).min(REST_MAX.max(took));
            {
                let mut all = alerts.status.lock();
                let status = all.entry(alert.oid).or_default();
                if let Err(error) = &outcome
                    && !alerts.stop.is_cancelled()
                {
                    tracing::warn!(%error, alert = alert.name, "an alert could not be evaluated");
                    rest = rest.max(FAILED_REST);
                    status.seen = None;
                }
                (status.failure, status.took, status.resting_until) = (outcome.err(), took, Some(Instant::now() + rest));
            }
        }));
        true
    }

    fn places(&self, lane: Lane) -> &Arc<Semaphore> {
        match lane {
            Lane::Idle => &self.idle_places,
            Lane::Shared => &self.shared_places,
        }
    }

    async fn evaluate(
        &self,
        parts: &Parts,
        catalog: &Arc<Catalog>,
        alert: &Arc<Alert>,
        (number, cancel): (u64, CancellationToken),
    ) -> Result<()> {
        let compiled = self.compile(catalog, alert)?;
        let closed = compiled.table.and_then(|table| self.closings(table));
        let snapshot = tokio::select! {
            snapshot = ready_snapshot(&self.parts.store, closed.as_ref().map_or(0, |closed| closed.next_lsn)) => snapshot,
            () = cancel.cancelled() => return Err(Error::new(SqlState::QUERY_CANCELED, "the evaluation was given up")),
        };
        let book = self.ledger.book(alert.oid);
        let limit = Duration::from_millis(self.parts.limits.evaluate_ms_max);
        let work = async {
            match (alert.every_us, &closed) {
                (Some(_), closed) => {
                    let changes = evaluate::now(parts, alert, &compiled, &book, closed.as_deref(), (&snapshot, cancel.clone())).await?;
                    Ok(Some(changes))
                }
                (None, Some(closed)) => evaluate::on_close(parts, alert, &compiled, &book, closed, (&snapshot, cancel.clone())).await,
                (None, None) => Ok(None),
            }
        };
        let outcome = tokio::time::timeout(limit, work).await;
        let changes = outcome.unwrap_or_else(|_| {
            cancel.cancel();
            Err(Error::new(SqlState::QUERY_CANCELED, "the evaluation took too long")
                .hint("Restrict the query, for instance to a few days."))
        })?;
        // Otherwise what is written to would be a copy.
        drop(book);
        // Dropped or changed meanwhile: what was seen is of another alert.
        let same = self.parts.store.catalog().alert(alert.oid).is_some_and(|newest| newest.enabled && newest.query == alert.query);
        if same && self.running.lock().write(alert.oid, number) {
            self.keep(alert, changes);
        }
        Ok(())
    }

    /// What is closed of a table, as of this look or the one before.
    fn closings(&self, table: Oid) -> Option<Arc<Closings>> {
        let mut all = self.closings.lock();
        if let Some(known) = all.get(&table).filter(|known| known.age() < LOOK_EVERY) {
            return Some(Arc::clone(known));
        }
        let closed = self.parts.store.closed(table)?;
        let closings = Arc::new(Closings::new(table, closed, &self.parts.store.snapshot()));
        all.insert(table, Arc::clone(&closings));
        Some(closings)
    }

    /// What is closed to an alert, as one number; none where that is not known yet.
    fn version(&self, catalog: &Arc<Catalog>, alert: &Arc<Alert>) -> Option<u64> {
        let compiled = self.compiled(catalog, alert)?;
        // A table without rows has closed nothing.
        Some(compiled.table.and_then(|table| self.closings(table)).map_or(0, |closings| closings.version(&compiled)))
    }

    fn compiled(&self, catalog: &Arc<Catalog>, alert: &Arc<Alert>) -> Option<Arc<Compiled>> {
        let mut all = self.compiled.lock();
        let ready = all.get_mut(&alert.oid).filter(|ready| Arc::ptr_eq(&ready.alert, alert))?;
        if !Arc::ptr_eq(&ready.catalog, catalog) {
            // Most changes of the catalog are about other objects.
            if !ready.compiled.sources.iter().all(|source| is_same(source.oid, &ready.catalog, catalog)) {
                return None;
            }
            ready.catalog = Arc::clone(catalog);
        }
        Some(Arc::clone(&ready.compiled))
    }

    fn compile(&self, catalog: &Arc<Catalog>, alert: &Arc<Alert>) -> Result<Arc<Compiled>> {
        if let Some(compiled) = self.compiled(catalog, alert) {
            return Ok(compiled);
        }
        let compiled = Arc::new(plan::compile(&*self.parts.engine, catalog, &alert.query, &alert.sources)?);
        let ready = Ready { catalog: Arc::clone(catalog), alert: Arc::clone(alert), compiled: Arc::clone(&compiled) };
        self.compiled.lock().insert(alert.oid, ready);
        Ok(compiled)
    }

    /// What disabling changes: instances are ok again, without a word; enabled again, the alert begins anew.
    fn disabled(&self, alert: &Alert) -> Option<Changes> {
        let book = self.ledger.book(alert.oid);
        if !book.progress.begun && book.progress.evaluated_at.is_none() {
            return None;
        }
        let now = self.parts.clock.now();
        let mut recorder = evaluate::Recorder { alert, now, changes: Changes::default() };
        for (key, instance) in &book.instances {
            let mut next = instance.clone();
            let transition = next.reset(now);
            recorder.record(key, &next, now, (transition, None), None);
            recorder.changes.instances.insert(key.clone(), next);
        }
        recorder.changes.progress = Some(ledger::Progress { evaluations: book.progress.evaluations, ..ledger::Progress::default() });
        Some(recorder.changes)
    }

    fn keep(&self, alert: &Alert, changes: Option<Changes>) {
        let Some(changes) = changes else { return };
        let told = !changes.messages.is_empty();
        if let Err(error) = self.ledger.write(alert.oid, changes, self.parts.clock.now()) {
            tracing::error!(%error, alert = alert.name, "the state of an alert could not be written: it will be evaluated again");
            self.status.lock().entry(alert.oid).or_default().seen = None;
        }
        if told {
            self.outbox.wake.notify_one();
        }
    }

    /// Drops what is kept of alerts that are gone.
    fn forget(&self, catalog: &Catalog) {
        self.closings.lock().retain(|table, _| catalog.table(*table).is_some());
        for oid in self.ledger.alerts() {
            if catalog.alert(oid).is_none() && !self.running.lock().has(oid) {
                self.compiled.lock().remove(&oid);
                self.status.lock().remove(&oid);
                if let Err(error) = self.ledger.forget(oid) {
                    tracing::error!(%error, "the state of a dropped alert could not be removed");
                }
            }
        }
    }
}

/// The newest snapshot, once it has reached an LSN: it comes after the watermarks of its commit.
async fn ready_snapshot(store: &Store, next_lsn: u64) -> Arc<Snapshot> {
    let mut news = store.news();
    loop {
        news.borrow_and_update();
        let snapshot = store.snapshot();
        // A store that has ended publishes nothing more.
        if snapshot.next_lsn >= next_lsn || news.changed().await.is_err() {
            return snapshot;
        }
    }
}

/// Whether a table or view, and what it is made of, is the same in two catalogs.
fn is_same(oid: Oid, one: &Catalog, other: &Catalog) -> bool {
    let mut open = vec![oid];
    while let Some(oid) = open.pop() {
        match (one.view(oid), other.view(oid), one.table(oid), other.table(oid)) {
            (Some(old), Some(new), ..) if Arc::ptr_eq(old, new) => open.extend(new.sources.iter().map(|source| source.oid)),
            (None, None, Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
            _ => return false,
        }
    }
    true
}

/// Runs a closure when it goes, after a panic too: nothing stays marked as under way.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
