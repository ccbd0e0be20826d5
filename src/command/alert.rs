//! CREATE, DROP, ALTER, SILENCE, BACKTEST and SHOW CREATE ALERT.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::alert::ledger::Entry;
use crate::alert::plan;
use crate::catalog::{Alert, Catalog, Change, NoData};
use crate::clock::Micros;
use crate::command::{Response, channel, options, show_create};
use crate::error::{Error, Result, SqlState};
use crate::query::catalogs::alerts::jsonb;
use crate::session::Session;
use crate::sql::Statement;
use crate::sql::statement::{CreateAlert, quote_identifier};
use crate::store::Transaction;
use crate::types::{SqlType, UTC};

fn named<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Alert>> {
    catalog.alert_named(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_OBJECT, format!("alert \"{name}\" does not exist"))
}

/// CREATE ALERT: its query is checked, and it is watched from now on.
pub async fn create(session: &mut Session, statement: &CreateAlert) -> Result<Response> {
    let done = Response::Done("CREATE ALERT".to_owned());
    let name = &statement.name;
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    if catalog.alert_named(name).is_some() {
        let message = format!("alert \"{name}\" already exists");
        if !statement.if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_OBJECT, message));
        }
        session.warn(SqlState("00000"), format!("{message}, skipping"));
        return Ok(done);
    }
    let alerts_max = session.services.config.limits.alert.alerts_max;
    if catalog.alerts().count() >= alerts_max {
        session.services.metrics.limit_hit("limits.alert.alerts_max");
        return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many alerts").detail(format!("There can be {alerts_max}.")));
    }
    let mut channels = Vec::with_capacity(statement.channels.len());
    for name in &statement.channels {
        let oid = channel::named(&catalog, name)?.oid;
        if channels.contains(&oid) {
            return Err(Error::new(SqlState::DUPLICATE_OBJECT, format!("notification channel \"{name}\" is named twice")));
        }
        channels.push(oid);
    }
    let query = statement.query.to_string();
    let compiled = plan::compile(&*session.services.binder, &catalog, &query, &[])?;
    if compiled.window.is_none() && statement.every.is_none() {
        return Err(Error::new(
            SqlState::INVALID_OBJECT_DEFINITION,
            "an alert without EVERY needs the start of a window in its select list",
        )
        .detail("It is evaluated when a window of its source closes.")
        .hint("Select the window, for instance window_start, or say EVERY INTERVAL '1 minute'."));
    }
    if compiled.refreshed && statement.every.is_none() {
        return Err(Error::unsupported("an alert without EVERY over a refreshed materialized view is not supported")
            .detail("The view follows its sources after a while: when a window closes, its rows may not be there yet.")
            .hint("Say EVERY INTERVAL '1 minute', or read an incremental view."));
    }
    if let Some(twice) =
        compiled.names.iter().enumerate().find(|(index, name)| compiled.names[..*index].contains(name)).map(|(_, name)| name)
    {
        return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{twice}\" specified more than once"))
            .hint("Give the columns different names with AS."));
    }
    let interval = |clause: &str, text: &Option<String>| text.as_ref().map(|text| duration(clause, text)).transpose();
    let alert = Alert {
        oid: session.services.store.allocate_oid(),
        name: name.clone(),
        query,
        sources: compiled.sources,
        channels,
        every_us: interval("EVERY", &statement.every)?,
        for_us: interval("FOR", &statement.hold)?.unwrap_or(0),
        repeat_us: interval("REPEAT EVERY", &statement.repeat)?,
        no_data: match statement.no_data {
            Some("ALERT") => NoData::Alert,
            Some("KEEP") => NoData::Keep,
            _ => NoData::Ok,
        },
        enabled: true,
        silenced_until: None,
    };
    session.submit(Transaction { changes: vec![Change::CreateAlert(Arc::new(alert))], ..Transaction::default() }).await?;
    Ok(done)
}

/// An interval of fixed length, more than nothing.
fn duration(clause: &str, text: &str) -> Result<Micros> {
    let invalid = || Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("invalid interval after {clause}: \"{text}\""));
    let interval = crate::types::text::interval::interval(text).map_err(|error| invalid().detail(format!("{error}.")))?;
    options::microseconds(interval).filter(|us| *us > 0).ok_or_else(|| invalid().detail("It must be a positive interval."))
}

/// `DROP ALERT [IF EXISTS] name [, ...]`. What it has not told yet is still told.
pub async fn drop(session: &mut Session, names: &[String], if_exists: bool) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let mut changes = Vec::new();
    for name in names {
        match catalog.alert_named(name) {
            Some(alert) => changes.push(Change::DropAlert(alert.oid)),
            None if if_exists => session.warn(SqlState("00000"), format!("alert \"{name}\" does not exist, skipping")),
            None => return Err(missing(name)),
        }
    }
    if !changes.is_empty() {
        session.submit(Transaction { changes, ..Transaction::default() }).await?;
    }
    Ok(Response::Done("DROP ALERT".to_owned()))
}

