//! What of sqlparser's queries Verus knows.
//!
//! *Place*: every query of `sql::reader` passes here. sqlparser reads a dozen dialects at once; what is not PostgreSQL's or
//! ours is refused (0A000) rather than handed to a planner that may ignore it.

use std::ops::ControlFlow;

use sqlparser::ast::{self, SelectFlavor, SetExpr, TableFactor, VisitMut, VisitorMut};

use super::reader::RESERVED;
use crate::error::{Error, Result};

/// Refuses foreign clauses, and writes FETCH FIRST as LIMIT.
pub(super) fn check(query: &mut ast::Query) -> Result<()> {
    match query.visit(&mut Check) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// As [`check`], for the parts of a statement that is no query.
pub(super) fn check_parts<'a>(
    values: impl Iterator<Item = &'a mut ast::Expr>,
    from: &mut [ast::TableWithJoins],
    selection: Option<&'a mut ast::Expr>,
    returning: Option<&mut [ast::SelectItem]>,
) -> Result<()> {
    let all = || {
        values.chain(selection).try_for_each(|value| value.visit(&mut Check))?;
        for item in from.iter_mut() {
            item.visit(&mut Check)?;
        }
        returning.into_iter().flatten().try_for_each(|item| item.visit(&mut Check))
    };
    match all() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Check;

fn refuse(what: &str) -> ControlFlow<Error> {
    ControlFlow::Break(Error::unsupported(format!("{what} is not supported")))
}

impl VisitorMut for Check {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<Error> {
        if let Some(lock) = query.locks.first() {
            return refuse(&format!("SELECT {lock}"));
        }
        let foreign = [
            (query.for_clause.is_some(), "FOR clause"),
            (query.settings.is_some(), "SETTINGS"),
            (query.format_clause.is_some(), "FORMAT"),
            (!query.pipe_operators.is_empty(), "pipe syntax"),
        ];
        if let Some((_, what)) = foreign.iter().find(|(present, _)| *present) {
            return refuse(what);
        }
        fetch_to_limit(query)?;
        match query.body.as_ref() {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                refuse("a data-modifying statement inside a query")
            }
            SetExpr::Table(_) => refuse("TABLE inside a query"),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_relation(&mut self, relation: &mut ast::ObjectName) -> ControlFlow<Error> {
        let word = relation.0.last().and_then(ast::ObjectNamePart::as_ident).filter(|ident| ident.quote_style.is_none());
        match word {
            Some(word) if RESERVED.binary_search(&word.value.to_ascii_lowercase().as_str()).is_ok() => {
                ControlFlow::Break(Error::syntax(format!("syntax error at or near \"{}\"", word.value)))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<Error> {
        let foreign = [
            (select.into.is_some(), "SELECT INTO"),
            (select.top.is_some(), "TOP"),
            (select.select_modifiers.is_some(), "a SELECT modifier"),
            (select.exclude.is_some(), "EXCLUDE"),
            (!select.lateral_views.is_empty(), "LATERAL VIEW"),
            (select.prewhere.is_some(), "PREWHERE"),
            (!select.connect_by.is_empty(), "CONNECT BY"),
            (!select.cluster_by.is_empty(), "CLUSTER BY"),
            (!select.distribute_by.is_empty(), "DISTRIBUTE BY"),
            (!select.sort_by.is_empty(), "SORT BY"),
            (select.value_table_mode.is_some(), "SELECT AS"),
            (select.flavor != SelectFlavor::Standard, "FROM before SELECT"),
        ];
        if let Some((_, what)) = foreign.iter().find(|(present, _)| *present) {
            return refuse(what);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        match factor {
            TableFactor::Table { with_hints, version, partitions, json_path, sample, index_hints, .. } => {
                let plain = with_hints.is_empty() && partitions.is_empty() && index_hints.is_empty();
                if plain && version.is_none() && json_path.is_none() && sample.is_none() {
                    ControlFlow::Continue(())
                } else {
                    refuse("a table hint, version or sample")
                }
            }
            TableFactor::Derived { .. }
            | TableFactor::TableFunction { .. }
            | TableFactor::Function { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. } => ControlFlow::Continue(()),
            _ => refuse("this form of table expression"),
        }
    }
}

fn fetch_to_limit(query: &mut ast::Query) -> ControlFlow<Error> {
    let Some(fetch) = query.fetch.take() else { return ControlFlow::Continue(()) };
    if fetch.with_ties || fetch.percent {
        return refuse("FETCH with TIES or PERCENT");
    }
    let one = || ast::Expr::value(ast::Value::Number("1".to_owned(), false));
    let quantity = Some(fetch.quantity.unwrap_or_else(one));
    match &mut query.limit_clause {
        None => {
            query.limit_clause = Some(ast::LimitClause::LimitOffset { limit: quantity, offset: None, limit_by: Vec::new() });
            ControlFlow::Continue(())
        }
        Some(ast::LimitClause::LimitOffset { limit: limit @ None, .. }) => {
            *limit = quantity;
            ControlFlow::Continue(())
        }
        Some(_) => ControlFlow::Break(Error::syntax("multiple LIMIT clauses not allowed")),
    }
}
