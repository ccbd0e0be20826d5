//! An operator's input: its plan, its event time, and the order in which its rows arrived.
//!
//! *Place*: [`super::args::Call`] makes it of the first argument.
//!
//! Rows of a table have sequence numbers, which a query does not see. [`Input`] looks through filters, projections, aliases, sorts,
//! limits, windows and the first side of joins (of inner ones, the side of the event table) for the table that the rows come from, and
//! brings its numbers along as a hidden column.
//! Rows that do not come from one table so (of a view, an aggregation, a union) have no such order: their ties are in no defined order.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchemaRef, JoinType, Result, ScalarValue};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableSource};
use sqlparser::ast::{self, FunctionArguments, ObjectName, TableFactor, TableFunctionArgs};

use crate::error::Error;
use crate::query::provider::rows::Rows;
use crate::query::provider::{Relation, Unresolved};
use crate::query::typing::casts;
use crate::types::LSN_COLUMN;

/// The event time of inputs that do not come from one event table, by name.
const EVENT_TIME: &str = "event_time";

/// What an operator reads.
#[derive(Debug)]
pub struct Input {
    /// Typed. Has the column of [`Input::arrival`] beside what the user sees.
    pub plan: LogicalPlan,
    /// The rows' sequence numbers (bigint), where they have some.
    pub arrival: Option<Column>,
    /// The event time of the table that the rows come from, where it is still among the columns.
    pub event_time: Option<Column>,
}

impl Input {
    /// Looks through a typed plan.
    pub fn of(plan: LogicalPlan) -> Result<Self> {
        let Input { plan, arrival, event_time } = traced(plan)?;
        let event_time = event_time.or_else(|| time_of(plan.schema()));
        Ok(Input { plan, arrival, event_time })
    }

    /// Its schema, for expressions over it.
    pub fn schema(&self) -> &DFSchemaRef {
        self.plan.schema()
    }

    /// The columns that the user sees.
    pub fn columns(&self) -> Vec<Column> {
        let columns = self.plan.schema().iter().map(Column::from);
        columns.filter(|column| Some(column) != self.arrival.as_ref()).collect()
    }

    /// What rows of one time are ordered by: their arrival, or a constant where they have none.
    pub fn order(&self) -> Expr {
        match &self.arrival {
            Some(column) => Expr::Column(column.clone()),
            None => casts::to(Expr::Literal(ScalarValue::Int64(Some(0)), None), DataType::Int64),
        }
    }
}

/// `event_time`, or the only column of times.
fn time_of(schema: &DFSchemaRef) -> Option<Column> {
    let times: Vec<_> = schema.iter().filter(|(_, field)| matches!(field.data_type(), DataType::Timestamp(_, _))).collect();
    let named: Vec<_> = times.iter().filter(|(_, field)| field.name() == EVENT_TIME).collect();
    match (named.as_slice(), times.as_slice()) {
        ([one], _) => Some(Column::from(**one)),
        ([], [one]) => Some(Column::from(*one)),
        _ => None,
    }
}

