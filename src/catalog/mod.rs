//! What objects exist: tables, views, their columns and options.
//!
//! *Place*: used by `view`, `store` and everything above. A [`Catalog`] is an immutable value: a change makes a new one, and
//! every snapshot holds the one it was made with. Changes travel in log records, in one order with the rows.
//!
//! *Invariants*: (1) OIDs are never reused; (2) tables and views share one namespace (schema `public`); (3) applying the
//! same [`Change`]s in order gives the same catalog, so recovery replays them.

pub mod alert;
pub mod bind;
pub mod source;
pub mod token;
pub mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use crate::catalog::token::IngestToken;
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::types::SqlType;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;
pub use alert::{Alert, Channel, ChannelKind, NoData};
pub use source::EventSource;

/// Identifies a table or view for ever.
pub type Oid = u32;

/// First OID of user objects, as in PostgreSQL.
pub const FIRST_USER_OID: Oid = 16_384;

/// All objects as of one snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Catalog {
    tables: BTreeMap<Oid, Arc<Table>>,
    views: BTreeMap<Oid, Arc<View>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, Arc<IngestToken>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    channels: BTreeMap<Oid, Arc<Channel>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    alerts: BTreeMap<Oid, Arc<Alert>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sources: BTreeMap<Oid, Arc<EventSource>>,
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
    /// Adds a token for events over HTTP.
    CreateIngestToken(Arc<IngestToken>),
    /// Removes the token of a name.
    DropIngestToken(String),
    /// Adds a notification channel.
    CreateChannel(Arc<Channel>),
    /// Removes a notification channel.
    DropChannel(Oid),
    /// Adds an alert.
    CreateAlert(Arc<Alert>),
    /// Replaces an alert's definition (same OID).
    AlterAlert(Arc<Alert>),
    /// Removes an alert.
    DropAlert(Oid),
    /// Adds a source of events.
    CreateSource(Arc<EventSource>),
    /// Replaces a source's definition (same OID).
    AlterSource(Arc<EventSource>),
    /// Removes a source, and how far it has come.
    DropSource(Oid),
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
    /// PRIMARY KEY and UNIQUE constraints of a plain table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<Unique>,
    /// Event time and lateness; present exactly for event tables.
    pub watermark: Option<Watermark>,
    /// The WITH options, resolved.
    pub options: TableOptions,
    /// The OID of the `$late` companion of an event table.
    pub late_oid: Option<Oid>,
}

/// Tables that the server keeps for itself have names with this before them: in schema `verus` they are found without it.
pub const OWN_PREFIX: &str = "verus.";

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
    /// Of an added column: its value, in PostgreSQL's text format, in the rows that were stored before it. None is NULL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill: Option<String>,
}

/// A CHECK constraint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Declared or, as PostgreSQL names it, `<table>_<column>_check`.
    pub name: String,
    /// Boolean expression over the table's columns as SQL text.
    pub expression: String,
}

/// A PRIMARY KEY or UNIQUE constraint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// Declared or, as PostgreSQL names it, `<table>_pkey`, `<table>_<columns>_key`.
    pub name: String,
    /// No two rows are equal in all of these columns; a NULL equals nothing.
    pub columns: Vec<usize>,
    /// PRIMARY KEY.
    pub primary: bool,
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
    /// A partition without an accepted row for this long, by the server's clock, does not keep windows open; none waits for ever.
    #[serde(default)]
    pub idle_timeout_us: Option<i64>,
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
            idle_timeout_us: None,
            late_rows: LateRows::Divert,
            compression: Compression::Zstd,
        }
    }
}

/// How a view is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Maintenance {
    /// By aggregate state of its own, changed by the commits of its event table.
    #[default]
    State,
    /// From the state of the view that it reads, whenever it is read: nothing of it is stored.
    Derived,
    /// By recomputing its query when a source has changed; readers see the last complete result.
    Refreshed,
}

/// A table or view that a view's query names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Which one.
    pub oid: Oid,
    /// Its columns when the view was created: `*` means these, though the table may have grown since.
    pub columns: usize,
}

