//! PostgreSQL's typing where DataFusion's differs.
//!
//! *Place*: between the SQL planner and DataFusion's type coercion, called by `query::bind`. [`planner`] does what the SQL
//! planner itself has to know (which operators exist); [`apply`] goes over the whole plan afterwards.
//!
//! *Invariants*: (1) comparisons stay comparisons of columns and literals, so that pruning and pushdown see them; (2) a
//! plan that was typed once is not changed by a second round; (3) output names are kept.

pub mod aggregates;
pub mod assign;
pub mod branches;
mod bytes;
mod calls;
pub mod casts;
pub mod chains;
mod grouping;
pub mod intervals;
mod members;
pub mod operators;
pub mod planner;
pub mod sets;

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, NullHandling, Result, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, InList, InSubquery, SetComparison, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Between, BinaryExpr, Case, Expr, ExprSchemable, Like, LogicalPlan, LogicalPlanBuilder, Operator, Projection, RecursiveQuery, Sort,
    Values,
};

use crate::error::{Error, SqlState};
use crate::query::functions::{self, cast, session, zone};
use crate::types::SqlType;

/// Types a plan: literals, casts, operators, aggregates, functions of time.
pub fn apply(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(node).map(|typed| typed.data)
}

fn node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    match plan {
        // DataFusion takes the counts of LIMIT as they are.
        LogicalPlan::Limit(_) | LogicalPlan::TableScan(_) => Ok(Transformed::no(plan)),
        LogicalPlan::Values(values) => typed_values(values).map(Transformed::yes),
        LogicalPlan::RecursiveQuery(query) => recursive(query).map(Transformed::yes),
        LogicalPlan::Union(union) => sets::union(union).map(Transformed::yes),
        LogicalPlan::Aggregate(aggregate) if aggregates::among_keys(&aggregate)? => {
            Err(Error::new(SqlState::GROUPING_ERROR, "aggregate functions are not allowed in GROUP BY").into())
        }
        LogicalPlan::Aggregate(aggregate) if grouping::has_expressions(&aggregate) => {
            let (input, rest) = grouping::computed(aggregate)?;
            let input = node(input)?.data;
            node(grouping::over(input, rest)?).map(|typed| Transformed::yes(typed.data))
        }
        LogicalPlan::Join(join) if sets::is_operation(&join) => sets::operation(join).map(Transformed::yes),
        // A set of no rows gives none, as in PostgreSQL.
        LogicalPlan::Unnest(mut unnest) if unnest.options.null_handling == NullHandling::Preserve => {
            unnest.options.null_handling = NullHandling::Drop;
            LogicalPlan::Unnest(unnest).recompute_schema().map(Transformed::yes)
        }
        plan => {
            let schema = merge_schema(&plan.inputs());
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expression| {
                let name = names.save(&expression);
                Ok(self::expression(expression, &schema)?.update_data(|expression| name.restore(expression)))
            })?
            .map_data(|plan| members::absent(intervals::node(ordered(plan)?.recompute_schema()?)?))
        }
    }
}

/// Sort keys of intervals by length.
fn ordered(plan: LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::Sort(Sort { expr, input, fetch }) => {
            let expr = intervals::sorted(expr, input.schema())?;
            Ok(LogicalPlan::Sort(Sort { expr, input, fetch }))
        }
        other => Ok(other),
    }
}

/// The terms of a recursive query give what its work table was planned with.
fn recursive(query: RecursiveQuery) -> Result<LogicalPlan> {
    let schema = Arc::clone(&query.schema);
    let cast = |term: Arc<LogicalPlan>| -> Result<Arc<LogicalPlan>> {
        let columns = term.schema().iter().zip(schema.fields()).map(|((qualifier, field), target)| {
            let column = Expr::Column((qualifier, field).into());
            match field.data_type() == target.data_type() {
                true => column,
                false => casts::to(column, target.data_type().clone()).alias_qualified(qualifier.cloned(), field.name()),
            }
        });
        let columns: Vec<_> = columns.collect();
        Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, term)?)))
    };
    Ok(LogicalPlan::RecursiveQuery(RecursiveQuery {
        static_term: cast(Arc::clone(&query.static_term))?,
        recursive_term: cast(Arc::clone(&query.recursive_term))?,
        ..query
    }))
}

