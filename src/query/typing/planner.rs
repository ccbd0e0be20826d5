//! What DataFusion's SQL planner asks for: operators, type names, EXTRACT, ranks.
//!
//! *Place*: first in the list of expression planners of `query::context`.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions_nested::extract::array_element;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::planner::{
    ExprPlanner, PlannerResult, RawAggregateExpr, RawBinaryExpr, RawFieldAccessExpr, RawWindowExpr, TypePlanner,
};
use datafusion::logical_expr::{Expr, GetFieldAccess, Operator};
use sqlparser::ast::{self, BinaryOperator};

use super::casts::to;
use super::operators::{Outcome, condition, typed, undefined_for};
use crate::query::functions::{bytes, ordered, time};

/// Plans expressions as PostgreSQL types them.
#[derive(Debug)]
pub struct Postgres;

impl ExprPlanner for Postgres {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = expr;
        if let BinaryOperator::Custom(operator) = &op {
            return Err(undefined_for(operator, &left, &right, schema)?.into());
        }
        if let BinaryOperator::And | BinaryOperator::Or = &op {
            let what = if op == BinaryOperator::And { "AND" } else { "OR" };
            let (left, right) = (condition(what, left, schema)?, condition(what, right, schema)?);
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        }
        let Some(operator) = operator(&op) else {
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        };
        Ok(match typed(left, operator, right, schema)? {
            Outcome::Changed(expression) => PlannerResult::Planned(expression),
            Outcome::Same(left, right) => PlannerResult::Original(RawBinaryExpr { op, left, right }),
        })
    }

    /// An element of `array_agg` is one of the list: DataFusion makes `nth_value` of it, which takes constants of one type alone.
    fn plan_field_access(&self, expr: RawFieldAccessExpr, _schema: &DFSchema) -> Result<PlannerResult<RawFieldAccessExpr>> {
        let RawFieldAccessExpr { expr, field_access } = expr;
        match (expr, field_access) {
            (list @ Expr::AggregateFunction(_), GetFieldAccess::ListIndex { key }) => Ok(PlannerResult::Planned(array_element(list, *key))),
            (expr, field_access) => Ok(PlannerResult::Original(RawFieldAccessExpr { expr, field_access })),
        }
    }

    fn plan_extract(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        let fraction = match args.first() {
            Some(Expr::Literal(value, _)) => time::has_fraction(value.try_as_str().flatten().unwrap_or_default()),
            _ => false,
        };
        let function = if fraction { time::extract_seconds() } else { time::extract() };
        let args = args.into_iter().map(lower_field).collect();
        Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(function.udf(), args))))
    }

    /// Of bytea as well as of text.
    fn plan_substring(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(bytes::part().call(args)))
    }

    /// Counts that DataFusion gives as unsigned are bigint; some aggregates are made of others.
    fn plan_aggregate(&self, expr: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        let expr = match ordered::planned(expr)? {
            Ok(planned) => return Ok(PlannerResult::Planned(planned)),
            Err(expr) => expr,
        };
        if !matches!(expr.func.name(), "approx_distinct" | "regr_count") {
            return Ok(PlannerResult::Original(expr));
        }
        let RawAggregateExpr { func, args, distinct, filter, order_by, null_treatment } = expr;
        let function = AggregateFunction::new_udf(func, args, distinct, filter, order_by, null_treatment);
        Ok(PlannerResult::Planned(to(Expr::AggregateFunction(function), DataType::Int64)))
    }

    fn plan_window(&self, expr: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        if !matches!(expr.func_def.name(), "row_number" | "rank" | "dense_rank" | "ntile") {
            return Ok(PlannerResult::Original(expr));
        }
        let RawWindowExpr { func_def, args, partition_by, order_by, window_frame, filter, null_treatment, distinct } = expr;
        let params = WindowFunctionParams { args, partition_by, order_by, window_frame, filter, null_treatment, distinct };
        let target = if func_def.name() == "ntile" { DataType::Int32 } else { DataType::Int64 };
        let function = Expr::WindowFunction(Box::new(WindowFunction { fun: func_def, params }));
        Ok(PlannerResult::Planned(to(function, target)))
    }
}

impl TypePlanner for Postgres {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        Ok(Some(Arc::new(crate::sql::sql_type(sql_type)?.field("", true))))
    }
}

fn lower_field(argument: Expr) -> Expr {
    match argument {
        Expr::Literal(ScalarValue::Utf8(Some(field)), metadata) => {
            Expr::Literal(ScalarValue::Utf8View(Some(field.to_ascii_lowercase())), metadata)
        }
        other => other,
    }
}

fn operator(operator: &BinaryOperator) -> Option<Operator> {
    Some(match operator {
        BinaryOperator::Eq => Operator::Eq,
        BinaryOperator::NotEq => Operator::NotEq,
        BinaryOperator::Lt => Operator::Lt,
        BinaryOperator::LtEq => Operator::LtEq,
        BinaryOperator::Gt => Operator::Gt,
        BinaryOperator::GtEq => Operator::GtEq,
        BinaryOperator::Plus => Operator::Plus,
        BinaryOperator::Minus => Operator::Minus,
        BinaryOperator::Multiply => Operator::Multiply,
        BinaryOperator::Divide => Operator::Divide,
        BinaryOperator::Modulo => Operator::Modulo,
        BinaryOperator::Arrow => Operator::Arrow,
        BinaryOperator::LongArrow => Operator::LongArrow,
        BinaryOperator::HashArrow => Operator::HashArrow,
        BinaryOperator::HashLongArrow => Operator::HashLongArrow,
        BinaryOperator::AtArrow => Operator::AtArrow,
        BinaryOperator::Question => Operator::Question,
        BinaryOperator::QuestionPipe => Operator::QuestionPipe,
        BinaryOperator::QuestionAnd => Operator::QuestionAnd,
        BinaryOperator::ArrowAt => Operator::ArrowAt,
        BinaryOperator::HashMinus => Operator::HashMinus,
        BinaryOperator::StringConcat => Operator::StringConcat,
        _ => return None,
    })
}
