//! HTTP: `GET /health`, `GET /metrics`, `GET /views/{name}/changes`, and `POST /v1/events[/{table}]`, `POST /v1/track` and the rest of Segment's protocol.
//!
//! *Place*: started by `server` before recovery begins, so that a probe can tell "starting" from "dead". It knows the
//! store only through [`Health`] and, once it is ready, through [`Door`].
//!
//! *Invariants*: (1) at most `limits.wire.http_connections_max` connections, the next ones wait in the kernel's queue;
//! (2) no connection outlives [`CONNECTION_LIFETIME`], so a silent client holds nothing for ever; one with a stream of changes lives on
//! with each write that its client takes, one that brings events with each request that has come whole.

mod changes;
mod events;
mod listener;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::error::Error;
use crate::telemetry::Metrics;
use crate::types::text::to_json;
pub use changes::Door;
pub use events::{Intake, Prune};

/// How long a connection may last. Probes and scrapers reconnect.
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// What state the server is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Recovering: not yet listening for SQL.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what is under way.
    Stopping,
    /// The disk failed: nothing is accepted any more.
    Failed,
}

/// The answer of `/health`, as JSON. 200 when ready, else 503.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The state.
    pub status: Status,
    /// One past the last LSN that is durable and visible.
    pub next_lsn: u64,
}

/// What HTTP may ask of the rest of the server. Must not block.
pub trait Health: Send + Sync + 'static {
    /// The present state.
    fn report(&self) -> Report;
}

#[derive(Clone)]
struct Shared {
    health: Arc<dyn Health>,
    metrics: Arc<Metrics>,
    door: Arc<Door>,
    intake: Arc<Intake>,
}

/// Serves until `shutdown` resolves; then finishes the requests under way.
pub async fn serve(
    listener: TcpListener,
    connections_max: usize,
    health: Arc<dyn Health>,
    metrics: Arc<Metrics>,
    door: Arc<Door>,
    intake: Arc<Intake>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/health", get(tell))
        .route("/metrics", get(expose))
        .route("/views/{name}/changes", get(changes::stream))
        .route("/v1/events", post(events::post).options(events::preflight))
        .route("/v1/events/{table}", post(events::post_to).options(events::preflight))
        .route("/v1/{call}", post(events::post_segment).options(events::preflight))
        .with_state(Shared { health, metrics, door, intake })
        .into_make_service_with_connect_info::<listener::Lease>();
    let listener = listener::Bounded::new(listener, connections_max, CONNECTION_LIFETIME);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn tell(State(shared): State<Shared>) -> Response {
    #[derive(Serialize)]
    struct Body {
        #[serde(flatten)]
        report: Report,
        version: &'static str,
    }
    let report = shared.health.report();
    let code = if report.status == Status::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&Body { report, version: env!("CARGO_PKG_VERSION") }) {
        Ok(body) => (code, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn expose(State(shared): State<Shared>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An error as a JSON object.
fn report(error: &Error) -> Vec<u8> {
    let report = error.report();
    let fields = [
        ("code", Some(report.state.0)),
        ("message", Some(&report.message)),
        ("detail", report.detail.as_deref()),
        ("hint", report.hint.as_deref()),
        ("context", report.context.as_deref()),
    ];
    let mut out = vec![b'{'];
    for (name, value) in fields {
        let Some(value) = value else { continue };
        if out.len() > 1 {
            out.push(b',');
        }
        to_json::string(name.as_bytes(), &mut out);
        out.push(b':');
        to_json::string(value.as_bytes(), &mut out);
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Fixed(Status);

    impl Health for Fixed {
        fn report(&self) -> Report {
            Report { status: self.0, next_lsn: 42 }
        }
    }

    async fn ask(status: Status, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(
            listener,
            2,
            Arc::new(Fixed(status)),
            Arc::new(Metrics::default()),
            Door::new(1, CancellationToken::new()),
            Arc::new(Intake::new(&crate::config::limits::IngestLimits::default())),
            std::future::pending(),
        );
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::select! {
            result = server => panic!("{result:?}"),
            answer = client => answer,
        }
    }

    #[tokio::test]
    async fn health_tells_the_state_and_metrics_the_counts() {
        let answer = ask(Status::Ready, "/health").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(r#"{"status":"ready","next_lsn":42,"version":""#), "{answer}");
        assert!(ask(Status::Starting, "/health").await.starts_with("HTTP/1.1 503"));
        assert!(ask(Status::Ready, "/metrics").await.contains("verus_commits_total 0"));
        assert!(ask(Status::Ready, "/views/v/changes").await.starts_with("HTTP/1.1 503"));
        assert!(ask(Status::Ready, "/elsewhere").await.starts_with("HTTP/1.1 404"));
    }
}
