//! What a view's SELECT reads: filters and projections below its aggregation, folded into expressions over one table.
//!
//! *Place*: the first half of `compile`.
//!
//! A view in FROM is folded too: its keys are expressions over the table, its aggregates stand as aggregate calls, which only an
//! aggregate above may take in (`combine` says which).

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, NullEquality, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, Volatility};

use super::compile::{Reading, Shape, take_apart};
use super::failure::failure;
use super::join::{self, Side};
use super::window;
use crate::catalog::{Maintenance, Table, TableKind, View};
use crate::error::{Error, Result, SqlState};
use crate::types::LSN_COLUMN;

/// The function that the table form of SESSION is made of.
const SESSION_BREAK: &str = "session_break";

/// A chain of filters and projections over one event table, or over a view of it.
#[derive(Debug)]
pub(super) struct Source {
    /// The event table.
    pub(super) table: Arc<Table>,
    /// The chain's output columns over the table's (unqualified) columns. Below a view, aggregates may stand in them.
    pub(super) outputs: Vec<Expr>,
    /// Conjuncts over the table's columns.
    pub(super) filters: Vec<Expr>,
    /// The view whose groups, not the table's rows, are what is read.
    pub(super) view: Option<String>,
    /// Rows of the table below this LSN are not in that view.
    pub(super) from_lsn: u64,
    /// Plain tables that each row is joined with.
    pub(super) sides: Vec<Side>,
    /// The call of HOP that multiplies the rows, over the table's columns. It stands in outputs and filters as it is.
    pub(super) hop: Option<Expr>,
}

/// A chain of filters and projections over one plain table.
struct Reference {
    table: Arc<Table>,
    outputs: Vec<Expr>,
    filters: Vec<Expr>,
}

/// Folds the plan below the aggregation. 0A000 for anything but filters, projections and aliases over one table or view.
pub(super) fn fold(reading: &Reading<'_>, plan: &LogicalPlan) -> Result<Source> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let mut source = relation(reading, scan.table_name.table())?;
            let schema = plan.schema();
            if schema.fields().len() == source.outputs.len() + 1 && schema.field(source.outputs.len()).name() == LSN_COLUMN {
                // Rows come in the order of their numbers, and states are merged in it: who asks for the numbers goes by that.
                source.outputs.push(Expr::Literal(ScalarValue::Int64(None), None));
            }
            let filters = scan.filters.iter().map(|filter| source.over_table(filter, schema)).collect::<Result<Vec<_>>>()?;
            source.filters.extend(filters);
            Ok(source)
        }
        LogicalPlan::SubqueryAlias(alias) => fold(reading, &alias.input),
        LogicalPlan::Filter(filter) => {
            let mut source = fold(reading, &filter.input)?;
            source.filter(&filter.predicate, filter.input.schema())?;
            Ok(source)
        }
        LogicalPlan::Projection(projection) => {
            let mut source = fold(reading, &projection.input)?;
            source.expand(&projection.expr, projection.input.schema())?;
            source.outputs = source.projected(&projection.expr, projection.input.schema())?;
            Ok(source)
        }
        LogicalPlan::Join(join) => joined(reading, join),
        other => Err(refusal(other)),
    }
}

fn relation(reading: &Reading<'_>, name: &str) -> Result<Source> {
    if let Some(view) = reading.catalog.view_named(name) {
        return groups(reading, view);
    }
    let not_an_event_table = || Error::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{name}\" is not an event table"));
    let table = reading.catalog.table_named(name).ok_or_else(not_an_event_table)?;
    match table.kind {
        TableKind::Event => {
            let outputs = table.columns.iter().map(|column| Expr::Column(Column::new_unqualified(&column.name))).collect();
            Ok(Source { table: Arc::clone(table), outputs, filters: Vec::new(), view: None, from_lsn: 0, sides: Vec::new(), hop: None })
        }
        TableKind::Late | TableKind::Plain => Err(no_view(
            &format!("table \"{name}\", which is not an event table,"),
            "Select from a table that declares WATERMARK FOR its event time.",
        )),
    }
}

