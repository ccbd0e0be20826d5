//! Following a view: its snapshot, then the groups that change, commit after commit.
//!
//! *Place*: `command::subscribe` starts it for SUBSCRIBE and for HTTP; the comparing is `view`'s.
//!
//! *How*: a follower holds the version of the view that its reader has been shown. When the store publishes a snapshot it compares
//! with the newest version and gives out what differs, then a progress row. While the reader is slow it waits with what it is about to
//! send; snapshots published meanwhile are skipped, the next comparison covers them. Where no state tells what has changed (sessions, operators,
//! derived and refreshed views) it holds the rows themselves, reads the view again and compares.
//!
//! *Invariants*: (1) rows that come before a progress row of LSN n, put over the snapshot, are the view as of n; (2) an unchanged
//! group is not sent again; (3) a follower holds two versions of one view, or its rows twice, at most, and never delays a commit; (4) it ends
//! with an error when its view is dropped (42P01) or the store closes (57P01).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, StringViewArray, new_null_array};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Volatility};
use datafusion::optimizer::Optimizer;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::differ::Differ;
use super::error::from_datafusion;
use super::{Bound, Context, Engine, stream};
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::store::{Snapshot, Store};
use crate::telemetry::Metrics;
use crate::types::SqlType;
use crate::view::{ChangeKind, Changed, Changes, Selection, Since, Stored, Version};

/// Progress that brings no changes is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A follower whose comparing takes long rests as long, up to this: it costs half a core at most.
const REST_MAX: Duration = Duration::from_millis(100);

/// The same of one that reads the view again.
const READ_REST_MAX: Duration = Duration::from_secs(60);

/// What is followed, and from where.
#[derive(Clone, Debug)]
pub struct Follow {
    /// The view.
    pub view: Oid,
    /// What comes first.
    pub start: Start,
    /// Whether progress rows are sent.
    pub progress: bool,
    /// It ends when everything below this LSN has been sent.
    pub up_to: Option<u64>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Every group as of the newest snapshot.
    Snapshot,
    /// Nothing: only what changes from now on.
    Newest,
    /// The groups that have changed since an LSN.
    Since(u64),
}

/// What a follower needs beside the engine.
#[derive(Debug)]
pub struct Tools {
    /// Where snapshots come from.
    pub store: Arc<Store>,
    /// Counts what is sent.
    pub metrics: Arc<Metrics>,
    /// Its place among the subscribers, free again at its end.
    pub place: OwnedSemaphorePermit,
}

/// `lsn` and `kind`, then the view's columns.
pub fn schema(view: &Schema) -> SchemaRef {
    let own = [SqlType::BigInt.field("lsn", false), SqlType::Text.field("kind", false)];
    let columns = view.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(own.into_iter().chain(columns).collect::<Vec<_>>()))
}