/// `ALTER ALERT name ENABLE | DISABLE`.
pub async fn enable(session: &mut Session, name: &str, enabled: bool) -> Result<Response> {
    alter(session, name, |alert| alert.enabled = enabled).await?;
    Ok(Response::Done("ALTER ALERT".to_owned()))
}

/// `SILENCE ALERT name FOR interval`, from now on.
pub async fn silence(session: &mut Session, name: &str, interval: &str) -> Result<Response> {
    let until = session.services.clock.now().saturating_add(duration("FOR", interval)?);
    alter(session, name, |alert| alert.silenced_until = Some(until)).await?;
    Ok(Response::Done("SILENCE ALERT".to_owned()))
}

async fn alter(session: &mut Session, name: &str, change: impl FnOnce(&mut Alert)) -> Result<()> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let mut alert = Alert::clone(named(&catalog, name)?);
    change(&mut alert);
    session.submit(Transaction { changes: vec![Change::AlterAlert(Arc::new(alert))], ..Transaction::default() }).await.map(|_| ())
}

/// Columns of BACKTEST ALERT.
pub fn backtest_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        SqlType::Timestamptz.field("at", false),
        SqlType::Timestamptz.field("window_start", true),
        SqlType::Jsonb.field("instance", false),
        SqlType::Text.field("from_state", false),
        SqlType::Text.field("to_state", false),
        SqlType::Jsonb.field("data", false),
        SqlType::Text.field("reason", true),
    ]))
}

/// `BACKTEST ALERT name FROM time TO time`: the changes of state that there would have been.
pub async fn backtest(session: &mut Session, name: &str, from: &ast::Expr, to: &ast::Expr, cancel: CancellationToken) -> Result<Response> {
    let (from, to) = times(session, from, to, cancel.clone()).await?;
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let entries = session.services.alerts.backtest(named(&catalog, name)?, from, to, cancel).await?;
    let text = |of: &dyn Fn(&Entry) -> Option<String>| -> ArrayRef { Arc::new(entries.iter().map(of).collect::<StringViewArray>()) };
    let time = |of: &dyn Fn(&Entry) -> Option<Micros>| -> ArrayRef {
        Arc::new(entries.iter().map(of).collect::<TimestampMicrosecondArray>().with_timezone(UTC))
    };
    let columns = vec![
        time(&|entry| Some(entry.at)),
        time(&|entry| entry.window),
        text(&|entry| Some(jsonb(&entry.instance))),
        text(&|entry| Some(entry.from.name().to_owned())),
        text(&|entry| Some(entry.to.name().to_owned())),
        text(&|entry| Some(jsonb(&entry.values))),
        text(&|entry| entry.reason.clone()),
    ];
    let batch = RecordBatch::try_new(backtest_schema(), columns).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "BACKTEST"))
}

/// The values of two constant times.
async fn times(session: &mut Session, from: &ast::Expr, to: &ast::Expr, cancel: CancellationToken) -> Result<(Micros, Micros)> {
    let query = crate::sql::parse_query(&format!("SELECT ({from})::timestamptz, ({to})::timestamptz"))?;
    let context = session.context()?;
    let bound = session.services.engine.bind(&context, &Statement::Query(Box::new(query)), &[])?;
    if !bound.parameters.is_empty() {
        return Err(Error::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1"));
    }
    let stream = session.services.engine.run(&context, &bound, &[], cancel).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(crate::session::engine_error)?;
    let row = batches.iter().find(|batch| batch.num_rows() > 0).ok_or_else(|| Error::internal("a time without a value"))?;
    let time = |index: usize| match ScalarValue::try_from_array(row.column(index), 0) {
        Ok(ScalarValue::TimestampMicrosecond(Some(us), _)) => Ok(us),
        _ => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "the times of BACKTEST ALERT must not be null")),
    };
    let (from, to) = (time(0)?, time(1)?);
    if from >= to {
        return Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, "the first time of BACKTEST ALERT must be before the second"));
    }
    Ok((from, to))
}

/// `SHOW CREATE ALERT name`.
pub fn show(session: &mut Session, name: &str) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    show_create::answer(name, &definition(&catalog, named(&catalog, name)?))
}

/// The statement that would make an alert again.
fn definition(catalog: &Catalog, alert: &Alert) -> String {
    let clause =
        |word: &str, us: Option<Micros>| us.map(|us| format!(" {word} INTERVAL '{}'", show_create::duration(us))).unwrap_or_default();
    let no_data = if alert.no_data == NoData::Ok { String::new() } else { format!(" ON NO DATA {}", alert.no_data.name()) };
    let channels: Vec<_> =
        alert.channels.iter().filter_map(|oid| catalog.channel(*oid)).map(|channel| quote_identifier(&channel.name)).collect();
    format!(
        "CREATE ALERT {}{}{}{}{no_data} AS {} WITH NOTIFICATION {}",
        quote_identifier(&alert.name),
        clause("EVERY", alert.every_us),
        clause("FOR", Some(alert.for_us).filter(|us| *us > 0)),
        clause("REPEAT EVERY", alert.repeat_us),
        alert.query,
        channels.join(", ")
    )
}
