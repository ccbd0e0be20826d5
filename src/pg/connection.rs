//! One connection after login: messages in, responses out, until either side ends it.
//!
//! *Place*: one task of the cpu runtime for each connection (statements plan deeply and want its stack); the socket's events come from
//! the io runtime. `pg::simple`, `pg::extended` and `pg::copy` hold the messages' own methods.
//!
//! *Invariants*: (1) an ErrorResponse is followed by ReadyForQuery at once (simple) or at the next Sync (extended), and is sent before
//! that Sync is waited for; (2) what the client hears as done is durable: an implicit transaction commits before its last
//! CommandComplete (simple) or ReadyForQuery (extended).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::PgWireFrontendMessage as Message;
use pgwire::messages::response::{CommandComplete, NotificationResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command;
use crate::error::{Error, SqlState};
use crate::pg::error::{self, Fault};
use crate::pg::frame::{Frame, Reader};
use crate::pg::running::{Running, terminated};
use crate::pg::sink::Sink;
use crate::session::registry::{self, State};
use crate::session::transaction::Status;
use crate::session::variable::VARIABLES;
use crate::session::vars::Values;
use crate::session::{Prepared, Session};
use crate::types::SqlType;

/// A session and its socket.
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) sink: Sink,
    pub(super) session: Session,
    pub(super) shutdown: CancellationToken,
    committing: Arc<AtomicBool>,
    /// After an error of the extended protocol everything up to the next Sync is skipped.
    skip_to_sync: bool,
    /// The settings that the client was last told.
    reported: Option<Values>,
}

impl Connection {
    pub(super) fn new(reader: Reader, sink: Sink, session: Session, shutdown: CancellationToken) -> Self {
        let committing = session.committing();
        Self { reader, sink, session, shutdown, committing, skip_to_sync: false, reported: None }
    }

    /// Serves the client until it leaves or is made to.
    pub(super) async fn run(mut self) {
        if let Err(Fault::Fatal(error) | Fault::Statement(error)) = self.serve().await {
            self.session.services.metrics.error(error.state());
            self.sink.put(&error::response("FATAL", &error));
            // Nobody may be reading any more.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.sink.flush()).await;
        }
        self.session.rollback();
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        self.ready().await?;
        loop {
            let frame = self.next_frame().await?;
            match frame {
                Frame::Message(Message::Terminate(_)) => return Ok(()),
                Frame::Message(Message::Sync(_)) => self.sync().await?,
                _ if self.skip_to_sync => {}
                Frame::Malformed(b'Q', error) => {
                    self.failed(Fault::Statement(error)).await?;
                    self.ready().await?;
                }
                Frame::Malformed(_, error) => self.extended_failed(Fault::Statement(error)).await?,
                Frame::Message(message) => self.message(message).await?,
            }
        }
    }

