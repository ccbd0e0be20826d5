//! Reading one value of any type, and the small types: boolean, uuid, bytea.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray};
use arrow::buffer::OffsetBuffer;
use datafusion::common::ScalarValue;

use crate::error::{Error, Result, SqlState};
use crate::types::text::number::{is_space, malformed};
use crate::types::text::{array, datetime, interval, json, number};
use crate::types::zone::Zone;
use crate::types::{NUMERIC_DEFAULT, SqlType, UTC};

/// The value that `text` stands for, of the type's Arrow form ([`SqlType::arrow`]). 22P02, 22003, 22007, 22008, 22001 as
/// PostgreSQL says them. `zone` is that of timestamptz texts without an offset.
pub fn parse_scalar(sql_type: &SqlType, text: &str, zone: &Zone) -> Result<ScalarValue> {
    Ok(match sql_type {
        SqlType::Boolean => ScalarValue::Boolean(Some(boolean(text)?)),
        SqlType::SmallInt => ScalarValue::Int16(Some(number::smallint(text)?)),
        SqlType::Integer => ScalarValue::Int32(Some(number::integer(text)?)),
        SqlType::BigInt => ScalarValue::Int64(Some(number::bigint(text)?)),
        SqlType::Real => ScalarValue::Float32(Some(number::real(text)?)),
        SqlType::Double => ScalarValue::Float64(Some(number::double(text)?)),
        SqlType::Numeric(limits) => {
            let (precision, scale) = limits.unwrap_or(NUMERIC_DEFAULT);
            ScalarValue::Decimal128(Some(number::numeric(text, precision, scale, limits.is_some())?), precision, scale)
        }
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name => {
            refuse_nul(text)?;
            let fitted = fit(sql_type, text)?;
            ScalarValue::Utf8View(Some(fitted.to_owned()))
        }
        SqlType::Json => {
            json::check_json(text)?;
            ScalarValue::Utf8View(Some(text.to_owned()))
        }
        SqlType::Jsonb => {
            let mut normal = String::with_capacity(text.len() + 8);
            json::normalize_jsonb(text, &mut normal)?;
            ScalarValue::Utf8View(Some(normal))
        }
        SqlType::Bytea => {
            let mut bytes = Vec::new();
            bytea(text, &mut bytes)?;
            ScalarValue::Binary(Some(bytes))
        }
        SqlType::Uuid => ScalarValue::FixedSizeBinary(16, Some(uuid(text)?.to_vec())),
        SqlType::Date => ScalarValue::Date32(Some(datetime::date(text)?)),
        SqlType::Time => ScalarValue::Time64Microsecond(Some(datetime::time(text)?)),
        SqlType::Timestamp => ScalarValue::TimestampMicrosecond(Some(datetime::timestamp(text)?), None),
        SqlType::Timestamptz => ScalarValue::TimestampMicrosecond(Some(datetime::timestamptz(text, zone)?), Some(UTC.into())),
        SqlType::Interval => ScalarValue::IntervalMonthDayNano(Some(interval::interval(text)?)),
        SqlType::Oid => ScalarValue::UInt32(Some(number::oid(text)?)),
        SqlType::Array(element) => {
            let mut values = Vec::new();
            array::elements(text, |item| {
                values.push(item.map(|item| parse_scalar(element, item, zone)).transpose()?);
                Ok(())
            })?;
            list(element, values)?
        }
        SqlType::SmallIntVector | SqlType::OidVector => {
            let element = sql_type.element().unwrap_or(&SqlType::SmallInt);
            let words = text.split(is_space).filter(|word| !word.is_empty());
            list(element, words.map(|word| parse_scalar(element, word, zone).map(Some)).collect::<Result<_>>()?)?
        }
    })
}

/// An array value of elements, none for NULL.
pub(crate) fn list(element: &SqlType, values: Vec<Option<ScalarValue>>) -> Result<ScalarValue> {
    let internal = |error: String| Error::internal(error);
    let data_type = element.arrow();
    let null = ScalarValue::try_from(&data_type).map_err(|error| internal(error.to_string()))?;
    let items: ArrayRef = if values.is_empty() {
        arrow::array::new_empty_array(&data_type)
    } else {
        let values = values.into_iter().map(|value| value.unwrap_or_else(|| null.clone()));
        ScalarValue::iter_to_array(values).map_err(|error| internal(error.to_string()))?
    };
    let arrow::datatypes::DataType::List(field) = SqlType::Array(Box::new(element.clone())).arrow() else {
        return Err(internal("an array's Arrow type is not a list".to_owned()));
    };
    let offsets = OffsetBuffer::from_lengths([items.len()]);
    let list = ListArray::try_new(field, offsets, items, None).map_err(|error| internal(error.to_string()))?;
    Ok(ScalarValue::List(Arc::new(list)))
}

/// `boolean`: any beginning of true, false, yes, no, `on`, `off`, 1, 0, in any case.
pub fn boolean(text: &str) -> Result<bool> {
    match text.as_bytes() {
        b"t" | b"true" | b"1" | b"TRUE" | b"True" => return Ok(true),
        b"f" | b"false" | b"0" | b"FALSE" | b"False" => return Ok(false),
        _ => {}
    }
    let word = text.trim_matches(is_space).to_ascii_lowercase();
    let begins = |of: &str| !word.is_empty() && of.starts_with(&word);
    if begins("true") || begins("yes") || word == "on" || word == "1" {
        Ok(true)
    } else if begins("false") || begins("no") || matches!(word.as_str(), "of" | "off" | "0") {
        Ok(false)
    } else {
        Err(malformed("boolean", text))
    }
}

