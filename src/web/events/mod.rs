//! `POST /v1/events[/{table}]`: events as JSON, each exactly once; `docs/ingestion.md` describes it for users.
//!
//! *Place*: routes of [`super::serve`]. Decoding and rules are `ingest::events`', refused events and answered requests `ingest::ledger`'s.
//!
//! *Way of a request*: who sends it ([`admission`]); a place and room for the body ([`body`]); the key of a repeated one ([`keys`]); decode, sift and commit on the cpu
//! runtime, in one transaction with what was refused and with the key; the answer ([`answer`]).
//!
//! *Invariants*: (1) an answer that says accepted comes after the commit: durable and visible; (2) a request with an Idempotency-Key is
//! committed at most once, whatever happens to the connection, this process or the machine; (3) memory of bodies is bounded by
//! `limits.ingest.in_flight_bytes_max` and requests by `limits.ingest.requests_max`: what is beyond is refused at once (429).
//!
//! *On failure*: before the commit nothing is kept. A client that has heard nothing sends again, with the same key or with events that
//! have a `dedup_key`.

mod admission;
mod answer;
mod body;
mod client;
mod keys;
mod prune;
mod segment;

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::listener::Lease;
use crate::catalog::{Oid, Table};
use crate::clock::Micros;
use crate::command::relation;
use crate::config::limits::IngestLimits;
use crate::error::{Error, Result, SqlState};
use crate::ingest::defaults::Client;
use crate::ingest::events::{Events, Taken};
use crate::ingest::ledger;
use crate::session::Services;
use crate::sql::statement::Name;
use crate::store::{Transaction, Write};
pub(super) use admission::preflight;
use answer::{Answer, Counts};
use body::Arrived;
use keys::{Begun, Keys};
pub use prune::Prune;
pub(super) use segment::post as post_segment;

/// The table of `POST /v1/events`.
const DEFAULT_TABLE: &str = "events";

/// Rules that were bound so short a time ago are used again: `now()` in them is not older than that.
const BOUND_FOR_US: Micros = 1_000;

/// Tables whose bound rules are kept.
const BOUND_TABLES_MAX: usize = 64;

/// Times that a request is decoded again because its table was altered meanwhile.
const ATTEMPTS_MAX: usize = 3;

/// What requests share.
#[derive(Debug)]
pub struct Intake {
    limits: IngestLimits,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    keys: Keys,
    prune: Arc<Prune>,
    /// Of Segment's protocol.
    rules: segment::Rules,
    bound: Mutex<HashMap<Oid, (Micros, Arc<Events>)>>,
}

impl Intake {
    /// Nothing under way.
    pub fn new(limits: &IngestLimits) -> Intake {
        Intake {
            limits: limits.clone(),
            places: Arc::new(Semaphore::new(limits.requests_max)),
            room: Arc::new(Semaphore::new(limits.in_flight_bytes_max.min(Semaphore::MAX_PERMITS))),
            keys: Keys::new(limits),
            prune: Arc::new(Prune::new(limits.rejected_bytes_max)),
            rules: segment::Rules::default(),
            bound: Mutex::default(),
        }
    }

    /// What keeps `verus.rejected_events` small, for others that write to it.
    pub fn prune(&self) -> Arc<Prune> {
        Arc::clone(&self.prune)
    }

    /// The rules of a table, as of now.
    fn events(&self, services: &Services, table: &Arc<Table>) -> Result<Arc<Events>> {
        let now = services.clock.now();
        if let Some((at, events)) = self.bound.lock().get(&table.oid)
            && Arc::ptr_eq(events.table(), table)
            && (0..BOUND_FOR_US).contains(&(now - at))
        {
            return Ok(Arc::clone(events));
        }
        let events = Arc::new(Events::new(&*services.binder, table, now)?);
        let mut bound = self.bound.lock();
        if bound.len() >= BOUND_TABLES_MAX {
            bound.clear();
        }
        bound.insert(table.oid, (now, Arc::clone(&events)));
        Ok(events)
    }
}

