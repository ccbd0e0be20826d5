//! Queries whose columns a list names, or that have others beside a wildcard: as subqueries with an alias, whose columns `query::aliases`
//! names.

use sqlparser::ast::{Ident, Query, SelectItem, SetExpr, TableAlias, TableFactor};

use crate::error::{Error, Result};

/// WITH queries. Those of WITH RECURSIVE read themselves under the names that they have.
pub(super) fn in_with(query: &mut Query) -> Result<()> {
    let Some(with) = query.with.as_mut().filter(|with| !with.recursive) else { return Ok(()) };
    for cte in &mut with.cte_tables {
        if cte.alias.columns.is_empty() && !has_others_beside_wildcard(&cte.query) {
            continue;
        }
        let alias = cte.alias.clone();
        cte.alias.columns.clear();
        let relation = TableFactor::Derived { lateral: false, subquery: cte.query.clone(), alias: Some(alias), sample: None };
        *cte.query = all_of(relation)?;
    }
    Ok(())
}

/// Gives a subquery without an alias PostgreSQL's name for it.
pub(super) fn without_alias(factor: &mut TableFactor, given: &mut usize) {
    if let TableFactor::Derived { subquery, alias: alias @ None, .. } = factor
        && has_others_beside_wildcard(subquery)
    {
        let name = if *given == 0 { "unnamed_subquery".to_owned() } else { format!("unnamed_subquery_{given}") };
        *given += 1;
        *alias = Some(TableAlias { explicit: true, name: Ident::with_quote('"', name), columns: Vec::new(), at: None });
    }
}

/// `SELECT * FROM relation`.
pub(super) fn all_of(relation: TableFactor) -> Result<Query> {
    let mut query = crate::sql::parse_query("SELECT * FROM relation")?;
    let SetExpr::Select(select) = query.body.as_mut() else { return Err(Error::internal("a SELECT is none")) };
    select.from.iter_mut().for_each(|table| table.relation = relation.clone());
    Ok(query)
}

fn has_others_beside_wildcard(query: &Query) -> bool {
    let mut body = query.body.as_ref();
    while let SetExpr::SetOperation { left, .. } = body {
        body = left;
    }
    match body {
        SetExpr::Query(inner) => has_others_beside_wildcard(inner),
        SetExpr::Select(select) => {
            let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
            select.projection.len() > 1 && select.projection.iter().any(is_wildcard)
        }
        _ => false,
    }
}
