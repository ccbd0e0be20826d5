//! SUBSCRIBE: a view's changes as they are committed, in the form of a COPY TO STDOUT; the same for `web`.
//!
//! Each line is `lsn`, `kind` and the view's columns. Kinds: `snapshot`, a group of the view as of `lsn`, at the start; `update`, a
//! group that is new or has new values; `delete`, a group that is gone, of which only the keys have values; `progress`, which says
//! that everything below `lsn` has been sent. `from_lsn` with the last progress resumes.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use tokio_util::sync::CancellationToken;

use crate::command::copy::CopyOut;
use crate::command::{Response, relation};
use crate::error::{Error, Result, SqlState};
use crate::query::Context;
use crate::query::follow::{self, Follow, Start, Tools};
use crate::session::{Services, Session};
use crate::sql::Statement;
use crate::sql::statement::{CopyFormat, CopyOptions, Header, Subscribe};

/// How long a subscription waits for a place.
const PLACE_WITHIN: Duration = Duration::from_secs(2);

/// What WITH knows.
const OPTIONS: [&str; 5] = ["snapshot", "from_lsn", "since", "progress", "up_to"];

/// SUBSCRIBE alone answers in COPY's text format.
pub async fn execute(session: &mut Session, statement: &Subscribe, cancel: CancellationToken) -> Result<Response> {
    let options = CopyOptions {
        format: CopyFormat::Text,
        delimiter: b'\t',
        null: "\\N".to_owned(),
        header: Header::Off,
        quote: b'"',
        escape: b'"',
        force_quote: Vec::new(),
        force_not_null: Vec::new(),
        force_null: Vec::new(),
        default: None,
    };
    Ok(Response::CopyOut(Box::new(to_stdout(session, statement, &options, cancel).await?)))
}

/// `COPY (SUBSCRIBE ...) TO STDOUT`.
pub async fn to_stdout(session: &mut Session, statement: &Subscribe, options: &CopyOptions, cancel: CancellationToken) -> Result<CopyOut> {
    // Later commits are shown as they come, which is neither the transaction's snapshot nor its own uncommitted rows.
    if session.transaction.is_dirty() || session.vars.repeatable_read() {
        let what = if session.transaction.is_dirty() { "that has changed something" } else { "with REPEATABLE READ" };
        return Err(Error::new(SqlState::ACTIVE_SQL_TRANSACTION, format!("SUBSCRIBE cannot run in a transaction {what}"))
            .hint("COMMIT first, or subscribe outside a transaction block."));
    }
    let context = session.context()?;
    let services = Arc::clone(&session.services);
    let (schema, stream) = start(&services, context, statement, cancel).await?;
    CopyOut::live(&schema, stream, options, *session.vars.style())
}

/// Starts to follow a view. 53400 when all places are taken.
pub async fn start(
    services: &Arc<Services>,
    context: Context,
    statement: &Subscribe,
    cancel: CancellationToken,
) -> Result<(SchemaRef, SendableRecordBatchStream)> {
    let view = relation::view(&context.snapshot.catalog, &statement.view)?;
    let follow = options(view.oid, &statement.options)?;
    let bound = services.engine.bind(&context, &Statement::Query(statement.query.clone()), &[])?;
    if !bound.parameters.is_empty() {
        return Err(Error::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"));
    }
    // A subscription that has just ended may still be about to leave its place.
    let place = tokio::time::timeout(PLACE_WITHIN, Arc::clone(&services.subscribers).acquire_owned()).await;
    let place = place.ok().and_then(std::result::Result::ok).ok_or_else(|| {
        services.metrics.limit_hit("limits.wire.subscribers_max");
        let most = services.config.limits.wire.subscribers_max;
        Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many subscriptions").detail(format!("There can be {most} at a time."))
    })?;
    let tools = Tools { store: Arc::clone(&services.store), metrics: Arc::clone(&services.metrics), place };
    let stream = services.engine.follow(context, &bound, follow, tools, cancel).await?;
    Ok((follow::schema(&bound.schema), stream))
}

fn options(view: crate::catalog::Oid, given: &[(String, String)]) -> Result<Follow> {
    let (mut snapshot, mut since, mut progress, mut up_to) = (None, None, true, None);
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in given {
        let name = if key == "since" { "from_lsn" } else { key.as_str() };
        if seen.contains(&name) {
            return Err(Error::syntax("conflicting or redundant options"));
        }
        seen.push(name);
        match name {
            "snapshot" => snapshot = Some(boolean(key, value)?),
            "from_lsn" => since = Some(lsn(key, value)?),
            "progress" => progress = boolean(key, value)?,
            "up_to" => up_to = Some(lsn(key, value)?),
            _ => {
                let known = OPTIONS.join(", ");
                return Err(invalid(format!("unrecognized option \"{key}\"")).hint(format!("Known are {known}.")));
            }
        }
    }
    let start = match (since, snapshot) {
        (Some(_), Some(true)) => {
            return Err(invalid("options \"from_lsn\" and \"snapshot\" exclude each other".to_owned())
                .detail("With from_lsn the groups that have changed since then come first."));
        }
        (Some(lsn), _) => Start::Since(lsn),
        (None, Some(false)) => Start::Newest,
        (None, _) => Start::Snapshot,
    };
    Ok(Follow { view, start, progress, up_to })
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(invalid(format!("invalid value for option \"{key}\": \"{value}\"")).hint("Known are true and false.")),
    }
}

fn lsn(key: &str, value: &str) -> Result<u64> {
    let number = value.parse::<u64>().ok().filter(|lsn| i64::try_from(*lsn).is_ok());
    number.ok_or_else(|| {
        invalid(format!("invalid value for option \"{key}\": \"{value}\"")).detail("It is an LSN, such as a progress row gives.")
    })
}

fn invalid(message: String) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}
