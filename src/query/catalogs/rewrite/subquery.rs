//! Subqueries over catalogs, made such that they can be planned as joins.

use std::ops::ControlFlow;

use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    Array, CaseWhen, CastKind, DataType, Expr, Function, FunctionArgumentClause, FunctionArguments, OrderByKind, Query, Select, SelectItem,
    SetExpr, TableFactor, Value, ValueWithSpan, Visit, Visitor,
};

use super::{aggregates, array_of, call, conjunction, conjuncts, folded, null, system_name};

/// Whether a subquery is a plain SELECT from catalogs.
pub fn over_catalogs(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let system = |factor: &TableFactor| match factor {
        TableFactor::Table { name, .. } => system_name(name).is_some_and(|name| name.starts_with("pg_")),
        _ => false,
    };
    let mut factors =
        select.from.iter().flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
    query.with.is_none() && query.limit_clause.is_none() && select.projection.len() == 1 && factors.all(system)
}

/// A scalar subquery with at most one row by its form.
pub fn scalar(mut subquery: Box<Query>) -> Expr {
    let SetExpr::Select(select) = subquery.body.as_mut() else { return Expr::Subquery(subquery) };
    // The collation of a column, where it is not that of the type: no column has another.
    let other_collation = select.selection.as_ref().is_some_and(|selection| selection.to_string().contains("attcollation <> "));
    if (select.from.is_empty() && select.selection.is_some()) || other_collation {
        return null();
    }
    let aliases: Vec<String> = local_names(select);
    let conjuncts = select.selection.take().map(conjuncts).unwrap_or_default();
    let (outer, inner): (Vec<Expr>, Vec<Expr>) = conjuncts.into_iter().partition(|condition| is_outer(condition, &aliases));
    select.selection = conjunction(inner);
    if !aggregates(&select.projection[0]) {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = &mut select.projection[0] {
            *expr = call("max", vec![std::mem::replace(expr, null())]);
        }
        subquery.order_by = None;
    }
    let value = Expr::Subquery(subquery);
    match conjunction(outer) {
        None => value,
        Some(condition) => Expr::Case {
            case_token: AttachedToken::empty(),
            end_token: AttachedToken::empty(),
            operand: None,
            conditions: vec![CaseWhen { condition, result: value }],
            else_result: None,
        },
    }
}

/// `ARRAY(SELECT ...)` as an aggregate, an empty array where nothing can be in it.
pub fn array_function(function: &mut Function) -> Option<Expr> {
    if system_name(&function.name).as_deref() != Some("array") {
        return None;
    }
    let FunctionArguments::Subquery(subquery) = &mut function.args else { return None };
    let subquery_columns = match subquery.body.as_mut() {
        SetExpr::Select(select) if select.from.is_empty() && select.selection.is_some() => {
            let empty = Expr::Array(Array { elem: Vec::new(), named: true });
            let data_type = array_of(DataType::Text);
            return Some(Expr::Cast { kind: CastKind::Cast, expr: Box::new(empty), data_type, array: false, format: None });
        }
        SetExpr::Select(select) if select.distinct.is_none() && select.projection.len() == 1 => &mut select.projection,
        _ => return None,
    };
    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = &mut subquery_columns[0] else { return None };
    let element = std::mem::replace(expr, null());
    let mut collected = call("array_agg", vec![element.clone()]);
    if let Some(order) = subquery.order_by.take()
        && let OrderByKind::Expressions(mut keys) = order.kind
        && let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = &mut collected
    {
        // ORDER BY 1 is the element itself.
        for key in &mut keys {
            if matches!(&key.expr, Expr::Value(ValueWithSpan { value: Value::Number(..), .. })) {
                key.expr = element.clone();
            }
        }
        list.clauses.push(FunctionArgumentClause::OrderBy(keys));
    }
    *expr = collected;
    let FunctionArguments::Subquery(subquery) = std::mem::replace(&mut function.args, FunctionArguments::None) else { return None };
    Some(Expr::Subquery(subquery))
}

/// The query of `ARRAY(SELECT ...)`.
pub fn array_subquery(expr: &Expr) -> Option<&Query> {
    match expr {
        Expr::Function(Function { name, args: FunctionArguments::Subquery(subquery), .. }) if system_name(name)? == "array" => {
            Some(subquery)
        }
        _ => None,
    }
}

/// Whether a query unnests the options of a TOAST table, as psql does.
pub fn unnests(subquery: &Query) -> bool {
    let SetExpr::Select(select) = subquery.body.as_ref() else { return false };
    select.from.iter().any(|from| match &from.relation {
        TableFactor::UNNEST { array_exprs, .. } => array_exprs.iter().any(|array| array.to_string() == "tc.reloptions"),
        TableFactor::Table { name, args: Some(args), .. } => {
            system_name(name).as_deref() == Some("unnest") && args.args.iter().any(|argument| argument.to_string() == "tc.reloptions")
        }
        _ => false,
    })
}

fn local_names(select: &Select) -> Vec<String> {
    let factors = select.from.iter().flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
    let named = factors.filter_map(|factor| match factor {
        TableFactor::Table { alias: Some(alias), .. } => Some(folded(&alias.name)),
        TableFactor::Table { name, alias: None, .. } => system_name(name),
        _ => None,
    });
    named.collect()
}

/// Whether a condition speaks of other tables' columns only. Unqualified ones are taken for the subquery's own.
fn is_outer(condition: &Expr, local: &[String]) -> bool {
    struct Find<'a>(&'a [String], bool, bool);
    impl Visitor for Find<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::CompoundIdentifier(parts) if parts.len() > 1 && !self.0.contains(&folded(&parts[parts.len() - 2])) => self.1 = true,
                Expr::CompoundIdentifier(_) | Expr::Identifier(_) | Expr::Subquery(_) => self.2 = true,
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(local, false, false);
    let _ = condition.visit(&mut find);
    find.1 && !find.2
}
