//! One file a statement: execute(session, statement) -> response. This file only dispatches.
//!
//! *Place*: called by `pg::simple` and `pg::extended` for each statement.
//!
//! *Invariants*: (1) in a failed transaction only its end runs (25P02); (2) in a read-only one nothing that writes (25006).

pub mod alert;
pub mod alter;
pub mod channel;
pub mod check;
pub mod conflict;
pub mod copy;
pub mod create_table;
pub mod create_view;
pub mod cursor;
pub mod delete;
pub mod discard;
pub mod drop;
pub mod explain;
mod ingest_token;
pub mod insert;
pub mod listen;
pub mod modify;
pub mod options;
pub mod prepare;
pub mod refresh;
pub mod relation;
pub mod rows;
pub mod select;
pub mod set;
pub mod show;
pub mod show_create;
mod source;
pub mod subscribe;
pub mod transaction;
pub mod truncate;
pub mod update;
pub mod view_parts;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, SqlState};
use crate::query::Bound;
pub use crate::session::Prepared;
use crate::session::Session;
use crate::session::transaction::{Status, aborted};
use crate::sql::Parsed;
use crate::sql::statement::{AlertStatement, CopyDirection, SourceStatement, Statement};
use crate::types::SqlType;

/// What a statement answers.
pub enum Response {
    /// Rows; the tag is `SELECT n`, `FETCH n`, `SHOW`, `EXPLAIN`.
    Rows {
        /// Columns with SQL types in their metadata.
        schema: SchemaRef,
        /// The batches.
        stream: SendableRecordBatchStream,
        /// The command tag's word; the row count is added for SELECT, FETCH, INSERT ... RETURNING.
        tag: &'static str,
    },
    /// The next rows of a cursor, which keeps its stream: `FETCH n`.
    Fetch {
        /// The cursor, one of the session's portals.
        cursor: String,
        /// Rows at most.
        rows_max: usize,
    },
    /// No rows; the whole command tag (`INSERT 0 3`, `CREATE TABLE`).
    Done(String),
    /// COPY FROM STDIN: `pg::copy` feeds the load and calls its finish.
    CopyIn(Box<copy::CopyIn>),
    /// COPY TO STDOUT.
    CopyOut(Box<copy::CopyOut>),
    /// An empty query text.
    Empty,
}

impl Response {
    /// Rows that are there already.
    pub fn of_batch(batch: RecordBatch, tag: &'static str) -> Response {
        let schema = batch.schema();
        let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::iter([Ok(batch)])));
        Response::Rows { schema, stream, tag }
    }
}

/// Types a statement: parameters and output columns, for Parse and Describe. None is an empty text.
pub fn prepare(session: &mut Session, parsed: Option<Parsed>, declared: &[Option<SqlType>]) -> Result<Prepared> {
    let Some(parsed) = parsed else {
        return untyped(session, None, None, declared);
    };
    admit(session, &parsed.statement)?;
    let statement = Arc::clone(&parsed.statement);
    match &*statement {
        Statement::Query(_) | Statement::Explain(_) => {
            let context = session.context()?;
            let bound = session.services.engine.bind(&context, &statement, declared).map_err(|error| located(error, &parsed))?;
            let schema = Some(Arc::clone(&bound.schema));
            Ok(typed(session, parsed, bound, schema, declared, &context))
        }
        Statement::Insert(insert) => {
            let context = session.context()?;
            let (bound, schema) = insert::bind(session, insert, declared).map_err(|error| located(error, &parsed))?;
            Ok(typed(session, parsed, bound, schema, declared, &context))
        }
        Statement::Update(update) => {
            let context = session.context()?;
            let (bound, schema) = update::bind(session, update, declared)?;
            Ok(typed(session, parsed, bound, schema, declared, &context))
        }
        Statement::Delete(delete) => {
            let context = session.context()?;
            let (bound, schema) = delete::bind(session, delete, declared)?;
            Ok(typed(session, parsed, bound, schema, declared, &context))
        }
        Statement::CheckView(_) => untyped(session, Some(parsed), Some(check::schema()), declared),
        Statement::CreateIngestToken { .. } => untyped(session, Some(parsed), Some(ingest_token::schema()), declared),
        Statement::Show(name) => {
            let schema = show::schema(session, name)?;
            untyped(session, Some(parsed), Some(schema), declared)
        }
        Statement::Declare { text, .. } => {
            let query = prepare(session, Some(prepare::only(text)?), declared)?;
            Ok(Prepared { parameters: query.parameters, ..untyped(session, Some(parsed), None, declared)? })
        }
        Statement::ShowCreate(_)
        | Statement::Alert(AlertStatement::ShowAlert(_) | AlertStatement::ShowChannel(_))
        | Statement::Source(SourceStatement::Show(_)) => untyped(session, Some(parsed), Some(show_create::schema()), declared),
        Statement::Alert(AlertStatement::Backtest { .. }) => untyped(session, Some(parsed), Some(alert::backtest_schema()), declared),
        Statement::Fetch { name, .. } => {
            let schema = cursor::schema(session, name)?;
            untyped(session, Some(parsed), schema, declared)
        }
        Statement::Execute { name, .. } => {
            let schema = session.statement(name)?.schema.clone();
            untyped(session, Some(parsed), schema, declared)
        }
        _ => untyped(session, Some(parsed), None, declared),
    }
}

