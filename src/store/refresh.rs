//! Refreshed views: recomputed in the background when a source has changed.
//!
//! *Place*: one task, started when the server joins a [`Runner`]; `Store::commit` runs the first refresh of a new view, `Store::refresh`
//! one on demand.
//!
//! *Invariants*: (1) one refresh at a time in the whole database, in bounded memory: rows go from the query's stream to blocks; (2) a
//! result is of one snapshot, durable before it is visible, and replaces the last one whole; (3) a view whose sources have not
//! changed is not recomputed, also after a restart: its position is stored with the result (one that says which periods have ended is,
//! once a quarter of an hour); (4) of a view whose windows depend on
//! their own rows alone, those are recomputed that got rows.
//!
//! *Budget*: after a refresh the view rests for its `refresh_interval`, and at least as long as the refresh took, so that at most half
//! of one core goes into it.
//!
//! *On failure* the last result stays, the error is kept for `verus.views`, and the view rests [`FAILED_REST`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Maintenance, Oid, View};
use crate::error::{Error, Result, SqlState};
use crate::store::apply::Retired;
use crate::store::backfill::unreadable;
use crate::store::keep::keep_folded;
use crate::store::{Shared, Snapshot};
use crate::view::{Local, Position, Recomputed, Writer};

/// Runs a view's query; implemented by the query engine.
pub trait Runner: Send + Sync + fmt::Debug {
    /// The rows of a bound plan over a snapshot, within the memory of queries.
    fn run(&self, snapshot: Arc<Snapshot>, plan: LogicalPlan) -> BoxFuture<'_, Result<SendableRecordBatchStream>>;
}

/// How often it is looked for views that are behind: the least `refresh_interval`.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a view rests at least after a refresh that failed.
const FAILED_REST: Duration = Duration::from_secs(5);

/// What the refreshes share.
#[derive(Debug, Default)]
pub struct Refreshing {
    runner: OnceLock<Arc<dyn Runner>>,
    /// Held by the refresh that is running.
    turn: Arc<tokio::sync::Mutex<()>>,
    failures: Mutex<HashMap<Oid, Error>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    /// See [`keep_folded`].
    folding: Mutex<Option<JoinHandle<()>>>,
}

impl Refreshing {
    /// Why the last refresh of a view failed.
    pub fn failure(&self, view: Oid) -> Option<Error> {
        self.failures.lock().get(&view).cloned()
    }

    /// Says when to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Ends the task and waits for a refresh that is running: it stops at its next batch.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::error!("the task that refreshes views panicked");
        }
        let folding = self.folding.lock().take();
        if let Some(folding) = folding
            && folding.await.is_err()
        {
            tracing::error!("the task that moves views of operators along panicked");
        }
        drop(self.turn.lock().await);
    }
}

/// Starts the task, once.
pub fn start(shared: &Arc<Shared>, runner: Arc<dyn Runner>) {
    if shared.refresh.runner.set(runner).is_ok() {
        let task = shared.parts.spawner.io(keep_fresh(Arc::clone(shared)));
        *shared.refresh.task.lock() = Some(task);
        *shared.refresh.folding.lock() = Some(shared.parts.spawner.io(keep_folded(Arc::clone(shared))));
    }
}

async fn keep_fresh(shared: Arc<Shared>) {
    let stop = shared.refresh.stop.clone();
    let default = Duration::from_millis(shared.parts.limits.store.refresh_interval_ms);
    let mut resting: HashMap<Oid, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let snapshot = shared.published.load();
        resting.retain(|view, until| snapshot.recomputed.contains_key(view) && *until > Instant::now());
        let refreshed = snapshot.catalog.views().filter(|view| view.maintenance == Maintenance::Refreshed && view.ready);
        for view in refreshed {
            if stop.is_cancelled() {
                return;
            }
            let interval = view.refresh_us.map_or(default, |us| Duration::from_micros(us.unsigned_abs()));
            let newest = shared.published.load();
            if resting.contains_key(&view.oid) || is_recent(&shared, &newest, view.oid, interval) || !is_behind(&shared, &newest, view.oid)
            {
                continue;
            }
            let began = Instant::now();
            let outcome = refresh(&shared, view.oid).await;
            let mut rest = interval.max(2 * began.elapsed());
            if let Err(error) = outcome
                && !stop.is_cancelled()
            {
                rest = rest.max(FAILED_REST);
                tracing::warn!(%error, view = view.name, "a materialized view could not be refreshed and keeps its last result");
            }
            resting.insert(view.oid, began + rest);
        }
    }
}

/// Whether a view was refreshed within its interval: at its creation, on demand, or before a restart.
fn is_recent(shared: &Shared, snapshot: &Snapshot, view: Oid, interval: Duration) -> bool {
    let result = snapshot.recomputed.get(&view).and_then(|recomputed| recomputed.result.as_ref());
    let age_us = result.map(|result| shared.parts.clock.now().saturating_sub(result.position.refreshed_at));
    age_us.is_some_and(|us| (0..i64::try_from(interval.as_micros()).unwrap_or(i64::MAX)).contains(&us))
}