/// Values of hexadecimal digits, 0xff for other bytes.
const HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// `uuid`: `8-4-4-4-12`, or a hyphen after any four digits or none, in braces or not.
#[inline]
pub fn uuid(text: &str) -> Result<[u8; 16]> {
    let mut value = [0u8; 16];
    if let Ok(bytes) = <&[u8; 36]>::try_from(text.as_bytes()) {
        /// Where the digit pairs of the usual form begin.
        const PAIRS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
        let mut wrong = 0;
        for (byte, at) in value.iter_mut().zip(PAIRS) {
            let (high, low) = (HEX[usize::from(bytes[at])], HEX[usize::from(bytes[at + 1])]);
            wrong |= high | low;
            *byte = high << 4 | low & 0x0f;
        }
        if wrong & 0xf0 == 0 && bytes[8] == b'-' && bytes[13] == b'-' && bytes[18] == b'-' && bytes[23] == b'-' {
            return Ok(value);
        }
    }
    uuid_slowly(text).ok_or_else(|| malformed("uuid", text))
}

#[cold]
fn uuid_slowly(text: &str) -> Option<[u8; 16]> {
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut value = [0u8; 16];
    let mut digits = 0;
    let mut bytes = inner.bytes().peekable();
    while digits < 32 {
        let digit = HEX[usize::from(bytes.next()?)];
        if digit == 0xff {
            return None;
        }
        value[digits / 2] = value[digits / 2] << 4 | digit;
        digits += 1;
        if digits % 4 == 0 && digits < 32 && bytes.peek() == Some(&b'-') {
            bytes.next();
        }
    }
    bytes.next().is_none().then_some(value)
}

/// `bytea`: `\x` and hexadecimal digits, or bytes with `\\` and `\ooo` escapes. Appends to `out`.
pub fn bytea(text: &str, out: &mut Vec<u8>) -> Result<()> {
    if let Some(digits) = text.strip_prefix("\\x") {
        return hex_bytes(digits, out);
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let octal = |byte: Option<u8>, max: u8| byte.filter(|byte| (b'0'..=max).contains(byte)).map(|byte| byte - b'0');
        let wrong = || Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type bytea");
        match bytes.next() {
            Some(b'\\') => out.push(b'\\'),
            first => {
                let first = octal(first, b'3').ok_or_else(wrong)?;
                let second = octal(bytes.next(), b'7').ok_or_else(wrong)?;
                let third = octal(bytes.next(), b'7').ok_or_else(wrong)?;
                out.push(first << 6 | second << 3 | third);
            }
        }
    }
    Ok(())
}

fn hex_bytes(digits: &str, out: &mut Vec<u8>) -> Result<()> {
    let mut high = None;
    for character in digits.chars() {
        let digit = u8::try_from(character).map_or(0xff, |byte| HEX[usize::from(byte)]);
        match (high, digit) {
            (None, _) if is_space(character) => {}
            (_, 0xff) => {
                return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("invalid hexadecimal digit: \"{character}\"")));
            }
            (None, _) => high = Some(digit),
            (Some(first), _) => {
                out.push(first << 4 | digit);
                high = None;
            }
        }
    }
    match high {
        None => Ok(()),
        Some(_) => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "invalid hexadecimal data: odd number of digits")),
    }
}

/// PostgreSQL has no character 0 in text (22021).
pub(crate) fn refuse_nul(text: &str) -> Result<()> {
    if memchr::memchr(0, text.as_bytes()).is_some() { Err(not_utf8(&[0])) } else { Ok(()) }
}

/// 22021 for the character that begins at `at`, with the bytes that its first one announces.
pub(crate) fn not_utf8_at(bytes: &[u8], at: usize) -> Error {
    let length = match bytes.get(at) {
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf7) => 4,
        _ => 1,
    };
    not_utf8(&bytes[at..(at + length).min(bytes.len())])
}

/// 22021 with the bytes that are at fault.
pub(crate) fn not_utf8(bytes: &[u8]) -> Error {
    let shown: Vec<String> = bytes.iter().map(|byte| format!("0x{byte:02x}")).collect();
    Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")))
}

/// A text cut to what its type holds: spaces beyond the length go, as do those at the end of a char(n); other characters
/// beyond the length are an error (22001).
pub(crate) fn fit<'a>(sql_type: &SqlType, text: &'a str) -> Result<&'a str> {
    let (length, text) = match sql_type {
        SqlType::Varchar(Some(length)) => (*length as usize, text),
        SqlType::Char(length) => (*length as usize, text.trim_end_matches(' ')),
        _ => return Ok(text),
    };
    // Bytes are never fewer than characters.
    if text.len() <= length {
        return Ok(text);
    }
    match text.char_indices().nth(length) {
        None => Ok(text),
        Some((end, _)) if text[end..].bytes().all(|byte| byte == b' ') => Ok(&text[..end]),
        Some(_) => Err(Error::new(SqlState::STRING_DATA_RIGHT_TRUNCATION, format!("value too long for type {sql_type}"))),
    }
}