impl Engine {
    /// Follows a view. `bound` is `SELECT * FROM view [WHERE ...]`; `context` holds the snapshot to start from. The stream ends
    /// with an error when `cancel` fires; dropping it ends the follower.
    pub async fn follow(
        &self,
        context: Context,
        bound: &Bound,
        follow: Follow,
        tools: Tools,
        cancel: CancellationToken,
    ) -> Result<SendableRecordBatchStream> {
        let mut news = tools.store.news();
        let counted = *news.borrow_and_update();
        // What was published since the context was made is not news to come.
        news.mark_changed();
        let snapshot = Arc::clone(&context.snapshot);
        let lsn = snapshot.next_lsn;
        if let Start::Since(since) = follow.start
            && since > lsn
        {
            return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("from_lsn {since} is in the future"))
                .detail(format!("The newest LSN is {lsn}.")));
        }
        let basis = Basis::of(&snapshot, follow.view)?;
        let (told, sending) = match &basis {
            Basis::State(version) => self.follow_state(&context, bound, version, &follow, cancel.clone()).await?,
            Basis::Rows(..) => self.follow_rows(context, bound, &follow, cancel.clone()).await?,
        };
        tools.metrics.subscribers.inc();
        let schema = schema(&bound.schema);
        let follower = Follower {
            pool: Arc::clone(self.task().memory_pool()),
            schema: Arc::clone(&schema),
            view: follow.view,
            name: name_of(&snapshot, follow.view),
            progress: follow.progress,
            up_to: follow.up_to,
            told,
            news,
            counted,
            shown: (basis, lsn),
            sending,
            reported: 0,
            reported_at: Instant::now(),
            urgent: true,
            worked: Duration::ZERO,
            tools,
        };
        let batches =
            futures::stream::try_unfold(follower, |mut follower| async move { Ok(follower.next().await?.map(|batch| (batch, follower))) });
        let input = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), batches.map_err(|error: Error| error.into())));
        let operators = cancel.child_token();
        Ok(stream::start(input, schema, (), self.spawner(), cancel, operators))
    }

    async fn follow_state(
        &self,
        context: &Context,
        bound: &Bound,
        version: &Arc<Version>,
        follow: &Follow,
        cancel: CancellationToken,
    ) -> Result<(Told, Sending)> {
        let selection = Arc::new(self.selection(context, bound, version)?);
        // What cannot be followed is refused here, not at its first change.
        version.changes(Since::Version(Arc::clone(version), context.snapshot.next_lsn), &selection, self.reservation())?;
        let sending = match follow.start {
            Start::Newest => Sending::Nothing,
            Start::Snapshot => Sending::Snapshot(self.run(context, bound, &[], cancel).await?),
            Start::Since(since) => Sending::Changes(version.changes(Since::Lsn(since), &selection, self.reservation())?),
        };
        Ok((Told::State(selection), sending))
    }

    async fn follow_rows(&self, context: Context, bound: &Bound, follow: &Follow, cancel: CancellationToken) -> Result<(Told, Sending)> {
        if let Some(filter) = condition(&bound.plan)? {
            check(&filter.predicate)?;
        }
        if let Start::Since(since) = follow.start
            && since < context.snapshot.next_lsn
        {
            let name = name_of(&context.snapshot, follow.view);
            let message = format!("changes of materialized view \"{name}\" since then cannot be told");
            return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                .detail("No state is kept of it that tells what has changed.")
                .hint("Subscribe anew, with its snapshot."));
        }
        let mut differ = Differ::new(&bound.schema, self.reservation())?;
        let rows = self.run(&context, bound, &[], cancel.clone()).await?;
        let sending = match follow.start {
            Start::Snapshot => Sending::Snapshot(rows),
            Start::Newest | Start::Since(_) => {
                differ.read(rows).await?;
                differ.settle();
                Sending::Nothing
            }
        };
        let Context { time_zone, user, backend, settings, .. } = context;
        // A snapshot is held while it is read alone.
        let at = move |snapshot, now| Context {
            snapshot,
            now,
            time_zone: time_zone.clone(),
            user: user.clone(),
            backend,
            settings: Arc::clone(&settings),
        };
        let engine = self.on(self.spawner().clone());
        let reading = Reading { engine, at: Box::new(at), bound: bound.clone(), cancel, differ };
        Ok((Told::Rows(Box::new(reading)), sending))
    }

    fn reservation(&self) -> MemoryReservation {
        MemoryConsumer::new("Subscription").register(self.task().memory_pool())
    }

    /// The condition of `SELECT * FROM view WHERE condition`, for state and for output.
    fn selection(&self, context: &Context, bound: &Bound, version: &Version) -> Result<Selection> {
        let plan = self.resolved(context, bound, &[])?;
        let simplify = Optimizer::with_rules(vec![Arc::new(SimplifyExpressions::new())]);
        let plan = simplify.optimize(plan, self.state().as_ref(), |_, _| {}).map_err(from_datafusion)?;
        let Some(filter) = condition(&plan)? else { return Selection::new(version, self.state(), &[], None) };
        check(&filter.predicate)?;
        let columns = filter.input.schema();
        if columns.fields().len() != version.spec.schema().fields().len() {
            return Err(Error::internal("the condition of a subscription is not over the view's columns"));
        }
        let predicate = self.state().create_physical_expr(filter.predicate.clone(), columns).map_err(from_datafusion)?;
        let conjuncts: Vec<Expr> = split_conjunction(&filter.predicate).into_iter().cloned().collect();
        Selection::new(version, self.state(), &conjuncts, Some(predicate))
    }
}