/// Whether a refreshed view's result is of other sources than the snapshot has, or of an earlier quarter of an hour where it says what
/// has ended: wherever days begin, they begin with one.
fn is_behind(shared: &Shared, snapshot: &Snapshot, view: Oid) -> bool {
    const QUARTER_US: i64 = 900_000_000;
    let Some(recomputed) = snapshot.recomputed.get(&view) else { return false };
    let quarter = |time: i64| time.div_euclid(QUARTER_US);
    recomputed.result.as_ref().is_none_or(|result| {
        let position = &result.position;
        position.sources != sources(snapshot, &recomputed.view)
            || (recomputed.reads_clock && quarter(position.refreshed_at) != quarter(shared.parts.clock.now()))
    })
}

/// The last change of every table below a view. A refreshed view counts as a table that changes with each refresh.
fn sources(snapshot: &Snapshot, view: &View) -> BTreeMap<Oid, u64> {
    let mut found = BTreeMap::new();
    let mut open: Vec<Oid> = view.sources.iter().map(|source| source.oid).chain([view.table]).collect();
    while let Some(oid) = open.pop() {
        if let Some(table) = snapshot.tables.get(&oid) {
            found.insert(oid, table.changed_lsn());
        }
        let Some(lower) = snapshot.catalog.view(oid) else { continue };
        match lower.maintenance {
            Maintenance::Refreshed => {
                let result = snapshot.recomputed.get(&oid).and_then(|recomputed| recomputed.result.as_ref());
                found.insert(oid, result.map_or(0, |result| result.position.lsn));
            }
            Maintenance::State | Maintenance::Derived => {
                open.extend(lower.sources.iter().map(|source| source.oid).chain([lower.table]));
            }
        }
    }
    found
}

/// Recomputes a view as of the newest snapshot, after the refresh that is running, and publishes the result.
pub async fn refresh(shared: &Arc<Shared>, view: Oid) -> Result<()> {
    let turn = Arc::clone(&shared.refresh.turn).lock_owned().await;
    let work = recompute(Arc::clone(shared), view);
    // The turn goes along: a statement that is cancelled does not leave a refresh behind that others do not see.
    let work = shared.parts.spawner.cpu(async move {
        let outcome = work.await;
        drop(turn);
        outcome
    });
    let outcome = work.await.map_err(|error| Error::internal(format!("a refresh was stopped: {error}"))).flatten();
    match &outcome {
        Ok(()) => drop(shared.refresh.failures.lock().remove(&view)),
        Err(error) => drop(shared.refresh.failures.lock().insert(view, error.clone())),
    }
    outcome
}

async fn recompute(shared: Arc<Shared>, oid: Oid) -> Result<()> {
    let began = Instant::now();
    let snapshot = shared.published.load();
    let gone = || Error::new(SqlState::UNDEFINED_TABLE, "the materialized view was dropped while it was refreshed");
    let recomputed = Arc::clone(snapshot.recomputed.get(&oid).ok_or_else(gone)?);
    let runner = shared.refresh.runner.get().ok_or_else(|| Error::internal("nothing runs the queries of refreshed views"))?;
    let local = recomputed.local.as_deref();
    let groups = local.map(|local| dirty(&shared, &snapshot, &recomputed, local)).transpose()?.flatten();
    let plan = match (local, groups) {
        (Some(local), Some(groups)) => local.restrict(recomputed.plan.clone(), groups)?,
        _ => recomputed.plan.clone(),
    };
    let mut writer = Writer::new(&recomputed.view, &shared.tools.blocks, local.map(|local| local.column));
    let mut rows = runner.run(Arc::clone(&snapshot), plan).await?;
    loop {
        let batch = tokio::select! {
            batch = rows.next() => batch,
            () = shared.refresh.stop.cancelled() => return Err(Error::new(SqlState::ADMIN_SHUTDOWN, "the server is shutting down")),
        };
        match batch {
            Some(batch) => writer.add(&batch.map_err(unreadable)?)?,
            None => break,
        }
    }
    let position = Position {
        lsn: snapshot.next_lsn,
        sources: sources(&snapshot, &recomputed.view),
        refreshed_at: shared.parts.clock.now(),
        took_us: i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX),
        windowed: local.is_some(),
    };
    let previous = recomputed.result.as_deref();
    let stored = Arc::new(writer.finish(position, previous, groups)?);
    let published = shared.published.update(|newest| {
        Ok(newest.recomputed.get_mut(&oid).is_some_and(|present| {
            *present = Arc::new(Recomputed { result: Some(Arc::clone(&stored)), ..Recomputed::clone(present) });
            true
        }))
    })?;
    if !published {
        shared.retire(Retired { results: vec![stored], ..Retired::default() });
        return Err(gone());
    }
    if let Some(previous) = previous {
        previous.replaced_by(&stored);
    }
    Ok(())
}

/// The groups of windows that got rows since the last result, first and last; none where everything has to be computed again: there
/// is no such result, or more has changed than that rows came.
fn dirty(shared: &Shared, snapshot: &Snapshot, recomputed: &Recomputed, local: &Local) -> Result<Option<(i64, i64)>> {
    let Some(before) = recomputed.result.as_ref().map(|result| &result.position).filter(|before| before.windowed) else { return Ok(None) };
    let mut now = sources(snapshot, &recomputed.view);
    let (Some(table), Some(from)) = (snapshot.tables.get(&local.table), before.sources.get(&local.table)) else { return Ok(None) };
    now.insert(local.table, *from);
    if now != before.sources || table.truncated_lsn >= *from || table.deleted_lsn > *from {
        return Ok(None);
    }
    let Some(times) = table.times_since(*from) else { return Ok(None) };
    local.groups(&shared.parts.binder.session_state(), times).map(Some)
}
