//! `information_schema`, as far as clients read it.
//!
//! Materialized views are listed as views, with their columns: PostgreSQL leaves them out, but tools that browse by
//! `information_schema` would then never offer what most queries should read.

use super::World;
use super::objects::{self, DATABASE, Object, PUBLIC, ROLE};
use super::pg_type;
use super::rows::{Rows, Value};
use crate::catalog::{Column, Oid};
use crate::types::{NUMERIC_DEFAULT, SqlType};

/// Fills a relation of `information_schema`. Those that are not named here describe what Verus does not have.
pub fn fill(name: &str, world: &World, rows: &mut Rows) {
    match name {
        "information_schema_catalog_name" => rows.add([("catalog_name", DATABASE.into())]),
        "enabled_roles" => rows.add([("role_name", ROLE.into())]),
        "schemata" => schemata(rows),
        "character_sets" => character_sets(rows),
        "tables" => tables(world, rows),
        "columns" => columns(world, rows),
        "views" => views(world, rows),
        "view_table_usage" => view_tables(world, rows),
        "table_constraints" => table_constraints(world, rows),
        "check_constraints" => check_constraints(world, rows),
        "key_column_usage" | "constraint_column_usage" => key_columns(name, world, rows),
        "table_privileges" | "role_table_grants" => privileges(world, rows),
        _ => {}
    }
}

fn schemata(rows: &mut Rows) {
    for (name, _) in objects::SCHEMAS {
        rows.add([("catalog_name", DATABASE.into()), ("schema_name", name.into()), ("schema_owner", ROLE.into())]);
    }
}

fn character_sets(rows: &mut Rows) {
    rows.add([
        ("character_set_name", "UTF8".into()),
        ("character_repertoire", "UCS".into()),
        ("form_of_use", "UTF8".into()),
        ("default_collate_catalog", DATABASE.into()),
        ("default_collate_schema", "pg_catalog".into()),
        ("default_collate_name", "C".into()),
    ]);
}

fn tables(world: &World, rows: &mut Rows) {
    for object in world.objects().filter(|object| object.kind() != "i") {
        let writable = matches!(object, Object::Table(_));
        rows.add([
            ("table_catalog", DATABASE.into()),
            ("table_schema", object.schema().into()),
            ("table_name", object.name().into()),
            ("table_type", if object.kind() == "r" { "BASE TABLE" } else { "VIEW" }.into()),
            ("is_insertable_into", yes_or_no(writable)),
            ("is_typed", "NO".into()),
        ]);
    }
}

fn columns(world: &World, rows: &mut Rows) {
    for object in world.objects() {
        match object {
            Object::Table(table) => {
                table.columns.iter().enumerate().for_each(|(index, column)| add_column(object, index, column, column.sql_type.oid(), rows));
            }
            Object::View(view) => {
                view.columns.iter().enumerate().for_each(|(index, column)| add_column(object, index, column, column.sql_type.oid(), rows));
            }
            Object::Index(..) => {}
            Object::System(relation) => {
                for (index, attribute) in relation.columns.iter().enumerate() {
                    let (name, sql_type) = (attribute.name.to_owned(), attribute.sql_type.clone());
                    let column = Column { name, sql_type, nullable: !attribute.not_null, default: None, generated: None, fill: None };
                    add_column(object, index, &column, attribute.type_oid, rows);
                }
            }
        }
    }
}

fn add_column(object: Object<'_>, index: usize, column: &Column, type_oid: Oid, rows: &mut Rows) {
    let (precision, radix, scale) = numeric(&column.sql_type);
    let data_type = match column.sql_type {
        SqlType::Array(_) => "ARRAY".to_owned(),
        _ => pg_type::format(type_oid, None),
    };
    let length = match column.sql_type {
        SqlType::Varchar(Some(length)) | SqlType::Char(length) => Some(i64::from(length)),
        _ => None,
    };
    let datetime_precision = match column.sql_type {
        SqlType::Date => Some(0),
        SqlType::Time | SqlType::Timestamp | SqlType::Timestamptz | SqlType::Interval => Some(6),
        _ => None,
    };
    rows.add([
        ("table_catalog", DATABASE.into()),
        ("table_schema", object.schema().into()),
        ("table_name", object.name().into()),
        ("column_name", column.name.as_str().into()),
        ("ordinal_position", (index + 1).into()),
        ("column_default", column.default.as_deref().into()),
        ("is_nullable", yes_or_no(column.nullable)),
        ("data_type", data_type.into()),
        ("character_maximum_length", length.into()),
        ("character_octet_length", length.map(|length| length * 4).into()),
        ("numeric_precision", precision.into()),
        ("numeric_precision_radix", radix.into()),
        ("numeric_scale", scale.into()),
        ("datetime_precision", datetime_precision.map(i64::from).into()),
        ("udt_catalog", DATABASE.into()),
        ("udt_schema", "pg_catalog".into()),
        ("udt_name", pg_type::name_of(type_oid).into()),
        ("dtd_identifier", (index + 1).to_string().into()),
        ("is_self_referencing", "NO".into()),
        ("is_identity", "NO".into()),
        ("identity_cycle", "NO".into()),
        ("is_generated", if column.generated.is_some() { "ALWAYS" } else { "NEVER" }.into()),
        ("generation_expression", column.generated.as_deref().into()),
        ("is_updatable", yes_or_no(matches!(object, Object::Table(_)))),
    ]);
}

