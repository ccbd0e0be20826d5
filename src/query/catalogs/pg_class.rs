//! What `\d` of psql reads about tables: `pg_class`, `pg_attribute`, `pg_attrdef`, `pg_constraint`, `pg_index`.

use super::World;
use super::objects::{self, Object};
use super::pg_type;
use super::rows::{Rows, Value};
use crate::catalog::{Oid, Unique};

/// Fills `pg_class`.
pub fn classes(world: &World, rows: &mut Rows) {
    for object in world.objects() {
        let (memory, files) = world.row_counts(object.oid());
        let table = match object {
            Object::Table(table) => Some(table),
            _ => None,
        };
        let (access_method, populated) = match object {
            Object::Index(..) => (objects::BTREE_OID, true),
            Object::System(relation) if relation.kind == "v" => (0, true),
            Object::System(_) => (objects::HEAP_OID, true),
            Object::Table(_) => (objects::ACCESS_METHOD_OID, true),
            Object::View(view) => (objects::ACCESS_METHOD_OID, world.is_populated(view)),
        };
        let options = match object {
            Object::View(view) => Some(objects::view_options(view)),
            _ => table.map(objects::options),
        };
        let options = options.filter(|options| !options.is_empty());
        let estimate = if table.is_some() { (memory + files) as f64 } else { -1.0 };
        rows.add([
            ("oid", object.oid().into()),
            ("relname", object.name().into()),
            ("relnamespace", objects::schema_oid(object.schema()).into()),
            ("relowner", objects::ROLE_OID.into()),
            ("relam", access_method.into()),
            ("relfilenode", object.oid().into()),
            ("relpages", (world.byte_counts(object.oid()).1 / 8192).min(i32::MAX as u64).into()),
            ("reltuples", Value::Float(estimate)),
            ("relhasindex", table.is_some_and(|table| !table.unique.is_empty()).into()),
            ("relpersistence", "p".into()),
            ("relkind", object.kind().into()),
            ("relnatts", column_count(object).into()),
            ("relchecks", table.map_or(0, |table| table.checks.len()).into()),
            ("relhasrules", matches!(object.kind(), "v" | "m").into()),
            ("relispopulated", populated.into()),
            ("relreplident", if matches!(object, Object::Table(_) | Object::View(_)) { "d" } else { "n" }.into()),
            ("reloptions", options.map_or(Value::Null, Value::List)),
        ]);
    }
}

fn column_count(object: Object<'_>) -> usize {
    match object {
        Object::Table(table) => table.columns.len(),
        Object::View(view) => view.columns.len(),
        Object::Index(_, unique, _) => unique.columns.len(),
        Object::System(relation) => relation.columns.len(),
    }
}

/// What `pg_attribute` says of one column.
struct Attribute<'a> {
    relation: Oid,
    name: &'a str,
    number: usize,
    type_oid: Oid,
    typmod: i32,
    not_null: bool,
    has_default: bool,
    generated: bool,
}

/// Fills `pg_attribute`.
pub fn attributes(world: &World, rows: &mut Rows) {
    for object in world.objects() {
        let user = |index: usize, column: &crate::catalog::Column, rows: &mut Rows| {
            let attribute = Attribute {
                relation: object.oid(),
                name: &column.name,
                number: index + 1,
                type_oid: column.sql_type.oid(),
                typmod: column.sql_type.typmod(),
                not_null: !column.nullable,
                has_default: column.default.is_some() || column.generated.is_some(),
                generated: column.generated.is_some(),
            };
            add_attribute(&attribute, rows);
        };
        match object {
            Object::Table(table) => table.columns.iter().enumerate().for_each(|(index, column)| user(index, column, rows)),
            Object::View(view) => view.columns.iter().enumerate().for_each(|(index, column)| user(index, column, rows)),
            Object::Index(table, unique, _) => {
                for (index, column) in objects::key_columns(table, unique).enumerate() {
                    let bare = crate::catalog::Column { default: None, generated: None, fill: None, nullable: true, ..column.clone() };
                    user(index, &bare, rows);
                }
            }
            Object::System(relation) => {
                for (index, column) in relation.columns.iter().enumerate() {
                    let attribute = Attribute {
                        relation: relation.oid,
                        name: column.name,
                        number: index + 1,
                        type_oid: column.type_oid,
                        typmod: -1,
                        not_null: column.not_null,
                        has_default: false,
                        generated: false,
                    };
                    add_attribute(&attribute, rows);
                }
            }
        }
    }
}

