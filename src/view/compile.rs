//! A defining SELECT to a [`Spec`].
//!
//! *Place*: CREATE MATERIALIZED VIEW asks [`describe`]; the store compiles every view when it opens or is created.
//!
//! For state of its own the analyzed plan must be projections, HAVING filters and aliases over one aggregation (or DISTINCT) over
//! filters and projections over one event table, or over such a view. Of an operator that follows entities, it is that of its innermost
//! aggregation ([`nested`]). Anything else is kept another way, with the reason.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Distinct, Expr, ExprSchemable, LogicalPlan};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use xxhash_rust::xxh3::xxh3_64;

use super::aggregate::{Aggregate, Lowering};
use super::block::FORMAT;
use super::expand::Expansion;
use super::failure::failure;
use super::finish::{Finish, Stage};
use super::join::{self, Join};
use super::matching::Matching;
use super::nested::{self, Upper};
use super::session::Session;
use super::source::{self, Source, check, check_plan, no_view, reason, refusal};
use super::spec::{Expression, Spec};
use super::{combine, window};
use crate::catalog::bind::Binder;
use crate::catalog::{self, Catalog, Column, Maintenance, Table, View, Watermark};
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// What a definition is read with.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) binder: &'a dyn Binder,
    pub(super) catalog: &'a Arc<Catalog>,
}

/// A plan taken apart.
pub(super) struct Shape<'a> {
    /// Nodes above the aggregation, outermost first.
    pub(super) above: Vec<&'a LogicalPlan>,
    pub(super) source: Source,
    /// Over the table's columns.
    pub(super) keys: Vec<Expr>,
    /// Over the table's columns.
    pub(super) aggregates: Vec<AggregateFunction>,
    /// Which key is the time of a session's rows, and their gap. The last aggregate is then the session's last time.
    pub(super) session: Option<(usize, Expr)>,
    /// Of the aggregation's output: keys, then aggregates.
    pub(super) schema: &'a DFSchema,
}

/// Derives what the catalog has to know of a view from its query, name and options apart; for CREATE MATERIALIZED VIEW. It is kept
/// by aggregate state if it can be, else read from the one view that it reads, else recomputed.
pub fn describe(binder: &dyn Binder, catalog: &Arc<Catalog>, query: &str) -> Result<View> {
    let plan = binder.bind_query(catalog, query)?;
    check_plan(&plan)?;
    let mut view = View { query: query.to_owned(), columns: columns_of(&plan)?, sources: sources(catalog, &plan)?, ..View::default() };
    let reading = Reading { binder, catalog };
    let compiled = kept(&reading, &plan).and_then(|kept| {
        let (table, from_lsn, is_nested) = (Arc::clone(&kept.shape.source.table), kept.shape.source.from_lsn, kept.is_nested());
        build(binder, &table, &Arc::new(view.clone()), kept)?;
        Ok((table.oid, from_lsn, is_nested))
    });
    match compiled {
        Ok((table, from_lsn, is_nested)) => {
            (view.table, view.from_lsn) = (table, from_lsn);
            view.by_entity = is_nested;
            view.columns.iter_mut().for_each(|column| column.nullable |= is_nested);
        }
        Err(refused) if refused.state() == SqlState::FEATURE_NOT_SUPPORTED => {
            let why = reason(&refused);
            view.columns.iter_mut().for_each(|column| column.nullable = true);
            (view.maintenance, view.reason) = match over_one_view(catalog, &view.sources, &plan)? {
                Some(lower) => (Maintenance::Derived, Some(format!("{why}: computed from the state of view \"{lower}\" when it is read"))),
                None => (Maintenance::Refreshed, Some(format!("{why}: recomputed when a source has changed"))),
            };
        }
        Err(error) => return Err(error),
    }
    Ok(view)
}

fn columns_of(plan: &LogicalPlan) -> Result<Vec<Column>> {
    let mut columns: Vec<Column> = Vec::new();
    for field in plan.schema().fields() {
        if columns.iter().any(|column| column.name == *field.name()) {
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", field.name()))
                .hint("Give the columns different names with AS."));
        }
        let sql_type = SqlType::of_field(field);
        columns.push(Column {
            name: field.name().clone(),
            sql_type,
            nullable: field.is_nullable(),
            default: None,
            generated: None,
            fill: None,
        });
    }
    Ok(columns)
}

