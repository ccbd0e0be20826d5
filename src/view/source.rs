//! What a view's SELECT reads: filters and projections below its aggregation, folded into expressions over one table.
//!
//! *Place*: the first half of `compile`.

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

use super::failure::failure;
use crate::error::{Error, Result};

/// A chain of filters and projections over one table scan.
#[derive(Debug)]
pub(super) struct Source {
    /// Name of the table, without schema.
    pub(super) table: String,
    /// The chain's output columns over the table's (unqualified) columns.
    pub(super) outputs: Vec<Expr>,
    /// Conjuncts over the table's columns.
    pub(super) filters: Vec<Expr>,
}

/// Folds the plan below the aggregation. 0A000 for anything but filters, projections and aliases over one table.
pub(super) fn fold(plan: &LogicalPlan) -> Result<Source> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let outputs = scan.projected_schema.fields().iter().map(|field| Expr::Column(Column::new_unqualified(field.name()))).collect();
            let filters = scan.filters.iter().map(unqualified).collect::<Result<Vec<_>>>()?;
            Ok(Source { table: scan.table_name.table().to_owned(), outputs, filters })
        }
        LogicalPlan::SubqueryAlias(alias) => fold(&alias.input),
        LogicalPlan::Filter(filter) => {
            let mut source = fold(&filter.input)?;
            let predicate = source.over_table(&filter.predicate, filter.input.schema())?;
            source.filters.push(predicate);
            Ok(source)
        }
        LogicalPlan::Projection(projection) => {
            let mut source = fold(&projection.input)?;
            let outputs =
                projection.expr.iter().map(|expr| source.over_table(expr, projection.input.schema())).collect::<Result<Vec<_>>>()?;
            source.outputs = outputs;
            Ok(source)
        }
        other => Err(refusal(other)),
    }
}

impl Source {
    /// An expression over the chain's output, rewritten over the table's columns and checked.
    pub(super) fn over_table(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        check(expr)?;
        expr.clone()
            .unalias_nested()
            .data
            .transform_up(|node| match node {
                Expr::Column(column) => {
                    let index = schema.index_of_column(&column)?;
                    Ok(Transformed::yes(self.outputs[index].clone()))
                }
                other => Ok(Transformed::no(other)),
            })
            .data()
            .map_err(failure)
    }
}

fn unqualified(expr: &Expr) -> Result<Expr> {
    expr.clone()
        .transform_up(|node| match node {
            Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
            other => Ok(Transformed::no(other)),
        })
        .data()
        .map_err(failure)
}

/// Refuses what does not give the same answer for the same row at every time, and what reads other rows.
pub(super) fn check(expr: &Expr) -> Result<()> {
    let mut refused = None;
    expr.apply(|node| {
        refused = match node {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => Some(volatile(call.func.name())),
            Expr::AggregateFunction(call) if call.func.signature().volatility == Volatility::Volatile => Some(volatile(call.func.name())),
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
            Expr::Placeholder(_) => Some(no_view("a parameter", "Write the value into the query.")),
            _ => None,
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

/// The 0A000 for a construct that cannot be kept incrementally.
pub(super) fn no_view(what: &str, hint: &str) -> Error {
    Error::unsupported(format!("{what} in a materialized view is not supported"))
        .detail("Materialized views are kept incrementally: filters, grouping and aggregates over one event table.")
        .hint(hint)
}

/// The 0A000 for a plan node that cannot be part of a view.
pub(super) fn refusal(plan: &LogicalPlan) -> Error {
    match plan {
        LogicalPlan::Join(_) => no_view("a join", "Keep the aggregate as a materialized view and join it when reading."),
        LogicalPlan::Union(_) => no_view("UNION", "Create a materialized view for each branch and combine them when reading."),
        LogicalPlan::Window(_) => no_view("a window function", "Apply the window function to the materialized view when reading it."),
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
