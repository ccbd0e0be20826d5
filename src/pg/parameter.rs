//! Parameter values of Bind, in text and binary, to scalars of their type's Arrow form.

use std::sync::Arc;

use arrow::array::{ListArray, new_empty_array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, IntervalMonthDayNano};
use datafusion::common::ScalarValue;

use crate::error::{Error, Result, SqlState};
use crate::pg::binary::{EPOCH_DAYS, EPOCH_MICROS, JSONB_VERSION};
use crate::pg::oid;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;
use crate::types::{SqlType, UTC};

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// Reads one value. 22P02 and its kind for text, 22P03 for bytes that do not fit the type.
pub(super) fn read(sql_type: &SqlType, binary: bool, value: Option<&[u8]>, zone: &Zone) -> Result<ScalarValue> {
    match value {
        None => null(sql_type),
        Some(bytes) if binary => read_binary(sql_type, bytes, zone),
        Some(bytes) => parse_scalar(sql_type, utf8(bytes)?, zone),
    }
}

fn null(sql_type: &SqlType) -> Result<ScalarValue> {
    ScalarValue::try_from(&sql_type.arrow()).map_err(crate::session::engine_error)
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let bad = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
        Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, format!("invalid byte sequence for encoding \"UTF8\": 0x{bad:02x}"))
    })
}

fn invalid() -> Error {
    Error::new(SqlState::INVALID_BINARY_REPRESENTATION, "incorrect binary data format in bind parameter")
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| invalid())
}

fn read_binary(sql_type: &SqlType, bytes: &[u8], zone: &Zone) -> Result<ScalarValue> {
    let out_of_range = || Error::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("{sql_type} out of range"));
    let timestamp = |bytes: &[u8]| i64::from_be_bytes(array(bytes)?).checked_add(EPOCH_MICROS).ok_or_else(out_of_range);
    Ok(match sql_type {
        SqlType::Boolean => ScalarValue::Boolean(Some(array::<1>(bytes)?[0] != 0)),
        SqlType::SmallInt => ScalarValue::Int16(Some(i16::from_be_bytes(array(bytes)?))),
        SqlType::Integer => ScalarValue::Int32(Some(i32::from_be_bytes(array(bytes)?))),
        SqlType::BigInt => ScalarValue::Int64(Some(i64::from_be_bytes(array(bytes)?))),
        SqlType::Oid => ScalarValue::UInt32(Some(u32::from_be_bytes(array(bytes)?))),
        SqlType::Real => ScalarValue::Float32(Some(f32::from_be_bytes(array(bytes)?))),
        SqlType::Double => ScalarValue::Float64(Some(f64::from_be_bytes(array(bytes)?))),
        SqlType::Numeric(_) => parse_scalar(sql_type, &numeric(bytes)?, zone)?,
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name | SqlType::Json => {
            parse_scalar(sql_type, utf8(bytes)?, zone)?
        }
        SqlType::Jsonb => match bytes.split_first() {
            Some((&JSONB_VERSION, text)) => parse_scalar(sql_type, utf8(text)?, zone)?,
            _ => return Err(Error::new(SqlState::INVALID_BINARY_REPRESENTATION, "unsupported jsonb version number")),
        },
        SqlType::Bytea => ScalarValue::Binary(Some(bytes.to_vec())),
        SqlType::Uuid => ScalarValue::FixedSizeBinary(16, Some(array::<16>(bytes)?.to_vec())),
        SqlType::Date => ScalarValue::Date32(Some(i32::from_be_bytes(array(bytes)?).checked_add(EPOCH_DAYS).ok_or_else(out_of_range)?)),
        SqlType::Time => {
            let micros = i64::from_be_bytes(array(bytes)?);
            if !(0..=DAY_MICROS).contains(&micros) {
                return Err(out_of_range());
            }
            ScalarValue::Time64Microsecond(Some(micros))
        }
        SqlType::Timestamp => ScalarValue::TimestampMicrosecond(Some(timestamp(bytes)?), None),
        SqlType::Timestamptz => ScalarValue::TimestampMicrosecond(Some(timestamp(bytes)?), Some(UTC.into())),
        SqlType::Interval => {
            let bytes = array::<16>(bytes)?;
            let micros = i64::from_be_bytes(array(&bytes[..8])?);
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano {
                nanoseconds: micros.checked_mul(1000).ok_or_else(out_of_range)?,
                days: i32::from_be_bytes(array(&bytes[8..12])?),
                months: i32::from_be_bytes(array(&bytes[12..])?),
            }))
        }
        SqlType::Array(element) => list(element, bytes, zone)?,
    })
}

