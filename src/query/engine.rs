//! The engine: DataFusion's state built once, statements bound and run on it.
//!
//! *Place*: built by `server`, shared by all sessions. What differs between sessions is in [`Context`], never here.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigNonZeroUsize;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::context::SessionState;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateDefaults, TaskContext};
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{AggregateUDF, Expr, LogicalPlan};
use datafusion::optimizer::Optimizer;
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_group_by_constant::EliminateGroupByConstant;
use datafusion::optimizer::eliminate_limit::EliminateLimit;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::propagate_empty_relation::PropagateEmptyRelation;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::push_down_limit::PushDownLimit;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::arrival;
use super::bind;
use super::distinct::SingleDistinct;
use super::error::{canceled, from_datafusion};
use super::explain;
use super::functions::{self, session::Values};
use super::operator::{self, series};
use super::resolve::Resolver;
use super::route;
use super::scope::Scope;
use super::stream;
use super::system::SystemTables;
use super::typing::planner::Postgres;
use super::watch::{Watch, watched};
use super::{Bound, Context, ExplainOptions, windows};
use crate::catalog::Catalog;
use crate::catalog::bind::{Binder, Settle};
use crate::clock::Clock;
use crate::config::limits::QueryLimits;
use crate::error::{Error, Result};
use crate::sql::Statement;
use crate::store::{Runner, Snapshot};
use crate::task::Spawner;
use crate::telemetry::{Gauge, Metrics};
use crate::types::SqlType;

/// The part of the queries' memory, as its inverse, that the partitions of a sort may set aside for merging.
const SORT_SHARE: usize = 8;

/// Rows of a batch between operators.
const BATCH_ROWS: usize = 8_192;
/// Consumers that an out-of-memory error names.
const CONSUMERS_SHOWN: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).expect("three is not zero");

