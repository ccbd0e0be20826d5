//! The extended query protocol: Parse, Bind, Describe, Execute, Close. Sync is the connection's.
//!
//! *Invariants*: (1) a pipeline up to its Sync is one transaction; a lone statement whose Sync has arrived already commits at once, so
//! that its tag can say what became of its rows; (2) a suspended portal keeps its stream, so resuming computes nothing twice.

use std::sync::Arc;

use pgwire::messages::PgWireBackendMessage as Answer;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::EmptyQueryResponse;

use crate::command::{self, Response};
use crate::error::{Error, Result, SqlState};
use crate::pg::connection::Connection;
use crate::pg::error::Fault;
use crate::pg::respond::tag_of;
use crate::pg::{oid, parameter, rows};
use crate::session::{Portal, Prepared, Progress, Rows, Session};
use crate::sql;
use crate::types::SqlType;

impl Connection {
    pub(super) async fn parse(&mut self, parse: Parse) -> Result<(), Fault> {
        let name = parse.name.unwrap_or_default();
        let text: Arc<str> = Arc::from(parse.query);
        let running = self.start(&text);
        let declared = parse.type_oids.iter().map(|oid| oid::parameter_type(*oid)).collect::<Result<Vec<_>>>()?;
        self.session.enter(false);
        if name.is_empty() {
            self.session.statements.remove("");
        }
        let prepared = match self.cached(&text, &declared)? {
            Some(prepared) => prepared,
            None => {
                let session = &mut self.session;
                let prepared = running.guard(&mut self.reader, async { parse_one(session, &text, &declared) }).await?;
                self.session.plans.put(&text, &prepared);
                prepared
            }
        };
        self.session.add_statement(&name, prepared)?;
        self.sink.put(&Answer::ParseComplete(ParseComplete::new()));
        Ok(())
    }

    pub(super) async fn bind(&mut self, bind: Bind) -> Result<(), Fault> {
        let name = bind.portal_name.unwrap_or_default();
        let statement = bind.statement_name.unwrap_or_default();
        let prepared = Arc::clone(self.session.statement(&statement)?);
        let running = self.start(&text_of(&prepared));
        self.session.enter(false);
        let session = &mut self.session;
        let fresh = running.guard(&mut self.reader, async { command::revalidate(session, &prepared).map_err(Fault::from) }).await?;
        if !Arc::ptr_eq(&fresh, &prepared) {
            self.session.statements.insert(statement.clone(), Arc::clone(&fresh));
        }
        let zone = self.session.vars.style().time_zone;
        let parameters = {
            let expected = &fresh.parameters;
            let (formats, values) = (&bind.parameter_format_codes, &bind.parameters);
            check_counts(formats.len(), values.len(), expected.len(), &statement)?;
            rows::check_codes(formats)?;
            let read = |(at, (value, sql_type)): (usize, (&Option<bytes::Bytes>, &SqlType))| {
                parameter::read(sql_type, rows::format_of(formats, at) == 1, value.as_deref(), &zone)
            };
            values.iter().zip(expected).enumerate().map(read).collect::<Result<Vec<_>>>()?
        };
        match &fresh.schema {
            Some(schema) => rows::check_formats(&bind.result_column_format_codes, schema.fields().len())?,
            None => rows::check_codes(&bind.result_column_format_codes)?,
        }
        if name.is_empty() {
            self.session.portals.remove("");
        }
        let formats = bind.result_column_format_codes;
        let portal = Portal { prepared: fresh, parameters, formats, progress: Progress::Bound, cursor: false, hold: false };
        self.session.add_portal(&name, portal)?;
        self.sink.put(&Answer::BindComplete(BindComplete::new()));
        Ok(())
    }

    pub(super) fn describe(&mut self, describe: &Describe) -> Result<(), Fault> {
        let name = describe.name.as_deref().unwrap_or_default();
        let (schema, formats) = if describe.target_type == TARGET_TYPE_BYTE_STATEMENT {
            let prepared = self.session.statement(name)?;
            let types = prepared.parameters.iter().map(SqlType::oid).collect();
            self.sink.put(&Answer::ParameterDescription(ParameterDescription::new(types)));
            (prepared.schema.as_ref(), &[][..])
        } else {
            let portal = self.session.portals.get(name).ok_or_else(|| missing_portal(name))?;
            (portal.prepared.schema.as_ref(), portal.formats.as_slice())
        };
        self.sink.put(&match schema {
            Some(schema) => rows::description(schema, formats),
            None => Answer::NoData(NoData::new()),
        });
        Ok(())
    }