/// A materialized view's definition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct View {
    /// Stable identity.
    pub oid: Oid,
    /// Lower-case unless it was quoted.
    pub name: String,
    /// The defining SELECT as SQL text, as printed by the parser.
    pub query: String,
    /// The event table that it aggregates; 0 for a view without state of its own.
    pub table: Oid,
    /// Output columns with names and SQL types.
    pub columns: Vec<Column>,
    /// State of windows older than this leaves RocksDB; none keeps everything.
    pub ttl_us: Option<Micros>,
    /// False until the backfill is complete.
    pub ready: bool,
    /// How it is kept.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Why it has no aggregate state of its own; none for one that has.
    #[serde(default)]
    pub reason: Option<String>,
    /// What its query names; empty in views from before this was recorded, which name their table alone.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Rows of its table below this LSN do not count: it was created WITH NO DATA, or over such a view.
    #[serde(default)]
    pub from_lsn: u64,
    /// For a view over views of its branches: the query over them that gives the same as its own.
    #[serde(default)]
    pub derivation: Option<String>,
    /// The view that this one is a branch of: they go together.
    #[serde(default)]
    pub owner: Option<Oid>,
    /// Its state is that of the entities that an operator follows: what it shows is made of them.
    #[serde(default)]
    pub by_entity: bool,
    /// Least time between two refreshes of a refreshed view, microseconds; none for the default.
    #[serde(default)]
    pub refresh_us: Option<Micros>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            tokens: BTreeMap::new(),
            channels: BTreeMap::new(),
            alerts: BTreeMap::new(),
            sources: BTreeMap::new(),
            next_oid: FIRST_USER_OID,
        }
    }
}

impl Table {
    /// The Arrow schema of the declared columns, in order, without the hidden LSN.
    pub fn schema(&self) -> SchemaRef {
        schema_of(&self.columns)
    }

    /// Whether it is one of the server's own.
    pub fn is_own(&self) -> bool {
        self.name.starts_with(OWN_PREFIX)
    }

    /// Index of a column by name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

impl Column {
    /// The value in rows that were stored before the column was added; none is NULL.
    pub fn fill_value(&self) -> Result<Option<ScalarValue>> {
        let Some(text) = &self.fill else { return Ok(None) };
        let damaged = |error: Error| {
            Error::new(SqlState::DATA_CORRUPTED, format!("the value of added column \"{}\" cannot be read", self.name))
                .detail(error.to_string())
        };
        parse_scalar(&self.sql_type, text, &Zone::UTC).map(Some).map_err(damaged)
    }

    /// As many values of the column in rows that were stored before it was added.
    pub fn filled(&self, rows: usize) -> Result<ArrayRef> {
        match self.fill_value()? {
            None => Ok(new_null_array(&self.sql_type.arrow(), rows)),
            Some(value) => repeated(&value, rows).map_err(|error| Error::internal(error.to_string())),
        }
    }
}

/// As many copies of a value; long texts are shared, not copied.
fn repeated(value: &ScalarValue, rows: usize) -> Result<ArrayRef, ArrowError> {
    let one = value.to_array().map_err(|error| ArrowError::ComputeError(error.to_string()))?;
    take(&one, &UInt32Array::from(vec![0; rows]), None)
}

impl View {
    /// The Arrow schema of the output.
    pub fn schema(&self) -> SchemaRef {
        schema_of(&self.columns)
    }

    /// Whether a table or view must stay for this one.
    pub fn reads(&self, oid: Oid) -> bool {
        self.table == oid || self.sources.iter().any(|source| source.oid == oid)
    }

