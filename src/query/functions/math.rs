//! Functions of numbers that fail where PostgreSQL's do: 2201E, 2201F, 22003 instead of NaN and infinity.
//!
//! *Place*: called by name; they replace DataFusion's functions of the same names. Logarithms, roots and powers are double
//! precision whatever the argument's type.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int32Array, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Float64Type, Int32Type, Int64Type};
use datafusion::logical_expr::ScalarUDF;

use super::arithmetic::division_by_zero;
use super::{Function, Typed, undefined};
use crate::error::{Error, SqlState};

/// A function of one number.
type Unary = fn(f64) -> Result<f64, Error>;

macro_rules! unary {
    ($($name:literal => $body:expr;)*) => {
        vec![$(Function::new($name, |types| floats($name, types, 1), |args, _| map(&args[0], $body)).udf()),*]
    };
}

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let mut functions = unary! {
        "ln" => |x| logarithm(x, f64::ln);
        "log10" => |x| logarithm(x, f64::log10);
        "sqrt" => |x| match x < 0.0 {
            true => Err(Error::new(SqlState("2201F"), "cannot take square root of a negative number")),
            false => Ok(x.sqrt()),
        };
        "cbrt" => |x| Ok(x.cbrt());
        "acos" => |x| within(x, -1.0, 1.0, f64::acos);
        "asin" => |x| within(x, -1.0, 1.0, f64::asin);
        "acosh" => |x| within(x, 1.0, f64::INFINITY, f64::acosh);
        "atanh" => |x| within(x, -1.0, 1.0, f64::atanh);
        "cos" => |x| finite(x, f64::cos);
        "sin" => |x| finite(x, f64::sin);
        "tan" => |x| finite(x, f64::tan);
        "cot" => |x| finite(x, |x| 1.0 / x.tan());
        "sinh" => |x| Ok(x.sinh());
        "cosh" => |x| Ok(x.cosh());
        "degrees" => |x| bounded(x, x.to_degrees());
    };
    functions.extend([
        Function::new("exp", exp_types, exp).udf(),
        Function::new("log", log_types, log).udf(),
        Function::new("power", |types| floats("power", types, 2), power).udf(),
        Function::new("pow", |types| floats("pow", types, 2), power).udf(),
        Function::new("factorial", |types| integers("factorial", types, 1, DataType::Decimal128(38, 0)), factorial).udf(),
        Function::new("gcd", |types| integers("gcd", types, 2, DataType::Int64), |args, result| over_pairs(args, result, gcd)).udf(),
        Function::new("lcm", |types| integers("lcm", types, 2, DataType::Int64), |args, result| over_pairs(args, result, lcm)).udf(),
        Function::new("div", div_types, div).udf(),
        Function::new("width_bucket", bucket_types, width_bucket).udf(),
        whole("ceil").udf(),
        whole("floor").udf(),
        whole("trunc").udf(),
        whole("round").udf(),
    ]);
    functions
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric() || data_type.is_null()
}

/// So many numbers, taken as double precision.
fn floats(name: &str, types: &[DataType], count: usize) -> Result<Typed, Error> {
    match types.len() == count && types.iter().all(is_number) {
        true => Ok((vec![DataType::Float64; count], DataType::Float64)),
        false => Err(undefined(name, types)),
    }
}

fn integers(name: &str, types: &[DataType], count: usize, result: DataType) -> Result<Typed, Error> {
    match types.len() == count && types.iter().all(|data_type| data_type.is_integer() || data_type.is_null()) {
        // gcd and lcm of integers are integers.
        true if result == DataType::Int64 && types.iter().all(|data_type| matches!(data_type, DataType::Int32 | DataType::Int16)) => {
            Ok((types.to_vec(), DataType::Int32))
        }
        true => Ok((vec![DataType::Int64; count], result)),
        false => Err(undefined(name, types)),
    }
}

fn map(values: &ArrayRef, function: Unary) -> Result<ArrayRef, Error> {
    Ok(Arc::new(values.as_primitive::<Float64Type>().try_unary::<_, Float64Type, Error>(function)?))
}

fn out_of_range(message: &str) -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message)
}

/// A result that left the range of double precision, or became zero on the way there.
fn bounded(argument: f64, result: f64) -> Result<f64, Error> {
    match () {
        () if result.is_infinite() && argument.is_finite() => Err(out_of_range("value out of range: overflow")),
        () if result == 0.0 && argument.is_finite() && argument != 0.0 => Err(out_of_range("value out of range: underflow")),
        () => Ok(result),
    }
}

