//! Builders of one column: texts in, an Arrow array out.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryBuilder, BooleanBufferBuilder, FixedSizeBinaryArray, ListArray, PrimitiveArray, StringViewBuilder,
};
use arrow::array::{BooleanArray, NullBufferBuilder};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};

use crate::error::{Error, Result, SqlState};
use crate::event::binary::BinaryCells;
use crate::event::fields::{CHUNK_BYTES_MAX, Cells, Fields};
use crate::types::text::scalar::{boolean, bytea, fit, uuid};
use crate::types::text::{array, datetime, interval, json, number};
use crate::types::zone::Zone;
use crate::types::{NUMERIC_DEFAULT, SqlType, binary};

/// A value that its type refuses.
#[derive(Debug)]
pub struct Misfit {
    /// Row among the cells.
    pub row: usize,
    /// Why.
    pub error: Error,
}

/// Gathers the values of one column.
#[derive(Debug)]
pub struct ColumnBuilder {
    sql_type: SqlType,
    zone: Zone,
    values: Values,
    nulls: NullBufferBuilder,
}

/// Values so far, by the way they are stored.
#[derive(Debug)]
enum Values {
    Boolean(BooleanBufferBuilder),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    UInt32(Vec<u32>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal(Vec<i128>),
    Interval(Vec<IntervalMonthDayNano>),
    Text(StringViewBuilder),
    Bytes(BinaryBuilder),
    Uuid(Vec<u8>),
    List { offsets: Vec<i32>, items: Box<ColumnBuilder> },
}

impl ColumnBuilder {
    /// For values of a type; timestamptz texts without an offset are in `zone`. `rows` is what to make room for.
    pub fn new(sql_type: &SqlType, zone: Zone, rows: usize) -> ColumnBuilder {
        let values = match sql_type {
            SqlType::Boolean => Values::Boolean(BooleanBufferBuilder::new(rows)),
            SqlType::SmallInt => Values::Int16(Vec::with_capacity(rows)),
            SqlType::Integer | SqlType::Date => Values::Int32(Vec::with_capacity(rows)),
            SqlType::BigInt | SqlType::Time | SqlType::Timestamp | SqlType::Timestamptz => Values::Int64(Vec::with_capacity(rows)),
            SqlType::Oid => Values::UInt32(Vec::with_capacity(rows)),
            SqlType::Real => Values::Float32(Vec::with_capacity(rows)),
            SqlType::Double => Values::Float64(Vec::with_capacity(rows)),
            SqlType::Numeric(_) => Values::Decimal(Vec::with_capacity(rows)),
            SqlType::Interval => Values::Interval(Vec::with_capacity(rows)),
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Name | SqlType::Json | SqlType::Jsonb => {
                Values::Text(StringViewBuilder::with_capacity(rows))
            }
            SqlType::Bytea => Values::Bytes(BinaryBuilder::new()),
            SqlType::Uuid => Values::Uuid(Vec::with_capacity(rows * 16)),
            SqlType::Array(_) | SqlType::SmallIntVector | SqlType::OidVector => {
                let element = sql_type.element().unwrap_or(&SqlType::Text);
                Values::List { offsets: vec![0], items: Box::new(ColumnBuilder::new(element, zone, rows)) }
            }
        };
        ColumnBuilder { sql_type: sql_type.clone(), zone, values, nulls: NullBufferBuilder::new(rows) }
    }

