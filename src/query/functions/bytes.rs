//! bytea: encode and decode, bytes and bits, lengths, parts, concatenation, digests of bytes.
//!
//! *Place*: called by name. The names that text has too stand for both until `query::typing::bytes` knows the arguments: DataFusion's own
//! would refuse bytea before that.
//!
//! The formats are PostgreSQL's: `escape` writes bytes that are no ASCII as `\ooo`, `base64` breaks its lines after 76 characters.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use datafusion::functions::{string, unicode};
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::error::{Error, SqlState};

/// Characters of base64 in a line.
const BASE64_LINE: usize = 76;

/// Whitespace between the characters is passed over, and padding may not be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireCanonical).with_decode_allow_trailing_bits(true),
);

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let named = |function: Function, aliases: &'static [&'static str]| {
        Arc::new(function.udf().as_ref().clone().with_aliases(aliases.iter().copied()))
    };
    vec![
        named(
            Function::new("character_length", |types| either("length", types, 1..=1, DataType::Int32), untyped),
            &["length", "char_length"],
        ),
        Function::new("octet_length", |types| either("octet_length", types, 1..=1, DataType::Int32), untyped).udf(),
        Function::new("bit_length", |types| either("bit_length", types, 1..=1, DataType::Int32), untyped).udf(),
        named(part(), &["substring"]),
        encode().udf(),
        decode().udf(),
        Function::new("get_byte", |types| counted("get_byte", types, 1, DataType::Int32), get_byte).udf(),
        Function::new("set_byte", |types| counted("set_byte", types, 2, DataType::Binary), set_byte).udf(),
        Function::new("get_bit", |types| counted("get_bit", types, 1, DataType::Int32), get_bit).udf(),
        Function::new("set_bit", |types| counted("set_bit", types, 2, DataType::Binary), set_bit).udf(),
    ]
}

/// `substr` and `substring` of text or bytea, not yet typed.
pub fn part() -> Function {
    let types = |types: &[DataType]| {
        let result =
            if types.first().is_some_and(|first| is_text(first) || first.is_null()) { DataType::Utf8View } else { DataType::Binary };
        either("substr", types, 2..=3, result)
    };
    Function::new("substr", types, untyped)
}

/// A function of text or bytea. Over text it is DataFusion's.
fn either(name: &str, types: &[DataType], count: RangeInclusive<usize>, result: DataType) -> Result<Typed, Error> {
    match types.first() {
        Some(first) if count.contains(&types.len()) && (is_text(first) || is_bytes(first)) => Ok((types.to_vec(), result)),
        _ => Err(undefined(name, types)),
    }
}

fn untyped(_: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    Err(Error::internal("a function of text or bytea was not typed"))
}

/// DataFusion's function over text in place of one of these; any other one as it is.
pub fn over_text(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    match function.name() {
        "character_length" => unicode::character_length(),
        "octet_length" => string::octet_length(),
        "bit_length" => string::bit_length(),
        "substr" => unicode::substr(),
        _ => function,
    }
}

/// `encode(bytea, format)`. A literal is still text when the planner asks.
fn encode() -> Function {
    Function::new(
        "encode",
        |types| match types {
            [bytes, format] if (is_bytes(bytes) || is_text(bytes)) && is_format(format) => {
                Ok((vec![DataType::Binary, DataType::Utf8View], DataType::Utf8View))
            }
            _ => Err(undefined("encode", types)),
        },
        |args, _| {
            let (values, formats) = (bytes(&args[0])?, strings(&args[1])?);
            let each = (0..values.len()).map(|row| match values.is_null(row) || formats.is_null(row) {
                true => Ok(None),
                false => encoded(values.value(row), formats.value(row)).map(Some),
            });
            Ok(Arc::new(each.collect::<Result<StringViewArray, Error>>()?))
        },
    )
}

/// `decode(text, format)`.
fn decode() -> Function {
    Function::new(
        "decode",
        |types| match types {
            [text, format] if is_format(text) && is_format(format) => Ok((vec![DataType::Utf8View, DataType::Utf8View], DataType::Binary)),
            _ => Err(undefined("decode", types)),
        },
        |args, _| {
            let (texts, formats) = (strings(&args[0])?, strings(&args[1])?);
            let each = (0..texts.len()).map(|row| match texts.is_null(row) || formats.is_null(row) {
                true => Ok(None),
                false => decoded(texts.value(row), formats.value(row)).map(Some),
            });
            collected(each)
        },
    )
}

/// The length in bytes.
pub fn length() -> Function {
    Function::new("length", |types| only_bytes("length", types, DataType::Int32), |args, _| lengths(args, 1))
}

/// The length in bits.
pub fn bit_length() -> Function {
    Function::new("bit_length", |types| only_bytes("bit_length", types, DataType::Int32), |args, _| lengths(args, 8))
}

