//! Names, OIDs and sizes of the objects that the system relations describe.
//!
//! *Place*: read by the row makers and the functions of `query::catalogs`.
//!
//! Derived OIDs: what hangs on table `oid` (constraints, indexes, defaults) has `0x4000_0000 + (oid - 16384) * 4096 + n`,
//! so it is stable as long as the table is. Columns come first: the default of column k is n = k.

use crate::catalog::{Check, Column, FIRST_USER_OID, Oid, Table, Unique, View};
use crate::columnar;
use crate::query::system::{INFORMATION_SCHEMA, PG_CATALOG, VERUS};
use crate::store::TableState;

use super::World;
use super::relation::{self, Relation};
use super::rows::Value;

/// The database.
pub const DATABASE: &str = "verus";
/// `pg_database.oid`.
pub const DATABASE_OID: Oid = 5;
/// The only role.
pub const ROLE: &str = "verus";
/// `pg_authid.oid` of the bootstrap role.
pub const ROLE_OID: Oid = 10;
/// The schema of all tables and views.
pub const PUBLIC: &str = "public";
/// `pg_namespace.oid` of the schema `public`.
pub const PUBLIC_OID: Oid = 2200;
/// `pg_namespace.oid` of the schema `pg_catalog`.
pub const PG_CATALOG_OID: Oid = 11;
/// How tables and views are stored.
pub const ACCESS_METHOD: &str = "verus";
/// `pg_am.oid` of [`ACCESS_METHOD`].
pub const ACCESS_METHOD_OID: Oid = 15_200;
/// `pg_am.oid` of `heap`, which PostgreSQL's own catalogs have.
pub const HEAP_OID: Oid = 2;
/// `pg_am.oid` of `btree`, which primary keys are shown with.
pub const BTREE_OID: Oid = 403;
/// `pg_tablespace.oid` of `pg_default`.
pub const TABLESPACE_OID: Oid = 1663;

const DERIVED_FIRST: Oid = 0x4000_0000;
const DERIVED_PER_TABLE: Oid = 4096;
const FIRST_CHECK: Oid = 2000;
const FIRST_UNIQUE: Oid = 3000;

/// The schemas: name and OID.
pub const SCHEMAS: [(&str, Oid); 4] = [(PG_CATALOG, PG_CATALOG_OID), (PUBLIC, PUBLIC_OID), (INFORMATION_SCHEMA, 13_000), (VERUS, 15_100)];

/// The OID of a schema.
pub fn schema_oid(name: &str) -> Option<Oid> {
    SCHEMAS.iter().find(|(schema, _)| *schema == name).map(|(_, oid)| *oid)
}

/// The OID of a column's default.
pub fn default_oid(table: Oid, column: usize) -> Oid {
    derived(table, column as Oid)
}

/// The OID of the `n`th CHECK constraint.
pub fn check_oid(table: Oid, n: usize) -> Oid {
    derived(table, FIRST_CHECK + n as Oid)
}

/// The OID of the `n`th PRIMARY KEY or UNIQUE as a constraint.
pub fn unique_oid(table: Oid, n: usize) -> Oid {
    derived(table, FIRST_UNIQUE + 2 * n as Oid)
}

/// The OID of the `n`th PRIMARY KEY or UNIQUE as an index.
pub fn index_oid(table: Oid, n: usize) -> Oid {
    derived(table, FIRST_UNIQUE + 2 * n as Oid + 1)
}

fn derived(table: Oid, n: Oid) -> Oid {
    DERIVED_FIRST.wrapping_add((table.wrapping_sub(FIRST_USER_OID)).wrapping_mul(DERIVED_PER_TABLE)).wrapping_add(n)
}

/// The columns of a constraint.
pub fn key_columns<'a>(table: &'a Table, unique: &'a Unique) -> impl Iterator<Item = &'a Column> {
    unique.columns.iter().filter_map(|column| table.columns.get(*column))
}

