//! Segment's protocol: `POST /v1/track`, `/v1/page`, `/v1/screen`, `/v1/identify`, `/v1/group`, `/v1/alias`, `/v1/batch`, and the short names
//! that its browser library uses; `docs/ingestion.md` describes it for users.
//!
//! *Place*: routes of [`crate::web::serve`]. [`message`] turns messages into events by the rules that [`mapping`] reads; from there on they go the
//! way of `POST /v1/events`.
//!
//! *Invariants*: (1) the answer says success after the commit; (2) the write key is an ingest token, in the header (Basic) or in the body.

mod mapping;
mod message;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{self, Answer, Counts};
use super::{DEFAULT_TABLE, Lease, Protocol, Request, admission};
use crate::command::relation;
use crate::error::{Error, Result, SqlState};
use crate::web::Shared;
pub use mapping::Rules;
use message::Around;

/// Bytes of a body, decompressed: taken apart it takes a multiple of them. Segment's own limit is half a megabyte.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A call's name in the path, and the type of its messages.
const CALLS: [(&str, &str); 15] = [
    ("track", "track"),
    ("t", "track"),
    ("page", "page"),
    ("p", "page"),
    ("screen", "screen"),
    ("s", "screen"),
    ("identify", "identify"),
    ("i", "identify"),
    ("group", "group"),
    ("g", "group"),
    ("alias", "alias"),
    ("a", "alias"),
    ("batch", "batch"),
    ("b", "batch"),
    ("import", "batch"),
];

/// `POST /v1/{call}`.
pub(in crate::web) async fn post(
    State(shared): State<Shared>,
    ConnectInfo(lease): ConnectInfo<Lease>,
    Path(call): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some((_, kind)) = CALLS.iter().find(|(name, _)| *name == call) else { return StatusCode::NOT_FOUND.into_response() };
    let (origin, answered) = super::answered(&shared, &lease, DEFAULT_TABLE.to_owned(), &headers, body, Protocol::Segment(kind)).await;
    admission::allow(respond(answered), origin)
}

/// The events of a body, and the partition that its write key confines them to.
pub(super) async fn events(request: &Request, kind: &str, text: &str) -> Result<(String, Option<String>)> {
    if text.len() > BODY_BYTES_MAX {
        return Err(Error::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the body is longer than {BODY_BYTES_MAX} bytes when it is decompressed"),
        ));
    }
    let malformed = |error: serde_json::Error| {
        Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json").detail(format!("{error}."))
    };
    let body: Value = serde_json::from_str(text).map_err(malformed)?;
    let services = &request.services;
    let partition = match (&request.admitted, body.get("writeKey").and_then(Value::as_str)) {
        (Some(partition), _) => partition.clone(),
        (None, Some(key)) => admission::token(services, key)?,
        (None, None) => {
            return Err(Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "a write key is needed")
                .hint("CREATE INGEST TOKEN makes one; it is the user of Basic authentication, or the body's writeKey."));
        }
    };
    let mapping = request.intake.rules.now(services).await?;
    let table = relation::writable(&services.store.catalog(), &request.name)?;
    let column = table.options.partition_by.map(|column| table.columns[column].name.as_str());
    let around = Around { kind, given: column.filter(|_| partition.is_some()), addresses: services.config.client_addresses };
    let mut lines = String::with_capacity(text.len());
    if kind == "batch" {
        let Some(batch) = body.get("batch").and_then(Value::as_array) else {
            return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "the body has no list called batch"));
        };
        batch.iter().for_each(|message| mapping.events(message, around, &mut lines));
    } else {
        mapping.events(&body, around, &mut lines);
    }
    Ok((lines, partition))
}

/// As the libraries expect it. What was refused is told, and kept in `verus.rejected_events`; an answer is only a failure when nothing was taken.
fn respond(answered: Result<Answer>) -> Response {
    let (code, body) = match answered {
        Ok(Answer { counts, refused, .. }) => {
            let Counts { accepted, duplicates, late } = counts;
            match (refused.is_empty(), accepted + duplicates + late) {
                (true, _) => (StatusCode::OK, "{\"success\":true}\n".to_owned()),
                (false, 0) => (
                    StatusCode::BAD_REQUEST,
                    format!(
                        "{{\"success\":false,\"code\":\"invalid_request\",\"message\":\"every message was refused\",\"refused\":[{refused}]}}\n"
                    ),
                ),
                (false, _) => (StatusCode::OK, format!("{{\"success\":true,\"refused\":[{refused}]}}\n")),
            }
        }
        Err(error) => {
            let report = error.report();
            let body = json!({ "success": false, "code": report.state.0, "message": report.message, "detail": report.detail, "hint": report.hint });
            (answer::status(error.state()), format!("{body}\n"))
        }
    };
    let mut response = (code, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    answer::with_retry(&mut response);
    response
}
