//! The types of long chains of arithmetic, term by term.
//!
//! *Place*: `query::typing` calls [`typed`] for calls of `functions::chain`.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{Expr, ExprSchemable, Operator};

use super::casts::to;
use super::operators::{self, Outcome, common_type};
use crate::error::Error;
use crate::query::functions::chain;

/// Terms after which a chain that is none of integers or floats is cut by a cast to its own type: a cast knows its type without
/// asking the terms below it.
const CUT_TERMS: usize = 16;

/// What has been put together so far.
struct Chain {
    /// The terms with their operators, not joined yet, of one integer or float type.
    terms: Vec<Expr>,
    steps: Vec<Operator>,
    data_type: DataType,
}

impl Chain {
    fn of(expression: Expr, data_type: DataType) -> Self {
        Self { terms: vec![expression], steps: Vec::new(), data_type }
    }

    fn joined(mut self) -> Expr {
        match (self.terms.pop(), self.terms.is_empty()) {
            (Some(only), true) => only,
            (last, _) => {
                self.terms.extend(last);
                chain::checked(&self.steps, self.data_type, self.terms)
            }
        }
    }
}

/// The expression that a chain's call stands for.
pub fn typed(arguments: Vec<Expr>, schema: &DFSchema) -> Result<Expr> {
    let mut arguments = arguments.into_iter();
    let steps = match arguments.next() {
        Some(Expr::Literal(text, _)) => chain::operators(text.try_as_str().flatten().unwrap_or_default()),
        _ => return Err(Error::internal("a chain does not name its operators").into()),
    };
    let Some(first) = arguments.next() else { return Err(Error::internal("a chain has no terms").into()) };
    let first_type = first.get_type(schema)?;
    let mut chain = Chain::of(first, first_type);
    for (index, (operator, term)) in steps.into_iter().zip(arguments).enumerate() {
        let term_type = term.get_type(schema)?;
        let common = common_type(&chain.data_type, &term_type);
        chain = match common {
            Some(common) => {
                if common != chain.data_type {
                    let narrower = chain.joined();
                    chain = Chain::of(to(narrower, common.clone()), common);
                }
                let term = if term_type == chain.data_type { term } else { to(term, chain.data_type.clone()) };
                chain.terms.push(term);
                chain.steps.push(operator);
                chain
            }
            None => {
                let before = chain.joined();
                let joined = match operators::typed(before, operator, term, schema)? {
                    Outcome::Changed(expression) => super::rewrite(expression, schema)?.data,
                    Outcome::Same(left, right) => operators::arithmetic(left, operator, right, schema)?.data,
                };
                let data_type = joined.get_type(schema)?;
                let joined = if index % CUT_TERMS == CUT_TERMS - 1 { to(joined, data_type.clone()) } else { joined };
                Chain::of(joined, data_type)
            }
        };
    }
    Ok(chain.joined())
}
