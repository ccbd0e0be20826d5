//! SQL types and their Arrow form.
//!
//! *Place*: below the parser and the storage. `types::text` reads and writes PostgreSQL's text format.
//!
//! *Invariants*: (1) one Arrow type per SQL type, listed in [`SqlType::arrow`]; all strings are Utf8View, because sketches
//! and hashes of Utf8 and Utf8View differ; (2) a field that stands for a type which Arrow cannot tell apart (uuid, json,
//! varchar(40)) carries its name in the metadata under [`TYPE_KEY`].

pub mod binary;
pub mod copy;
pub mod text;
pub mod window;
pub mod zone;

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use serde::{Deserialize, Serialize};

/// Arrow field metadata key that holds the SQL type's name, such as `varchar(40)`.
pub const TYPE_KEY: &str = "verus.type";

/// Hidden column of every event table: the row's LSN (Int64).
pub const LSN_COLUMN: &str = "_lsn";

/// The time zone of every timestamptz array.
pub const UTC: &str = "UTC";

/// Precision and scale of a bare `numeric`.
pub const NUMERIC_DEFAULT: (u8, i8) = (38, 9);

/// A SQL type as declared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the variants are SQL's own names")]
pub enum SqlType {
    Boolean,
    SmallInt,
    Integer,
    BigInt,
    Real,
    Double,
    /// Precision 1..=38 and scale 0..=precision; none for bare `numeric`.
    Numeric(Option<(u8, i8)>),
    Text,
    /// Greatest number of characters, or none.
    Varchar(Option<u32>),
    /// Blank-padded; stored unpadded.
    Char(u32),
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Json,
    Jsonb,
    Oid,
    Name,
    Array(Box<SqlType>),
    /// `int2vector`: an array of smallint that the system catalogs have, shown as `1 2`.
    SmallIntVector,
    /// `oidvector`: the same of oid.
    OidVector,
}

impl SqlType {
    /// The one Arrow type that holds values of this SQL type.
    pub fn arrow(&self) -> DataType {
        match self {
            SqlType::Boolean => DataType::Boolean,
            SqlType::SmallInt => DataType::Int16,
            SqlType::Integer => DataType::Int32,
            SqlType::BigInt => DataType::Int64,
            SqlType::Real => DataType::Float32,
            SqlType::Double => DataType::Float64,
            SqlType::Numeric(limits) => {
                let (precision, scale) = limits.unwrap_or(NUMERIC_DEFAULT);
                DataType::Decimal128(precision, scale)
            }
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Jsonb | SqlType::Name => DataType::Utf8View,
            SqlType::Bytea => DataType::Binary,
            SqlType::Uuid => DataType::FixedSizeBinary(16),
            SqlType::Date => DataType::Date32,
            SqlType::Time => DataType::Time64(TimeUnit::Microsecond),
            SqlType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            SqlType::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            SqlType::Oid => DataType::UInt32,
            SqlType::Array(element) => DataType::List(Field::new("item", element.arrow(), true).with_metadata(element.metadata()).into()),
            SqlType::SmallIntVector => SqlType::Array(Box::new(SqlType::SmallInt)).arrow(),
            SqlType::OidVector => SqlType::Array(Box::new(SqlType::Oid)).arrow(),
        }
    }

    /// The Arrow field of a column of this type, with [`TYPE_KEY`] where Arrow alone is ambiguous.
    pub fn field(&self, name: &str, nullable: bool) -> Field {
        Field::new(name, self.arrow(), nullable).with_metadata(self.metadata())
    }

    /// The type of the elements, where values are arrays.
    pub fn element(&self) -> Option<&SqlType> {
        match self {
            SqlType::Array(element) => Some(element),
            SqlType::SmallIntVector => Some(&SqlType::SmallInt),
            SqlType::OidVector => Some(&SqlType::Oid),
            _ => None,
        }
    }

    /// Whether it is an array whose text is its elements with spaces between.
    pub fn is_vector(&self) -> bool {
        matches!(self, SqlType::SmallIntVector | SqlType::OidVector)
    }

    fn metadata(&self) -> HashMap<String, String> {
        match self {
            SqlType::Varchar(_)
            | SqlType::Char(_)
            | SqlType::Uuid
            | SqlType::Json
            | SqlType::Jsonb
            | SqlType::Name
            | SqlType::SmallIntVector
            | SqlType::OidVector
            | SqlType::Numeric(None) => HashMap::from([(TYPE_KEY.to_owned(), self.to_string())]),
            _ => HashMap::new(),
        }
    }

