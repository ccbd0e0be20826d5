//! Sources: topics of Kafka whose messages become rows, each exactly once; `docs/ingestion.md` describes them for users.
//!
//! *Place*: `server` joins one [`Sources`]; `command::source` defines sources, the catalog keeps them. The protocol is `kafka`'s, decoding and
//! rules `ingest::events`', refused messages `ingest::ledger`'s, offsets `store::progress`'.
//!
//! *Way of a message*: a [`reader`] for each broker asks for what its partitions' [`lane`]s have place for; a lane decodes a
//! [`piece`] while the one before it is committed, in one transaction with the offset after it and with what was refused.
//!
//! *Invariants*: (1) a message is a row, a row of `$late`, a duplicate, a row of `verus.rejected_events` or a tombstone, exactly once, whatever
//! is killed when: the offset is part of the commit; (2) messages of a partition are committed in their order; (3) bytes in memory are
//! bounded by `limits.kafka`; a source waits for room and loses nothing; (4) where messages are gone before they are read, the source
//! stops and says so, unless it was told to go on.
//!
//! *On failure*: whatever fails ends the attempt ([`session`]); the next one begins from the committed offsets, after a time that doubles.

mod lane;
pub mod options;
mod piece;
mod reader;
mod session;
pub mod status;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::bind::Binder;
use crate::catalog::vault::Vault;
use crate::catalog::{Catalog, EventSource, Oid};
use crate::clock::Clock;
use crate::config::Limits;
use crate::error::Result;
use crate::store::Store;
use crate::task::Spawner;
use crate::telemetry::Metrics;
use options::{Given, Options};
use session::Ended;
use status::{Shown, Status};

/// Time between two looks at the catalog.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time between two measurements of the lag.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Room for refused events, which the layers above make.
pub trait RejectedRoom: std::fmt::Debug + Send + Sync {
    /// Whether more can be kept.
    fn has_room(&self) -> bool;

    /// Takes older ones out, beside the caller, where there are too many.
    fn look(&self);
}

/// What sources are built from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where rows and offsets go.
    pub store: Arc<Store>,
    /// Binds a table's rules.
    pub binder: Arc<dyn Binder>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runtimes.
    pub spawner: Spawner,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Opens what is sealed.
    pub vault: Arc<Vault>,
    /// Named maxima.
    pub limits: Limits,
}

/// What all sources share.
#[derive(Debug)]
struct Shared {
    /// Commits under way.
    places: Arc<Semaphore>,
    /// Bytes that are fetched or asked for.
    room_bytes: Arc<Semaphore>,
    rejected: OnceLock<Arc<dyn RejectedRoom>>,
}

impl Shared {
    fn room(&self) -> &dyn RejectedRoom {
        match self.rejected.get() {
            Some(room) => &**room,
            None => &Endless,
        }
    }
}

/// Before the layers above are joined nothing runs: nobody asks it.
#[derive(Debug)]
struct Endless;

impl RejectedRoom for Endless {
    fn has_room(&self) -> bool {
        true
    }

    fn look(&self) {}
}

/// A source at work.
#[derive(Debug)]
struct Running {
    parts: Arc<Parts>,
    shared: Arc<Shared>,
    source: Arc<EventSource>,
    options: Options,
    status: Arc<Status>,
    stop: CancellationToken,
}

/// A task of a source, and what it was started for.
#[derive(Debug)]
struct Task {
    source: Arc<EventSource>,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

/// All sources of a server.
#[derive(Debug)]
pub struct Sources {
    parts: Arc<Parts>,
    shared: Arc<Shared>,
    status: Mutex<HashMap<Oid, Arc<Status>>>,
    stop: CancellationToken,
    watching: Mutex<Option<JoinHandle<()>>>,
}

impl Sources {
    /// None runs yet.
    pub fn new(parts: Parts) -> Arc<Sources> {
        let limits = &parts.limits.kafka;
        let shared = Shared {
            places: Arc::new(Semaphore::new(limits.commits_max.max(1))),
            room_bytes: Arc::new(Semaphore::new(limits.in_flight_bytes_max.clamp(1, Semaphore::MAX_PERMITS))),
            rejected: OnceLock::new(),
        };
        Arc::new(Sources {
            parts: Arc::new(parts),
            shared: Arc::new(shared),
            status: Mutex::default(),
            stop: CancellationToken::new(),
            watching: Mutex::default(),
        })
    }

    /// Starts to read, and to follow the catalog.
    pub fn start(self: &Arc<Self>, rejected: Arc<dyn RejectedRoom>) {
        // Set once: a server starts its sources once.
        let _ = self.shared.rejected.set(rejected);
        *self.watching.lock() = Some(self.parts.spawner.io(Arc::clone(self).watch()));
    }

    /// Ends all of them: what was decoded is committed or read again after the next start.
    pub async fn stop(&self) {
        self.stop.cancel();
        let watching = self.watching.lock().take();
        if let Some(watching) = watching
            && watching.await.is_err()
        {
            tracing::error!("the task that watches sources panicked");
        }
    }

