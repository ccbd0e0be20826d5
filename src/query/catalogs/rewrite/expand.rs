//! `information_schema._pg_expandarray(array)`, by which JDBC asks for the columns of keys: rows of an element `x` and its place `n`.

use sqlparser::ast::{AccessExpr, Expr, Function};

use super::{arguments, call, folded, positions};

/// The array of such a call.
fn expanded(function: &Function) -> Option<Expr> {
    let name = function.name.0.last()?.as_ident().map(folded)?;
    match arguments(function)?.as_slice() {
        [array] if name == "_pg_expandarray" => Some((*array).clone()),
        _ => None,
    }
}

/// `(_pg_expandarray(a)).n` is the series of its places, `.x` its elements; `(keys).x` is a column that such a call gave.
pub fn fields(expr: &mut Expr) {
    let other = match &*expr {
        Expr::Function(function) => expanded(function).map(|array| call("unnest", vec![array])),
        Expr::CompoundFieldAccess { root, access_chain } => {
            let [AccessExpr::Dot(Expr::Identifier(field))] = access_chain.as_slice() else { return };
            let inner = match root.as_ref() {
                Expr::Nested(inner) => inner.as_ref(),
                other => other,
            };
            match (inner, folded(field).as_str()) {
                (Expr::Function(function), "n") => expanded(function).map(positions),
                (Expr::Function(function), "x") => expanded(function).map(|array| call("unnest", vec![array])),
                (column @ (Expr::CompoundIdentifier(_) | Expr::Identifier(_)), "x") => Some(column.clone()),
                _ => None,
            }
        }
        _ => None,
    };
    if let Some(other) = other {
        *expr = other;
    }
}