/// Refuses conditions that could be true now and false later for the same row.
fn check(condition: &Expr) -> Result<()> {
    let mut refused = None;
    condition
        .apply(|node| {
            refused = match node {
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => Some("a subquery"),
                Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Volatile => Some("a volatile function"),
                _ => None,
            };
            Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
        .map_err(from_datafusion)?;
    match refused {
        Some(what) => Err(Error::unsupported(format!("{what} in the condition of SUBSCRIBE is not supported"))),
        None => Ok(()),
    }
}

/// The filter of `SELECT * FROM view WHERE condition`.
fn condition(plan: &LogicalPlan) -> Result<Option<Filter>> {
    let mut found = None;
    plan.apply(|node| {
        if let LogicalPlan::Filter(filter) = node {
            found = Some(filter.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(from_datafusion)?;
    Ok(found)
}

fn name_of(snapshot: &Snapshot, view: Oid) -> String {
    snapshot.catalog.view(view).map(|view| view.name.clone()).unwrap_or_default()
}

/// What a view's rows are made of: where it is the same, so are they.
#[derive(Clone, Debug)]
enum Basis {
    /// State that tells what has changed.
    State(Arc<Version>),
    /// The rows have to be read: state of another shape, the last result, or everything as of an LSN.
    Rows(Option<Arc<Version>>, Option<Arc<Stored>>, u64),
}

impl Basis {
    fn of(snapshot: &Snapshot, view: Oid) -> Result<Basis> {
        if let Some(recomputed) = snapshot.recomputed.get(&view) {
            return Ok(match &recomputed.result {
                Some(result) => Basis::Rows(None, Some(Arc::clone(result)), 0),
                None => Basis::Rows(None, None, snapshot.next_lsn),
            });
        }
        let version = snapshot.views.get(&view).cloned().ok_or_else(|| Error::internal("a view without state"))?;
        // A new fragment can join sessions into one with another start, and a change of an entity can change many rows.
        Ok(match version.spec.upper().is_some() || version.spec.has_sessions() {
            true => Basis::Rows(Some(version), None, 0),
            false => Basis::State(version),
        })
    }

    fn is(&self, other: &Basis) -> bool {
        let same = |one: &Option<Arc<Version>>, other: &Option<Arc<Version>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        match (self, other) {
            (Basis::State(one), Basis::State(other)) => Arc::ptr_eq(one, other),
            (Basis::Rows(version, None, lsn), Basis::Rows(other, None, newer)) => same(version, other) && lsn == newer,
            (Basis::Rows(_, Some(one), _), Basis::Rows(_, Some(other), _)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// How changes are told.
enum Told {
    State(Arc<Selection>),
    Rows(Box<Reading>),
}

/// A view that is read again.
struct Reading {
    engine: Arc<Engine>,
    /// The session's context with a snapshot and its time.
    at: Box<dyn Fn(Arc<Snapshot>, Micros) -> Context + Send>,
    bound: Bound,
    cancel: CancellationToken,
    differ: Differ,
}

/// What is being given out.
enum Sending {
    Nothing,
    Snapshot(SendableRecordBatchStream),
    Changes(Changes),
    /// What a [`Differ`] has found.
    Differences,
}

/// See the module.
struct Follower {
    tools: Tools,
    pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool>,
    schema: SchemaRef,
    view: Oid,
    name: String,
    progress: bool,
    up_to: Option<u64>,
    told: Told,
    news: watch::Receiver<u64>,
    /// Of `news`, when `shown` was loaded.
    counted: u64,
    /// What the reader has been shown once `sending` is through, and its LSN.
    shown: (Basis, u64),
    sending: Sending,
    /// LSN of the last progress row.
    reported: u64,
    reported_at: Instant,
    /// The next progress row is not to wait.
    urgent: bool,
    /// What the last comparison took.
    worked: Duration,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tools.metrics.subscribers.dec();
    }
}

impl Follower {
    /// The next rows; none at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            match &mut self.sending {
                Sending::Snapshot(stream) => match stream.try_next().await.map_err(from_datafusion)? {
                    Some(batch) if batch.num_rows() == 0 => {}
                    Some(batch) => {
                        if let Told::Rows(reading) = &mut self.told {
                            reading.differ.add(&batch)?;
                        }
                        return self.labelled("snapshot", batch.columns(), batch.num_rows()).map(Some);
                    }
                    None => {
                        if let Told::Rows(reading) = &mut self.told {
                            reading.differ.settle();
                        }
                        self.sending = Sending::Nothing;
                    }
                },
                Sending::Differences => {
                    let Told::Rows(reading) = &mut self.told else { return Err(Error::internal("differences of no rows")) };
                    let Some(changed) = reading.differ.next()? else {
                        self.sending = Sending::Nothing;
                        continue;
                    };
                    return self.changed(&changed).map(Some);
                }
                Sending::Changes(changes) => {
                    let started = Instant::now();
                    let changed = changes.next();
                    self.worked += started.elapsed();
                    let Some(changed) = changed.transpose()? else {
                        self.sending = Sending::Nothing;
                        continue;
                    };
                    return self.changed(&changed).map(Some);
                }
                Sending::Nothing => {
                    if let Some(report) = self.report()? {
                        return Ok(Some(report));
                    }
                    if self.up_to.is_some_and(|up_to| self.shown.1 >= up_to && (!self.progress || self.reported >= up_to)) {
                        return Ok(None);
                    }
                    self.wait().await?;
                }
            }
        }
    }

    /// A progress row, when one is due.
    fn report(&mut self) -> Result<Option<RecordBatch>> {
        let lsn = self.shown.1;
        let last = self.up_to.is_some_and(|up_to| lsn >= up_to);
        let due = self.urgent || last || self.reported_at.elapsed() >= PROGRESS_EVERY;
        // State that was replaced (REFRESH) brings changes without a commit: progress is told once more.
        if !self.progress || (lsn <= self.reported && !self.urgent) || !due {
            return Ok(None);
        }
        (self.reported, self.reported_at, self.urgent) = (lsn, Instant::now(), false);
        let columns: Vec<ArrayRef> = self.schema.fields()[2..].iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        self.labelled("progress", &columns, 1).map(Some)
    }

    /// Waits for a snapshot, or until progress is to be told.
    async fn wait(&mut self) -> Result<()> {
        let most = if matches!(self.told, Told::State(_)) { REST_MAX } else { READ_REST_MAX };
        let rest = std::mem::take(&mut self.worked).min(most);
        if rest >= Duration::from_millis(1) {
            tokio::time::sleep(rest).await;
        }
        let owed = self.progress && self.shown.1 > self.reported;
        let until = tokio::time::Instant::from_std(self.reported_at + PROGRESS_EVERY);
        tokio::select! {
            biased;
            news = self.news.changed() => news.map_err(|_| Error::new(SqlState::ADMIN_SHUTDOWN, "the server is shutting down"))?,
            () = tokio::time::sleep_until(until), if owed => return Ok(()),
        }
        self.look().await
    }

    /// Compares with the newest snapshot.
    async fn look(&mut self) -> Result<()> {
        let count = *self.news.borrow_and_update();
        self.tools.metrics.snapshots_skipped.inc_by(count.saturating_sub(self.counted + 1));
        self.counted = count;
        let snapshot = self.tools.store.snapshot();
        if snapshot.catalog.view(self.view).is_none() {
            return Err(Error::new(SqlState::UNDEFINED_TABLE, format!("materialized view \"{}\" was dropped", self.name)));
        }
        let (basis, lsn) = (Basis::of(&snapshot, self.view)?, snapshot.next_lsn);
        if !basis.is(&self.shown.0) {
            let started = Instant::now();
            match (&mut self.told, &self.shown.0, &basis) {
                (Told::State(selection), Basis::State(shown), Basis::State(version)) => {
                    let since = Since::Version(Arc::clone(shown), self.shown.1);
                    let reservation = MemoryConsumer::new("Subscription").register(&self.pool);
                    let changes = version.changes(since, selection, reservation)?;
                    if !changes.is_empty() {
                        self.sending = Sending::Changes(changes);
                    }
                }
                (Told::Rows(reading), ..) => {
                    let Reading { engine, at, bound, cancel, differ } = reading.as_mut();
                    let context = at(snapshot, engine.now());
                    differ.read(engine.run(&context, bound, &[], cancel.clone()).await?).await?;
                    differ.compare()?;
                    self.sending = Sending::Differences;
                }
                _ => return Err(Error::internal("a view is kept in another way than before")),
            }
            self.worked += started.elapsed();
        }
        self.shown = (basis, lsn);
        Ok(())
    }

    fn changed(&mut self, changed: &Changed) -> Result<RecordBatch> {
        self.urgent = true;
        let kind = match changed.change {
            ChangeKind::Update => "update",
            ChangeKind::Delete => "delete",
        };
        self.labelled(kind, changed.rows.columns(), changed.rows.num_rows())
    }

    /// Rows with their LSN and kind in front.
    fn labelled(&self, kind: &str, columns: &[ArrayRef], count: usize) -> Result<RecordBatch> {
        if kind != "progress" {
            self.tools.metrics.changes_sent.inc_by(count as u64);
        }
        let lsn: ArrayRef = Arc::new(Int64Array::from_value(i64::try_from(self.shown.1).unwrap_or(i64::MAX), count));
        let kind: ArrayRef = Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n(kind, count)));
        let columns = [lsn, kind].into_iter().chain(columns.iter().cloned()).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| Error::internal(error.to_string()))
    }
}
