//! What an alert's query reads and what its columns are.
//!
//! *Place*: [`compile`] is called when an alert is made and for each catalog that it is evaluated under; `evaluate` runs the plan.
//!
//! What is done to the query's plan:
//! 1. Rows of open windows are left out where windows appear first: above the scan of a view that has them, and above an aggregation
//!    that makes them. So nothing that is computed from them has seen an open window. See [`Gate`].
//! 2. The last filter's conditions on measures become a column: `fires`. So a row for which they do not hold is told from no row.
//! 3. Where nothing looks back, windows before parameter `$1` are left out.
//!
//! A column is a *key* (grouped by, or a column of a table that is no fraction), the *window*, or a *measure* (aggregates, what is
//! computed from them). Instances are told apart by their keys.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, Date32Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::utils::{conjunction, split_conjunction, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, cast, lit};

use super::gate::{Gate, closed_function};
use super::span::Span;
use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Oid, Source, TableKind, View};
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::query::provider::{Relation, Unresolved};
use crate::query::rewrite;
use crate::types::SqlType;

/// The column of the condition. No client can write its name.
const FIRES: &str = "\u{1}fires";

/// The column of a window that the query does not select.
const WINDOW: &str = "\u{1}window";

/// Views below views that are looked through.
const DEPTH_MAX: usize = 40;

const DAY_US: Micros = 86_400_000_000;

/// What an output column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Tells instances apart.
    Key,
    /// The window's start.
    Window,
    /// Neither.
    Measure,
}

/// An alert's query, ready to be run.
#[derive(Debug)]
pub struct Compiled {
    /// The plan, with `$1` where it is [bounded](Compiled::bounded).
    pub plan: LogicalPlan,
    /// Its output; the last column is the condition where it is [flagged](Compiled::flagged).
    pub schema: SchemaRef,
    /// Names of the output columns, without the condition's.
    pub names: Vec<String>,
    /// What they are.
    pub roles: Vec<Role>,
    /// The column of the window's start and the window's length.
    pub window: Option<(usize, Span)>,
    /// The column of the event table's partition.
    pub partition: Option<usize>,
    /// The only partition whose rows can be in the answer.
    pub only: Option<String>,
    /// The event table whose windows they are.
    pub table: Option<Oid>,
    /// Whether the last column says if a row fires.
    pub flagged: bool,
    /// Whether old windows can be left out.
    pub bounded: bool,
    /// Until when windows are closed: set before each run.
    pub gate: Arc<Gate>,
    /// Whether it reads a view that is recomputed now and then, and may be behind the windows.
    pub refreshed: bool,
    /// What is read.
    pub sources: Vec<Source>,
}

/// Where an expression's values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Window(Span, Oid),
    /// A window whose end cannot be told from its start.
    Unknown(&'static str),
    /// The event time of a table itself, or what is computed from it or from a window.
    Time(Oid, bool),
    Key(Option<Oid>),
    /// A number of a table.
    Number,
    Measure,
}

/// Compiles an alert's query. Errors: those of the query, and 0A000 for windows whose end is not known.
pub fn compile(binder: &dyn Binder, catalog: &Arc<Catalog>, query: &str, sources: &[Source]) -> Result<Compiled> {
    let seen = View { sources: sources.to_vec(), ..View::default() };
    let catalog = &catalog.narrowed(&seen);
    let reader = Reader { binder, catalog };
    let plan = reader.with_window(binder.bind_query(catalog, query)?)?;
    let found = self::sources(catalog, &plan)?;
    let count = plan.schema().fields().len();
    let names = plan.schema().fields().iter().map(|field| rewrite::shown(field.name()).to_owned()).collect();
    let origins = (0..count).map(|index| reader.column(&plan, index, 0)).collect::<Result<Vec<_>>>()?;
    let mut window = None;
    let mut partition = None;
    for (index, origin) in origins.iter().enumerate() {
        match origin {
            Origin::Window(span, table) if window.is_none() => window = Some((index, *span, *table)),
            Origin::Unknown(why) => return Err(Error::unsupported(format!("an alert over {why} is not supported"))),
            _ => {}
        }
    }
    if let Some((_, _, table)) = window {
        partition = origins.iter().position(|origin| *origin == Origin::Key(Some(table)));
    }
    let role = |(index, origin): (usize, &Origin)| match origin {
        Origin::Window(..) if window.is_some_and(|(window, ..)| window == index) => Role::Window,
        Origin::Key(_) => Role::Key,
        _ => Role::Measure,
    };
    let roles: Vec<Role> = origins.iter().enumerate().map(role).collect();
    let only = window.map_or(Ok(None), |(_, _, table)| reader.only(&plan, table, 0))?;
    let gate = Arc::new(Gate::default());
    let bounded = window.is_some() && reader.forgets(&plan)?;
    let (plan, flagged) = match reader.flag(&plan)? {
        Some(flagged) => (flagged, true),
        None => (plan, false),
    };
    let plan = reader.gated(plan, &gate, bounded)?;
    Ok(Compiled {
        schema: Arc::new(plan.schema().as_arrow().clone()),
        plan,
        names,
        roles,
        window: window.map(|(index, span, _)| (index, span)),
        partition,
        only,
        table: window.map(|(_, _, table)| table),
        flagged,
        bounded,
        gate,
        refreshed: found.iter().any(|source| is_refreshed(catalog, source.oid)),
        sources: found,
    })
}

