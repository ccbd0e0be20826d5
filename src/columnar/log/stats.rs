//! Statistics of a file: from its Parquet footer, and to and from the JSON of the table log.
//!
//! *Place*: the encoder takes them from the footer, the log keeps them, the scan prunes and plans with them.
//!
//! *Invariants*: (1) `min` is at most the least value and `max` at least the greatest: strings are cut at [`STRING_MAX`]
//! bytes (the greatest rounded up), everything else is exact; (2) what JSON cannot hold exactly is left out, not rounded:
//! decimals of more than 15 digits, timestamps outside the years 1 to 9999; (3) floats have none, since NaN sorts above
//! all numbers and Parquet's statistics pass over it.

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, Schema, TimeUnit};
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};
use datafusion::common::ScalarValue;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use serde::de::Error as _;
use serde_json::{Map, Value, json};

use super::super::error::{ColumnarError, Result};
use super::super::{ColumnStats, Layout};

/// Bytes of a string kept as a bound.
pub const STRING_MAX: usize = 32;

/// Decimals with a greater unscaled value do not survive a JSON reader that goes through binary floating point.
const DECIMAL_EXACT_MAX: i128 = 1_000_000_000_000_000;

/// Whether bounds of this type are kept.
fn has_bounds(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt32
            | DataType::Date32
            | DataType::Time64(TimeUnit::Microsecond)
            | DataType::Timestamp(TimeUnit::Microsecond, _)
            | DataType::Decimal128(_, _)
            | DataType::Utf8
            | DataType::Utf8View
    )
}

/// Whether a bound is known to be a value of the column, not only a bound.
pub fn is_exact(bound: &ScalarValue) -> bool {
    match bound {
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => text.len() < STRING_MAX,
        other => !other.is_null(),
    }
}

/// Statistics of all columns of `layout`, from the footer of a file just written with `file_schema`.
pub fn from_footer(layout: &Layout, file_schema: &Schema, footer: &ParquetMetaData) -> Result<Vec<Option<ColumnStats>>> {
    let groups = footer.row_groups();
    let schema = footer.file_metadata().schema_descr();
    let refused = |error| ColumnarError::encoding("describe")(error);
    layout
        .schema
        .fields()
        .iter()
        .map(|field| {
            if !has_bounds(field.data_type()) {
                return Ok(None);
            }
            let converter = StatisticsConverter::try_new(field.name(), file_schema, schema).map_err(refused)?;
            let nulls = converter.row_group_null_counts(groups).map_err(refused)?;
            if nulls.null_count() > 0 {
                return Ok(None);
            }
            let mins = converter.row_group_mins(groups).map_err(refused)?;
            let maxes = converter.row_group_maxes(groups).map_err(refused)?;
            let nulls = nulls.values().iter().sum();
            let rows: u64 = groups.iter().map(|group| group.num_rows().unsigned_abs()).sum();
            let none = ScalarValue::try_from(field.data_type()).map_err(ColumnarError::encoding("describe"))?;
            if nulls == rows {
                return Ok(Some(ColumnStats { min: none.clone(), max: none, nulls }));
            }
            // A row group of NULLs alone has no bounds, which is told from one whose bounds are missing by its count.
            let (Some(min), Some(max)) = (extreme(&mins, false)?, extreme(&maxes, true)?) else { return Ok(None) };
            let to = field.data_type();
            let min = min.cast_to(to).map_err(ColumnarError::encoding("describe"))?;
            let max = max.cast_to(to).map_err(ColumnarError::encoding("describe"))?;
            Ok(Some(ColumnStats { min, max, nulls }))
        })
        .collect()
}

fn extreme(values: &ArrayRef, greatest: bool) -> Result<Option<ScalarValue>> {
    let mut best: Option<ScalarValue> = None;
    for row in 0..values.len() {
        let value = ScalarValue::try_from_array(values, row).map_err(ColumnarError::encoding("describe"))?;
        if value.is_null() {
            continue;
        }
        let better = match &best {
            None => true,
            Some(best) if greatest => value > *best,
            Some(best) => value < *best,
        };
        if better {
            best = Some(value);
        }
    }
    Ok(best)
}

/// The `stats` of an `add` action.
pub fn to_json(schema: &Schema, rows: u64, stats: &[Option<ColumnStats>]) -> String {
    let (mut mins, mut maxes, mut nulls) = (Map::new(), Map::new(), Map::new());
    for (field, stats) in schema.fields().iter().zip(stats) {
        let Some(stats) = stats else { continue };
        nulls.insert(field.name().clone(), json!(stats.nulls));
        if let (Some(min), Some(max)) = (bound_to_json(&stats.min), bound_to_json(&stats.max)) {
            mins.insert(field.name().clone(), min);
            maxes.insert(field.name().clone(), max);
        }
    }
    json!({"numRecords": rows, "minValues": mins, "maxValues": maxes, "nullCount": nulls}).to_string()
}

