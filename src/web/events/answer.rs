//! Answers: 200 when every event was taken, 207 when some were refused, 422 when all were; else the error.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Result, SqlState};
use crate::event::RefusedEvent;
use crate::web::report;

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Says that the request was answered before.
const REPEATED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What became of the events that broke no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the table.
    pub accepted: u64,
    /// Dropped, because their key was known.
    pub duplicates: u64,
    /// In the table's `$late` companion.
    pub late: u64,
}

/// What is answered after a commit.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What became of them.
    pub counts: Counts,
    /// The refused events as a list in JSON, without its brackets; empty when there are none.
    pub refused: String,
    /// It was answered before.
    pub repeated: bool,
}

/// Refused events as members of a list: `{"position":3,"code":"23514","message":"..."}`.
pub fn list(refused: &[RefusedEvent]) -> String {
    let mut text = Vec::new();
    for RefusedEvent { position, error, .. } in refused {
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(format!("{{\"position\":{position},").as_bytes());
        // The report is an object: its brace has been written.
        text.extend_from_slice(&report(error)[1..]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The response.
pub fn respond(answered: Result<Answer>) -> Response {
    match answered {
        Ok(answer) => {
            let Counts { accepted, duplicates, late } = answer.counts;
            let mut body = format!("{{\"accepted\":{accepted},\"duplicates\":{duplicates},\"late\":{late}");
            if !answer.refused.is_empty() {
                body.push_str(",\"refused\":[");
                body.push_str(&answer.refused);
                body.push(']');
            }
            body.push_str("}\n");
            let code = match (answer.refused.is_empty(), accepted + duplicates + late) {
                (true, _) => StatusCode::OK,
                (false, 0) => StatusCode::UNPROCESSABLE_ENTITY,
                (false, _) => StatusCode::MULTI_STATUS,
            };
            let mut response = (code, [(header::CONTENT_TYPE, "application/json")], body).into_response();
            if answer.repeated {
                response.headers_mut().insert(REPEATED, HeaderValue::from_static("true"));
            }
            response
        }
        Err(error) => refuse(&error),
    }
}

/// An error that refuses the whole request.
fn refuse(error: &Error) -> Response {
    let code = status(error.state());
    let mut body = report(error);
    body.push(b'\n');
    let mut response = (code, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    with_retry(&mut response);
    response
}

/// What a client has to know of a refusal: when to try again, or how to say who it is.
pub fn with_retry(response: &mut Response) {
    let code = response.status();
    let headers = response.headers_mut();
    if matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT) {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"verus\""));
    }
}

/// The code of an error that refuses the whole request.
pub fn status(state: SqlState) -> StatusCode {
    match state {
        SqlState::UNDEFINED_TABLE => StatusCode::NOT_FOUND,
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => StatusCode::UNAUTHORIZED,
        SqlState::INSUFFICIENT_PRIVILEGE => StatusCode::FORBIDDEN,
        SqlState::FEATURE_NOT_SUPPORTED => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        SqlState::PROGRAM_LIMIT_EXCEEDED => StatusCode::PAYLOAD_TOO_LARGE,
        SqlState::UNIQUE_VIOLATION | SqlState::OBJECT_IN_USE | SqlState::SERIALIZATION_FAILURE => StatusCode::CONFLICT,
        SqlState::DATETIME_FIELD_OVERFLOW | SqlState::DATA_EXCEPTION | SqlState::DUPLICATE_OBJECT => StatusCode::UNPROCESSABLE_ENTITY,
        SqlState::INSUFFICIENT_RESOURCES | SqlState::OUT_OF_MEMORY | SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            StatusCode::TOO_MANY_REQUESTS
        }
        SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::DISK_FULL => StatusCode::SERVICE_UNAVAILABLE,
        SqlState::INTERNAL_ERROR | SqlState::DATA_CORRUPTED | SqlState::SYSTEM_ERROR | SqlState::IO_ERROR => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::BAD_REQUEST,
    }
}