/// The query engine: DataFusion with Verus's types, functions, providers and limits.
pub struct Engine {
    state: Arc<SessionState>,
    task: Arc<TaskContext>,
    short: Arc<Optimizer>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    spawner: Spawner,
    clock: Arc<dyn Clock>,
    system: OnceLock<Arc<dyn SystemTables>>,
    /// Streams of the operators of running plans.
    streams: Gauge,
    shadow: OnceLock<Arc<route::Shadow>>,
    limits: QueryLimits,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that spills to `spill_dir`, which is its own.
    pub fn new(limits: &QueryLimits, spill_dir: &Path, spawner: &Spawner, clock: Arc<dyn Clock>, metrics: &Metrics) -> Result<Arc<Engine>> {
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![spill_dir.to_path_buf()]))
            .with_max_temp_directory_size(limits.spill_bytes_max);
        let pool = TrackConsumersPool::new(FairSpillPool::new(limits.memory_bytes), CONSUMERS_SHOWN);
        let runtime = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(disk)
            .with_memory_pool(Arc::new(pool))
            .build_arc()
            .map_err(from_datafusion)?;
        let builder = SessionStateBuilder::new()
            .with_config(configuration(limits.memory_bytes)?)
            .with_runtime_env(runtime)
            .with_query_planner(Arc::new(series::plan::Planner { points_max: limits.series_points_max }))
            .with_optimizer_rules(super::distinct::rules());
        let mut state = functions::register(builder).build();
        // Equal functions, each with settings of its own, would be compared by the text of every setting.
        state.execution_props_mut().config_options = Some(Arc::clone(state.config_options()));
        let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(Postgres)];
        planners.extend(SessionStateDefaults::default_expr_planners());
        let task = state.task_ctx();
        Ok(Arc::new(Engine {
            state: Arc::new(state),
            task,
            short: Arc::new(short_optimizer()),
            planners,
            spawner: spawner.clone(),
            clock,
            system: OnceLock::new(),
            streams: metrics.plan_streams.clone(),
            shadow: OnceLock::new(),
            limits: limits.clone(),
        }))
    }

    /// The same engine, whose queries run where `spawner` says. To be made when everything has been joined.
    pub fn on(&self, spawner: Spawner) -> Arc<Engine> {
        Arc::new(Engine {
            state: Arc::clone(&self.state),
            task: Arc::clone(&self.task),
            short: Arc::clone(&self.short),
            planners: self.planners.clone(),
            spawner,
            clock: Arc::clone(&self.clock),
            system: self.system.clone(),
            streams: self.streams.clone(),
            shadow: self.shadow.clone(),
            limits: self.limits.clone(),
        })
    }

    /// Joins the system schemas, once.
    pub fn set_system(&self, system: Arc<dyn SystemTables>) {
        // A second call is a programming error without harm: the first one stays.
        let _ = self.system.set(system);
    }

    /// Joins the metrics, once: from then on some routed queries are verified beside the clients.
    pub fn set_metrics(&self, metrics: &Arc<Metrics>) {
        // As above.
        let _ = self.shadow.set(Arc::new(route::Shadow::new(&self.limits, Arc::clone(&self.clock), Arc::clone(metrics))));
    }

    /// DataFusion's state, for scans that plan for themselves.
    pub fn state(&self) -> &Arc<SessionState> {
        &self.state
    }

    /// What running plans share: the memory pool above all.
    pub(super) fn task(&self) -> &Arc<TaskContext> {
        &self.task
    }

    /// The server's clock.
    pub(super) fn now(&self) -> crate::clock::Micros {
        self.clock.now()
    }

    /// Where plans run.
    pub fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Types a query (or EXPLAIN of one). `declared` are parameter types that the client gave (none where it left them open).
    pub fn bind(&self, context: &Context, statement: &Statement, declared: &[Option<SqlType>]) -> Result<Bound> {
        match statement {
            Statement::Query(query) => {
                let scope = self.scope(&context.snapshot.catalog, Some(context));
                guarded(|| bind::query(&scope, query, declared))
            }
            Statement::Explain(explain) => {
                let mut bound = match explain.statement.as_ref() {
                    Statement::Query(_) => self.bind(context, &explain.statement, declared)?,
                    _ => return Err(Error::unsupported("EXPLAIN is supported for queries only")),
                };
                bound.explain = Some(ExplainOptions { analyze: explain.analyze, verbose: explain.verbose, route: explain.route });
                bound.schema = bind::explain_schema();
                Ok(bound)
            }
            _ => Err(Error::internal("a statement that is no query was given to the query engine")),
        }
    }

    /// Optimizes and starts a plan. The stream ends with an error when `cancel` fires; dropping it stops the plan.
    pub async fn run(
        &self,
        context: &Context,
        bound: &Bound,
        parameters: &[ScalarValue],
        cancel: CancellationToken,
    ) -> Result<SendableRecordBatchStream> {
        let plan = self.resolved(context, bound, parameters)?;
        let (state, short, explained) = (Arc::clone(&self.state), Arc::clone(&self.short), bound.explain);
        // Planning recurses and calculates: it has the cpu runtime's deep stack, and is cut off like the run itself.
        let planner = Planner { state, short, task: Arc::clone(&self.task), groups_max: self.limits.verify_groups_max };
        let (asking, shadow, spawner) = (context.clone(), self.shadow.get().cloned(), self.spawner.clone());
        let mut planning = self.spawner.cpu(async move {
            let routed = guarded(|| route::route(plan, &asking, &planner.state, explained.is_some()).map_err(from_datafusion))?;
            if explained.is_none() && !routed.pairs.is_empty() {
                if route::is_verified(&asking) {
                    planner.verify(&routed.pairs).await?;
                } else if let Some(turn) = shadow.and_then(|shadow| shadow.take()) {
                    let (planner, pairs) = (planner.clone(), routed.pairs);
                    // The snapshot stays as long as it is read.
                    let held = Arc::clone(&asking.snapshot);
                    drop(spawner.cpu(async move {
                        planner.shadow(&turn, &pairs).await;
                        drop(held);
                    }));
                }
            }
            let plan = guarded(|| arrival::ordered(routed.plan).map_err(from_datafusion))?;
            let (logical, physical) = physical(&planner.state, &planner.short, plan).await?;
            Ok::<_, Error>((logical, physical, routed.routes))
        });
        let (logical, physical, routes) = tokio::select! {
            planned = &mut planning => planned.map_err(|failure| match failure.is_cancelled() {
                true => canceled(),
                false => Error::internal("planning the query ended by a panic"),
            })??,
            () = cancel.cancelled() => {
                planning.abort();
                return Err(canceled());
            }
        };
        let watch = Watch { cancel: cancel.child_token(), streams: self.streams.clone() };
        let physical = match explained {
            Some(options) if !options.analyze => physical,
            _ => watched(physical, &watch).map_err(from_datafusion)?,
        };
        let schema = SchemaRef::clone(&bound.schema);
        let input = match explained {
            Some(options) => {
                let routes = routes.iter().flat_map(route::Route::lines).collect();
                explain::stream(options, logical, physical, routes, Arc::clone(&self.task), SchemaRef::clone(&schema))
            }
            None => {
                let _runtime = self.spawner.cpu_handle().enter();
                execute_stream(physical, Arc::clone(&self.task)).map_err(from_datafusion)?
            }
        };
        Ok(stream::start(input, schema, Arc::clone(&context.snapshot), &self.spawner, cancel, watch.cancel))
    }

    pub(super) fn resolved(&self, context: &Context, bound: &Bound, parameters: &[ScalarValue]) -> Result<LogicalPlan> {
        let resolver = Resolver {
            values: Some(Values {
                now: context.now,
                time_zone: &context.time_zone,
                user: &context.user,
                backend: context.backend,
                settings: &context.settings,
            }),
            time_zone: &context.time_zone,
            parameters,
            relations: Some((context, &self.state, self.system.get())),
        };
        guarded(|| resolver.plan(bound.plan.clone()).and_then(windows::lower).map_err(from_datafusion))
    }

    fn scope<'a>(&'a self, catalog: &'a Arc<Catalog>, context: Option<&'a Context>) -> Scope<'a> {
        Scope { state: &self.state, planners: &self.planners, catalog, context, system: self.system.get() }
    }
}

