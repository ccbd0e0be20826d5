//! The simple query protocol: one text, any number of statements.

use std::sync::Arc;

use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::EmptyQueryResponse;

use crate::command;
use crate::error::Error;
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::running::Running;
use crate::session::Prepared;
use crate::session::transaction::Status;
use crate::sql;

impl Connection {
    /// A Query message. Several statements are one transaction unless they say otherwise themselves: when one fails, the earlier ones of
    /// the message are undone and the later ones not run.
    pub(super) async fn simple_query(&mut self, text: &str) -> Result<(), Fault> {
        let text: Arc<str> = Arc::from(text);
        // A simple query takes the place of the unnamed statement and portal.
        self.session.statements.remove("");
        self.session.portals.remove("");
        let running = self.start(&text);
        match self.statements(&running, &text).await {
            Ok(()) => Ok(()),
            Err(fault) => self.failed(fault).await,
        }
    }

    async fn statements(&mut self, running: &Running, text: &str) -> Result<(), Fault> {
        self.session.enter(false);
        if let Some(prepared) = self.cached(text, &[])? {
            return self.statement(running, &prepared, true).await;
        }
        let parsed = running.guard(&mut self.reader, async { sql::parse(text).map_err(Fault::from) }).await?;
        let count = parsed.len();
        if count == 0 {
            self.leave(running, true).await?;
            self.sink.put(&PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new()));
            return Ok(());
        }
        for (at, parsed) in parsed.into_iter().enumerate() {
            self.session.enter(count > 1);
            let session = &mut self.session;
            let prepared = running.guard(&mut self.reader, async { Connection::prepare(session, Some(parsed), &[]) }).await?;
            if count == 1 {
                self.session.plans.put(text, &prepared);
            }
            self.statement(running, &prepared, at + 1 == count).await?;
        }
        Ok(())
    }

    /// One statement; after the last one the implicit transaction commits before the client hears that it is done.
    async fn statement(&mut self, running: &Running, prepared: &Arc<Prepared>, last: bool) -> Result<(), Fault> {
        if !prepared.parameters.is_empty() {
            return Err(Error::new(crate::error::SqlState::UNDEFINED_PARAMETER, "there is no parameter $1").into());
        }
        let session = &mut self.session;
        let cancel = running.cancel.clone();
        let response =
            running.guard(&mut self.reader, async { command::execute(session, prepared, &[], cancel).await.map_err(Fault::from) }).await?;
        let tag = self.respond(running, response, &[], true).await?;
        if last && matches!(self.session.transaction.status(), Status::Implicit { .. }) {
            self.leave(running, true).await?;
        }
        match tag {
            Some(tag) => self.complete(tag),
            None => self.sink.put(&PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())),
        }
        self.sink.flush_if_full().await?;
        Ok(())
    }
}
