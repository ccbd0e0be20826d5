//! Columns of type int2vector and oidvector, which count their elements from 0 where arrays count from 1.

use sqlparser::ast::{AccessExpr, BinaryOperator, CastKind, DataType, Expr, Function, Ident, ObjectName, Subscript, Value};

use super::{arguments, array_of, call, folded, null, system_name};

/// The columns of type int2vector.
const SMALL_INTEGERS: [&str; 6] = ["indkey", "indoption", "partattrs", "prattrs", "stxkeys", "tgattr"];

/// The columns of type oidvector.
const OIDS: [&str; 5] = ["indclass", "indcollation", "proargtypes", "partclass", "partcollation"];

/// The type of the elements, where an expression is such a column, with or without its table.
fn element(expr: &Expr) -> Option<DataType> {
    let name = match expr {
        Expr::Identifier(name) => folded(name),
        Expr::CompoundIdentifier(parts) => folded(parts.last()?),
        Expr::Nested(inner) => return element(inner),
        _ => return None,
    };
    match name.as_str() {
        name if SMALL_INTEGERS.contains(&name) => Some(DataType::SmallInt(None)),
        name if OIDS.contains(&name) => Some(DataType::Custom(ObjectName::from(vec![Ident::new("oid")]), Vec::new())),
        _ => None,
    }
}

/// `indkey[0]` is the first element: that of an array, which begins with 1. What is written so is no vector any more.
pub fn subscripted(expr: &mut Expr) {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return };
    qualified(root, access_chain);
    let Some(element) = element(root) else { return };
    let vector = std::mem::replace(root.as_mut(), null());
    let array = Expr::Cast { kind: CastKind::Cast, expr: Box::new(vector), data_type: array_of(element), array: false, format: None };
    **root = Expr::Nested(Box::new(array));
    for access in access_chain {
        let bounds = match access {
            AccessExpr::Subscript(Subscript::Index { index }) => [Some(index), None],
            AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, .. }) => [lower_bound.as_mut(), upper_bound.as_mut()],
            AccessExpr::Dot(_) => [None, None],
        };
        for bound in bounds.into_iter().flatten() {
            *bound = by_one(bound.clone(), BinaryOperator::Plus);
        }
    }
}

/// `i.indkey[0]` is parsed as a field of `i`: the whole name becomes the root.
fn qualified(root: &mut Expr, access_chain: &mut Vec<AccessExpr>) {
    let (Expr::Identifier(table), Some(AccessExpr::Dot(Expr::Identifier(column)))) = (&*root, access_chain.first()) else { return };
    let whole = Expr::CompoundIdentifier(vec![table.clone(), column.clone()]);
    if element(&whole).is_some() && access_chain.len() > 1 {
        *root = whole;
        access_chain.remove(0);
    }
}

/// `array_lower(indkey, 1)` is 0, `array_upper(indkey, 1)` one less than there are elements, and `generate_subscripts(indkey, 1)` the
/// series between.
pub fn bounds(function: &Function) -> Option<Expr> {
    let vector = (*arguments(function)?.first()?).clone();
    element(&vector)?;
    let upper = by_one(call("array_length", vec![vector, number(1)]), BinaryOperator::Minus);
    Some(match system_name(&function.name)?.as_str() {
        "array_lower" => number(0),
        "array_upper" => upper,
        "generate_subscripts" => {
            let upper =
                Expr::Cast { kind: CastKind::Cast, expr: Box::new(upper), data_type: DataType::BigInt(None), array: false, format: None };
            call("generate_series", vec![number(0), upper])
        }
        _ => return None,
    })
}

fn by_one(expr: Expr, op: BinaryOperator) -> Expr {
    let sum = Expr::BinaryOp { left: Box::new(Expr::Nested(Box::new(expr))), op, right: Box::new(number(1)) };
    Expr::Nested(Box::new(sum))
}

fn number(value: i64) -> Expr {
    Expr::Value(Value::Number(value.to_string(), false).into())
}