/// The columns of a constraint, as in a statement.
pub fn key_list(table: &Table, unique: &Unique) -> String {
    key_columns(table, unique).map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

/// The kind of a constraint, as in a statement.
pub fn key_kind(unique: &Unique) -> &'static str {
    if unique.primary { "PRIMARY KEY" } else { "UNIQUE" }
}

/// An identifier, in quotes where it needs them.
pub fn quoted(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Something that `pg_class` lists.
#[derive(Clone, Copy, Debug)]
pub enum Object<'a> {
    /// A user's table.
    Table(&'a Table),
    /// A materialized view.
    View(&'a View),
    /// The index of a table's PRIMARY KEY or of a UNIQUE constraint, the `n`th of them.
    Index(&'a Table, &'a Unique, usize),
    /// Of a system schema.
    System(&'static Relation),
}

impl Object<'_> {
    /// `pg_class.oid`.
    pub fn oid(&self) -> Oid {
        match self {
            Object::Table(table) => table.oid,
            Object::View(view) => view.oid,
            Object::Index(table, _, n) => index_oid(table.oid, *n),
            Object::System(relation) => relation.oid,
        }
    }

    /// `pg_class.relname`.
    pub fn name(&self) -> String {
        match self {
            Object::Table(table) => table.name.clone(),
            Object::View(view) => view.name.clone(),
            Object::Index(_, unique, _) => unique.name.clone(),
            Object::System(relation) => relation.name.to_owned(),
        }
    }

    /// The name of its schema.
    pub fn schema(&self) -> &'static str {
        match self {
            Object::System(relation) => relation.schema,
            _ => PUBLIC,
        }
    }

    /// `pg_class.relkind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Object::Table(_) => "r",
            Object::View(_) => "m",
            Object::Index(..) => "i",
            Object::System(relation) => relation.kind,
        }
    }
}

impl World {
    /// Everything that `pg_class` lists.
    pub fn objects(&self) -> impl Iterator<Item = Object<'_>> {
        let catalog = &self.context.snapshot.catalog;
        let indexes = self.uniques().map(|(table, n, unique)| Object::Index(table, unique, n));
        // The server's own tables are among the relations of schema verus.
        let tables = catalog.tables().filter(|table| !table.is_own()).map(|table| Object::Table(table));
        let views = catalog.views().map(|view| Object::View(view));
        relation::relations().map(Object::System).chain(tables).chain(views).chain(indexes)
    }

    /// The users' tables and views.
    pub fn user_objects(&self) -> impl Iterator<Item = Object<'_>> {
        self.objects().filter(|object| matches!(object, Object::Table(_) | Object::View(_)))
    }

    /// An object by OID.
    pub fn object(&self, oid: Oid) -> Option<Object<'_>> {
        self.objects().find(|object| object.oid() == oid)
    }

    /// An object by name as written: folded and unquoted, with or without its schema.
    pub fn named(&self, written: &str) -> Option<Object<'_>> {
        let parts = identifiers(written)?;
        let (schema, name) = match parts.as_slice() {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            [database, schema, name] if database == DATABASE => (Some(schema), name),
            _ => return None,
        };
        let visible = |object: &Object<'_>| matches!(object.schema(), PUBLIC | PG_CATALOG);
        let mut found: Vec<_> = self.objects().filter(|object| object.name() == *name).collect();
        found.retain(|object| schema.map_or_else(|| visible(object), |schema| object.schema() == schema));
        // pg_catalog comes first in the search path, as in PostgreSQL.
        found.into_iter().min_by_key(|object| object.schema() != PG_CATALOG)
    }

    /// All PRIMARY KEY and UNIQUE constraints with their tables and numbers there.
    pub fn uniques(&self) -> impl Iterator<Item = (&Table, usize, &Unique)> {
        let tables = self.context.snapshot.catalog.tables();
        tables.flat_map(|table| table.unique.iter().enumerate().map(|(n, unique)| (table.as_ref(), n, unique)))
    }

    /// All CHECK constraints with their tables and OIDs.
    pub fn checks(&self) -> impl Iterator<Item = (&Table, Oid, &Check)> {
        let tables = self.context.snapshot.catalog.tables();
        tables.flat_map(|table| table.checks.iter().enumerate().map(|(n, check)| (table.as_ref(), check_oid(table.oid, n), check)))
    }

    /// Rows of a table in memory and in files.
    pub fn row_counts(&self, table: Oid) -> (u64, u64) {
        let Some(state) = self.context.snapshot.tables.get(&table) else { return (0, 0) };
        let cold = cold(state).map_or(0, |version| version.files.iter().map(|file| file.rows).sum());
        (state.hot_rows() as u64, cold)
    }

    /// Bytes of a table in memory and in files.
    pub fn byte_counts(&self, table: Oid) -> (u64, u64) {
        let Some(state) = self.context.snapshot.tables.get(&table) else { return (0, 0) };
        let cold = cold(state).map_or(0, |version| version.files.iter().map(|file| file.bytes).sum());
        (state.hot_bytes() as u64, cold)
    }
}

