//! Queries against event tables, answered from materialized views: from state, from state and rows merged, or by a scan.
//!
//! *Place*: `Engine::run`, when parameters and NOW() are in and before DataFusion's optimizer, which would rewrite what is matched.
//!
//! *Way*: every aggregation over filters and projections of one event table ([`shape`]) is brought into normal form ([`query`])
//! and compared with each view of the table ([`prove`], with [`derive`] and [`imply`]); what the view's state has of the asked rows
//! is found out ([`cover`]); the cheapest view takes the aggregation's place ([`rewrite`]). [`report`] tells EXPLAIN, [`verify`] and
//! [`shadow`] compare the answer with the scan's.
//!
//! *Invariants*: (1) a rewrite never changes the answer: what is not proved is refused with its reason; (2) state and rows are of
//! one snapshot; (3) without views, or with `verus.route = 'scan'`, a query is left as it is.

mod cover;
mod derive;
mod imply;
mod prove;
mod query;
mod report;
mod rewrite;
mod shadow;
mod shape;
pub mod verify;

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, TableReference};
use datafusion::datasource::source_as_provider;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::LogicalPlan;

use self::cover::Cover;
use self::prove::{Proof, Prover};
use self::query::Query;
use self::rewrite::Rewrite;
use self::shape::{Found, Shape};
use crate::catalog::Maintenance;
use crate::query::Context;
use crate::query::provider::recomputed::Derived;
use crate::query::provider::view::ViewRows;
use crate::store::TableState;
use crate::view::{Spec, Version};
pub use report::{Kind, Route};
pub use shadow::{Shadow, Turn};
pub use verify::Pair;

/// The session variable that turns routing off.
pub const ROUTE: &str = "verus.route";

/// The session variable that has every routed query verified.
pub const VERIFY: &str = "verus.verify_route";

/// Why a view is not taken that could answer.
const TOO_LARGE: &str = "its sets of distinct values are too large to be put together in memory";

/// A plan after routing.
pub struct Routed {
    /// To be run.
    pub plan: LogicalPlan,
    /// One decision for each aggregation.
    pub routes: Vec<Route>,
    /// What was replaced by what.
    pub pairs: Vec<Pair>,
}

/// Whether a session has its routed queries verified.
pub fn is_verified(context: &Context) -> bool {
    context.settings.get(VERIFY).is_some_and(|verify| verify == "on")
}

/// Routes every aggregation of a plan that a view can answer. `explained` asks for all reasons.
pub fn route(plan: LogicalPlan, context: &Context, session: &Arc<SessionState>, explained: bool) -> Result<Routed> {
    let mut routes = Vec::new();
    let mut pairs = Vec::new();
    if context.settings.get(ROUTE).is_some_and(|route| route == "scan") {
        if explained {
            routes.push(Route::scan("verus.route is scan"));
        }
        return Ok(Routed { plan, routes, pairs });
    }
    let nothing = context.snapshot.views.is_empty();
    if nothing && !explained {
        return Ok(Routed { plan, routes, pairs });
    }
    let router = Router { context, session, explained };
    let mut nullable = false;
    let routed = plan.transform_down_with_subqueries(|node| {
        let replaced = match shape::find(&node)? {
            Found::Other => {
                if explained {
                    routes.extend(named_view(&node));
                }
                return Ok(Transformed::no(node));
            }
            Found::Refused(reason) => {
                routes.push(Route::scan(reason));
                None
            }
            Found::Shape(shape) => {
                let (replaced, route) = router.aggregation(&shape)?;
                routes.push(route);
                replaced.map(|(routed, spec)| {
                    let approximate = approximate(&shape);
                    pairs.push(Pair { spec, scan: node.clone(), routed: routed.clone(), keys: shape.group.len(), approximate });
                    routed
                })
            }
        };
        Ok(match replaced {
            // What is below is the aggregation's own input: nothing in it is another one.
            None => Transformed::new(node, false, TreeNodeRecursion::Jump),
            Some(replaced) => {
                let before = node.schema().fields().iter().map(|field| field.is_nullable());
                nullable |= !before.eq(replaced.schema().fields().iter().map(|field| field.is_nullable()));
                Transformed::new(replaced, true, TreeNodeRecursion::Jump)
            }
        })
    })?;
    if explained && routes.is_empty() && routed.data.exists(|node| Ok(is_event_table(node)))? {
        routes.push(Route::scan("no aggregation over one event table"));
    }
    let plan = match nullable {
        true => routed.data.transform_up_with_subqueries(|node| Ok(Transformed::yes(node.recompute_schema()?)))?.data,
        false => routed.data,
    };
    Ok(Routed { plan, routes, pairs })
}

/// The route of a view that the query itself names.
fn named_view(node: &LogicalPlan) -> Option<Route> {
    let LogicalPlan::TableScan(scan) = node else { return None };
    let provider = source_as_provider(&scan.source).ok()?;
    if let Some(derived) = provider.downcast_ref::<Derived>() {
        let view = derived.view();
        let kept = view.maintenance == Maintenance::State;
        return kept.then(|| Route { kind: Kind::View, view: Some(view.name.clone()), cover: None, rejected: Vec::new(), reason: None });
    }
    let version = provider.downcast_ref::<ViewRows>()?.version();
    let view = Some(version.spec.view.name.clone());
    Some(match version.coverage().evicted {
        None => Route { kind: Kind::View, view, cover: None, rejected: Vec::new(), reason: None },
        Some(evicted) => Route { kind: Kind::Merged, view, cover: Some(Cover::of_evicted(evicted)), rejected: Vec::new(), reason: None },
    })
}

