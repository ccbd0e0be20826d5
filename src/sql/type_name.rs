//! SQL type names to [`SqlType`].
//!
//! *Place*: called by `sql::statement` for columns and PREPARE, and by `query` for casts.

use sqlparser::ast::{ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, ObjectName, TimezoneInfo};

use super::reader::name_of;
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

const PRECISION_MAX: u64 = 38;
/// PostgreSQL's greatest declared precision of numeric and length of varchar.
const POSTGRES_PRECISION_MAX: u64 = 1_000;
const LENGTH_MAX: u64 = 10_485_760;

/// The type that a name in a statement stands for. 42704 for an unknown one, 0A000 for one of PostgreSQL's that Verus
/// does not have, 22023 for impossible limits.
pub fn sql_type(name: &DataType) -> Result<SqlType> {
    Ok(match name {
        DataType::Boolean | DataType::Bool => SqlType::Boolean,
        DataType::SmallInt(None) | DataType::Int2(None) => SqlType::SmallInt,
        DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) => SqlType::Integer,
        DataType::BigInt(None) | DataType::Int8(None) => SqlType::BigInt,
        DataType::Real | DataType::Float4 => SqlType::Real,
        DataType::Float8 | DataType::DoublePrecision => SqlType::Double,
        DataType::Float(bits) => float(bits)?,
        DataType::Numeric(limits) | DataType::Decimal(limits) | DataType::Dec(limits) => numeric(limits)?,
        DataType::Text => SqlType::Text,
        DataType::Varchar(length) | DataType::CharacterVarying(length) | DataType::CharVarying(length) => {
            SqlType::Varchar(characters(length, "varchar")?)
        }
        DataType::Char(length) | DataType::Character(length) => SqlType::Char(characters(length, "char")?.unwrap_or(1)),
        DataType::Bytea => SqlType::Bytea,
        DataType::Uuid => SqlType::Uuid,
        DataType::Date => SqlType::Date,
        DataType::Time(digits, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => microseconds(*digits, SqlType::Time)?,
        DataType::Timestamp(digits, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => microseconds(*digits, SqlType::Timestamp)?,
        DataType::Timestamp(digits, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => microseconds(*digits, SqlType::Timestamptz)?,
        DataType::Interval { fields: None, precision } => microseconds(*precision, SqlType::Interval)?,
        DataType::JSON => SqlType::Json,
        DataType::JSONB => SqlType::Jsonb,
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, _)) => match sql_type(element)? {
            // Every dimension is of the same PostgreSQL type.
            array @ SqlType::Array(_) => array,
            element => SqlType::Array(Box::new(element)),
        },
        DataType::Custom(custom, modifiers) => custom_type(custom, modifiers)?,
        DataType::Time(..) | DataType::Interval { .. } | DataType::Regclass | DataType::TsVector | DataType::TsQuery => {
            return Err(unsupported(&name.to_string()));
        }
        DataType::Bit(_) | DataType::BitVarying(_) | DataType::VarBit(_) => return Err(unsupported(&name.to_string())),
        other => return Err(unknown(&other.to_string())),
    })
}

fn custom_type(custom: &ObjectName, modifiers: &[String]) -> Result<SqlType> {
    let name = name_of(custom)?;
    if name.schema.as_deref().is_some_and(|schema| schema != "pg_catalog") {
        return Err(unknown(&custom.to_string()));
    }
    Ok(match (name.name.as_str(), modifiers) {
        ("int2", []) => SqlType::SmallInt,
        ("int4", []) => SqlType::Integer,
        ("int8", []) => SqlType::BigInt,
        ("float4", []) => SqlType::Real,
        ("float8", []) => SqlType::Double,
        ("bool", []) => SqlType::Boolean,
        ("bpchar", []) => SqlType::Text,
        ("bpchar", [length]) => SqlType::Char(characters(&length_of(length), "char")?.unwrap_or(1)),
        ("varchar", []) => SqlType::Varchar(None),
        ("varchar", [length]) => SqlType::Varchar(characters(&length_of(length), "varchar")?),
        ("text", []) => SqlType::Text,
        ("numeric" | "decimal", []) => SqlType::Numeric(None),
        ("uuid", []) => SqlType::Uuid,
        ("date", []) => SqlType::Date,
        ("time", []) => SqlType::Time,
        ("timestamp", []) => SqlType::Timestamp,
        ("timestamptz", []) => SqlType::Timestamptz,
        ("interval", []) => SqlType::Interval,
        ("bytea", []) => SqlType::Bytea,
        ("json", []) => SqlType::Json,
        ("jsonb", []) => SqlType::Jsonb,
        ("oid", []) => SqlType::Oid,
        ("name", []) => SqlType::Name,
        ("serial" | "bigserial" | "smallserial" | "serial2" | "serial4" | "serial8", []) => {
            return Err(Error::unsupported(format!("type {} is not supported", name.name))
                .hint("Declare bigint or uuid and let the client number the rows."));
        }
        ("money" | "inet" | "cidr" | "macaddr" | "xml" | "timetz" | "point" | "hstore" | "citext" | "regclass" | "regtype", _) => {
            return Err(unsupported(&name.name));
        }
        (other, _) => return Err(unknown(other)),
    })
}

