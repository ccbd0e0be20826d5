//! Columns of VALUES of which some items are cast and others are not: DataFusion's planner wants one type before `query::typing` finds it.

use sqlparser::ast::{DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Query, SetExpr, UnaryOperator, Value};

use super::{call, last_name};
use crate::query::functions::cast::{ITEM, WRITTEN};

/// Functions without arguments whose type a literal beside them has.
const FUNCTIONS: [(&str, &str); 2] = [("gen_random_uuid", "uuid"), ("now", "timestamp with time zone")];

/// Puts [`ITEM`] around the items of such columns, with the type of the first cast.
pub(super) fn open(query: &mut Query) {
    open_in(&mut query.body);
}

fn open_in(body: &mut SetExpr) {
    match body {
        SetExpr::SetOperation { left, right, .. } => {
            open_in(left);
            open_in(right);
        }
        SetExpr::Values(values) => {
            let width = values.rows.first().map_or(0, |row| row.content.len());
            for column in 0..width {
                let mut items: Vec<_> = values.rows.iter_mut().filter_map(|row| row.content.get_mut(column)).collect();
                let types: Vec<_> = items.iter().map(|item| cast_to(item)).collect();
                let Some(first) = types.iter().flatten().next().filter(|_| types.iter().any(|other| *other != types[0])) else { continue };
                for item in &mut items {
                    let written = std::mem::replace(&mut **item, Expr::value(Value::Null));
                    **item = call(ITEM, vec![written, Expr::value(Value::SingleQuotedString(first.clone()))]);
                }
            }
        }
        _ => {}
    }
}

/// The type that an item is cast to.
fn cast_to(item: &Expr) -> Option<String> {
    let sql_type = |data_type: &DataType| crate::sql::sql_type(data_type).ok().map(|sql_type| sql_type.to_string());
    match item {
        Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } | Expr::Nested(expr) => cast_to(expr),
        Expr::TypedString(typed) => sql_type(&typed.data_type),
        Expr::Interval(_) => Some("interval".to_owned()),
        Expr::Function(function) => {
            let FunctionArguments::List(list) = &function.args else { return None };
            let name = last_name(&function.name)?;
            match list.args.as_slice() {
                [] => FUNCTIONS.iter().find(|(known, _)| *known == name).map(|(_, sql_type)| (*sql_type).to_owned()),
                [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(target)))] if name == WRITTEN => {
                    target.value.clone().into_string()
                }
                _ => None,
            }
        }
        _ => None,
    }
}
