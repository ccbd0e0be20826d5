//! `count(t.*)`: the rows that `t` has a row in.
//!
//! *Place*: `rewrite` calls [`counted`] for every SELECT, before its columns are named.
//!
//! DataFusion counts every row. A relation that an outer join can leave empty gets a column that is true in each of its own rows, and
//! that column is counted; any other relation has a row in every row. `count(DISTINCT t.*)` is refused.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, JoinOperator, ObjectName, Select,
    SelectItem, SetExpr, TableAlias, TableFactor, VisitMut, VisitorMut,
};

use super::{folded, last_name};
use crate::error::{Error, Result};

/// The column that is true in every row of its relation.
const PRESENT: &str = "\u{1}present";

/// Rewrites the calls of a SELECT and the relations that they count.
pub(super) fn counted(select: &mut Select) -> Result<()> {
    let mut names: Vec<String> = Vec::new();
    let _: ControlFlow<()> = ast::visit_expressions(select, |expression| {
        if let Expr::Function(function) = expression {
            names.extend(relation_of(function));
        }
        ControlFlow::Continue(())
    });
    if select.projection.iter().any(counts_distinct_rows) || select.having.as_ref().is_some_and(is_distinct_count) {
        return Err(Error::unsupported("count(DISTINCT t.*) is not supported")
            .hint("Count the rows of a subquery: SELECT count(*) FROM (SELECT DISTINCT ...)."));
    }
    if names.is_empty() {
        return Ok(());
    }
    let wildcard = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let mut marked: Vec<String> = Vec::new();
    for from in &mut select.from {
        // Whether a later join can leave what stands before it empty.
        let outer =
            |operator: &JoinOperator| matches!(operator, JoinOperator::Right(_) | JoinOperator::RightOuter(_) | JoinOperator::FullOuter(_));
        let mut before: Vec<bool> = vec![false; from.joins.len() + 1];
        for (index, join) in from.joins.iter().enumerate() {
            if outer(&join.join_operator) {
                before[..=index].fill(true);
            }
            before[index + 1] |=
                matches!(join.join_operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_) | JoinOperator::FullOuter(_));
        }
        let factors = std::iter::once(&mut from.relation).chain(from.joins.iter_mut().map(|join| &mut join.relation));
        for (factor, empty) in factors.zip(before) {
            if let Some(name) = name_of(factor).filter(|name| empty && names.contains(&folded(name))) {
                if wildcard {
                    let error = Error::unsupported(format!("count({name}.*) beside * in the select list is not supported"));
                    return Err(error.hint("Name the columns."));
                }
                mark(factor, &name)?;
                marked.push(folded(&name));
            }
        }
    }
    struct Count(Vec<String>);
    impl VisitorMut for Count {
        type Break = ();
        fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
            if let Expr::Function(function) = expression
                && let Some(name) = relation_of(function)
                && let FunctionArguments::List(list) = &mut function.args
            {
                let column = vec![Ident::with_quote('"', name.clone()), Ident::with_quote('"', PRESENT)];
                let counted = match self.0.contains(&name) {
                    true => FunctionArgExpr::Expr(Expr::CompoundIdentifier(column)),
                    false => FunctionArgExpr::Wildcard,
                };
                list.args = vec![FunctionArg::Unnamed(counted)];
            }
            ControlFlow::Continue(())
        }
    }
    let mut count = Count(marked);
    let _ = select.projection.visit(&mut count);
    let _ = select.having.visit(&mut count);
    let _ = select.qualify.visit(&mut count);
    Ok(())
}

fn counts_distinct_rows(item: &SelectItem) -> bool {
    match item {
        SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => is_distinct_count(expression),
        _ => false,
    }
}

/// Whether there is a `count(DISTINCT t.*)`.
fn is_distinct_count(expression: &Expr) -> bool {
    let found = ast::visit_expressions(expression, |inner| match inner {
        Expr::Function(function) => match &function.args {
            FunctionArguments::List(list)
                if list.duplicate_treatment == Some(DuplicateTreatment::Distinct)
                    && list.args.iter().any(|argument| matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::QualifiedWildcard(_)))) =>
            {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// The relation whose rows a call counts, each as often as it is there.
fn relation_of(function: &Function) -> Option<String> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let [FunctionArg::Unnamed(FunctionArgExpr::QualifiedWildcard(ObjectName(parts)))] = list.args.as_slice() else { return None };
    let plain = list.duplicate_treatment != Some(DuplicateTreatment::Distinct);
    (plain && last_name(&function.name).as_deref() == Some("count")).then(|| parts.last()?.as_ident().map(folded))?
}

fn name_of(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. }
        | TableFactor::Derived { alias: Some(alias), .. }
        | TableFactor::Function { alias: Some(alias), .. } => Some(alias.name.clone()),
        TableFactor::Table { name, alias: None, .. } => name.0.last()?.as_ident().cloned(),
        _ => None,
    }
}

/// `(SELECT *, true AS present FROM factor) AS name`.
fn mark(factor: &mut TableFactor, name: &Ident) -> Result<()> {
    // The text is a constant of this module.
    let mut query = crate::sql::parse_query("SELECT *, true AS present FROM rows")?;
    let SetExpr::Select(select) = query.body.as_mut() else { return Err(Error::internal("a SELECT is none")) };
    if let Some(SelectItem::ExprWithAlias { alias, .. }) = select.projection.last_mut() {
        *alias = Ident::with_quote('"', PRESENT);
    }
    let Some(from) = select.from.first_mut() else { return Err(Error::internal("a SELECT has no FROM")) };
    std::mem::swap(&mut from.relation, factor);
    let alias = TableAlias { explicit: true, name: name.clone(), columns: Vec::new(), at: None };
    *factor = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None };
    Ok(())
}
