//! Intervals are compared, sorted and grouped by their length, not by their parts.
//!
//! *Place*: `query::typing` calls it for every node and expression that compares values.
//!
//! Arrow compares months first, then days, then time. PostgreSQL takes a month for 30 days and a day for 24 hours; so wherever
//! intervals are compared, the key of `functions::interval` stands in for them.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, Result};
use datafusion::functions_aggregate::first_last::first_value_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, InList, Sort};
use datafusion::logical_expr::{
    Aggregate, Between, BinaryExpr, Distinct, Expr, ExprSchemable, Join, JoinConstraint, LogicalPlan, Projection,
};

use super::operators::compares;
use crate::error::Error;
use crate::query::functions::interval;

/// Ends the name of the key that stands for a group's interval.
const KEY: &str = "\u{1}key";

fn is_interval(expression: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(matches!(expression.get_type(schema)?, DataType::Interval(_)))
}

fn key(expression: Expr) -> Expr {
    interval::key().call(vec![expression])
}

fn keyed(expression: Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(if is_interval(&expression, schema)? { key(expression) } else { expression })
}

/// A comparison by length, where it is one of intervals.
pub fn compared(expression: Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(match expression {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) && is_interval(&left, schema)? => {
            Expr::BinaryExpr(BinaryExpr::new(Box::new(keyed(*left, schema)?), op, Box::new(keyed(*right, schema)?)))
        }
        Expr::Between(Between { expr, negated, low, high }) if is_interval(&expr, schema)? => {
            let boxed = |side: Box<Expr>| keyed(*side, schema).map(Box::new);
            Expr::Between(Between::new(boxed(expr)?, negated, boxed(low)?, boxed(high)?))
        }
        Expr::InList(InList { expr, list, negated }) if is_interval(&expr, schema)? => {
            let list = list.into_iter().map(|item| keyed(item, schema)).collect::<Result<_>>()?;
            Expr::InList(InList::new(Box::new(key(*expr)), list, negated))
        }
        Expr::InSubquery(query) if is_interval(&query.expr, schema)? => {
            return Err(Error::unsupported("IN (SELECT ...) of intervals is not supported").hint("Write it as a join.").into());
        }
        other => other,
    })
}

/// Sort keys by length.
pub fn sorted(keys: Vec<Sort>, schema: &DFSchema) -> Result<Vec<Sort>> {
    keys.into_iter().map(|sort| Ok(Sort { expr: keyed(sort.expr, schema)?, ..sort })).collect()
}

/// Partition keys by length.
pub fn partitioned(keys: Vec<Expr>, schema: &DFSchema) -> Result<Vec<Expr>> {
    keys.into_iter().map(|expression| keyed(expression, schema)).collect()
}

/// `min`, `max` and `count(DISTINCT)` by length; `sum` and `avg` of their own. None where the aggregate is not of intervals.
pub fn aggregate(name: &str, params: &AggregateFunctionParams, schema: &DFSchema) -> Result<Option<Expr>> {
    let [argument] = params.args.as_slice() else { return Ok(None) };
    if !is_interval(argument, schema)? {
        return Ok(None);
    }
    let AggregateFunctionParams { mut args, distinct, filter, order_by, null_treatment } = params.clone();
    let func = match name {
        "sum" => interval::sum(),
        "avg" | "mean" => interval::average(),
        "min" | "max" => {
            let order = vec![Sort::new(key(argument.clone()), name == "min", false)];
            return Ok(Some(Expr::AggregateFunction(AggregateFunction::new_udf(first_value_udaf(), args, false, filter, order, None))));
        }
        "count" if distinct => {
            args = vec![key(argument.clone())];
            datafusion::functions_aggregate::count::count_udaf()
        }
        _ if distinct => return Err(Error::unsupported(format!("{name}(DISTINCT interval) is not supported")).into()),
        _ => return Ok(None),
    };
    Ok(Some(Expr::AggregateFunction(AggregateFunction::new_udf(func, args, distinct, filter, order_by, null_treatment))))
}

/// A node that groups, joins or tells rows apart by intervals, by their keys instead.
pub fn node(plan: LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => grouped(aggregate),
        LogicalPlan::Distinct(Distinct::All(input)) if has_intervals(input.schema()) => {
            let columns = input.schema().iter().map(|(qualifier, field)| Expr::Column((qualifier, field).into())).collect();
            grouped(Aggregate::try_new(input, columns, Vec::new())?)
        }
        LogicalPlan::Join(join) => joined(join),
        other => Ok(other),
    }
}

fn has_intervals(schema: &DFSchema) -> bool {
    schema.fields().iter().any(|field| matches!(field.data_type(), DataType::Interval(_)))
}

/// Groups by key, and shows one interval of each group.
fn grouped(aggregate: Aggregate) -> Result<LogicalPlan> {
    let schema = Arc::clone(aggregate.input.schema());
    let sets = aggregate.group_expr.iter().any(|group| matches!(group, Expr::GroupingSet(_)));
    let intervals: Vec<bool> = match sets {
        true => match aggregate.group_expr.first() {
            Some(Expr::GroupingSet(set)) => {
                for group in set.distinct_expr() {
                    if is_interval(group, &schema)? {
                        return Err(Error::unsupported("grouping sets of intervals are not supported").into());
                    }
                }
                Vec::new()
            }
            _ => Vec::new(),
        },
        false => aggregate.group_expr.iter().map(|group| is_interval(group, &schema)).collect::<Result<_>>()?,
    };
    if !intervals.contains(&true) {
        return Ok(LogicalPlan::Aggregate(aggregate));
    }
    let Aggregate { input, group_expr, mut aggr_expr, schema: shown, .. } = aggregate;
    let mut groups = Vec::with_capacity(group_expr.len());
    let mut columns: Vec<Expr> = shown.iter().map(|(qualifier, field)| Expr::Column((qualifier, field).into())).collect();
    for (index, group) in group_expr.into_iter().enumerate() {
        if !intervals[index] {
            groups.push(group);
            continue;
        }
        let (qualifier, field) = shown.qualified_field(index);
        let name = format!("{}{KEY}{index}", field.name());
        let order = vec![Sort::new(key(group.clone()), true, false)];
        let first = AggregateFunction::new_udf(first_value_udaf(), vec![group.clone()], false, None, order, None);
        aggr_expr.push(Expr::AggregateFunction(first).alias(&name));
        groups.push(key(group));
        columns[index] = Expr::Column(Column::from_name(name)).alias_qualified(qualifier.cloned(), field.name());
    }
    let aggregate = Aggregate::try_new(input, groups, aggr_expr)?;
    Projection::try_new(columns, Arc::new(LogicalPlan::Aggregate(aggregate))).map(LogicalPlan::Projection)
}

fn joined(mut join: Join) -> Result<LogicalPlan> {
    let (left, right) = (Arc::clone(join.left.schema()), Arc::clone(join.right.schema()));
    if join.on.iter().any(|(one, _)| matches!(one.get_type(&left), Ok(DataType::Interval(_)))) {
        // The columns of USING are no longer what is joined by.
        join.join_constraint = JoinConstraint::On;
    }
    join.on = join.on.into_iter().map(|(one, other)| Ok((keyed(one, &left)?, keyed(other, &right)?))).collect::<Result<_>>()?;
    Ok(LogicalPlan::Join(join))
}
