//! PostgreSQL's binary format of values, both ways: what the wire's binary format and COPY's share.
//!
//! *Place*: beside `types::text`; called by `event` (COPY) and `pg` (parameters and results).
//!
//! Integers and floats are big-endian. Dates and timestamps count from 2000-01-01. A numeric is base-10000 digits behind
//! a header; an array is a header and its elements behind their lengths (PostgreSQL's `*send` and `*recv` functions).

use std::ops::Range;

use arrow::array::{Array, ListArray};
use arrow::datatypes::IntervalMonthDayNano;
use datafusion::common::ScalarValue;

use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::text::calendar::{DAYS_MIN, TIMESTAMP_MIN_US};
use crate::types::text::scalar::{fit, not_utf8, not_utf8_at};
use crate::types::text::{Style, json, scalar};
use crate::types::{NUMERIC_DEFAULT, SqlType, UTC};

mod writer;

pub use writer::BinaryWriter;

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;

/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_US: i64 = 946_684_800_000_000;

/// Sign fields of a numeric.
const NUMERIC_NEGATIVE: u16 = 0x4000;

/// 22P03: the bytes are not a value of the type.
fn incorrect() -> Error {
    Error::new(SqlState::INVALID_BINARY_REPRESENTATION, "incorrect binary data format")
}

/// 08P01: fewer bytes than announced.
fn insufficient() -> Error {
    Error::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message")
}

#[inline]
fn whole<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| if bytes.len() < N { insufficient() } else { incorrect() })
}

/// `boolean`.
pub fn boolean(bytes: &[u8]) -> Result<bool> {
    Ok(whole::<1>(bytes)? != [0])
}

/// `smallint`.
pub fn smallint(bytes: &[u8]) -> Result<i16> {
    Ok(i16::from_be_bytes(whole(bytes)?))
}

/// `integer`.
pub fn integer(bytes: &[u8]) -> Result<i32> {
    Ok(i32::from_be_bytes(whole(bytes)?))
}

/// `bigint`.
pub fn bigint(bytes: &[u8]) -> Result<i64> {
    Ok(i64::from_be_bytes(whole(bytes)?))
}

/// `oid`.
pub fn oid(bytes: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(whole(bytes)?))
}

/// `real`.
pub fn real(bytes: &[u8]) -> Result<f32> {
    Ok(f32::from_be_bytes(whole(bytes)?))
}

/// `double precision`.
pub fn double(bytes: &[u8]) -> Result<f64> {
    Ok(f64::from_be_bytes(whole(bytes)?))
}

/// `uuid`.
pub fn uuid(bytes: &[u8]) -> Result<[u8; 16]> {
    whole(bytes)
}

/// `date`: days since 1970-01-01. 0A000 for the infinities.
pub fn date(bytes: &[u8]) -> Result<i32> {
    match integer(bytes)? {
        i32::MAX | i32::MIN => Err(infinite("date")),
        days => days
            .checked_add(EPOCH_DAYS)
            .filter(|days| i64::from(*days) >= DAYS_MIN)
            .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range")),
    }
}

/// `time`: microseconds since midnight.
pub fn time(bytes: &[u8]) -> Result<i64> {
    const DAY_US: i64 = 86_400_000_000;
    let us = bigint(bytes)?;
    if (0..=DAY_US).contains(&us) { Ok(us) } else { Err(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "time out of range")) }
}

/// `timestamp` and `timestamptz`: microseconds since 1970-01-01. 0A000 for the infinities.
pub fn timestamp(bytes: &[u8]) -> Result<Micros> {
    match bigint(bytes)? {
        i64::MAX | i64::MIN => Err(infinite("timestamp")),
        us => us
            .checked_add(EPOCH_US)
            .filter(|us| *us >= TIMESTAMP_MIN_US)
            .ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range")),
    }
}

fn infinite(type_name: &str) -> Error {
    Error::unsupported(format!("infinite values of type {type_name} are not supported")).hint("Use NULL, or a date far away.")
}