fn typed_values(values: Values) -> Result<LogicalPlan> {
    let schema = DFSchema::empty();
    let width = values.values.first().map_or(0, Vec::len);
    let mut columns: Vec<Vec<Expr>> = (0..width).map(|_| Vec::with_capacity(values.values.len())).collect();
    let mut open = false;
    for row in values.values {
        for (column, value) in columns.iter_mut().zip(row) {
            let value = cast::item(value).inspect(|_| open = true).unwrap_or_else(|value| value);
            column.push(expression(untyped_null(value), &schema)?.data);
        }
    }
    let columns = columns.into_iter().map(|column| branches::unified("VALUES", column, &schema)).collect::<Result<Vec<_>>>()?;
    if !open {
        return LogicalPlanBuilder::values(rows(columns))?.build();
    }
    // What DataFusion would ask of the items has been asked of their types.
    let fields = columns.iter().enumerate().map(field_of_values).collect::<Result<Vec<_>>>()?;
    let columns = columns.into_iter().zip(&fields).map(|(column, field)| {
        // A NULL has the type of its column.
        let typed = |item: Expr| match item.get_type(&schema)?.is_null() && !operators::open(&item) {
            true => Ok(casts::to(item, field.data_type().clone())),
            false => Ok(item),
        };
        column.into_iter().map(typed).collect::<Result<Vec<_>>>()
    });
    let values = rows(columns.collect::<Result<Vec<_>>>()?);
    let schema = Arc::new(DFSchema::from_unqualified_fields(fields.into(), Default::default())?);
    Ok(LogicalPlan::Values(Values { schema, values }))
}

fn rows(columns: Vec<Vec<Expr>>) -> Vec<Vec<Expr>> {
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    let mut rows = Vec::new();
    while let Some(row) = columns.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>().filter(|row| !row.is_empty()) {
        rows.push(row);
    }
    rows
}

/// A column of VALUES, of the type that its items have been given.
fn field_of_values((index, items): (usize, &Vec<Expr>)) -> Result<FieldRef> {
    let name = format!("column{}", index + 1);
    Ok(Arc::new(match branches::common("VALUES", items, &DFSchema::empty())? {
        Some(known) => known.field(&name, true),
        None if items.iter().all(operators::open) => Field::new(name, DataType::Null, true),
        None => SqlType::Text.field(&name, true),
    }))
}

/// NULL among VALUES, which the planner has cast to the type that its neighbours had before they were typed.
fn untyped_null(value: Expr) -> Expr {
    match value {
        Expr::Cast(cast) if matches!(&*cast.expr, Expr::Literal(ScalarValue::Null, _)) && cast.field.data_type() == &DataType::Int64 => {
            Expr::Literal(ScalarValue::Null, None)
        }
        Expr::Literal(value, None) if value.is_null() => Expr::Literal(ScalarValue::Null, None),
        other => other,
    }
}

/// Types one expression over rows of `schema`.
pub fn expression(expression: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expression.transform_up(|expression| rewrite(expression, schema))
}

fn rewrite(expression: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expression {
        Expr::Literal(value, metadata) => match literal(value) {
            Ok(value) => Transformed::yes(Expr::Literal(value, metadata)),
            Err(value) => Transformed::no(Expr::Literal(value, metadata)),
        },
        Expr::Cast(cast) => casts::explicit(cast, schema)?,
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let what = if op == Operator::And { "AND" } else { "OR" };
            let (left, right) = (operators::condition(what, *left, schema)?, operators::condition(what, *right, schema)?);
            Transformed::no(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))))
        }
        Expr::Not(inner) => Transformed::no(Expr::Not(Box::new(operators::condition("NOT", *inner, schema)?))),
        Expr::Negative(inner) => Transformed::no(operators::negative(*inner, schema)?),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match operators::typed(*left, op, *right, schema)? {
            operators::Outcome::Changed(expression) => Transformed::yes(intervals::compared(expression, schema)?),
            operators::Outcome::Same(left, right) if operators::compares(op) => {
                let expression = Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)));
                Transformed::yes(intervals::compared(expression, schema)?)
            }
            operators::Outcome::Same(left, right) => operators::arithmetic(left, op, right, schema)?,
        },
        Expr::Between(Between { expr, negated, low, high }) => {
            let low = operators::operand(*low, &expr, schema)?;
            let high = operators::operand(*high, &expr, schema)?;
            let between = Expr::Between(Between::new(expr, negated, Box::new(low), Box::new(high)));
            Transformed::yes(intervals::compared(between, schema)?)
        }
        Expr::InList(InList { expr, list, negated }) => {
            let list = list.into_iter().map(|item| operators::operand(item, &expr, schema)).collect::<Result<_>>()?;
            Transformed::yes(intervals::compared(Expr::InList(InList::new(expr, list, negated)), schema)?)
        }
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
            let expr = Box::new(operators::member(*expr, Operator::Eq, subquery.subquery.schema(), schema)?);
            Transformed::yes(intervals::compared(Expr::InSubquery(InSubquery { expr, subquery, negated }), schema)?)
        }
        Expr::SetComparison(comparison) => {
            let expr = operators::member(*comparison.expr, comparison.op, comparison.subquery.subquery.schema(), schema)?;
            Transformed::yes(Expr::SetComparison(SetComparison { expr: Box::new(expr), ..comparison }))
        }
        Expr::Case(case) => Transformed::yes(Expr::Case(typed_case(case, schema)?)),
        Expr::Like(like) => Transformed::no(Expr::Like(text_only(like, schema)?)),
        Expr::AggregateFunction(AggregateFunction { func, params }) => aggregates::aggregate(func, params, schema)?,
        Expr::WindowFunction(function) => window(*function, schema)?,
        Expr::ScalarFunction(function) => calls::scalar(function, schema)?,
        other => Transformed::no(other),
    })
}

