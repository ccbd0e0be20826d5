//! UNION, INTERSECT and EXCEPT: their columns have one type, and ALL counts rows.
//!
//! *Place*: `query::typing` calls it for the nodes that DataFusion's planner makes of set operations.
//!
//! DataFusion plans `EXCEPT ALL` and `INTERSECT ALL` as joins that keep or drop all copies of a row. Here the copies are numbered on
//! both sides, and the number is one more column to join by: m copies less n are m - n.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, NullEquality, Result};
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::{WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::{
    Distinct, Expr, Join, JoinType, LogicalPlan, LogicalPlanBuilder, Projection, Union, WindowFrame, WindowFunctionDefinition,
};

use super::{branches, casts, intervals, operators};
use crate::query::functions::is_text;
use crate::types::SqlType;

/// The column that numbers a row's copies.
const COPY: &str = "\u{1}copy";

/// UNION of columns of one type each.
pub fn union(union: Union) -> Result<LogicalPlan> {
    let inputs = matched("UNION", union.inputs)?;
    Union::try_new(inputs).map(LogicalPlan::Union)
}

/// Whether a join is one that DataFusion makes of INTERSECT or EXCEPT.
pub fn is_operation(join: &Join) -> bool {
    matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
        && join.null_equality == NullEquality::NullEqualsNull
        && join.filter.is_none()
        && join.on.len() == join.left.schema().fields().len()
}

/// INTERSECT and EXCEPT of columns of one type each.
pub fn operation(join: Join) -> Result<LogicalPlan> {
    let what = if join.join_type == JoinType::LeftSemi { "INTERSECT" } else { "EXCEPT" };
    let (left, distinct) = match join.left.as_ref() {
        LogicalPlan::Distinct(Distinct::All(input)) => (Arc::clone(input), true),
        _ => (Arc::clone(&join.left), false),
    };
    let [left, right] = <[_; 2]>::try_from(matched(what, vec![left, join.right])?)
        .map_err(|_| crate::error::Error::internal("a set operation of other than two inputs"))?;
    let columns = left.schema().columns();
    let (left, right) = match distinct {
        true => (LogicalPlanBuilder::from(left).distinct()?, LogicalPlanBuilder::from(right)),
        false => (numbered(left)?, numbered(right)?),
    };
    let keys = |builder: &LogicalPlanBuilder| builder.schema().columns();
    let keys = (keys(&left), keys(&right));
    let joined = left.join_detailed(right.build()?, join.join_type, keys, None, NullEquality::NullEqualsNull)?;
    let plan = match joined.build()? {
        LogicalPlan::Join(join) => intervals::node(LogicalPlan::Join(join))?,
        other => other,
    };
    match distinct {
        true => Ok(plan),
        false => Projection::try_new(columns.into_iter().map(Expr::Column).collect(), Arc::new(plan)).map(LogicalPlan::Projection),
    }
}

/// The input with the number of each row among its copies.
fn numbered(input: Arc<LogicalPlan>) -> Result<LogicalPlanBuilder> {
    let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    let params = WindowFunctionParams {
        args: Vec::new(),
        partition_by: intervals::partitioned(columns.clone(), input.schema())?,
        order_by: Vec::new(),
        window_frame: WindowFrame::new(None),
        filter: None,
        null_treatment: None,
        distinct: false,
    };
    let number = Expr::WindowFunction(Box::new(WindowFunction { fun: WindowFunctionDefinition::WindowUDF(row_number_udwf()), params }));
    let name = number.schema_name().to_string();
    let shown = columns.into_iter().chain([Expr::Column(Column::from_name(name)).alias(COPY)]);
    LogicalPlanBuilder::from(input).window(vec![number])?.project(shown.collect::<Vec<_>>())
}

/// The inputs with the columns' common types.
fn matched(what: &str, mut inputs: Vec<Arc<LogicalPlan>>) -> Result<Vec<Arc<LogicalPlan>>> {
    let width = inputs.first().map_or(0, |first| first.schema().fields().len());
    if inputs.iter().any(|input| input.schema().fields().len() != width) {
        // DataFusion's own error says so.
        return Ok(inputs);
    }
    let mut targets = Vec::with_capacity(width);
    for column in 0..width {
        let types: Vec<_> = inputs.iter().filter_map(|input| known(input, column)).collect();
        targets.push(branches::one_type(what, types.iter())?.unwrap_or(SqlType::Text));
    }
    for input in &mut inputs {
        if (0..width).any(|column| !has_type(input, column, &targets[column])) {
            *input = Arc::new(converted(Arc::clone(input), &targets)?);
        }
    }
    Ok(inputs)
}

/// A column's type, or none while it is open.
fn known(input: &LogicalPlan, column: usize) -> Option<SqlType> {
    let field = input.schema().field(column);
    match field.data_type() {
        DataType::Null => None,
        _ if literal(input, column).is_some() => None,
        _ => Some(SqlType::of_field(field)),
    }
}

fn has_type(input: &LogicalPlan, column: usize, target: &SqlType) -> bool {
    let fits = *input.schema().field(column).data_type() == target.arrow();
    // A literal that becomes json has to be read, though the Arrow type is the same.
    fits && (literal(input, column).is_none() || matches!(target, SqlType::Text))
}

/// The text of a column that is a string literal.
fn literal(input: &LogicalPlan, column: usize) -> Option<&str> {
    let LogicalPlan::Projection(projection) = input else { return None };
    operators::unknown(unaliased(projection.expr.get(column)?))
}

fn unaliased(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

fn converted(input: Arc<LogicalPlan>, targets: &[SqlType]) -> Result<LogicalPlan> {
    let schema = Arc::clone(input.schema());
    let literals: Vec<_> = (0..targets.len()).map(|column| literal(&input, column).map(str::to_owned)).collect();
    let columns = schema.iter().zip(targets).zip(literals).map(|(((qualifier, field), target), literal)| {
        let column = Expr::Column((qualifier, field).into());
        let value = match literal {
            Some(text) if !is_text(&target.arrow()) || matches!(target, SqlType::Json | SqlType::Jsonb) => casts::constant(&text, target)?,
            _ if *field.data_type() == target.arrow() => return Ok(column),
            _ => casts::assignment(column, field.data_type(), &target.arrow(), &schema)?,
        };
        Ok(value.alias_qualified(qualifier.cloned(), field.name()))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Projection::try_new(columns, input).map(LogicalPlan::Projection)
}
