//! Tables that the server keeps about ingestion: events that were refused, and requests that were answered.
//!
//! *Place*: made when they are first needed; their rows are [`Note`]s of the transactions that they tell of.
//!
//! *Invariants*: (1) a note is durable with what it tells of, and gone without it; (2) both tables are bounded: by age (their retention),
//! `verus.rejected_events` also by size ([`rejected_bytes`], looked at by whoever adds to it).

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};

use crate::catalog::{Catalog, Change, Column, Oid, Table, TableKind, TableOptions, Watermark};
use crate::clock::Micros;
use crate::config::limits::IngestLimits;
use crate::error::{Error, Result, SqlState};
use crate::event::RefusedEvent;
use crate::store::{Note, Snapshot, Store, Transaction};
use crate::types::{SqlType, UTC};

/// Events that broke a rule, with the reason.
pub const REJECTED_EVENTS: &str = "verus.rejected_events";

/// Requests with an Idempotency-Key, with what was answered.
pub const REQUESTS: &str = "verus.requests";

/// Name, type and whether it can be NULL; the first column is the time.
type Columns = [(&'static str, SqlType, bool)];

const REJECTED_COLUMNS: &Columns = &[
    ("rejected_at", SqlType::Timestamptz, false),
    ("table_name", SqlType::Text, false),
    ("source", SqlType::Text, false),
    ("client", SqlType::Text, true),
    ("request", SqlType::Text, true),
    ("position", SqlType::BigInt, false),
    ("sqlstate", SqlType::Text, false),
    ("reason", SqlType::Text, false),
    ("detail", SqlType::Text, true),
    ("event", SqlType::Text, false),
    ("truncated", SqlType::Boolean, false),
];

const REQUEST_COLUMNS: &Columns = &[
    ("answered_at", SqlType::Timestamptz, false),
    ("table_oid", SqlType::BigInt, false),
    ("request", SqlType::Text, false),
    ("body", SqlType::BigInt, false),
    ("accepted", SqlType::BigInt, false),
    ("duplicates", SqlType::BigInt, false),
    ("late", SqlType::BigInt, false),
    ("refused", SqlType::Text, true),
];

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

fn definition(name: &str, oid: Oid, columns: &Columns, retention_us: i64) -> Table {
    let column = |(name, sql_type, nullable): &(&str, SqlType, bool)| Column {
        name: (*name).to_owned(),
        sql_type: sql_type.clone(),
        nullable: *nullable,
        default: None,
        generated: None,
        fill: None,
    };
    Table {
        oid,
        name: name.to_owned(),
        kind: TableKind::Event,
        columns: columns.iter().map(column).collect(),
        checks: Vec::new(),
        primary_key: Vec::new(),
        unique: Vec::new(),
        watermark: Some(Watermark { column: 0, lateness_us: 0 }),
        options: TableOptions { retention_us: Some(retention_us), ..TableOptions::default() },
        late_oid: None,
    }
}

/// One of the server's tables, made where it is not there yet.
async fn table(store: &Store, name: &str, columns: &Columns, retention_us: i64) -> Result<Arc<Table>> {
    loop {
        let change = match store.catalog().table_named(name) {
            Some(table) if table.options.retention_us == Some(retention_us) => return Ok(Arc::clone(table)),
            // The configuration has another retention than when the table was made.
            Some(table) => {
                let mut table = Table::clone(table);
                table.options.retention_us = Some(retention_us);
                Change::AlterTable(Arc::new(table))
            }
            None => Change::CreateTable(Arc::new(definition(name, store.allocate_oid(), columns, retention_us))),
        };
        let changes = vec![change];
        match store.commit(Transaction { changes, ..Transaction::default() }).await {
            // Another request has made it.
            Err(error) if error.state() == SqlState::DUPLICATE_TABLE => {}
            outcome => drop(outcome?),
        }
    }
}

/// Where refused events come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The table that they were sent to.
    pub table_name: String,
    /// The way they came: `http`, or the name of a source.
    pub source: String,
    /// The client's network, not its whole address.
    pub client: Option<String>,
    /// What the client calls the request; of a source, `topic/partition`.
    pub request: Option<String>,
}

/// Refused events as rows of `verus.rejected_events`; `text` is the input that they are part of.
pub async fn rejected(
    store: &Store,
    limits: &IngestLimits,
    origin: &Origin,
    text: &str,
    refused: &[RefusedEvent],
    now: Micros,
) -> Result<Note> {
    let days = i64::try_from(limits.rejected_days).unwrap_or(i64::MAX);
    let table = table(store, REJECTED_EVENTS, REJECTED_COLUMNS, days.saturating_mul(DAY_US)).await?;
    let rows = refused.len();
    let repeated = |value: &str| Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n(value, rows))) as ArrayRef;
    let optional = |value: Option<&str>| Arc::new(StringViewArray::from_iter(std::iter::repeat_n(value, rows))) as ArrayRef;
    let event = |refused: &RefusedEvent| text.get(refused.span.clone()).unwrap_or_default();
    let bytes_max = limits.rejected_event_bytes_max;
    let detail = |refused: &RefusedEvent| {
        let report = refused.error.report();
        let parts: Vec<&str> = [report.context.as_deref(), report.detail.as_deref()].into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    };
    let texts = |of: &dyn Fn(&RefusedEvent) -> String| Arc::new(StringViewArray::from_iter_values(refused.iter().map(of))) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_value(now, rows).with_timezone(UTC)),
        repeated(&origin.table_name),
        repeated(&origin.source),
        optional(origin.client.as_deref()),
        optional(origin.request.as_deref()),
        Arc::new(Int64Array::from_iter_values(refused.iter().map(|refused| refused.position as i64))),
        texts(&|refused| refused.error.state().0.to_owned()),
        texts(&|refused| refused.error.report().message.clone()),
        Arc::new(StringViewArray::from_iter(refused.iter().map(detail))),
        texts(&|refused| {
            let event = event(refused);
            event[..event.floor_char_boundary(bytes_max)].to_owned()
        }),
        Arc::new(refused.iter().map(|refused| Some(event(refused).len() > bytes_max)).collect::<BooleanArray>()),
    ];
    note(&table, columns)
}

