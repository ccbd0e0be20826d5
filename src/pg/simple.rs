//! The simple query protocol: one text, any number of statements.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::EmptyQueryResponse;

use crate::command;
use crate::error::Error;
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::running::Running;
use crate::session::Prepared;
use crate::session::shared::Found;
use crate::session::transaction::Status;
use crate::sql;
use crate::sql::lift::Lifted;
use crate::types::text::parse_scalar;

/// What the sessions share for a text.
enum Shared {
    Nothing,
    /// It comes again.
    Again,
    /// Its plan, and the values of its strings.
    Plan(Arc<Prepared>, Vec<ScalarValue>),
}

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
            return self.statement(running, &prepared, &[], true).await;
        }
        let lifted = sql::lift::lift(text);
        let again = match self.shared(lifted.as_ref())? {
            Shared::Plan(prepared, values) => return self.statement(running, &prepared, &values, true).await,
            Shared::Again => true,
            Shared::Nothing => false,
        };
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
            self.statement(running, &prepared, &[], at + 1 == count).await?;
        }
        if let Some(lifted) = lifted.filter(|_| again && count == 1) {
            self.share(&lifted);
        }
        Ok(())
    }

    /// The plan that all sessions share for a text, with the values of its strings.
    fn shared(&mut self, lifted: Option<&Lifted>) -> Result<Shared, Fault> {
        let Some(lifted) = lifted.filter(|_| self.session.transaction.status() != Status::Failed) else { return Ok(Shared::Nothing) };
        let snapshot = self.session.snapshot()?;
        let prepared = match self.session.services.plans.find(&lifted.text, &snapshot.catalog) {
            Found::Plan(prepared) if prepared.parameters.len() == lifted.values.len() => prepared,
            Found::Again => return Ok(Shared::Again),
            _ => return Ok(Shared::Nothing),
        };
        let zone = self.session.vars.style().time_zone;
        let values = lifted.values.iter().zip(&prepared.parameters).map(|(value, sql_type)| parse_scalar(sql_type, value, &zone));
        // A string that is no value of its column's type is an error, which planning the text as it stands words.
        let Ok(values) = values.collect::<Result<Vec<_>, _>>() else { return Ok(Shared::Nothing) };
        self.session.services.metrics.shared_plans_used.inc();
        Ok(Shared::Plan(prepared, values))
    }

    /// Plans a text without its strings, for whoever asks it next.
    fn share(&mut self, lifted: &Lifted) {
        if self.session.transaction.status() == Status::Failed {
            return;
        }
        let session = &mut self.session;
        let prepared = sql::parse(&lifted.text).ok().and_then(|mut parsed| Connection::prepare(session, parsed.pop(), &[]).ok());
        match prepared {
            Some(prepared) => session.services.plans.keep(&lifted.text, &prepared),
            None => session.services.plans.unfit(&lifted.text),
        }
    }

    /// One statement; after the last one the implicit transaction commits before the client hears that it is done.
    async fn statement(&mut self, running: &Running, prepared: &Arc<Prepared>, values: &[ScalarValue], last: bool) -> Result<(), Fault> {
        if prepared.parameters.len() != values.len() {
            return Err(Error::new(crate::error::SqlState::UNDEFINED_PARAMETER, "there is no parameter $1").into());
        }
        let session = &mut self.session;
        let cancel = running.cancel.clone();
        let response = running
            .guard(&mut self.reader, async { command::execute(session, prepared, values, cancel).await.map_err(Fault::from) })
            .await?;
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