fn within(x: f64, low: f64, high: f64, function: fn(f64) -> f64) -> Result<f64, Error> {
    match x < low || x > high {
        true => Err(out_of_range("input is out of range")),
        false => Ok(function(x)),
    }
}

fn finite(x: f64, function: fn(f64) -> f64) -> Result<f64, Error> {
    match x.is_infinite() {
        true => Err(out_of_range("input is out of range")),
        false => Ok(function(x)),
    }
}

fn logarithm(x: f64, function: fn(f64) -> f64) -> Result<f64, Error> {
    match () {
        () if x == 0.0 => Err(Error::new(SqlState("2201E"), "cannot take logarithm of zero")),
        () if x < 0.0 => Err(Error::new(SqlState("2201E"), "cannot take logarithm of a negative number")),
        () => Ok(function(x)),
    }
}

fn exp_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [decimal @ DataType::Decimal128(_, _)] => Ok((vec![decimal.clone()], DataType::Float64)),
        _ => floats("exp", types, 1),
    }
}

/// Of a numeric what is too small is zero; of a float that is an error.
fn exp(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    if args[0].data_type() == &DataType::Float64 {
        return map(&args[0], |x| bounded(x, x.exp()));
    }
    let values = cast(&args[0], &DataType::Float64).map_err(|error| Error::internal(error.to_string()))?;
    map(&values, |x| if x < 0.0 { Ok(x.exp()) } else { bounded(x, x.exp()) })
}

fn log_types(types: &[DataType]) -> Result<Typed, Error> {
    floats("log", types, types.len().clamp(1, 2))
}

/// `log(x)` to base 10, `log(base, x)`.
fn log(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let [base, values] = args else { return map(&args[0], |x| logarithm(x, f64::log10)) };
    let quotient = |base: f64, x: f64| match (logarithm(base, f64::ln)?, logarithm(x, f64::ln)?) {
        (0.0, _) => Err(division_by_zero()),
        // Whole powers come out whole.
        (base_ln, x_ln) => Ok(match (x_ln / base_ln).round() {
            whole if base.powf(whole) == x => whole,
            _ => x_ln / base_ln,
        }),
    };
    pairs::<Float64Type, Float64Type>(base, values, quotient)
}

fn pairs<T: ArrowPrimitiveType, R: ArrowPrimitiveType>(
    left: &ArrayRef,
    right: &ArrayRef,
    function: impl Fn(T::Native, T::Native) -> Result<R::Native, Error>,
) -> Result<ArrayRef, Error> {
    let (left, right) = (left.as_primitive::<T>(), right.as_primitive::<T>());
    let values = left.iter().zip(right.iter()).map(|pair| match pair {
        (Some(left), Some(right)) => function(left, right).map(Some),
        _ => Ok(None),
    });
    Ok(Arc::new(values.collect::<Result<PrimitiveArray<R>, Error>>()?))
}

fn power(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    pairs::<Float64Type, Float64Type>(&args[0], &args[1], |base, exponent| {
        if base == 0.0 && exponent < 0.0 {
            return Err(Error::new(SqlState("2201F"), "zero raised to a negative power is undefined"));
        }
        if base < 0.0 && base.is_finite() && exponent.is_finite() && exponent.fract() != 0.0 {
            let message = "a negative number raised to a non-integer power yields a complex result";
            return Err(Error::new(SqlState("2201F"), message));
        }
        let result = base.powf(exponent);
        match exponent.is_finite() {
            true => bounded(base, result),
            false => Ok(result),
        }
    })
}

fn factorial(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let numbers = args[0].as_primitive::<Int64Type>();
    let values = numbers.try_unary::<_, Decimal128Type, Error>(|number| {
        if number < 0 {
            return Err(out_of_range("factorial of a negative number is undefined"));
        }
        let product = (2..=i128::from(number.min(64))).try_fold(1_i128, i128::checked_mul);
        product.filter(|product| *product < 10_i128.pow(38)).ok_or_else(|| out_of_range("value overflows numeric format"))
    })?;
    let values: Decimal128Array = values;
    Ok(Arc::new(values.with_data_type(DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0))))
}

