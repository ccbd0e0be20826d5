//! SELECTs that cannot have rows, because a catalog in them is always empty.

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, GroupByExpr, JoinOperator, Select, SelectItem, SetExpr, TableFactor, Value,
};

use super::{aggregates, conjuncts, constant_text, folded, null, pg_catalog, system_name};

/// Replaces each SELECT of a body that cannot have rows. True where all of them were.
pub fn empty_body(body: &mut SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => {
            let empty = is_empty(select);
            if empty {
                make_empty(select);
            }
            empty
        }
        SetExpr::SetOperation { left, right, .. } => {
            // Positions still order the whole.
            empty_body(left);
            empty_body(right);
            false
        }
        _ => false,
    }
}

/// Whether a SELECT joins a relation that never has rows, and neither groups nor aggregates.
fn is_empty(select: &Select) -> bool {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty()) || select.having.is_some();
    let outer = |operator: &JoinOperator| {
        !matches!(
            operator,
            JoinOperator::Join(_)
                | JoinOperator::Inner(_)
                | JoinOperator::CrossJoin(_)
                | JoinOperator::Left(_)
                | JoinOperator::LeftOuter(_)
        )
    };
    let named = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    if grouped || !select.projection.iter().all(named) || select.projection.iter().any(aggregates) {
        return false;
    }
    // There are no foreign keys and no domains.
    let absent = |condition: &Expr| {
        matches!(condition, Expr::BinaryOp { left, op: BinaryOperator::Eq, right }
        if (names_column(left, "contype") && constant_text(right).as_deref() == Some("f"))
            || (names_column(left, "typtype") && constant_text(right).as_deref() == Some("d")))
    };
    if select.selection.clone().map(conjuncts).unwrap_or_default().iter().any(absent) {
        return true;
    }
    select.from.iter().any(|from| {
        let inner = from.joins.iter().filter(|join| !matches!(join.join_operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_)));
        !from.joins.iter().any(|join| outer(&join.join_operator))
            && std::iter::once(&from.relation).chain(inner.map(|join| &join.relation)).any(is_empty_relation)
    })
}

fn names_column(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Identifier(ident) => folded(ident) == name,
        Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|ident| folded(ident) == name),
        _ => false,
    }
}

fn is_empty_relation(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Table { name, args: None, .. } => {
            system_name(name).is_some_and(|name| name.starts_with("pg_") && pg_catalog::is_always_empty(&name))
        }
        _ => false,
    }
}

fn make_empty(select: &mut Select) {
    for item in &mut select.projection {
        let value = Expr::Cast { kind: CastKind::Cast, expr: Box::new(null()), data_type: DataType::Text, array: false, format: None };
        *item = match item {
            SelectItem::ExprWithAlias { alias, .. } => SelectItem::ExprWithAlias { expr: value, alias: alias.clone() },
            SelectItem::UnnamedExpr(Expr::Identifier(name)) => SelectItem::ExprWithAlias { expr: value, alias: name.clone() },
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => match parts.last() {
                Some(name) => SelectItem::ExprWithAlias { expr: value, alias: name.clone() },
                None => SelectItem::UnnamedExpr(value),
            },
            _ => SelectItem::UnnamedExpr(value),
        };
    }
    select.distinct = None;
    select.from = Vec::new();
    select.selection = Some(Expr::Value(Value::Boolean(false).into()));
}
