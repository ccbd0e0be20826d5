//! `GET /views/{name}/changes`: SUBSCRIBE as server-sent events.
//!
//! *Place*: a route of [`super::serve`]; the rows are `command::subscribe`'s.
//!
//! A row is `event: snapshot | update | delete` with the row as JSON in `data`. What belongs to an LSN ends with
//! `event: progress`, whose `id` is that LSN: a browser sends it back as `Last-Event-ID` when it connects again, and the stream goes on
//! from there. Rows carry no id, so that nobody resumes in the midst of them. `?from=` says the same; `?snapshot=false`, `?progress=false`
//! and `?up_to=` are SUBSCRIBE's; any other parameter is a column of the view with the value that it must have.
//!
//! *Invariants*: (1) with a password only user verus gets in (Basic), without one the address is a loopback address; (2) at most
//! `limits.wire.http_subscribers_max` streams; (3) a stream holds one batch beyond what the socket takes; a client that reads nothing
//! for [`super::CONNECTION_LIFETIME`] is cut off; (4) streams end when the server stops.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::listener::{Lease, Streaming};
use super::report;
use crate::command::subscribe;
use crate::error::{Error, Result, SqlState};
use crate::query::Context;
use crate::query::error::from_datafusion;
use crate::session::Services;
use crate::sql::statement::{Name, Subscribe, quote_identifier};
use crate::types::text::Style;
use crate::types::text::to_json::{self, JsonWriter};
use crate::types::{SqlType, UTC};

/// A comment is sent when nothing else was for so long, so that both ends notice when the other has gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Bytes of a query string.
const QUERY_BYTES_MAX: usize = 8 * 1024;

/// The way from HTTP to the views: open once the server is ready.
#[derive(Debug)]
pub struct Door {
    services: OnceLock<Arc<Services>>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Door {
    /// A door that is closed until [`Door::open`]. `stop` ends the streams.
    pub fn new(streams_max: usize, stop: CancellationToken) -> Arc<Door> {
        Arc::new(Door { services: OnceLock::new(), places: Arc::new(Semaphore::new(streams_max)), stop })
    }

    /// The open server; none before it is ready and when it stops.
    pub(super) fn services(&self) -> Option<&Arc<Services>> {
        self.services.get().filter(|_| !self.stop.is_cancelled())
    }

    /// The server is ready.
    pub fn open(&self, services: Arc<Services>) {
        // A second call is a programming error without harm: the first one stays.
        let _ = self.services.set(services);
    }
}

/// The handler.
pub(super) async fn stream(
    State(shared): State<super::Shared>,
    ConnectInfo(lease): ConnectInfo<Lease>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let door = &shared.door;
    let Some(services) = door.services() else {
        return refused(&Error::new(SqlState::CANNOT_CONNECT_NOW, "the database system is starting up or shutting down"));
    };
    if !admitted(services, &headers) {
        let error = Error::new(SqlState::INVALID_PASSWORD, "password authentication failed for user \"verus\"");
        return ([(header::WWW_AUTHENTICATE, "Basic realm=\"verus\", charset=\"UTF-8\"")], refused(&error)).into_response();
    }
    let Ok(place) = Arc::clone(&door.places).try_acquire_owned() else {
        services.metrics.limit_hit("limits.wire.http_subscribers_max");
        return refused(&Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many subscriptions over HTTP"));
    };
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("not a number").to_owned());
    let cancel = CancellationToken::new();
    let started = {
        let (services, cancel) = (Arc::clone(services), cancel.clone());
        // Planning has the cpu runtime's deep stack.
        services.spawner.clone().cpu(async move { start(&services, &name, query.as_deref(), last, cancel).await })
    };
    match started.await {
        Ok(Ok(rows)) => {
            let events = Events { rows, stop: door.stop.clone(), ended: false, _place: place, _streaming: lease.stream() };
            respond(events)
        }
        Ok(Err(error)) => {
            services.metrics.error(error.state());
            refused(&error)
        }
        Err(_) => refused(&Error::internal("starting the subscription ended by a panic")),
    }
}

async fn start(
    services: &Arc<Services>,
    name: &str,
    query: Option<&str>,
    last: Option<String>,
    cancel: CancellationToken,
) -> Result<SendableRecordBatchStream> {
    let snapshot = services.store.snapshot();
    let (mut options, mut conditions) = (Vec::new(), Vec::new());
    for (key, value) in parameters(query.unwrap_or_default())? {
        match key.as_str() {
            // What the browser has seen counts more than the address that it was first given.
            "from" | "from_lsn" | "since" if last.is_some() => {}
            "from" | "from_lsn" | "since" => options.push(("from_lsn".to_owned(), value)),
            "snapshot" | "progress" | "up_to" => options.push((key, value)),
            _ => conditions.push(format!("{} = '{}'", quote_identifier(&key), value.replace('\'', "''"))),
        }
    }
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        options.retain(|(key, _)| key != "snapshot");
        options.push(("from_lsn".to_owned(), last));
    }
    let view = Name { schema: None, name: name.to_owned() };
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let query = crate::sql::parse_query(&format!("SELECT * FROM {view}{condition}"))?;
    let context = Context {
        snapshot,
        now: services.clock.now(),
        time_zone: UTC.to_owned(),
        user: "verus".to_owned(),
        backend: 0,
        settings: Arc::default(),
    };
    let statement = Subscribe { view, options, query: Box::new(query) };
    subscribe::start(services, context, &statement, cancel).await.map(|(_, rows)| rows)
}