fn length_of(modifier: &str) -> Option<CharacterLength> {
    Some(CharacterLength::IntegerLength { length: modifier.parse().unwrap_or(0), unit: None })
}

fn unknown(name: &str) -> Error {
    let name = name.to_ascii_lowercase();
    let base = name.split('(').next().unwrap_or_default().trim();
    Error::new(SqlState::UNDEFINED_OBJECT, format!("type \"{base}\" does not exist"))
}

fn unsupported(name: &str) -> Error {
    Error::unsupported(format!("type {} is not supported", name.to_ascii_lowercase()))
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn float(bits: &ExactNumberInfo) -> Result<SqlType> {
    match bits {
        ExactNumberInfo::None => Ok(SqlType::Double),
        ExactNumberInfo::Precision(0) => Err(invalid("precision for type float must be at least 1 bit".into())),
        ExactNumberInfo::Precision(1..=24) => Ok(SqlType::Real),
        ExactNumberInfo::Precision(25..=53) => Ok(SqlType::Double),
        _ => Err(invalid("precision for type float must be less than 54 bits".into())),
    }
}

fn numeric(limits: &ExactNumberInfo) -> Result<SqlType> {
    let (precision, scale) = match limits {
        ExactNumberInfo::None => return Ok(SqlType::Numeric(None)),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    if !(1..=POSTGRES_PRECISION_MAX).contains(&precision) {
        return Err(invalid(format!("NUMERIC precision {precision} must be between 1 and {POSTGRES_PRECISION_MAX}")));
    }
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(narrow), Ok(scale)) if precision <= PRECISION_MAX && scale >= 0 && scale.cast_unsigned() <= narrow => {
            Ok(SqlType::Numeric(Some((narrow, scale))))
        }
        _ if precision > PRECISION_MAX => Err(Error::unsupported(format!("NUMERIC precision {precision} is not supported"))
            .hint(format!("The greatest precision is {PRECISION_MAX}."))),
        _ => Err(Error::unsupported(format!("NUMERIC scale {scale} is not supported"))
            .hint(format!("The scale may be between 0 and the precision {precision}."))),
    }
}

fn characters(length: &Option<CharacterLength>, name: &str) -> Result<Option<u32>> {
    match length {
        None => Ok(None),
        Some(CharacterLength::IntegerLength { length: 0, .. }) => Err(invalid(format!("length for type {name} must be at least 1"))),
        Some(CharacterLength::IntegerLength { length, .. }) if *length <= LENGTH_MAX => Ok(u32::try_from(*length).ok()),
        Some(_) => Err(invalid(format!("length for type {name} cannot exceed {LENGTH_MAX}"))),
    }
}

/// Values keep microseconds: fewer digits would round, which nobody does here; more mean six, as in PostgreSQL.
fn microseconds(digits: Option<u64>, sql_type: SqlType) -> Result<SqlType> {
    match digits {
        None | Some(6..) => Ok(sql_type),
        Some(digits) => Err(Error::unsupported(format!("{sql_type} with precision {digits} is not supported"))
            .hint("Times are kept to the microsecond; leave the precision out.")),
    }
}