/// Precision, its radix, and scale.
fn numeric(sql_type: &SqlType) -> (Option<i64>, Option<i64>, Option<i64>) {
    match sql_type {
        SqlType::SmallInt => (Some(16), Some(2), Some(0)),
        SqlType::Integer => (Some(32), Some(2), Some(0)),
        SqlType::BigInt => (Some(64), Some(2), Some(0)),
        SqlType::Real => (Some(24), Some(2), None),
        SqlType::Double => (Some(53), Some(2), None),
        SqlType::Numeric(limits) => {
            let (precision, scale) = limits.unwrap_or(NUMERIC_DEFAULT);
            (Some(precision.into()), Some(10), Some(scale.into()))
        }
        _ => (None, None, None),
    }
}

fn views(world: &World, rows: &mut Rows) {
    for object in world.objects().filter(|object| matches!(object.kind(), "v" | "m")) {
        let definition = match object {
            Object::View(view) => Value::from(format!("{};", view.query)),
            _ => Value::Null,
        };
        rows.add([
            ("table_catalog", DATABASE.into()),
            ("table_schema", object.schema().into()),
            ("table_name", object.name().into()),
            ("view_definition", definition),
            ("check_option", "NONE".into()),
            ("is_updatable", "NO".into()),
            ("is_insertable_into", "NO".into()),
            ("is_trigger_updatable", "NO".into()),
            ("is_trigger_deletable", "NO".into()),
            ("is_trigger_insertable_into", "NO".into()),
        ]);
    }
}

fn view_tables(world: &World, rows: &mut Rows) {
    let catalog = &world.context.snapshot.catalog;
    for view in catalog.views() {
        let Some(table) = catalog.table(view.table) else { continue };
        rows.add([
            ("view_catalog", DATABASE.into()),
            ("view_schema", PUBLIC.into()),
            ("view_name", view.name.as_str().into()),
            ("table_catalog", DATABASE.into()),
            ("table_schema", PUBLIC.into()),
            ("table_name", table.name.as_str().into()),
        ]);
    }
}

fn table_constraints(world: &World, rows: &mut Rows) {
    let checks = world.checks().map(|(table, _, check)| (table, check.name.clone(), "CHECK"));
    let keys = world.uniques().map(|(table, _, unique)| (table, unique.name.clone(), objects::key_kind(unique)));
    for (table, name, kind) in checks.chain(keys) {
        rows.add([
            ("constraint_catalog", DATABASE.into()),
            ("constraint_schema", PUBLIC.into()),
            ("constraint_name", name.into()),
            ("table_catalog", DATABASE.into()),
            ("table_schema", PUBLIC.into()),
            ("table_name", table.name.as_str().into()),
            ("constraint_type", kind.into()),
            ("is_deferrable", "NO".into()),
            ("initially_deferred", "NO".into()),
            ("enforced", "YES".into()),
        ]);
    }
}

fn check_constraints(world: &World, rows: &mut Rows) {
    for (_, _, check) in world.checks() {
        rows.add([
            ("constraint_catalog", DATABASE.into()),
            ("constraint_schema", PUBLIC.into()),
            ("constraint_name", check.name.as_str().into()),
            ("check_clause", format!("({})", check.expression).into()),
        ]);
    }
}

fn key_columns(relation: &str, world: &World, rows: &mut Rows) {
    for (table, _, unique) in world.uniques() {
        for (position, column) in objects::key_columns(table, unique).enumerate() {
            let cells = [
                ("constraint_catalog", DATABASE.into()),
                ("constraint_schema", PUBLIC.into()),
                ("constraint_name", unique.name.as_str().into()),
                ("table_catalog", DATABASE.into()),
                ("table_schema", PUBLIC.into()),
                ("table_name", table.name.as_str().into()),
                ("column_name", column.name.as_str().into()),
            ];
            rows.add(cells);
            if relation == "key_column_usage" {
                rows.set("ordinal_position", (position + 1).into());
            }
        }
    }
}

fn privileges(world: &World, rows: &mut Rows) {
    for object in world.user_objects() {
        let granted: &[&str] = match object {
            Object::Table(_) => &["SELECT", "INSERT", "DELETE", "TRUNCATE"],
            _ => &["SELECT"],
        };
        for privilege in granted {
            rows.add([
                ("grantor", ROLE.into()),
                ("grantee", ROLE.into()),
                ("table_catalog", DATABASE.into()),
                ("table_schema", PUBLIC.into()),
                ("table_name", object.name().into()),
                ("privilege_type", (*privilege).into()),
                ("is_grantable", "YES".into()),
                ("with_hierarchy", "NO".into()),
            ]);
        }
    }
}

fn yes_or_no(yes: bool) -> Value {
    if yes { "YES" } else { "NO" }.into()
}
