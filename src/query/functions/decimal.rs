//! Division of numeric, with PostgreSQL's number of digits where 38 digits can hold them.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Decimal128Array, StringViewArray};
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Float32Type, Float64Type, i256};

use super::arithmetic::{division_by_zero, out_of_range};
use super::{Function, Typed, undefined};
use crate::error::Error;

/// Digits after the point of a quotient, where they fit (PostgreSQL's NUMERIC_MIN_SIG_DIGITS).
const QUOTIENT_SCALE: i8 = 16;
/// Digits after the point that a quotient has in any case.
const QUOTIENT_SCALE_MIN: i8 = 6;

/// `numeric / numeric`, rounded half away from zero.
pub fn divide() -> Function {
    Function::new("numeric_div", types, |args, result| {
        let DataType::Decimal128(precision, scale) = *result else {
            return Err(Error::internal("numeric_div without a numeric result"));
        };
        let (dividend, divisor) = (args[0].as_primitive::<Decimal128Type>(), args[1].as_primitive::<Decimal128Type>());
        // dividend / 10^s1 : divisor / 10^s2 = quotient / 10^scale
        let shift = i32::from(scale) + i32::from(divisor.scale()) - i32::from(dividend.scale());
        let factor = i256::from_i128(10).checked_pow(shift.unsigned_abs()).ok_or_else(|| out_of_range(result))?;
        let limit = i256::from_i128(10_i128.pow(u32::from(DECIMAL128_MAX_PRECISION)));
        let mut values = Vec::with_capacity(dividend.len());
        for pair in dividend.iter().zip(divisor.iter()) {
            values.push(match pair {
                (Some(_), Some(0)) => return Err(division_by_zero()),
                (Some(a), Some(b)) => {
                    let (mut a, mut b) = (i256::from_i128(a), i256::from_i128(b));
                    match shift >= 0 {
                        true => a = a.checked_mul(factor).ok_or_else(|| out_of_range(result))?,
                        false => b = b.checked_mul(factor).ok_or_else(|| out_of_range(result))?,
                    }
                    Some(
                        round_divide(a, b)
                            .filter(|q| q.wrapping_abs() < limit)
                            .and_then(i256::to_i128)
                            .ok_or_else(|| out_of_range(result))?,
                    )
                }
                _ => None,
            });
        }
        let array = Decimal128Array::from(values).with_precision_and_scale(precision, scale).map_err(|_| out_of_range(result))?;
        Ok(Arc::new(array) as ArrayRef)
    })
}

/// A floating-point number's decimal digits that mean something, as text: what PostgreSQL makes a numeric of.
pub fn digits() -> Function {
    Function::new(
        "float_digits",
        |types| match types {
            [number @ (DataType::Float32 | DataType::Float64)] => Ok((vec![number.clone()], DataType::Utf8View)),
            _ => Err(undefined("float_digits", types)),
        },
        |args, _| {
            let text: StringViewArray = match args[0].data_type() {
                DataType::Float32 => {
                    args[0].as_primitive::<Float32Type>().iter().map(|value| value.map(|value| format!("{value:.5e}"))).collect()
                }
                _ => args[0].as_primitive::<Float64Type>().iter().map(|value| value.map(|value| format!("{value:.14e}"))).collect(),
            };
            Ok(Arc::new(text) as ArrayRef)
        },
    )
}

fn round_divide(a: i256, b: i256) -> Option<i256> {
    let quotient = a.checked_div(b)?;
    let rest = a.checked_sub(quotient.checked_mul(b)?)?;
    let twice = rest.checked_mul(i256::from_i128(2))?.checked_abs()?;
    if twice < b.checked_abs()? {
        return Some(quotient);
    }
    let negative = (a < i256::ZERO) != (b < i256::ZERO);
    if negative { quotient.checked_sub(i256::ONE) } else { quotient.checked_add(i256::ONE) }
}

fn types(types: &[DataType]) -> Result<Typed, Error> {
    let &[DataType::Decimal128(p1, s1), DataType::Decimal128(_, s2)] = types else {
        return Err(undefined("operator /", types));
    };
    // The quotient is largest for the smallest divisor, 10^-s2.
    let whole = i16::from(p1) - i16::from(s1) + i16::from(s2);
    let room = i8::try_from((38 - whole).clamp(0, 38)).unwrap_or(0);
    let scale = QUOTIENT_SCALE.min(room.max(QUOTIENT_SCALE_MIN)).max(s1).max(s2);
    Ok((types.to_vec(), DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale)))
}
