//! What an aggregation of a query reads: its grouping, calls and filters as expressions over one event table.
//!
//! *Place*: the first step of [`super`]. An aggregation over anything but filters and projections of one event table has no shape.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, LogicalPlan, TableScan, Volatility};

use crate::query::provider::rows::Rows;
use crate::store::TableState;

/// An aggregation over one table, not yet in normal form.
pub struct Shape<'a> {
    /// The table.
    pub table: Arc<TableState>,
    /// The plan below the aggregation.
    pub input: &'a Arc<LogicalPlan>,
    /// The aggregation's output.
    pub schema: DFSchemaRef,
    /// Grouping expressions and aggregates over `input`, as the query has them.
    pub group: Vec<Expr>,
    /// See `group`.
    pub calls: Vec<AggregateFunction>,
    /// The grouping expressions over the table's columns.
    pub group_over_table: Vec<Expr>,
    /// The aggregates over the table's columns.
    pub calls_over_table: Vec<AggregateFunction>,
    /// Conjuncts over the table's columns.
    pub filters: Vec<Expr>,
}

/// What a node is for the router.
pub enum Found<'a> {
    /// An aggregation over one table.
    Shape(Box<Shape<'a>>),
    /// An aggregation over a table that cannot be routed, and why.
    Refused(String),
    /// Anything else.
    Other,
}

/// Looks at one node.
pub fn find(plan: &LogicalPlan) -> Result<Found<'_>> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => of_aggregate(aggregate),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let Some(mut source) = fold(input)? else { return Ok(Found::Other) };
            let group = input.schema().columns().into_iter().map(Expr::Column).collect();
            let group_over_table = std::mem::take(&mut source.outputs);
            Ok(finished(source, input, Arc::clone(input.schema()), Grouping { group, group_over_table, ..Grouping::default() }))
        }
        _ => Ok(Found::Other),
    }
}

#[derive(Default)]
struct Grouping {
    group: Vec<Expr>,
    calls: Vec<AggregateFunction>,
    group_over_table: Vec<Expr>,
    calls_over_table: Vec<AggregateFunction>,
}

fn of_aggregate(aggregate: &Aggregate) -> Result<Found<'_>> {
    let Some(source) = fold(&aggregate.input)? else { return Ok(Found::Other) };
    let schema = aggregate.input.schema();
    let mut grouping = Grouping::default();
    for key in &aggregate.group_expr {
        if matches!(key, Expr::GroupingSet(_)) {
            return Ok(Found::Refused("GROUPING SETS, CUBE and ROLLUP are not routed".to_owned()));
        }
        let key = key.clone().unalias_nested().data;
        grouping.group_over_table.push(source.over_table(&key, schema)?);
        grouping.group.push(key);
    }
    for call in &aggregate.aggr_expr {
        let call = call.clone().unalias_nested().data;
        let (Expr::AggregateFunction(over_table), Expr::AggregateFunction(call)) = (source.over_table(&call, schema)?, call) else {
            return Ok(Found::Refused("an expression that is no aggregate".to_owned()));
        };
        grouping.calls_over_table.push(over_table);
        grouping.calls.push(call);
    }
    Ok(finished(source, &aggregate.input, Arc::clone(&aggregate.schema), grouping))
}

fn finished<'a>(source: Source, input: &'a Arc<LogicalPlan>, schema: DFSchemaRef, grouping: Grouping) -> Found<'a> {
    let Grouping { group, calls, group_over_table, calls_over_table } = grouping;
    let arguments = calls_over_table.iter().cloned().map(Expr::AggregateFunction).collect::<Vec<_>>();
    if let Some(reason) = group_over_table.iter().chain(&source.filters).chain(&arguments).find_map(unfit) {
        return Found::Refused(reason);
    }
    let filters = source.filters;
    Found::Shape(Box::new(Shape { table: source.table, input, schema, group, calls, group_over_table, calls_over_table, filters }))
}

/// A chain of filters and projections over one event table.
struct Source {
    table: Arc<TableState>,
    outputs: Vec<Expr>,
    filters: Vec<Expr>,
}

fn fold(plan: &LogicalPlan) -> Result<Option<Source>> {
    match plan {
        LogicalPlan::TableScan(scan) => Ok(table_of(scan).map(|table| {
            let fields = scan.projected_schema.fields();
            let outputs = fields.iter().map(|field| Expr::Column(Column::new_unqualified(field.name()))).collect();
            Source { table, outputs, filters: Vec::new() }
        })),
        LogicalPlan::SubqueryAlias(alias) => fold(&alias.input),
        LogicalPlan::Filter(filter) => {
            let Some(mut source) = fold(&filter.input)? else { return Ok(None) };
            source.filters.push(source.over_table(&filter.predicate, filter.input.schema())?);
            Ok(Some(source))
        }
        LogicalPlan::Projection(projection) => {
            let Some(mut source) = fold(&projection.input)? else { return Ok(None) };
            let schema = projection.input.schema();
            source.outputs = projection.expr.iter().map(|expr| source.over_table(expr, schema)).collect::<Result<_>>()?;
            Ok(Some(source))
        }
        _ => Ok(None),
    }
}

/// The event table of a whole, unfiltered scan.
pub fn table_of(scan: &TableScan) -> Option<Arc<TableState>> {
    let provider = source_as_provider(&scan.source).ok()?;
    let rows = provider.downcast_ref::<Rows>()?;
    let plain = scan.filters.is_empty() && scan.fetch.is_none() && rows.is_whole() && rows.table().table.watermark.is_some();
    plain.then(|| Arc::clone(rows.table()))
}

impl Source {
    /// An expression over the chain's output, rewritten over the table's columns.
    fn over_table(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        expr.clone()
            .unalias_nested()
            .data
            .transform_up(|node| match node {
                Expr::Column(column) => Ok(Transformed::yes(self.outputs[schema.index_of_column(&column)?].clone())),
                other => Ok(Transformed::no(other)),
            })
            .data()
    }
}

/// Why an expression stands in the way of every route.
fn unfit(expr: &Expr) -> Option<String> {
    let mut reason = None;
    let walked = expr.apply(|node| {
        reason = match node {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                Some(format!("{}() is volatile", call.func.name()))
            }
            Expr::AggregateFunction(call) if call.func.signature().volatility == Volatility::Volatile => {
                Some(format!("{}() is volatile", call.func.name()))
            }
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => {
                Some("it has a subquery".to_owned())
            }
            Expr::OuterReferenceColumn(..) => Some("it refers to an outer query".to_owned()),
            Expr::Placeholder(_) => Some("it has an open parameter".to_owned()),
            _ => None,
        };
        Ok(if reason.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match walked {
        Ok(_) => reason,
        Err(error) => Some(error.to_string()),
    }
}
