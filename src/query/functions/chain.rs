//! Long chains of arithmetic, `a + b - c * ...`, as one call: each level of a tree is typed, named and walked again by everything
//! behind the parser, so that a deep one costs the square of its depth and more.
//!
//! *Place*: `query::rewrite` writes chains of [`TERMS_MIN`] terms and more as calls of [`NAME`]; `query::typing::chains` makes
//! [`checked`] chains of them where the terms are integers or floats.
//!
//! *Invariant*: a chain is calculated from left to right and fails where the operators would.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::arithmetic::checked as operation;
use crate::error::Error;
use crate::types::SqlType;

/// The function that stands for a chain until it is typed: `(operators, term, term, ...)`.
pub const NAME: &str = "arithmetic_chain";
/// Terms from which a chain is written so.
pub const TERMS_MIN: usize = 8;

/// The functions, by name.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::new_from_impl(Untyped { signature: Signature::variadic_any(Volatility::Immutable) }))]
}

/// The operators of a chain, one character each.
pub fn operators(text: &str) -> Vec<Operator> {
    let of = |character| match character {
        '+' => Some(Operator::Plus),
        '-' => Some(Operator::Minus),
        '*' => Some(Operator::Multiply),
        '/' => Some(Operator::Divide),
        '%' => Some(Operator::Modulo),
        _ => None,
    };
    text.chars().filter_map(of).collect()
}

/// The chain of terms of one integer or float type.
pub fn checked(operators: &[Operator], data_type: DataType, terms: Vec<Expr>) -> Expr {
    let chain = Checked {
        operators: operators.iter().map(ToString::to_string).collect(),
        steps: operators.to_vec(),
        data_type,
        signature: Signature::variadic_any(Volatility::Immutable),
    };
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(chain)), terms))
}

/// A chain that the typing rules have not seen yet.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Untyped {
    signature: Signature,
}

impl ScalarUDFImpl for Untyped {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.last().cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let text = args.scalar_arguments.first().copied().flatten().and_then(ScalarValue::try_as_str).flatten().unwrap_or_default();
        let mut terms = args.arg_fields.iter().skip(1).map(|field| field.data_type().clone());
        let first = terms.next().unwrap_or(DataType::Null);
        // Only the kind of the result matters until the chain is typed.
        let result = terms
            .zip(operators(text))
            .fold(first, |left, (right, operator)| BinaryTypeCoercer::new(&left, &operator, &right).get_result_type().unwrap_or(left));
        Ok(Arc::new(SqlType::of_arrow(&result).field(NAME, true).with_data_type(result)))
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::internal("a chain of arithmetic was not typed").into())
    }
}

/// A chain over terms of one type.
#[derive(Debug)]
struct Checked {
    /// The operators as text, which tells chains apart.
    operators: String,
    steps: Vec<Operator>,
    data_type: DataType,
    signature: Signature,
}

impl PartialEq for Checked {
    fn eq(&self, other: &Self) -> bool {
        self.operators == other.operators && self.data_type == other.data_type
    }
}

impl Eq for Checked {}

impl Hash for Checked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.operators, &self.data_type).hash(state);
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        "checked_chain"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let mut terms = args.args.into_iter().map(|value| value.into_array(rows));
        let mut result: ArrayRef = terms.next().ok_or_else(|| Error::internal("a chain has no terms"))??;
        for (operator, term) in self.steps.iter().zip(terms) {
            let function = operation(operator).ok_or_else(|| Error::internal("a chain has an operator that is no arithmetic"))?;
            result = (function.body)(&[result, term?], &self.data_type)?;
        }
        match constant {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}