    pub(super) async fn execute(&mut self, execute: Execute) -> Result<(), Fault> {
        let name = execute.name.unwrap_or_default();
        let rows_max = usize::try_from(execute.max_rows).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
        // The portal leaves the session while it runs, and is gone when it fails.
        let mut portal = self.session.portals.remove(&name).ok_or_else(|| missing_portal(&name))?;
        let outcome = self.run_portal(&name, &mut portal, rows_max).await;
        // A portal that ended its own transaction ends with it.
        if outcome.is_ok() && self.session.transaction.status() != crate::session::transaction::Status::Idle {
            self.session.portals.insert(name, portal);
        }
        outcome
    }

    async fn run_portal(&mut self, name: &str, portal: &mut Portal, rows_max: usize) -> Result<(), Fault> {
        let running = self.start(&text_of(&portal.prepared));
        // Alone before its Sync, a statement commits for itself.
        let alone = self.reader.sync_is_next() && !self.session.transaction.is_dirty();
        self.session.enter(!alone);
        if let Progress::Bound = portal.progress {
            let session = &mut self.session;
            let (prepared, parameters, cancel) = (&portal.prepared, &portal.parameters, running.cancel.clone());
            let response = running
                .guard(&mut self.reader, async { command::execute(session, prepared, parameters, cancel).await.map_err(Fault::from) })
                .await?;
            match response {
                Response::Rows { schema, stream, tag } => portal.progress = Progress::Open(Box::new(Rows::new(schema, stream, tag))),
                other => {
                    let tag = self.respond(&running, other, &portal.formats, false).await?;
                    portal.progress = Progress::Done(tag.clone().unwrap_or_default());
                    match tag {
                        Some(tag) => self.complete(tag),
                        None => self.sink.put(&Answer::EmptyQueryResponse(EmptyQueryResponse::new())),
                    }
                    return Ok(());
                }
            }
        }
        match &mut portal.progress {
            Progress::Open(open) => {
                let sent = self.send_rows(&running, open, &portal.formats, false, rows_max).await?;
                // As PostgreSQL: a portal that gave all it was asked for may have more, even when it has not.
                if rows_max != usize::MAX && sent == rows_max as u64 {
                    self.sink.put(&Answer::PortalSuspended(PortalSuspended::new()));
                } else {
                    let tag = tag_of(open.tag, sent);
                    portal.progress = Progress::Done(tag_of(open.tag, 0));
                    self.complete(tag);
                }
            }
            Progress::Done(tag) if portal.prepared.schema.is_some() => {
                let tag = tag.clone();
                self.complete(tag);
            }
            _ => return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, format!("portal \"{name}\" cannot be run")).into()),
        }
        Ok(())
    }

    pub(super) fn close(&mut self, close: &Close) -> Result<(), Fault> {
        // Closing what does not exist is no error.
        let name = close.name.as_deref().unwrap_or_default();
        if close.target_type == TARGET_TYPE_BYTE_STATEMENT {
            self.session.statements.remove(name);
        } else {
            self.session.portals.remove(name);
        }
        self.sink.put(&Answer::CloseComplete(CloseComplete::new()));
        Ok(())
    }
}

fn parse_one(session: &mut Session, text: &str, declared: &[Option<SqlType>]) -> Result<Arc<Prepared>, Fault> {
    let mut parsed = sql::parse(text)?;
    let only = parsed.pop();
    if !parsed.is_empty() {
        return Err(Error::syntax("cannot insert multiple commands into a prepared statement").into());
    }
    Connection::prepare(session, only, declared)
}

fn check_counts(formats: usize, values: usize, expected: usize, statement: &str) -> Result<()> {
    if formats > 1 && formats != values {
        return Err(Error::new(
            SqlState::PROTOCOL_VIOLATION,
            format!("bind message has {formats} parameter formats but {values} parameters"),
        ));
    }
    if values != expected {
        return Err(Error::new(
            SqlState::PROTOCOL_VIOLATION,
            format!("bind message supplies {values} parameters, but prepared statement \"{statement}\" requires {expected}"),
        ));
    }
    Ok(())
}

fn missing_portal(name: &str) -> Error {
    Error::new(SqlState::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

fn text_of(prepared: &Prepared) -> Arc<str> {
    prepared.parsed.as_ref().map_or_else(|| Arc::from(""), |parsed| Arc::clone(&parsed.text))
}
