//! COPY.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use crate::catalog::Table;
use crate::command::relation::{self, Relation};
use crate::command::rows::Rows;
use crate::command::{Response, insert, subscribe};
use crate::error::{Error, Result, SqlState};
use crate::event::encode::Encoder;
use crate::ingest::CopyLoad;
use crate::session::registry::CopyingNow;
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::{Copy, CopyDirection, CopyFormat, CopyOptions, CopySource, quote_identifier};
use crate::types::text::Style;

/// COPY in every direction: answers `CopyIn` or `CopyOut`, or 42501 for a file of the server.
pub async fn execute(session: &mut Session, statement: &Copy, cancel: CancellationToken) -> Result<Response> {
    match statement.direction {
        CopyDirection::ServerFile => {
            Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied to COPY to or from a file or program of the server")
                .hint("Use COPY ... FROM STDIN or TO STDOUT; psql's \\copy command does that for files of the client."))
        }
        CopyDirection::FromStdin => from_stdin(session, statement).map(|copy| Response::CopyIn(Box::new(copy))),
        CopyDirection::ToStdout => Ok(Response::CopyOut(Box::new(to_stdout(session, statement, cancel).await?))),
    }
}

/// A COPY FROM STDIN under way.
#[derive(Debug)]
pub struct CopyIn {
    table: Arc<Table>,
    columns: usize,
    binary: bool,
    load: CopyLoad,
    rows: Rows,
    progress: CopyingNow,
}

impl CopyIn {
    /// Columns, for CopyInResponse.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Binary format, for CopyInResponse.
    pub fn binary(&self) -> bool {
        self.binary
    }

    /// One CopyData message.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.load.push(bytes).await?;
        self.progress.bytes(length);
        if self.load.held_bytes() >= self.rows.portion() {
            self.rows.add(self.load.take()).await?;
        }
        Ok(())
    }

    /// CopyDone: commits; the command tag.
    pub async fn finish(mut self, session: &mut Session) -> Result<String> {
        let rows = self.load.finish().await?;
        self.rows.add(rows).await?;
        let committed = self.rows.commit(session, &self.table, false).await?;
        Ok(format!("COPY {}", committed.accepted))
    }
}

fn from_stdin(session: &mut Session, statement: &Copy) -> Result<CopyIn> {
    let CopySource::Table(name) = &statement.source else {
        return Err(Error::syntax("COPY query FROM is not possible"));
    };
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let table = relation::writable(&catalog, name)?;
    let columns = insert::targets(&table, &statement.columns)?;
    let pipeline = Arc::new(match statement.options.default {
        None => insert::pipeline(session, &table, &columns)?,
        Some(_) => insert::pipeline_with_defaults(session, &table, &columns)?,
    });
    let limits = &session.services.config.limits;
    let zone = session.vars.time_zone().to_owned();
    let spawner = session.services.spawner.clone();
    let mut load = CopyLoad::new(pipeline, statement.options.clone(), zone, spawner, limits.wire.copy_in_flight_bytes_max)?;
    let rows = Rows::new(session, &table);
    if !rows.may_stage() {
        load = load.with_bytes_max(limits.store.statement_bytes_max);
    }
    let binary = statement.options.format == CopyFormat::Binary;
    let progress = session.entry().copying(table.oid, true, load.rows());
    Ok(CopyIn { table, columns: columns.len(), binary, load, rows, progress })
}

/// A COPY TO STDOUT under way.
pub struct CopyOut {
    columns: usize,
    binary: bool,
    encoder: Encoder,
    stream: SendableRecordBatchStream,
    header: bool,
    trailer: bool,
    live: bool,
    rows: Arc<AtomicU64>,
    progress: Option<CopyingNow>,
}