/// `substr(bytea, start [, count])`, from 1.
pub fn substring() -> Function {
    Function::new(
        "substr",
        |types| counted("substr", types, types.len().saturating_sub(1), DataType::Binary),
        |args, _| {
            let (values, starts) = (bytes(&args[0])?, whole(&args[1])?);
            let counts = args.get(2).map(whole).transpose()?;
            let each = (0..values.len()).map(|row| {
                if values.is_null(row) || starts.is_null(row) || counts.as_ref().is_some_and(|counts| counts.is_null(row)) {
                    return Ok(None);
                }
                let (value, start) = (values.value(row), starts.value(row));
                let end = match counts.as_ref().map(|counts| counts.value(row)) {
                    Some(count) if count < 0 => return Err(Error::new(SqlState("22011"), "negative substring length not allowed")),
                    Some(count) => start.saturating_add(count),
                    None => i64::MAX,
                };
                let place = |position: i64| usize::try_from(position.saturating_sub(1)).unwrap_or(0).min(value.len());
                Ok(Some(value[place(start)..place(end).max(place(start))].to_vec()))
            });
            collected(each)
        },
    )
}

/// `bytea || bytea`.
pub fn concatenation() -> Function {
    Function::new(
        "byteacat",
        |types| Ok((vec![DataType::Binary; types.len()], DataType::Binary)),
        |args, _| {
            let (left, right) = (bytes(&args[0])?, bytes(&args[1])?);
            let each = left.iter().zip(&right).map(|(left, right)| Ok(left.zip(right).map(|(left, right)| [left, right].concat())));
            collected(each)
        },
    )
}

/// Whether a type is bytea, or what becomes it.
pub fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::Null)
}

fn is_format(data_type: &DataType) -> bool {
    is_text(data_type) || data_type.is_null()
}

fn only_bytes(name: &str, types: &[DataType], result: DataType) -> Result<Typed, Error> {
    match types {
        [value] if is_bytes(value) => Ok((vec![DataType::Binary], result)),
        _ => Err(undefined(name, types)),
    }
}

/// A bytea and some integers.
fn counted(name: &str, types: &[DataType], integers: usize, result: DataType) -> Result<Typed, Error> {
    match types {
        [value, rest @ ..]
            if (is_bytes(value) || is_text(value))
                && rest.len() == integers
                && rest.iter().all(|each| each.is_integer() || each.is_null()) =>
        {
            Ok((std::iter::once(DataType::Binary).chain(rest.iter().map(|_| DataType::Int64)).collect(), result))
        }
        _ => Err(undefined(name, types)),
    }
}

fn bytes(array: &ArrayRef) -> Result<BinaryArray, Error> {
    let values = cast(array, &DataType::Binary).map_err(|error| Error::internal(error.to_string()))?;
    Ok(values.as_binary::<i32>().clone())
}

fn whole(array: &ArrayRef) -> Result<arrow::array::Int64Array, Error> {
    let values = cast(array, &DataType::Int64).map_err(|error| Error::internal(error.to_string()))?;
    Ok(values.as_primitive::<Int64Type>().clone())
}

fn collected(each: impl Iterator<Item = Result<Option<Vec<u8>>, Error>>) -> Result<ArrayRef, Error> {
    let values = each.collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(values.iter().map(Option::as_deref).collect::<BinaryArray>()))
}

fn lengths(args: &[ArrayRef], unit: usize) -> Result<ArrayRef, Error> {
    let values = bytes(&args[0])?;
    Ok(Arc::new(values.iter().map(|value| i32::try_from(value?.len() * unit).ok()).collect::<Int32Array>()))
}

/// The byte and the bit that `index` names. 2202E outside of the value.
fn place(value: &[u8], index: i64, per_byte: usize) -> Result<(usize, usize), Error> {
    let count = value.len() * per_byte;
    match usize::try_from(index).ok().filter(|index| *index < count) {
        Some(index) => Ok((index / per_byte, index % per_byte)),
        None => {
            let message = format!("index {index} out of valid range, 0..{}", count as i64 - 1);
            Err(Error::new(SqlState("2202E"), message))
        }
    }
}

fn read(args: &[ArrayRef], body: impl Fn(&[u8], i64) -> Result<i32, Error>) -> Result<ArrayRef, Error> {
    let (values, indexes) = (bytes(&args[0])?, whole(&args[1])?);
    let each = values.iter().zip(&indexes).map(|(value, index)| value.zip(index).map(|(value, index)| body(value, index)).transpose());
    Ok(Arc::new(each.collect::<Result<Int32Array, Error>>()?))
}