    /// The SQL type of an Arrow field: from [`TYPE_KEY`] when present and fitting, else from the Arrow type.
    /// Unsigned and nanosecond types map to the nearest SQL type; unknown ones to text.
    pub fn of_field(field: &Field) -> SqlType {
        if let Some(declared) = field.metadata().get(TYPE_KEY).and_then(|name| SqlType::parse(name))
            && declared.arrow() == *field.data_type()
        {
            return declared;
        }
        SqlType::of_arrow(field.data_type())
    }

    /// The SQL type that shows an Arrow type to a client.
    pub fn of_arrow(data_type: &DataType) -> SqlType {
        match data_type {
            DataType::Boolean => SqlType::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => SqlType::SmallInt,
            DataType::Int32 | DataType::UInt16 => SqlType::Integer,
            DataType::Int64 | DataType::UInt64 => SqlType::BigInt,
            DataType::UInt32 => SqlType::Oid,
            DataType::Float16 | DataType::Float32 => SqlType::Real,
            DataType::Float64 => SqlType::Double,
            DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => SqlType::Numeric(Some((*p, *s))),
            DataType::Decimal256(_, _) => SqlType::Numeric(None),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => SqlType::Bytea,
            DataType::FixedSizeBinary(16) => SqlType::Uuid,
            DataType::FixedSizeBinary(_) => SqlType::Bytea,
            DataType::Date32 | DataType::Date64 => SqlType::Date,
            DataType::Time32(_) | DataType::Time64(_) => SqlType::Time,
            DataType::Timestamp(_, None) => SqlType::Timestamp,
            DataType::Timestamp(_, Some(_)) => SqlType::Timestamptz,
            DataType::Interval(_) | DataType::Duration(_) => SqlType::Interval,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                SqlType::Array(Box::new(SqlType::of_field(item)))
            }
            DataType::Dictionary(_, values) => SqlType::of_arrow(values),
            _ => SqlType::Text,
        }
    }

    /// Reads a type name as [`SqlType`]'s `Display` writes it (`numeric(12,2)`, `varchar(40)`, `text[]`).
    pub fn parse(name: &str) -> Option<SqlType> {
        if let Some(element) = name.strip_suffix("[]") {
            return Some(SqlType::Array(Box::new(SqlType::parse(element)?)));
        }
        let (base, arguments) = match name.split_once('(') {
            Some((base, rest)) => (base, Some(rest.strip_suffix(')')?)),
            None => (name, None),
        };
        Some(match (base, arguments) {
            ("boolean", None) => SqlType::Boolean,
            ("smallint", None) => SqlType::SmallInt,
            ("integer", None) => SqlType::Integer,
            ("bigint", None) => SqlType::BigInt,
            ("real", None) => SqlType::Real,
            ("double precision", None) => SqlType::Double,
            ("numeric", None) => SqlType::Numeric(None),
            ("numeric", Some(limits)) => {
                let (precision, scale) = limits.split_once(',')?;
                SqlType::Numeric(Some((precision.trim().parse().ok()?, scale.trim().parse().ok()?)))
            }
            ("text", None) => SqlType::Text,
            ("character varying", None) => SqlType::Varchar(None),
            ("character varying", Some(length)) => SqlType::Varchar(Some(length.parse().ok()?)),
            ("character", Some(length)) => SqlType::Char(length.parse().ok()?),
            ("bytea", None) => SqlType::Bytea,
            ("uuid", None) => SqlType::Uuid,
            ("date", None) => SqlType::Date,
            ("time without time zone", None) => SqlType::Time,
            ("timestamp without time zone", None) => SqlType::Timestamp,
            ("timestamp with time zone", None) => SqlType::Timestamptz,
            ("interval", None) => SqlType::Interval,
            ("json", None) => SqlType::Json,
            ("jsonb", None) => SqlType::Jsonb,
            ("oid", None) => SqlType::Oid,
            ("name", None) => SqlType::Name,
            ("int2vector", None) => SqlType::SmallIntVector,
            ("oidvector", None) => SqlType::OidVector,
            _ => return None,
        })
    }

    /// PostgreSQL's OID of the type (`pg_type.oid`).
    pub fn oid(&self) -> u32 {
        match self {
            SqlType::Boolean => 16,
            SqlType::Bytea => 17,
            SqlType::Name => 19,
            SqlType::BigInt => 20,
            SqlType::SmallInt => 21,
            SqlType::SmallIntVector => 22,
            SqlType::Integer => 23,
            SqlType::Text => 25,
            SqlType::Oid => 26,
            SqlType::OidVector => 30,
            SqlType::Json => 114,
            SqlType::Real => 700,
            SqlType::Double => 701,
            SqlType::Char(_) => 1042,
            SqlType::Varchar(_) => 1043,
            SqlType::Date => 1082,
            SqlType::Time => 1083,
            SqlType::Timestamp => 1114,
            SqlType::Timestamptz => 1184,
            SqlType::Interval => 1186,
            SqlType::Numeric(_) => 1700,
            SqlType::Uuid => 2950,
            SqlType::Jsonb => 3802,
            SqlType::Array(element) => element.array_oid(),
        }
    }

    fn array_oid(&self) -> u32 {
        match self {
            SqlType::Boolean => 1000,
            SqlType::Bytea => 1001,
            SqlType::Name => 1003,
            SqlType::SmallInt => 1005,
            SqlType::SmallIntVector => 1006,
            SqlType::Integer => 1007,
            SqlType::Text => 1009,
            SqlType::Char(_) => 1014,
            SqlType::Varchar(_) => 1015,
            SqlType::BigInt => 1016,
            SqlType::Real => 1021,
            SqlType::Double => 1022,
            SqlType::Oid => 1028,
            SqlType::OidVector => 1013,
            SqlType::Json => 199,
            SqlType::Timestamp => 1115,
            SqlType::Date => 1182,
            SqlType::Time => 1183,
            SqlType::Timestamptz => 1185,
            SqlType::Interval => 1187,
            SqlType::Numeric(_) => 1231,
            SqlType::Uuid => 2951,
            SqlType::Jsonb => 3807,
            SqlType::Array(inner) => inner.array_oid(),
        }
    }

    /// PostgreSQL's type modifier (`pg_attribute.atttypmod`): -1 where there is none.
    pub fn typmod(&self) -> i32 {
        match self {
            SqlType::Numeric(Some((precision, scale))) => ((i32::from(*precision) << 16) | i32::from(*scale)) + 4,
            SqlType::Varchar(Some(length)) | SqlType::Char(length) => i32::try_from(*length).unwrap_or(i32::MAX - 4) + 4,
            SqlType::Array(element) => element.typmod(),
            _ => -1,
        }
    }

    /// Bytes of a value on the wire (`pg_type.typlen`): -1 where it varies.
    pub fn wire_size(&self) -> i16 {
        match self {
            SqlType::Boolean => 1,
            SqlType::SmallInt => 2,
            SqlType::Integer | SqlType::Real | SqlType::Date | SqlType::Oid => 4,
            SqlType::BigInt | SqlType::Double | SqlType::Time | SqlType::Timestamp | SqlType::Timestamptz => 8,
            SqlType::Interval | SqlType::Uuid => 16,
            SqlType::Name => 64,
            _ => -1,
        }
    }
}

