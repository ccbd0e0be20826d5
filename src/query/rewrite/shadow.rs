//! WITH queries whose name hides one of an outer WITH.
//!
//! *Place*: `rewrite` tells a [`Scopes`] where queries begin and end. DataFusion knows one WITH query of a name in a query and all around
//! it; so the inner one gets another name, and what reads it an alias.

use std::ops::ControlFlow;

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart, Query, TableAlias, TableFactor, VisitMut, VisitorMut};

use super::{SUFFIX, folded};

/// The names of WITH queries, of each query that the visit is inside of.
#[derive(Default)]
pub(super) struct Scopes {
    open: Vec<Vec<String>>,
    renamed: usize,
}

impl Scopes {
    /// A query begins.
    pub(super) fn enter(&mut self, query: &mut Query) {
        let mut own = Vec::new();
        if let Some(with) = &query.with {
            own.extend(with.cte_tables.iter().map(|cte| folded(&cte.alias.name)));
        }
        for (index, name) in own.iter().enumerate() {
            // Twice in one WITH is the planner's error.
            if self.open.iter().flatten().any(|outer| outer == name) && own.iter().filter(|other| *other == name).count() == 1 {
                self.renamed += 1;
                rename(query, index, name, &format!("{name}{SUFFIX}with{}", self.renamed));
            }
        }
        self.open.push(own);
    }

    /// A query ends.
    pub(super) fn leave(&mut self) {
        self.open.pop();
    }
}

/// Renames a query's WITH query of an index, and what reads it: those after it, itself where it is recursive, and the query.
fn rename(query: &mut Query, index: usize, from: &str, to: &str) {
    let mut readers = Readers { from, to, hidden: 0 };
    let with = query.with.take();
    let _ = query.visit(&mut readers);
    query.with = with;
    let Some(with) = &mut query.with else { return };
    let first = if with.recursive { index } else { index + 1 };
    for cte in with.cte_tables.iter_mut().skip(first) {
        let _ = cte.query.visit(&mut readers);
    }
    if let Some(cte) = with.cte_tables.get_mut(index) {
        cte.alias.name = Ident::with_quote('"', to);
    }
}

struct Readers<'a> {
    from: &'a str,
    to: &'a str,
    /// Queries that the visit is inside of and in which the name means another WITH query.
    hidden: usize,
}

impl Readers<'_> {
    fn hides(&self, query: &Query) -> bool {
        query.with.as_ref().is_some_and(|with| with.cte_tables.iter().any(|cte| folded(&cte.alias.name) == self.from))
    }
}

impl VisitorMut for Readers<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.hidden += usize::from(self.hides(query));
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.hidden -= usize::from(self.hides(query));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name: ObjectName(parts), alias, args: None, .. } = factor
            && let [ObjectNamePart::Identifier(ident)] = parts.as_mut_slice()
            && self.hidden == 0
            && folded(ident) == self.from
        {
            let shown = std::mem::replace(ident, Ident::with_quote('"', self.to));
            alias.get_or_insert_with(|| TableAlias { explicit: true, name: shown, columns: Vec::new(), at: None });
        }
        ControlFlow::Continue(())
    }
}
