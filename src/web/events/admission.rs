//! Who may send events: bearer tokens, and the origins of browsers' requests.
//!
//! *Invariants*: (1) with a password, a request needs a token or user verus's password; without one the address is a loopback address and
//! ingestion is open; (2) a token that is given must be valid, also where none is needed; (3) a request that a browser makes for a page
//! of another origin is refused unless that origin is configured: without a token, any page could send events to a server on the
//! machine of its reader.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::catalog::token::IngestToken;
use crate::error::{Error, Result, SqlState};
use crate::session::Services;
use crate::web::changes;

/// Seconds for which a browser may remember a preflight's answer.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("86400");

/// The partition that the request is confined to, if it is. 28000 without a valid token where one is needed.
pub fn partition(services: &Services, headers: &HeaderMap) -> Result<Option<String>> {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
    let bearer = given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    if let Some((_, token)) = bearer {
        return known(services, token).ok_or_else(|| invalid("the ingest token is not valid"));
    }
    match changes::admitted(services, headers) {
        true => Ok(None),
        false if given.is_some() => Err(Error::new(SqlState::INVALID_PASSWORD, "password authentication failed for user \"verus\"")),
        false => Err(Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "an ingest token is needed")
            .hint("CREATE INGEST TOKEN makes one; send it as Authorization: Bearer <token>.")),
    }
}

/// The partition of a token, in its own option; none for a token that is not known.
fn known(services: &Services, token: &str) -> Option<Option<String>> {
    let hash = IngestToken::hash_of(token.trim());
    services.store.catalog().tokens().find(|known| known.hash == hash).map(|known| known.store.clone())
}

fn invalid(message: &str) -> Error {
    Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
}

/// The partition that a write key of Segment's protocol confines to. Where no password is asked for, any key will do: its libraries always
/// send one.
pub fn token(services: &Services, write_key: &str) -> Result<Option<String>> {
    match known(services, write_key) {
        Some(partition) => Ok(partition),
        None if services.config.password.is_none() => Ok(None),
        None => Err(invalid("the write key is not a valid ingest token")
            .hint("CREATE INGEST TOKEN makes one; it is the user of Basic authentication, or the body's writeKey.")),
    }
}

/// The same of a request's head: the user of Basic authentication, or a token as everywhere. None where the body has to say, or nobody asks.
pub fn write_key(services: &Services, headers: &HeaderMap) -> Result<Option<Option<String>>> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let basic = given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    if let Some((_, encoded)) = basic
        && !(services.config.password.is_some() && changes::admitted(services, headers))
    {
        let user = decoded(encoded.trim()).ok_or_else(|| invalid("the Authorization header is not Basic authentication"))?;
        return token(services, user.split(':').next().unwrap_or_default()).map(Some);
    }
    match given {
        Some(_) => partition(services, headers).map(Some),
        None if services.config.password.is_none() => Ok(Some(None)),
        None => Ok(None),
    }
}

/// RFC 4648; none for what is no text in it.
fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The origin of a browser's request, where it is another than the server's own. 42501 for one that is not configured.
pub fn origin(origins: &[String], headers: &HeaderMap) -> Result<Option<HeaderValue>> {
    let Some(value) = headers.get(header::ORIGIN) else { return Ok(None) };
    let origin = value.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // A name could be made to lead here by whoever owns it: only what cannot is the server's own without being asked for.
    if origin.split_once("://").is_some_and(|(_, own)| own.eq_ignore_ascii_case(host)) && is_literal(host) {
        return Ok(None);
    }
    match origins.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin)) {
        true => Ok(Some(value.clone())),
        false => Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, "pages of this origin may not send events")
            .hint("Add it to http_origins in the configuration.")),
    }
}

/// Whether a host, with or without a port, is `localhost` or an address.
fn is_literal(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Lets a browser show the answer to the page.
pub fn allow(mut response: Response, origin: Option<HeaderValue>) -> Response {
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Idempotency-Replayed, Retry-After"));
    }
    response
}

/// `OPTIONS`: what a browser asks before it sends events.
pub(in crate::web) async fn preflight(State(shared): State<crate::web::Shared>, headers: HeaderMap) -> Response {
    let answers: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type, Content-Encoding, Idempotency-Key")),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    let origins = shared.door.services().map(|services| services.config.http_origins.clone()).unwrap_or_default();
    match origin(&origins, &headers) {
        Ok(origin) => allow((StatusCode::NO_CONTENT, answers).into_response(), origin),
        Err(_) => StatusCode::FORBIDDEN.into_response(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn basic_authentication_is_read() {
        assert_eq!(super::decoded("dmVydXNfYWJjOg==").as_deref(), Some("verus_abc:"));
        assert_eq!(super::decoded("YTpi").as_deref(), Some("a:b"));
        assert_eq!(super::decoded("a b"), None);
    }
}