/// The tables and views that a plan scans, in its subqueries too, in OID order.
fn sources(catalog: &Catalog, plan: &LogicalPlan) -> Result<Vec<catalog::Source>> {
    let mut found: Vec<catalog::Source> = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let name = scan.table_name.table();
            let table = catalog.table_named(name).map(|table| (table.oid, table.columns.len()));
            let view = || catalog.view_named(name).map(|view| (view.oid, view.columns.len()));
            if let Some((oid, columns)) = table.or_else(view) {
                found.push(catalog::Source { oid, columns });
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(failure)?;
    found.sort_unstable_by_key(|source| source.oid);
    found.dedup();
    Ok(found)
}

/// The name of the incremental view that is all that a plan of filters, projections and aggregations reads.
fn over_one_view(catalog: &Catalog, sources: &[catalog::Source], plan: &LogicalPlan) -> Result<Option<String>> {
    let [source] = sources else { return Ok(None) };
    let Some(lower) = catalog.view(source.oid).filter(|view| view.is_incremental()) else { return Ok(None) };
    let mut scans = 0;
    let mut simple = true;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(_) => scans += 1,
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Distinct(Distinct::All(_)) => {}
            _ => simple = false,
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(failure)?;
    Ok((simple && scans == 1).then(|| lower.name.clone()))
}

impl Spec {
    /// Compiles a definition. 0A000 with the reason for what cannot be kept incrementally.
    pub fn compile(binder: &dyn Binder, catalog: &Arc<Catalog>, table: &Table, view: &Arc<View>) -> Result<Spec> {
        let narrowed = catalog.narrowed(view);
        let plan = binder.bind_query(&narrowed, &view.query)?;
        let kept = kept(&Reading { binder, catalog: &narrowed }, &plan)?;
        // Columns that the table got later do not move those that are looked up behind it.
        let table = narrowed.table(table.oid).cloned().unwrap_or_else(|| Arc::new(table.clone()));
        let mut spec = build(binder, &table, view, kept)?;
        if let Some(matching) = &mut spec.matching {
            matching.bind_generated(binder, &narrowed, &table)?;
        }
        Ok(spec)
    }
}

/// What is kept of a definition.
struct Kept<'a> {
    /// All of it.
    plan: &'a LogicalPlan,
    /// The part that state is kept of: all of it, or its innermost aggregation.
    lower: &'a LogicalPlan,
    /// Of that part.
    shape: Shape<'a>,
}

impl Kept<'_> {
    /// Whether the state is that of an aggregation below others.
    fn is_nested(&self) -> bool {
        !std::ptr::eq(self.plan, self.lower)
    }
}

/// Finds what state can be kept of.
fn kept<'a>(reading: &Reading<'_>, plan: &'a LogicalPlan) -> Result<Kept<'a>> {
    let refused = match take_apart(reading, plan) {
        Ok(shape) => return Ok(Kept { plan, lower: plan, shape }),
        Err(refused) => refused,
    };
    let lower = nested::lower(plan).filter(|_| refused.state() == SqlState::FEATURE_NOT_SUPPORTED).ok_or(refused)?;
    let shape = take_apart(reading, lower)?;
    match shape.session.is_some() || shape.source.hop.is_some() {
        true => Err(no_view("an operator over windows that overlap or join", "Keep the windows as a materialized view.")),
        false => Ok(Kept { plan, lower, shape }),
    }
}

pub(super) fn take_apart<'a>(reading: &Reading<'_>, plan: &'a LogicalPlan) -> Result<Shape<'a>> {
    let mut above = Vec::new();
    let mut node = plan;
    loop {
        match node {
            LogicalPlan::Projection(projection) => {
                if !projection.expr.iter().map(window::hops).collect::<Result<Vec<_>>>()?.concat().is_empty() {
                    return Err(no_view("HOP over an aggregate", "Use HOP when reading the materialized view."));
                }
                above.push(node);
                node = &projection.input;
            }
            LogicalPlan::Filter(filter) => {
                above.push(node);
                node = &filter.input;
            }
            LogicalPlan::SubqueryAlias(alias) => {
                above.push(node);
                node = &alias.input;
            }
            // Rows of a relation have no order, and nothing above cuts them.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => node = &sort.input,
            LogicalPlan::Aggregate(aggregate) => {
                let mut source = source::fold(reading, &aggregate.input)?;
                let schema = aggregate.input.schema();
                source.expand(&aggregate.group_expr, schema)?;
                let mut keys = aggregate.group_expr.iter().map(|expr| source.over_rows(expr, schema)).collect::<Result<Vec<_>>>()?;
                let session = session(&mut keys);
                let aggregates = aggregate
                    .aggr_expr
                    .iter()
                    .map(|expr| match source.over_table(expr, schema)? {
                        Expr::AggregateFunction(call) => match &source.view {
                            Some(view) => combine::over_groups(call, view, &source.table),
                            None => Ok(call),
                        },
                        other => Err(no_view(&format!("the expression {other}"), "Use aggregate functions.")),
                    })
                    .collect::<Result<Vec<_>>>()?;
                return Ok(Shape { above, source, keys, aggregates, session, schema: &aggregate.schema });
            }
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let mut source = source::fold(reading, input)?;
                let keys = std::mem::take(&mut source.outputs);
                if keys.iter().any(source::has_aggregate) {
                    return Err(no_view("DISTINCT over aggregates of a view", "Put DISTINCT into the query that reads the view."));
                }
                return Ok(Shape { above, source, keys, aggregates: Vec::new(), session: None, schema: input.schema() });
            }
            LogicalPlan::Distinct(Distinct::On(_)) => {
                return Err(no_view("DISTINCT ON", "Use GROUP BY with first_value(column ORDER BY ...)."));
            }
            LogicalPlan::TableScan(_) => {
                return Err(no_view(
                    "a query without GROUP BY, aggregate or DISTINCT",
                    "Select from the event table itself, or add GROUP BY.",
                ));
            }
            other => return Err(refusal(other)),
        }
    }
}