fn add_attribute(attribute: &Attribute<'_>, rows: &mut Rows) {
    let element = pg_type::element_of(attribute.type_oid);
    let known = pg_type::by_oid(attribute.type_oid);
    rows.add([
        ("attrelid", attribute.relation.into()),
        ("attname", attribute.name.into()),
        ("atttypid", attribute.type_oid.into()),
        ("attstattarget", (-1_i64).into()),
        ("attlen", known.map_or(-1, |known| known.length).into()),
        ("attnum", attribute.number.into()),
        ("attndims", i64::from(element.is_some()).into()),
        ("attcacheoff", (-1_i64).into()),
        ("atttypmod", attribute.typmod.into()),
        ("attbyval", known.is_some_and(pg_type::Type::by_value).into()),
        ("attalign", known.map_or("i", |known| known.align).into()),
        ("attstorage", known.map_or("x", |known| known.storage).into()),
        ("attnotnull", attribute.not_null.into()),
        ("atthasdef", attribute.has_default.into()),
        ("attgenerated", if attribute.generated { "s" } else { "" }.into()),
        ("attislocal", true.into()),
        ("attcollation", known.or(element).map_or(0, |known| known.collation).into()),
    ]);
}

/// Fills `pg_attrdef`. `adbin` is the expression's text.
pub fn defaults(world: &World, rows: &mut Rows) {
    for table in world.context.snapshot.catalog.tables() {
        for (index, column) in table.columns.iter().enumerate() {
            let Some(expression) = column.generated.as_ref().or(column.default.as_ref()) else { continue };
            rows.add([
                ("oid", objects::default_oid(table.oid, index).into()),
                ("adrelid", table.oid.into()),
                ("adnum", (index + 1).into()),
                ("adbin", expression.as_str().into()),
            ]);
        }
    }
}

/// Fills `pg_constraint`: CHECK constraints and primary keys.
pub fn constraints(world: &World, rows: &mut Rows) {
    for (table, oid, check) in world.checks() {
        rows.add([
            ("oid", oid.into()),
            ("conname", check.name.as_str().into()),
            ("connamespace", objects::PUBLIC_OID.into()),
            ("contype", "c".into()),
            ("convalidated", true.into()),
            ("conrelid", table.oid.into()),
            ("conislocal", true.into()),
            ("connoinherit", false.into()),
            ("conbin", check.expression.as_str().into()),
        ]);
    }
    for (table, n, unique) in world.uniques() {
        rows.add([
            ("oid", objects::unique_oid(table.oid, n).into()),
            ("conname", unique.name.as_str().into()),
            ("connamespace", objects::PUBLIC_OID.into()),
            ("contype", if unique.primary { "p" } else { "u" }.into()),
            ("convalidated", true.into()),
            ("conrelid", table.oid.into()),
            ("conindid", objects::index_oid(table.oid, n).into()),
            ("conislocal", true.into()),
            ("connoinherit", true.into()),
            ("conkey", key_numbers(unique)),
        ]);
    }
}

/// Fills `pg_index`.
pub fn indexes(world: &World, rows: &mut Rows) {
    for (table, n, unique) in world.uniques() {
        let zeros = || Value::List(vec![Value::Int(0); unique.columns.len()]);
        rows.add([
            ("indexrelid", objects::index_oid(table.oid, n).into()),
            ("indrelid", table.oid.into()),
            ("indnatts", unique.columns.len().into()),
            ("indnkeyatts", unique.columns.len().into()),
            ("indisunique", true.into()),
            ("indisprimary", unique.primary.into()),
            ("indimmediate", true.into()),
            ("indisvalid", true.into()),
            ("indisready", true.into()),
            ("indislive", true.into()),
            ("indkey", key_numbers(unique)),
            ("indcollation", zeros()),
            ("indclass", zeros()),
            ("indoption", zeros()),
        ]);
    }
}

fn key_numbers(unique: &Unique) -> Value {
    Value::List(unique.columns.iter().map(|column| Value::from(column + 1)).collect())
}
