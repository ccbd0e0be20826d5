//! The rest of `pg_catalog`: schemas, roles, databases, settings, and the views over tables and activity.

use super::World;
use super::objects::{self, Object};
use super::rows::{Rows, Value};
use super::{pg_class, pg_proc, pg_type, relation};
use crate::clock::Micros;
use crate::query::system::PG_CATALOG;

/// The relations that can have rows.
const FILLED: [&str; 25] = [
    "pg_class",
    "pg_attribute",
    "pg_attrdef",
    "pg_constraint",
    "pg_index",
    "pg_type",
    "pg_proc",
    "pg_namespace",
    "pg_am",
    "pg_database",
    "pg_tablespace",
    "pg_collation",
    "pg_language",
    "pg_roles",
    "pg_user",
    "pg_settings",
    "pg_tables",
    "pg_views",
    "pg_matviews",
    "pg_indexes",
    "pg_stat_activity",
    "pg_stat_progress_copy",
    "pg_stat_database",
    "pg_stat_user_tables",
    "pg_stat_all_tables",
];

/// Whether a relation describes something that Verus does not have.
pub fn is_always_empty(name: &str) -> bool {
    relation::relation(PG_CATALOG, name).is_some() && !FILLED.contains(&name)
}

/// Fills a relation of `pg_catalog`. Those that are not named here describe what Verus does not have.
pub fn fill(name: &str, world: &World, rows: &mut Rows) {
    match name {
        "pg_class" => pg_class::classes(world, rows),
        "pg_attribute" => pg_class::attributes(world, rows),
        "pg_attrdef" => pg_class::defaults(world, rows),
        "pg_constraint" => pg_class::constraints(world, rows),
        "pg_index" => pg_class::indexes(world, rows),
        "pg_type" => pg_type::fill(rows),
        "pg_proc" => pg_proc::fill(rows),
        "pg_namespace" => schemas(rows),
        "pg_am" => access_methods(rows),
        "pg_database" => databases(rows),
        "pg_tablespace" => tablespaces(rows),
        "pg_collation" => collations(rows),
        "pg_language" => languages(rows),
        "pg_roles" | "pg_user" => roles(name, rows),
        "pg_settings" => settings(world, rows),
        "pg_tables" => tables(world, rows),
        "pg_views" => views(world, rows),
        "pg_matviews" => materialized_views(world, rows),
        "pg_indexes" => indexes(world, rows),
        "pg_stat_activity" => activity(world, rows),
        "pg_stat_progress_copy" => copies(world, rows),
        "pg_stat_database" => database_statistics(world, rows),
        "pg_stat_user_tables" | "pg_stat_all_tables" => table_statistics(world, rows),
        _ => {}
    }
}

fn schemas(rows: &mut Rows) {
    for (name, oid) in objects::SCHEMAS {
        rows.add([("oid", oid.into()), ("nspname", name.into()), ("nspowner", objects::ROLE_OID.into())]);
    }
}

fn access_methods(rows: &mut Rows) {
    let methods = [
        (objects::HEAP_OID, "heap", "heap_tableam_handler", "t"),
        (objects::BTREE_OID, "btree", "bthandler", "i"),
        (objects::ACCESS_METHOD_OID, objects::ACCESS_METHOD, "-", "t"),
    ];
    for (oid, name, handler, kind) in methods {
        rows.add([("oid", oid.into()), ("amname", name.into()), ("amhandler", handler.into()), ("amtype", kind.into())]);
    }
}

fn databases(rows: &mut Rows) {
    rows.add([
        ("oid", objects::DATABASE_OID.into()),
        ("datname", objects::DATABASE.into()),
        ("datdba", objects::ROLE_OID.into()),
        ("encoding", 6.into()),
        ("datlocprovider", "c".into()),
        ("datallowconn", true.into()),
        ("datconnlimit", (-1).into()),
        ("dattablespace", objects::TABLESPACE_OID.into()),
        ("datcollate", "C".into()),
        ("datctype", "C".into()),
    ]);
}

fn tablespaces(rows: &mut Rows) {
    for (oid, name) in [(objects::TABLESPACE_OID, "pg_default"), (1664, "pg_global")] {
        rows.add([("oid", oid.into()), ("spcname", name.into()), ("spcowner", objects::ROLE_OID.into())]);
    }
}

fn collations(rows: &mut Rows) {
    for (oid, name, provider) in [(100, "default", "d"), (950, "C", "c"), (951, "POSIX", "c")] {
        let locale = (provider == "c").then_some(name);
        rows.add([
            ("oid", oid.into()),
            ("collname", name.into()),
            ("collnamespace", objects::PG_CATALOG_OID.into()),
            ("collowner", objects::ROLE_OID.into()),
            ("collprovider", provider.into()),
            ("collisdeterministic", true.into()),
            ("collencoding", (-1).into()),
            ("collcollate", locale.into()),
            ("collctype", locale.into()),
        ]);
    }
}

fn languages(rows: &mut Rows) {
    for (oid, name) in [(12, "internal"), (13, "c"), (14, "sql")] {
        rows.add([("oid", oid.into()), ("lanname", name.into()), ("lanowner", objects::ROLE_OID.into())]);
    }
}