fn over_pairs(args: &[ArrayRef], result: &DataType, function: fn(i64, i64) -> Option<i64>) -> Result<ArrayRef, Error> {
    let name = super::type_name(result);
    let wide = |array: &ArrayRef| cast(array, &DataType::Int64).map_err(|error| Error::internal(error.to_string()));
    let values = pairs::<Int64Type, Int64Type>(&wide(&args[0])?, &wide(&args[1])?, |left, right| {
        let fits = |value: &i64| *result == DataType::Int64 || i32::try_from(*value).is_ok();
        function(left, right).filter(fits).ok_or_else(|| out_of_range(&format!("{name} out of range")))
    })?;
    cast(&values, result).map_err(|error| Error::internal(error.to_string()))
}

/// `ceil`, `floor`, `trunc` and `round` of a numeric, without digits behind the point.
pub fn whole(name: &str) -> Function {
    match name {
        "ceil" => {
            Function::new("numeric_ceil", whole_types, |args, result| to_whole(args, result, |value, unit| -(-value).div_euclid(unit)))
        }
        "floor" => Function::new("numeric_floor", whole_types, |args, result| to_whole(args, result, i128::div_euclid)),
        "trunc" => Function::new("numeric_trunc", whole_types, |args, result| to_whole(args, result, |value, unit| value / unit)),
        _ => Function::new("numeric_round", whole_types, |args, result| {
            to_whole(args, result, |value, unit| (value + value.signum() * (unit / 2)) / unit)
        }),
    }
}

fn whole_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [DataType::Decimal128(precision, scale)] => {
            let digits = (i16::from(*precision) - i16::from(*scale) + 1).clamp(1, i16::from(DECIMAL128_MAX_PRECISION));
            Ok((types.to_vec(), DataType::Decimal128(u8::try_from(digits).unwrap_or(DECIMAL128_MAX_PRECISION), 0)))
        }
        _ => Err(undefined("ceil", types)),
    }
}

fn to_whole(args: &[ArrayRef], result: &DataType, function: fn(i128, i128) -> i128) -> Result<ArrayRef, Error> {
    let scale = match args[0].data_type() {
        DataType::Decimal128(_, scale) => u32::try_from(*scale).unwrap_or(0),
        _ => 0,
    };
    let unit = 10_i128.pow(scale.min(38));
    let values =
        args[0].as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>(|value| if scale == 0 { value } else { function(value, unit) });
    Ok(Arc::new(values.with_data_type(result.clone())))
}

fn gcd(left: i64, right: i64) -> Option<i64> {
    let (mut left, mut right) = (left.unsigned_abs(), right.unsigned_abs());
    while right != 0 {
        (left, right) = (right, left % right);
    }
    i64::try_from(left).ok()
}

fn lcm(left: i64, right: i64) -> Option<i64> {
    match gcd(left, right)? {
        0 => Some(0),
        divisor => (left / divisor).checked_mul(right)?.checked_abs(),
    }
}

fn div_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [left, right] if is_number(left) && is_number(right) && !left.is_floating() && !right.is_floating() => {
            let scaled = |data_type: &DataType| match data_type {
                decimal @ DataType::Decimal128(_, _) => decimal.clone(),
                _ => DataType::Decimal128(19, 0),
            };
            Ok((vec![scaled(left), scaled(right)], DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0)))
        }
        _ => Err(undefined("div", types)),
    }
}

/// `div(a, b)`: the quotient of two numerics without its fraction.
fn div(args: &[ArrayRef], result: &DataType) -> Result<ArrayRef, Error> {
    let scale_of = |array: &ArrayRef| match array.data_type() {
        DataType::Decimal128(_, scale) => u32::try_from(*scale).unwrap_or(0),
        _ => 0,
    };
    let (left_scale, right_scale) = (scale_of(&args[0]), scale_of(&args[1]));
    let scale = left_scale.max(right_scale);
    let values = pairs::<Decimal128Type, Decimal128Type>(&args[0], &args[1], |left, right| {
        let aligned = |value: i128, from: u32| 10_i128.checked_pow(scale - from).and_then(|factor| value.checked_mul(factor));
        match (aligned(left, left_scale), aligned(right, right_scale)) {
            (_, Some(0)) => Err(division_by_zero()),
            (Some(left), Some(right)) => Ok(left / right),
            _ => Err(out_of_range("value overflows numeric format")),
        }
    })?;
    Ok(Arc::new(values.as_primitive::<Decimal128Type>().clone().with_data_type(result.clone())))
}