    /// Whether every commit is in it at once.
    pub fn is_incremental(&self) -> bool {
        self.maintenance != Maintenance::Refreshed
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

    /// The views with state of their own over a table.
    pub fn views_of(&self, table: Oid) -> impl Iterator<Item = &Arc<View>> {
        self.views.values().filter(move |view| view.table == table)
    }

    /// The views that cannot be without a table or view, directly or through others, in the order in which they can be dropped.
    pub fn dependents(&self, oid: Oid) -> Vec<Arc<View>> {
        let mut needed = vec![oid];
        let mut found = Vec::new();
        // A view is younger than what it reads, so its OID is greater.
        for view in self.views.values() {
            if needed.iter().any(|needed| view.oid != *needed && view.reads(*needed)) {
                needed.push(view.oid);
                found.push(Arc::clone(view));
            }
        }
        let parts: Vec<_> = found.iter().flat_map(|view| self.parts(view.oid)).cloned().collect();
        found.extend(parts);
        found.sort_unstable_by_key(|view| std::cmp::Reverse(view.oid));
        found.dedup_by_key(|view| view.oid);
        found
    }

    /// How many views are one over the other, down from this one, itself among them.
    pub fn nesting(&self, view: &View) -> usize {
        let mut depths: BTreeMap<Oid, usize> = BTreeMap::new();
        let depth = |view: &View, depths: &BTreeMap<Oid, usize>| {
            1 + view.sources.iter().filter_map(|source| depths.get(&source.oid)).max().copied().unwrap_or(0)
        };
        // A view is younger than what it reads, so its OID is greater.
        for lower in self.views.values() {
            depths.insert(lower.oid, depth(lower, &depths));
        }
        depth(view, &depths)
    }

    /// The views of a view's branches.
    pub fn parts(&self, view: Oid) -> impl Iterator<Item = &Arc<View>> {
        self.views.values().filter(move |part| part.owner == Some(view))
    }

    /// A view with all that goes with it, in the order in which they can be dropped: what its creation has made.
    pub fn family(&self, view: &View) -> Vec<Oid> {
        let head = view.owner.unwrap_or(view.oid);
        let members = self.views.values().filter(|other| other.oid == head || other.owner == Some(head));
        let mut members: Vec<Oid> = members.map(|view| view.oid).collect();
        members.sort_unstable_by_key(|oid| std::cmp::Reverse(*oid));
        members
    }

    /// The catalog in which a view's query means what it meant when the view was created: tables that have grown since have
    /// the columns of that time, and the views of its branches can be read.
    pub fn narrowed(self: &Arc<Self>, view: &View) -> Arc<Catalog> {
        let mut narrowed = Arc::clone(self);
        for source in &view.sources {
            if self.table(source.oid).is_some_and(|table| table.columns.len() > source.columns)
                && let Some(table) = Arc::make_mut(&mut narrowed).tables.get_mut(&source.oid)
            {
                Arc::make_mut(table).columns.truncate(source.columns);
            }
            if self.view(source.oid).is_some_and(|part| part.owner == Some(view.oid) && !part.ready)
                && let Some(part) = Arc::make_mut(&mut narrowed).views.get_mut(&source.oid)
            {
                Arc::make_mut(part).ready = true;
            }
        }
        narrowed
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

    /// All notification channels, in OID order.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.channels.values()
    }

    /// All alerts, in OID order.
    pub fn alerts(&self) -> impl Iterator<Item = &Arc<Alert>> {
        self.alerts.values()
    }

    /// A channel by OID.
    pub fn channel(&self, oid: Oid) -> Option<&Arc<Channel>> {
        self.channels.get(&oid)
    }

    /// A channel by name.
    pub fn channel_named(&self, name: &str) -> Option<&Arc<Channel>> {
        self.channels.values().find(|channel| channel.name == name)
    }

    /// An alert by OID.
    pub fn alert(&self, oid: Oid) -> Option<&Arc<Alert>> {
        self.alerts.get(&oid)
    }

    /// An alert by name.
    pub fn alert_named(&self, name: &str) -> Option<&Arc<Alert>> {
        self.alerts.values().find(|alert| alert.name == name)
    }

    /// All sources of events, in OID order.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<EventSource>> {
        self.sources.values()
    }

    /// A source by OID.
    pub fn source(&self, oid: Oid) -> Option<&Arc<EventSource>> {
        self.sources.get(&oid)
    }

    /// A source by name.
    pub fn source_named(&self, name: &str) -> Option<&Arc<EventSource>> {
        self.sources.values().find(|source| source.name == name)
    }

    /// The alerts that read a table or view.
    pub fn alerts_reading(&self, oid: Oid) -> impl Iterator<Item = &Arc<Alert>> {
        self.alerts.values().filter(move |alert| alert.sources.iter().any(|source| source.oid == oid))
    }

    /// The same with one more relation, for one statement: rows that have a name only there. It hides what else has that name.
    #[must_use]
    pub fn with_relation(&self, table: Arc<Table>) -> Catalog {
        let mut next = self.clone();
        next.tables.retain(|_, other| other.name != table.name);
        next.views.retain(|_, view| view.name != table.name);
        next.tables.insert(table.oid, table);
        next
    }

    /// Tokens for events over HTTP, by name.
    pub fn tokens(&self) -> impl Iterator<Item = &Arc<IngestToken>> {
        self.tokens.values()
    }

    /// A token by name.
    pub fn token(&self, name: &str) -> Option<&Arc<IngestToken>> {
        self.tokens.get(name)
    }

