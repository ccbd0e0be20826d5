//! Rows of a system relation, put together by column name.
//!
//! *Place*: the row makers of `query::catalogs` fill a [`Rows`], the provider turns it into one batch.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray,
    ListArray, RecordBatch, StringViewArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, IntervalMonthDayNano};

use super::relation::Relation;
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::types::{SqlType, UTC};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// boolean.
    Bool(bool),
    /// Any integer or OID.
    Int(i64),
    /// real or double precision.
    Float(f64),
    /// Any character type.
    Text(String),
    /// timestamptz.
    Time(Micros),
    /// interval, microseconds.
    Span(i64),
    /// An array.
    List(Vec<Value>),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Value::Int(value.into())
    }
}

impl From<Oid> for Value {
    fn from(value: Oid) -> Self {
        Value::Int(value.into())
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::from(value as u64)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// The rows of one relation.
#[derive(Debug)]
pub struct Rows {
    relation: &'static Relation,
    columns: Vec<Vec<Value>>,
}

impl Rows {
    /// No rows yet.
    pub fn new(relation: &'static Relation) -> Self {
        Self { relation, columns: vec![Vec::new(); relation.columns.len()] }
    }

    /// Adds a row. Columns that are not named are NULL, or false, zero or empty where they cannot be.
    pub fn add<'a>(&mut self, cells: impl IntoIterator<Item = (&'a str, Value)>) {
        for (column, values) in self.relation.columns.iter().zip(&mut self.columns) {
            values.push(if column.not_null { zero(&column.sql_type) } else { Value::Null });
        }
        for (name, value) in cells {
            self.set(name, value);
        }
    }

    /// Replaces one value of the row added last. That the column exists is an invariant of the row makers.
    pub fn set(&mut self, name: &str, value: Value) {
        let position = self.relation.columns.iter().position(|column| column.name == name);
        let position = position.expect("row makers name columns of their relation");
        if let Some(cell) = self.columns[position].last_mut() {
            *cell = value;
        }
    }

    /// As a batch of the relation's schema.
    pub fn finish(self) -> Result<RecordBatch> {
        let arrays = self.relation.columns.iter().zip(&self.columns);
        let arrays = arrays.map(|(column, values)| array(&column.sql_type, values)).collect::<Result<_>>()?;
        RecordBatch::try_new(self.relation.arrow_schema(), arrays).map_err(|error| Error::internal(error.to_string()))
    }
}

fn zero(sql_type: &SqlType) -> Value {
    match sql_type {
        SqlType::Boolean => Value::Bool(false),
        SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Oid => Value::Int(0),
        SqlType::Real | SqlType::Double => Value::Float(0.0),
        SqlType::Array(_) | SqlType::SmallIntVector | SqlType::OidVector => Value::List(Vec::new()),
        SqlType::Timestamptz => Value::Time(0),
        _ => Value::Text(String::new()),
    }
}

/// Values as an array of the type's Arrow form. A value of another kind is a broken invariant.
pub fn array(sql_type: &SqlType, values: &[Value]) -> Result<ArrayRef> {
    macro_rules! collect {
        ($array:ty, $kind:ident, $convert:expr) => {{
            let convert = $convert;
            let cells = values.iter().map(|value| match value {
                Value::Null => Ok(None),
                Value::$kind(value) => Ok(Some(convert(value))),
                other => Err(unfit(sql_type, other)),
            });
            Arc::new(cells.collect::<Result<$array>>()?) as ArrayRef
        }};
    }
    Ok(match sql_type {
        SqlType::Boolean => collect!(BooleanArray, Bool, |value: &bool| *value),
        SqlType::SmallInt => collect!(Int16Array, Int, |value: &i64| *value as i16),
        SqlType::Integer => collect!(Int32Array, Int, |value: &i64| *value as i32),
        SqlType::BigInt => collect!(Int64Array, Int, |value: &i64| *value),
        SqlType::Oid => collect!(UInt32Array, Int, |value: &i64| *value as u32),
        SqlType::Real => collect!(Float32Array, Float, |value: &f64| *value as f32),
        SqlType::Double => collect!(Float64Array, Float, |value: &f64| *value),
        SqlType::Interval => {
            collect!(IntervalMonthDayNanoArray, Span, |value: &i64| interval(*value))
        }
        SqlType::Timestamptz => {
            let times = values.iter().map(|value| match value {
                Value::Null => Ok(None),
                Value::Time(value) => Ok(Some(*value)),
                other => Err(unfit(sql_type, other)),
            });
            Arc::new(times.collect::<Result<TimestampMicrosecondArray>>()?.with_timezone(UTC))
        }
        SqlType::Text | SqlType::Name | SqlType::Jsonb | SqlType::Varchar(_) => {
            collect!(StringViewArray, Text, |value: &String| value.clone())
        }
        SqlType::Bytea => collect!(BinaryArray, Text, |value: &String| value.clone().into_bytes()),
        SqlType::Array(element) => list(sql_type, element, values)?,
        SqlType::SmallIntVector => list(sql_type, &SqlType::SmallInt, values)?,
        SqlType::OidVector => list(sql_type, &SqlType::Oid, values)?,
        other => return Err(Error::internal(format!("system relations have no columns of type {other}"))),
    })
}

fn list(sql_type: &SqlType, element: &SqlType, values: &[Value]) -> Result<ArrayRef> {
    let DataType::List(field) = sql_type.arrow() else { return Err(Error::internal("an array type is no list")) };
    let lists = values.iter().map(|value| match value {
        Value::Null => Ok(None),
        Value::List(elements) => Ok(Some(elements)),
        other => Err(unfit(sql_type, other)),
    });
    let lists = lists.collect::<Result<Vec<_>>>()?;
    let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.map_or(0, Vec::len)));
    let nulls: NullBuffer = lists.iter().map(Option::is_some).collect::<Vec<_>>().into();
    let elements: Vec<Value> = lists.into_iter().flatten().flatten().cloned().collect();
    Ok(Arc::new(ListArray::new(field, offsets, array(element, &elements)?, Some(nulls))))
}

/// Whole days as days, as they were written.
fn interval(micros: i64) -> IntervalMonthDayNano {
    const DAY_US: i64 = 86_400_000_000;
    match (micros % DAY_US, i32::try_from(micros / DAY_US)) {
        (0, Ok(days)) => IntervalMonthDayNano::new(0, days, 0),
        _ => IntervalMonthDayNano::new(0, 0, micros.saturating_mul(1_000)),
    }
}

fn unfit(sql_type: &SqlType, value: &Value) -> Error {
    Error::internal(format!("{value:?} is not a value of type {sql_type}"))
}