fn bucket_types(types: &[DataType]) -> Result<Typed, Error> {
    match types {
        [value, low, high, count] if [value, low, high].into_iter().all(is_number) && (count.is_integer() || count.is_null()) => {
            let float = DataType::Float64;
            Ok((vec![float.clone(), float.clone(), float, DataType::Int64], DataType::Int32))
        }
        [value, DataType::List(bounds)] if is_number(value) && bounds.data_type().is_numeric() => {
            let list = DataType::List(Arc::new(bounds.as_ref().clone().with_data_type(DataType::Float64)));
            Ok((vec![DataType::Float64, list], DataType::Int32))
        }
        _ => Err(undefined("width_bucket", types)),
    }
}

/// `width_bucket(value, low, high, count)` and `width_bucket(value, thresholds)`.
fn width_bucket(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    let values = args[0].as_primitive::<Float64Type>();
    if let [_, thresholds] = args {
        let lists = thresholds.as_list::<i32>();
        let buckets = (0..values.len()).map(|row| match values.is_null(row) || lists.is_null(row) {
            true => None,
            false => {
                let bounds = lists.value(row);
                let below = bounds.as_primitive::<Float64Type>().iter().flatten().filter(|bound| *bound <= values.value(row)).count();
                i32::try_from(below).ok()
            }
        });
        return Ok(Arc::new(buckets.collect::<Int32Array>()));
    }
    let (low, high) = (args[1].as_primitive::<Float64Type>(), args[2].as_primitive::<Float64Type>());
    let counts = args[3].as_primitive::<Int64Type>();
    let buckets = (0..values.len()).map(|row| {
        match [low, high].iter().any(|bound| bound.is_null(row)) || values.is_null(row) || counts.is_null(row) {
            true => Ok(None),
            false => bucket(values.value(row), low.value(row), high.value(row), counts.value(row)).map(Some),
        }
    });
    Ok(Arc::new(buckets.collect::<Result<PrimitiveArray<Int32Type>, Error>>()?))
}

fn bucket(value: f64, low: f64, high: f64, count: i64) -> Result<i32, Error> {
    let invalid = |message: &str| Error::new(SqlState("2201G"), message);
    let Some(count) = i32::try_from(count).ok().filter(|count| *count > 0) else {
        return Err(invalid("count must be greater than zero"));
    };
    if value.is_nan() || low.is_nan() || high.is_nan() {
        return Err(invalid("operand, lower bound, and upper bound cannot be NaN"));
    }
    if !low.is_finite() || !high.is_finite() {
        return Err(invalid("lower and upper bounds must be finite"));
    }
    if low == high {
        return Err(invalid("lower bound cannot equal upper bound"));
    }
    let beyond = || count.checked_add(1).ok_or_else(|| out_of_range("integer out of range"));
    let share = (value - low) / (high - low);
    match () {
        () if share < 0.0 => Ok(0),
        () if share >= 1.0 => beyond(),
        // Below the count, which is an i32.
        () => Ok((share * f64::from(count)).floor() as i32 + 1),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Float64Array;

    use super::*;

    #[test]
    fn buckets_are_postgres() {
        assert_eq!(bucket(5.35, 0.024, 10.06, 5).unwrap(), 3);
        assert_eq!(bucket(0.0, 10.0, 0.0, 5).unwrap(), 6);
        assert_eq!(bucket(10.0, 10.0, 0.0, 5).unwrap(), 1);
        assert_eq!(bucket(-1.0, 0.0, 10.0, 5).unwrap(), 0);
        assert!(bucket(1.0, 1.0, 1.0, 5).is_err());
    }

    #[test]
    fn common_divisors() {
        assert_eq!((gcd(-12, 18), gcd(0, 5), lcm(4, 6), lcm(0, 3)), (Some(6), Some(5), Some(12), Some(0)));
        assert_eq!(lcm(i64::MAX, 2), None);
    }

    #[test]
    fn logarithms_of_powers_are_whole() {
        let arrays: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(vec![2.0])), Arc::new(Float64Array::from(vec![64.0]))];
        assert_eq!(log(&arrays, &DataType::Float64).unwrap().as_primitive::<Float64Type>().value(0), 6.0);
    }
}