/// An error of planning with the place of the name that it is about.
fn located(error: Error, parsed: &Parsed) -> Error {
    let query = match &*parsed.statement {
        Statement::Query(query) => Some(query.as_ref()),
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Query(query) => Some(query.as_ref()),
            _ => None,
        },
        Statement::Insert(insert) => insert.source.as_deref(),
        _ => None,
    };
    match query {
        Some(query) => crate::sql::position::located(error, query, &parsed.text, parsed.offset),
        None => error,
    }
}

fn typed(
    session: &Session,
    parsed: Parsed,
    bound: Bound,
    schema: Option<SchemaRef>,
    declared: &[Option<SqlType>],
    context: &crate::query::Context,
) -> Prepared {
    Prepared {
        parsed: Some(parsed),
        parameters: bound.parameters.clone(),
        bound: Some(Arc::new(bound)),
        schema,
        declared: declared.to_vec(),
        catalog: Arc::clone(&context.snapshot.catalog),
        settings: Arc::clone(session.vars.values()),
    }
}

/// A statement that has no plan takes no parameters of its own.
fn untyped(session: &mut Session, parsed: Option<Parsed>, schema: Option<SchemaRef>, declared: &[Option<SqlType>]) -> Result<Prepared> {
    Ok(Prepared {
        parsed,
        bound: None,
        parameters: Vec::new(),
        schema,
        declared: declared.to_vec(),
        // Not compared for a statement without a plan; the transaction may have failed, so no overlay is made for it.
        catalog: Arc::clone(&session.services.store.snapshot().catalog),
        settings: Arc::clone(session.vars.values()),
    })
}

/// The same statement under the present catalog and settings: itself while they have not changed. 0A000 when its columns would
/// change under the client's feet.
pub fn revalidate(session: &mut Session, prepared: &Arc<Prepared>) -> Result<Arc<Prepared>> {
    if let Some(parsed) = &prepared.parsed {
        admit(session, &parsed.statement)?;
    }
    if prepared.bound.is_none() {
        return Ok(Arc::clone(prepared));
    }
    let snapshot = session.snapshot()?;
    if prepared.fits(&snapshot.catalog, session.vars.values()) {
        return Ok(Arc::clone(prepared));
    }
    let fresh = prepare(session, prepared.parsed.clone(), &prepared.declared)?;
    if fresh.schema != prepared.schema || fresh.parameters != prepared.parameters {
        return Err(Error::unsupported("cached plan must not change result type"));
    }
    Ok(Arc::new(fresh))
}