/// As `format_type` writes it: `timestamp with time zone`, `numeric(12,2)`.
impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqlType::Boolean => f.write_str("boolean"),
            SqlType::SmallInt => f.write_str("smallint"),
            SqlType::Integer => f.write_str("integer"),
            SqlType::BigInt => f.write_str("bigint"),
            SqlType::Real => f.write_str("real"),
            SqlType::Double => f.write_str("double precision"),
            SqlType::Numeric(None) => f.write_str("numeric"),
            SqlType::Numeric(Some((precision, scale))) => write!(f, "numeric({precision},{scale})"),
            SqlType::Text => f.write_str("text"),
            SqlType::Varchar(None) => f.write_str("character varying"),
            SqlType::Varchar(Some(length)) => write!(f, "character varying({length})"),
            SqlType::Char(length) => write!(f, "character({length})"),
            SqlType::Bytea => f.write_str("bytea"),
            SqlType::Uuid => f.write_str("uuid"),
            SqlType::Date => f.write_str("date"),
            SqlType::Time => f.write_str("time without time zone"),
            SqlType::Timestamp => f.write_str("timestamp without time zone"),
            SqlType::Timestamptz => f.write_str("timestamp with time zone"),
            SqlType::Interval => f.write_str("interval"),
            SqlType::Json => f.write_str("json"),
            SqlType::Jsonb => f.write_str("jsonb"),
            SqlType::Oid => f.write_str("oid"),
            SqlType::Name => f.write_str("name"),
            SqlType::Array(element) => write!(f, "{element}[]"),
            SqlType::SmallIntVector => f.write_str("int2vector"),
            SqlType::OidVector => f.write_str("oidvector"),
        }
    }
}
