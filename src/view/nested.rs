//! An aggregate over an aggregate: the groups of the lower one are kept, the upper one is what the view shows.
//!
//! *Place*: `compile` takes such a definition apart; `query::provider` reads the view by what [`Upper::over`] gives.
//!
//! Operators that follow entities (FUNNEL, COHORT_ANALYSIS, ATTRIBUTION) are lowered to an aggregation by entity and to another one over
//! the entities' results. The lower one is kept as any aggregation: a state an entity, changed by the rows that come, corrected by late
//! and by deleted ones. What is above it, down to what depends on the clock, is computed from the entities.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableSource};

use super::layer::Layer;

/// The aggregates by entity of the operators, by name.
const ENTITY_FUNCTIONS: [&str; 3] = ["funnel_path", "cohort_rows", "attributed"];

/// What the groups are called in a plan: no relation of a user has such a name.
const GROUPS: &str = "\u{1}groups";

/// A view's query above the groups that are kept.
#[derive(Debug)]
pub struct Upper {
    /// All of the query, the aggregation of the groups included.
    plan: LogicalPlan,
    schema: SchemaRef,
    /// The aggregation above the groups, where it can be kept too.
    pub(super) layer: Option<Layer>,
}

impl Upper {
    pub(super) fn new(session: &SessionState, plan: LogicalPlan, schema: SchemaRef) -> Upper {
        let layer = second(&plan).and_then(|(upper, between)| Layer::compile(session, upper, &between, lower(&plan)?.schema()));
        Upper { plan, schema, layer }
    }

    /// Columns of the groups of the aggregation above, where it is kept.
    pub fn folded_schema(&self) -> Option<SchemaRef> {
        self.layer.as_ref().map(|layer| Arc::clone(&layer.schema))
    }

    /// The view's declared columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The view's query over its groups: a relation of [`super::Spec::schema`].
    pub fn over(&self, groups: Arc<dyn TableSource>) -> DataFusionResult<LogicalPlan> {
        self.replaced(0, groups)
    }

    /// The view's query over the groups of the aggregation above: a relation of [`Upper::folded_schema`].
    pub fn over_folded(&self, groups: Arc<dyn TableSource>) -> DataFusionResult<LogicalPlan> {
        self.replaced(1, groups)
    }

    /// With a relation in the place of an aggregation, counted from the innermost.
    fn replaced(&self, mut skipped: usize, groups: Arc<dyn TableSource>) -> DataFusionResult<LogicalPlan> {
        let mut groups = Some(groups);
        let replaced = self.plan.clone().transform_up(|node| {
            let LogicalPlan::Aggregate(aggregate) = &node else { return Ok(Transformed::no(node)) };
            if skipped > 0 {
                skipped -= 1;
                return Ok(Transformed::no(node));
            }
            match groups.take() {
                Some(source) => Ok(Transformed::yes(named(&aggregate.schema, source)?)),
                None => Ok(Transformed::no(node)),
            }
        });
        replaced.data()
    }
}

/// The groups under the names of the aggregation that they are of.
fn named(schema: &DFSchema, source: Arc<dyn TableSource>) -> DataFusionResult<LogicalPlan> {
    let columns = schema.iter().enumerate().map(|(index, (relation, field))| {
        Expr::Column(Column::new(Some(GROUPS), column_name(index))).alias_qualified(relation.cloned(), field.name())
    });
    let columns: Vec<Expr> = columns.collect();
    LogicalPlanBuilder::scan(GROUPS, source, None)?.project(columns)?.build()
}

fn column_name(index: usize) -> String {
    format!("c{index}")
}

/// The columns of an aggregation's groups under names of their own.
pub(super) fn groups_schema(aggregation: &DFSchema) -> SchemaRef {
    let fields = aggregation.fields().iter().enumerate();
    Arc::new(Schema::new(fields.map(|(index, field)| Arc::new(Field::clone(field).with_name(column_name(index)))).collect::<Vec<_>>()))
}

/// The innermost aggregation of a plan each of whose nodes reads one other, if it is one by entity.
pub(super) fn lower(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    let mut found = None;
    let mut node = plan;
    loop {
        if let LogicalPlan::Aggregate(_) = node {
            found = Some(node);
        }
        let [input] = node.inputs()[..] else { break };
        node = input;
    }
    let LogicalPlan::Aggregate(aggregate) = found? else { return None };
    let by_entity = aggregate.aggr_expr.iter().any(|expr| {
        let mut inner = expr;
        while let Expr::Alias(alias) = inner {
            inner = &alias.expr;
        }
        matches!(inner, Expr::AggregateFunction(call) if ENTITY_FUNCTIONS.contains(&call.func.name()))
    });
    let plain = by_entity && !has_subquery(plan);
    found.filter(|_| plain)
}

/// The aggregation next above the innermost, and what is between them, from above.
fn second(plan: &LogicalPlan) -> Option<(&LogicalPlan, Vec<&LogicalPlan>)> {
    let mut found: Option<(&LogicalPlan, Vec<&LogicalPlan>)> = None;
    let (mut node, mut between) = (plan, Vec::new());
    let mut upper = None;
    loop {
        match node {
            LogicalPlan::Aggregate(_) => {
                found = upper.map(|upper| (upper, std::mem::take(&mut between)));
                upper = Some(node);
                between.clear();
            }
            other => between.push(other),
        }
        let [input] = node.inputs()[..] else { return found };
        node = input;
    }
}

fn has_subquery(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let looked = plan.apply(|node| {
        for expr in node.expressions() {
            found |= expr.exists(|part| {
                Ok(matches!(part, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_)))
            })?;
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found || looked.is_err()
}