    /// Adds the values of some rows. After an error the builder is of no use.
    pub fn append(&mut self, cells: Cells<'_>) -> Result<(), Misfit> {
        let (nulls, zone) = (&mut self.nulls, &self.zone);
        match &mut self.values {
            Values::Boolean(values) => booleans(values, nulls, cells),
            Values::Int16(values) => fixed(values, nulls, cells, number::smallint),
            Values::Int32(values) if self.sql_type == SqlType::Date => fixed(values, nulls, cells, datetime::date),
            Values::Int32(values) => fixed(values, nulls, cells, number::integer),
            Values::Int64(values) => match self.sql_type {
                SqlType::Time => fixed(values, nulls, cells, datetime::time),
                SqlType::Timestamp => fixed(values, nulls, cells, datetime::timestamp),
                SqlType::Timestamptz => fixed(values, nulls, cells, |text| datetime::timestamptz(text, zone)),
                _ => fixed(values, nulls, cells, number::bigint),
            },
            Values::UInt32(values) => fixed(values, nulls, cells, number::oid),
            Values::Float32(values) => fixed(values, nulls, cells, number::real),
            Values::Float64(values) => fixed(values, nulls, cells, number::double),
            Values::Decimal(values) => {
                let declared = matches!(self.sql_type, SqlType::Numeric(Some(_)));
                let (precision, scale) = decimal_limits(&self.sql_type);
                fixed(values, nulls, cells, |text| number::numeric(text, precision, scale, declared))
            }
            Values::Interval(values) => fixed(values, nulls, cells, interval::interval),
            Values::Text(values) => match &self.sql_type {
                SqlType::Json => texts(values, cells, |text| json::check_json(text).map(|()| text)),
                SqlType::Jsonb => jsonb(values, cells),
                sql_type @ (SqlType::Varchar(Some(_)) | SqlType::Char(_)) => texts(values, cells, |text| fit(sql_type, text)),
                _ => texts(values, cells, unchanged),
            },
            Values::Bytes(values) => bytes(values, cells),
            Values::Uuid(values) => uuids(values, nulls, cells),
            Values::List { offsets, items } => lists(offsets, items, nulls, cells),
        }
    }

    /// As [`ColumnBuilder::append`], of values in binary format.
    pub(crate) fn append_binary(&mut self, cells: BinaryCells<'_>) -> Result<(), Misfit> {
        let nulls = &mut self.nulls;
        let declared = matches!(self.sql_type, SqlType::Numeric(Some(_)));
        let (precision, scale) = decimal_limits(&self.sql_type);
        match &mut self.values {
            Values::Boolean(values) => each(cells, |cell| {
                values.append(cell.map(binary::boolean).transpose()?.unwrap_or(false));
                nulls.append(cell.is_some());
                Ok(())
            }),
            Values::Int16(values) => fixed_binary(values, nulls, cells, binary::smallint),
            Values::Int32(values) if self.sql_type == SqlType::Date => fixed_binary(values, nulls, cells, binary::date),
            Values::Int32(values) => fixed_binary(values, nulls, cells, binary::integer),
            Values::Int64(values) => match self.sql_type {
                SqlType::Time => fixed_binary(values, nulls, cells, binary::time),
                SqlType::Timestamp | SqlType::Timestamptz => fixed_binary(values, nulls, cells, binary::timestamp),
                _ => fixed_binary(values, nulls, cells, binary::bigint),
            },
            Values::UInt32(values) => fixed_binary(values, nulls, cells, binary::oid),
            Values::Float32(values) => fixed_binary(values, nulls, cells, binary::real),
            Values::Float64(values) => fixed_binary(values, nulls, cells, binary::double),
            Values::Decimal(values) => fixed_binary(values, nulls, cells, |bytes| binary::numeric(bytes, precision, scale, declared)),
            Values::Interval(values) => fixed_binary(values, nulls, cells, binary::interval),
            Values::Text(values) => binary_texts(values, &self.sql_type, cells),
            Values::Bytes(values) => each(cells, |cell| {
                values.append_option(cell);
                Ok(())
            }),
            Values::Uuid(values) => each(cells, |cell| {
                values.extend_from_slice(&cell.map(binary::uuid).transpose()?.unwrap_or_default());
                nulls.append(cell.is_some());
                Ok(())
            }),
            Values::List { offsets, items } => binary_lists(offsets, items, nulls, cells),
        }
    }

