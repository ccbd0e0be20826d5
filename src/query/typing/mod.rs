//! PostgreSQL's typing where DataFusion's differs.
//!
//! *Place*: between the SQL planner and DataFusion's type coercion, called by `query::bind`. [`planner`] does what the SQL
//! planner itself has to know (which operators exist); [`apply`] goes over the whole plan afterwards.
//!
//! *Invariants*: (1) comparisons stay comparisons of columns and literals, so that pruning and pushdown see them; (2) a
//! plan that was typed once is not changed by a second round; (3) output names are kept.

pub mod aggregates;
pub mod casts;
pub mod operators;
pub mod planner;

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, InList, ScalarFunction, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Between, BinaryExpr, Cast, Expr, ExprSchemable, Like, LogicalPlan, LogicalPlanBuilder, Operator, Projection, RecursiveQuery, Values,
};

use crate::error::Error;
use crate::query::functions::{self, session, time, zone};
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
        plan => {
            let schema = merge_schema(&plan.inputs());
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expression| {
                let name = names.save(&expression);
                Ok(self::expression(expression, &schema)?.update_data(|expression| name.restore(expression)))
            })?
            .map_data(LogicalPlan::recompute_schema)
        }
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
    let rows = values
        .values
        .into_iter()
        .map(|row| row.into_iter().map(|value| Ok(expression(untyped_null(value), &schema)?.data)).collect::<Result<Vec<_>>>())
        .collect::<Result<Vec<_>>>()?;
    LogicalPlanBuilder::values(rows)?.build()
}

/// NULL among VALUES, which the planner has cast to the type that its neighbours had before they were typed.
fn untyped_null(value: Expr) -> Expr {
    match value {
        Expr::Cast(cast) if matches!(&*cast.expr, Expr::Literal(ScalarValue::Null, _)) && cast.field.data_type() == &DataType::Int64 => {
            Expr::Literal(ScalarValue::Null, None)
        }
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
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match operators::typed(*left, op, *right, schema)? {
            operators::Outcome::Changed(expression) => Transformed::yes(expression),
            operators::Outcome::Same(left, right) => operators::arithmetic(left, op, right, schema)?,
        },
        Expr::Between(Between { expr, negated, low, high }) => {
            let low = operators::operand(*low, &expr, schema)?;
            let high = operators::operand(*high, &expr, schema)?;
            Transformed::yes(Expr::Between(Between::new(expr, negated, Box::new(low), Box::new(high))))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let list = list.into_iter().map(|item| operators::operand(item, &expr, schema)).collect::<Result<_>>()?;
            Transformed::yes(Expr::InList(InList::new(expr, list, negated)))
        }
        Expr::Like(like) => Transformed::no(Expr::Like(text_only(like, schema)?)),
        Expr::AggregateFunction(AggregateFunction { func, params }) => aggregates::aggregate(func, params, schema)?,
        Expr::WindowFunction(function) => window(*function, schema)?,
        Expr::ScalarFunction(function) => scalar(function, schema)?,
        other => Transformed::no(other),
    })
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
    let (params, changed) = aggregates::window_arguments(&fun, params, schema)?;
    let expression = Expr::WindowFunction(Box::new(WindowFunction { fun, params }));
    Ok(if changed { Transformed::yes(expression) } else { Transformed::no(expression) })
}

