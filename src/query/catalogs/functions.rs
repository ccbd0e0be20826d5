//! Functions of `pg_catalog` that clients call: types by name, definitions, comments, visibility, privileges, sizes.
//!
//! *Place*: the engine finds them by name ([`function`]); `query::catalogs::rewrite` writes casts to `regclass` and its like as
//! calls of the functions of these names.
//!
//! *Invariants*: a function is strict (NULL gives NULL) unless it is listed as taking NULL; it sees the objects of the
//! snapshot that the statement was bound with.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::DataType;
use chrono::DateTime;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};

use super::objects::{self, Object, PUBLIC};
use super::pg_proc::{self, Procedure};
use super::rows::{Value, array};
use super::{World, pg_type};
use crate::catalog::{Oid, Table, Unique};
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;
use crate::types::zone::Zone;

/// Whether a function is one of these, which hold the objects of a snapshot.
pub fn is_one(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<CatalogFunction>().is_some() || super::notify::is_one(function) || super::signal::is_one(function)
}

/// A function's body: one call.
type Body = fn(&World, &[ScalarValue]) -> Result<Value>;

/// What a function gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Text,
    TextList,
    Boolean,
    Integer,
    BigInt,
    Timestamptz,
    Oid,
    /// An OID for text, text for an OID: a cast to a `reg` type.
    OidOrText,
}

/// One function over one snapshot.
#[derive(Debug)]
struct CatalogFunction {
    name: &'static str,
    gives: Gives,
    body: Body,
    world: Arc<World>,
    signature: Signature,
}

const TRUE: Body = |_, _| Ok(Value::Bool(true));
const FALSE: Body = |_, _| Ok(Value::Bool(false));
const NULL: Body = |_, _| Ok(Value::Null);

/// Functions that are called with a NULL as well.
const TAKES_NULL: [&str; 2] = ["format_type", "quote_nullable"];

