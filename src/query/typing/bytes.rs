//! Calls and operators over bytea, and over string literals that PostgreSQL reads as bytea.
//!
//! *Place*: `query::typing::calls` asks [`call`] first, `operators` asks [`concatenation`].

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ExprSchemable};

use super::operators::{literal_as, open, unknown};
use crate::query::functions::{bytes, is_text, undefined};
use crate::types::SqlType;

/// Functions of whose arguments the first is bytea, also where it is a literal.
const ONLY_BYTES: [&str; 9] = ["encode", "get_byte", "set_byte", "get_bit", "set_bit", "sha224", "sha256", "sha384", "sha512"];

/// Types a call of a function over bytea: a string literal is one, except where the function is one of text as well.
pub fn call(function: ScalarFunction, schema: &DFSchema) -> Result<ScalarFunction> {
    let ScalarFunction { func, mut args } = function;
    let name = func.name();
    let Some(first) = args.first_mut() else { return Ok(ScalarFunction::new_udf(func, args)) };
    if ONLY_BYTES.contains(&name) {
        *first = literal_as(first.clone(), &SqlType::Bytea)?;
        // The digests have always taken text too: its bytes.
        if !name.starts_with("sha") && !open(first) && is_text(&first.get_type(schema)?) {
            let types = args.iter().map(|argument| argument.get_type(schema)).collect::<Result<Vec<_>>>()?;
            return Err(undefined(name, &types).into());
        }
        return Ok(ScalarFunction::new_udf(func, args));
    }
    let over_bytes = match name {
        "character_length" | "octet_length" => bytes::length(),
        "bit_length" => bytes::bit_length(),
        "substr" => bytes::substring(),
        _ => return Ok(ScalarFunction::new_udf(func, args)),
    };
    let func = if is_bytea(first, schema)? { over_bytes.udf() } else { bytes::over_text(func) };
    Ok(ScalarFunction::new_udf(func, args))
}

/// `bytea || bytea`, where one side may be a literal.
pub fn concatenation(left: &Expr, right: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let bytea = |expression: &Expr| is_bytea(expression, schema);
    let fits = |expression: &Expr| -> Result<bool> { Ok(bytea(expression)? || unknown(expression).is_some()) };
    if !((bytea(left)? && fits(right)?) || (bytea(right)? && fits(left)?)) {
        return Ok(None);
    }
    let arguments = vec![literal_as(left.clone(), &SqlType::Bytea)?, literal_as(right.clone(), &SqlType::Bytea)?];
    Ok(Some(bytes::concatenation().call(arguments)))
}

fn is_bytea(expression: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(!open(expression) && matches!(expression.get_type(schema)?, DataType::Binary | DataType::LargeBinary | DataType::BinaryView))
}