/// The files of a table.
pub fn cold(state: &TableState) -> Option<&columnar::Version> {
    state.cold.as_ref().map(|cold| cold.version.as_ref())
}

/// The parts of a qualified name: unquoted ones folded to lower case. None where quotes do not match.
fn identifiers(written: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut letters = written.trim().chars().peekable();
    while let Some(letter) = letters.next() {
        let part = parts.last_mut()?;
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            letter if quoted => part.push(letter),
            letter => part.extend(letter.to_lowercase()),
        }
    }
    (!quoted).then_some(parts)
}

/// A table's WITH options as `pg_class.reloptions` shows them.
pub fn options(table: &Table) -> Vec<Value> {
    let name = |column: usize| table.columns.get(column).map(|column: &Column| column.name.clone()).unwrap_or_default();
    let defaults = crate::catalog::TableOptions::default();
    let options = &table.options;
    let mut shown = Vec::new();
    let mut show = |key: &str, value: Option<String>| shown.extend(value.map(|value| Value::Text(format!("{key}={value}"))));
    show("partition_by", options.partition_by.map(name));
    show("dedup_key", options.dedup_key.map(name));
    show("dedup_window", options.dedup_key.map(|_| span(options.dedup_window_us)));
    show("retention", options.retention_us.map(span));
    show("max_future", (options.max_future_us != defaults.max_future_us).then(|| span(options.max_future_us)));
    show("idle_timeout", options.idle_timeout_us.map(span));
    show("late_rows", (options.late_rows != defaults.late_rows).then(|| late_rows(table).to_owned()));
    show("compression", (options.compression != defaults.compression).then(|| compression(table).to_owned()));
    show("watermark", table.watermark.map(|watermark| format!("{} - {}", name(watermark.column), span(watermark.lateness_us))));
    shown
}

/// A view's WITH options as `pg_class.reloptions` shows them.
pub fn view_options(view: &View) -> Vec<Value> {
    let options = [("ttl", view.ttl_us), ("refresh_interval", view.refresh_us)];
    options.iter().filter_map(|(key, us)| us.map(|us| Value::Text(format!("{key}={}", span(us))))).collect()
}

/// The option `late_rows` as written.
pub fn late_rows(table: &Table) -> &'static str {
    match table.options.late_rows {
        crate::catalog::LateRows::Divert => "divert",
        crate::catalog::LateRows::Apply => "apply",
        crate::catalog::LateRows::Error => "error",
    }
}

/// The option `compression` as written.
pub fn compression(table: &Table) -> &'static str {
    match table.options.compression {
        crate::catalog::Compression::Snappy => "snappy",
        crate::catalog::Compression::Zstd => "zstd",
    }
}

/// Microseconds in the largest unit that leaves no rest.
pub fn span(micros: i64) -> String {
    const UNITS: [(i64, &str); 5] =
        [(86_400_000_000, "day"), (3_600_000_000, "hour"), (60_000_000, "minute"), (1_000_000, "second"), (1_000, "millisecond")];
    let fits = UNITS.iter().find(|(unit, _)| micros != 0 && micros % unit == 0);
    let (count, unit) = fits.map_or((micros, "microsecond"), |(unit, name)| (micros / unit, *name));
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
