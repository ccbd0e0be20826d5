//! Casts that have to be seen: the written ones by name, the inexact ones by the optimizer.
//!
//! *Place*: `query::rewrite` puts [`WRITTEN`] around every cast of the syntax tree, `query::typing` takes it away and puts
//! [`narrowed`] in the place of a cast that can round or overflow.
//!
//! DataFusion's names of expressions leave casts out, so that `sum(x)` and `sum(x::int)` would be one column: around a cast, a call
//! names it. And its simplifier moves a cast from a compared column to the literal, as if `x::int > 1` were `x > 1`: a call stays.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::error::Error;
use crate::types::SqlType;

/// The function around a written cast: `(cast, 'type')`. No client can type the name.
pub const WRITTEN: &str = "\u{1}cast";

/// The function around an item of VALUES whose column's type is found by `query::typing`: `(item, 'type until then')`.
pub const ITEM: &str = "\u{1}item";

/// The functions that are called by name.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let signature = || Signature::any(2, Volatility::Immutable);
    vec![
        Arc::new(ScalarUDF::new_from_impl(Written { signature: signature() })),
        Arc::new(ScalarUDF::new_from_impl(Item { signature: signature() })),
    ]
}

/// What is in [`ITEM`]; any other expression comes back.
pub fn item(expression: Expr) -> Result<Expr, Expr> {
    match expression {
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if func.name() == ITEM && args.len() == 2 => Ok(args.remove(0)),
        other => Err(other),
    }
}

/// The cast of an expression to a type, rounded and checked, as a call.
pub fn narrowed(expression: Expr, target: &SqlType) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    let name = target.to_string();
    let function = Narrowed { name, target: Arc::new(target.field("", true)), signature };
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), vec![expression]))
}

/// A vector of the catalogs as an array, which has the same values and other text.
pub fn array_of_vector(vector: Expr) -> Expr {
    let types = |types: &[DataType]| Ok((types.to_vec(), types.first().cloned().unwrap_or(DataType::Null)));
    super::Function::new("array", types, |args, _| Ok(Arc::clone(&args[0]))).call(vec![vector])
}

/// What is cast, where an expression is a cast of either form.
pub fn operand(expression: &Expr) -> Option<&Expr> {
    match expression {
        Expr::Cast(cast) => Some(&cast.expr),
        Expr::ScalarFunction(call) if call.func.inner().downcast_ref::<Narrowed>().is_some() => call.args.first(),
        _ => None,
    }
}

/// Whether a cast between two numeric types, which the simplifier would move to a literal, can change a value or fail.
pub fn is_inexact(from: &DataType, to: &DataType) -> bool {
    let digits = |data_type: &DataType| {
        Some(match data_type {
            DataType::Int8 | DataType::UInt8 => (3, 0),
            DataType::Int16 | DataType::UInt16 => (5, 0),
            DataType::Int32 | DataType::UInt32 => (10, 0),
            DataType::Int64 => (19, 0),
            DataType::UInt64 => (20, 0),
            DataType::Decimal128(precision, scale) => (i16::from(*precision) - i16::from(*scale), i16::from(*scale)),
            _ => return None,
        })
    };
    if from == to {
        return false;
    }
    match (digits(from), digits(to)) {
        // An integer of ten digits does not hold every number of ten digits.
        (Some((whole, scale)), Some((room, _))) if to.is_integer() => scale > 0 || whole >= room,
        (Some((whole, scale)), Some((room, places))) => whole > room || scale > places,
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Written {
    signature: Signature,
}

impl ScalarUDFImpl for Written {
    fn name(&self) -> &str {
        WRITTEN
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let (Some(value), Some(Expr::Literal(target, _))) = (args.first(), args.get(1)) else { return Ok(WRITTEN.to_owned()) };
        Ok(format!("{}::{}", value.schema_name(), target.try_as_str().flatten().unwrap_or_default()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let field = &args.arg_fields[0];
        let target = args.scalar_arguments.get(1).copied().flatten().and_then(|target| target.try_as_str().flatten());
        // DataFusion's cast keeps what the source's field says: a document's text is no document any more, nor an array a vector.
        match SqlType::of_field(field) {
            source @ (SqlType::Json | SqlType::Jsonb | SqlType::SmallIntVector | SqlType::OidVector)
                if target.is_some_and(|target| target != source.to_string()) =>
            {
                Ok(Arc::new(field.as_ref().clone().with_metadata(std::collections::HashMap::new())))
            }
            _ => Ok(Arc::clone(field)),
        }
    }

    /// Where nothing is typed (the count of LIMIT), the cast is the value.
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.into_iter().next().unwrap_or(ColumnarValue::Scalar(ScalarValue::Null)))
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Item {
    signature: Signature,
}

impl ScalarUDFImpl for Item {
    fn name(&self) -> &str {
        ITEM
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Null)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let name = args.scalar_arguments.get(1).copied().flatten().and_then(|target| target.try_as_str().flatten());
        let target = name.and_then(SqlType::parse).ok_or_else(|| Error::internal("an item of VALUES is of no type"))?;
        Ok(Arc::new(target.field(ITEM, true)))
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::internal("an item of VALUES was not typed").into())
    }
}

/// A cast to one type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Narrowed {
    name: String,
    target: FieldRef,
    signature: Signature,
}

impl ScalarUDFImpl for Narrowed {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.target.data_type().clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let nullable = args.arg_fields[0].is_nullable();
        Ok(Arc::new(self.target.as_ref().clone().with_nullable(nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let target = self.target.data_type();
        let value = &args.args[0];
        match value.data_type() {
            // The digits after the point are rounded, not cut.
            DataType::Decimal128(_, scale) if scale > 0 && target.is_integer() => {
                value.cast_to(&DataType::Decimal128(38, 0), None)?.cast_to(target, None)
            }
            _ => value.cast_to(target, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact() {
        use DataType::{Decimal128, Int16, Int32, Int64};
        for (from, to, inexact) in [
            (Int16, Int32, false),
            (Int32, Int64, false),
            (Int64, Int32, true),
            (Int32, Decimal128(38, 10), false),
            (Int64, Decimal128(20, 2), true),
            (Decimal128(10, 2), Decimal128(12, 4), false),
            (Decimal128(10, 2), Decimal128(10, 1), true),
            (Decimal128(10, 2), Decimal128(10, 4), true),
            (Decimal128(10, 2), Int64, true),
            (Decimal128(9, 0), Int32, false),
            (Decimal128(10, 0), Int32, true),
            (DataType::Float64, Int32, false),
        ] {
            assert_eq!(is_inexact(&from, &to), inexact, "{from} -> {to}");
        }
    }
}
