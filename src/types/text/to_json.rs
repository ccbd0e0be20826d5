//! Values as JSON, as PostgreSQL's `to_json` writes them.
//!
//! *Place*: `web` shows rows with it.
//!
//! Numbers and booleans stand bare, json and jsonb as they are, arrays as arrays, times in ISO 8601, everything else as a string
//! of its text form. Numbers that JSON cannot write (`NaN`, `Infinity`) are strings.

use arrow::array::{Array, AsArray, ListArray};
use arrow::datatypes::DataType;

use crate::error::Result;
use crate::types::SqlType;
use crate::types::text::{Style, Writer};

/// Writes the values of one column; made once a batch.
#[derive(Debug)]
pub struct JsonWriter {
    texts: Writer,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Boolean,
    Number,
    Json,
    Text,
    Timestamp,
    Array(ListArray, Box<JsonWriter>),
}

impl JsonWriter {
    /// A writer over `values`, shown as `sql_type`.
    pub fn new(values: &dyn Array, sql_type: &SqlType, style: &Style) -> Result<JsonWriter> {
        let shape = match sql_type {
            SqlType::Boolean => Shape::Boolean,
            SqlType::SmallInt
            | SqlType::Integer
            | SqlType::BigInt
            | SqlType::Real
            | SqlType::Double
            | SqlType::Numeric(_)
            | SqlType::Oid => Shape::Number,
            SqlType::Json | SqlType::Jsonb => Shape::Json,
            SqlType::Timestamp | SqlType::Timestamptz => Shape::Timestamp,
            SqlType::Array(_) | SqlType::SmallIntVector | SqlType::OidVector if matches!(values.data_type(), DataType::List(_)) => {
                let lists = values.as_list::<i32>().clone();
                let element = sql_type.element().cloned().unwrap_or(SqlType::Text);
                let items = JsonWriter::new(lists.values().as_ref(), &element, style)?;
                Shape::Array(lists, Box::new(items))
            }
            _ => Shape::Text,
        };
        Ok(JsonWriter { texts: Writer::new(values, sql_type, style)?, shape })
    }

    /// Appends the value in `row`, `null` where there is none.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.texts.is_null(row) {
            out.extend_from_slice(b"null");
            return;
        }
        if let Shape::Array(lists, items) = &self.shape {
            let offsets = lists.value_offsets();
            out.push(b'[');
            for item in offsets[row]..offsets[row + 1] {
                if item > offsets[row] {
                    out.push(b',');
                }
                items.write(usize::try_from(item).unwrap_or_default(), out);
            }
            out.push(b']');
            return;
        }
        let mut text = Vec::new();
        self.texts.write(row, &mut text);
        match self.shape {
            Shape::Boolean => out.extend_from_slice(if text == b"t" { b"true" } else { b"false" }),
            Shape::Number if text.last().is_some_and(u8::is_ascii_digit) => out.extend_from_slice(&text),
            Shape::Json => out.extend_from_slice(&text),
            Shape::Timestamp => string(&iso(&text), out),
            _ => string(&text, out),
        }
    }
}

/// Appends a JSON string.
pub fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            control if control < ' ' => out.extend_from_slice(format!("\\u{:04x}", u32::from(control)).as_bytes()),
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// `2024-05-01 10:00:00+00` as `2024-05-01T10:00:00+00:00`.
fn iso(text: &[u8]) -> Vec<u8> {
    let (time, era) = match text.strip_suffix(b" BC") {
        Some(time) => (time, &b" BC"[..]),
        None => (text, &b""[..]),
    };
    let mut iso: Vec<u8> = time.to_vec();
    if let Some(space) = iso.iter_mut().find(|byte| **byte == b' ') {
        *space = b'T';
    }
    if iso.len() > 3 && matches!(iso[iso.len() - 3], b'+' | b'-') && iso.contains(&b'T') {
        iso.extend_from_slice(b":00");
    }
    iso.extend_from_slice(era);
    iso
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray, StringViewArray,
        TimestampMicrosecondArray,
    };
    use arrow::datatypes::Int64Type;

    use super::*;

    fn check(values: ArrayRef, sql_type: SqlType, expected: &[&str]) {
        let writer = JsonWriter::new(values.as_ref(), &sql_type, &Style::default()).unwrap();
        for (row, expected) in expected.iter().enumerate() {
            let mut out = Vec::new();
            writer.write(row, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), *expected);
        }
    }

    #[test]
    fn values_are_written_as_to_json_does() {
        check(Arc::new(Int64Array::from(vec![Some(-7), None])), SqlType::BigInt, &["-7", "null"]);
        check(Arc::new(BooleanArray::from(vec![true, false])), SqlType::Boolean, &["true", "false"]);
        check(
            Arc::new(Float64Array::from(vec![1.5, f64::NAN, f64::NEG_INFINITY, 1e300])),
            SqlType::Double,
            &["1.5", "\"NaN\"", "\"-Infinity\"", "1e+300"],
        );
        let decimals = Decimal128Array::from(vec![1250]).with_precision_and_scale(12, 2).unwrap();
        check(Arc::new(decimals), SqlType::Numeric(Some((12, 2))), &["12.50"]);
        let texts = StringViewArray::from(vec!["a \"b\"\\\n\u{1}ü"]);
        check(Arc::new(texts), SqlType::Text, &["\"a \\\"b\\\"\\\\\\n\\u0001ü\""]);
        check(Arc::new(StringViewArray::from(vec!["{\"a\": [1]}"])), SqlType::Jsonb, &["{\"a\": [1]}"]);
        check(Arc::new(Date32Array::from(vec![19_844])), SqlType::Date, &["\"2024-05-01\""]);
        let times = TimestampMicrosecondArray::from(vec![1_714_557_600_000_000]);
        check(Arc::new(times.clone()), SqlType::Timestamp, &["\"2024-05-01T10:00:00\""]);
        check(Arc::new(times.with_timezone("UTC")), SqlType::Timestamptz, &["\"2024-05-01T10:00:00+00:00\""]);
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), Some(vec![]), None]);
        check(Arc::new(lists), SqlType::Array(Box::new(SqlType::BigInt)), &["[1,null]", "[]", "null"]);
    }

    #[test]
    fn times_before_christ_keep_their_era() {
        assert_eq!(iso(b"0044-03-15 12:00:00+01 BC"), b"0044-03-15T12:00:00+01:00 BC");
        assert_eq!(iso(b"2024-05-01 10:00:00+05:30"), b"2024-05-01T10:00:00+05:30");
    }
}
