//! The PostgreSQL wire: the only importer of `pgwire`.
//!
//! *Place*: `server` calls [`serve`]; each connection makes a `session::Session` and hands its statements to `command`.
//!
//! A connection's way: [`serve`] accepts -> `startup` logs in (io runtime, under the login timeout) -> `connection` loops (cpu runtime)
//! -> `simple` or `extended` -> `command::prepare`, `command::execute` -> `respond` -> `rows` or `copy` -> `sink`.
//!
//! Of pgwire only the messages, their codec and SCRAM are used. Its handler traits cannot cancel a running plan, notice a client that
//! has gone, or commit several statements as one.
//!
//! *Invariants*: (1) frames are checked before they are decoded; (2) nothing that a client sends ends more than its own session; (3) on
//! shutdown idle sessions end at once, running statements get [`SHUTDOWN_GRACE`].

mod auth;
mod connection;
mod copy;
mod error;
mod extended;
mod frame;
mod oid;
mod parameter;
mod respond;
mod rows;
mod running;
mod simple;
mod sink;
mod startup;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, SqlState};
use crate::pg::auth::Verifier;
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::frame::Reader;
use crate::pg::sink::Sink;
use crate::session::{Services, Session};

/// How long running statements may go on after the shutdown.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(6);

/// Connections that may be logging in beyond those that have a session: a cancel request must get through when all are taken.
const LOGINS_MAX: usize = 64;

/// Pause after the system refused a connection (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `shutdown` fires, then waits until the sessions are done.
pub async fn serve(listener: TcpListener, services: Arc<Services>, shutdown: CancellationToken) -> Result<()> {
    let verifier = services.config.password.as_ref().map(|password| Arc::new(Verifier::new(password)));
    let places = Arc::new(Semaphore::new(services.config.limits.wire.connections_max));
    let logins = Arc::new(Semaphore::new(LOGINS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &logins) => accepted,
        };
        match accepted {
            Ok((stream, client, login)) => {
                let door = Door { services: Arc::clone(&services), verifier: verifier.clone(), places: Arc::clone(&places) };
                connections.spawn_on(door.enter(stream, client, login, shutdown.clone()), services.spawner.io_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_GRACE, finished).await.is_err() {
        tracing::warn!("sessions that did not end by themselves are terminated");
        services.registry.terminate_all();
        let last = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }
    Ok(())
}

async fn accept(listener: &TcpListener, logins: &Arc<Semaphore>) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // While too many are logging in, the next ones wait in the system's queue.
    let login = Arc::clone(logins).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, client, login))
}

/// What a connection needs to become a session.
struct Door {
    services: Arc<Services>,
    verifier: Option<Arc<Verifier>>,
    places: Arc<Semaphore>,
}

impl Door {
    async fn enter(self, stream: TcpStream, client: SocketAddr, login: OwnedSemaphorePermit, shutdown: CancellationToken) {
        let metrics = &self.services.metrics;
        metrics.connections_opened.inc();
        let (read, write) = stream.into_split();
        let (mut reader, mut sink) = (Reader::new(read), Sink::new(write));
        let outcome = self.login(&mut reader, &mut sink, client, &shutdown).await;
        drop(login);
        let fault = match outcome {
            Ok(Some((session, place))) => {
                metrics.connections.inc();
                let connection = Connection::new(reader, sink, session, shutdown);
                let ended = self.services.spawner.cpu(connection.run()).await;
                metrics.connections.dec();
                drop(place);
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection ended by a panic");
                }
                return;
            }
            Ok(None) => return,
            Err(fault) => fault,
        };
        if let Fault::Fatal(error) | Fault::Statement(error) = fault {
            metrics.error(error.state());
            sink.put(&error::response("FATAL", &error));
            let _ = tokio::time::timeout(Duration::from_secs(1), sink.flush()).await;
        }
    }

    async fn login(
        &self,
        reader: &mut Reader,
        sink: &mut Sink,
        client: SocketAddr,
        shutdown: &CancellationToken,
    ) -> Result<Option<(Session, OwnedSemaphorePermit)>, Fault> {
        let limit = Duration::from_secs(self.services.config.limits.wire.login_seconds_max);
        let session = tokio::select! {
            session = startup::login(reader, sink, &self.services, self.verifier.as_deref(), Some(client)) => session?,
            () = tokio::time::sleep(limit) => {
                self.services.metrics.limit_hit("limits.wire.login_seconds_max");
                return Err(Fault::Fatal(Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "canceling authentication due to timeout")));
            }
            () = shutdown.cancelled() => {
                return Err(Fault::Fatal(Error::new(SqlState::CANNOT_CONNECT_NOW, "the database system is shutting down")));
            }
        };
        let Some(session) = session else { return Ok(None) };
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok(Some((session, place))),
            Err(_) => {
                self.services.metrics.limit_hit("limits.wire.connections_max");
                Err(Fault::Fatal(Error::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")))
            }
        }
    }
}