fn is_event_table(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::TableScan(scan) if shape::table_of(scan).is_some())
}

/// For each output column whether its value is an approximation, which merging may change.
fn approximate(shape: &Shape<'_>) -> Vec<bool> {
    let approximate = |name: &str| matches!(name, "approx_percentile_cont" | "approx_percentile_cont_with_weight" | "approx_median");
    let calls = shape.calls.iter().map(|call| approximate(call.func.name()));
    shape.group.iter().map(|_| false).chain(calls).collect()
}

/// What takes an aggregation's place, and the view that answers it.
type Replacement = (LogicalPlan, Arc<Spec>);

struct Router<'a> {
    context: &'a Context,
    session: &'a Arc<SessionState>,
    explained: bool,
}

/// A view that can answer.
struct Candidate {
    version: Arc<Version>,
    relation: TableReference,
    proof: Proof,
    cover: Cover,
}

impl Candidate {
    /// The cheaper it is the less: no rows of the table rather than some, then few state rows.
    fn cost(&self) -> (Kind, u64) {
        (if self.cover.is_whole() { Kind::View } else { Kind::Merged }, self.version.state_rows())
    }
}

impl Router<'_> {
    fn aggregation(&self, shape: &Shape<'_>) -> Result<(Option<Replacement>, Route)> {
        let mut rejected = Vec::new();
        let mut candidates = self.candidates(shape, &mut rejected)?;
        candidates.sort_by_key(Candidate::cost);
        let mut candidates = candidates.into_iter();
        let (best, plan) = loop {
            let Some(best) = candidates.next() else {
                let reason = rejected.is_empty().then(|| "the table has no materialized views".to_owned());
                return Ok((None, Route { kind: Kind::Scan, view: None, cover: None, rejected, reason }));
            };
            let rewrite = Rewrite {
                shape,
                proof: &best.proof,
                cover: &best.cover,
                version: &best.version,
                relation: &best.relation,
                session: self.session,
            };
            match rewrite.plan()? {
                Some(plan) => break (best, plan),
                None => rejected.push((best.version.spec.view.name.clone(), TOO_LARGE.to_owned())),
            }
        };
        let name = best.version.spec.view.name.clone();
        if self.explained {
            rejected.extend(candidates.map(|other| {
                let reason = match (other.cost().0, best.cost().0) {
                    (Kind::Merged, Kind::View) => format!("{name} needs no rows of the table"),
                    _ => format!("{name} has no more state rows"),
                };
                (other.version.spec.view.name.clone(), reason)
            }));
        }
        let kind = best.cost().0;
        Ok((
            Some((plan, Arc::clone(&best.version.spec))),
            Route { kind, view: Some(name), cover: Some(best.cover), rejected, reason: None },
        ))
    }

    fn candidates(&self, shape: &Shape<'_>, rejected: &mut Vec<(String, String)>) -> Result<Vec<Candidate>> {
        let snapshot = &self.context.snapshot;
        let table = &shape.table;
        let views = snapshot.catalog.views_of(table.table.oid).filter_map(|view| Some((view, snapshot.views.get(&view.oid)?)));
        let mut query = None;
        let mut candidates = Vec::new();
        for (view, version) in views {
            let refused = if !view.ready {
                Some("it is being built".to_owned())
            } else if version.has_failed() {
                Some("a row failed in it, or rows were deleted from the table lately".to_owned())
            } else {
                version.spec.distrusted().map(|reason| format!("it was found wrong: {reason}"))
            };
            let outcome = match (refused, version.spec.matching()) {
                (Some(reason), _) => Err(reason),
                (None, None) => Err("views of its shape are not routed to".to_owned()),
                (None, Some(matching)) => {
                    let query = match &query {
                        Some(query) => query,
                        None => &*query.insert(Query::new(self.session, shape, matching)?),
                    };
                    self.candidate(shape, table, query, version)?
                }
            };
            match outcome {
                Ok(candidate) => candidates.push(candidate),
                Err(reason) if self.explained => rejected.push((view.name.clone(), reason)),
                Err(_) => {}
            }
        }
        Ok(candidates)
    }

    fn candidate(
        &self,
        shape: &Shape<'_>,
        table: &TableState,
        query: &Query,
        version: &Arc<Version>,
    ) -> Result<std::result::Result<Candidate, String>> {
        let spec = &version.spec;
        let Some(matching) = spec.matching() else { return Ok(Err(String::new())) };
        let relation = TableReference::bare(spec.view.name.clone());
        let prover = Prover { session: self.session, table: &table.table, query, schema: &shape.schema };
        let told = |reason: prove::Reason| if self.explained { reason.to_string() } else { String::new() };
        let proof = match prover.prove(spec, matching, &relation)? {
            Ok(proof) => proof,
            Err(reason) => return Ok(Err(told(reason))),
        };
        Ok(match cover::divide(&proof, version, table) {
            Ok(cover) => Ok(Candidate { version: Arc::clone(version), relation, proof, cover }),
            Err(reason) => Err(told(reason)),
        })
    }
}