const FUNCTIONS: [(&str, Gives, Body); 76] = [
    // Unlike NOW() they go on while a statement runs.
    ("clock_timestamp", Gives::Timestamptz, |world, _| Ok(Value::Time(world.activity.now()))),
    ("timeofday", Gives::Text, |world, _| time_of_day(world).map(Value::from)),
    // No lock is ever held.
    ("pg_advisory_unlock_all", Gives::Text, |_, _| Ok(String::new().into())),
    ("format_type", Gives::Text, |_, args| Ok(number(args, 0).map(|oid| pg_type::format(oid as Oid, number(args, 1))).into())),
    ("pg_get_expr", Gives::Text, |_, args| Ok(text(args, 0).into())),
    ("pg_get_constraintdef", Gives::Text, |world, args| Ok(constraint_definition(world, oid(args, 0)).into())),
    ("pg_get_indexdef", Gives::Text, index_definition_of),
    ("pg_get_viewdef", Gives::Text, |world, args| {
        Ok(match object(world, args, 0)? {
            Some(Object::View(view)) => Value::from(format!("{};", view.query)),
            _ => Value::Null,
        })
    }),
    ("pg_get_userbyid", Gives::Text, |_, args| Ok(role_name(oid(args, 0)).into())),
    ("pg_get_ruledef", Gives::Text, NULL),
    ("pg_get_triggerdef", Gives::Text, NULL),
    ("pg_get_functiondef", Gives::Text, NULL),
    ("pg_get_function_result", Gives::Text, |_, args| Ok(pg_proc::by_oid(oid(args, 0)).map(Procedure::result).into())),
    ("pg_get_function_arguments", Gives::Text, |_, args| Ok(pg_proc::by_oid(oid(args, 0)).map(Procedure::arguments).into())),
    ("pg_get_function_identity_arguments", Gives::Text, |_, args| Ok(pg_proc::by_oid(oid(args, 0)).map(Procedure::arguments).into())),
    ("pg_get_statisticsobjdef_columns", Gives::Text, NULL),
    ("pg_get_partkeydef", Gives::Text, NULL),
    ("pg_get_serial_sequence", Gives::Text, NULL),
    ("obj_description", Gives::Text, NULL),
    ("col_description", Gives::Text, NULL),
    ("shobj_description", Gives::Text, NULL),
    ("pg_table_is_visible", Gives::Boolean, |world, args| {
        Ok(world.object(oid(args, 0)).map(|object| matches!(object.schema(), PUBLIC | "pg_catalog")).into())
    }),
    ("pg_type_is_visible", Gives::Boolean, TRUE),
    ("pg_function_is_visible", Gives::Boolean, TRUE),
    ("pg_collation_is_visible", Gives::Boolean, TRUE),
    ("pg_operator_is_visible", Gives::Boolean, TRUE),
    ("pg_opclass_is_visible", Gives::Boolean, TRUE),
    ("pg_conversion_is_visible", Gives::Boolean, TRUE),
    ("pg_ts_config_is_visible", Gives::Boolean, TRUE),
    ("pg_ts_dict_is_visible", Gives::Boolean, TRUE),
    ("pg_statistics_obj_is_visible", Gives::Boolean, TRUE),
    ("pg_relation_is_publishable", Gives::Boolean, FALSE),
    ("pg_is_other_temp_schema", Gives::Boolean, FALSE),
    ("pg_is_in_recovery", Gives::Boolean, FALSE),
    ("pg_my_temp_schema", Gives::Oid, |_, _| Ok(Value::Int(0))),
    ("pg_has_role", Gives::Boolean, TRUE),
    ("has_table_privilege", Gives::Boolean, TRUE),
    ("has_column_privilege", Gives::Boolean, TRUE),
    ("has_any_column_privilege", Gives::Boolean, TRUE),
    ("has_schema_privilege", Gives::Boolean, TRUE),
    ("has_database_privilege", Gives::Boolean, TRUE),
    ("has_function_privilege", Gives::Boolean, TRUE),
    ("has_sequence_privilege", Gives::Boolean, TRUE),
    ("has_tablespace_privilege", Gives::Boolean, TRUE),
    ("has_type_privilege", Gives::Boolean, TRUE),
    ("current_schemas", Gives::TextList, |_, args| {
        let implicit = matches!(args.first(), Some(ScalarValue::Boolean(Some(true))));
        let names = [implicit.then_some("pg_catalog"), Some(PUBLIC)];
        Ok(Value::List(names.into_iter().flatten().map(Value::from).collect()))
    }),
    ("quote_ident", Gives::Text, |_, args| Ok(text(args, 0).map(|name| objects::quoted(&name)).into())),
    ("quote_literal", Gives::Text, |_, args| Ok(text(args, 0).map(|value| quoted_literal(&value)).into())),
    ("quote_nullable", Gives::Text, |_, args| Ok(text(args, 0).map_or_else(|| "NULL".to_owned(), |value| quoted_literal(&value)).into())),
    ("to_regclass", Gives::Oid, |world, args| Ok(text(args, 0).and_then(|name| world.named(&name)).map(|object| object.oid()).into())),
    ("to_regtype", Gives::Oid, |_, args| Ok(text(args, 0).and_then(|name| pg_type::named(&name)).into())),
    ("to_regnamespace", Gives::Oid, |_, args| Ok(text(args, 0).and_then(|name| objects::schema_oid(&name)).into())),
    ("to_regrole", Gives::Oid, |_, args| Ok((text(args, 0).as_deref() == Some(objects::ROLE)).then_some(objects::ROLE_OID).into())),
    ("regclass", Gives::OidOrText, regclass),
    ("regtype", Gives::OidOrText, regtype),
    ("regnamespace", Gives::OidOrText, regnamespace),
    ("regrole", Gives::OidOrText, regrole),
    ("regproc", Gives::OidOrText, regproc),
    ("to_regproc", Gives::Oid, |_, args| Ok(text(args, 0).and_then(|name| only_procedure(&name).ok()).into())),
    ("pg_encoding_to_char", Gives::Text, |_, args| Ok(if number(args, 0) == Some(6) { "UTF8" } else { "" }.into())),
    ("pg_char_to_encoding", Gives::Integer, |_, args| {
        let utf8 = text(args, 0).is_some_and(|name| matches!(name.to_lowercase().replace('-', "").as_str(), "utf8" | "unicode"));
        Ok(Value::Int(if utf8 { 6 } else { -1 }))
    }),
    ("getdatabaseencoding", Gives::Text, |_, _| Ok("UTF8".into())),
    ("pg_client_encoding", Gives::Text, |_, _| Ok("UTF8".into())),
    ("pg_tablespace_location", Gives::Text, |_, _| Ok("".into())),
    ("pg_relation_size", Gives::BigInt, |world, args| sizes(world, args, |memory, files| memory + files)),
    ("pg_table_size", Gives::BigInt, |world, args| sizes(world, args, |memory, files| memory + files)),
    ("pg_total_relation_size", Gives::BigInt, |world, args| sizes(world, args, |memory, files| memory + files)),
    ("pg_indexes_size", Gives::BigInt, |world, args| sizes(world, args, |_, _| 0)),
    ("pg_database_size", Gives::BigInt, |world, _| {
        let tables = world.context.snapshot.catalog.tables();
        Ok(tables.map(|table| world.byte_counts(table.oid)).map(|(memory, files)| memory + files).sum::<u64>().into())
    }),
    ("pg_size_pretty", Gives::Text, |_, args| Ok(number(args, 0).map(pretty_size).into())),
    ("pg_stat_get_numscans", Gives::BigInt, |_, _| Ok(Value::Int(0))),
    ("pg_relation_filenode", Gives::Oid, |_, args| Ok(oid(args, 0).into())),
    ("pg_index_column_has_property", Gives::Boolean, NULL),
    ("pg_jit_available", Gives::Boolean, FALSE),
    ("inet_server_addr", Gives::Text, NULL),
    ("inet_server_port", Gives::Integer, NULL),
];