/// The branches of CASE have one type, its comparands that of the operand.
fn typed_case(case: Case, schema: &DFSchema) -> Result<Case> {
    let Case { expr, when_then_expr, else_expr } = case;
    let (mut whens, mut branches) = (Vec::with_capacity(when_then_expr.len()), Vec::with_capacity(when_then_expr.len() + 1));
    let has_else = else_expr.is_some();
    branches.extend(else_expr.map(|branch| *branch));
    for (when, then) in when_then_expr {
        whens.push(match &expr {
            Some(operand) => operators::operand(*when, operand, schema)?,
            None => operators::condition("CASE/WHEN", *when, schema)?,
        });
        branches.push(*then);
    }
    let mut branches = branches::unified("CASE", branches, schema)?.into_iter();
    let else_expr = if has_else { branches.next().map(Box::new) } else { None };
    let (expr, whens) = match expr {
        Some(operand) => {
            let mut keyed = intervals::partitioned(std::iter::once(*operand).chain(whens).collect(), schema)?.into_iter();
            (keyed.next().map(Box::new), keyed.collect())
        }
        None => (None, whens),
    };
    let when_then_expr = whens.into_iter().zip(branches).map(|(when, then)| (Box::new(when), Box::new(then))).collect();
    Ok(Case { expr, when_then_expr, else_expr })
}

/// PostgreSQL's type of a literal, or the value itself where it has it already: integers are int4 when they fit, and a
/// string is one string type everywhere.
fn literal(value: ScalarValue) -> Result<ScalarValue, ScalarValue> {
    match value {
        ScalarValue::Int64(Some(number)) => match i32::try_from(number) {
            Ok(number) => Ok(ScalarValue::Int32(Some(number))),
            Err(_) => Err(value),
        },
        ScalarValue::UInt64(Some(number)) => Ok(ScalarValue::Decimal128(Some(i128::from(number)), 20, 0)),
        ScalarValue::Utf8(text) => Ok(ScalarValue::Utf8View(text)),
        // 1e10 has no digits after the point, not minus ten.
        ScalarValue::Decimal128(Some(number), precision, scale) if scale < 0 => {
            let digits = precision.saturating_add(scale.unsigned_abs()).min(DECIMAL128_MAX_PRECISION);
            match 10_i128.checked_pow(u32::from(scale.unsigned_abs())).and_then(|factor| number.checked_mul(factor)) {
                Some(number) => Ok(ScalarValue::Decimal128(Some(number), digits, 0)),
                None => Err(value),
            }
        }
        other => Err(other),
    }
}

/// A literal with PostgreSQL's type; anything else as it is.
pub fn narrowed(expression: Expr) -> Expr {
    match expression {
        Expr::Literal(value, metadata) => {
            let (Ok(value) | Err(value)) = literal(value);
            Expr::Literal(value, metadata)
        }
        other => other,
    }
}

fn text_only(like: Like, schema: &DFSchema) -> Result<Like> {
    let subject = like.expr.get_type(schema)?;
    match functions::is_text(&subject) || matches!(subject, DataType::Null) || matches!(like.expr.as_ref(), Expr::Placeholder(_)) {
        true => Ok(like),
        false => Err(operators::undefined("~~", &subject, &DataType::Utf8View).into()),
    }
}

fn window(function: WindowFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let WindowFunction { fun, params } = function;
    let (fun, mut params, changed) = aggregates::window_arguments(fun, params, schema)?;
    params.partition_by = intervals::partitioned(params.partition_by, schema)?;
    params.order_by = intervals::sorted(params.order_by, schema)?;
    let expression = Expr::WindowFunction(Box::new(WindowFunction { fun, params }));
    Ok(if changed { Transformed::yes(expression) } else { Transformed::no(expression) })
}

/// The local time of an instant in the session's zone.
pub fn local(instant: Expr) -> Expr {
    zone::to_local(session::time_zone(), instant)
}

/// The type of an expression with the metadata that tells uuid from bytea and json from text.
pub fn sql_type(expression: &Expr, schema: &DFSchema) -> Result<SqlType> {
    let (_, field) = expression.to_field(schema)?;
    Ok(SqlType::of_field(&field))
}
