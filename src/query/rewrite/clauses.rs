//! Clauses of aggregates at functions of single rows.

use sqlparser::ast::{DuplicateTreatment, Function, FunctionArgumentClause, FunctionArguments};

use super::last_name;
use crate::error::{Error, SqlState};
use crate::query::functions;

/// 42809 where a function of single rows is called like an aggregate: DataFusion would leave out what it was told.
pub(super) fn misplaced(function: &Function) -> Option<Error> {
    let (distinct, ordered) = match &function.args {
        FunctionArguments::List(list) => (
            matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct)),
            list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_))),
        ),
        _ => (false, false),
    };
    let (clause, wanted) = match function {
        _ if distinct => ("DISTINCT", "an aggregate function"),
        Function { within_group, .. } if !within_group.is_empty() => ("WITHIN GROUP", "an ordered-set aggregate function"),
        _ if ordered => ("ORDER BY", "an aggregate function"),
        Function { filter: Some(_), .. } => ("FILTER", "an aggregate function"),
        Function { over: Some(_), .. } => ("OVER", "a window function nor an aggregate function"),
        _ => return None,
    };
    let name = last_name(&function.name).filter(|name| functions::is_of_rows(name))?;
    Some(Error::new(SqlState::WRONG_OBJECT_TYPE, format!("{clause} specified, but {name} is not {wanted}")))
}
