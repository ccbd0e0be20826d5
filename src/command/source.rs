//! CREATE, DROP, ALTER and SHOW CREATE SOURCE.

use std::sync::Arc;

use crate::catalog::{Catalog, Change, EventSource};
use crate::command::{Response, relation, show_create};
use crate::error::{Error, Result, SqlState};
use crate::ingest::source::options;
use crate::session::Session;
use crate::sql::statement::{Name, SourceStatement, quote_identifier};
use crate::store::Transaction;

/// Runs a statement about sources.
pub async fn execute(session: &mut Session, statement: &SourceStatement) -> Result<Response> {
    match statement {
        SourceStatement::Create { name, if_not_exists, options, table } => create(session, name, *if_not_exists, options, table).await,
        SourceStatement::Drop { names, if_exists } => drop(session, names, *if_exists).await,
        SourceStatement::Pause { name, paused } => {
            let source = named(&session.snapshot()?.catalog, name)?.clone();
            // Also where it is so already: the tasks of a source that is altered begin anew, which is what RESUME of one that fails asks for.
            alter(session, EventSource { paused: *paused, ..EventSource::clone(&source) }).await
        }
        SourceStatement::Set { name, options } => {
            let source = named(&session.snapshot()?.catalog, name)?.clone();
            let altered = session.services.sources.redefine(&source, options)?;
            alter(session, altered).await
        }
        SourceStatement::Show(name) => show(session, name),
    }
}

fn named<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<EventSource>> {
    catalog.source_named(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_OBJECT, format!("source \"{name}\" does not exist"))
}

/// `CREATE SOURCE [IF NOT EXISTS] name FROM KAFKA (...) INTO table`. The brokers are not asked: `verus.sources` tells how it goes.
async fn create(session: &mut Session, name: &str, if_not_exists: bool, options: &[(String, String)], table: &Name) -> Result<Response> {
    let done = Response::Done("CREATE SOURCE".to_owned());
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    if catalog.source_named(name).is_some() {
        let message = format!("source \"{name}\" already exists");
        if !if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_OBJECT, message));
        }
        session.warn(SqlState("00000"), format!("{message}, skipping"));
        return Ok(done);
    }
    let table = relation::writable(&catalog, table)?;
    let sources_max = session.services.config.limits.kafka.sources_max;
    if catalog.sources().count() >= sources_max {
        session.services.metrics.limit_hit("limits.kafka.sources_max");
        return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many sources").detail(format!("There can be {sources_max}.")));
    }
    let given = options::collect(options)?;
    let oid = session.services.store.allocate_oid();
    let source = session.services.sources.define(oid, name, table.oid, &given)?;
    if given.get("sasl").is_some_and(|sasl| sasl.eq_ignore_ascii_case("plain")) && !given.contains_key("tls") {
        session.warn(SqlState::WARNING, "the password of this source goes over the network as it is: add tls = true".to_owned());
    }
    session.submit(Transaction { changes: vec![Change::CreateSource(Arc::new(source))], ..Transaction::default() }).await?;
    Ok(done)
}

/// `DROP SOURCE [IF EXISTS] name [, ...]`: how far it has come is forgotten; its rows stay.
async fn drop(session: &mut Session, names: &[String], if_exists: bool) -> Result<Response> {
    let mut catalog = Arc::clone(&session.snapshot()?.catalog);
    let mut changes = Vec::new();
    for name in names {
        match catalog.source_named(name) {
            Some(source) => {
                let change = Change::DropSource(source.oid);
                catalog = Arc::new(catalog.with(&change)?);
                changes.push(change);
            }
            None if if_exists => session.warn(SqlState("00000"), format!("source \"{name}\" does not exist, skipping")),
            None => return Err(missing(name)),
        }
    }
    if !changes.is_empty() {
        session.submit(Transaction { changes, ..Transaction::default() }).await?;
    }
    Ok(Response::Done("DROP SOURCE".to_owned()))
}

async fn alter(session: &mut Session, source: EventSource) -> Result<Response> {
    session.submit(Transaction { changes: vec![Change::AlterSource(Arc::new(source))], ..Transaction::default() }).await?;
    Ok(Response::Done("ALTER SOURCE".to_owned()))
}

/// The statement that would make a source again, with `...` in place of its password.
fn show(session: &mut Session, name: &str) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let source = named(&catalog, name)?;
    let options: Vec<_> =
        source.shown.iter().map(|(key, value)| format!("{} = '{}'", quote_identifier(key), value.replace('\'', "''"))).collect();
    let table = catalog.table(source.table).ok_or_else(|| Error::internal("the table of a source is not there"))?;
    let text = format!(
        "CREATE SOURCE {} FROM KAFKA ({}) INTO {}",
        quote_identifier(&source.name),
        options.join(", "),
        quote_identifier(&table.name)
    );
    show_create::answer(name, &text)
}