    /// The array of all values, of the type's Arrow form.
    pub fn finish(self) -> Result<ArrayRef> {
        let ColumnBuilder { sql_type, values, mut nulls, .. } = self;
        let data_type = sql_type.arrow();
        let nulls = nulls.finish();
        Ok(match values {
            Values::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int16(values) => primitive::<Int16Type>(values, nulls, data_type),
            Values::Int32(values) if sql_type == SqlType::Date => primitive::<Date32Type>(values, nulls, data_type),
            Values::Int32(values) => primitive::<Int32Type>(values, nulls, data_type),
            Values::Int64(values) => match sql_type {
                SqlType::Time => primitive::<Time64MicrosecondType>(values, nulls, data_type),
                SqlType::Timestamp | SqlType::Timestamptz => primitive::<TimestampMicrosecondType>(values, nulls, data_type),
                _ => primitive::<Int64Type>(values, nulls, data_type),
            },
            Values::UInt32(values) => primitive::<UInt32Type>(values, nulls, data_type),
            Values::Float32(values) => primitive::<Float32Type>(values, nulls, data_type),
            Values::Float64(values) => primitive::<Float64Type>(values, nulls, data_type),
            Values::Decimal(values) => primitive::<Decimal128Type>(values, nulls, data_type),
            Values::Interval(values) => primitive::<IntervalMonthDayNanoType>(values, nulls, data_type),
            Values::Text(mut values) => Arc::new(values.finish()),
            Values::Bytes(mut values) => Arc::new(values.finish()),
            Values::Uuid(values) => {
                Arc::new(FixedSizeBinaryArray::try_new(16, values.into(), nulls).map_err(|error| Error::internal(error.to_string()))?)
            }
            Values::List { offsets, items } => {
                let DataType::List(field) = data_type else { return Err(Error::internal("an array's Arrow type is not a list")) };
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let list = ListArray::try_new(field, offsets, items.finish()?, nulls);
                Arc::new(list.map_err(|error| Error::internal(error.to_string()))?)
            }
        })
    }
}

fn decimal_limits(sql_type: &SqlType) -> (u8, i8) {
    match sql_type {
        SqlType::Numeric(Some(limits)) => *limits,
        _ => NUMERIC_DEFAULT,
    }
}

fn primitive<T: ArrowPrimitiveType>(mut values: Vec<T::Native>, nulls: Option<arrow::buffer::NullBuffer>, data_type: DataType) -> ArrayRef {
    values.shrink_to_fit();
    Arc::new(PrimitiveArray::<T>::new(values.into(), nulls).with_data_type(data_type))
}

#[inline]
fn fixed<T: Default>(
    values: &mut Vec<T>,
    nulls: &mut NullBufferBuilder,
    cells: Cells<'_>,
    read: impl Fn(&str) -> Result<T>,
) -> Result<(), Misfit> {
    values.reserve(cells.len());
    for row in 0..cells.len() {
        match cells.get(row) {
            Some(text) => {
                values.push(read(text).map_err(|error| Misfit { row, error })?);
                nulls.append_non_null();
            }
            None => {
                values.push(T::default());
                nulls.append_null();
            }
        }
    }
    Ok(())
}

fn booleans(values: &mut BooleanBufferBuilder, nulls: &mut NullBufferBuilder, cells: Cells<'_>) -> Result<(), Misfit> {
    for row in 0..cells.len() {
        let text = cells.get(row);
        values.append(text.map(boolean).transpose().map_err(|error| Misfit { row, error })?.unwrap_or(false));
        nulls.append(text.is_some());
    }
    Ok(())
}

#[inline]
fn texts(values: &mut StringViewBuilder, cells: Cells<'_>, read: impl for<'t> Fn(&'t str) -> Result<&'t str>) -> Result<(), Misfit> {
    for row in 0..cells.len() {
        match cells.get(row) {
            Some(text) => values.append_value(read(text).map_err(|error| Misfit { row, error })?),
            None => values.append_null(),
        }
    }
    Ok(())
}

fn unchanged(text: &str) -> Result<&str> {
    Ok(text)
}

fn jsonb(values: &mut StringViewBuilder, cells: Cells<'_>) -> Result<(), Misfit> {
    let mut normal = String::new();
    for row in 0..cells.len() {
        match cells.get(row) {
            Some(text) => {
                normal.clear();
                json::normalize_jsonb(text, &mut normal).map_err(|error| Misfit { row, error })?;
                values.append_value(&normal);
            }
            None => values.append_null(),
        }
    }
    Ok(())
}

fn bytes(values: &mut BinaryBuilder, cells: Cells<'_>) -> Result<(), Misfit> {
    let mut value = Vec::new();
    for row in 0..cells.len() {
        match cells.get(row) {
            Some(text) => {
                value.clear();
                bytea(text, &mut value).map_err(|error| Misfit { row, error })?;
                values.append_value(&value);
            }
            None => values.append_null(),
        }
    }
    Ok(())
}

fn uuids(values: &mut Vec<u8>, nulls: &mut NullBufferBuilder, cells: Cells<'_>) -> Result<(), Misfit> {
    values.reserve(cells.len() * 16);
    for row in 0..cells.len() {
        let text = cells.get(row);
        let value = text.map(uuid).transpose().map_err(|error| Misfit { row, error })?;
        values.extend_from_slice(&value.unwrap_or_default());
        nulls.append(text.is_some());
    }
    Ok(())
}

/// The elements of all lists make fields of their own, which the element's builder reads in one go.
fn lists(offsets: &mut Vec<i32>, items: &mut ColumnBuilder, nulls: &mut NullBufferBuilder, cells: Cells<'_>) -> Result<(), Misfit> {
    let mut fields = Fields::new("", 1);
    let before = offsets.last().copied().unwrap_or(0);
    // Elements read when each row ended, to find the row of an element that is refused.
    let mut ends = Vec::with_capacity(cells.len());
    for row in 0..cells.len() {
        let text = cells.get(row);
        if let Some(text) = text {
            array::elements(text, |item| {
                match item {
                    Some(item) => {
                        let start = fields.scratch().len();
                        if start + item.len() > CHUNK_BYTES_MAX {
                            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "arrays of a batch are too large"));
                        }
                        fields.scratch().push_str(item);
                        fields.push_scratch(start);
                    }
                    None => fields.push_null(),
                }
                Ok(())
            })
            .map_err(|error| Misfit { row, error })?;
        }
        nulls.append(text.is_some());
        ends.push(fields.rows());
        offsets.push(before + fields.rows() as i32);
    }
    items.append(fields.column(0)).map_err(|misfit| Misfit { row: ends.partition_point(|end| *end <= misfit.row), error: misfit.error })
}

