//! The order of conditions: what can fail is evaluated on the rows that pass what guards it.
//!
//! *Place*: `query::bind` calls [`apply`] on the typed plan, so that a view's query and a client's are guarded alike.
//!
//! `WHERE x <> 0 AND 10 / x > 1` is safe in PostgreSQL, which evaluates the cheap and the earlier condition first; DataFusion evaluates
//! both sides of AND on whole batches, in an order of its own, and merges the filters of nested queries. Here a condition that divides,
//! reads text as a value or narrows becomes the branch of a CASE whose condition is what was written before it.
//!
//! *Invariants*: (1) conditions that cannot fail stay conjuncts, for pruning and pushdown; (2) a CASE of booleans whose branches can fail
//! is one of numbers, because DataFusion's simplifier turns a CASE of booleans into AND and OR.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, merge_schema, split_conjunction_owned};
use datafusion::logical_expr::{
    BinaryExpr, Case, Expr, ExprSchemable, Filter, LogicalPlan, Operator, Projection, SubqueryAlias, Volatility,
};

use super::functions::{cast, text};
use super::typing::casts::to;

/// Functions that fail for some values of their types, apart from sums that overflow.
const FAIL: [&str; 13] =
    ["checked_div", "checked_mod", "numeric_div", "div", "sqrt", "ln", "log", "log2", "log10", "power", "pow", "chr", "rint"];

/// Guards the conditions of a plan.
pub fn apply(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(node).data()
}

fn node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let plan = cases(plan)?;
    let LogicalPlan::Filter(filter) = plan.data else { return Ok(plan) };
    if let Some(merged) = below(&filter.input, &filter.predicate)? {
        return Ok(Transformed::yes(merged));
    }
    if !can_fail(&filter.predicate)? {
        return Ok(Transformed::new(LogicalPlan::Filter(filter), plan.transformed, TreeNodeRecursion::Continue));
    }
    let Filter { predicate, input, .. } = filter;
    Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(ordered(predicate)?, input)?)))
}

/// Boolean CASE expressions with branches that can fail.
fn cases(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut found = false;
    plan.apply_expressions(|expression| {
        found |= expression.exists(|inner| Ok(matches!(inner, Expr::Case(_))))?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    if !found || matches!(plan, LogicalPlan::TableScan(_)) {
        return Ok(Transformed::no(plan));
    }
    let schema = merge_schema(&plan.inputs());
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expression| {
        let name = names.save(&expression);
        let changed = expression.transform_up(|inner| numbered(inner, &schema))?;
        Ok(if changed.transformed { changed.update_data(|expression| name.restore(expression)) } else { changed })
    })
}

fn numbered(expression: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::Case(case) = expression else { return Ok(Transformed::no(expression)) };
    let mut fails = false;
    for branch in case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr) {
        fails |= can_fail(branch)?;
    }
    if !fails || case.when_then_expr.first().is_none_or(|(_, then)| !matches!(then.get_type(schema), Ok(DataType::Boolean))) {
        return Ok(Transformed::no(Expr::Case(case)));
    }
    let Case { expr, when_then_expr, else_expr } = case;
    let when_then_expr = when_then_expr.into_iter().map(|(when, then)| (when, Box::new(flag(*then)))).collect();
    let case = Case { expr, when_then_expr, else_expr: else_expr.map(|branch| Box::new(flag(*branch))) };
    Ok(Transformed::yes(to(Expr::Case(case), DataType::Boolean)))
}

fn flag(condition: Expr) -> Expr {
    to(condition, DataType::Int8)
}

fn constant(value: i8) -> Expr {
    Expr::Literal(ScalarValue::Int8(Some(value)), None)
}

/// `when` decides whether `then` is evaluated; what it is otherwise.
fn guarded(when: Expr, then: Expr, otherwise: Expr) -> Expr {
    let case = Case { expr: None, when_then_expr: vec![(Box::new(when), Box::new(then))], else_expr: Some(Box::new(otherwise)) };
    to(Expr::Case(case), DataType::Boolean)
}

/// Whether an expression is a CASE of this module, whose branches are guarded.
fn is_guarded(expression: &Expr) -> bool {
    match expression {
        Expr::Cast(cast) if *cast.field.data_type() == DataType::Boolean => matches!(cast.expr.as_ref(), Expr::Case(_)),
        _ => false,
    }
}