/// Puts the time of a session's rows in place of the call.
fn session(keys: &mut [Expr]) -> Option<(usize, Expr)> {
    let (index, (time, gap)) = keys.iter().enumerate().find_map(|(index, key)| Some((index, window::session(key)?)))?;
    let (time, gap) = (time.clone(), gap.clone());
    keys[index] = time;
    Some((index, gap))
}

fn build(binder: &dyn Binder, table: &Table, view: &Arc<View>, kept: Kept<'_>) -> Result<Spec> {
    let session = binder.session_state();
    let upper = kept.is_nested().then(|| Upper::new(&session, kept.plan.clone(), view.schema()));
    let Kept { plan, lower, shape } = kept;
    let join = joins(&session, table, &shape)?;
    let row_schema = join.as_ref().map_or_else(|| table.schema(), |join| Arc::clone(join.schema()));
    let rows = Planner::new(&session, DFSchema::try_from(row_schema).map_err(failure)?);
    let (of_rows, of_windows) = window::split(&shape.source.filters)?;
    let filter = of_rows.map(|filter| rows.expression(filter)).transpose()?;
    let (rows, expansion) = match &shape.source.hop {
        Some(hop) => Expansion::compile(rows, hop, of_windows)?,
        None => (rows, None),
    };
    let mut key_exprs = Vec::new();
    let mut keys = Vec::new();
    for key in &shape.keys {
        let simple = rows.simplify(window::over_windows(key.clone())?)?;
        keys.push(Expression::new(rows.physical(&simple)?));
        key_exprs.push(simple);
    }
    let types: Vec<DataType> = keys.iter().map(|key| key.physical.data_type(&rows.arrow())).collect::<Result<_, _>>().map_err(failure)?;
    let key_fields: Vec<_> =
        types.iter().enumerate().map(|(index, kind)| Arc::new(Field::new(format!("k{index}"), kind.clone(), true))).collect();
    let mut aggregates = Vec::new();
    let mut calls = Vec::new();
    for (index, call) in shape.aggregates.iter().enumerate() {
        let call = rows.simplify_arguments(call)?;
        let output = shape.schema.field(shape.keys.len() + index).data_type();
        let lowering =
            Lowering { binder: Some(binder), props: rows.props, schema: &rows.schema, context: &rows.context, is_shaped: upper.is_some() };
        aggregates.push(Arc::new(Aggregate::lower(&call, output, &lowering)?));
        calls.push(call);
    }
    let sessions = shape.session.as_ref().map(|(key, gap)| Session::compile(&rows, *key, gap, keys.len(), &aggregates)).transpose()?;
    // A session must not be torn: it has no time bucket, and its slot does not depend on its start.
    let time = if sessions.is_some() { None } else { window::detect(table, &key_exprs, &types, shape.source.hop.as_ref()) };
    let slot_keys = match &sessions {
        // Entities are looked up one by one.
        _ if upper.is_some() => (0..keys.len()).collect(),
        Some(sessions) => slot_keys(table, &key_exprs, Some(sessions.key), true),
        None => slot_keys(table, &key_exprs, time.as_ref().map(|time| time.key), false),
    };
    let mut state_fields = key_fields.clone();
    for aggregate in &aggregates {
        for kind in &aggregate.state {
            state_fields.push(Arc::new(Field::new(format!("s{}", state_fields.len()), kind.clone(), true)));
        }
    }
    let state_schema = Arc::new(Schema::new(state_fields));
    let output = if upper.is_some() { nested::groups_schema(shape.schema) } else { view.schema() };
    let finish = Arc::new(finish(&session, &view.name, output, lower, &shape, &types)?);
    let mut hasher = DefaultHasher::new();
    keys.iter().for_each(|key| key.hash.hash(&mut hasher));
    let fingerprint = fingerprint(filter.as_ref(), expansion.as_ref(), sessions.as_ref(), &keys, &aggregates, &state_schema);
    let settles = |time: Watermark| aggregates.iter().any(|aggregate| aggregate.settles_by(time.column));
    let settles = upper.is_some() && join.is_none() && table.watermark.is_some_and(settles);
    let matching = match join.is_some() || expansion.is_some() || sessions.is_some() || upper.is_some() {
        // What a row was joined with is not in the table; and who groups otherwise cannot tell from state how rows fell into windows.
        true => None,
        false => {
            let query = shape.source.view.is_none().then(|| plan.clone());
            Matching::new(&session, table, query, &key_exprs, &shape.source.filters, calls)?
        }
    };
    Ok(Spec {
        view: Arc::clone(view),
        columns: columns(expansion.as_ref(), &keys, &aggregates),
        filter,
        expansion,
        session: sessions,
        keys_hash: hasher.finish(),
        keys,
        key_schema: Arc::new(Schema::new(key_fields)),
        aggregates,
        state_schema,
        time,
        slot_keys,
        finish,
        upper,
        settles,
        fingerprint,
        join: join.map(Arc::new),
        matching,
        distrusted: std::sync::OnceLock::new(),
    })
}