/// A function by name, over the objects of `world`.
pub fn function(name: &str, world: impl FnOnce() -> Arc<World>) -> Option<Arc<ScalarUDF>> {
    let (name, gives, body) = FUNCTIONS.iter().find(|(known, _, _)| *known == name)?;
    let volatility = if is_volatile(name) { Volatility::Volatile } else { Volatility::Stable };
    let signature = Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], volatility);
    Some(Arc::new(ScalarUDF::new_from_impl(CatalogFunction { name, gives: *gives, body: *body, world: world(), signature })))
}

impl CatalogFunction {
    fn result(&self, first: Option<&DataType>) -> SqlType {
        match self.gives {
            Gives::Text => SqlType::Text,
            Gives::TextList => SqlType::Array(Box::new(SqlType::Text)),
            Gives::Boolean => SqlType::Boolean,
            Gives::Integer => SqlType::Integer,
            Gives::BigInt => SqlType::BigInt,
            Gives::Timestamptz => SqlType::Timestamptz,
            Gives::Oid => SqlType::Oid,
            Gives::OidOrText if first.is_some_and(is_text) => SqlType::Oid,
            Gives::OidOrText => SqlType::Text,
        }
    }

    fn call(&self, arguments: &[ScalarValue]) -> Result<Value> {
        if arguments.iter().any(ScalarValue::is_null) && !TAKES_NULL.contains(&self.name) {
            return Ok(Value::Null);
        }
        (self.body)(&self.world, arguments)
    }
}

impl ScalarUDFImpl for CatalogFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> datafusion::error::Result<DataType> {
        Ok(self.result(types.first()).arrow())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> datafusion::error::Result<ColumnarValue> {
        let result = self.result(args.args.first().map(ColumnarValue::data_type).as_ref());
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_))) && !is_volatile(self.name);
        let calls = if constant { 1 } else { args.number_rows };
        let mut values = Vec::with_capacity(calls);
        let mut arguments = Vec::with_capacity(args.args.len());
        for row in 0..calls {
            arguments.clear();
            for value in &args.args {
                arguments.push(match value {
                    ColumnarValue::Scalar(value) => value.clone(),
                    ColumnarValue::Array(values) => ScalarValue::try_from_array(values, row)?,
                });
            }
            values.push(self.call(&arguments)?);
        }
        let values = array(&result, &values)?;
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?));
        }
        Ok(ColumnarValue::Array(values))
    }
}

