//! The body of a request: its form, its bytes within the limits, its text.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::BytesMut;
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::limits::IngestLimits;
use crate::error::{Error, Result, SqlState};
use crate::telemetry::Metrics;

/// Bytes that are decompressed between two looks at the limits.
const STEP_BYTES: usize = 64 * 1024;

/// Greatest window of zstd, as a power of two: 8 MiB, what its format asks every decoder to have.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A body that has come whole, and the room that it takes.
#[derive(Debug)]
pub struct Arrived {
    /// As it came.
    pub bytes: Bytes,
    /// Released when the request is over.
    pub room: Room,
}

/// Bytes of `limits.ingest.in_flight_bytes_max` that a request has taken.
#[derive(Debug)]
pub struct Room {
    all: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
    metrics: Arc<Metrics>,
}

impl Room {
    fn new(all: &Arc<Semaphore>, metrics: &Arc<Metrics>) -> Room {
        Room { all: Arc::clone(all), taken: None, metrics: Arc::clone(metrics) }
    }

    fn take(&mut self, bytes: usize) -> Result<()> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.all).try_acquire_many_owned(permits).map_err(|_| {
            self.metrics.limit_hit("limits.ingest.in_flight_bytes_max");
            Error::new(SqlState::INSUFFICIENT_RESOURCES, "the requests under way fill their memory")
                .hint("Send the request again after the time in Retry-After.")
        })?;
        self.metrics.http_bodies_size.inc_by(i64::from(permits));
        match &mut self.taken {
            Some(before) => before.merge(taken),
            None => self.taken = Some(taken),
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.metrics.http_bodies_size.dec_by(taken as i64);
    }
}

/// A media type or coding that is not spoken here: 415.
pub const UNSUPPORTED_MEDIA: SqlState = SqlState("0A000");

/// How the body is coded. 0A000 for a type that is not JSON and a coding that is unknown.
pub fn form(headers: &HeaderMap) -> Result<Form> {
    let media = text_of(headers.get(header::CONTENT_TYPE));
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = matches!(
        media.as_str(),
        "" | "application/json"
            | "text/json"
            | "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/json-lines"
            | "text/plain"
            | "application/x-www-form-urlencoded"
    );
    // A browser's sendBeacon says text/plain, and curl's -d that the body is a form.
    let is_json = known || (media.starts_with("application/") && media.ends_with("+json"));
    if !is_json {
        return Err(Error::new(UNSUPPORTED_MEDIA, format!("content type \"{media}\" is not supported"))
            .hint("Send events as application/json or application/x-ndjson."));
    }
    match text_of(headers.get(header::CONTENT_ENCODING)).trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Form::Identity),
        "gzip" | "x-gzip" => Ok(Form::Gzip),
        "zstd" => Ok(Form::Zstd),
        other => Err(Error::new(UNSUPPORTED_MEDIA, format!("content encoding \"{other}\" is not supported"))
            .hint("Known are gzip, zstd and identity.")),
    }
}

fn text_of(value: Option<&HeaderValue>) -> &str {
    value.map_or("", |value| value.to_str().unwrap_or("?"))
}

/// A body beyond its limit: 413.
fn too_long(limits: &IngestLimits, metrics: &Metrics, what: &str) -> Error {
    metrics.limit_hit("limits.ingest.body_bytes_max");
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("the body is longer than {} bytes{what}", limits.body_bytes_max))
        .hint("Split the events over several requests, or raise limits.ingest.body_bytes_max.")
}

/// Reads a body. 54000 beyond `limits.ingest.body_bytes_max`, 53000 when the bodies under way fill their memory.
pub async fn read(body: Body, headers: &HeaderMap, limits: &IngestLimits, all: &Arc<Semaphore>, metrics: &Arc<Metrics>) -> Result<Arrived> {
    let announced = text_of(headers.get(header::CONTENT_LENGTH)).parse::<usize>().unwrap_or(0);
    if announced > limits.body_bytes_max {
        return Err(too_long(limits, metrics, ""));
    }
    let mut room = Room::new(all, metrics);
    let mut bytes = BytesMut::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Error::new(SqlState::CONNECTION_FAILURE, format!("the body did not come whole: {error}")))?;
        if bytes.len() + chunk.len() > limits.body_bytes_max {
            return Err(too_long(limits, metrics, ""));
        }
        room.take(chunk.len())?;
        if bytes.is_empty() {
            // Not more than has room: what is announced need not come.
            bytes.reserve(announced.max(chunk.len()).min(1 << 20));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Arrived { bytes: bytes.freeze(), room })
}

impl Form {
    /// The text of a body. 22021 when it is not UTF-8, 22P03 when it is not what its coding says, and as [`read`].
    pub fn text(self, bytes: Bytes, limits: &IngestLimits, room: &mut Room, metrics: &Metrics) -> Result<String> {
        let bytes = match self {
            Form::Identity => bytes.into(),
            Form::Gzip => inflate(MultiGzDecoder::new(&bytes[..]), limits, room, metrics)?,
            Form::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&bytes[..]).map_err(|error| undecodable(&error))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| undecodable(&error))?;
                inflate(decoder, limits, room, metrics)?
            }
        };
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\"")
                .detail(format!("The body is not UTF-8 from byte {at} on."))
        })
    }
}

fn undecodable(error: &std::io::Error) -> Error {
    Error::new(SqlState::INVALID_BINARY_REPRESENTATION, format!("the body cannot be decompressed: {error}"))
}

fn inflate(mut source: impl Read, limits: &IngestLimits, room: &mut Room, metrics: &Metrics) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut step = vec![0; STEP_BYTES];
    loop {
        let count = source.read(&mut step).map_err(|error| undecodable(&error))?;
        if count == 0 {
            return Ok(bytes);
        }
        if bytes.len() + count > limits.body_bytes_max {
            return Err(too_long(limits, metrics, " when it is decompressed"));
        }
        room.take(count)?;
        bytes.extend_from_slice(&step[..count]);
    }
}

/// The network of an address: what is kept of clients that send what is refused. The last 8 bits of IPv4 and 80 of IPv6 are left out.
pub fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
    }
}