/// The plain tables that the view's rows are joined with.
fn joins(session: &SessionState, table: &Table, shape: &Shape<'_>) -> Result<Option<Join>> {
    let source = &shape.source;
    if source.sides.is_empty() {
        return Ok(None);
    }
    let calls: Vec<Expr> = shape.aggregates.iter().cloned().map(Expr::AggregateFunction).collect();
    let read = shape.keys.iter().chain(&source.filters).chain(&source.hop).chain(&calls);
    let physical = |expr: &Expr, schema: &SchemaRef| {
        let schema = DFSchema::try_from(Arc::clone(schema)).map_err(failure)?;
        Ok(Planner::new(session, schema).expression(expr.clone())?.physical)
    };
    match join::make(table, &source.sides, read, physical)? {
        Some(join) => Ok(Some(join)),
        None => {
            Err(no_view("a join without an equality of columns", "Keep the aggregate as a materialized view and join it when reading."))
        }
    }
}

/// The partition key when it is a key, else all keys but the one of time, else that one itself unless it is `moving`.
fn slot_keys(table: &Table, keys: &[Expr], time: Option<usize>, moving: bool) -> Vec<usize> {
    let partition = table.options.partition_by.and_then(|column| table.columns.get(column));
    let is_partition = |expr: &Expr| matches!((expr, partition), (Expr::Column(column), Some(partition)) if column.name == partition.name);
    if let Some(index) = keys.iter().position(is_partition).filter(|index| !moving || Some(*index) != time) {
        return vec![index];
    }
    let others: Vec<usize> = (0..keys.len()).filter(|index| Some(*index) != time).collect();
    if others.is_empty() && !moving { (0..keys.len()).collect() } else { others }
}