    async fn message(&mut self, message: Message) -> Result<(), Fault> {
        let outcome = match message {
            Message::Query(query) => {
                self.simple_query(&query.query).await?;
                return self.ready().await;
            }
            Message::Parse(parse) => self.parse(parse).await,
            Message::Bind(bind) => self.bind(bind).await,
            Message::Describe(describe) => self.describe(&describe),
            Message::Execute(execute) => self.execute(execute).await,
            Message::Close(close) => self.close(&close),
            Message::Flush(_) => self.sink.flush().await.map_err(Fault::from),
            // What is left of a COPY that has failed, or that a client ends twice.
            Message::CopyData(_) | Message::CopyDone(_) | Message::CopyFail(_) => Ok(()),
            _ => Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "unexpected message from client"))),
        };
        match outcome {
            Ok(()) => self.sink.flush_if_full().await.map_err(Fault::from),
            Err(fault) => self.extended_failed(fault).await,
        }
    }

    /// Waits for a message, for a reason to end the session, or for an idle timeout.
    async fn next_frame(&mut self) -> Result<Frame, Fault> {
        let bytes_max = self.session.services.config.limits.wire.message_bytes_max;
        let vars = &self.session.vars;
        let open = self.session.transaction.in_block();
        let (idle, state, message) = if open {
            (vars.idle_in_transaction_timeout(), "25P03", "terminating connection due to idle-in-transaction timeout")
        } else {
            (vars.idle_timeout(), "57P05", "terminating connection due to idle-session timeout")
        };
        let entry = Arc::clone(self.session.entry());
        let mut idle = pin!(sleep(idle));
        loop {
            // Only between transactions, as in PostgreSQL; what comes in one is told at its end.
            let listens = self.session.transaction.status() == Status::Idle;
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Fault::Fatal(terminated())),
                () = entry.terminate.cancelled() => return Err(Fault::Fatal(terminated())),
                frame = self.reader.message(bytes_max) => return frame,
                () = self.session.listener.arrived(), if listens => {
                    self.notifications();
                    self.flush_idle(&entry).await?;
                }
                () = &mut idle => return Err(Fault::Fatal(Error::new(SqlState(state), message))),
            }
        }
    }

    /// Sends what waits to a client that may not be reading, until it has gone or the session ends.
    async fn flush_idle(&mut self, entry: &registry::Entry) -> Result<(), Fault> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Fault::Fatal(terminated())),
            () = entry.terminate.cancelled() => Err(Fault::Fatal(terminated())),
            sent = self.sink.flush() => sent.map_err(Fault::from),
        }
    }

    /// What the session has been told by NOTIFY.
    fn notifications(&mut self) {
        for told in self.session.listener.take() {
            let (channel, payload) = (told.message.channel.clone(), told.message.payload.clone());
            self.sink.put(&PgWireBackendMessage::NotificationResponse(NotificationResponse::new(told.sender, channel, payload)));
        }
    }

    /// Starts the clock and the cancel token of a statement.
    pub(super) fn start(&mut self, text: &Arc<str>) -> Running {
        let services = &self.session.services;
        let now = services.clock.now();
        let started = if self.session.transaction.status() == Status::Idle { now } else { self.session.transaction.now() };
        let entry = self.session.entry();
        Running {
            cancel: entry.statement_starts(crate::sql::secret::masked(text), now, started),
            deadline: self.session.vars.statement_timeout().map(|timeout| Instant::now() + timeout),
            terminate: entry.terminate.clone(),
            committing: Arc::clone(&self.committing),
        }
    }

    /// Types a statement, by way of the plans of recent texts when `text` is all there is.
    pub(super) fn cached(&mut self, text: &str, declared: &[Option<SqlType>]) -> Result<Option<Arc<Prepared>>, Fault> {
        if self.session.transaction.status() == Status::Failed || !self.session.plans.knows(text) {
            return Ok(None);
        }
        let snapshot = self.session.snapshot()?;
        let settings = Arc::clone(self.session.vars.values());
        Ok(self.session.plans.get(text, declared, &snapshot.catalog, &settings))
    }

    /// Ends the implicit transaction as its statements went.
    pub(super) async fn leave(&mut self, running: &Running, well: bool) -> Result<(), Fault> {
        if well && self.session.transaction.is_dirty() {
            let session = &mut self.session;
            return running.guard(&mut self.reader, async { session.leave(true).await.map_err(Fault::from) }).await;
        }
        self.session.leave(well).await.map_err(Fault::from)
    }

    /// Tells the client of an error and undoes what it must. A fatal one goes on to the caller.
    pub(super) async fn failed(&mut self, fault: Fault) -> Result<(), Fault> {
        let Fault::Statement(error) = fault else { return Err(fault) };
        self.session.ended(Err(&error));
        self.session.services.metrics.error(error.state());
        self.session.leave(false).await?;
        self.notices();
        self.sink.put(&error::response("ERROR", &error));
        Ok(())
    }

    /// An error is sent at once with what came before it: a driver that asked with Flush reads the answer before it sends its Sync, and
    /// that Flush is skipped with everything else.
    async fn extended_failed(&mut self, fault: Fault) -> Result<(), Fault> {
        self.skip_to_sync = true;
        self.failed(fault).await?;
        let entry = Arc::clone(self.session.entry());
        self.flush_idle(&entry).await
    }

    /// Sync: the pipeline's implicit transaction ends.
    async fn sync(&mut self) -> Result<(), Fault> {
        self.skip_to_sync = false;
        if self.session.transaction.is_dirty() && !self.session.transaction.in_block() {
            let running = self.start(&Arc::from("COMMIT"));
            if let Err(fault) = self.leave(&running, true).await {
                self.failed(fault).await?;
            }
        } else {
            self.session.leave(true).await?;
        }
        self.ready().await
    }

    /// ReadyForQuery, with what the client has to know before it.
    async fn ready(&mut self) -> Result<(), Fault> {
        self.notices();
        self.parameters();
        let (status, state) = match self.session.transaction.status() {
            Status::Idle | Status::Implicit { .. } => (TransactionStatus::Idle, State::Idle),
            Status::Block => (TransactionStatus::Transaction, State::IdleInTransaction),
            Status::Failed => (TransactionStatus::Error, State::IdleInFailedTransaction),
        };
        if state == State::Idle {
            self.notifications();
        }
        self.session.entry().waits(state);
        self.sink.put(&PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(status)));
        self.sink.flush().await?;
        Ok(())
    }

    /// CommandComplete, with the statement's notices before it.
    pub(super) fn complete(&mut self, tag: String) {
        self.session.ended(Ok(&tag));
        self.notices();
        self.sink.put(&PgWireBackendMessage::CommandComplete(CommandComplete::new(tag)));
    }

    fn notices(&mut self) {
        for notice in std::mem::take(&mut self.session.notices) {
            if self.session.vars.sends(error::is_warning(&notice)) {
                self.sink.put(&error::notice(&notice));
            }
        }
    }

    /// ParameterStatus of the settings that the client follows and that have changed since it was told.
    fn parameters(&mut self) {
        let values = self.session.vars.values();
        if self.reported.as_ref().is_some_and(|reported| Arc::ptr_eq(reported, values)) {
            return;
        }
        for variable in VARIABLES.iter().filter(|variable| variable.reported) {
            let key = variable.name.to_ascii_lowercase();
            let value = values.get(&key);
            if self.reported.as_ref().and_then(|reported| reported.get(&key)) == value {
                continue;
            }
            let value = value.cloned().unwrap_or_default();
            if variable.name == "application_name" {
                self.session.entry().set_application(&value);
            }
            self.sink.put(&PgWireBackendMessage::ParameterStatus(ParameterStatus::new(variable.name.to_owned(), value)));
        }
        self.reported = Some(Arc::clone(values));
    }

    /// Types the statement of a text.
    pub(super) fn prepare(
        session: &mut Session,
        parsed: Option<crate::sql::Parsed>,
        declared: &[Option<SqlType>],
    ) -> Result<Arc<Prepared>, Fault> {
        Ok(Arc::new(command::prepare(session, parsed, declared)?))
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