impl Binder for Engine {
    fn bind_query(&self, catalog: &Arc<Catalog>, query: &str) -> Result<LogicalPlan> {
        let scope = self.scope(catalog, None);
        guarded(|| bind::stored_query(&scope, query))
    }

    fn bind_expressions(
        &self,
        schema: &SchemaRef,
        expressions: &[String],
        targets: &[Option<DataType>],
    ) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        let catalog = Arc::new(Catalog::default());
        let scope = self.scope(&catalog, None);
        let now = self.clock.now();
        guarded(|| bind::stored_expressions(&scope, schema, expressions, targets, now))
    }

    fn session_state(&self) -> SessionState {
        self.state.as_ref().clone()
    }

    fn kept(&self, function: &AggregateUDF) -> Option<Arc<AggregateUDF>> {
        operator::kept(function)
    }

    fn settle(&self, function: &AggregateUDF, arguments: &[Arc<dyn PhysicalExpr>], types: &[FieldRef]) -> Option<Arc<dyn Settle>> {
        operator::settle(function, arguments, types)
    }
}

impl Runner for Engine {
    fn run(&self, snapshot: Arc<Snapshot>, plan: LogicalPlan) -> BoxFuture<'_, Result<SendableRecordBatchStream>> {
        let schema = SchemaRef::new(plan.schema().as_arrow().clone());
        let context = Context {
            snapshot,
            now: self.clock.now(),
            time_zone: crate::types::UTC.to_owned(),
            user: "verus".to_owned(),
            backend: 0,
            settings: Arc::default(),
        };
        let bound = Bound { plan, schema, parameters: Vec::new(), explain: None };
        Box::pin(async move { Engine::run(self, &context, &bound, &[], CancellationToken::new()).await })
    }
}

/// A panic of the planner is an error of one statement.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("planning the query ended by a panic")))
}

/// What planning needs, apart from the engine.
#[derive(Clone)]
struct Planner {
    state: Arc<SessionState>,
    short: Arc<Optimizer>,
    task: Arc<TaskContext>,
    groups_max: usize,
}