fn columns(expansion: Option<&Expansion>, keys: &[Expression], aggregates: &[Arc<Aggregate>]) -> Vec<usize> {
    let arguments = aggregates.iter().flat_map(|aggregate| aggregate.arguments.iter().chain(aggregate.filter.as_ref()));
    let arguments = arguments.chain(expansion.into_iter().flat_map(Expansion::expressions));
    let mut columns: Vec<usize> =
        keys.iter().chain(arguments).flat_map(|expr| collect_columns(&expr.physical)).map(|column| column.index()).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Changes whenever stored states would mean something else.
fn fingerprint(
    filter: Option<&Expression>,
    expansion: Option<&Expansion>,
    session: Option<&Session>,
    keys: &[Expression],
    aggregates: &[Arc<Aggregate>],
    states: &SchemaRef,
) -> u64 {
    let mut text = format!("format {FORMAT} filter {:?}", filter.map(|filter| &filter.physical));
    if let Some(expansion) = expansion {
        text.push_str(&format!(" windows {:?}", expansion.expressions().map(|expr| &expr.physical).collect::<Vec<_>>()));
    }
    if let Some(session) = session {
        text.push_str(&format!(" {session:?}"));
    }
    for key in keys {
        text.push_str(&format!(" key {:?}", key.physical));
    }
    for aggregate in aggregates {
        text.push_str(&format!(" aggregate {}", aggregate.identity));
    }
    for field in states.fields() {
        text.push_str(&format!(" {} {:?}", field.name(), field.data_type()));
    }
    xxh3_64(text.as_bytes())
}

/// The stages above the aggregation, innermost first, over its output columns.
fn finish(
    session: &SessionState,
    view: &str,
    output: SchemaRef,
    plan: &LogicalPlan,
    shape: &Shape<'_>,
    key_types: &[DataType],
) -> Result<Finish> {
    let mut stages = Vec::new();
    let mut keys: Vec<Option<usize>> = (0..shape.schema.fields().len()).map(|index| (index < shape.keys.len()).then_some(index)).collect();
    let mut schema = shape.schema;
    for node in shape.above.iter().rev() {
        match node {
            LogicalPlan::Filter(filter) => {
                check(&filter.predicate)?;
                stages.push(Stage::Filter(Planner::new(session, schema.clone()).expression(filter.predicate.clone())?.physical));
            }
            LogicalPlan::Projection(projection) => {
                let planner = Planner::new(session, schema.clone());
                let mut next = Vec::new();
                let mut expressions = Vec::new();
                for expr in &projection.expr {
                    check(expr)?;
                    let expr = expr.clone().unalias_nested().data;
                    next.push(match &expr {
                        Expr::Column(column) => keys[schema.index_of_column(column).map_err(failure)?],
                        _ => None,
                    });
                    expressions.push(planner.expression(expr)?.physical);
                }
                keys = next;
                stages.push(Stage::Project(expressions));
            }
            _ => {}
        }
        schema = node.schema();
    }
    if output.fields().len() != plan.schema().fields().len() {
        return Err(Error::internal(format!(
            "materialized view {view} has {} columns but its query {}",
            output.fields().len(),
            plan.schema().fields().len()
        )));
    }
    for (key, field) in keys.iter_mut().zip(output.fields()) {
        *key = key.filter(|key| key_types[*key] == *field.data_type());
    }
    Ok(Finish { schema: output, output_keys: keys, stages, inputs: shape.schema.fields().len() })
}

/// Makes physical expressions over one schema.
pub(super) struct Planner<'a> {
    pub(super) session: &'a SessionState,
    pub(super) schema: DFSchema,
    context: PhysicalPlanningContext,
    pub(super) props: &'a ExecutionProps,
    simplifier: ExprSimplifier,
}

impl<'a> Planner<'a> {
    pub(super) fn new(session: &'a SessionState, schema: DFSchema) -> Self {
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(session.config_options()))
            .build();
        let props = session.execution_props();
        Self { session, schema, context: PhysicalPlanningContext::default(), props, simplifier: ExprSimplifier::new(context) }
    }

    pub(super) fn context(&self) -> &PhysicalPlanningContext {
        &self.context
    }

    fn arrow(&self) -> Schema {
        self.schema.as_arrow().clone()
    }

    /// Folds constants; keeps the type.
    pub(super) fn simplify(&self, expr: Expr) -> Result<Expr> {
        let before = expr.get_type(&self.schema).map_err(failure)?;
        let simple = self.simplifier.simplify(expr.clone()).map_err(failure)?;
        let same = simple.get_type(&self.schema).is_ok_and(|after| after == before);
        Ok(if same { simple } else { expr })
    }

    fn simplify_arguments(&self, call: &AggregateFunction) -> Result<AggregateFunction> {
        let simple = window::over_windows(Expr::AggregateFunction(call.clone()))?
            .map_children(|child| {
                let simple = self.simplify(child)?;
                Ok(Transformed::yes(simple))
            })
            .data()
            .map_err(failure)?;
        match simple {
            Expr::AggregateFunction(call) => Ok(call),
            other => Err(Error::internal(format!("{other} is not an aggregate"))),
        }
    }

    pub(super) fn physical(&self, expr: &Expr) -> Result<Arc<dyn PhysicalExpr>> {
        create_physical_expr(expr, &self.schema, self.props, &self.context).map_err(failure)
    }

    pub(super) fn expression(&self, expr: Expr) -> Result<Expression> {
        let simple = self.simplify(expr)?;
        Ok(Expression::new(self.physical(&simple)?))
    }
}