/// What a body holds.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    /// Events.
    Events,
    /// Segment's messages, of this type.
    Segment(&'static str),
}

/// `POST /v1/events`.
pub(super) async fn post(state: State<super::Shared>, lease: ConnectInfo<Lease>, headers: HeaderMap, body: Body) -> Response {
    post_to(state, lease, Path(DEFAULT_TABLE.to_owned()), headers, body).await
}

/// `POST /v1/events/{table}`.
pub(super) async fn post_to(
    State(shared): State<super::Shared>,
    ConnectInfo(lease): ConnectInfo<Lease>,
    Path(table): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (origin, answered) = answered(&shared, &lease, table, &headers, body, Protocol::Events).await;
    admission::allow(answer::respond(answered), origin)
}

/// What is answered, and the origin that may see it.
async fn answered(
    shared: &super::Shared,
    lease: &Lease,
    table: String,
    headers: &HeaderMap,
    body: Body,
    protocol: Protocol,
) -> (Option<HeaderValue>, Result<Answer>) {
    lease.renew();
    let Some(services) = shared.door.services() else {
        let starting = Error::new(SqlState::CANNOT_CONNECT_NOW, "the database system is starting up or shutting down");
        return (None, Err(starting));
    };
    let (origin, answered) = match admission::origin(&services.config.http_origins, headers) {
        Ok(origin) => (origin, receive(services, &shared.intake, lease, table, (headers, body), protocol).await),
        Err(error) => (None, Err(error)),
    };
    if let Err(error) = &answered {
        services.metrics.error(error.state());
    }
    (origin, answered)
}

/// A request, from its head to its answer.
async fn receive(
    services: &Arc<Services>,
    intake: &Arc<Intake>,
    lease: &Lease,
    table: String,
    (headers, body): (&HeaderMap, Body),
    protocol: Protocol,
) -> Result<Answer> {
    let admitted = match protocol {
        Protocol::Events => Some(admission::partition(services, headers)?),
        Protocol::Segment(_) => admission::write_key(services, headers)?,
    };
    let form = body::form(headers)?;
    let key = keys::of(headers)?;
    let name = table_name(&table);
    relation::writable(&services.store.catalog(), &name)?;
    let busy = |limit: &'static str, message: &str| {
        services.metrics.limit_hit(limit);
        Error::new(SqlState::INSUFFICIENT_RESOURCES, message).hint("Send the request again after the time in Retry-After.")
    };
    if !services.store.has_room() {
        return Err(busy("limits.store.hot_bytes_max", "the server takes no more events until others are on disk"));
    }
    let place = Arc::clone(&intake.places).try_acquire_owned();
    let place = place.map_err(|_| busy("limits.ingest.requests_max", "too many requests are under way"))?;
    let arrived = body::read(body, headers, &intake.limits, &intake.room, &services.metrics).await?;
    lease.renew();
    let address = client::address(&services.config, headers, lease.peer());
    let request = Request {
        services: Arc::clone(services),
        intake: Arc::clone(intake),
        name,
        form,
        key,
        network: body::network(address),
        client: client::client(&services.config, headers, address),
        protocol,
        partition: admitted.clone().flatten(),
        admitted,
        _place: place,
    };
    // On a task of its own, which goes on when the client has gone: what was begun with a key is brought to its end.
    let task = services.spawner.cpu(async move { request.run(arrived).await });
    task.await.map_err(|_| Error::internal("taking the events ended by a panic"))?
}

fn table_name(path: &str) -> Name {
    Name { schema: None, name: path.strip_prefix("public.").unwrap_or(path).to_owned() }
}

/// A request whose body has come.
struct Request {
    services: Arc<Services>,
    intake: Arc<Intake>,
    name: Name,
    form: body::Form,
    key: Option<String>,
    /// The sender's network.
    network: String,
    /// The sender, as defaults may name it.
    client: Client,
    protocol: Protocol,
    /// Whether the head says who sends, and then the partition that the request is confined to.
    admitted: Option<Option<String>>,
    /// The partition that the request is confined to.
    partition: Option<String>,
    _place: OwnedSemaphorePermit,
}

