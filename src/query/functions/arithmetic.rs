//! Arithmetic that fails where PostgreSQL's does: 22003 out of range, 22012 division by zero.
//!
//! *Place*: `query::typing` replaces `+ - * / %` by these once both sides have one type. Comparisons are left alone, so
//! pruning and pushdown see them as ever.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array};
use arrow::compute::kernels::numeric;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float32Type, Float64Type};
use arrow::error::ArrowError;
use datafusion::logical_expr::{Operator, ScalarUDF};

use super::{Function, Typed, type_name, undefined};
use crate::error::{Error, SqlState};

/// The functions, by name, so that plans can be sent to other roles.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    [Operator::Plus, Operator::Minus, Operator::Multiply, Operator::Divide, Operator::Modulo]
        .iter()
        .filter_map(checked)
        .map(Function::udf)
        .chain([rounded().udf(), real().udf(), modulo().udf(), super::decimal::divide().udf()])
        .collect()
}

/// The checked function of an operator over two integers or two floats of one type.
pub fn checked(operator: &Operator) -> Option<Function> {
    Some(match operator {
        Operator::Plus => Function::new("checked_add", same, |args, _| calculate(args, numeric::add)),
        Operator::Minus => Function::new("checked_sub", same, |args, _| calculate(args, numeric::sub)),
        Operator::Multiply => Function::new("checked_mul", same, |args, _| calculate(args, numeric::mul)),
        Operator::Divide => Function::new("checked_div", same, |args, _| {
            no_zero(&args[0], &args[1])?;
            calculate(args, numeric::div)
        }),
        Operator::Modulo => Function::new("checked_mod", same, |args, _| calculate(args, numeric::rem)),
        _ => return None,
    })
}

/// `mod(a, b)` as it is called; the typing rules make it the operator.
fn modulo() -> Function {
    Function::new(
        "mod",
        |types| match types {
            [left, right] if left.is_numeric() && right.is_numeric() => Ok((types.to_vec(), left.clone())),
            _ => Err(undefined("mod", types)),
        },
        |_, _| Err(Error::internal("mod() was not typed")),
    )
}

/// Rounds a float to an integral one, half to even, as casts from float to integer do.
pub fn rounded() -> Function {
    Function::new("rint", same, |args, _| {
        Ok(match args[0].data_type() {
            DataType::Float32 => Arc::new(args[0].as_primitive::<Float32Type>().unary::<_, Float32Type>(f32::round_ties_even)) as ArrayRef,
            _ => Arc::new(args[0].as_primitive::<Float64Type>().unary::<_, Float64Type>(f64::round_ties_even)) as ArrayRef,
        })
    })
}

/// `integer out of range` and the like.
pub fn out_of_range(data_type: &DataType) -> Error {
    Error::new(
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        match data_type {
            DataType::Decimal128(_, _) => "numeric field overflow".to_owned(),
            DataType::Float32 | DataType::Float64 => "value out of range: overflow".to_owned(),
            other => format!("{} out of range", type_name(other)),
        },
    )
}

/// `division by zero`.
pub fn division_by_zero() -> Error {
    Error::new(SqlState::DIVISION_BY_ZERO, "division by zero")
}

fn same(types: &[DataType]) -> Result<Typed, Error> {
    match types.first() {
        Some(first) if types.iter().all(|data_type| data_type == first) => Ok((types.to_vec(), first.clone())),
        _ => Err(undefined("operator", types)),
    }
}

type Kernel = fn(&dyn arrow::array::Datum, &dyn arrow::array::Datum) -> Result<ArrayRef, ArrowError>;

fn calculate(args: &[ArrayRef], kernel: Kernel) -> Result<ArrayRef, Error> {
    let data_type = args[0].data_type().clone();
    let result = kernel(&args[0], &args[1]).map_err(|error| match error {
        ArrowError::DivideByZero => division_by_zero(),
        _ => out_of_range(&data_type),
    })?;
    match overflows(&result, args) {
        true => Err(out_of_range(&data_type)),
        false => Ok(result),
    }
}

/// Whether floats that are finite give one that is not, which Arrow does not mind.
fn overflows(result: &ArrayRef, args: &[ArrayRef]) -> bool {
    fn of<T: ArrowPrimitiveType>(result: &ArrayRef, args: &[ArrayRef], is_infinite: fn(T::Native) -> bool) -> bool {
        let result = result.as_primitive::<T>();
        let finite = |index: usize| args.iter().all(|argument| !is_infinite(argument.as_primitive::<T>().value(index)));
        let infinite = |(index, value): (usize, &T::Native)| is_infinite(*value) && result.is_valid(index) && finite(index);
        result.values().iter().any(|value| is_infinite(*value)) && result.values().iter().enumerate().any(infinite)
    }
    match result.data_type() {
        DataType::Float32 => of::<Float32Type>(result, args, f32::is_infinite),
        DataType::Float64 => of::<Float64Type>(result, args, f64::is_infinite),
        _ => false,
    }
}

/// `double precision` as `real`: 22003 where it is too large for one.
pub fn real() -> Function {
    Function::new(
        "float_to_real",
        |types| match types {
            [DataType::Float64] => Ok((types.to_vec(), DataType::Float32)),
            _ => Err(undefined("float_to_real", types)),
        },
        |args, result| {
            let values = args[0].as_primitive::<Float64Type>();
            let narrow = values.try_unary::<_, Float32Type, Error>(|value| match value as f32 {
                infinite if infinite.is_infinite() && value.is_finite() => Err(out_of_range(result)),
                narrow => Ok(narrow),
            })?;
            Ok(Arc::new(narrow) as ArrayRef)
        },
    )
}

/// Arrow divides floats by zero without a word.
fn no_zero(dividend: &ArrayRef, divisor: &ArrayRef) -> Result<(), Error> {
    if !divisor.data_type().is_floating() {
        return Ok(());
    }
    let zero = |index: usize| match divisor.data_type() {
        DataType::Float32 => divisor.as_any().downcast_ref::<Float32Array>().is_some_and(|values| values.value(index) == 0.0),
        _ => divisor.as_any().downcast_ref::<Float64Array>().is_some_and(|values| values.value(index) == 0.0),
    };
    match (0..divisor.len()).any(|index| divisor.is_valid(index) && dividend.is_valid(index) && zero(index)) {
        true => Err(division_by_zero()),
        false => Ok(()),
    }
}
