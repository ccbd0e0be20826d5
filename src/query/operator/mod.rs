//! Commerce operators in FROM: `OPERATOR(input, name := value, ...)`, lowered to relational algebra when a query is bound.
//!
//! *Place*: [`Operators`] is asked by DataFusion's SQL planner through `query::scope`, before the functions of rows. So an operator
//! stands wherever a table does: joined, aliased, in CTEs, in INSERT ... SELECT, in prepared statements, under EXPLAIN, in views. Its
//! input goes the way of any relation: one snapshot, pruning, pushdown, spilling. What it is lowered to is typed, coerced, resolved,
//! routed and optimized with the rest of the statement.
//!
//! # Adding an operator
//!
//! One file with a type that implements [`Operator`], and one line in [`OPERATORS`]:
//!
//! 1. [`Operator::arguments`] declares what may be given; what is not declared, is given twice or is missing never reaches `plan`.
//! 2. [`Operator::plan`] gets a [`Call`]: the input's plan with what is known of it ([`input::Input`]: its event time, the order of its
//!    rows' arrival) and the arguments, typed by accessors ([`Call::conditions`], [`Call::interval_us`], [`Call::choice`], ...), each of
//!    which names the argument in its error and thereby its place in the statement.
//! 3. It gives a plan over `call.input.plan`, with unqualified columns in the order of the contract. Names of helper columns begin with
//!    [`crate::query::rewrite::SUFFIX`]; `*` of the user sees what the last projection gives, so end with one.
//!
//! *Invariants*: (1) expressions in arguments are planned and typed as anywhere else in the statement; (2) what shapes the plan
//! (choices, flags, counts) is a constant of the text, all else may hold parameters; (3) ties in time are in the order of arrival where
//! the rows have one.
//!
//! *On failure*: 42883 for an unknown or missing argument, 42601 for one given twice, 42804 for a wrong type, 22023 for a wrong value.

mod anomalies;
pub mod args;
mod attribution;
mod cohort;
mod forecast;
mod funnel;
mod gather;
pub mod input;
mod order;
pub mod series;
mod sessionize;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::common::{Result, TableReference};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{AggregateUDF, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_expr::PhysicalExpr;
use sqlparser::ast::{FunctionArg, ObjectName, TableAlias, TableFactor, TableFunctionArgs};

pub use args::{Argument, Call};

use super::aliases;
use crate::catalog::bind::Settle;

/// What there is.
const OPERATORS: [&dyn Operator; 6] = [
    &anomalies::Anomalies,
    &attribution::Attribution,
    &cohort::CohortAnalysis,
    &forecast::Forecast,
    &funnel::Funnel,
    &sessionize::Sessionize,
];

/// One operator.
pub trait Operator: Debug + Sync {
    /// As errors show it, in upper case.
    fn name(&self) -> &'static str;

    /// What may be given after the input.
    fn arguments(&self) -> &'static [Argument];

    /// A call that is right, for hints.
    fn example(&self) -> &'static str;

    /// The plan that a call stands for. Its columns are unqualified.
    fn plan(&self, call: Call<'_>) -> Result<LogicalPlan>;
}

/// An operator's aggregate function as it is used where its states are kept: see [`Binder::kept`](crate::catalog::bind::Binder::kept).
pub fn kept(function: &AggregateUDF) -> Option<Arc<AggregateUDF>> {
    gather::kept(function)
}

/// How the states of an operator's aggregate function become smaller as time goes on: see
/// [`Binder::settle`](crate::catalog::bind::Binder::settle).
pub fn settle(function: &AggregateUDF, arguments: &[Arc<dyn PhysicalExpr>], types: &[FieldRef]) -> Option<Arc<dyn Settle>> {
    funnel::settle(function, arguments, types)
}

/// Plans the operators.
#[derive(Debug)]
pub struct Operators;

impl RelationPlanner for Operators {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let (operator, arguments, alias) = match called(relation) {
            Ok(called) => called,
            Err(relation) => return Ok(RelationPlanning::Original(relation)),
        };
        let call = Call::new(operator, arguments, context)?;
        let plan = LogicalPlanBuilder::from(operator.plan(call)?);
        let plan = match alias {
            Some(_) => plan,
            None => plan.alias(TableReference::bare(operator.name().to_lowercase()))?,
        };
        let plan = plan.build()?;
        let alias = alias.map(|alias| aliases::completed(alias, &plan)).transpose()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

type Called = (&'static dyn Operator, Vec<FunctionArg>, Option<TableAlias>);

/// The operator that a factor calls, or the factor.
fn called(relation: TableFactor) -> Result<Called, Box<TableFactor>> {
    match relation {
        TableFactor::Table {
            ref name,
            args: Some(TableFunctionArgs { ref args, settings: None }),
            ref alias,
            with_ordinality: false,
            ..
        }
        | TableFactor::Function { ref name, ref args, ref alias, lateral: _, with_ordinality: false } => match named(name) {
            Some(operator) => Ok((operator, args.clone(), alias.clone())),
            None => Err(Box::new(relation)),
        },
        other => Err(Box::new(other)),
    }
}

/// Whether a function's name is an operator's.
pub fn is_called(name: &ObjectName) -> bool {
    named(name).is_some()
}

fn named(name: &ObjectName) -> Option<&'static dyn Operator> {
    let [name] = name.0.as_slice() else { return None };
    let ident = name.as_ident()?;
    let is_it = |operator: &&&dyn Operator| match ident.quote_style {
        Some(_) => operator.name().to_lowercase() == ident.value,
        None => operator.name().eq_ignore_ascii_case(&ident.value),
    };
    OPERATORS.iter().find(is_it).copied()
}
