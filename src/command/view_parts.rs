//! A materialized view over a UNION ALL: a view for each branch, and itself what they have together.
//!
//! *Place*: `create_view` asks when a query as a whole cannot be kept incrementally.
//!
//! Two forms: `SELECT ... UNION ALL SELECT ...`, which is the rows of its branches; and `SELECT k, sum(x) FROM (... UNION ALL ...) AS u
//! GROUP BY k`, which is an aggregate of the branches' aggregates (sums of sums and counts, minima of minima and so on). The branches'
//! views are named `<view>$1`, `<view>$2`, ... They come and go with the view.

use std::sync::Arc;

use sqlparser::ast::{
    DuplicateTreatment, Expr, FunctionArguments, GroupByExpr, Ident, Query, Select, SelectItem, SetExpr, SetOperator, SetQuantifier,
    TableAliasColumnDef, TableFactor, Value,
};

use crate::catalog::bind::Binder;
use crate::catalog::{Catalog, Column, Maintenance, Source, View};
use crate::sql::statement::quote_identifier;
use crate::store::Store;
use crate::view::describe;

/// What an output column is to the branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is the same.
    Same,
    /// It is this aggregate of theirs.
    Combined(&'static str),
}

/// A query taken apart: the branches' queries, and what its columns are over theirs (nothing for the rows themselves).
struct Apart {
    branches: Vec<String>,
    roles: Vec<Role>,
}

/// Makes `view`, which describes `query`, a view over views of its branches, if each of these can be kept incrementally. Returns the
/// branches' views, which are to be created before it.
pub fn split(view: &mut View, query: &Query, name: &str, binder: &dyn Binder, catalog: &Arc<Catalog>, store: &Store) -> Vec<View> {
    let Some(Apart { branches, roles }) = rows(query).or_else(|| groups(query)) else { return Vec::new() };
    let described = branches.iter().map_while(|branch| describe(binder, catalog, branch).ok().filter(View::is_incremental));
    let mut parts: Vec<View> = described.collect();
    if parts.len() < branches.len() || parts.len() < 2 || parts.iter().any(|part| part.columns.len() != view.columns.len()) {
        return Vec::new();
    }
    for (index, part) in parts.iter_mut().enumerate() {
        for (column, declared) in part.columns.iter_mut().zip(&view.columns) {
            column.name.clone_from(&declared.name);
        }
        part.name = format!("{name}${}", index + 1);
        part.oid = store.allocate_oid();
    }
    // Younger than its parts, so that it goes before them.
    view.oid = store.allocate_oid();
    let names: Vec<String> = parts.iter().map(|part| quote_identifier(&part.name)).collect();
    let selects: Vec<String> = names.iter().map(|name| format!("SELECT * FROM {name}")).collect();
    view.maintenance = Maintenance::Derived;
    view.reason = Some(format!("UNION ALL: read from the views of its branches, {}", names.join(", ")));
    view.derivation = Some(derivation(&selects.join(" UNION ALL "), &roles, &parts[0].columns, &view.columns));
    for part in &mut parts {
        part.owner = Some(view.oid);
        view.sources.push(Source { oid: part.oid, columns: part.columns.len() });
    }
    parts
}

/// The query over the branches' views.
fn derivation(union: &str, roles: &[Role], columns: &[Column], declared: &[Column]) -> String {
    if roles.is_empty() {
        return union.to_owned();
    }
    let mut list = Vec::new();
    let mut keys = Vec::new();
    for (index, (role, (column, declared))) in roles.iter().zip(columns.iter().zip(declared)).enumerate() {
        let (column, name) = (quote_identifier(&column.name), quote_identifier(&declared.name));
        list.push(match role {
            Role::Same => {
                keys.push((index + 1).to_string());
                format!("{column} AS {name}")
            }
            Role::Combined(function) => format!("CAST({function}({column}) AS {}) AS {name}", declared.sql_type),
        });
    }
    let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) };
    format!("SELECT {} FROM ({union}) AS parts{group}", list.join(", "))
}

/// `SELECT ... UNION ALL SELECT ...`.
fn rows(query: &Query) -> Option<Apart> {
    let branches = branches(query).filter(|branches| branches.len() > 1)?;
    Some(Apart { branches: branches.iter().map(|branch| branch.to_string()).collect(), roles: Vec::new() })
}