/// `numeric_recv` to a decimal's text, which the type then rounds to its scale.
fn numeric(bytes: &[u8]) -> Result<String> {
    const NEGATIVE: u16 = 0x4000;
    let mut words = bytes.chunks(2).map(|word| array::<2>(word).map(u16::from_be_bytes));
    let mut word = || words.next().unwrap_or_else(|| Err(invalid()));
    let (count, weight, sign, scale) = (word()?, word()? as i16, word()?, word()?);
    let groups = (0..count).map(|_| word()).collect::<Result<Vec<u16>>>()?;
    if bytes.len() != 8 + 2 * usize::from(count) || groups.iter().any(|group| *group > 9999) {
        return Err(invalid());
    }
    if sign != 0 && sign != NEGATIVE {
        return Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric NaN and infinity are not supported"));
    }
    let mut text = String::with_capacity(16 + 4 * groups.len());
    if sign == NEGATIVE {
        text.push('-');
    }
    let group = |position: i32| {
        let index = i32::from(weight) - position;
        usize::try_from(index).ok().and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    for position in (0..=i32::from(weight).max(0)).rev() {
        text.push_str(&format!("{:04}", group(position)));
    }
    text.push('.');
    let fraction_groups = i32::from(scale.div_ceil(4)).max(groups.len() as i32 - i32::from(weight) - 1);
    for position in 1..=fraction_groups {
        text.push_str(&format!("{:04}", group(-position)));
    }
    text.push('0');
    Ok(text)
}

/// `array_recv`, for one dimension.
fn list(element: &SqlType, bytes: &[u8], zone: &Zone) -> Result<ScalarValue> {
    let mut rest = bytes;
    let mut next = |count: usize| -> Result<&[u8]> {
        let (head, tail) = rest.split_at_checked(count).ok_or_else(invalid)?;
        rest = tail;
        Ok(head)
    };
    let dimensions = i32::from_be_bytes(array(next(4)?)?);
    next(4)?;
    let sent = u32::from_be_bytes(array(next(4)?)?);
    let same = matches!(oid::parameter_type(sent), Ok(Some(sent)) if sent.arrow() == element.arrow());
    if !same {
        return Err(Error::new(
            SqlState::DATATYPE_MISMATCH,
            format!("binary data has array element type {sent} instead of expected {}", element.oid()),
        ));
    }
    let count = match dimensions {
        0 => 0,
        1 => {
            let count = i32::from_be_bytes(array(next(4)?)?);
            next(4)?;
            usize::try_from(count).map_err(|_| invalid())?
        }
        _ => return Err(Error::unsupported("arrays of more than one dimension are not supported as parameters")),
    };
    let mut values = Vec::new();
    for _ in 0..count {
        let length = i32::from_be_bytes(array(next(4)?)?);
        values.push(match length {
            -1 => null(element)?,
            length => read_binary(element, next(usize::try_from(length).map_err(|_| invalid())?)?, zone)?,
        });
    }
    let items = if values.is_empty() {
        new_empty_array(&element.arrow())
    } else {
        ScalarValue::iter_to_array(values).map_err(crate::session::engine_error)?
    };
    let DataType::List(field) = SqlType::Array(Box::new(element.clone())).arrow() else {
        return Err(Error::internal("an array's Arrow type is not a list"));
    };
    let offsets = OffsetBuffer::from_lengths([items.len()]);
    let list = ListArray::try_new(field, offsets, items, None).map_err(|error| Error::internal(error.to_string()))?;
    Ok(ScalarValue::List(Arc::new(list)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::binary::Writer;

    /// Text -> value -> binary -> the same value.
    fn check(sql_type: &SqlType, text: &str) {
        let value = parse_scalar(sql_type, text, &Zone::UTC).unwrap();
        let array = value.to_array().unwrap();
        let writer = Writer::new(&array, sql_type).unwrap();
        let mut bytes = Vec::new();
        writer.write(0, &mut bytes);
        let back = read(sql_type, true, Some(&bytes), &Zone::UTC).unwrap();
        assert_eq!(back, value, "{sql_type} {text}: {bytes:?}");
        if sql_type.wire_size() > 0 && *sql_type != SqlType::Name {
            assert_eq!(bytes.len(), sql_type.wire_size() as usize, "{sql_type}");
        }
        // One byte less is an error, never a panic.
        if let Some((_, short)) = bytes.split_last()
            && sql_type.wire_size() > 0
            && *sql_type != SqlType::Name
        {
            assert!(read(sql_type, true, Some(short), &Zone::UTC).is_err());
        }
    }

    #[test]
    fn every_type_survives_the_binary_format() {
        for (sql_type, texts) in [
            (SqlType::Boolean, &["t", "f"][..]),
            (SqlType::SmallInt, &["-32768", "7"]),
            (SqlType::Integer, &["-2147483648", "42"]),
            (SqlType::BigInt, &["9223372036854775807", "-1"]),
            (SqlType::Oid, &["4294967295"]),
            (SqlType::Real, &["1.5", "-0.1"]),
            (SqlType::Double, &["1e300", "0.1"]),
            (SqlType::Numeric(None), &["0", "1.5", "-12345678.000000001", "10000", "0.0001"]),
            (SqlType::Numeric(Some((12, 2))), &["0.00", "-0.05", "9999999999.99", "123.40"]),
            (SqlType::Text, &["", "h\u{e9}llo"]),
            (SqlType::Varchar(Some(5)), &["abc"]),
            (SqlType::Name, &["events"]),
            (SqlType::Bytea, &["\\x00ff"]),
            (SqlType::Uuid, &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
            (SqlType::Date, &["1999-12-31", "2026-11-23"]),
            (SqlType::Time, &["00:00:00", "23:59:59.999999"]),
            (SqlType::Timestamp, &["1969-12-31 23:59:59.5", "2026-11-23 10:00:00.000001"]),
            (SqlType::Timestamptz, &["2026-11-23 10:00:00+02"]),
            (SqlType::Interval, &["1 year 2 mons 3 days 04:05:06.7", "-1 day"]),
            (SqlType::Json, &["{\"a\": [1, null]}"]),
            (SqlType::Jsonb, &["{\"a\": [1, null]}"]),
            (SqlType::Array(Box::new(SqlType::Integer)), &["{}", "{1,NULL,3}"]),
            (SqlType::Array(Box::new(SqlType::Text)), &["{a,\"b c\",NULL}"]),
            (SqlType::Array(Box::new(SqlType::Timestamptz)), &["{\"2026-11-23 10:00:00+00\"}"]),
        ] {
            texts.iter().for_each(|text| check(&sql_type, text));
            assert!(read(&sql_type, true, None, &Zone::UTC).unwrap().is_null());
        }
    }

    #[test]
    fn numeric_bytes_are_postgresqls() {
        let check = |text: &str, expected: &[u16]| {
            let value = parse_scalar(&SqlType::Numeric(Some((12, 2))), text, &Zone::UTC).unwrap().to_array().unwrap();
            let mut bytes = Vec::new();
            Writer::new(&value, &SqlType::Numeric(Some((12, 2)))).unwrap().write(0, &mut bytes);
            let words: Vec<u16> = bytes.chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]])).collect();
            assert_eq!(words, expected, "{text}");
        };
        check("12345.60", &[3, 1, 0, 2, 1, 2345, 6000]);
        check("-0.05", &[1, 0xffff, 0x4000, 2, 500]);
        check("0", &[0, 0, 0, 2]);
        check("20000", &[1, 1, 0, 2, 2]);
    }

    #[test]
    fn broken_bytes_are_errors() {
        let numeric = SqlType::Numeric(None);
        for bytes in [&[][..], &[0, 1], &[0, 1, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0xc0, 0, 0, 0], &[0xff; 9]] {
            assert!(read(&numeric, true, Some(bytes), &Zone::UTC).is_err(), "{bytes:?}");
        }
        let integers = SqlType::Array(Box::new(SqlType::Integer));
        for bytes in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1]] {
            assert!(read(&integers, true, Some(bytes), &Zone::UTC).is_err(), "{bytes:?}");
        }
        assert_eq!(read(&SqlType::Text, true, Some(b"\xff"), &Zone::UTC).unwrap_err().state(), SqlState::CHARACTER_NOT_IN_REPERTOIRE);
    }
}