fn bound_to_json(bound: &ScalarValue) -> Option<Value> {
    Some(match bound {
        ScalarValue::Int8(Some(value)) => json!(value),
        ScalarValue::Int16(Some(value)) => json!(value),
        ScalarValue::Int32(Some(value)) => json!(value),
        ScalarValue::Int64(Some(value)) => json!(value),
        ScalarValue::UInt32(Some(value)) => json!(value),
        ScalarValue::Time64Microsecond(Some(value)) => json!(value),
        ScalarValue::Date32(Some(days)) => {
            let date = NaiveDate::from_ymd_opt(1970, 1, 1)?.checked_add_signed(chrono::TimeDelta::try_days(i64::from(*days))?)?;
            if !(1..=9999).contains(&date.year()) {
                return None;
            }
            json!(date.format("%Y-%m-%d").to_string())
        }
        ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
            let time = DateTime::from_timestamp_micros(*micros)?;
            if !(1..=9999).contains(&time.year()) {
                return None;
            }
            let format = if zone.is_some() { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%S%.6f" };
            json!(time.naive_utc().format(format).to_string())
        }
        ScalarValue::Decimal128(Some(unscaled), precision, scale) if unscaled.abs() < DECIMAL_EXACT_MAX => {
            let text = Decimal128Type::format_decimal(*unscaled, *precision, *scale);
            json!(text.parse::<f64>().ok()?)
        }
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => json!(text),
        _ => return None,
    })
}

/// The rows of a file and the statistics of all columns of `schema`, from an `add` action's `stats`.
pub fn from_json(schema: &Schema, text: &str) -> serde_json::Result<(u64, Vec<Option<ColumnStats>>)> {
    let parsed: Value = serde_json::from_str(text)?;
    let rows = parsed["numRecords"].as_u64().ok_or_else(|| serde_json::Error::custom("no numRecords"))?;
    let columns = schema.fields().iter().map(|field| {
        if !has_bounds(field.data_type()) {
            return None;
        }
        let nulls = parsed["nullCount"][field.name()].as_u64()?;
        let none = ScalarValue::try_from(field.data_type()).ok()?;
        let bound = |which: &str| bound_from_json(&parsed[which][field.name()], field.data_type());
        let (min, max) = bound("minValues").zip(bound("maxValues")).unwrap_or((none.clone(), none));
        Some(ColumnStats { min, max, nulls })
    });
    Ok((rows, columns.collect()))
}

fn bound_from_json(value: &Value, data_type: &DataType) -> Option<ScalarValue> {
    Some(match data_type {
        DataType::Int8 => ScalarValue::Int8(Some(value.as_i64()?.try_into().ok()?)),
        DataType::Int16 => ScalarValue::Int16(Some(value.as_i64()?.try_into().ok()?)),
        DataType::Int32 => ScalarValue::Int32(Some(value.as_i64()?.try_into().ok()?)),
        DataType::Int64 => ScalarValue::Int64(Some(value.as_i64()?)),
        DataType::UInt32 => ScalarValue::UInt32(Some(value.as_u64()?.try_into().ok()?)),
        DataType::Time64(TimeUnit::Microsecond) => ScalarValue::Time64Microsecond(Some(value.as_i64()?)),
        DataType::Date32 => {
            let date = NaiveDate::parse_from_str(value.as_str()?, "%Y-%m-%d").ok()?;
            let days = date.signed_duration_since(NaiveDate::from_ymd_opt(1970, 1, 1)?).num_days();
            ScalarValue::Date32(Some(days.try_into().ok()?))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let text = value.as_str()?.trim_end_matches('Z');
            let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok()?;
            ScalarValue::TimestampMicrosecond(Some(time.and_utc().timestamp_micros()), zone.clone())
        }
        DataType::Decimal128(precision, scale) => {
            let unscaled = (value.as_f64()? * 10f64.powi(i32::from(*scale))).round();
            if unscaled.abs() > DECIMAL_EXACT_MAX as f64 {
                return None;
            }
            ScalarValue::Decimal128(Some(unscaled as i128), *precision, *scale)
        }
        DataType::Utf8 => ScalarValue::Utf8(Some(value.as_str()?.to_owned())),
        DataType::Utf8View => ScalarValue::Utf8View(Some(value.as_str()?.to_owned())),
        _ => return None,
    })
}

/// `stats` of a file under another schema: by name; columns that the file lacks are all NULL where
/// `is_null` says so, and unknown otherwise.
pub fn under_schema(
    from: &Schema,
    stats: &[Option<ColumnStats>],
    rows: u64,
    to: &Schema,
    is_null: &dyn Fn(&str) -> bool,
) -> Vec<Option<ColumnStats>> {
    to.fields()
        .iter()
        .map(|field| match from.index_of(field.name()) {
            Ok(index) => stats.get(index).cloned().flatten(),
            Err(_) if !is_null(field.name()) => None,
            Err(_) => {
                let none = ScalarValue::try_from(field.data_type()).ok()?;
                has_bounds(field.data_type()).then(|| ColumnStats { min: none.clone(), max: none, nulls: rows })
            }
        })
        .collect()
}

/// The least and greatest event time of a file in microseconds, where its statistics say.
pub fn micros_range(stats: &ColumnStats) -> Option<(i64, i64)> {
    Some((micros(&stats.min)?, micros(&stats.max)?))
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(Some(micros), _) => Some(*micros),
        ScalarValue::Date32(Some(days)) => Some(i64::from(*days) * super::super::cluster::DAY_US),
        _ => None,
    }
}
