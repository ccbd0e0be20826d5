//! Joins whose columns are merged: `USING (...)` and `NATURAL`, where DataFusion's own differ from PostgreSQL's.
//!
//! *Place*: [`mark`] prepares a SELECT's FROM, `query::sets` nests the marked joins, [`planned`] plans them.
//!
//! DataFusion's merged column is always the left side's, which is NULL where a RIGHT or FULL JOIN has no left row; and `*` leaves it
//! where the left table has it instead of in front. Here the join is projected: merged columns first, then the others of either side.

use std::ops::ControlFlow;

use datafusion::common::{Column, Result};
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder};
use sqlparser::ast::{self, Ident, Join, JoinConstraint, JoinOperator, ObjectName, Select, SelectItem, TableFactor, TableWithJoins};

use crate::error::{Error, Result as OwnResult, SqlState};

/// The column of a marked join whose columns are merged.
const MERGED: &str = "\u{1}merged";
/// The column of a marked join that merges nothing, because the query speaks of either side's.
const APART: &str = "\u{1}apart";
/// The column that stands for those that both sides have.
const NATURAL: &str = "\u{1}natural";

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn named(name: &str) -> ObjectName {
    ObjectName::from(vec![Ident::with_quote('"', name)])
}

fn constraint(operator: &JoinOperator) -> Option<(&JoinConstraint, bool)> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint) => Some((constraint, false)),
        JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) | JoinOperator::FullOuter(constraint) => {
            Some((constraint, true))
        }
        _ => None,
    }
}

fn constraint_mut(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint) => Some(constraint),
        _ => None,
    }
}

/// Marks the joins that are planned here.
pub fn mark(select: &mut Select) -> OwnResult<()> {
    let wildcard = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_)));
    let merges = |join: &Join| {
        constraint(&join.join_operator).is_some_and(|(constraint, outer)| {
            matches!(constraint, JoinConstraint::Using(_) | JoinConstraint::Natural) && (outer || wildcard)
        })
    };
    if !select.from.iter().flat_map(|from| &from.joins).any(merges) {
        return Ok(());
    }
    let qualified = Qualified::of(select);
    for join in select.from.iter_mut().flat_map(|from| &mut from.joins).filter(|join| merges(join)) {
        let outer = constraint(&join.join_operator).is_some_and(|(_, outer)| outer);
        let Some(constraint) = constraint_mut(&mut join.join_operator) else { continue };
        let mut columns = match constraint {
            JoinConstraint::Using(columns) if is_marked(columns) => continue,
            JoinConstraint::Using(columns) => columns.clone(),
            _ => vec![named(NATURAL)],
        };
        let apart = columns.iter().any(|column| qualified.has(column));
        match (apart, outer) {
            (true, false) => continue,
            (true, true) if wildcard || columns == [named(NATURAL)] => {
                let error =
                    Error::unsupported("RIGHT and FULL JOIN with merged columns are not supported where either side's are named too");
                return Err(error.hint("Write ON, and coalesce() of both columns."));
            }
            (apart, _) => columns.push(named(if apart { APART } else { MERGED })),
        }
        *constraint = JoinConstraint::Using(columns);
    }
    Ok(())
}

/// The columns that a SELECT names with their table.
struct Qualified {
    names: Vec<String>,
    all: bool,
}

impl Qualified {
    fn of(select: &Select) -> Self {
        let mut names = Vec::new();
        let _: ControlFlow<()> = ast::visit_expressions(select, |expression| {
            if let ast::Expr::CompoundIdentifier(idents) = expression {
                names.extend(idents.last().map(folded));
            }
            ControlFlow::Continue(())
        });
        let all = select.projection.iter().any(|item| matches!(item, SelectItem::QualifiedWildcard(..)));
        Self { names, all }
    }

    fn has(&self, column: &ObjectName) -> bool {
        let name = column.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        self.all || self.names.contains(&name) || (name == NATURAL && !self.names.is_empty())
    }
}

