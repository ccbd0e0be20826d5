//! What objects exist: tables, views, their columns and options.
//!
//! *Place*: used by `view`, `store` and everything above. A [`Catalog`] is an immutable value: a change makes a new one, and
//! every snapshot holds the one it was made with. Changes travel in log records, in one order with the rows.
//!
//! *Invariants*: (1) OIDs are never reused; (2) tables and views share one namespace (schema `public`); (3) applying the
//! same [`Change`]s in order gives the same catalog, so recovery replays them.

pub mod bind;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;

/// Identifies a table or view for ever.
pub type Oid = u32;

/// First OID of user objects, as in PostgreSQL.
pub const FIRST_USER_OID: Oid = 16_384;

/// All objects as of one snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Catalog {
    tables: BTreeMap<Oid, Arc<Table>>,
    views: BTreeMap<Oid, Arc<View>>,
    next_oid: Oid,
}

/// A change of the catalog, as logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Adds a table (and, for an event table, its `$late` companion, which is a change of its own).
    CreateTable(Arc<Table>),
    /// Removes a table and its rows.
    DropTable(Oid),
    /// Removes the rows of a table and the state of its views.
    Truncate(Oid),
    /// Replaces a table's definition by one with more columns (same OID).
    AlterTable(Arc<Table>),
    /// Adds a view. While `ready` is false it is maintained but not to be read.
    CreateView(Arc<View>),
    /// A view's backfill is complete.
    ViewReady(Oid),
    /// Replaces a view's options (same OID, same query).
    AlterView(Arc<View>),
    /// Removes a view and its state.
    DropView(Oid),
}

/// What kind of table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// Declares a WATERMARK: append-only, views are maintained over it.
    Event,
    /// The `<table>$late` companion of an event table.
    Late,
    /// No WATERMARK: reference data.
    Plain,
}

/// A table's definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// Event, late or plain.
    pub kind: TableKind,
    /// In declaration order.
    pub columns: Vec<Column>,
    /// CHECK constraints, table's and columns'.
    pub checks: Vec<Check>,
    /// Columns of the primary key, or empty.
    pub primary_key: Vec<usize>,
    /// Event time and lateness; present exactly for event tables.
    pub watermark: Option<Watermark>,
    /// The WITH options, resolved.
    pub options: TableOptions,
    /// The OID of the `$late` companion of an event table.
    pub late_oid: Option<Oid>,
}

/// A column of a table or the output column of a view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Lower-case unless it was quoted.
    pub name: String,
    /// Declared type.
    pub sql_type: SqlType,
    /// False for NOT NULL.
    pub nullable: bool,
    /// DEFAULT expression as SQL text.
    pub default: Option<String>,
    /// GENERATED ALWAYS AS (...) STORED expression as SQL text.
    pub generated: Option<String>,
}

/// A CHECK constraint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Declared or, as PostgreSQL names it, `<table>_<column>_check`.
    pub name: String,
    /// Boolean expression over the table's columns as SQL text.
    pub expression: String,
}

/// `WATERMARK FOR column AS column - INTERVAL ...`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watermark {
    /// Index of the event-time column (timestamp or timestamptz).
    pub column: usize,
    /// Allowed lateness, microseconds, not negative.
    pub lateness_us: i64,
}

/// What happens to rows behind the watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LateRows {
    /// To `<table>$late`, with a NOTICE.
    Divert,
    /// Accepted; views are corrected.
    Apply,
    /// The statement fails (22008).
    Error,
}

/// Compression of Parquet files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// Snappy.
    Snappy,
    /// Zstandard, level 1: the default by measurement.
    Zstd,
}

/// A table's WITH options, resolved to columns and units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableOptions {
    /// Ordering and pruning key; watermarks are kept per value of it.
    pub partition_by: Option<usize>,
    /// A second row with this key within the window is dropped.
    pub dedup_key: Option<usize>,
    /// Distance from the watermark within which duplicates are found.
    pub dedup_window_us: i64,
    /// Rows older than this (against the newest event time) are removed; none keeps everything.
    pub retention_us: Option<i64>,
    /// A row further ahead of the server's clock breaks a rule (22008).
    pub max_future_us: i64,
    /// What happens to very late rows unless the session says otherwise.
    pub late_rows: LateRows,
    /// Of the Parquet files.
    pub compression: Compression,
}

impl Default for TableOptions {
    fn default() -> Self {
        const DAY_US: i64 = 86_400_000_000;
        Self {
            partition_by: None,
            dedup_key: None,
            dedup_window_us: DAY_US,
            retention_us: None,
            max_future_us: DAY_US,
            late_rows: LateRows::Divert,
            compression: Compression::Zstd,
        }
    }
}