impl Request {
    async fn run(mut self, arrived: Arrived) -> Result<Answer> {
        let Arrived { bytes, mut room } = arrived;
        self.services.metrics.http_received.inc_by(bytes.len() as u64);
        let mut text = self.form.text(bytes, &self.intake.limits, &mut room, &self.services.metrics)?;
        if let Protocol::Segment(kind) = self.protocol {
            (text, self.partition) = segment::events(&self, kind, &text).await?;
        }
        let Some(key) = &self.scoped_key() else { return self.commit(&text, None).await };
        let table = relation::writable(&self.services.store.catalog(), &self.name)?.oid;
        self.intake.keys.load(&self.services).await?;
        match self.intake.keys.begin(table, key, &text, self.services.clock.now())? {
            Begun::Known(entry) => keys::repeat(&self.services, table, key, &entry).await,
            Begun::New(turn) => {
                let answer = self.commit(&text, Some(&turn)).await?;
                turn.answered(answer.counts, !answer.refused.is_empty(), self.services.clock.now());
                Ok(answer)
            }
        }
    }

    /// The key with the partition that it belongs to: two stores may choose the same one. A header holds no unit separator.
    fn scoped_key(&self) -> Option<String> {
        let key = self.key.as_ref()?;
        Some(self.partition.as_ref().map_or_else(|| key.clone(), |partition| format!("{partition}\u{1f}{key}")))
    }

    /// Decodes and commits.
    async fn commit(&self, text: &str, turn: Option<&keys::Turn>) -> Result<Answer> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.attempt(text, turn).await {
                Err(error) if error.state() == SqlState::SERIALIZATION_FAILURE && attempts < ATTEMPTS_MAX => {}
                outcome => return outcome,
            }
        }
    }

    async fn attempt(&self, text: &str, turn: Option<&keys::Turn>) -> Result<Answer> {
        let services = &self.services;
        let table = relation::writable(&services.store.catalog(), &self.name)?;
        let events = self.intake.events(services, &table)?;
        let taken = events.take_from(text, self.partition.as_deref(), &self.client, self.intake.limits.refused_max);
        let Taken { rows, refused, .. } = taken.inspect_err(|error| {
            if error.state() == SqlState::DATA_EXCEPTION {
                services.metrics.limit_hit("limits.ingest.refused_max");
            }
        })?;
        let now = services.clock.now();
        let listed = answer::list(&refused);
        let mut notes = Vec::new();
        if !refused.is_empty() && self.intake.prune.has_room(services) {
            let origin = ledger::Origin {
                table_name: table.name.clone(),
                source: match self.protocol {
                    Protocol::Events => "http".to_owned(),
                    Protocol::Segment(_) => "segment".to_owned(),
                },
                client: Some(self.network.clone()),
                request: self.key.clone(),
            };
            notes.push(ledger::rejected(&services.store, &self.intake.limits, &origin, text, &refused, now).await?);
        }
        if let (Some(turn), Some(key)) = (turn, &self.scoped_key()) {
            let refused = (!refused.is_empty()).then_some(listed.as_str());
            let request = ledger::Request { table: table.oid, key, body: turn.body(), refused };
            notes.push(ledger::answered(&services.store, &self.intake.limits, &request, now).await?);
        }
        let writes = if rows.is_empty() { Vec::new() } else { vec![Write { table: table.oid, rows, late_rows: table.options.late_rows }] };
        let committed = services.store.commit(Transaction { writes, notes, ..Transaction::default() }).await?;
        if !refused.is_empty() {
            self.intake.prune.look(services);
        }
        services.metrics.events_refused.inc_by(refused.len() as u64);
        Ok(Answer {
            counts: Counts { accepted: committed.accepted, duplicates: committed.duplicates, late: committed.late },
            refused: listed,
            repeated: false,
        })
    }
}