fn written(args: &[ArrayRef], body: impl Fn(&mut [u8], i64, i64) -> Result<(), Error>) -> Result<ArrayRef, Error> {
    let (values, indexes, news) = (bytes(&args[0])?, whole(&args[1])?, whole(&args[2])?);
    let each = (0..values.len()).map(|row| {
        if values.is_null(row) || indexes.is_null(row) || news.is_null(row) {
            return Ok(None);
        }
        let mut value = values.value(row).to_vec();
        body(&mut value, indexes.value(row), news.value(row))?;
        Ok(Some(value))
    });
    collected(each)
}

fn get_byte(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    read(args, |value, index| place(value, index, 1).map(|(byte, _)| i32::from(value[byte])))
}

/// Of a larger number the lowest eight bits, as in PostgreSQL.
fn set_byte(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    written(args, |value, index, new| {
        let (byte, _) = place(value, index, 1)?;
        value[byte] = (new & 0xff) as u8;
        Ok(())
    })
}

fn get_bit(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    read(args, |value, index| place(value, index, 8).map(|(byte, bit)| i32::from(value[byte] >> bit & 1)))
}

fn set_bit(args: &[ArrayRef], _: &DataType) -> Result<ArrayRef, Error> {
    written(args, |value, index, new| {
        let (byte, bit) = place(value, index, 8)?;
        match new {
            0 => value[byte] &= !(1 << bit),
            1 => value[byte] |= 1 << bit,
            _ => return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "new bit must be 0 or 1")),
        }
        Ok(())
    })
}

fn unknown_format(format: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("unrecognized encoding: \"{format}\""))
}

fn hex(value: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = value.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    digits.map(char::from).collect()
}

fn encoded(value: &[u8], format: &str) -> Result<String, Error> {
    Ok(match format.to_ascii_lowercase().as_str() {
        "hex" => hex(value),
        "base64" => {
            let characters = BASE64.encode(value);
            let mut lines = String::with_capacity(characters.len() + characters.len() / BASE64_LINE);
            for (at, character) in characters.chars().enumerate() {
                if at > 0 && at % BASE64_LINE == 0 {
                    lines.push('\n');
                }
                lines.push(character);
            }
            lines
        }
        "escape" => {
            let mut text = String::with_capacity(value.len());
            for byte in value {
                match byte {
                    b'\\' => text.push_str("\\\\"),
                    0 | 0x80.. => text.push_str(&format!("\\{byte:03o}")),
                    _ => text.push(char::from(*byte)),
                }
            }
            text
        }
        _ => return Err(unknown_format(format)),
    })
}

fn decoded(text: &str, format: &str) -> Result<Vec<u8>, Error> {
    match format.to_ascii_lowercase().as_str() {
        "hex" => {
            let mut value = Vec::with_capacity(text.len() / 2);
            crate::types::text::scalar::bytea(&format!("\\x{text}"), &mut value)?;
            Ok(value)
        }
        "base64" => from_base64(text),
        "escape" => {
            let mut value = Vec::with_capacity(text.len());
            // Here an `x` after the backslash begins no hexadecimal digits.
            if text.starts_with("\\x") {
                return Err(Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type bytea"));
            }
            crate::types::text::scalar::bytea(text, &mut value)?;
            Ok(value)
        }
        _ => Err(unknown_format(format)),
    }
}

fn from_base64(text: &str) -> Result<Vec<u8>, Error> {
    let symbols: String = text.chars().filter(|character| !matches!(character, ' ' | '\t' | '\n' | '\r')).collect();
    let known = |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '/' | '=');
    if let Some(other) = symbols.chars().find(|character| !known(*character)) {
        let message = format!("invalid symbol \"{other}\" found while decoding base64 sequence");
        return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, message));
    }
    BASE64.decode(&symbols).map_err(|_| {
        let error = Error::new(SqlState::INVALID_PARAMETER_VALUE, "invalid base64 end sequence");
        error.hint("Input data is missing padding, is truncated, or is otherwise corrupted.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &[u8], format: &str, expected: &str) {
        assert_eq!(encoded(value, format).unwrap(), expected);
        assert_eq!(decoded(expected, format).unwrap(), value);
    }

    #[test]
    fn formats() {
        check(b"\x00\xff\\A", "hex", "00ff5c41");
        check(b"\x00\xff\\A", "escape", "\\000\\377\\\\A");
        check(b"\x00\xff", "base64", "AP8=");
        check(&[b'a'; 60], "base64", &format!("{}\nYWFh", "YWFh".repeat(19)));
        check(b"", "base64", "");
        for (text, format) in [("0", "hex"), ("A", "base64"), ("A*==", "base64"), ("AP8", "base64"), ("a", "rot13")] {
            assert_eq!(decoded(text, format).unwrap_err().state().0, "22023", "{text}");
        }
        assert_eq!(decoded("\\9", "escape").unwrap_err().state().0, "22P02");
    }
}