/// Whether an expression can fail on some row, where nothing guards it.
fn can_fail(expression: &Expr) -> Result<bool> {
    let mut fails = false;
    expression.apply(|inner| {
        if is_guarded(inner) {
            return Ok(TreeNodeRecursion::Jump);
        }
        if let Expr::ScalarFunction(call) = inner
            && (FAIL.contains(&call.func.name()) || text::is_parse(call) || cast::operand(inner).is_some())
            && inner.any_column_refs()
        {
            fails = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(fails)
}

/// Whether an expression has no part in this: it has a subquery or names an outer column, which DataFusion takes apart as it stands.
fn is_apart(expression: &Expr) -> Result<bool> {
    expression.exists(|inner| {
        Ok(match inner {
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) | Expr::OuterReferenceColumn(..) => {
                true
            }
            Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Volatile,
            _ => false,
        })
    })
}

/// A filter with its conditions guarded by those before them.
fn ordered(predicate: Expr) -> Result<Expr> {
    let mut kept = Vec::new();
    // What is true where the next condition that can fail is evaluated; the last such one is true only where all of them are.
    let (mut before, mut chain): (Vec<Expr>, Option<Expr>) = (Vec::new(), None);
    for conjunct in split_conjunction_owned(predicate) {
        if is_apart(&conjunct)? {
            kept.push(conjunct);
        } else if can_fail(&conjunct)? {
            let conjunct = alternatives(conjunct)?;
            chain = Some(match conjunction(chain.take().into_iter().chain(std::mem::take(&mut before))) {
                Some(guard) => guarded(guard, flag(conjunct), constant(0)),
                None => conjunct,
            });
        } else {
            before.push(conjunct.clone());
            kept.push(conjunct);
        }
    }
    Ok(conjunction(kept.into_iter().chain(chain)).unwrap_or_else(|| Expr::Literal(ScalarValue::Boolean(Some(true)), None)))
}

/// `a OR b` of which b can fail: it is evaluated where a is not true.
fn alternatives(condition: Expr) -> Result<Expr> {
    Ok(match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (left, right) = (alternatives(*left)?, alternatives(*right)?);
            match can_fail(&right)? || is_guarded(&right) {
                true => guarded(left, constant(1), flag(right)),
                false => Expr::BinaryExpr(BinaryExpr::new(Box::new(left), Operator::Or, Box::new(right))),
            }
        }
        both @ Expr::BinaryExpr(BinaryExpr { op: Operator::And, .. }) => ordered(both)?,
        other => other,
    })
}

/// The filter below a subquery's columns, with a condition on these columns among its own; none where the condition cannot fail there, or
/// there is no filter.
fn below(plan: &LogicalPlan, predicate: &Expr) -> Result<Option<LogicalPlan>> {
    let Some(filter) = chain_end(plan) else { return Ok(None) };
    if is_apart(predicate)? || is_apart(&filter.predicate)? {
        return Ok(None);
    }
    merged(plan, predicate.clone())
}

/// The filter at the end of a chain of aliases and projections.
fn chain_end(plan: &LogicalPlan) -> Option<&Filter> {
    match plan {
        LogicalPlan::Filter(filter) => Some(filter),
        LogicalPlan::SubqueryAlias(alias) => chain_end(&alias.input),
        LogicalPlan::Projection(projection) => chain_end(&projection.input),
        _ => None,
    }
}

fn merged(plan: &LogicalPlan, predicate: Expr) -> Result<Option<LogicalPlan>> {
    let over = |outputs: Vec<Expr>, schema: &DFSchema| {
        let replaced = predicate.clone().transform_up(|inner| match inner {
            Expr::Column(column) => Ok(Transformed::yes(outputs[schema.index_of_column(&column)?].clone())),
            other => Ok(Transformed::no(other)),
        });
        replaced.data()
    };
    Ok(match plan {
        LogicalPlan::Filter(filter) => match can_fail(&predicate)? {
            true => {
                let both = filter.predicate.clone().and(predicate);
                Some(LogicalPlan::Filter(Filter::try_new(ordered(both)?, Arc::clone(&filter.input))?))
            }
            false => None,
        },
        LogicalPlan::SubqueryAlias(alias) => {
            let columns = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
            let inner = over(columns, &alias.schema)?;
            match merged(&alias.input, inner)? {
                Some(input) => Some(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?)),
                None => None,
            }
        }
        LogicalPlan::Projection(projection) => {
            let outputs: Vec<Expr> = projection.expr.iter().map(|column| column.clone().unalias_nested().data).collect();
            let inner = over(outputs, &projection.schema)?;
            if is_apart(&inner)? {
                return Ok(None);
            }
            match merged(&projection.input, inner)? {
                Some(input) => Some(LogicalPlan::Projection(Projection::try_new_with_schema(
                    projection.expr.clone(),
                    Arc::new(input),
                    Arc::clone(&projection.schema),
                )?)),
                None => None,
            }
        }
        _ => None,
    })
}