/// A view as a source: its output over the rows of its table.
fn groups(reading: &Reading<'_>, view: &Arc<View>) -> Result<Source> {
    if view.maintenance != Maintenance::State {
        return Err(no_view(&format!("view \"{}\", which has no state of its own,", view.name), "Select from its table."));
    }
    let plan = reading.binder.bind_query(&reading.catalog.narrowed(view), &view.query)?;
    let Shape { above, source, keys, aggregates, session, schema } = take_apart(reading, &plan)?;
    if session.is_some() {
        // Which session a row is in, the other rows decide.
        return Err(no_view(&format!("view \"{}\" with SESSION", view.name), "Select from its table."));
    }
    if keys.is_empty() {
        // It has a group even over no rows, which no aggregate over the rows has.
        return Err(no_view(&format!("view \"{}\" without GROUP BY", view.name), "Select from its table."));
    }
    if !source.sides.is_empty() {
        // What its rows were joined with when they arrived cannot be had again.
        return Err(no_view(&format!("view \"{}\" with a join", view.name), "Select from its table."));
    }
    let outputs = keys.into_iter().chain(aggregates.into_iter().map(Expr::AggregateFunction)).collect();
    let from_lsn = source.from_lsn.max(view.from_lsn);
    let mut source = Source { outputs, view: Some(view.name.clone()), from_lsn, ..source };
    let mut schema = schema;
    for node in above.into_iter().rev() {
        match node {
            LogicalPlan::Filter(filter) => source.filter(&filter.predicate, schema)?,
            LogicalPlan::Projection(projection) => source.outputs = source.projected(&projection.expr, schema)?,
            _ => {}
        }
        schema = node.schema();
    }
    Ok(source)
}

/// An event table joined with a plain one.
fn joined(reading: &Reading<'_>, join: &Join) -> Result<Source> {
    let refused = |what: &str| no_view(what, "Keep the aggregate as a materialized view and join it when reading.");
    let outer = match join.join_type {
        JoinType::Inner => false,
        JoinType::Left | JoinType::Right => true,
        other => return Err(refused(&format!("a {other} join"))),
    };
    let plain_right = reference(reading, &join.right)?;
    let plain_left = if plain_right.is_none() { reference(reading, &join.left)? } else { None };
    let left_is_plain = plain_left.is_some();
    let Some(plain) = plain_right.or(plain_left) else { return Err(refused("a join of event tables or views")) };
    if (outer && left_is_plain != (join.join_type == JoinType::Right)) || join.null_equality != NullEquality::NullEqualsNothing {
        return Err(refused("an outer join that keeps the rows of a plain table"));
    }
    let mut source = fold(reading, if left_is_plain { &join.right } else { &join.left })?;
    if source.view.is_some() {
        return Err(refused("a join of a view"));
    }
    let side = source.sides.len();
    let outputs = plain.outputs.iter().map(|output| join::after(side, output)).collect::<Result<Vec<_>>>()?;
    if outer && !plain.outputs.iter().all(|output| matches!(output, Expr::Column(_))) {
        return Err(refused("an outer join with expressions over the plain table"));
    }
    let before = std::mem::take(&mut source.outputs);
    let (left, right) = if left_is_plain { (outputs, before) } else { (before, outputs) };
    source.sides.push(Side { table: plain.table, outer, keys: Vec::new(), filters: Vec::new() });
    let mut conjuncts = plain.filters.iter().map(|filter| join::after(side, filter)).collect::<Result<Vec<_>>>()?;
    for (over_left, over_right) in &join.on {
        source.outputs = left.clone();
        let over_left = source.over_table(over_left, join.left.schema())?;
        source.outputs = right.clone();
        conjuncts.push(over_left.eq(source.over_table(over_right, join.right.schema())?));
    }
    source.outputs = [left, right].concat();
    for conjunct in join.filter.iter().flat_map(split_conjunction) {
        conjuncts.push(source.over_table(conjunct, &join.schema)?);
    }
    for conjunct in conjuncts {
        if let Some(pair) = join::key_pair(side, &conjunct)? {
            source.sides[side].keys.push(pair);
        } else if !outer {
            source.filters.push(conjunct);
        } else if let Some(own) = join::own_condition(side, &conjunct)? {
            source.sides[side].filters.push(own);
        } else {
            return Err(refused(&format!("an outer join on {conjunct}")));
        }
    }
    if outer && source.sides[side].keys.is_empty() {
        return Err(refused("a join without an equality"));
    }
    Ok(source)
}

