//! How the columns of a layout lie in Parquet files.
//!
//! *Place*: the encoder casts to the file types, compaction casts back; a scan leaves the casts to DataFusion's expression
//! adapter, which casts from whatever a file holds to the layout's type.
//!
//! *Invariants*: (1) every value comes back as it was; (2) files hold only types that other readers of the table format know:
//!
//! | layout | file | Delta |
//! |---|---|---|
//! | Boolean, Int16, Int32, Int64, Float32, Float64, Date32, Decimal128 | same | boolean, short, integer, long, float, double, date, decimal |
//! | Utf8View | string | string |
//! | Binary, FixedSizeBinary(16) | byte array, 16 fixed bytes | binary |
//! | Timestamp(us, UTC), Timestamp(us) | same | timestamp, timestamp_ntz |
//! | Time64(us) | Int64, microseconds since midnight | long |
//! | UInt32 (oid) | Int64 | long |
//! | Interval | string (`1 mons 2 days 3 hours ...`) | string |
//! | List | list | array |

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::display::FormatOptions;

use super::error::{ColumnarError, Result};

/// The type that a file holds for a layout's type; none when such a column cannot be stored.
pub fn file_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Utf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::FixedSizeBinary(_)
        | DataType::Decimal128(_, _)
        | DataType::Timestamp(TimeUnit::Microsecond, _) => data_type.clone(),
        DataType::Time64(TimeUnit::Microsecond) | DataType::UInt32 => DataType::Int64,
        DataType::Interval(_) => DataType::Utf8,
        DataType::List(item) => DataType::List(Arc::new(Field::new(item.name(), file_type(item.data_type())?, item.is_nullable()))),
        _ => return None,
    })
}

/// The schema of files written for `layout`, or the first column that cannot be stored.
pub fn file_schema(layout: &Schema) -> Result<SchemaRef, String> {
    let fields = layout.fields().iter().map(|field| {
        let data_type = file_type(field.data_type()).ok_or_else(|| format!("column \"{}\" of type {}", field.name(), field.data_type()))?;
        Ok(Field::new(field.name(), data_type, field.is_nullable()))
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>, String>>()?)))
}

/// Casts exactly: a value that does not fit is an error, never NULL.
pub fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(array, to, &options).map_err(ColumnarError::encoding("convert"))
}

/// The Delta type of a layout's type, as it stands in the `schemaString`.
pub fn delta_type(data_type: &DataType) -> serde_json::Value {
    use serde_json::json;
    match data_type {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 => json!("byte"),
        DataType::Int16 => json!("short"),
        DataType::Int32 => json!("integer"),
        DataType::Int64 | DataType::UInt32 | DataType::Time64(_) => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Date32 => json!("date"),
        DataType::Decimal128(precision, scale) => json!(format!("decimal({precision},{scale})")),
        DataType::Timestamp(_, Some(_)) => json!("timestamp"),
        DataType::Timestamp(_, None) => json!("timestamp_ntz"),
        DataType::Binary | DataType::FixedSizeBinary(_) => json!("binary"),
        DataType::List(item) => {
            json!({"type": "array", "elementType": delta_type(item.data_type()), "containsNull": item.is_nullable()})
        }
        // file_type() has refused everything else.
        _ => json!("string"),
    }
}

/// Whether the type, or an element of it, is a timestamp without time zone: a table feature of its own in Delta.
pub fn has_timestamp_ntz(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::List(item) => has_timestamp_ntz(item.data_type()),
        _ => false,
    }
}