/// `interval`.
pub fn interval(bytes: &[u8]) -> Result<IntervalMonthDayNano> {
    let fields: [u8; 16] = whole(bytes)?;
    let (us, rest) = fields.split_at(8);
    let (days, months) = rest.split_at(4);
    let nanoseconds =
        bigint(us)?.checked_mul(1000).ok_or_else(|| Error::new(SqlState::INTERVAL_FIELD_OVERFLOW, "interval out of range"))?;
    Ok(IntervalMonthDayNano::new(integer(months)?, integer(days)?, nanoseconds))
}

/// Any text type: valid UTF-8 without the character 0 (22021).
pub fn text(bytes: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(bytes).map_err(|error| not_utf8_at(bytes, error.valid_up_to()))?;
    if memchr::memchr(0, bytes).is_some() { Err(not_utf8(&[0])) } else { Ok(text) }
}

/// The text of a `jsonb`, which is not yet in its normal form.
pub fn jsonb_text(bytes: &[u8]) -> Result<&str> {
    match bytes.split_first() {
        Some((1, rest)) => text(rest),
        Some((version, _)) => Err(Error::internal(format!("unsupported jsonb version number {version}"))),
        None => Err(insufficient()),
    }
}

/// `numeric` as the unscaled integer of a Decimal128, rounded half away from zero; `declared` as in `text::number::numeric`.
pub fn numeric(bytes: &[u8], precision: u8, scale: i8, declared: bool) -> Result<i128> {
    let (header, digits) = bytes.split_at_checked(8).ok_or_else(insufficient)?;
    let field = |index: usize| u16::from_be_bytes([header[2 * index], header[2 * index + 1]]);
    let (count, weight, sign) = (usize::from(field(0)), field(1) as i16, field(2));
    if digits.len() != count * 2 {
        return Err(if digits.len() < count * 2 { insufficient() } else { incorrect() });
    }
    if sign != 0 && sign != NUMERIC_NEGATIVE {
        return Err(Error::unsupported("NaN and infinity are not supported in type numeric")
            .hint("Use double precision for values that are not numbers."));
    }
    let (digits, _) = digits.as_chunks::<2>();
    let digits = digits.iter().map(|digit| i128::from(u16::from_be_bytes(*digit)));
    let overflow = || crate::types::text::number::numeric_overflow(precision, scale, declared);
    let (mut value, mut round_up) = (0i128, false);
    for (index, digit) in digits.enumerate() {
        if digit > 9999 {
            return Err(Error::new(SqlState::INVALID_BINARY_REPRESENTATION, "invalid digit in external \"numeric\" value"));
        }
        // This digit counts 10000 ^ (weight - index), in units of the last decimal place.
        let power = (i32::from(weight) - index as i32) * 4 + i32::from(scale);
        let part = if digit == 0 || power < -4 {
            Some(0)
        } else if power < 0 {
            // The places below the scale begin here: the first of them decides.
            round_up = digit / 10i128.pow(power.unsigned_abs() - 1) % 10 >= 5;
            Some(digit / 10i128.pow(power.unsigned_abs()))
        } else {
            10i128.checked_pow(power.unsigned_abs()).and_then(|factor| digit.checked_mul(factor))
        };
        value = part.and_then(|part| value.checked_add(part)).ok_or_else(overflow)?;
    }
    let value = value + i128::from(round_up);
    if value >= 10i128.pow(u32::from(precision.min(38))) {
        return Err(overflow());
    }
    Ok(if sign == NUMERIC_NEGATIVE { -value } else { value })
}

/// Calls `element` with where in `bytes` each element of a one-dimensional array stands, none for NULL.
pub fn elements(bytes: &[u8], mut element: impl FnMut(Option<Range<usize>>) -> Result<()>) -> Result<()> {
    let field = |at: usize| -> Result<i32> {
        let field = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or_else(insufficient)?;
        Ok(i32::from_be_bytes(*field))
    };
    // Dimensions, a flag for NULLs, the element's oid; then size and lower bound of each dimension.
    let (count, mut at) = match field(0)? {
        0 => (0, 12),
        1 => (field(12)?, 20),
        _ => return Err(Error::unsupported("arrays of several dimensions are not supported in binary format")),
    };
    for _ in 0..count {
        let length = field(at)?;
        at += 4;
        if length == -1 {
            element(None)?;
            continue;
        }
        let end = at + usize::try_from(length).map_err(|_| incorrect())?;
        if end > bytes.len() {
            return Err(insufficient());
        }
        element(Some(at..end))?;
        at = end;
    }
    if at == bytes.len() { Ok(()) } else { Err(incorrect()) }
}