/// The tables and views that a plan reads, in OID order.
fn sources(catalog: &Catalog, plan: &LogicalPlan) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(source) = scan.source.downcast_ref::<Unresolved>()
        {
            found.extend(match source.relation {
                Relation::Table(oid) => catalog.table(oid).map(|table| Source { oid, columns: table.columns.len() }),
                Relation::View(oid) => catalog.view(oid).map(|view| Source { oid, columns: view.columns.len() }),
                _ => None,
            });
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(failure)?;
    found.sort_unstable_by_key(|source| source.oid);
    found.dedup();
    Ok(found)
}

/// Whether a view, or one below it, is recomputed now and then.
fn is_refreshed(catalog: &Catalog, oid: Oid) -> bool {
    let mut open = vec![oid];
    while let Some(oid) = open.pop() {
        let Some(view) = catalog.view(oid) else { continue };
        if !view.is_incremental() {
            return true;
        }
        open.extend(view.sources.iter().map(|source| source.oid));
    }
    false
}

struct Reader<'a> {
    binder: &'a dyn Binder,
    catalog: &'a Arc<Catalog>,
}

impl Reader<'_> {
    /// Where an output column comes from.
    fn column(&self, plan: &LogicalPlan, index: usize, depth: usize) -> Result<Origin> {
        match plan {
            LogicalPlan::Projection(projection) => match projection.expr.get(index) {
                Some(expr) => self.expression(expr, &projection.input, depth),
                None => Ok(Origin::Measure),
            },
            LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.get(index) {
                Some(Expr::GroupingSet(_)) => Ok(Origin::Key(None)),
                Some(expr) => Ok(match self.expression(expr, &aggregate.input, depth)? {
                    Origin::Number | Origin::Measure => Origin::Key(None),
                    origin => origin,
                }),
                None => Ok(Origin::Measure),
            },
            LogicalPlan::Window(window) if index >= window.input.schema().fields().len() => Ok(Origin::Measure),
            LogicalPlan::Join(join) => {
                let left = join.left.schema().fields().len();
                if index < left { self.column(&join.left, index, depth) } else { self.column(&join.right, index - left, depth) }
            }
            LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<Unresolved>() {
                Some(source) => {
                    let index = scan.projection.as_ref().and_then(|columns| columns.get(index)).copied().unwrap_or(index);
                    self.scanned(source, index, depth)
                }
                None => Ok(Origin::Key(None)),
            },
            LogicalPlan::Unnest(_) | LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) | LogicalPlan::Extension(_) => {
                Ok(Origin::Key(None))
            }
            other => match other.inputs().first() {
                Some(input) => self.column(input, index, depth),
                None => Ok(Origin::Key(None)),
            },
        }
    }

    fn scanned(&self, source: &Unresolved, index: usize, depth: usize) -> Result<Origin> {
        match source.relation {
            Relation::View(oid) => {
                let Some(view) = self.catalog.view(oid).filter(|_| depth < DEPTH_MAX) else { return Ok(Origin::Key(None)) };
                let plan = self.binder.bind_query(&self.catalog.narrowed(view), &view.query)?;
                self.column(&plan, index, depth + 1)
            }
            Relation::Table(oid) => {
                let Some((table, column)) = self.catalog.table(oid).and_then(|table| Some((table, table.columns.get(index)?))) else {
                    return Ok(Origin::Key(None));
                };
                let event_time = table.watermark.filter(|_| table.kind == TableKind::Event).map(|watermark| watermark.column);
                let generated = event_time.and_then(|time| Some(column.generated.as_ref()?.contains(&table.columns[time].name)));
                Ok(match &column.sql_type {
                    _ if event_time == Some(index) => Origin::Time(oid, true),
                    SqlType::Date if generated == Some(true) => Origin::Window(Span::DAY, oid),
                    _ if table.options.partition_by == Some(index) => Origin::Key(Some(oid)),
                    _ if !table.primary_key.is_empty() && !table.primary_key.contains(&index) => Origin::Number,
                    _ if !table.primary_key.is_empty() => Origin::Key(None),
                    SqlType::Numeric(_) | SqlType::Real | SqlType::Double => Origin::Number,
                    _ => Origin::Key(None),
                })
            }
            _ => Ok(Origin::Key(None)),
        }
    }

    fn expression(&self, expr: &Expr, input: &LogicalPlan, depth: usize) -> Result<Origin> {
        match expr {
            Expr::Alias(alias) => self.expression(&alias.expr, input, depth),
            Expr::Column(column) => match input.schema().index_of_column(column) {
                Ok(index) => self.column(input, index, depth),
                Err(_) => Ok(Origin::Key(None)),
            },
            Expr::Cast(inner) => {
                let origin = self.expression(&inner.expr, input, depth)?;
                Ok(match (origin, inner.field.data_type()) {
                    (Origin::Time(table, true), DataType::Date32) => Origin::Window(Span::DAY, table),
                    (Origin::Window(..) | Origin::Time(..), DataType::Utf8 | DataType::Utf8View) => derived(origin),
                    _ => origin,
                })
            }
            Expr::ScalarFunction(call) => {
                let arguments = call.args.iter().map(|argument| self.expression(argument, input, depth)).collect::<Result<Vec<_>>>()?;
                Ok(windowed(call.func.name(), &call.args, &arguments).unwrap_or_else(|| combined(&arguments)))
            }
            other => {
                let mut parts = Vec::new();
                for column in other.column_refs() {
                    parts.push(self.expression(&Expr::Column(column.clone()), input, depth)?);
                }
                Ok(combined(&parts))
            }
        }
    }

    /// The value that the partition of an event table must have wherever rows are read: other partitions can do what they like.
    fn only(&self, plan: &LogicalPlan, table: Oid, depth: usize) -> Result<Option<String>> {
        let mut found = None;
        let mut node = plan;
        loop {
            node = match node {
                LogicalPlan::Filter(filter) => {
                    for (column, value) in split_conjunction(&filter.predicate).into_iter().filter_map(equals) {
                        if self.expression(column, &filter.input, 0)? == Origin::Key(Some(table)) {
                            found = Some(value);
                        }
                    }
                    &filter.input
                }
                // A condition above it does not keep other partitions out of what is computed.
                LogicalPlan::Window(window) => {
                    found = None;
                    &window.input
                }
                LogicalPlan::Projection(projection) => &projection.input,
                LogicalPlan::SubqueryAlias(alias) => &alias.input,
                LogicalPlan::Aggregate(aggregate) => &aggregate.input,
                LogicalPlan::Sort(sort) if sort.fetch.is_none() => &sort.input,
                LogicalPlan::TableScan(scan) if found.is_none() && depth < DEPTH_MAX => {
                    let Some(Relation::View(oid)) = scan.source.downcast_ref::<Unresolved>().map(|source| &source.relation) else {
                        return Ok(None);
                    };
                    let Some(view) = self.catalog.view(*oid) else { return Ok(None) };
                    let plan = self.binder.bind_query(&self.catalog.narrowed(view), &view.query)?;
                    return self.only(&plan, table, depth + 1);
                }
                LogicalPlan::TableScan(_) => return Ok(found),
                _ => return Ok(None),
            };
        }
    }

    /// Whether a window's row depends on that window's rows alone.
    fn forgets(&self, plan: &LogicalPlan) -> Result<bool> {
        let mut forgets = true;
        let mut failed = None;
        plan.apply(|node| {
            match node {
                LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) => {}
                LogicalPlan::Aggregate(aggregate) => match self.windows(node, aggregate.group_expr.len()) {
                    Ok(windows) => forgets &= !windows.is_empty(),
                    Err(error) => failed = Some(error),
                },
                LogicalPlan::TableScan(_) => {}
                _ => forgets = false,
            }
            node.apply_expressions(|expr| {
                forgets &= !has_subquery(expr)?;
                Ok(TreeNodeRecursion::Continue)
            })
        })
        .map_err(failure)?;
        failed.map_or(Ok(forgets), Err)
    }

    /// The first columns of a node that are windows.
    fn windows(&self, plan: &LogicalPlan, count: usize) -> Result<Vec<(usize, Span, Oid)>> {
        let mut windows = Vec::new();
        for index in 0..count.min(plan.schema().fields().len()) {
            if let Origin::Window(span, table) = self.column(plan, index, 0)? {
                windows.push((index, span, table));
            }
        }
        Ok(windows)
    }

    /// The plan with the window that it groups by as a column, where it selects none.
    fn with_window(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        for index in 0..plan.schema().fields().len() {
            if matches!(self.column(&plan, index, 0)?, Origin::Window(..) | Origin::Unknown(_)) {
                return Ok(plan);
            }
        }
        Ok(self.widened(&plan)?.map_or(plan, |(widened, _)| widened))
    }

    /// The same plan with the first window of the aggregation below it, and which column that is. None where nothing but projections,
    /// filters and window functions stands above an aggregation by windows.
    fn widened(&self, plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Column)>> {
        let input = match plan {
            LogicalPlan::Aggregate(aggregate) => {
                let windows = self.windows(plan, aggregate.group_expr.len())?;
                let first = windows.first().map(|(index, ..)| Column::from(plan.schema().qualified_field(*index)));
                return Ok(first.map(|column| (plan.clone(), column)));
            }
            LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Filter(_) | LogicalPlan::Window(_) => {
                plan.inputs()[0]
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => return self.widened(&sort.input),
            _ => return Ok(None),
        };
        let Some((inner, column)) = self.widened(input)? else { return Ok(None) };
        let builder = LogicalPlanBuilder::from(inner);
        let built = match plan {
            LogicalPlan::Projection(projection) => {
                let shown = Expr::Column(column).alias(WINDOW);
                let exprs = projection.expr.iter().cloned().chain([shown]);
                builder.project(exprs).map(|builder| (builder, Column::new_unqualified(WINDOW)))
            }
            LogicalPlan::SubqueryAlias(alias) => {
                builder.alias(alias.alias.clone()).map(|builder| (builder, Column::new(Some(alias.alias.clone()), column.name)))
            }
            LogicalPlan::Filter(filter) => builder.filter(filter.predicate.clone()).map(|builder| (builder, column)),
            LogicalPlan::Window(window) => builder.window(window.window_expr.clone()).map(|builder| (builder, column)),
            _ => return Ok(None),
        };
        let (builder, column) = built.map_err(failure)?;
        Ok(Some((builder.build().map_err(failure)?, column)))
    }

    /// Turns the last filter's conditions on measures into a last column. None where there is none.
    fn flag(&self, plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        let columns = |plan: &LogicalPlan| -> Vec<Expr> {
            plan.schema().iter().map(|(qualifier, field)| Expr::Column(Column::from((qualifier, field)))).collect()
        };
        match plan {
            LogicalPlan::Projection(projection) => {
                let Some(inner) = self.flag(&projection.input)? else { return Ok(None) };
                let last = columns(&inner).pop().map(|flag| flag.alias(FIRES));
                let exprs = projection.expr.iter().cloned().chain(last);
                LogicalPlanBuilder::from(inner).project(exprs).and_then(LogicalPlanBuilder::build).map(Some).map_err(failure)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let Some(inner) = self.flag(&alias.input)? else { return Ok(None) };
                LogicalPlanBuilder::from(inner).alias(alias.alias.clone()).and_then(LogicalPlanBuilder::build).map(Some).map_err(failure)
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.flag(&sort.input),
            LogicalPlan::Filter(filter) => {
                let mut measured = Vec::new();
                let mut others = Vec::new();
                for condition in split_conjunction_owned(filter.predicate.clone()) {
                    let mut measures = false;
                    for column in condition.column_refs() {
                        let index = filter.input.schema().index_of_column(column).map_err(failure)?;
                        measures |= self.column(&filter.input, index, 0)? == Origin::Measure;
                    }
                    match measures && !has_subquery(&condition).map_err(failure)? {
                        true => measured.push(condition),
                        false => others.push(condition),
                    }
                }
                let Some(measured) = conjunction(measured) else { return Ok(None) };
                let exprs = columns(&filter.input).into_iter().chain([measured.is_true().alias(FIRES)]);
                let mut builder = LogicalPlanBuilder::from(filter.input.as_ref().clone());
                if let Some(others) = conjunction(others) {
                    builder = builder.filter(others).map_err(failure)?;
                }
                builder.project(exprs).and_then(LogicalPlanBuilder::build).map(Some).map_err(failure)
            }
            _ => Ok(None),
        }
    }

    /// Leaves open windows out, and with `bounded` old ones.
    fn gated(&self, plan: LogicalPlan, gate: &Arc<Gate>, bounded: bool) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let windows = match &node {
                LogicalPlan::Aggregate(aggregate) => self.windows(&node, aggregate.group_expr.len())?,
                LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<Unresolved>().map(|source| &source.relation) {
                    Some(Relation::View(_)) => self.windows(&node, usize::MAX)?,
                    Some(Relation::Table(oid)) if bounded => return self.recent(*oid, node).map_err(Into::into),
                    _ => return Ok(Transformed::no(node)),
                },
                _ => return Ok(Transformed::no(node)),
            };
            let mut conditions = Vec::new();
            for (index, span, table) in windows {
                let column = |index: usize| Expr::Column(Column::from(node.schema().qualified_field(index)));
                let mut partition = lit(ScalarValue::Utf8View(None));
                for other in 0..node.schema().fields().len() {
                    if self.column(&node, other, 0)? == Origin::Key(Some(table)) {
                        partition = cast(column(other), DataType::Utf8View);
                        break;
                    }
                }
                let window = column(index);
                if bounded && let data_type @ DataType::Timestamp(TimeUnit::Microsecond, _) = window.get_type(node.schema())? {
                    conditions.push(window.clone().gt_eq(oldest(&data_type)));
                }
                conditions.push(closed_function(gate, span).call(vec![partition, window]));
            }
            match conjunction(conditions) {
                Some(condition) => LogicalPlanBuilder::from(node).filter(condition)?.build().map(Transformed::yes),
                None => Ok(Transformed::no(node)),
            }
        })
        .data()
        .map_err(failure)
    }

    /// An event table's rows that can be in a window that is asked for.
    fn recent(&self, oid: Oid, scan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let time = self.catalog.table(oid).and_then(|table| Some(table.columns[table.watermark?.column].name.clone()));
        let Some(time) = time else { return Ok(Transformed::no(scan)) };
        let Some(index) = scan.schema().fields().iter().position(|field| *field.name() == time) else { return Ok(Transformed::no(scan)) };
        let (qualifier, field) = scan.schema().qualified_field(index);
        let condition = Expr::Column(Column::from((qualifier, field))).gt_eq(oldest(field.data_type()));
        let filtered = LogicalPlanBuilder::from(scan).filter(condition).and_then(LogicalPlanBuilder::build).map_err(failure)?;
        Ok(Transformed::yes(filtered))
    }
}