/// The plan with the hidden column, and what is known.
fn traced(plan: LogicalPlan) -> Result<Input> {
    let unknown = |plan| Ok(Input { plan, arrival: None, event_time: None });
    match &plan {
        LogicalPlan::TableScan(scan) => {
            let Some((source, event_time)) = numbered(&scan.source).filter(|_| scan.projection.is_none()) else { return unknown(plan) };
            let qualified = |name: &str| Column::new(Some(scan.table_name.clone()), name);
            let (arrival, event_time) = (qualified(LSN_COLUMN), event_time.as_deref().map(qualified));
            let plan = LogicalPlanBuilder::scan_with_filters(scan.table_name.clone(), source, None, scan.filters.clone())?.build()?;
            Ok(Input { plan, arrival: Some(arrival), event_time })
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let inner = traced(Arc::unwrap_or_clone(Arc::clone(&alias.input)))?;
            let moved = |column: Column| Column::new(Some(alias.alias.clone()), column.name);
            let plan = LogicalPlanBuilder::from(inner.plan).alias(alias.alias.clone())?.build()?;
            Ok(Input { plan, arrival: inner.arrival.map(moved), event_time: inner.event_time.map(moved) })
        }
        LogicalPlan::Projection(projection) => {
            let inner = traced(Arc::unwrap_or_clone(Arc::clone(&projection.input)))?;
            let place = |column: &Column| projection.expr.iter().position(|expr| is_column(expr, column));
            let event_time = inner.event_time.as_ref().and_then(place).map(|index| Column::from(projection.schema.qualified_field(index)));
            let mut columns = projection.expr.clone();
            // An operator below has brought it along already.
            let hidden = inner.arrival.clone().map(Expr::Column).filter(|hidden| !columns.contains(hidden));
            columns.extend(hidden);
            let plan = LogicalPlanBuilder::from(inner.plan).project(columns)?.build()?;
            Ok(Input { plan, arrival: inner.arrival, event_time })
        }
        LogicalPlan::Join(join) if matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti) => {
            let left = traced(join.left.as_ref().clone())?;
            if join.join_type == JoinType::Inner && left.event_time.is_none() {
                // Of two tables the one of events has the order that matters.
                let right = traced(join.right.as_ref().clone())?;
                if right.event_time.is_some() {
                    let plan = plan.with_new_exprs(plan.expressions(), vec![join.left.as_ref().clone(), right.plan])?;
                    return Ok(Input { plan, ..right });
                }
            }
            let plan = plan.with_new_exprs(plan.expressions(), vec![left.plan, join.right.as_ref().clone()])?;
            Ok(Input { plan, ..left })
        }
        LogicalPlan::Unnest(unnest) => {
            let inner = traced(unnest.input.as_ref().clone())?;
            let lists = unnest.exec_columns.clone();
            let plan = LogicalPlanBuilder::from(inner.plan).unnest_columns_with_options(lists, unnest.options.clone())?.build()?;
            Ok(Input { plan, ..inner })
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::Window(_) => {
            let [input] = plan.inputs()[..] else { return unknown(plan) };
            let inner = traced(input.clone())?;
            let plan = plan.with_new_exprs(plan.expressions(), vec![inner.plan])?;
            Ok(Input { plan, ..inner })
        }
        _ => unknown(plan),
    }
}

/// A table's rows with their sequence numbers, named by a bound plan or read by a resolved one, and the name of its event time.
fn numbered(source: &Arc<dyn TableSource>) -> Option<(Arc<dyn TableSource>, Option<String>)> {
    if let Some(table) = source.downcast_ref::<Unresolved>() {
        let event_time = table.event_time().map(str::to_owned);
        return matches!(table.relation, Relation::Table(_)).then(|| (Arc::new(table.clone().with_lsn()) as _, event_time));
    }
    let provider = source_as_provider(source).ok()?;
    let rows = provider.downcast_ref::<Rows>()?;
    let has_numbers = source.schema().fields().last().is_some_and(|last| last.name() == LSN_COLUMN);
    let table = &rows.table().table;
    let event_time = table.watermark.and_then(|watermark| table.columns.get(watermark.column)).map(|column| column.name.clone());
    let source = if has_numbers { Arc::clone(source) } else { provider_as_source(Arc::new(rows.with_lsn())) };
    Some((source, event_time))
}

fn is_column(expr: &Expr, wanted: &Column) -> bool {
    match expr {
        Expr::Column(column) => column == wanted,
        Expr::Alias(alias) => is_column(&alias.expr, wanted),
        _ => false,
    }
}

/// The first argument as a relation: a table, view or CTE by name, a subquery, or another operator or function in FROM.
pub fn relation(expression: ast::Expr, operator: &str) -> Result<TableFactor, Error> {
    match expression {
        ast::Expr::Identifier(ident) => Ok(table(ObjectName::from(vec![ident]), None)),
        ast::Expr::CompoundIdentifier(idents) => Ok(table(ObjectName::from(idents), None)),
        ast::Expr::Subquery(subquery) => Ok(TableFactor::Derived { lateral: false, subquery, alias: None, sample: None }),
        ast::Expr::Nested(inner) => relation(*inner, operator),
        ast::Expr::Function(ast::Function { name, args: FunctionArguments::List(list), over: None, filter: None, .. })
            if list.clauses.is_empty() && list.duplicate_treatment.is_none() =>
        {
            Ok(table(name, Some(TableFunctionArgs { args: list.args, settings: None })))
        }
        other => Err(Error::syntax(format!("the input of {operator} must be a table, not \"{other}\""))
            .hint("Name a table or a view, write a subquery in parentheses, or call another operator.")),
    }
}

fn table(name: ObjectName, args: Option<TableFunctionArgs>) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}