impl Planner {
    /// How a routed aggregation differs from the scan that it replaces.
    async fn difference(&self, pair: &route::Pair) -> Result<Option<String>> {
        let (_, scan) = physical(&self.state, &self.short, pair.scan.clone()).await?;
        let (_, routed) = physical(&self.state, &self.short, pair.routed.clone()).await?;
        route::verify::compare(pair, scan, routed, &self.task, self.groups_max).await
    }

    /// XX001 when a routed aggregation differs.
    async fn verify(&self, pairs: &[route::Pair]) -> Result<()> {
        for pair in pairs {
            if let Some(difference) = self.difference(pair).await? {
                return Err(route::verify::mismatch(&pair.spec.view.name, &difference));
            }
        }
        Ok(())
    }

    async fn shadow(&self, turn: &route::Turn, pairs: &[route::Pair]) {
        for pair in pairs {
            match self.difference(pair).await {
                Ok(difference) => turn.verified(pair, difference.as_deref()),
                Err(error) => tracing::debug!(%error, "a routed query could not be verified"),
            }
        }
    }
}

async fn physical(state: &SessionState, short: &Optimizer, plan: LogicalPlan) -> Result<(LogicalPlan, Arc<dyn ExecutionPlan>)> {
    let optimizer = if is_simple(&plan)? { short } else { state.optimizer() };
    let logical = optimizer.optimize(plan, state, |_, _| {}).map_err(from_datafusion)?;
    let physical = state.query_planner().create_physical_plan(&logical, state).await.map_err(from_datafusion)?;
    Ok((logical, physical))
}

/// One relation, filtered, grouped, sorted, cut: no joins, no subqueries, nothing that the rules left out of
/// [`short_optimizer`] could change.
fn is_simple(plan: &LogicalPlan) -> Result<bool> {
    let complex = plan.exists(|plan| {
        let simple = matches!(
            plan,
            LogicalPlan::Projection(_)
                | LogicalPlan::Filter(_)
                | LogicalPlan::Aggregate(_)
                | LogicalPlan::Sort(_)
                | LogicalPlan::Limit(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::TableScan(_)
                | LogicalPlan::EmptyRelation(_)
                | LogicalPlan::Values(_)
                | LogicalPlan::Distinct(_)
                | LogicalPlan::Window(_)
                | LogicalPlan::Union(_)
                | LogicalPlan::Unnest(_)
        );
        let mut subquery = false;
        plan.apply_expressions(|expression| {
            subquery |= expression.exists(|expression| {
                Ok(matches!(
                    expression,
                    Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::Unnest(_)
                ))
            })?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(!simple || subquery)
    });
    complex.map(|complex| !complex).map_err(from_datafusion)
}

/// DataFusion's rules, in its order, that apply to a simple plan: planning is most of a dashboard query's time.
fn short_optimizer() -> Optimizer {
    Optimizer::with_rules(vec![
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateLimit::new()),
        Arc::new(PropagateEmptyRelation::new()),
        Arc::new(PushDownLimit::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(SingleDistinct::default()),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(OptimizeProjections::new()),
    ])
}

fn configuration(memory_bytes: usize) -> Result<SessionConfig> {
    let mut config =
        SessionConfig::new().with_batch_size(BATCH_ROWS).with_information_schema(false).with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    options.execution.time_zone = Some(crate::types::UTC.to_owned());
    // Each partition of each sort sets this aside: together they must leave most of the memory to what is sorted.
    let set_aside = memory_bytes / (SORT_SHARE * options.execution.target_partitions.max(1));
    options.execution.sort_spill_reservation_bytes = options.execution.sort_spill_reservation_bytes.min(set_aside);
    // A file a batch. Repartitioning reads its oldest spill file only: of two that are open it can wait for ever for one that nobody
    // goes on writing, while the batch that it needs is in the other (apache/datafusion#24883). One that is written at once is complete.
    options.execution.max_spill_file_size_bytes = ConfigNonZeroUsize::try_new(1).map_err(from_datafusion)?;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    options.execution.parquet.bloom_filter_on_read = true;
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = true;
    options.sql_parser.default_null_ordering = "nulls_max".to_owned();
    Ok(config)
}