    /// The next free OID.
    pub fn next_oid(&self) -> Oid {
        self.next_oid
    }

    /// The catalog after a change. Errors as PostgreSQL: 42P07 when the name is taken, 42P01 when the object is
    /// missing, 2BP01 when views still depend on what is dropped.
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
                self.droppable(*oid, "table", &table.name)?;
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
                let view = next.views.remove(oid).ok_or_else(|| missing(*oid))?;
                self.droppable(*oid, "materialized view", &view.name)?;
            }
            Change::CreateIngestToken(token) => {
                if next.tokens.insert(token.name.clone(), Arc::clone(token)).is_some() {
                    return Err(Error::new(SqlState::DUPLICATE_OBJECT, format!("ingest token \"{}\" already exists", token.name)));
                }
            }
            Change::DropIngestToken(name) => {
                let missing = || Error::new(SqlState::UNDEFINED_OBJECT, format!("ingest token \"{name}\" does not exist"));
                next.tokens.remove(name).ok_or_else(missing)?;
            }
            Change::CreateChannel(channel) => {
                if next.channel_named(&channel.name).is_some() {
                    return Err(taken("notification channel", &channel.name));
                }
                next.next_oid = next.next_oid.max(channel.oid + 1);
                next.channels.insert(channel.oid, Arc::clone(channel));
            }
            Change::DropChannel(oid) => {
                let channel = next.channels.remove(oid).ok_or_else(|| missing(*oid))?;
                if let Some(alert) = self.alerts.values().find(|alert| alert.channels.contains(oid)) {
                    return Err(needed("notification channel", &channel.name, "Alert", &alert.name));
                }
            }
            Change::CreateAlert(alert) => {
                if next.alert_named(&alert.name).is_some() {
                    return Err(taken("alert", &alert.name));
                }
                next.next_oid = next.next_oid.max(alert.oid + 1);
                next.alerts.insert(alert.oid, Arc::clone(alert));
            }
            Change::AlterAlert(alert) => {
                next.alerts.insert(alert.oid, Arc::clone(alert)).ok_or_else(|| missing(alert.oid))?;
            }
            Change::DropAlert(oid) => {
                next.alerts.remove(oid).ok_or_else(|| missing(*oid))?;
            }
            Change::CreateSource(source) => {
                if next.source_named(&source.name).is_some() {
                    return Err(taken("source", &source.name));
                }
                next.table(source.table).ok_or_else(|| missing(source.table))?;
                next.next_oid = next.next_oid.max(source.oid + 1);
                next.sources.insert(source.oid, Arc::clone(source));
            }
            Change::AlterSource(source) => {
                next.sources.insert(source.oid, Arc::clone(source)).ok_or_else(|| missing(source.oid))?;
            }
            Change::DropSource(oid) => {
                next.sources.remove(oid).ok_or_else(|| missing(*oid))?;
            }
        }
        Ok(next)
    }

    /// 2BP01 while views, alerts or sources depend on an object.
    fn droppable(&self, oid: Oid, what: &str, name: &str) -> Result<()> {
        if let Some(view) = self.views.values().find(|view| view.oid != oid && view.reads(oid)) {
            return Err(needed(what, name, "Materialized view", &view.name));
        }
        if let Some(source) = self.sources.values().find(|source| source.table == oid) {
            return Err(needed(what, name, "Source", &source.name));
        }
        match self.alerts_reading(oid).next() {
            Some(alert) => Err(needed(what, name, "Alert", &alert.name)),
            None => Ok(()),
        }
    }

    fn claim(&mut self, oid: Oid, name: &str) -> Result<()> {
        if self.table_named(name).is_some() || self.view_named(name).is_some() {
            return Err(Error::new(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists")));
        }
        self.next_oid = self.next_oid.max(oid + 1);
        Ok(())
    }
}

fn needed(what: &str, name: &str, by_what: &str, by: &str) -> Error {
    let message = format!("cannot drop {what} {name} because other objects depend on it");
    Error::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
        .detail(format!("{by_what} {by} depends on {what} {name}."))
        .hint("Use DROP ... CASCADE to drop the dependent objects too.")
}

fn taken(what: &str, name: &str) -> Error {
    Error::new(SqlState::DUPLICATE_OBJECT, format!("{what} \"{name}\" already exists"))
}

fn missing(oid: Oid) -> Error {
    Error::new(SqlState::UNDEFINED_TABLE, format!("relation with OID {oid} does not exist"))
}