    /// A new source, its options sealed. 22023 where they are wrong.
    pub fn define(&self, oid: Oid, name: &str, table: Oid, given: &Given) -> Result<EventSource> {
        options::read(given)?;
        let sealed = self.parts.vault.seal(oid, given)?;
        Ok(EventSource { oid, name: name.to_owned(), table, shown: options::shown(given), sealed, paused: false })
    }

    /// The same source with other options.
    pub fn redefine(&self, source: &EventSource, changes: &[(String, String)]) -> Result<EventSource> {
        let given = options::altered(self.parts.vault.open(source.oid, &source.sealed)?, changes)?;
        Ok(EventSource { paused: source.paused, ..self.define(source.oid, &source.name, source.table, &given)? })
    }

    /// What is known of a source since the start.
    pub fn shown(&self, source: Oid) -> Shown {
        self.status.lock().get(&source).map(|status| status.shown()).unwrap_or_default()
    }

    async fn watch(self: Arc<Self>) {
        let mut tasks: HashMap<Oid, Task> = HashMap::new();
        let mut measured = Instant::now();
        loop {
            let catalog = self.parts.store.catalog();
            self.follow(&catalog, &mut tasks);
            if measured.elapsed() >= MEASURE_EVERY {
                measured = Instant::now();
                self.measure(&catalog);
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        for (_, task) in tasks {
            task.stop.cancel();
            if task.handle.await.is_err() {
                tracing::error!(source = task.source.name, "the task of a source panicked");
            }
        }
    }

    /// Starts and stops tasks, so that each source that is not paused has one for its present definition.
    fn follow(self: &Arc<Self>, catalog: &Catalog, tasks: &mut HashMap<Oid, Task>) {
        tasks.retain(|oid, task| {
            let is_current = catalog.source(*oid).is_some_and(|source| Arc::ptr_eq(source, &task.source) && !source.paused);
            if !is_current {
                task.stop.cancel();
            }
            !task.handle.is_finished()
        });
        for source in catalog.sources().filter(|source| !source.paused) {
            // The task of an earlier definition ends first.
            tasks.entry(source.oid).or_insert_with(|| {
                let stop = self.stop.child_token();
                let handle = self.parts.spawner.io(Arc::clone(self).run(Arc::clone(source), stop.clone()));
                Task { source: Arc::clone(source), stop, handle }
            });
        }
        let mut status = self.status.lock();
        if status.len() > catalog.sources().count() {
            status.retain(|oid, _| catalog.source(*oid).is_some());
        }
    }

    /// A source, from one attempt to the next.
    async fn run(self: Arc<Self>, source: Arc<EventSource>, stop: CancellationToken) {
        let status = Arc::clone(self.status.lock().entry(source.oid).or_default());
        let limits = &self.parts.limits.kafka;
        let (least, most) = (Duration::from_millis(limits.retry_ms_min.max(1)), Duration::from_millis(limits.retry_ms_max.max(1)));
        let mut delay = least;
        loop {
            let error = match self.attempt(&source, &status, &stop).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Changed) => continue,
                Err(_) if stop.is_cancelled() => return,
                Err(error) => error,
            };
            self.parts.metrics.source_failures.inc();
            // It worked in between: the failure is a new one.
            delay = if status.shown().failed { (delay * 2).min(most) } else { least };
            // Many sources whose broker comes back do not ask all at once.
            let pause = delay.mul_f64(rand::rng().random_range(0.75..1.0));
            let now = self.parts.clock.now();
            let retry_at = now.saturating_add(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX));
            if status.fail(&error, now, retry_at) {
                tracing::warn!(source = source.name, %error, "a source failed; it tries again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn attempt(&self, source: &Arc<EventSource>, status: &Arc<Status>, stop: &CancellationToken) -> Result<Ended> {
        let running = Running {
            parts: Arc::clone(&self.parts),
            shared: Arc::clone(&self.shared),
            source: Arc::clone(source),
            options: options::read(&self.parts.vault.open(source.oid, &source.sealed)?)?,
            status: Arc::clone(status),
            stop: stop.clone(),
        };
        session::run(&Arc::new(running)).await
    }

    fn measure(&self, catalog: &Catalog) {
        let snapshot = self.parts.store.snapshot();
        let lag = |source: &Arc<EventSource>| {
            let positions = snapshot.sources.get(&source.oid);
            let behind = |(partition, status): (&i32, &status::PartitionStatus)| {
                let offset = positions.and_then(|positions| positions.get(partition)).map(|position| position.offset);
                Some((status.high_watermark? - offset?).max(0))
            };
            self.shown(source.oid).partitions.iter().filter_map(behind).sum::<i64>()
        };
        let metrics = &self.parts.metrics;
        metrics.source_lag.set(catalog.sources().map(lag).sum());
        let all = self.parts.limits.kafka.in_flight_bytes_max.clamp(1, Semaphore::MAX_PERMITS);
        metrics.source_in_flight.set(all.saturating_sub(self.shared.room_bytes.available_permits()) as i64);
    }
}
