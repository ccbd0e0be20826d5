//! PostgreSQL's binary format of results (each type's `send` function).
//!
//! *Place*: `pg::rows` makes one [`Writer`] a batch and column.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, FixedSizeBinaryArray, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    UInt32Array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::DataType;

use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;
use crate::types::text::{self, Style};

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;
/// Version byte of jsonb.
pub(super) const JSONB_VERSION: u8 = 1;

/// Writes the values of one column.
#[derive(Debug)]
pub(super) struct Writer {
    column: Column,
    nulls: Option<arrow::buffer::NullBuffer>,
}

#[derive(Debug)]
enum Column {
    Boolean(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    UInt32(UInt32Array),
    Float32(Float32Array),
    Float64(Float64Array),
    /// By way of its text, which knows scale and width.
    Numeric(text::Writer),
    Text(StringViewArray),
    Jsonb(StringViewArray),
    Bytes(BinaryArray),
    Uuid(FixedSizeBinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    List {
        lists: ListArray,
        items: Box<Writer>,
        element_oid: u32,
    },
    /// What has no type of its own goes as text.
    Shown(text::Writer),
}

impl Writer {
    /// A writer over `values`, sent as `sql_type`. 22003 where a value does not fit it.
    pub(super) fn new(values: &ArrayRef, sql_type: &SqlType) -> Result<Writer> {
        Ok(Writer { column: Column::of(values, sql_type)?, nulls: values.logical_nulls() })
    }

    /// True where the value is NULL, which has no bytes.
    #[inline]
    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the value's bytes.
    pub(super) fn write(&self, row: usize, out: &mut Vec<u8>) {
        match &self.column {
            Column::Boolean(values) => out.push(u8::from(values.value(row))),
            Column::Int16(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Int32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Int64(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::UInt32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Float32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Float64(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Numeric(values) => {
                let mut digits = Vec::with_capacity(48);
                values.write(row, &mut digits);
                write_numeric(&digits, out);
            }
            Column::Text(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Column::Jsonb(values) => {
                out.push(JSONB_VERSION);
                out.extend_from_slice(values.value(row).as_bytes());
            }
            Column::Bytes(values) => out.extend_from_slice(values.value(row)),
            Column::Uuid(values) => out.extend_from_slice(values.value(row)),
            Column::Date(values) => out.extend_from_slice(&values.value(row).saturating_sub(EPOCH_DAYS).to_be_bytes()),
            Column::Time(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Timestamp(values) => out.extend_from_slice(&values.value(row).saturating_sub(EPOCH_MICROS).to_be_bytes()),
            Column::Interval(values) => {
                let value = values.value(row);
                out.extend_from_slice(&(value.nanoseconds / 1000).to_be_bytes());
                out.extend_from_slice(&value.days.to_be_bytes());
                out.extend_from_slice(&value.months.to_be_bytes());
            }
            Column::List { lists, items, element_oid } => write_list(lists, items, *element_oid, row, out),
            Column::Shown(values) => values.write(row, out),
        }
    }
}

impl Column {
    fn of(values: &ArrayRef, sql_type: &SqlType) -> Result<Column> {
        let direct = match sql_type {
            SqlType::Numeric(_) => return text::Writer::new(values.as_ref(), sql_type, &Style::default()).map(Column::Numeric),
            SqlType::Array(_) => matches!(values.data_type(), DataType::List(_)),
            _ => *values.data_type() == sql_type.arrow(),
        };
        if !direct {
            return Column::converted(values, sql_type);
        }
        Ok(match sql_type {
            SqlType::Boolean => Column::Boolean(values.as_boolean().clone()),
            SqlType::SmallInt => Column::Int16(values.as_primitive().clone()),
            SqlType::Integer => Column::Int32(values.as_primitive().clone()),
            SqlType::BigInt => Column::Int64(values.as_primitive().clone()),
            SqlType::Oid => Column::UInt32(values.as_primitive().clone()),
            SqlType::Real => Column::Float32(values.as_primitive().clone()),
            SqlType::Double => Column::Float64(values.as_primitive().clone()),
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Name => {
                Column::Text(values.as_string_view().clone())
            }
            SqlType::Jsonb => Column::Jsonb(values.as_string_view().clone()),
            SqlType::Bytea => Column::Bytes(values.as_binary().clone()),
            SqlType::Uuid => Column::Uuid(values.as_fixed_size_binary().clone()),
            SqlType::Date => Column::Date(values.as_primitive().clone()),
            SqlType::Time => Column::Time(values.as_primitive().clone()),
            SqlType::Timestamp | SqlType::Timestamptz => Column::Timestamp(values.as_primitive().clone()),
            SqlType::Interval => Column::Interval(values.as_primitive().clone()),
            SqlType::Array(element) => {
                let lists: &ListArray = values.as_list();
                Column::List { lists: lists.clone(), items: Box::new(Writer::new(lists.values(), element)?), element_oid: element.oid() }
            }
            SqlType::Numeric(_) => return Err(Error::internal("numeric has no direct binary form")),
        })
    }

    /// Arrays of another class than the SQL type's own: other strings, units and widths.
    fn converted(values: &ArrayRef, sql_type: &SqlType) -> Result<Column> {
        let target = match (sql_type, values.data_type()) {
            (SqlType::Array(_), DataType::LargeList(item) | DataType::FixedSizeList(item, _)) => DataType::List(item.clone()),
            _ => sql_type.arrow(),
        };
        if *values.data_type() != target && arrow::compute::can_cast_types(values.data_type(), &target) {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            let values = cast_with_options(values, &target, &options).map_err(|error| {
                Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("value is out of range for type {sql_type}"))
                    .detail(error.to_string())
            })?;
            return Column::of(&values, sql_type);
        }
        match sql_type {
            SqlType::Text => text::Writer::new(values.as_ref(), sql_type, &Style::default()).map(Column::Shown),
            _ => Err(Error::unsupported(format!("values of Arrow type {} have no binary form", values.data_type()))),
        }
    }
}

/// `array_send`: dimensions, whether there are NULLs, element type, then each element with its length.
fn write_list(lists: &ListArray, items: &Writer, element_oid: u32, row: usize, out: &mut Vec<u8>) {
    let offsets = lists.value_offsets();
    // Offsets of an Arrow list are never negative.
    let (start, end) = (offsets[row].unsigned_abs() as usize, offsets[row + 1].unsigned_abs() as usize);
    let has_nulls = (start..end).any(|item| items.is_null(item));
    out.extend_from_slice(&i32::from(end > start).to_be_bytes());
    out.extend_from_slice(&i32::from(has_nulls).to_be_bytes());
    out.extend_from_slice(&element_oid.to_be_bytes());
    if end > start {
        out.extend_from_slice(&(offsets[row + 1] - offsets[row]).to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
    }
    for item in start..end {
        if items.is_null(item) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
        } else {
            with_length(out, |out| items.write(item, out));
        }
    }
}

/// Appends what `write` appends, with its length (four bytes) before it.
#[inline]
pub(super) fn with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// `numeric_send` of a decimal's text: groups of four digits, the weight of the first, sign, digits after the point.
fn write_numeric(text: &[u8], out: &mut Vec<u8>) {
    const NEGATIVE: u16 = 0x4000;
    let (sign, text) = match text.split_first() {
        Some((b'-', rest)) => (NEGATIVE, rest),
        _ => (0, text),
    };
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..point], text.get(point + 1..).unwrap_or_default());
    let mut groups: Vec<i16> = Vec::with_capacity(16);
    let number = |digits: &[u8]| digits.iter().fold(0i16, |number, digit| number * 10 + i16::from(digit - b'0'));
    let first = whole.len() % 4;
    if first > 0 {
        groups.push(number(&whole[..first]));
    }
    groups.extend(whole[first..].chunks(4).map(number));
    let mut weight = groups.len() as i32 - 1;
    groups.extend(fraction.chunks(4).map(|digits| number(digits) * [1, 1000, 100, 10, 1][digits.len()]));
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    weight -= leading as i32;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    out.extend_from_slice(&(groups.len() as u16).to_be_bytes());
    out.extend_from_slice(&(weight as i16).to_be_bytes());
    out.extend_from_slice(&if groups.is_empty() { 0 } else { sign }.to_be_bytes());
    out.extend_from_slice(&(fraction.len() as u16).to_be_bytes());
    groups.iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}