/// `$1`: the start of the oldest window that is asked for.
fn oldest(data_type: &DataType) -> Expr {
    let field = arrow::datatypes::Field::new("", data_type.clone(), true);
    Expr::Placeholder(Placeholder::new_with_field("$1".to_owned(), Some(Arc::new(field))))
}

/// A condition that something equals a text.
fn equals(condition: &Expr) -> Option<(&Expr, String)> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return None };
    let text = |mut side: &Expr| {
        while let Expr::Cast(cast) = side {
            side = &cast.expr;
        }
        match side {
            Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
            _ => None,
        }
    };
    text(right).map(|text| (left.as_ref(), text)).or_else(|| text(left).map(|text| (right.as_ref(), text)))
}

fn has_subquery(expr: &Expr) -> datafusion::common::Result<bool> {
    expr.exists(|node| Ok(matches!(node, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_))))
}

/// The window that a function gives.
fn windowed(name: &str, args: &[Expr], origins: &[Origin]) -> Option<Origin> {
    let time = match name {
        "tumble" | "hop" | "session" => 0,
        "date_trunc" | "date_bin" => 1,
        _ => return None,
    };
    let table = match origins.get(time)? {
        Origin::Time(table, true) | Origin::Window(_, table) => *table,
        Origin::Time(_, false) => return Some(Origin::Unknown("windows of local time")),
        _ => return None,
    };
    let interval = |index: usize| args.get(index).and_then(interval_us);
    let offset_us = |index: usize| interval(index).unwrap_or(0);
    let span = match name {
        "tumble" => interval(1).map(|size_us| Span::tumbling(size_us, offset_us(2))),
        "hop" => interval(1).zip(interval(2)).map(|(step_us, size_us)| Span::Fixed { size_us, step_us, offset_us: offset_us(3) }),
        "session" => return Some(Origin::Unknown("SESSION windows")),
        "date_bin" => interval(0).map(|size_us| Span::tumbling(size_us, args.get(2).and_then(origin_us).unwrap_or(0).rem_euclid(size_us))),
        _ => args.first().and_then(text).and_then(|unit| Span::of_unit(&unit)),
    };
    Some(span.map_or(Origin::Unknown("windows of this length"), |span| Origin::Window(span, table)))
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => literal(&alias.expr),
        Expr::Cast(cast) => literal(&cast.expr),
        _ => None,
    }
}

