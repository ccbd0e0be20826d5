//! How the columns of a relation with an alias are called.
//!
//! *Place*: [`Aliases`] is asked by DataFusion's SQL planner through `query::scope`, before all others; `rewrite` gives an alias to what
//! needs one to be asked about.
//!
//! *Invariants*: (1) what a subquery gives is called outside as its client would see it, where that name is one column's; columns of one
//! name, which that name means none of, have a number behind it that begins with [`SUFFIX`]; (2) a list of column names may be shorter
//! than the columns, as PostgreSQL has it: the others keep theirs. 42P10 where it is longer.

use datafusion::common::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use sqlparser::ast::{Ident, TableAlias, TableAliasColumnDef, TableFactor};

use super::rewrite::{SUFFIX, shown};
use crate::error::{Error, SqlState};

/// Plans relations with an alias.
#[derive(Debug)]
pub struct Aliases;

impl RelationPlanner for Aliases {
    fn plan_relation(&self, mut relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let alias = match &mut relation {
            TableFactor::Derived { alias, .. } => alias.take(),
            TableFactor::Table { alias, args: None, .. } if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) => alias.take(),
            _ => None,
        };
        let Some(alias) = alias else { return Ok(RelationPlanning::Original(Box::new(relation))) };
        let plan = told_apart(context.plan(relation)?)?;
        let alias = completed(alias, &plan)?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, Some(alias)))))
    }
}

/// What a subquery gives, under the names that mean its columns.
pub fn told_apart(plan: LogicalPlan) -> Result<LogicalPlan> {
    let names: Vec<String> = plan.schema().fields().iter().map(|field| shown(field.name()).to_owned()).collect();
    let repeated = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    let called = |(index, (name, is)): (usize, (&String, &String))| match name.is_empty() {
        // A column that no client sees.
        true => is.clone(),
        false if repeated(name) => format!("{name}{SUFFIX}{index}"),
        false => name.clone(),
    };
    let present: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    let wanted: Vec<String> = names.iter().zip(&present).enumerate().map(called).collect();
    if wanted == present {
        return Ok(plan);
    }
    let named = |((column, is), wanted): ((datafusion::common::Column, &String), String)| match *is == wanted {
        true => Expr::Column(column),
        false => Expr::Column(column).alias(wanted),
    };
    let columns: Vec<Expr> = plan.schema().columns().into_iter().zip(&present).zip(wanted).map(named).collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// An alias whose list names every column, if it names any.
pub fn completed(mut alias: TableAlias, plan: &LogicalPlan) -> Result<TableAlias> {
    let fields = plan.schema().fields();
    if alias.columns.is_empty() {
        return Ok(alias);
    }
    if alias.columns.len() > fields.len() {
        let (there, given) = (fields.len(), alias.columns.len());
        let message = format!("table \"{}\" has {there} columns available but {given} columns specified", alias.name.value);
        return Err(Error::new(SqlState::INVALID_COLUMN_REFERENCE, message).into());
    }
    let rest = fields.iter().skip(alias.columns.len());
    let rest: Vec<_> =
        rest.map(|field| TableAliasColumnDef { name: Ident::with_quote('"', field.name().as_str()), data_type: None }).collect();
    alias.columns.extend(rest);
    Ok(alias)
}