fn scalar(function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let name = function.func.name();
    match (name, function.args.as_slice()) {
        ("date_trunc", [unit, _]) => {
            valid_unit(unit)?;
            truncate(function, None, schema)
        }
        ("date_trunc", [_, _, _]) => truncate(function, Some(()), schema),
        ("date_bin", [stride, time, rest @ ..]) if rest.len() < 2 => {
            let mut args = vec![operators::literal_as(stride.clone(), &SqlType::Interval)?, time.clone()];
            for origin in rest {
                args.push(operators::operand(origin.clone(), time, schema)?);
            }
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&function.func), args))))
        }
        ("tumble" | "hop" | "session" | "session_end" | "window_end", [time, lengths @ ..]) => {
            let mut args = vec![time.clone()];
            for length in lengths {
                args.push(operators::literal_as(length.clone(), &SqlType::Interval)?);
            }
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&function.func), args))))
        }
        ("extract" | "extract_seconds" | "date_part", [field, argument]) => {
            let instant = matches!(argument.get_type(schema)?, DataType::Timestamp(_, Some(_)));
            let epoch = matches!(field, Expr::Literal(value, _) if value.try_as_str().flatten().is_some_and(|text| text.eq_ignore_ascii_case("epoch")));
            if !instant || epoch {
                return Ok(Transformed::no(Expr::ScalarFunction(function)));
            }
            let ScalarFunction { func, mut args } = function;
            args[1] = local(args[1].clone());
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("age", [argument]) => {
            let today = Expr::Cast(Cast::new(Box::new(session::today()), wall_clock()));
            let argument = argument.clone();
            let ScalarFunction { func, .. } = function;
            let call = ScalarFunction::new_udf(func, vec![today, argument]);
            scalar(call, schema).map(|typed| Transformed::yes(typed.data))
        }
        ("date_diff" | "datediff" | "age" | "to_char", _) => {
            let ScalarFunction { func, args } = function;
            let args = args
                .into_iter()
                .map(|argument| match argument.get_type(schema)? {
                    DataType::Timestamp(_, Some(_)) => Ok(local(argument)),
                    _ => Ok(argument),
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(func, args))))
        }
        ("timezone", [_, argument]) => {
            let instant = matches!(argument.get_type(schema)?, DataType::Timestamp(_, Some(_)));
            let Ok([zone, argument]) = <[Expr; 2]>::try_from(function.args) else {
                return Err(Error::internal("timezone() takes two arguments").into());
            };
            Ok(Transformed::yes(if instant { zone::to_local(zone, argument) } else { zone::to_instant(zone, argument) }))
        }
        ("mod", [left, right]) => operators::arithmetic(left.clone(), Operator::Modulo, right.clone(), schema),
        ("pg_typeof", [argument]) => {
            let name = functions::type_name(&argument.get_type(schema)?);
            Ok(Transformed::yes(Expr::Literal(ScalarValue::Utf8View(Some(name)), None)))
        }
        _ => {
            let expression = Expr::ScalarFunction(function);
            match expression.get_type(schema) {
                // Lengths and positions of arrays are integer in PostgreSQL.
                Ok(DataType::UInt64) => Ok(Transformed::yes(casts::to(expression, DataType::Int32))),
                _ => Ok(Transformed::no(expression)),
            }
        }
    }
}

/// The type of local times.
fn wall_clock() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// The local time of an instant in the session's zone.
pub fn local(instant: Expr) -> Expr {
    zone::to_local(session::time_zone(), instant)
}

fn truncate(function: ScalarFunction, zone: Option<()>, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let ScalarFunction { func, mut args } = function;
    let argument = args[1].get_type(schema)?;
    match (argument, zone) {
        (DataType::Timestamp(_, Some(_)), None) => {
            args.push(session::time_zone());
            Ok(Transformed::yes(time::truncate_in_zone().call(args)))
        }
        (DataType::Timestamp(_, Some(_)), Some(())) => Ok(Transformed::yes(time::truncate_in_zone().call(args))),
        // A date is taken as midnight in the session's zone, and the result is a timestamptz.
        (DataType::Date32, None) => {
            let midnight = casts::to(args.remove(1), wall_clock());
            args.push(zone::to_instant(session::time_zone(), midnight));
            args.push(session::time_zone());
            Ok(Transformed::yes(time::truncate_in_zone().call(args)))
        }
        (DataType::Timestamp(_, None), None) => Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction::new_udf(func, args)))),
        (DataType::Interval(_), _) => Err(Error::unsupported("date_trunc() of an interval is not supported").into()),
        (other, _) => Err(functions::undefined("date_trunc", &[DataType::Utf8View, other]).into()),
    }
}

fn valid_unit(unit: &Expr) -> Result<()> {
    match unit {
        Expr::Literal(value, _) => match value.try_as_str().flatten() {
            Some(text) => Ok(time::check_unit(text)?),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The type of an expression with the metadata that tells uuid from bytea and json from text.
pub fn sql_type(expression: &Expr, schema: &DFSchema) -> Result<SqlType> {
    let (_, field) = expression.to_field(schema)?;
    Ok(SqlType::of_field(&field))
}
