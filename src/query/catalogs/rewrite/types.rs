//! Queries for the parts of types, as asyncpg asks for types that it does not know.
//!
//! There are no domains and no composite types here. So what a query wants to know of `typtype = 'd'` or `'c'` is NULL, and a tree of types
//! grows from arrays to their elements alone: the other branches of its OR would only turn a join by key into one of everything.

use sqlparser::ast::{BinaryOperator, CastKind, DataType, Expr, Ident, ObjectName, Query, SetExpr, Value};

use super::{array_of, literal_text, null};

/// The tree of types in asyncpg's query.
const TREE: &str = "typeinfo_tree";

/// `CASE WHEN t.typtype = 'd' THEN (SELECT ...) END` is NULL.
pub fn no_domains(expr: &mut Expr) {
    let Expr::Case { operand: None, conditions, .. } = &*expr else { return };
    let [branch] = conditions.as_slice() else { return };
    let Expr::Subquery(subquery) = &branch.result else { return };
    let Some(kind) = type_kind(&branch.condition) else { return };
    let oid = || DataType::Custom(ObjectName::from(vec![Ident::new("oid")]), Vec::new());
    let data_type = match kind {
        "d" => oid(),
        "c" if subquery.to_string().contains("attname") => array_of(DataType::Text),
        "c" => array_of(oid()),
        _ => return,
    };
    *expr = Expr::Cast { kind: CastKind::Cast, expr: Box::new(null()), data_type, array: false, format: None };
}

/// The letter that a condition compares `typtype` with.
fn type_kind(condition: &Expr) -> Option<&str> {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { return None };
    match left.as_ref() {
        Expr::CompoundIdentifier(idents) if idents.last()?.value == "typtype" => literal_text(right),
        _ => None,
    }
}

/// The tree of types grows by its first condition.
pub fn arrays_only(query: &mut Query) {
    let Some(with) = query.with.as_mut().filter(|with| with.recursive) else { return };
    let Some(tree) = with.cte_tables.iter_mut().find(|table| table.alias.name.value == TREE) else { return };
    let SetExpr::SetOperation { right, .. } = tree.query.body.as_mut() else { return };
    let SetExpr::Select(grown) = right.as_mut() else { return };
    let Some(condition) = grown.selection.as_mut() else { return };
    while let Expr::BinaryOp { left, op: BinaryOperator::Or, .. } = condition {
        *condition = std::mem::replace(left.as_mut(), Expr::Value(Value::Null.into()));
    }
    if let Expr::Nested(inner) = condition {
        *condition = std::mem::replace(inner.as_mut(), null());
    }
}
