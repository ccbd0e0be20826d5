//! `pg_type`: PostgreSQL's built-in types, as declared in `types.txt`, and their arrays.

use std::sync::LazyLock;

use super::objects::{PG_CATALOG_OID, ROLE_OID};
use super::rows::{Rows, Value};
use crate::catalog::Oid;
use crate::types::SqlType;

/// A built-in type.
#[derive(Debug)]
pub struct Type {
    /// `pg_type.oid`.
    pub oid: Oid,
    /// `pg_type.typname`.
    pub name: &'static str,
    /// Bytes of a value, -1 where it varies.
    pub length: i64,
    by_value: bool,
    kind: &'static str,
    category: &'static str,
    preferred: bool,
    element: Oid,
    array: Oid,
    functions: [&'static str; 4],
    /// `pg_type.typalign`.
    pub align: &'static str,
    /// `pg_type.typstorage`.
    pub storage: &'static str,
    /// `pg_type.typcollation`, 0 where values have no order of characters.
    pub collation: Oid,
}

static TYPES: LazyLock<Vec<Type>> = LazyLock::new(|| {
    let lines = include_str!("types.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| parse(&line.split(' ').collect::<Vec<_>>())).collect()
});

fn parse(words: &[&'static str]) -> Option<Type> {
    let [oid, name, length, by_value, kind, category, preferred, element, array, input, output, receive, send, align, storage, collation] =
        words
    else {
        return None;
    };
    Some(Type {
        oid: oid.parse().ok()?,
        name,
        length: length.parse().ok()?,
        by_value: *by_value == "t",
        kind,
        category,
        preferred: *preferred == "t",
        element: element.parse().ok()?,
        array: array.parse().ok()?,
        functions: [input, output, receive, send],
        align,
        storage,
        collation: collation.parse().ok()?,
    })
}

impl Type {
    /// Whether values are passed by value.
    pub fn by_value(&self) -> bool {
        self.by_value
    }
}

/// A type that is no array.
pub fn by_oid(oid: Oid) -> Option<&'static Type> {
    TYPES.iter().find(|known| known.oid == oid)
}

/// The element type of an array type.
pub fn element_of(array: Oid) -> Option<&'static Type> {
    TYPES.iter().find(|known| known.array == array && array != 0)
}

/// `pg_type.typname` of a type: `int4`, `_text`.
pub fn name_of(oid: Oid) -> String {
    match (by_oid(oid), element_of(oid)) {
        (Some(known), _) => known.name.to_owned(),
        (None, Some(element)) => format!("_{}", element.name),
        (None, None) => String::new(),
    }
}

/// The OID of a type as written: `int4`, `integer`, `timestamp with time zone`, `text[]`, `_text`, `pg_catalog.int4`.
pub fn named(written: &str) -> Option<Oid> {
    let folded = written.trim().trim_matches('"').to_lowercase();
    let name = folded.strip_prefix("pg_catalog.").unwrap_or(&folded).trim_matches('"');
    if let Some(element) = name.strip_suffix("[]").or_else(|| name.strip_prefix('_')) {
        return by_oid(named(element)?).map(|element| element.array).filter(|array| *array != 0);
    }
    let base = name.split_once('(').map_or(name, |(base, _)| base).trim();
    let standard = match base {
        "varchar" => "character varying",
        "timestamptz" => "timestamp with time zone",
        "timestamp" => "timestamp without time zone",
        "time" => "time without time zone",
        "decimal" | "dec" => "numeric",
        "int" => "integer",
        "float" => "double precision",
        other => other,
    };
    let known = TYPES.iter().find(|known| known.name == base).map(|known| known.oid);
    known.or_else(|| SqlType::parse(standard).map(|sql_type| sql_type.oid())).or((base == "character").then_some(1042))
}

/// `format_type(oid, typmod)`.
pub fn format(oid: Oid, typmod: Option<i64>) -> String {
    if oid == 0 {
        return "-".to_owned();
    }
    if let Some(element) = element_of(oid) {
        return format!("{}[]", format(element.oid, typmod));
    }
    let modifier = typmod.filter(|typmod| *typmod >= 4).map(|typmod| typmod - 4);
    let length = |name: &str| modifier.map_or_else(|| name.to_owned(), |length| format!("{name}({length})"));
    match oid {
        16 => "boolean".to_owned(),
        18 => "\"char\"".to_owned(),
        20 => "bigint".to_owned(),
        21 => "smallint".to_owned(),
        23 => "integer".to_owned(),
        700 => "real".to_owned(),
        701 => "double precision".to_owned(),
        1042 if typmod.is_some_and(|typmod| typmod < 0) => "bpchar".to_owned(),
        1042 => length("character"),
        1043 => length("character varying"),
        1083 => "time without time zone".to_owned(),
        1114 => "timestamp without time zone".to_owned(),
        1184 => "timestamp with time zone".to_owned(),
        1266 => "time with time zone".to_owned(),
        1560 => length("bit"),
        1562 => length("bit varying"),
        1700 => modifier.map_or_else(|| "numeric".to_owned(), |limits| format!("numeric({},{})", limits >> 16, limits & 0x7ff)),
        2276 => "\"any\"".to_owned(),
        other => by_oid(other).map_or_else(|| "???".to_owned(), |known| known.name.to_owned()),
    }
}

/// Fills `pg_type`.
pub fn fill(rows: &mut Rows) {
    for known in TYPES.iter() {
        let [input, output, receive, send] = known.functions;
        rows.add([
            ("oid", known.oid.into()),
            ("typname", known.name.into()),
            ("typnamespace", PG_CATALOG_OID.into()),
            ("typowner", ROLE_OID.into()),
            ("typlen", known.length.into()),
            ("typbyval", known.by_value.into()),
            ("typtype", known.kind.into()),
            ("typcategory", known.category.into()),
            ("typispreferred", known.preferred.into()),
            ("typisdefined", true.into()),
            ("typdelim", ",".into()),
            ("typsubscript", if known.element == 0 { "-" } else { "array_subscript_handler" }.into()),
            ("typelem", known.element.into()),
            ("typarray", known.array.into()),
            ("typinput", input.into()),
            ("typoutput", output.into()),
            ("typreceive", receive.into()),
            ("typsend", send.into()),
            ("typmodin", "-".into()),
            ("typmodout", "-".into()),
            ("typanalyze", "-".into()),
            ("typalign", known.align.into()),
            ("typstorage", known.storage.into()),
            ("typtypmod", (-1_i64).into()),
            ("typcollation", known.collation.into()),
        ]);
    }
    for element in TYPES.iter().filter(|known| known.array != 0) {
        rows.add([
            ("oid", element.array.into()),
            ("typname", format!("_{}", element.name).into()),
            ("typnamespace", PG_CATALOG_OID.into()),
            ("typowner", ROLE_OID.into()),
            ("typlen", (-1_i64).into()),
            ("typtype", Value::from(if element.kind == "p" { "p" } else { "b" })),
            ("typcategory", Value::from(if element.kind == "p" { "P" } else { "A" })),
            ("typisdefined", true.into()),
            ("typdelim", ",".into()),
            ("typsubscript", "array_subscript_handler".into()),
            ("typelem", element.oid.into()),
            ("typinput", "array_in".into()),
            ("typoutput", "array_out".into()),
            ("typreceive", "array_recv".into()),
            ("typsend", "array_send".into()),
            ("typmodin", "-".into()),
            ("typmodout", "-".into()),
            ("typanalyze", "array_typanalyze".into()),
            ("typalign", if element.align == "d" { "d" } else { "i" }.into()),
            ("typstorage", "x".into()),
            ("typtypmod", (-1_i64).into()),
            ("typcollation", element.collation.into()),
        ]);
    }
}
