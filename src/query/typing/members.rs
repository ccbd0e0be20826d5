//! `x NOT IN (SELECT ...)` whose subquery names an outer column, as a condition of WHERE.
//!
//! *Place*: `query::typing` calls it for every filter. DataFusion's NULL-aware anti join takes no other condition than the compared columns;
//! where a row that is not known to be absent is left out all the same, the condition is that no row of the subquery could be equal.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, ExprSchema, Result};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::utils::{conjunction, split_conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, Subquery};

use crate::error::Error;

fn is_correlated(condition: &Expr) -> bool {
    matches!(condition, Expr::InSubquery(member) if member.negated && !member.subquery.outer_ref_columns.is_empty())
}

/// Replaces such conditions of a filter.
pub fn absent(plan: LogicalPlan) -> Result<LogicalPlan> {
    let LogicalPlan::Filter(filter) = plan else { return Ok(plan) };
    if !split_conjunction(&filter.predicate).into_iter().any(is_correlated) {
        return Ok(LogicalPlan::Filter(filter));
    }
    let Filter { predicate, input, .. } = filter;
    let conditions = split_conjunction_owned(predicate).into_iter().map(|condition| match condition {
        Expr::InSubquery(member) if member.negated && !member.subquery.outer_ref_columns.is_empty() => none_equal(member, input.schema()),
        other => Ok(other),
    });
    match conjunction(conditions.collect::<Result<Vec<_>>>()?) {
        Some(predicate) => Filter::try_new(predicate, input).map(LogicalPlan::Filter),
        None => Ok(Arc::unwrap_or_clone(input)),
    }
}

/// `NOT EXISTS`, of the rows that the subquery selects from: what it selects is compared among its own conditions.
fn none_equal(member: InSubquery, schema: &DFSchema) -> Result<Expr> {
    let refused = || {
        let error = Error::unsupported("this correlated NOT IN is not supported");
        error.hint("Write NOT EXISTS, with an alias for each table.")
    };
    let LogicalPlan::Projection(projection) = member.subquery.subquery.as_ref() else { return Err(refused().into()) };
    let value = projection.expr.first().cloned().map(|value| value.unalias_nested().data).ok_or_else(refused)?;
    let rows = LogicalPlanBuilder::from(Arc::clone(&projection.input));
    // A group has a row where there is none to group: its conditions cannot become those of a join.
    let foreign = projection.input.exists(|node| {
        Ok(!matches!(
            node,
            LogicalPlan::Projection(_)
                | LogicalPlan::Filter(_)
                | LogicalPlan::TableScan(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::Join(_)
                | LogicalPlan::Values(_)
        ))
    })?;
    // The outer column must not be taken for one of the subquery's.
    if foreign || member.expr.column_refs().iter().any(|column| rows.schema().has_column(column)) {
        return Err(refused().into());
    }
    let outer = member.expr.transform_up(|inner| match inner {
        Expr::Column(column) => {
            let field = Arc::clone(schema.field_from_column(&column)?);
            Ok(Transformed::yes(Expr::OuterReferenceColumn(field, column)))
        }
        other => Ok(Transformed::no(other)),
    });
    let rows = rows.filter(Expr::IsNotFalse(Box::new(outer.data()?.eq(value))))?.build()?;
    let outer_ref_columns = rows.all_out_ref_exprs();
    let subquery = Subquery { subquery: Arc::new(rows), outer_ref_columns, spans: member.subquery.spans };
    Ok(Expr::Exists(Exists { subquery, negated: true }))
}
