//! Idempotency keys: a request that is sent again is answered as the first time and commits nothing.
//!
//! *Place*: in memory here, durable in `verus.requests`, whose row is committed with the events of its request.
//!
//! *Invariants*: (1) a key is known from its commit on, for `limits.ingest.idempotency_seconds` and as one of the last
//! `limits.ingest.idempotency_keys_max`; after a restart it is read back; (2) of two requests with one key at a time the second is refused
//! (55006, 409); (3) a key with another body is refused (42710, 422).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use axum::http::HeaderMap;
use futures::TryStreamExt;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::answer::{Answer, Counts};
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::config::limits::IngestLimits;
use crate::error::{Error, Result, SqlState};
use crate::ingest::ledger;
use crate::query::Context;
use crate::query::error::from_datafusion;
use crate::session::Services;
use crate::sql::Statement;
use crate::types::UTC;

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 255;

/// The key of a request, if it has one.
pub fn of(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "invalid Idempotency-Key")
            .detail(format!("A key has 1 to {KEY_BYTES_MAX} printable ASCII characters.")));
    }
    Ok(Some(key.to_owned()))
}

/// The keys that are known.
#[derive(Debug)]
pub struct Keys {
    shared: Arc<Mutex<Known>>,
    window_us: Micros,
    loaded: OnceCell<()>,
}

#[derive(Debug, Default)]
struct Known {
    keys_max: usize,
    entries: HashMap<u128, Entry>,
    /// Keys by age, the oldest first.
    order: VecDeque<u128>,
    under_way: HashSet<u128>,
}

/// What is known of an answered request.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    at: Micros,
    body: i64,
    counts: Counts,
    /// Whether the answer named refused events; which, the table has.
    refused: bool,
}

/// How a request with a key begins.
#[derive(Debug)]
pub enum Begun {
    /// It was answered.
    Known(Entry),
    /// It is the first.
    New(Turn),
}

/// A request under way. Dropped without an answer, it may be sent again.
#[derive(Debug)]
pub struct Turn {
    shared: Arc<Mutex<Known>>,
    key: u128,
    body: i64,
}

impl Keys {
    /// None yet.
    pub fn new(limits: &IngestLimits) -> Keys {
        let known = Known { keys_max: limits.idempotency_keys_max, ..Known::default() };
        let window_us = i64::try_from(limits.idempotency_seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        Keys { shared: Arc::new(Mutex::new(known)), window_us, loaded: OnceCell::new() }
    }

    /// Reads back what was known before the last restart, once.
    pub async fn load(&self, services: &Services) -> Result<()> {
        self.loaded.get_or_try_init(|| self.read(services)).await.map(|_| ())
    }

    async fn read(&self, services: &Services) -> Result<()> {
        if !ledger::exists(&services.store.catalog(), ledger::REQUESTS) {
            return Ok(());
        }
        // The newest, as many as are kept.
        let query = format!(
            "SELECT table_oid, request, body, accepted, duplicates, late, refused IS NOT NULL, \
             (extract(epoch FROM answered_at) * 1000000)::bigint FROM verus.requests ORDER BY answered_at DESC LIMIT {}",
            self.shared.lock().keys_max
        );
        let batches = rows(services, &query).await?;
        let since = services.clock.now().saturating_sub(self.window_us);
        let mut known = self.shared.lock();
        for batch in batches.iter().rev() {
            let number = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            let requests = batch.column(1).as_string_view();
            for row in (0..batch.num_rows()).rev() {
                let at = number(7, row);
                if at < since {
                    continue;
                }
                let count = |column| number(column, row).unsigned_abs();
                let counts = Counts { accepted: count(3), duplicates: count(4), late: count(5) };
                let refused = batch.column(6).as_boolean().value(row);
                let table = Oid::try_from(number(0, row)).unwrap_or(0);
                known.add(hash(table, requests.value(row)), Entry { at, body: number(2, row), counts, refused });
            }
        }
        Ok(())
    }

    /// Begins a request.
    pub fn begin(&self, table: Oid, key: &str, text: &str, now: Micros) -> Result<Begun> {
        let (key, body) = (hash(table, key), xxh3_64(text.as_bytes()) as i64);
        let mut known = self.shared.lock();
        known.forget_before(now.saturating_sub(self.window_us));
        if let Some(entry) = known.entries.get(&key) {
            if entry.body != body {
                return Err(Error::new(SqlState::DUPLICATE_OBJECT, "the Idempotency-Key was used for another body"));
            }
            return Ok(Begun::Known(*entry));
        }
        if !known.under_way.insert(key) {
            return Err(Error::new(SqlState::OBJECT_IN_USE, "a request with this Idempotency-Key is under way")
                .hint("Send the request again after the time in Retry-After."));
        }
        Ok(Begun::New(Turn { shared: Arc::clone(&self.shared), key, body }))
    }
}

impl Known {
    fn add(&mut self, key: u128, entry: Entry) {
        if self.entries.insert(key, entry).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.keys_max {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    fn forget_before(&mut self, since: Micros) {
        while let Some(oldest) = self.order.front().copied()
            && self.entries.get(&oldest).is_none_or(|entry| entry.at < since)
        {
            self.order.pop_front();
            self.entries.remove(&oldest);
        }
    }
}

impl Turn {
    /// Hash of the body.
    pub fn body(&self) -> i64 {
        self.body
    }

    /// The request is committed.
    pub fn answered(self, counts: Counts, refused: bool, at: Micros) {
        self.shared.lock().add(self.key, Entry { at, body: self.body, counts, refused });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.lock().under_way.remove(&self.key);
    }
}

fn hash(table: Oid, key: &str) -> u128 {
    xxh3_128(&[&table.to_le_bytes(), key.as_bytes()].concat())
}

/// Answers as the first time.
pub async fn repeat(services: &Services, table: Oid, key: &str, entry: &Entry) -> Result<Answer> {
    let mut refused = String::new();
    if entry.refused {
        let key = key.replace('\'', "''");
        let query = format!("SELECT refused FROM verus.requests WHERE table_oid = {table} AND request = '{key}' ORDER BY answered_at DESC");
        let batches = rows(services, &query).await?;
        if let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) {
            refused.push_str(batch.column(0).as_string_view().value(0));
        }
    }
    Ok(Answer { counts: entry.counts, refused, repeated: true })
}

/// The rows of a query, as of now.
pub async fn rows(services: &Services, query: &str) -> Result<Vec<RecordBatch>> {
    let context = Context {
        snapshot: services.store.snapshot(),
        now: services.clock.now(),
        time_zone: UTC.to_owned(),
        user: "verus".to_owned(),
        backend: 0,
        settings: Arc::default(),
    };
    let statement = Statement::Query(Box::new(crate::sql::parse_query(query)?));
    let bound = services.engine.bind(&context, &statement, &[])?;
    let stream = services.engine.run(&context, &bound, &[], CancellationToken::new()).await?;
    stream.try_collect().await.map_err(from_datafusion)
}
