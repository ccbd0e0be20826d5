//! Keys of GROUP BY and ORDER BY that mean something else to DataFusion than to PostgreSQL.
//!
//! *Place*: `rewrite` calls it for every query and SELECT, before columns are named.

use std::ops::ControlFlow;

use sqlparser::ast::{self, Distinct, Expr, Ident, OrderBy, OrderByKind, Query, Select, SelectItem, SetExpr, Visit, Visitor};

use super::{SUFFIX, folded};
use crate::error::{Error, Result, SqlState};
use crate::query::functions;

/// 42803 where a key of GROUP BY is an aggregate, itself or as the column of the select list whose position it is.
pub(super) fn no_aggregates(select: &Select) -> Result<()> {
    let ast::GroupByExpr::Expressions(keys, _) = &select.group_by else { return Ok(()) };
    for key in keys {
        let listed = match key {
            Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(number, _), .. }) => {
                number.parse::<usize>().ok().and_then(|position| select.projection.get(position.checked_sub(1)?))
            }
            _ => None,
        };
        let meant = match listed {
            Some(SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. }) => expression,
            _ => key,
        };
        if aggregates(meant) {
            return Err(Error::new(SqlState::GROUPING_ERROR, "aggregate functions are not allowed in GROUP BY"));
        }
    }
    Ok(())
}

/// Whether there is an aggregate outside of subqueries.
fn aggregates(expression: &Expr) -> bool {
    struct Find(usize);
    impl Visitor for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
            match expression {
                Expr::Function(function) if self.0 == 0 && function.over.is_none() => {
                    match super::last_name(&function.name).is_some_and(|name| functions::is_aggregate(&name)) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expression.visit(&mut Find(0)).is_break()
}

/// `ROLLUP (1)` groups by the first column of the select list, as `GROUP BY 1` does.
pub(super) fn ordinals_in_sets(select: &mut Select) -> Result<()> {
    let ast::GroupByExpr::Expressions(keys, _) = &mut select.group_by else { return Ok(()) };
    for key in keys {
        let (Expr::Rollup(sets) | Expr::Cube(sets) | Expr::GroupingSets(sets)) = key else { continue };
        for member in sets.iter_mut().flatten() {
            let Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(number, _), .. }) = member else { continue };
            let item = number.parse::<usize>().ok().and_then(|position| select.projection.get(position.checked_sub(1)?));
            *member = match item {
                Some(SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. }) => expression.clone(),
                _ => {
                    let message = format!("GROUP BY position {number} is not in select list");
                    return Err(Error::new(SqlState::INVALID_COLUMN_REFERENCE, message));
                }
            };
        }
    }
    Ok(())
}

/// `SELECT DISTINCT f(x) ... ORDER BY f(x)` sorts by the column of the select list.
pub(super) fn order_by_position(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_ref() else { return };
    let (Some(Distinct::Distinct), Some(OrderBy { kind: OrderByKind::Expressions(keys), .. })) = (&select.distinct, &mut query.order_by)
    else {
        return;
    };
    for key in keys {
        let position = select.projection.iter().position(|item| match item {
            SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => *expression == key.expr,
            _ => false,
        });
        if let Some(position) = position
            && !matches!(key.expr, Expr::Value(_) | Expr::Identifier(_))
        {
            key.expr = Expr::value(ast::Value::Number((position + 1).to_string(), false));
        }
    }
}

/// `SELECT -id AS id FROM t ORDER BY -id` sorts by the input's column: within an expression a name means no column of the select list. Such
/// a column gets another name, which no client sees.
pub(super) fn order_by_input(query: &mut Query) {
    let (SetExpr::Select(select), Some(OrderBy { kind: OrderByKind::Expressions(keys), .. })) = (query.body.as_mut(), &mut query.order_by)
    else {
        return;
    };
    if !matches!(&select.group_by, ast::GroupByExpr::Expressions(keys, _) if keys.is_empty()) {
        return;
    }
    let names = |expression: &Expr, name: &str| {
        let found = ast::visit_expressions(expression, |inner| match inner {
            Expr::Identifier(ident) if folded(ident) == name => ControlFlow::Break(()),
            Expr::CompoundIdentifier(idents) if idents.last().is_some_and(|ident| folded(ident) == name) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        found.is_break()
    };
    for item in &mut select.projection {
        let SelectItem::ExprWithAlias { expr, alias } = item else { continue };
        let name = folded(alias);
        let computed = !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) && names(expr, &name);
        if !computed || !keys.iter().any(|key| !matches!(key.expr, Expr::Identifier(_)) && names(&key.expr, &name)) {
            continue;
        }
        let own = Ident::with_quote('"', format!("{name}{SUFFIX}listed"));
        for key in keys.iter_mut() {
            if matches!(&key.expr, Expr::Identifier(ident) if folded(ident) == name) {
                key.expr = Expr::Identifier(own.clone());
            }
        }
        *alias = own;
    }
}