fn is_marked(columns: &[ObjectName]) -> bool {
    columns.last().is_some_and(|last| *last == named(MERGED) || *last == named(APART))
}

/// Whether a join is one that [`planned`] plans.
pub fn is_own(join: &Join) -> bool {
    matches!(constraint(&join.join_operator), Some((JoinConstraint::Using(columns), _)) if is_marked(columns))
}

/// Plans nested joins whose last one is marked.
pub fn planned(mut joined: TableWithJoins, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let last = joined.joins.pop().ok_or_else(|| Error::internal("a marked join is none"))?;
    let before = match joined.joins.is_empty() {
        true => joined.relation,
        false => TableFactor::NestedJoin { table_with_joins: Box::new(joined), alias: None },
    };
    let join_type = match &last.join_operator {
        JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => JoinType::Left,
        JoinOperator::Right(_) | JoinOperator::RightOuter(_) => JoinType::Right,
        JoinOperator::FullOuter(_) => JoinType::Full,
        _ => JoinType::Inner,
    };
    let Some((JoinConstraint::Using(columns), _)) = constraint(&last.join_operator) else {
        return Err(Error::internal("a marked join has no columns").into());
    };
    let mut names: Vec<String> = columns.iter().filter_map(|column| column.0.last()?.as_ident().map(folded)).collect();
    let merged = names.pop().as_deref() == Some(MERGED);
    let (left, right) = (context.plan(before)?, context.plan(last.relation)?);
    if names == [NATURAL] {
        let has = |name: &String| right.schema().fields().iter().any(|field| field.name() == name);
        names = left.schema().fields().iter().map(|field| field.name().clone()).filter(has).collect();
        if names.is_empty() {
            return LogicalPlanBuilder::from(left).cross_join(right)?.build();
        }
    }
    let mut pairs = Vec::with_capacity(names.len());
    for name in &names {
        pairs.push((side(&left, name, "left")?, side(&right, name, "right")?));
    }
    let equal = pairs.iter().map(|(one, other)| Expr::Column(one.clone()).eq(Expr::Column(other.clone())));
    let others: Vec<Expr> = left
        .schema()
        .columns()
        .into_iter()
        .chain(right.schema().columns())
        .filter(|column| !pairs.iter().any(|(one, other)| column == one || column == other))
        .map(Expr::Column)
        .collect();
    let coalesce = context.context_provider().get_function_meta("coalesce").ok_or_else(|| Error::internal("there is no coalesce()"))?;
    let plan = LogicalPlanBuilder::from(left).join_on(right, join_type, equal.collect::<Vec<_>>())?;
    if !merged {
        return plan.build();
    }
    let shown = pairs.iter().zip(&names).map(|((one, other), name)| {
        let value = match join_type {
            JoinType::Full => coalesce.call(vec![Expr::Column(one.clone()), Expr::Column(other.clone())]),
            JoinType::Right => Expr::Column(other.clone()),
            _ => Expr::Column(one.clone()),
        };
        value.alias(name)
    });
    plan.project(shown.chain(others).collect::<Vec<_>>())?.build()
}

/// One side's column of a name.
fn side(plan: &LogicalPlan, name: &str, which: &str) -> Result<Column> {
    let found: Vec<Column> = plan.schema().columns().into_iter().filter(|column| column.name == name).collect();
    match <[Column; 1]>::try_from(found) {
        Ok([column]) => Ok(column),
        Err(found) if found.is_empty() => {
            let message = format!("column \"{name}\" specified in USING clause does not exist in {which} table");
            Err(Error::new(SqlState::UNDEFINED_COLUMN, message).into())
        }
        Err(_) => {
            let message = format!("common column name \"{name}\" appears more than once in {which} table");
            Err(Error::new(SqlState::AMBIGUOUS_COLUMN, message).into())
        }
    }
}