impl PartialEq for CatalogFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for CatalogFunction {}

impl Hash for CatalogFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

fn is_volatile(name: &str) -> bool {
    matches!(name, "clock_timestamp" | "timeofday")
}

/// The clock as PostgreSQL's timeofday() shows it: `Wed May 01 12:30:00.123456 2024 UTC`.
fn time_of_day(world: &World) -> Result<String> {
    let zone = Zone::parse(&world.context.time_zone)?;
    let now = world.activity.now();
    let offset = zone.offset_seconds(now);
    let local = DateTime::from_timestamp_micros(now + i64::from(offset) * 1_000_000);
    let local = local.ok_or_else(|| Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"))?;
    let name = if zone == Zone::UTC { "UTC".to_owned() } else { format!("{:+03}:{:02}", offset / 3600, offset.abs() / 60 % 60) };
    Ok(format!("{} {name}", local.format("%a %b %d %H:%M:%S%.6f %Y")))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn text(arguments: &[ScalarValue], at: usize) -> Option<String> {
    arguments.get(at)?.try_as_str().flatten().map(str::to_owned)
}

/// An integer, or text that is one.
fn number(arguments: &[ScalarValue], at: usize) -> Option<i64> {
    let value = arguments.get(at)?;
    match value.try_as_str() {
        Some(text) => text?.trim().parse().ok(),
        None => match value.cast_to(&DataType::Int64).ok()? {
            ScalarValue::Int64(number) => number,
            _ => None,
        },
    }
}

fn oid(arguments: &[ScalarValue], at: usize) -> Oid {
    number(arguments, at).and_then(|oid| Oid::try_from(oid).ok()).unwrap_or(0)
}

/// The object that an OID or a name stands for. A name that nothing has is an error, an OID is not.
fn object<'a>(world: &'a World, arguments: &[ScalarValue], at: usize) -> Result<Option<Object<'a>>> {
    match (number(arguments, at), text(arguments, at)) {
        (Some(oid), _) => Ok(Oid::try_from(oid).ok().and_then(|oid| world.object(oid))),
        (None, Some(name)) => world.named(&name).map(Some).ok_or_else(|| missing_relation(&name)),
        (None, None) => Ok(None),
    }
}

fn missing_relation(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
}

fn role_name(oid: Oid) -> String {
    if oid == objects::ROLE_OID { objects::ROLE.to_owned() } else { format!("unknown (OID={oid})") }
}

fn constraint_definition(world: &World, oid: Oid) -> Option<String> {
    let check = world.checks().find(|(_, check, _)| *check == oid).map(|(_, _, check)| format!("CHECK ({})", check.expression));
    let unique = || world.uniques().find(|(table, n, _)| objects::unique_oid(table.oid, *n) == oid);
    check.or_else(|| unique().map(|(table, _, unique)| format!("{} ({})", objects::key_kind(unique), objects::key_list(table, unique))))
}

/// The statement that would make the index of a constraint.
pub fn index_definition(table: &Table, unique: &Unique) -> String {
    let (name, columns) = (objects::quoted(&unique.name), objects::key_list(table, unique));
    format!("CREATE UNIQUE INDEX {name} ON {PUBLIC}.{} USING btree ({columns})", objects::quoted(&table.name))
}

/// `pg_get_indexdef(index [, column, pretty])`: the statement, or one column's name.
fn index_definition_of(world: &World, arguments: &[ScalarValue]) -> Result<Value> {
    let Some(Object::Index(table, unique, _)) = world.object(oid(arguments, 0)) else { return Ok(Value::Null) };
    let column = number(arguments, 1).and_then(|column| usize::try_from(column).ok()).unwrap_or(0);
    Ok(match column {
        0 => index_definition(table, unique).into(),
        _ => objects::key_columns(table, unique).nth(column - 1).map(|column| column.name.as_str()).into(),
    })
}

