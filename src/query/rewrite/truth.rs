//! Parameters and literals that stand where a condition does: as in PostgreSQL they are boolean, which DataFusion's planner has to be
//! told.

use sqlparser::ast::{CastKind, DataType, Expr, JoinConstraint, JoinOperator, Select, UnaryOperator, Value};

/// WHERE, HAVING, QUALIFY and ON.
pub(super) fn in_select(select: &mut Select) {
    select.selection.iter_mut().chain(&mut select.having).chain(&mut select.qualify).for_each(boolean);
    for join in select.from.iter_mut().flat_map(|from| &mut from.joins) {
        if let JoinOperator::Join(JoinConstraint::On(on))
        | JoinOperator::Inner(JoinConstraint::On(on))
        | JoinOperator::Left(JoinConstraint::On(on))
        | JoinOperator::LeftOuter(JoinConstraint::On(on))
        | JoinOperator::Right(JoinConstraint::On(on))
        | JoinOperator::RightOuter(JoinConstraint::On(on))
        | JoinOperator::FullOuter(JoinConstraint::On(on)) = &mut join.join_operator
        {
            boolean(on);
        }
    }
}

/// What NOT, CASE WHEN and FILTER take.
pub(super) fn inside(expression: &mut Expr) {
    match expression {
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => boolean(expr),
        Expr::Case { operand: None, conditions, .. } => conditions.iter_mut().for_each(|when| boolean(&mut when.condition)),
        Expr::Function(function) => {
            if let Some(filter) = &mut function.filter {
                boolean(filter);
            }
        }
        _ => {}
    }
}

fn boolean(condition: &mut Expr) {
    match condition {
        Expr::Nested(inner) => boolean(inner),
        Expr::Value(value) if matches!(value.value, Value::Placeholder(_) | Value::SingleQuotedString(_)) => {
            let expr = Box::new(condition.clone());
            *condition = Expr::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::Boolean, array: false, format: None };
        }
        _ => {}
    }
}
