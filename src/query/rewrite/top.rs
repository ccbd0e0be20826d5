//! The newest few of each: `LATERAL (SELECT ... FROM b WHERE b.key = a.key ORDER BY ... LIMIT n)` as rows numbered by key.
//!
//! *Place*: `rewrite` calls [`numbered`] for every SELECT. DataFusion cannot take a LIMIT out of a correlated subquery; numbered by
//! `row_number() OVER (PARTITION BY b.key ORDER BY ...)` the subquery is no longer correlated, and is joined by its key.
//!
//! What does not have this form stays as it is: conditions on the outer row that are no equality, grouping, DISTINCT, names without their
//! table beside an outer one, and `*` in the outer select list, in which the numbers would show.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self, BinaryOperator, Expr, Ident, Join, JoinConstraint, JoinOperator, LimitClause, OrderByKind, Query, Select, SelectItem, SetExpr,
    TableFactor,
};

use super::having::{conjunction, conjuncts};
use super::{folded, last_name};

/// Begins the names of the columns that the subquery is joined by.
const KEY: &str = "\u{1}top_key";
const NUMBER: &str = "\u{1}top_number";

/// Numbers the rows of each such subquery in FROM.
pub(super) fn numbered(select: &mut Select) {
    let starred = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    if starred {
        return;
    }
    let mut outer = Vec::new();
    for from in &mut select.from {
        outer.extend(name_of(&from.relation));
        for join in &mut from.joins {
            rewritten(join, &outer);
            outer.extend(name_of(&join.relation));
        }
    }
}

fn name_of(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => Some(folded(&alias.name)),
        TableFactor::Table { name, alias: None, .. } => last_name(name),
        _ => None,
    }
}

/// Replaces a join's subquery and condition, where both have the form.
fn rewritten(join: &mut Join, outer: &[String]) -> Option<()> {
    let constraint = match &mut join.join_operator {
        JoinOperator::CrossJoin(_) => None,
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint) => match constraint {
            JoinConstraint::On(condition) if is_true(condition) => Some(constraint),
            _ => return None,
        },
        _ => return None,
    };
    let TableFactor::Derived { lateral, subquery, alias: Some(alias), .. } = &mut join.relation else { return None };
    if !*lateral || !alias.columns.is_empty() {
        return None;
    }
    let mut top = (**subquery).clone();
    let condition = uncorrelated(&mut top, outer, &alias.name)?;
    (**subquery, *lateral) = (top, false);
    match constraint {
        Some(constraint) => *constraint = JoinConstraint::On(condition),
        None => join.join_operator = JoinOperator::Inner(JoinConstraint::On(condition)),
    }
    Some(())
}

fn is_number(limit: &Expr) -> bool {
    matches!(limit, Expr::Value(value) if matches!(value.value, ast::Value::Number(..)))
}

/// Whether a sort key is a column of the rows: not a position, nor an alias of the list.
fn is_column(key: &Expr, items: &[SelectItem]) -> bool {
    match key {
        Expr::CompoundIdentifier(_) => true,
        Expr::Identifier(name) => {
            !items.iter().any(|item| matches!(item, SelectItem::ExprWithAlias { alias, .. } if folded(alias) == folded(name)))
        }
        _ => false,
    }
}

fn is_true(condition: &Expr) -> bool {
    matches!(condition, Expr::Value(value) if value.value == ast::Value::Boolean(true))
}

/// Makes the subquery one of numbered rows; gives the condition by which it is joined.
fn uncorrelated(query: &mut Query, outer: &[String], alias: &Ident) -> Option<Expr> {
    let limit = match query.limit_clause.take()? {
        LimitClause::LimitOffset { limit: Some(limit), offset: None, limit_by } if limit_by.is_empty() && is_number(&limit) => limit,
        _ => return None,
    };
    let keys = match query.order_by.take().map(|order| order.kind) {
        None => Vec::new(),
        Some(OrderByKind::Expressions(keys)) => keys,
        Some(_) => return None,
    };
    if query.with.is_some() || query.fetch.is_some() {
        return None;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return None };
    if !keys.iter().all(|key| is_column(&key.expr, &select.projection)) {
        return None;
    }
    let plain = select.distinct.is_none()
        && select.having.is_none()
        && select.qualify.is_none()
        && matches!(&select.group_by, ast::GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let items = select.projection.iter().all(|item| match item {
        SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => {
            !speaks_of(expression, outer) && !has_call(expression)
        }
        _ => false,
    });
    if !plain || !items || keys.iter().any(|key| speaks_of(&key.expr, outer)) {
        return None;
    }
    let (mut own, mut pairs) = (Vec::new(), Vec::new());
    for conjunct in conjuncts(select.selection.take()?) {
        if !speaks_of(&conjunct, outer) {
            own.push(conjunct);
            continue;
        }
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = conjunct else { return None };
        pairs.push(match (only_of(&left, outer), only_of(&right, outer)) {
            (true, false) if !speaks_of(&right, outer) => (*right, *left),
            (false, true) if !speaks_of(&left, outer) => (*left, *right),
            _ => return None,
        });
    }
    if pairs.is_empty() {
        return None;
    }
    select.selection = conjunction(own);
    let partition = pairs.iter().map(|(inner, _)| inner.to_string()).collect::<Vec<_>>().join(", ");
    let order = keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let order = if order.is_empty() { order } else { format!(" ORDER BY {order}") };
    let number = crate::sql::parse_expression(&format!("row_number() OVER (PARTITION BY {partition}{order})")).ok()?;
    let mut conditions = Vec::with_capacity(pairs.len());
    for (index, (inner, outer)) in pairs.into_iter().enumerate() {
        let name = Ident::with_quote('"', format!("{KEY}{index}"));
        select.projection.push(SelectItem::ExprWithAlias { expr: inner, alias: name.clone() });
        let key = Expr::CompoundIdentifier(vec![alias.clone(), name]);
        conditions.push(Expr::BinaryOp { left: Box::new(outer), op: BinaryOperator::Eq, right: Box::new(key) });
    }
    let name = Ident::with_quote('"', NUMBER);
    select.projection.push(SelectItem::ExprWithAlias { expr: number.clone(), alias: name });
    let few = Expr::BinaryOp { left: Box::new(number), op: BinaryOperator::LtEq, right: Box::new(limit) };
    select.qualify = Some(few);
    conjunction(conditions)
}

/// Whether an expression names a column of one of the tables.
fn speaks_of(expression: &Expr, tables: &[String]) -> bool {
    let found = ast::visit_expressions(expression, |expression| match expression {
        Expr::CompoundIdentifier(idents) if idents.len() > 1 && tables.contains(&folded(&idents[idents.len() - 2])) => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// Whether an expression names columns of the tables and of no others.
fn only_of(expression: &Expr, tables: &[String]) -> bool {
    let other = ast::visit_expressions(expression, |expression| match expression {
        Expr::CompoundIdentifier(idents) if idents.len() > 1 && tables.contains(&folded(&idents[idents.len() - 2])) => {
            ControlFlow::Continue(())
        }
        Expr::CompoundIdentifier(_) | Expr::Identifier(_) | Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    other.is_continue() && speaks_of(expression, tables)
}

/// Whether there is a function, which might be an aggregate or give rows.
fn has_call(expression: &Expr) -> bool {
    let found = ast::visit_expressions(expression, |expression| match expression {
        Expr::Function(_) | Expr::Subquery(_) | Expr::Exists { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}
