//! Writing the values of a column in binary: one [`BinaryWriter`] a batch.

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, StringViewArray, UInt32Array, make_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Time64MicrosecondType, TimestampMicrosecondType};

use super::*;
use crate::types::text::Writer;

/// Writes the values of one column in PostgreSQL's binary format, without the length in front. Cheap to make.
#[derive(Debug)]
pub struct BinaryWriter {
    column: Column,
    nulls: Option<NullBuffer>,
}

#[derive(Debug)]
enum Column {
    Boolean(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    /// bigint and time.
    Int64(Int64Array),
    UInt32(UInt32Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Numeric {
        values: Decimal128Array,
        scale: i8,
        trimmed: bool,
    },
    Text(StringViewArray),
    Padded(Writer),
    Jsonb(StringViewArray),
    Bytes(BinaryArray),
    Uuid(FixedSizeBinaryArray),
    Date(Date32Array),
    Timestamp(arrow::array::TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    List {
        lists: ListArray,
        items: Box<BinaryWriter>,
        oid: u32,
        /// The lower bound that is told: 0 of a vector.
        first: i32,
    },
}

impl BinaryWriter {
    /// A writer over `values`, shown as `sql_type`. Other Arrow types than [`SqlType::arrow`] are converted (0A000 where that
    /// is impossible, 22003 where a value does not fit).
    pub fn new(values: &dyn Array, sql_type: &SqlType) -> Result<BinaryWriter> {
        let array = canonical(values, sql_type)?;
        let nulls = array.logical_nulls();
        let decimal = |trimmed| match array.data_type() {
            DataType::Decimal128(_, scale) => Ok(Column::Numeric { values: array.as_primitive().clone(), scale: *scale, trimmed }),
            other => Err(unwritable(other)),
        };
        let column = match sql_type {
            SqlType::Boolean => Column::Boolean(array.as_boolean().clone()),
            SqlType::SmallInt => Column::Int16(array.as_primitive().clone()),
            SqlType::Integer => Column::Int32(array.as_primitive().clone()),
            SqlType::BigInt => Column::Int64(array.as_primitive().clone()),
            SqlType::Oid => Column::UInt32(array.as_primitive().clone()),
            SqlType::Real => Column::Float32(array.as_primitive().clone()),
            SqlType::Double => Column::Float64(array.as_primitive().clone()),
            SqlType::Numeric(limits) => decimal(limits.is_none())?,
            SqlType::Text | SqlType::Varchar(_) | SqlType::Name | SqlType::Json => Column::Text(array.as_string_view().clone()),
            SqlType::Char(_) => Column::Padded(Writer::new(array.as_ref(), sql_type, &Style::default())?),
            SqlType::Jsonb => Column::Jsonb(array.as_string_view().clone()),
            SqlType::Bytea => Column::Bytes(array.as_binary().clone()),
            SqlType::Uuid => Column::Uuid(array.as_fixed_size_binary().clone()),
            SqlType::Date => Column::Date(array.as_primitive().clone()),
            SqlType::Time => Column::Int64(array.as_primitive::<Time64MicrosecondType>().reinterpret_cast()),
            SqlType::Timestamp | SqlType::Timestamptz => Column::Timestamp(array.as_primitive::<TimestampMicrosecondType>().clone()),
            SqlType::Interval => Column::Interval(array.as_primitive().clone()),
            SqlType::Array(_) | SqlType::SmallIntVector | SqlType::OidVector => {
                let element = sql_type.element().unwrap_or(&SqlType::Text);
                if matches!(element, SqlType::Array(_)) {
                    return Err(Error::unsupported("arrays of several dimensions are not supported in binary format"));
                }
                let lists: ListArray = array.as_list().clone();
                let items = Box::new(BinaryWriter::new(lists.values().as_ref(), element)?);
                Column::List { lists, items, oid: element.oid(), first: i32::from(!sql_type.is_vector()) }
            }
        };
        Ok(BinaryWriter { column, nulls })
    }

    /// True where the value is NULL, which has no bytes.
    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the bytes of the value in `row`. NULL is the caller's.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        match &self.column {
            Column::Boolean(values) => out.push(u8::from(values.value(row))),
            Column::Int16(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Int32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Int64(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::UInt32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Float32(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Float64(values) => out.extend_from_slice(&values.value(row).to_be_bytes()),
            Column::Numeric { values, scale, trimmed } => write_numeric(values.value(row), *scale, *trimmed, out),
            Column::Text(values) => out.extend_from_slice(values.value(row).as_bytes()),
            Column::Padded(values) => values.write(row, out),
            Column::Jsonb(values) => {
                out.push(1);
                out.extend_from_slice(values.value(row).as_bytes());
            }
            Column::Bytes(values) => out.extend_from_slice(values.value(row)),
            Column::Uuid(values) => out.extend_from_slice(values.value(row)),
            Column::Date(values) => out.extend_from_slice(&values.value(row).saturating_sub(EPOCH_DAYS).to_be_bytes()),
            Column::Timestamp(values) => out.extend_from_slice(&values.value(row).saturating_sub(EPOCH_US).to_be_bytes()),
            Column::Interval(values) => {
                let value = values.value(row);
                out.extend_from_slice(&(value.nanoseconds / 1000).to_be_bytes());
                out.extend_from_slice(&value.days.to_be_bytes());
                out.extend_from_slice(&value.months.to_be_bytes());
            }
            Column::List { lists, items, oid, first } => write_list(lists, items, (*oid, *first), row, out),
        }
    }

    /// Appends the value's length and bytes as messages have them, -1 for NULL.
    pub fn write_sized(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
            return;
        }
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        self.write(row, out);
        let length = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// The array in the type's own Arrow form (decimals keep their scale).
fn canonical(values: &dyn Array, sql_type: &SqlType) -> Result<ArrayRef> {
    let array = make_array(values.to_data());
    let target = match (array.data_type(), sql_type) {
        (DataType::Decimal128(_, _), SqlType::Numeric(_)) => return Ok(array),
        (DataType::Decimal256(_, scale), SqlType::Numeric(_)) => DataType::Decimal128(38, *scale),
        (DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _), SqlType::Timestamp | SqlType::Timestamptz)
        | (DataType::List(_), SqlType::Array(_)) => return Ok(array),
        (DataType::LargeList(item) | DataType::FixedSizeList(item, _), SqlType::Array(_)) => DataType::List(item.clone()),
        (from, _) => {
            let target = sql_type.arrow();
            if *from == target {
                return Ok(array);
            }
            target
        }
    };
    if !can_cast_types(array.data_type(), &target) {
        return Err(unwritable(array.data_type()));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&array, &target, &options).map_err(|error| {
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("value is out of range for type {sql_type}")).detail(error.to_string())
    })
}

fn unwritable(data_type: &DataType) -> Error {
    Error::unsupported(format!("values of Arrow type {data_type} have no binary form"))
}

/// Digits, weight of the first one, sign, display scale, then the base-10000 digits without zeros at either end.
fn write_numeric(value: i128, scale: i8, trimmed: bool, out: &mut Vec<u8>) {
    let mut magnitude = value.unsigned_abs();
    let mut scale = i32::from(scale);
    if scale < 0 {
        magnitude = 10u128.checked_pow(scale.unsigned_abs()).and_then(|power| magnitude.checked_mul(power)).unwrap_or(u128::MAX);
        scale = 0;
    }
    while trimmed && scale > 0 && magnitude.is_multiple_of(10) {
        magnitude /= 10;
        scale -= 1;
    }
    // Up to 39 decimal digits, aligned to the decimal point: 11 base-10000 digits at most, the lowest first.
    let groups = (scale + 3) / 4;
    let missing = (groups * 4 - scale).unsigned_abs();
    let mut digits = [0u16; 12];
    let mut count = 0;
    let low = 10u128.pow(4 - missing);
    digits[count] = (magnitude % low) as u16 * 10u16.pow(missing);
    magnitude /= low;
    count += 1;
    while magnitude > 0 && count < digits.len() {
        digits[count] = (magnitude % 10_000) as u16;
        magnitude /= 10_000;
        count += 1;
    }
    let highest = digits[..count].iter().rposition(|digit| *digit != 0);
    let lowest = digits[..count].iter().position(|digit| *digit != 0).unwrap_or(0);
    let (length, weight) = highest.map_or((0, 0), |highest| (highest + 1 - lowest, highest as i32 - groups));
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&(weight as i16).to_be_bytes());
    out.extend_from_slice(&(if value < 0 { NUMERIC_NEGATIVE } else { 0 }).to_be_bytes());
    out.extend_from_slice(&(scale as u16).to_be_bytes());
    digits[lowest..lowest + length].iter().rev().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
}

fn write_list(lists: &ListArray, items: &BinaryWriter, (oid, first): (u32, i32), row: usize, out: &mut Vec<u8>) {
    let offsets = lists.value_offsets();
    let range = offsets[row] as usize..offsets[row + 1] as usize;
    let has_null = range.clone().any(|item| items.is_null(item));
    out.extend_from_slice(&i32::from(!range.is_empty()).to_be_bytes());
    out.extend_from_slice(&i32::from(has_null).to_be_bytes());
    out.extend_from_slice(&oid.to_be_bytes());
    if range.is_empty() {
        return;
    }
    out.extend_from_slice(&(range.len() as i32).to_be_bytes());
    out.extend_from_slice(&first.to_be_bytes());
    range.for_each(|item| items.write_sized(item, out));
}