/// Bytes of `verus.rejected_events` in memory and in files.
pub fn rejected_bytes(snapshot: &Snapshot) -> usize {
    let table = snapshot.catalog.table_named(REJECTED_EVENTS).and_then(|table| snapshot.tables.get(&table.oid));
    table.map_or(0, |table| table.hot_bytes() + table.files().iter().map(|file| file.bytes as usize).sum::<usize>())
}

/// A request with an Idempotency-Key. The store adds what became of its events.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Whose events it brought.
    pub table: Oid,
    /// The key.
    pub key: &'a str,
    /// Hash of the body.
    pub body: i64,
    /// What the answer says of refused events; none when there were none.
    pub refused: Option<&'a str>,
}

/// An answered request as a row of `verus.requests`.
pub async fn answered(store: &Store, limits: &IngestLimits, request: &Request<'_>, now: Micros) -> Result<Note> {
    let seconds = i64::try_from(limits.idempotency_seconds).unwrap_or(i64::MAX);
    let table = table(store, REQUESTS, REQUEST_COLUMNS, seconds.saturating_mul(SECOND_US)).await?;
    let number = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_value(now, 1).with_timezone(UTC)),
        number(i64::from(request.table)),
        Arc::new(StringViewArray::from_iter_values([request.key])),
        number(request.body),
        number(0),
        number(0),
        number(0),
        Arc::new(StringViewArray::from_iter([request.refused])),
    ];
    note(&table, columns)
}

fn note(table: &Table, columns: Vec<ArrayRef>) -> Result<Note> {
    let rows = RecordBatch::try_new(table.schema(), columns)
        .map_err(|error| Error::internal(format!("rows of {} do not fit: {error}", table.name)))?;
    Ok(Note { table: table.oid, rows })
}

/// Whether a table is there.
pub fn exists(catalog: &Catalog, name: &str) -> bool {
    catalog.table_named(name).is_some()
}