fn regclass(world: &World, arguments: &[ScalarValue]) -> Result<Value> {
    let name = |oid: Oid| match world.object(oid) {
        Some(object) if matches!(object.schema(), PUBLIC | "pg_catalog") => objects::quoted(&object.name()),
        Some(object) => format!("{}.{}", object.schema(), objects::quoted(&object.name())),
        None if oid == 0 => "-".to_owned(),
        None => oid.to_string(),
    };
    match text(arguments, 0) {
        None => Ok(name(oid(arguments, 0)).into()),
        Some(written) => match written.parse::<Oid>() {
            Ok(oid) => Ok(oid.into()),
            Err(_) => world.named(&written).map(|object| object.oid().into()).ok_or_else(|| missing_relation(&written)),
        },
    }
}

fn regtype(_: &World, arguments: &[ScalarValue]) -> Result<Value> {
    let missing = |name: &str| Error::new(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"));
    match text(arguments, 0) {
        None => Ok(pg_type::format(oid(arguments, 0), None).into()),
        Some(written) => match written.parse::<Oid>() {
            Ok(oid) => Ok(oid.into()),
            Err(_) => pg_type::named(&written).map(Value::from).ok_or_else(|| missing(&written)),
        },
    }
}

/// 0 is no function and written `-`.
fn regproc(_: &World, arguments: &[ScalarValue]) -> Result<Value> {
    let name = |oid: Oid| match pg_proc::by_oid(oid) {
        Some(known) => known.name.to_owned(),
        None if oid == 0 => "-".to_owned(),
        None => oid.to_string(),
    };
    match text(arguments, 0) {
        None => Ok(name(oid(arguments, 0)).into()),
        Some(written) if written == "-" => Ok(Value::Int(0)),
        Some(written) => match written.parse::<Oid>() {
            Ok(oid) => Ok(oid.into()),
            Err(_) => only_procedure(&written).map(Value::from),
        },
    }
}

/// The OID of the function of a name. 42725 where there are several, 42883 where there is none.
fn only_procedure(name: &str) -> Result<Oid> {
    let mut found = pg_proc::named(name);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only.oid),
        (Some(_), Some(_)) => Err(Error::new(SqlState("42725"), format!("more than one function named \"{name}\""))),
        (None, _) => Err(Error::new(SqlState::UNDEFINED_FUNCTION, format!("function \"{name}\" does not exist"))),
    }
}

fn regnamespace(_: &World, arguments: &[ScalarValue]) -> Result<Value> {
    match text(arguments, 0) {
        None => {
            let oid = oid(arguments, 0);
            let name = objects::SCHEMAS.iter().find(|(_, known)| *known == oid).map(|(name, _)| (*name).to_owned());
            Ok(name.unwrap_or_else(|| oid.to_string()).into())
        }
        Some(name) => objects::schema_oid(&name)
            .map(Value::from)
            .ok_or_else(|| Error::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist"))),
    }
}

fn regrole(_: &World, arguments: &[ScalarValue]) -> Result<Value> {
    match text(arguments, 0) {
        None => Ok(role_name(oid(arguments, 0)).into()),
        Some(name) if name == objects::ROLE => Ok(objects::ROLE_OID.into()),
        Some(name) => Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))),
    }
}

fn sizes(world: &World, arguments: &[ScalarValue], size: fn(u64, u64) -> u64) -> Result<Value> {
    Ok(object(world, arguments, 0)?.map(|object| world.byte_counts(object.oid())).map(|(memory, files)| size(memory, files)).into())
}

fn quoted_literal(value: &str) -> String {
    let escaped = value.replace('\'', "''");
    if escaped.contains('\\') { format!("E'{}'", escaped.replace('\\', "\\\\")) } else { format!("'{escaped}'") }
}

/// As PostgreSQL writes a size: the largest unit with at least ten of it, rounded half up.
fn pretty_size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes.unsigned_abs() < 10 * 1024 {
        return format!("{bytes} bytes");
    }
    let mut size = bytes.unsigned_abs();
    for (index, unit) in UNITS.iter().enumerate() {
        // One bit more than needed is kept until the end, for rounding.
        size = if index == 0 { size >> 9 } else { size >> 10 };
        if size < 20 * 1024 - 1 || index + 1 == UNITS.len() {
            return format!("{}{} {unit}", if bytes < 0 { "-" } else { "" }, size.div_ceil(2));
        }
    }
    format!("{bytes} bytes")
}