fn text(expr: &Expr) -> Option<String> {
    literal(expr)?.try_as_str().flatten().map(str::to_owned)
}

fn interval_us(expr: &Expr) -> Option<Micros> {
    match literal(expr)? {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => {
            i64::from(interval.days).checked_mul(DAY_US)?.checked_add(interval.nanoseconds / 1_000).filter(|us| *us != 0)
        }
        _ => None,
    }
}

fn origin_us(expr: &Expr) -> Option<Micros> {
    match literal(expr)? {
        ScalarValue::TimestampMicrosecond(Some(us), _) => Some(*us),
        _ => None,
    }
}

/// What is computed from a time is a time, but no window.
fn derived(origin: Origin) -> Origin {
    match origin {
        Origin::Window(_, table) | Origin::Time(table, _) => Origin::Time(table, false),
        other => other,
    }
}

fn combined(parts: &[Origin]) -> Origin {
    let mut all = None;
    for part in parts {
        all = Some(match (all, derived(*part)) {
            (None, part) => part,
            (Some(Origin::Unknown(why)), _) | (_, Origin::Unknown(why)) => Origin::Unknown(why),
            (Some(Origin::Measure), _) | (_, Origin::Measure) => Origin::Measure,
            (Some(Origin::Number), _) | (_, Origin::Number) => Origin::Number,
            (Some(Origin::Time(table, _)), _) | (_, Origin::Time(table, _)) => Origin::Time(table, false),
            _ => Origin::Key(None),
        });
    }
    match all {
        // A computed partition key is a key, but not the partition.
        Some(Origin::Key(_)) if parts.len() > 1 => Origin::Key(None),
        Some(origin) => origin,
        // A constant tells nothing apart.
        None => Origin::Measure,
    }
}

/// The starts of windows, microseconds; none where NULL.
pub fn starts(values: &ArrayRef) -> Vec<Option<Micros>> {
    match values.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => values.as_primitive::<TimestampMicrosecondType>().iter().collect(),
        DataType::Date32 => values.as_primitive::<Date32Type>().iter().map(|day| Some(i64::from(day?) * DAY_US)).collect(),
        _ => vec![None; values.len()],
    }
}

/// Which rows fire.
pub fn fires(batch: &RecordBatch, flagged: bool) -> BooleanArray {
    let flag = batch.columns().last().filter(|_| flagged).and_then(|flag| flag.as_boolean_opt());
    flag.cloned().unwrap_or_else(|| BooleanArray::from(vec![true; batch.num_rows()]))
}

fn failure(error: datafusion::error::DataFusionError) -> Error {
    crate::query::error::from_datafusion(error)
}