/// 42804 where an array says that its elements are of a fixed-size type other than `element`.
fn check_element(element: &SqlType, bytes: &[u8]) -> Result<()> {
    let sent = bytes.get(8..12).map_or(Err(insufficient()), oid)?;
    if sent == element.oid() || element.wire_size() < 0 || *element == SqlType::Name {
        return Ok(());
    }
    let expected = element.oid();
    Err(Error::new(SqlState::DATATYPE_MISMATCH, format!("binary data has array element type {sent} instead of expected {expected}")))
}

/// The value that `bytes` stand for, of the type's Arrow form ([`SqlType::arrow`]): a parameter. 22P03 and 08P01 where they
/// are no value of the type, and what the type's own bounds say.
pub fn read_scalar(sql_type: &SqlType, bytes: &[u8]) -> Result<ScalarValue> {
    Ok(match sql_type {
        SqlType::Boolean => ScalarValue::Boolean(Some(boolean(bytes)?)),
        SqlType::SmallInt => ScalarValue::Int16(Some(smallint(bytes)?)),
        SqlType::Integer => ScalarValue::Int32(Some(integer(bytes)?)),
        SqlType::BigInt => ScalarValue::Int64(Some(bigint(bytes)?)),
        SqlType::Real => ScalarValue::Float32(Some(real(bytes)?)),
        SqlType::Double => ScalarValue::Float64(Some(double(bytes)?)),
        SqlType::Numeric(limits) => {
            let (precision, scale) = limits.unwrap_or(NUMERIC_DEFAULT);
            ScalarValue::Decimal128(Some(numeric(bytes, precision, scale, limits.is_some())?), precision, scale)
        }
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name => {
            ScalarValue::Utf8View(Some(fit(sql_type, text(bytes)?)?.to_owned()))
        }
        SqlType::Json => {
            let text = text(bytes)?;
            json::check_json(text)?;
            ScalarValue::Utf8View(Some(text.to_owned()))
        }
        SqlType::Jsonb => {
            let mut normal = String::new();
            json::normalize_jsonb(jsonb_text(bytes)?, &mut normal)?;
            ScalarValue::Utf8View(Some(normal))
        }
        SqlType::Bytea => ScalarValue::Binary(Some(bytes.to_vec())),
        SqlType::Uuid => ScalarValue::FixedSizeBinary(16, Some(uuid(bytes)?.to_vec())),
        SqlType::Date => ScalarValue::Date32(Some(date(bytes)?)),
        SqlType::Time => ScalarValue::Time64Microsecond(Some(time(bytes)?)),
        SqlType::Timestamp => ScalarValue::TimestampMicrosecond(Some(timestamp(bytes)?), None),
        SqlType::Timestamptz => ScalarValue::TimestampMicrosecond(Some(timestamp(bytes)?), Some(UTC.into())),
        SqlType::Interval => ScalarValue::IntervalMonthDayNano(Some(interval(bytes)?)),
        SqlType::Oid => ScalarValue::UInt32(Some(oid(bytes)?)),
        SqlType::Array(_) | SqlType::SmallIntVector | SqlType::OidVector => {
            let element = sql_type.element().unwrap_or(&SqlType::Text);
            check_element(element, bytes)?;
            let mut values = Vec::new();
            elements(bytes, |item| {
                values.push(item.map(|item| read_scalar(element, &bytes[item])).transpose()?);
                Ok(())
            })?;
            scalar::list(element, values)?
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::text::parse_scalar;
    use crate::types::zone::Zone;

    fn bytes_of(value: &ScalarValue, sql_type: &SqlType) -> Vec<u8> {
        let mut out = Vec::new();
        BinaryWriter::new(value.to_array().unwrap().as_ref(), sql_type).unwrap().write(0, &mut out);
        out
    }

    /// Text to value to bytes, which are compared, and back.
    #[track_caller]
    fn check(sql_type: &str, text: &str, expected: &[u8]) {
        let sql_type = SqlType::parse(sql_type).unwrap();
        let value = parse_scalar(&sql_type, text, &Zone::UTC).unwrap();
        let bytes = bytes_of(&value, &sql_type);
        assert_eq!(bytes, expected, "{text}");
        assert_eq!(read_scalar(&sql_type, &bytes).unwrap(), value, "{text}");
    }

    #[test]
    fn values() {
        check("boolean", "t", &[1]);
        check("smallint", "-2", &[0xff, 0xfe]);
        check("double precision", "1.5", &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0]);
        check("date", "2000-01-02", &[0, 0, 0, 1]);
        check("timestamp with time zone", "1999-12-31 23:59:59.999999Z", &[0xff; 8]);
        check("interval", "1 mon 2 days 00:00:00.000003", &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1]);
        check("jsonb", "{}", b"\x01{}");
        check("character(4)", "ab", b"ab  ");
        // As PostgreSQL's numeric_send: digits, weight, sign, display scale, base-10000 digits.
        check("numeric(12,2)", "-12345.67", &[0, 3, 0, 1, 0x40, 0, 0, 2, 0, 1, 0x09, 0x29, 0x1a, 0x2c]);
        check("numeric(12,2)", "0", &[0, 0, 0, 0, 0, 0, 0, 2]);
        check("numeric(12,4)", "0.0001", &[0, 1, 0xff, 0xff, 0, 0, 0, 4, 0, 1]);
        check(
            "numeric(38,0)",
            "99999999999999999999999999999999999999",
            &[0, 10, 0, 9, 0, 0, 0, 0, 0, 99, 39, 15, 39, 15, 39, 15, 39, 15, 39, 15, 39, 15, 39, 15, 39, 15, 39, 15],
        );
        check("numeric(12,2)", "10000", &[0, 1, 0, 1, 0, 0, 0, 2, 0, 1]);
        check(
            "integer[]",
            "{7,NULL}",
            &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff],
        );
        // A vector counts from 0.
        check("int2vector", "1 2", &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 2, 0, 2]);
        check("text[]", "{}", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25]);
    }

    #[test]
    fn refusals() {
        let state = |sql_type: &str, bytes: &[u8]| read_scalar(&SqlType::parse(sql_type).unwrap(), bytes).unwrap_err().state().0;
        assert_eq!(state("integer", &[1]), "08P01");
        assert_eq!(state("integer", &[1; 5]), "22P03");
        assert_eq!(state("text", &[0xff]), "22021");
        assert_eq!(state("timestamp without time zone", &i64::MAX.to_be_bytes()), "0A000");
        assert_eq!(state("numeric(3,2)", &[0, 1, 0, 0, 0, 0, 0, 0, 0, 10]), "22003");
        assert_eq!(state("numeric", &[0, 1, 0x7f, 0xff, 0, 0, 0, 0, 0, 10]), "22003");
        assert_eq!(state("numeric", &[0, 0, 0, 0, 0xc0, 0, 0, 0]), "0A000");
        // Elements of type real for integer[].
        assert_eq!(state("integer[]", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xbc]), "42804");
    }

    proptest! {
        #[test]
        fn numerics(value: i64, scale in 0i8..18, narrower in 0i8..18) {
            let sql_type = SqlType::Numeric(Some((38, scale)));
            let scalar = ScalarValue::Decimal128(Some(i128::from(value)), 38, scale);
            let bytes = bytes_of(&scalar, &sql_type);
            prop_assert_eq!(&read_scalar(&sql_type, &bytes).unwrap(), &scalar);
            // Rounding agrees with that of the text.
            let other = SqlType::Numeric(Some((38, narrower)));
            let mut text = Vec::new();
            crate::types::text::number::write_numeric(i128::from(value), scale, false, &mut text);
            let text = String::from_utf8(text).unwrap();
            prop_assert_eq!(read_scalar(&other, &bytes).unwrap(), parse_scalar(&other, &text, &Zone::UTC).unwrap());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            for name in ["integer", "numeric(5,2)", "numeric", "interval", "jsonb", "integer[]", "text[]", "date"] {
                _ = read_scalar(&SqlType::parse(name).unwrap(), &bytes);
            }
        }
    }
}
