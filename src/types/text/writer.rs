//! Writing the values of a column: one [`Writer`] a batch and column, which knows the array's class.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, GenericListArray, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, LargeBinaryArray, LargeStringArray,
    ListArray, PrimitiveArray, StringArray, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array, make_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Decimal256Type, IntervalUnit, TimeUnit, i256};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;
use crate::types::text::{ByteaOutput, IntervalStyle, Style, array, calendar, interval, number};

/// Writes the values of one column; made once a batch. Cheap to make: it shares the array's buffers.
#[derive(Debug)]
pub struct Writer {
    column: Column,
    nulls: Option<arrow::buffer::NullBuffer>,
    style: Style,
}

/// A column by the way its values are written.
#[derive(Debug)]
enum Column {
    Null,
    Boolean(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    UInt32(UInt32Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Decimal {
        values: Decimal128Array,
        scale: i8,
        trimmed: bool,
    },
    WideDecimal {
        values: PrimitiveArray<Decimal256Type>,
        trimmed: bool,
    },
    Utf8View(StringViewArray),
    /// `char(n)`, stored without the blanks that it is shown with.
    Padded {
        values: StringViewArray,
        length: usize,
    },
    Utf8(StringArray),
    LargeUtf8(LargeStringArray),
    Binary(BinaryArray),
    LargeBinary(LargeBinaryArray),
    BinaryView(BinaryViewArray),
    FixedBinary(FixedSizeBinaryArray),
    Uuid(FixedSizeBinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Timestamptz(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    List {
        lists: ListArray,
        /// A vector: no braces, and spaces between the elements.
        spaced: bool,
        items: Box<Writer>,
    },
}

/// Appends the text of one value. NULL is the caller's. For a column of them, make a [`Writer`].
pub fn write(values: &dyn Array, row: usize, sql_type: &SqlType, style: &Style, out: &mut Vec<u8>) -> Result<()> {
    Writer::new(values, sql_type, style).map(|writer| writer.write(row, out))
}

impl Writer {
    /// A writer over `values`, shown as `sql_type`. Arrow types other than [`SqlType::arrow`] are converted (0A000 where
    /// that is impossible, 22003 and 22008 where a value does not fit).
    pub fn new(values: &dyn Array, sql_type: &SqlType, style: &Style) -> Result<Writer> {
        Ok(Writer { column: Column::of(values, sql_type, style)?, nulls: values.logical_nulls(), style: *style })
    }

    /// True where the value is NULL, which has no text.
    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the text of the value in `row`. NULL is the caller's.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        match &self.column {
            Column::Null => {}
            Column::Boolean(values) => out.push(if values.value(row) { b't' } else { b'f' }),
            Column::Int16(values) => number::write_integer(i64::from(values.value(row)), out),
            Column::Int32(values) => number::write_integer(i64::from(values.value(row)), out),
            Column::Int64(values) => number::write_integer(values.value(row), out),
            Column::UInt32(values) => number::write_integer(i64::from(values.value(row)), out),
            Column::Float32(values) => number::write_real(values.value(row), self.style.extra_float_digits, out),
            Column::Float64(values) => number::write_double(values.value(row), self.style.extra_float_digits, out),
            Column::Decimal { values, scale, trimmed } => number::write_numeric(values.value(row), *scale, *trimmed, out),
            Column::WideDecimal { values, trimmed } => write_wide(values, row, *trimmed, out),
            Column::Utf8View(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Column::Padded { values, length } => {
                let value = values.value(row);
                out.extend_from_slice(value.as_bytes());
                out.extend(std::iter::repeat_n(b' ', length.saturating_sub(value.chars().count())));
            }
            Column::Utf8(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Column::LargeUtf8(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Column::Binary(values) => self.write_bytes(values.value(row), out),
            Column::LargeBinary(values) => self.write_bytes(values.value(row), out),
            Column::BinaryView(values) => self.write_bytes(values.value(row), out),
            Column::FixedBinary(values) => self.write_bytes(values.value(row), out),
            Column::Uuid(values) => write_uuid(values.value(row), out),
            Column::Date(values) => calendar::write_date(values.value(row), out),
            Column::Time(values) => calendar::write_time(values.value(row), out),
            Column::Timestamp(values) => calendar::write_timestamp(values.value(row), out),
            Column::Timestamptz(values) => calendar::write_timestamptz(values.value(row), self.style.time_zone, out),
            Column::Interval(values) => match self.style.interval_style {
                IntervalStyle::Postgres => interval::write_postgres(values.value(row), out),
                IntervalStyle::Iso8601 => interval::write_iso(values.value(row), out),
            },
            Column::List { lists, items, spaced } => write_list(lists, items, *spaced, row, out),
        }
    }

    fn write_bytes(&self, bytes: &[u8], out: &mut Vec<u8>) {
        match self.style.bytea_output {
            ByteaOutput::Hex => {
                out.extend_from_slice(b"\\x");
                bytes.iter().for_each(|byte| write_hex(*byte, out));
            }
            ByteaOutput::Escape => {
                for byte in bytes {
                    match byte {
                        b'\\' => out.extend_from_slice(b"\\\\"),
                        0x20..=0x7e => out.push(*byte),
                        _ => out.extend_from_slice(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]),
                    }
                }
            }
        }
    }
}

impl Column {
    fn of(values: &dyn Array, sql_type: &SqlType, style: &Style) -> Result<Column> {
        let trimmed = *sql_type == SqlType::Numeric(None);
        Ok(match (values.data_type(), sql_type) {
            (DataType::Null, _) => Column::Null,
            (DataType::Boolean, SqlType::Boolean) => Column::Boolean(values.as_boolean().clone()),
            (DataType::Int16, _) => Column::Int16(values.as_primitive().clone()),
            (DataType::Int32, _) => Column::Int32(values.as_primitive().clone()),
            (DataType::Int64, _) => Column::Int64(values.as_primitive().clone()),
            (DataType::UInt32, _) => Column::UInt32(values.as_primitive().clone()),
            (DataType::Float32, _) => Column::Float32(values.as_primitive().clone()),
            (DataType::Float64, _) => Column::Float64(values.as_primitive().clone()),
            (DataType::Decimal128(_, scale), _) => Column::Decimal { values: values.as_primitive().clone(), scale: *scale, trimmed },
            (DataType::Decimal256(_, _), _) => Column::WideDecimal { values: values.as_primitive().clone(), trimmed },
            (DataType::Utf8View, SqlType::Char(length)) => {
                Column::Padded { values: values.as_string_view().clone(), length: *length as usize }
            }
            (DataType::Utf8View, _) => Column::Utf8View(values.as_string_view().clone()),
            (DataType::Utf8, _) => Column::Utf8(values.as_string().clone()),
            (DataType::LargeUtf8, _) => Column::LargeUtf8(values.as_string().clone()),
            (DataType::FixedSizeBinary(16), SqlType::Uuid) => Column::Uuid(values.as_fixed_size_binary().clone()),
            (DataType::Binary, _) => Column::Binary(values.as_binary().clone()),
            (DataType::LargeBinary, _) => Column::LargeBinary(values.as_binary().clone()),
            (DataType::BinaryView, _) => Column::BinaryView(values.as_binary_view().clone()),
            (DataType::FixedSizeBinary(_), _) => Column::FixedBinary(values.as_fixed_size_binary().clone()),
            (DataType::Date32, _) => Column::Date(values.as_primitive().clone()),
            (DataType::Time64(TimeUnit::Microsecond), _) => Column::Time(values.as_primitive().clone()),
            (DataType::Timestamp(TimeUnit::Microsecond, None), _) => Column::Timestamp(values.as_primitive().clone()),
            (DataType::Timestamp(TimeUnit::Microsecond, Some(_)), _) => Column::Timestamptz(values.as_primitive().clone()),
            (DataType::Interval(IntervalUnit::MonthDayNano), _) => Column::Interval(values.as_primitive().clone()),
            (DataType::List(item), _) => {
                let lists: &ListArray = values.as_list();
                let element = sql_type.element().cloned().unwrap_or_else(|| SqlType::of_field(item));
                let items = Box::new(Writer::new(lists.values().as_ref(), &element, style)?);
                Column::List { lists: lists.clone(), items, spaced: sql_type.is_vector() }
            }
            _ => return Column::of(convert(values, sql_type)?.as_ref(), sql_type, style),
        })
    }
}

/// Brings a class of array that has no writer of its own to one that has.
fn convert(values: &dyn Array, sql_type: &SqlType) -> Result<ArrayRef> {
    let values = make_array(values.to_data());
    let target = match values.data_type() {
        // Unsigned ones reach beyond bigint; as a decimal they do not.
        DataType::UInt64 => DataType::Decimal128(20, 0),
        // What has no SQL type is shown as Arrow shows it.
        DataType::Struct(_) | DataType::Map(_, _) | DataType::Union(_, _) => return shown(values.as_ref()),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::ListView(item) | DataType::LargeListView(item) => {
            DataType::List(item.clone())
        }
        DataType::Boolean => DataType::Utf8View,
        DataType::Dictionary(_, inner) => inner.as_ref().clone(),
        DataType::RunEndEncoded(_, inner) => inner.data_type().clone(),
        _ => sql_type.arrow(),
    };
    if target == *values.data_type() {
        return Err(unwritable(values.data_type()));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    if !arrow::compute::can_cast_types(values.data_type(), &target) {
        return Err(unwritable(values.data_type()));
    }
    cast_with_options(&values, &target, &options).map_err(|error| {
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("value is out of range for type {sql_type}")).detail(error.to_string())
    })
}

fn unwritable(data_type: &DataType) -> Error {
    Error::unsupported(format!("values of Arrow type {data_type} have no text form"))
}

fn shown(values: &dyn Array) -> Result<ArrayRef> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(values, &options).map_err(|_| unwritable(values.data_type()))?;
    let texts = (0..values.len()).map(|row| values.is_valid(row).then(|| formatter.value(row).to_string()));
    Ok(std::sync::Arc::new(texts.collect::<StringViewArray>()))
}

fn write_list<O: arrow::array::OffsetSizeTrait>(lists: &GenericListArray<O>, items: &Writer, spaced: bool, row: usize, out: &mut Vec<u8>) {
    let offsets = lists.value_offsets();
    let (start, end) = (offsets[row].as_usize(), offsets[row + 1].as_usize());
    if spaced {
        for item in start..end {
            if item > start {
                out.push(b' ');
            }
            items.write(item, out);
        }
        return;
    }
    let nested = matches!(items.column, Column::List { .. });
    let mut text = Vec::new();
    out.push(b'{');
    for item in start..end {
        if item > start {
            out.push(b',');
        }
        if items.is_null(item) {
            out.extend_from_slice(b"NULL");
        } else if nested {
            items.write(item, out);
        } else {
            text.clear();
            items.write(item, &mut text);
            array::write_element(&text, out);
        }
    }
    out.push(b'}');
}

fn write_wide(values: &PrimitiveArray<Decimal256Type>, row: usize, trimmed: bool, out: &mut Vec<u8>) {
    let value: <Decimal256Type as ArrowPrimitiveType>::Native = values.value(row);
    if let Some(narrow) = i256::to_i128(value) {
        let DataType::Decimal256(_, scale) = values.data_type() else { return };
        if scale.unsigned_abs() <= 38 {
            return number::write_numeric(narrow, *scale, trimmed, out);
        }
    }
    out.extend_from_slice(values.value_as_string(row).as_bytes());
}

#[inline]
fn write_hex(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

fn write_uuid(value: &[u8], out: &mut Vec<u8>) {
    for (index, byte) in value.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        write_hex(*byte, out);
    }
}