fn roles(relation: &str, rows: &mut Rows) {
    if relation == "pg_user" {
        rows.add([
            ("usename", objects::ROLE.into()),
            ("usesysid", objects::ROLE_OID.into()),
            ("usecreatedb", false.into()),
            ("usesuper", true.into()),
            ("userepl", false.into()),
            ("usebypassrls", true.into()),
            ("passwd", "********".into()),
        ]);
        return;
    }
    rows.add([
        ("rolname", objects::ROLE.into()),
        ("rolsuper", true.into()),
        ("rolinherit", true.into()),
        ("rolcreaterole", false.into()),
        ("rolcreatedb", false.into()),
        ("rolcanlogin", true.into()),
        ("rolreplication", false.into()),
        ("rolconnlimit", (-1).into()),
        ("rolpassword", "********".into()),
        ("rolbypassrls", true.into()),
        ("oid", objects::ROLE_OID.into()),
    ]);
}

fn settings(world: &World, rows: &mut Rows) {
    for (name, value) in world.context.settings.iter() {
        rows.add([
            ("name", name.as_str().into()),
            ("setting", value.as_str().into()),
            ("category", "Session".into()),
            ("context", "user".into()),
            ("vartype", "string".into()),
            ("source", "session".into()),
            ("pending_restart", false.into()),
        ]);
    }
}

fn tables(world: &World, rows: &mut Rows) {
    for object in world.objects().filter(|object| object.kind() == "r") {
        let keyed = matches!(object, Object::Table(table) if !table.unique.is_empty());
        rows.add([
            ("schemaname", object.schema().into()),
            ("tablename", object.name().into()),
            ("tableowner", objects::ROLE.into()),
            ("hasindexes", keyed.into()),
            ("hasrules", false.into()),
            ("hastriggers", false.into()),
            ("rowsecurity", false.into()),
        ]);
    }
}

fn views(world: &World, rows: &mut Rows) {
    for object in world.objects().filter(|object| object.kind() == "v") {
        rows.add([("schemaname", object.schema().into()), ("viewname", object.name().into()), ("viewowner", objects::ROLE.into())]);
    }
}

fn materialized_views(world: &World, rows: &mut Rows) {
    for view in world.context.snapshot.catalog.views() {
        rows.add([
            ("schemaname", objects::PUBLIC.into()),
            ("matviewname", view.name.as_str().into()),
            ("matviewowner", objects::ROLE.into()),
            ("hasindexes", false.into()),
            ("ispopulated", world.is_populated(view).into()),
            ("definition", format!("{};", view.query).into()),
        ]);
    }
}

fn indexes(world: &World, rows: &mut Rows) {
    for (table, _, unique) in world.uniques() {
        rows.add([
            ("schemaname", objects::PUBLIC.into()),
            ("tablename", table.name.as_str().into()),
            ("indexname", unique.name.as_str().into()),
            ("indexdef", super::functions::index_definition(table, unique).into()),
        ]);
    }
}

fn activity(world: &World, rows: &mut Rows) {
    let time = |time: Option<Micros>| time.map_or(Value::Null, Value::Time);
    for session in world.activity.sessions() {
        let waits = session.state != "active";
        rows.add([
            ("datid", objects::DATABASE_OID.into()),
            ("datname", session.database.into()),
            ("pid", session.backend.into()),
            ("usesysid", objects::ROLE_OID.into()),
            ("usename", session.user.into()),
            ("application_name", session.application.into()),
            ("client_addr", session.client.map(|client| client.ip().to_string()).into()),
            ("client_port", session.client.map(|client| i64::from(client.port())).into()),
            ("backend_start", Value::Time(session.connected)),
            ("xact_start", time(session.transaction_start)),
            ("query_start", time(session.query_start)),
            ("wait_event_type", waits.then_some("Client").into()),
            ("wait_event", waits.then_some("ClientRead").into()),
            ("state", session.state.into()),
            ("query", session.query.as_ref().into()),
            ("backend_type", "client backend".into()),
        ]);
    }
}

fn copies(world: &World, rows: &mut Rows) {
    for session in world.activity.sessions() {
        let Some(copy) = session.copying else { continue };
        rows.add([
            ("pid", session.backend.into()),
            ("datid", objects::DATABASE_OID.into()),
            ("datname", session.database.into()),
            ("relid", copy.table.into()),
            ("command", if copy.from { "COPY FROM" } else { "COPY TO" }.into()),
            // Always the connection itself.
            ("type", "PIPE".into()),
            ("bytes_processed", copy.bytes.into()),
            ("bytes_total", 0i64.into()),
            ("tuples_processed", copy.rows.into()),
            ("tuples_excluded", 0i64.into()),
            ("tuples_skipped", 0i64.into()),
        ]);
    }
}

fn database_statistics(world: &World, rows: &mut Rows) {
    rows.add([
        ("datid", objects::DATABASE_OID.into()),
        ("datname", objects::DATABASE.into()),
        ("numbackends", world.activity.sessions().len().into()),
    ]);
}

fn table_statistics(world: &World, rows: &mut Rows) {
    for object in world.user_objects() {
        let (memory, files) = world.row_counts(object.oid());
        rows.add([
            ("relid", object.oid().into()),
            ("schemaname", object.schema().into()),
            ("relname", object.name().into()),
            ("n_live_tup", (memory + files).into()),
            ("n_dead_tup", 0.into()),
        ]);
    }
}