impl std::fmt::Debug for CopyOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyOut").field("columns", &self.columns).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl CopyOut {
    /// Rows that come as they arise: each batch is to be sent at once.
    pub fn live(schema: &SchemaRef, stream: SendableRecordBatchStream, options: &CopyOptions, style: Style) -> Result<CopyOut> {
        Ok(CopyOut { live: true, ..CopyOut::new(schema, stream, options, style)? })
    }

    fn new(schema: &SchemaRef, stream: SendableRecordBatchStream, options: &CopyOptions, style: Style) -> Result<CopyOut> {
        let encoder = Encoder::new(schema, options.clone(), style)?;
        let binary = options.format == CopyFormat::Binary;
        Ok(CopyOut {
            columns: schema.fields().len(),
            binary,
            encoder,
            stream,
            header: true,
            trailer: true,
            live: false,
            rows: Arc::default(),
            progress: None,
        })
    }

    /// Whether what [`CopyOut::next`] gives is not to wait for more.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Columns, for CopyOutResponse.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Binary format, for CopyOutResponse.
    pub fn binary(&self) -> bool {
        self.binary
    }

    /// The next rows and where each CopyData payload ends, header first, trailer last; none at the end. Clients rely on one
    /// row a message.
    pub async fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<usize>)>> {
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        if std::mem::take(&mut self.header) {
            self.encoder.header(&mut out);
            // The binary signature shares a message with the first row; a line of names is a line of its own.
            if !self.binary && !out.is_empty() {
                ends.push(out.len());
            }
        }
        while let Some(batch) = self.stream.try_next().await.map_err(engine_error)? {
            self.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            self.encoder.rows(&batch, &mut out, &mut ends)?;
            if let Some(progress) = &self.progress {
                progress.bytes(out.len() as u64);
            }
            if !ends.is_empty() {
                return Ok(Some((out, ends)));
            }
        }
        if std::mem::take(&mut self.trailer) {
            self.encoder.trailer(&mut out);
        }
        if ends.last().copied().unwrap_or(0) < out.len() {
            ends.push(out.len());
        }
        Ok((!ends.is_empty()).then_some((out, ends)))
    }

    /// After the end: the command tag.
    pub fn tag(&self) -> String {
        format!("COPY {}", self.rows.load(Ordering::Relaxed))
    }
}

async fn to_stdout(session: &mut Session, statement: &Copy, cancel: CancellationToken) -> Result<CopyOut> {
    let context = session.context()?;
    // 0 for a query.
    let mut table = 0;
    let query = match &statement.source {
        CopySource::Query(query) => (**query).clone(),
        CopySource::Subscribe(subscribe) => return subscribe::to_stdout(session, subscribe, &statement.options, cancel).await,
        CopySource::Table(name) => {
            let found = relation::find(&context.snapshot.catalog, name).ok_or_else(|| relation::missing(name))?;
            let schema = match &found {
                Relation::Table(found) => {
                    table = found.oid;
                    found.schema()
                }
                Relation::View(found) => {
                    table = found.oid;
                    found.schema()
                }
            };
            let columns = selected(&schema, &statement.columns, &relation::shown(name))?;
            crate::sql::parse_query(&format!("SELECT {} FROM {name}", columns.join(", ")))?
        }
    };
    let engine = Arc::clone(&session.services.engine);
    let bound = engine.bind(&context, &Statement::Query(Box::new(query)), &[])?;
    let stream = engine.run(&context, &bound, &[], cancel).await?;
    let mut copy = CopyOut::new(&bound.schema, stream, &statement.options, *session.vars.style())?;
    copy.progress = Some(session.entry().copying(table, false, Arc::clone(&copy.rows)));
    Ok(copy)
}

fn selected(schema: &Schema, names: &[String], relation: &str) -> Result<Vec<String>> {
    if names.is_empty() {
        return Ok(schema.fields().iter().map(|field| quote_identifier(field.name())).collect());
    }
    for name in names {
        if schema.field_with_name(name).is_err() {
            return Err(Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" of relation \"{relation}\" does not exist")));
        }
    }
    Ok(names.iter().map(|name| quote_identifier(name)).collect())
}