/// `SELECT keys and aggregates FROM (... UNION ALL ...) AS u [WHERE ...] GROUP BY keys`.
fn groups(query: &Query) -> Option<Apart> {
    let [SetExpr::Select(select)] = branches(query)?[..] else { return None };
    let [from] = select.from.as_slice() else { return None };
    let TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None } = &from.relation else { return None };
    let inner = branches(subquery).filter(|inner| inner.len() > 1)?;
    if !from.joins.is_empty() || select.distinct.is_some() || select.having.is_some() || select.qualify.is_some() {
        return None;
    }
    let roles = roles(select)?;
    let names: Vec<Ident> = match alias.columns.is_empty() {
        true => names(inner[0])?,
        false => alias.columns.iter().map(|column| column.name.clone()).collect(),
    };
    let branch = |body: &SetExpr| {
        let mut own = (**select).clone();
        if let TableFactor::Derived { subquery, alias: Some(alias), .. } = &mut own.from[0].relation {
            *subquery.body = body.clone();
            alias.columns = names.iter().map(|name| TableAliasColumnDef { name: name.clone(), data_type: None }).collect();
        }
        own.to_string()
    };
    Some(Apart { branches: inner.iter().map(|body| branch(body)).collect(), roles })
}

/// What the columns of an aggregation are over aggregations of parts of its rows; none where one is nothing over them.
fn roles(select: &Select) -> Option<Vec<Role>> {
    let GroupByExpr::Expressions(keys, modifiers) = &select.group_by else { return None };
    let mut grouped = 0;
    let mut roles = Vec::new();
    for (index, item) in select.projection.iter().enumerate() {
        let (expr, alias) = match item {
            SelectItem::UnnamedExpr(expr) => (expr, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
            _ => return None,
        };
        if let Some(function) = combined(expr) {
            roles.push(Role::Combined(function));
            continue;
        }
        let is_key = |key: &&Expr| match key {
            Expr::Value(value) => matches!(&value.value, Value::Number(number, _) if *number == (index + 1).to_string()),
            Expr::Identifier(name) if alias.is_some_and(|alias| alias.value == name.value) => true,
            key => *key == expr,
        };
        keys.iter().find(is_key)?;
        grouped += 1;
        roles.push(Role::Same);
    }
    (modifiers.is_empty() && grouped == keys.len()).then_some(roles)
}

/// The aggregate that combines an aggregate's values over parts of the rows.
fn combined(expr: &Expr) -> Option<&'static str> {
    let Expr::Function(call) = expr else { return None };
    let FunctionArguments::List(list) = &call.args else { return None };
    let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
    if distinct || !list.clauses.is_empty() || call.over.is_some() || call.null_treatment.is_some() || !call.within_group.is_empty() {
        return None;
    }
    Some(match call.name.to_string().to_ascii_lowercase().as_str() {
        "sum" | "count" => "sum",
        "min" => "min",
        "max" => "max",
        "bool_and" | "every" => "bool_and",
        "bool_or" => "bool_or",
        _ => return None,
    })
}

/// The names of a SELECT's columns, where it says them.
fn names(body: &SetExpr) -> Option<Vec<Ident>> {
    let SetExpr::Select(select) = body else { return None };
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(alias.clone()),
        SelectItem::UnnamedExpr(Expr::Identifier(name)) => Some(name.clone()),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(path)) => path.last().cloned(),
        _ => None,
    };
    select.projection.iter().map(name).collect()
}

/// The branches of a UNION ALL without ORDER BY, LIMIT and WITH (or its one SELECT); none for any other query.
fn branches(query: &Query) -> Option<Vec<&SetExpr>> {
    let bare = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    if !bare {
        return None;
    }
    let mut found = Vec::new();
    collect(&query.body, &mut found).then_some(found)
}

fn collect<'a>(body: &'a SetExpr, found: &mut Vec<&'a SetExpr>) -> bool {
    match body {
        SetExpr::SetOperation { op: SetOperator::Union, set_quantifier: SetQuantifier::All, left, right } => {
            collect(left, found) && collect(right, found)
        }
        SetExpr::Query(query) => match branches(query) {
            Some(inner) => {
                found.extend(inner);
                true
            }
            None => false,
        },
        SetExpr::Select(_) => {
            found.push(body);
            true
        }
        _ => false,
    }
}
