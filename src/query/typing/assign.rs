//! Casts by assignment: what INSERT may put into a column without being asked to (PostgreSQL's `pg_cast.castcontext` a and i).
//!
//! *Place*: `command::insert` writes [`NAME`]`(expression, NULL::type, 'column')` around what is no literal; `query::typing` puts the
//! conversion in its place, or refuses it (42804).

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::operators::open;
use super::{branches, casts};
use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// The function that stands for an assignment until it is typed.
pub const NAME: &str = "assignment_cast";

/// The function.
pub fn function() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(Assignment { signature: Signature::any(3, Volatility::Immutable) }))
}

/// The conversion of an assignment's arguments.
pub fn typed(arguments: Vec<Expr>, schema: &DFSchema) -> Result<Expr> {
    let [value, target, column] =
        <[Expr; 3]>::try_from(arguments).map_err(|_| Error::internal("an assignment is a value, a type and a column"))?;
    let target = super::sql_type(&target, schema)?;
    let source = value.get_type(schema)?;
    if open(&value) || source.is_null() {
        return Ok(casts::to(value, target.arrow()));
    }
    let from = super::sql_type(&value, schema)?;
    if !allowed(&from, &target) {
        let name = match &column {
            Expr::Literal(name, _) => name.try_as_str().flatten().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        let (target, from) = (branches::plain(&target), branches::plain(&from));
        let message = format!("column \"{name}\" is of type {target} but expression is of type {from}");
        let error = Error::new(SqlState::DATATYPE_MISMATCH, message).hint("You will need to rewrite or cast the expression.");
        return Err(error.into());
    }
    match source == target.arrow() {
        true => Ok(value),
        false => casts::assignment(value, &source, &target.arrow(), schema),
    }
}

/// Whether a value of one type may be assigned to a column of another.
fn allowed(source: &SqlType, target: &SqlType) -> bool {
    use SqlType::{Bytea, Date, Interval, Json, Jsonb, Oid, Time, Timestamp, Timestamptz};
    let number = |each: &SqlType| each.arrow().is_numeric();
    let text = |each: &SqlType| matches!(each, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name);
    match (source, target) {
        // Every type has an assignment cast to text.
        (_, target) if text(target) => true,
        (source, target) if number(source) && number(target) => !matches!(
            (source, target),
            (SqlType::Numeric(_) | SqlType::Real | SqlType::Double, Oid) | (Oid, SqlType::Numeric(_) | SqlType::Real | SqlType::Double)
        ),
        (Date | Timestamp | Timestamptz, Date | Timestamp | Timestamptz) => true,
        (Timestamp | Timestamptz | Interval, Time) | (Time, Interval) => true,
        (Json, Jsonb) | (Jsonb, Json) | (Bytea, Bytea) => true,
        (SqlType::Array(source), SqlType::Array(target)) => allowed(source, target) && (text(source) || !text(target)),
        (source, target) => source == target,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Assignment {
    signature: Signature,
}

impl ScalarUDFImpl for Assignment {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.get(1).cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(args.arg_fields[1].as_ref().clone().with_nullable(true)))
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::internal("an assignment was not typed").into())
    }
}
