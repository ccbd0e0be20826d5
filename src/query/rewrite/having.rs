//! HAVING and QUALIFY: conditions that are applied after the window functions, and where window functions may not stand.
//!
//! *Place*: `rewrite` calls [`after_windows`] for every SELECT, before its columns are named.
//!
//! PostgreSQL has no QUALIFY and takes no alias in HAVING. Here HAVING may name a column of the select list, that of a window
//! function as well: such a conjunct, and one with a window function of its own, moves to QUALIFY; the others stay where groups are
//! filtered before the windows are computed.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self, BinaryOperator, Expr, GroupByExpr, JoinConstraint, JoinOperator, Query, Select, SelectItem, VisitMut, VisitorMut,
};

use super::folded;
use crate::error::{Error, Result, SqlState};

/// Moves conditions on windows to QUALIFY. 42P20 where a window function stands in WHERE, GROUP BY or a join's condition, within
/// another one, or where QUALIFY has none; 42803 within an aggregate.
pub(super) fn after_windows(select: &mut Select) -> Result<()> {
    check(select)?;
    let windows = aliases(select);
    let Some(having) = select.having.take() else { return qualified(select, &windows) };
    let (mut grouped, mut windowed) = (Vec::new(), Vec::new());
    for conjunct in conjuncts(having) {
        let expanded = expanded(&conjunct, &windows);
        if has_window(&expanded) { windowed.push(expanded) } else { grouped.push(conjunct) }
    }
    for conjunct in &windowed {
        check_nesting(conjunct)?;
    }
    qualified(select, &windows)?;
    select.having = conjunction(grouped);
    let qualify = select.qualify.take().into_iter().chain(windowed).collect();
    select.qualify = conjunction(qualify);
    Ok(())
}

/// Columns of the select list that are computed from window functions, by name.
fn aliases(select: &Select) -> Vec<(String, Expr)> {
    let windowed = select.projection.iter().filter_map(|item| match item {
        SelectItem::ExprWithAlias { expr, alias } if has_window(expr) => Some((folded(alias), expr.clone())),
        _ => None,
    });
    windowed.collect()
}

/// QUALIFY without any window function filters nothing that WHERE or HAVING could not.
fn qualified(select: &Select, windows: &[(String, Expr)]) -> Result<()> {
    let Some(qualify) = &select.qualify else { return Ok(()) };
    let expanded = expanded(qualify, windows);
    check_nesting(&expanded)?;
    let listed =
        |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } if has_window(expr));
    if has_window(&expanded) || select.projection.iter().any(listed) {
        return Ok(());
    }
    Err(Error::new(SqlState::WINDOWING_ERROR, "QUALIFY requires a window function in the select list or in its condition")
        .hint("Use HAVING for conditions on groups and WHERE for conditions on rows."))
}

fn check(select: &Select) -> Result<()> {
    let forbidden = |place: &str| {
        Err(Error::new(SqlState::WINDOWING_ERROR, format!("window functions are not allowed in {place}"))
            .hint("Name the window function in the select list and put the condition into HAVING or QUALIFY, or compute it in a subquery."))
    };
    if select.selection.as_ref().is_some_and(has_window) {
        return forbidden("WHERE");
    }
    for join in select.from.iter().flat_map(|from| &from.joins) {
        if condition(&join.join_operator).is_some_and(has_window) {
            return forbidden("JOIN conditions");
        }
    }
    if let GroupByExpr::Expressions(keys, _) = &select.group_by {
        let windows = aliases(select);
        let is_window = |key: &Expr| match key {
            Expr::Identifier(name) => windows.iter().any(|(alias, _)| *alias == folded(name)),
            other => has_window(other),
        };
        if keys.iter().any(is_window) {
            return forbidden("GROUP BY");
        }
    }
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            check_nesting(expr)?;
        }
    }
    Ok(())
}

fn condition(operator: &JoinOperator) -> Option<&Expr> {
    match operator {
        JoinOperator::Join(JoinConstraint::On(condition))
        | JoinOperator::Inner(JoinConstraint::On(condition))
        | JoinOperator::Left(JoinConstraint::On(condition))
        | JoinOperator::LeftOuter(JoinConstraint::On(condition))
        | JoinOperator::Right(JoinConstraint::On(condition))
        | JoinOperator::RightOuter(JoinConstraint::On(condition))
        | JoinOperator::FullOuter(JoinConstraint::On(condition)) => Some(condition),
        _ => None,
    }
}

fn expanded(condition: &Expr, windows: &[(String, Expr)]) -> Expr {
    let mut expanded = condition.clone();
    // The visitor cannot fail.
    let _ = expanded.visit(&mut Expand { windows, depth: 0 });
    expanded
}

/// Names of the select list replaced by what they stand for. In a subquery a name means that query's own.
struct Expand<'a> {
    windows: &'a [(String, Expr)],
    depth: usize,
}

impl VisitorMut for Expand<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Expr::Identifier(ident) = expression
            && let Some((_, expanded)) = self.windows.iter().find(|(alias, _)| *alias == folded(ident))
        {
            *expression = Expr::Nested(Box::new(expanded.clone()));
        }
        ControlFlow::Continue(())
    }
}

pub(super) fn conjuncts(expression: Expr) -> Vec<Expr> {
    match expression {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut all = conjuncts(*left);
            all.extend(conjuncts(*right));
            all
        }
        Expr::Nested(inner) if matches!(*inner, Expr::BinaryOp { op: BinaryOperator::And, .. }) => conjuncts(*inner),
        other => vec![other],
    }
}

pub(super) fn conjunction(conjuncts: Vec<Expr>) -> Option<Expr> {
    conjuncts.into_iter().reduce(|left, right| Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) })
}

/// Whether an expression calls a window function, its subqueries apart.
fn has_window(expression: &Expr) -> bool {
    let mut find = Find::default();
    let _ = ast::Visit::visit(expression, &mut find);
    find.windows > 0
}

/// Window functions take no window function as an argument.
fn check_nesting(expression: &Expr) -> Result<()> {
    let mut find = Find::default();
    let _ = ast::Visit::visit(expression, &mut find);
    match find.nested {
        true => Err(Error::new(SqlState::WINDOWING_ERROR, "window function calls cannot be nested")),
        false => Ok(()),
    }
}

#[derive(Default)]
struct Find {
    /// Window functions so far.
    windows: usize,
    /// Window functions that the visit is inside of.
    inside: usize,
    nested: bool,
    /// Subqueries that the visit is inside of.
    queries: usize,
}

impl Find {
    fn is_window(&self, expression: &Expr) -> bool {
        self.queries == 0 && matches!(expression, Expr::Function(function) if function.over.is_some())
    }
}

impl ast::Visitor for Find {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        if self.is_window(expression) {
            self.windows += 1;
            self.nested |= self.inside > 0;
            self.inside += 1;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        if self.is_window(expression) {
            self.inside -= 1;
        }
        ControlFlow::Continue(())
    }
}