/// Executes a prepared statement with parameter values. `cancel` stops it.
pub async fn execute(
    session: &mut Session,
    prepared: &Prepared,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let Some(parsed) = &prepared.parsed else { return Ok(Response::Empty) };
    admit(session, &parsed.statement)?;
    let bound = prepared.bound.as_ref().ok_or_else(|| Error::internal("statement has no plan"));
    match &*parsed.statement {
        Statement::Query(_) => select::execute(session, &parsed.text, bound?, parameters, cancel).await,
        Statement::Explain(_) => explain::execute(session, bound?, parameters, cancel).await,
        Statement::InsertLiterals(statement) => insert::literals(session, statement, &parsed.text).await,
        Statement::Insert(statement) => insert::execute(session, statement, bound?, parameters, cancel).await,
        Statement::Update(statement) => update::execute(session, statement, bound?, parameters, cancel).await,
        Statement::Delete(statement) => delete::execute(session, statement, bound?, parameters, cancel).await,
        Statement::Copy(statement) => copy::execute(session, statement, cancel).await,
        Statement::Subscribe(statement) => subscribe::execute(session, statement, cancel).await,
        Statement::CreateTable(statement) => create_table::execute(session, statement).await,
        Statement::CreateView(statement) => create_view::execute(session, statement).await,
        Statement::Drop(statement) => drop::execute(session, statement).await,
        Statement::CreateIngestToken { name, store } => ingest_token::create(session, name, store.as_deref()).await,
        Statement::DropIngestToken { name, if_exists } => ingest_token::drop(session, name, *if_exists).await,
        Statement::Truncate(names) => truncate::execute(session, names).await,
        Statement::AlterTable(statement) => alter::table(session, statement, cancel).await,
        Statement::AlterView { name, options } => alter::view(session, name, options).await,
        Statement::RefreshView(name) => refresh::execute(session, name).await,
        Statement::CheckView(name) => check::execute(session, name, cancel).await,
        Statement::Alert(statement) => alerting(session, statement, cancel).await,
        Statement::Source(statement) => source::execute(session, statement).await,
        Statement::Begin { start, isolation, read_only } => transaction::begin(session, *start, isolation.as_deref(), *read_only),
        Statement::Commit => transaction::commit(session).await,
        Statement::Rollback => transaction::rollback(session),
        Statement::Savepoint(name) => session.savepoint(name).map(|()| Response::Done("SAVEPOINT".to_owned())),
        Statement::Release(name) => session.release(name).map(|()| Response::Done("RELEASE".to_owned())),
        Statement::RollbackTo(name) => session.rollback_to(name).map(|()| Response::Done("ROLLBACK".to_owned())),
        Statement::Set { name, value, local } => set::execute(session, name, value.as_deref(), *local),
        Statement::Show(name) => show::execute(session, name),
        Statement::ShowCreate(name) => show_create::execute(session, name),
        Statement::Reset(name) => set::reset(session, name),
        Statement::Discard(what) => discard::execute(session, what),
        Statement::Prepare { name, types, text } => prepare::prepare(session, name, types, text),
        Statement::Execute { name, arguments } => prepare::execute(session, name, arguments, cancel).await,
        Statement::Deallocate(name) => prepare::deallocate(session, name.as_deref()),
        Statement::Declare { name, text, hold } => {
            cursor::declare(session, name, text, *hold, (&prepared.parameters, parameters), cancel).await
        }
        Statement::Fetch { name, count } => cursor::fetch(session, name, *count),
        Statement::Close(name) => cursor::close(session, name.as_deref()),
        Statement::Listen(channel) => listen::listen(session, channel),
        Statement::Unlisten(channel) => listen::unlisten(session, channel.as_deref()),
        Statement::Notify { channel, payload } => listen::notify(session, channel, payload),
        Statement::NoOperation(tag) => Ok(Response::Done((*tag).to_owned())),
    }
}