fn each(cells: BinaryCells<'_>, mut add: impl FnMut(Option<&[u8]>) -> Result<()>) -> Result<(), Misfit> {
    (0..cells.len()).try_for_each(|row| add(cells.get(row)).map_err(|error| Misfit { row, error }))
}

fn fixed_binary<T: Default>(
    values: &mut Vec<T>,
    nulls: &mut NullBufferBuilder,
    cells: BinaryCells<'_>,
    read: impl Fn(&[u8]) -> Result<T>,
) -> Result<(), Misfit> {
    values.reserve(cells.len());
    each(cells, |cell| {
        values.push(cell.map(&read).transpose()?.unwrap_or_default());
        nulls.append(cell.is_some());
        Ok(())
    })
}

fn binary_texts(values: &mut StringViewBuilder, sql_type: &SqlType, cells: BinaryCells<'_>) -> Result<(), Misfit> {
    let mut normal = String::new();
    each(cells, |cell| {
        let Some(bytes) = cell else {
            values.append_null();
            return Ok(());
        };
        match sql_type {
            SqlType::Jsonb => {
                normal.clear();
                json::normalize_jsonb(binary::jsonb_text(bytes)?, &mut normal)?;
                values.append_value(&normal);
            }
            SqlType::Json => {
                let text = binary::text(bytes)?;
                json::check_json(text)?;
                values.append_value(text);
            }
            _ => values.append_value(fit(sql_type, binary::text(bytes)?)?),
        }
        Ok(())
    })
}

fn binary_lists(
    offsets: &mut Vec<i32>,
    items: &mut ColumnBuilder,
    nulls: &mut NullBufferBuilder,
    cells: BinaryCells<'_>,
) -> Result<(), Misfit> {
    let before = offsets.last().copied().unwrap_or(0);
    let (mut spans, mut ends) = (Vec::new(), Vec::with_capacity(cells.len()));
    for row in 0..cells.len() {
        let span = cells.span(row);
        if let Some((start, end)) = span {
            binary::elements(&cells.bytes()[start..end], |element| {
                spans.push(element.map(|element| (start + element.start, start + element.end)));
                Ok(())
            })
            .map_err(|error| Misfit { row, error })?;
        }
        nulls.append(span.is_some());
        ends.push(spans.len());
        offsets.push(before + spans.len() as i32);
    }
    let elements = BinaryCells::of_elements(cells.bytes(), &spans);
    items.append_binary(elements).map_err(|misfit| Misfit { row: ends.partition_point(|end| *end <= misfit.row), error: misfit.error })
}