/// A materialized view's definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// The defining SELECT as SQL text, as printed by the parser.
    pub query: String,
    /// The event table that it aggregates.
    pub table: Oid,
    /// Output columns with names and SQL types.
    pub columns: Vec<Column>,
    /// State of windows older than this leaves RocksDB; none keeps everything.
    pub ttl_us: Option<Micros>,
    /// False until the backfill is complete.
    pub ready: bool,
}

impl Default for Catalog {
    fn default() -> Self {
        Self { tables: BTreeMap::new(), views: BTreeMap::new(), next_oid: FIRST_USER_OID }
    }
}

impl Table {
    /// The Arrow schema of the declared columns, in order, without the hidden LSN.
    pub fn schema(&self) -> SchemaRef {
        schema_of(&self.columns)
    }

    /// Index of a column by name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

impl View {
    /// The Arrow schema of the output.
    pub fn schema(&self) -> SchemaRef {
        schema_of(&self.columns)
    }
}

fn schema_of(columns: &[Column]) -> SchemaRef {
    let fields: Vec<_> = columns.iter().map(|column| column.sql_type.field(&column.name, column.nullable)).collect();
    Arc::new(Schema::new(fields))
}

impl Catalog {
    /// All tables, in OID order, `$late` companions among them.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// All views, in OID order, those still building among them.
    pub fn views(&self) -> impl Iterator<Item = &Arc<View>> {
        self.views.values()
    }

    /// The views maintained over a table.
    pub fn views_of(&self, table: Oid) -> impl Iterator<Item = &Arc<View>> {
        self.views.values().filter(move |view| view.table == table)
    }

    /// A table by OID.
    pub fn table(&self, oid: Oid) -> Option<&Arc<Table>> {
        self.tables.get(&oid)
    }

    /// A view by OID.
    pub fn view(&self, oid: Oid) -> Option<&Arc<View>> {
        self.views.get(&oid)
    }

    /// A table by name.
    pub fn table_named(&self, name: &str) -> Option<&Arc<Table>> {
        self.tables.values().find(|table| table.name == name)
    }

    /// A view by name, whether ready or not.
    pub fn view_named(&self, name: &str) -> Option<&Arc<View>> {
        self.views.values().find(|view| view.name == name)
    }

    /// The next free OID.
    pub fn next_oid(&self) -> Oid {
        self.next_oid
    }

    /// The catalog after a change. Errors as PostgreSQL: 42P07 when the name is taken, 42P01 when the object is
    /// missing, 2BP01 when views still depend on a dropped table.
    pub fn with(&self, change: &Change) -> Result<Catalog> {
        let mut next = self.clone();
        match change {
            Change::CreateTable(table) => {
                next.claim(table.oid, &table.name)?;
                next.tables.insert(table.oid, Arc::clone(table));
            }
            Change::AlterTable(table) => {
                next.tables.insert(table.oid, Arc::clone(table)).ok_or_else(|| missing(table.oid))?;
            }
            Change::DropTable(oid) => {
                let table = next.tables.remove(oid).ok_or_else(|| missing(*oid))?;
                if let Some(view) = self.views_of(*oid).next() {
                    return Err(Error::new(
                        SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                        format!("cannot drop table {} because other objects depend on it", table.name),
                    )
                    .detail(format!("Materialized view {} depends on table {}.", view.name, table.name))
                    .hint("Use DROP ... CASCADE to drop the dependent objects too."));
                }
                if let Some(late) = table.late_oid {
                    next.tables.remove(&late);
                }
            }
            Change::Truncate(oid) => {
                next.table(*oid).ok_or_else(|| missing(*oid))?;
            }
            Change::CreateView(view) => {
                next.claim(view.oid, &view.name)?;
                next.views.insert(view.oid, Arc::clone(view));
            }
            Change::ViewReady(oid) => {
                let view = next.views.get_mut(oid).ok_or_else(|| missing(*oid))?;
                Arc::make_mut(view).ready = true;
            }
            Change::AlterView(view) => {
                next.views.insert(view.oid, Arc::clone(view)).ok_or_else(|| missing(view.oid))?;
            }
            Change::DropView(oid) => {
                next.views.remove(oid).ok_or_else(|| missing(*oid))?;
            }
        }
        Ok(next)
    }

    fn claim(&mut self, oid: Oid, name: &str) -> Result<()> {
        if self.table_named(name).is_some() || self.view_named(name).is_some() {
            return Err(Error::new(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists")));
        }
        self.next_oid = self.next_oid.max(oid + 1);
        Ok(())
    }
}

fn missing(oid: Oid) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation with OID {oid} does not exist"))
}