async fn alerting(session: &mut Session, statement: &AlertStatement, cancel: CancellationToken) -> Result<Response> {
    match statement {
        AlertStatement::CreateChannel { name, if_not_exists, kind, options } => {
            channel::create(session, name, *if_not_exists, kind, options).await
        }
        AlertStatement::DropChannels { names, if_exists, cascade } => channel::drop(session, names, *if_exists, *cascade).await,
        AlertStatement::TestChannel(name) => channel::test(session, name).await,
        AlertStatement::Create(statement) => alert::create(session, statement).await,
        AlertStatement::Drop { names, if_exists } => alert::drop(session, names, *if_exists).await,
        AlertStatement::Enable { name, enabled } => alert::enable(session, name, *enabled).await,
        AlertStatement::Silence { name, interval } => alert::silence(session, name, interval).await,
        AlertStatement::Backtest { name, from, to } => alert::backtest(session, name, from, to, cancel).await,
        AlertStatement::ShowAlert(name) => alert::show(session, name),
        AlertStatement::ShowChannel(name) => channel::show(session, name),
    }
}

/// Refuses what the transaction's state forbids: 25P02 in a failed one, 25006 in a read-only one.
fn admit(session: &Session, statement: &Statement) -> Result<()> {
    let ends = matches!(statement, Statement::Commit | Statement::Rollback | Statement::RollbackTo(_));
    if session.transaction.status() == Status::Failed && !ends {
        return Err(aborted());
    }
    match writes(statement) {
        Some(command) if session.vars.read_only() => {
            Err(Error::new(SqlState::READ_ONLY_SQL_TRANSACTION, format!("cannot execute {command} in a read-only transaction")))
        }
        _ => Ok(()),
    }
}

/// The command's name, for statements that change something.
fn writes(statement: &Statement) -> Option<&'static str> {
    match statement {
        Statement::InsertLiterals(_) | Statement::Insert(_) => Some("INSERT"),
        Statement::Update(_) => Some("UPDATE"),
        Statement::Delete(_) => Some("DELETE"),
        Statement::Copy(copy) if copy.direction != CopyDirection::ToStdout => Some("COPY FROM"),
        Statement::CreateTable(_) => Some("CREATE TABLE"),
        Statement::CreateView(_) => Some("CREATE MATERIALIZED VIEW"),
        Statement::Drop(drop) if drop.view => Some("DROP MATERIALIZED VIEW"),
        Statement::Drop(_) => Some("DROP TABLE"),
        Statement::CreateIngestToken { .. } => Some("CREATE INGEST TOKEN"),
        Statement::DropIngestToken { .. } => Some("DROP INGEST TOKEN"),
        Statement::Truncate(_) => Some("TRUNCATE TABLE"),
        Statement::AlterTable(_) => Some("ALTER TABLE"),
        Statement::AlterView { .. } => Some("ALTER MATERIALIZED VIEW"),
        Statement::RefreshView(_) => Some("REFRESH MATERIALIZED VIEW"),
        Statement::Source(statement) => match statement {
            SourceStatement::Create { .. } => Some("CREATE SOURCE"),
            SourceStatement::Drop { .. } => Some("DROP SOURCE"),
            SourceStatement::Pause { .. } | SourceStatement::Set { .. } => Some("ALTER SOURCE"),
            SourceStatement::Show(_) => None,
        },
        Statement::Alert(statement) => match statement {
            AlertStatement::CreateChannel { .. } => Some("CREATE NOTIFICATION CHANNEL"),
            AlertStatement::DropChannels { .. } => Some("DROP NOTIFICATION CHANNEL"),
            AlertStatement::Create(_) => Some("CREATE ALERT"),
            AlertStatement::Drop { .. } => Some("DROP ALERT"),
            AlertStatement::Enable { .. } => Some("ALTER ALERT"),
            AlertStatement::Silence { .. } => Some("SILENCE ALERT"),
            AlertStatement::TestChannel(_)
            | AlertStatement::Backtest { .. }
            | AlertStatement::ShowAlert(_)
            | AlertStatement::ShowChannel(_) => None,
        },
        _ => None,
    }
}