/// A plan that reads one plain table, taken apart; none when it reads something else.
fn reference(reading: &Reading<'_>, plan: &LogicalPlan) -> Result<Option<Reference>> {
    let rewritten = |reference: &Reference, expr: &Expr, schema: &DFSchema| over_outputs(&reference.outputs, expr, schema);
    Ok(match plan {
        LogicalPlan::TableScan(scan) if scan.filters.is_empty() => {
            let table = reading.catalog.table_named(scan.table_name.table()).filter(|table| table.kind == TableKind::Plain);
            table.map(|table| {
                let outputs = table.columns.iter().map(|column| Expr::Column(Column::new_unqualified(&column.name))).collect();
                Reference { table: Arc::clone(table), outputs, filters: Vec::new() }
            })
        }
        LogicalPlan::SubqueryAlias(alias) => reference(reading, &alias.input)?,
        LogicalPlan::Filter(filter) => match reference(reading, &filter.input)? {
            Some(mut found) => {
                for conjunct in split_conjunction(&filter.predicate) {
                    let conjunct = rewritten(&found, conjunct, filter.input.schema())?;
                    found.filters.push(conjunct);
                }
                Some(found)
            }
            None => None,
        },
        LogicalPlan::Projection(projection) => match reference(reading, &projection.input)? {
            Some(mut found) => {
                let schema = projection.input.schema();
                found.outputs = projection.expr.iter().map(|expr| rewritten(&found, expr, schema)).collect::<Result<Vec<_>>>()?;
                Some(found)
            }
            None => None,
        },
        _ => None,
    })
}

/// An expression over columns, with what the columns are in their place.
fn over_outputs(outputs: &[Expr], expr: &Expr, schema: &DFSchema) -> Result<Expr> {
    check(expr)?;
    expr.clone()
        .unalias_nested()
        .data
        .transform_up(|node| match node {
            Expr::Column(column) => {
                let index = schema.index_of_column(&column)?;
                Ok(Transformed::yes(outputs[index].clone()))
            }
            other => Ok(Transformed::no(other)),
        })
        .data()
        .map_err(failure)
}

impl Source {
    /// Takes in the calls of HOP that a node's own expressions have. Rows are multiplied once.
    pub(super) fn expand(&mut self, exprs: &[Expr], schema: &DFSchema) -> Result<()> {
        let mut own: Option<Expr> = None;
        for expr in exprs {
            for call in window::hops(expr)? {
                match &own {
                    Some(known) if *known != call => return Err(several_hops()),
                    _ => own = Some(call),
                }
            }
        }
        match (own, &self.hop) {
            (Some(_), Some(_)) => Err(several_hops()),
            (Some(call), None) => {
                self.hop = Some(self.over_rows(&call, schema)?);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    fn filter(&mut self, predicate: &Expr, schema: &DFSchema) -> Result<()> {
        for conjunct in split_conjunction(predicate) {
            let conjunct = self.over_rows(conjunct, schema)?;
            // FROM a, b WHERE a.x = b.y joins by that.
            let keyless = self.sides.iter().position(|side| side.keys.is_empty());
            match keyless.map(|side| Ok::<_, Error>((side, join::key_pair(side, &conjunct)?))).transpose()? {
                Some((side, Some(pair))) => self.sides[side].keys.push(pair),
                _ => self.filters.push(conjunct),
            }
        }
        Ok(())
    }

    fn projected(&self, expressions: &[Expr], schema: &DFSchema) -> Result<Vec<Expr>> {
        expressions.iter().map(|expr| self.over_table(expr, schema)).collect()
    }

    /// An expression over the chain's output that each row of the table decides: no aggregate of a view is in it.
    pub(super) fn over_rows(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        let expr = self.over_table(expr, schema)?;
        match &self.view {
            Some(view) if has_aggregate(&expr) => {
                Err(no_view(&format!("a condition or key over an aggregate of view \"{view}\""), "Filter when reading the view."))
            }
            _ => Ok(expr),
        }
    }

    /// An expression over the chain's output, rewritten over the table's columns and checked.
    pub(super) fn over_table(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        over_outputs(&self.outputs, expr, schema)
    }
}

fn several_hops() -> Error {
    no_view("more than one HOP", "Create a materialized view for each.")
}

/// Whether an aggregate call stands in an expression.
pub(super) fn has_aggregate(expr: &Expr) -> bool {
    expr.exists(|node| Ok(matches!(node, Expr::AggregateFunction(_)))).unwrap_or(true)
}

/// Refuses, wherever it stands in a view's query, what is not the same at every time; and parameters.
pub(super) fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                refused = changing(expr);
                Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    })
    .map_err(failure)?;
    refused.map_or(Ok(()), Err)
}