/// Whether the request brings the password, where there is one.
pub(super) fn admitted(services: &Services, headers: &HeaderMap) -> bool {
    let Some(password) = &services.config.password else { return true };
    let expected = format!("Basic {}", base64(format!("verus:{}", password.expose()).as_bytes()));
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    // Compared whole, so that the time does not tell how much of it is right.
    given.len() == expected.len() && given.iter().zip(expected.as_bytes()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

/// The pairs of a query string.
fn parameters(query: &str) -> Result<Vec<(String, String)>> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the query string is too long"));
    }
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "true"))).map(|(key, value)| Ok((decoded(key)?, decoded(value)?))).collect()
}

/// `%41` and `+` read.
fn decoded(text: &str) -> Result<String> {
    let invalid = || Error::new(SqlState::INVALID_PARAMETER_VALUE, "the query string is not valid");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(invalid);
                u8::try_from(digit()? * 16 + digit()?).map_err(|_| invalid())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

fn refused(error: &Error) -> Response {
    let code = match error.state() {
        SqlState::UNDEFINED_TABLE => StatusCode::NOT_FOUND,
        SqlState::INVALID_PASSWORD => StatusCode::UNAUTHORIZED,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => StatusCode::CONFLICT,
        SqlState::CONFIGURATION_LIMIT_EXCEEDED | SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN => StatusCode::SERVICE_UNAVAILABLE,
        SqlState::INTERNAL_ERROR | SqlState::DATA_CORRUPTED | SqlState::OUT_OF_MEMORY => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut body = report(error);
    body.push(b'\n');
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A stream under way.
struct Events {
    rows: SendableRecordBatchStream,
    stop: CancellationToken,
    ended: bool,
    _place: OwnedSemaphorePermit,
    _streaming: Streaming,
}

fn respond(events: Events) -> Response {
    let chunks = futures::stream::unfold(events, |mut events| async move {
        let chunk = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), events))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies would wait for more.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                self.ended = true;
                return Some(Bytes::from_static(b": the server is shutting down\n\n"));
            }
            next = tokio::time::timeout(KEEP_ALIVE, self.rows.next()) => next,
        };
        let outcome = match next {
            Err(_) => return Some(Bytes::from_static(b":\n\n")),
            Ok(None) => return None,
            Ok(Some(rows)) => rows.map_err(from_datafusion).and_then(|rows| events(&rows)),
        };
        Some(outcome.unwrap_or_else(|error| {
            self.ended = true;
            let mut out = b"event: error\ndata: ".to_vec();
            out.extend(report(&error));
            out.extend_from_slice(b"\n\n");
            Bytes::from(out)
        }))
    }
}

/// Rows of a subscription as events.
fn events(rows: &RecordBatch) -> Result<Bytes> {
    let schema = rows.schema();
    let columns = rows.columns().iter().zip(schema.fields()).skip(2);
    let style = Style::default();
    let writers = columns
        .map(|(column, field)| {
            let mut name = Vec::new();
            to_json::string(field.name().as_bytes(), &mut name);
            Ok((name, JsonWriter::new(column.as_ref(), &SqlType::of_field(field), &style)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let (lsns, kinds) = (rows.column(0).as_primitive::<Int64Type>(), rows.column(1).as_string_view());
    let mut out = Vec::with_capacity(rows.num_rows() * 128);
    for row in 0..rows.num_rows() {
        let (lsn, kind) = (lsns.value(row), kinds.value(row));
        if kind == "progress" {
            out.extend_from_slice(format!("event: progress\nid: {lsn}\ndata: {{\"lsn\":{lsn}}}\n\n").as_bytes());
            continue;
        }
        out.extend_from_slice(format!("event: {kind}\ndata: ").as_bytes());
        let start = out.len();
        for (index, (name, writer)) in writers.iter().enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            out.extend_from_slice(name);
            out.push(b':');
            writer.write(row, &mut out);
        }
        out.extend_from_slice(if writers.is_empty() { b"{}" } else { b"}" });
        // Line ends in a json value stand between its tokens only; in an event they would end the data.
        out[start..].iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        out.extend_from_slice(b"\n\n");
    }
    Ok(Bytes::from(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("verus:ä?>", "dmVydXM6w6Q/Pg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn query_strings_are_decoded_or_refused() {
        let pairs = parameters("from=12&store_id=a%26b+c&snapshot").unwrap();
        let expected = [("from", "12"), ("store_id", "a&b c"), ("snapshot", "true")];
        assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(parameters("a=%4").is_err() && parameters("a=%zz").is_err() && parameters("a=%ff").is_err());
    }
}