fn changing(expr: &Expr) -> Option<Error> {
    match expr {
        Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => Some(volatile(call.func.name())),
        Expr::AggregateFunction(call) if call.func.signature().volatility == Volatility::Volatile => Some(volatile(call.func.name())),
        Expr::Placeholder(_) => {
            Some(Error::unsupported("a parameter in a materialized view is not supported").hint("Write the value into the query."))
        }
        _ => None,
    }
}

/// Refuses what does not give the same answer for the same row at every time, and what reads other rows.
pub(super) fn check(expr: &Expr) -> Result<()> {
    let mut refused = None;
    expr.apply(|node| {
        refused = match node {
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => Some(no_view(
                "a subquery in an expression",
                "Join at read time: select from the materialized view and put the subquery there.",
            )),
            Expr::OuterReferenceColumn(..) => Some(no_view("a reference to an outer query", "Write the query without correlation.")),
            Expr::WindowFunction(_) => {
                Some(no_view("a window function", "Apply the window function to the materialized view when reading it."))
            }
            Expr::GroupingSet(_) => {
                Some(no_view("GROUPING SETS, CUBE or ROLLUP", "Create a materialized view for each grouping, or roll up when reading."))
            }
            other => changing(other),
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })
    .map_err(failure)?;
    refused.map_or(Ok(()), Err)
}

fn volatile(name: &str) -> Error {
    Error::unsupported(format!("function {name}() in a materialized view is not supported"))
        .detail("Its result depends on when or for whom it is called, so the view could not stay equal to its query.")
        .hint("Filter by time when reading the view.")
}

const NOT_KEPT: &str = " in a materialized view is not supported";

/// What a refusal by [`no_view`] is about.
pub(super) fn reason(refused: &Error) -> String {
    let message = &refused.report().message;
    message.strip_suffix(NOT_KEPT).unwrap_or(message).trim_end_matches(',').to_owned()
}

/// The 0A000 for a construct that cannot be kept incrementally.
pub(super) fn no_view(what: &str, hint: &str) -> Error {
    Error::unsupported(format!("{what}{NOT_KEPT}"))
        .detail("Materialized views are kept incrementally: filters, grouping and aggregates over one event table.")
        .hint(hint)
}

/// The 0A000 for a plan node that cannot be part of a view.
pub(super) fn refusal(plan: &LogicalPlan) -> Error {
    match plan {
        LogicalPlan::Join(_) => no_view("a join", "Keep the aggregate as a materialized view and join it when reading."),
        LogicalPlan::Union(_) => no_view("UNION", "Create a materialized view for each branch and combine them when reading."),
        LogicalPlan::Window(window) if window.window_expr.iter().any(|expr| expr.to_string().contains(SESSION_BREAK)) => {
            no_view("SESSION in FROM", "Group by SESSION(time, gap) and the columns that sessions are kept apart by.")
        }
        LogicalPlan::Window(_) => no_view("a window function", "Apply the window function to the materialized view when reading it."),
        // Rows of an operator in their order: see `query::operator::order`.
        LogicalPlan::Limit(limit) if limit.skip.is_none() && limit.fetch.is_none() => {
            no_view("an operator that follows entities", "Keep what it needs as a materialized view, and call the operator on that.")
        }
        LogicalPlan::Limit(_) => no_view("LIMIT or OFFSET", "Limit when reading the view."),
        LogicalPlan::Sort(_) => no_view("ORDER BY", "Order when reading the view."),
        LogicalPlan::Subquery(_) => no_view("a subquery", "Select from the table itself."),
        LogicalPlan::Aggregate(_) => no_view("an aggregate over an aggregate", "Aggregate the materialized view again when reading it."),
        LogicalPlan::Distinct(_) => no_view("DISTINCT over an aggregate", "Put DISTINCT into the query that reads the view."),
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => no_view("a query without a table", "Select from an event table."),
        LogicalPlan::RecursiveQuery(_) => no_view("a recursive query", "Run it when reading."),
        LogicalPlan::Unnest(_) => no_view("unnest", "Unnest when reading the view."),
        other => no_view(&format!("the operation {}", other.display()), "Use filters, GROUP BY and aggregates over one event table."),
    }
}
