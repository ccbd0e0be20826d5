//! CREATE, DROP, TEST and SHOW CREATE NOTIFICATION CHANNEL.

use std::sync::Arc;

use crate::catalog::{Catalog, Change, Channel, ChannelKind};
use crate::command::{Response, show_create};
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql::statement::quote_identifier;
use crate::store::Transaction;

/// A channel by name. 42704 when there is none.
pub fn named<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Channel>> {
    catalog.channel_named(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_OBJECT, format!("notification channel \"{name}\" does not exist"))
}

/// `CREATE NOTIFICATION CHANNEL [IF NOT EXISTS] name TYPE kind WITH (...)`.
pub async fn create(session: &mut Session, name: &str, if_not_exists: bool, kind: &str, options: &[(String, String)]) -> Result<Response> {
    let done = Response::Done("CREATE NOTIFICATION CHANNEL".to_owned());
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    if catalog.channel_named(name).is_some() {
        let message = format!("notification channel \"{name}\" already exists");
        if !if_not_exists {
            return Err(Error::new(SqlState::DUPLICATE_OBJECT, message));
        }
        session.warn(SqlState("00000"), format!("{message}, skipping"));
        return Ok(done);
    }
    let known = ChannelKind::ALL.into_iter().find(|known| known.name() == kind);
    let kind = known.ok_or_else(|| {
        let known: Vec<_> = ChannelKind::ALL.iter().map(|kind| kind.name()).collect();
        Error::new(SqlState::UNDEFINED_OBJECT, format!("notification channel type \"{kind}\" does not exist"))
            .hint(format!("Known are {}.", known.join(", ")))
    })?;
    let channels_max = session.services.config.limits.alert.channels_max;
    if catalog.channels().count() >= channels_max {
        session.services.metrics.limit_hit("limits.alert.channels_max");
        return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many notification channels")
            .detail(format!("There can be {channels_max}.")));
    }
    let oid = session.services.store.allocate_oid();
    let channel = session.services.alerts.channel(oid, name, kind, options)?;
    session.submit(Transaction { changes: vec![Change::CreateChannel(Arc::new(channel))], ..Transaction::default() }).await?;
    Ok(done)
}

/// `DROP NOTIFICATION CHANNEL [IF EXISTS] name [, ...] [CASCADE | RESTRICT]`: with CASCADE the alerts that tell it go too.
pub async fn drop(session: &mut Session, names: &[String], if_exists: bool, cascade: bool) -> Result<Response> {
    let mut catalog = Arc::clone(&session.snapshot()?.catalog);
    let mut changes = Vec::new();
    for name in names {
        let Some(channel) = catalog.channel_named(name) else {
            if !if_exists {
                return Err(missing(name));
            }
            session.warn(SqlState("00000"), format!("notification channel \"{name}\" does not exist, skipping"));
            continue;
        };
        let tell = catalog.alerts().filter(|alert| cascade && alert.channels.contains(&channel.oid));
        let steps: Vec<Change> = tell.map(|alert| Change::DropAlert(alert.oid)).chain([Change::DropChannel(channel.oid)]).collect();
        for change in steps {
            catalog = Arc::new(catalog.with(&change)?);
            changes.push(change);
        }
    }
    if !changes.is_empty() {
        session.submit(Transaction { changes, ..Transaction::default() }).await?;
    }
    Ok(Response::Done("DROP NOTIFICATION CHANNEL".to_owned()))
}

/// `TEST NOTIFICATION CHANNEL name`: sends a message and waits for its receiver. 08006 with the reason when it does not arrive.
pub async fn test(session: &mut Session, name: &str) -> Result<Response> {
    // One that the open transaction has made is not known to those who deliver.
    let channel = Arc::clone(named(&session.services.store.catalog(), name)?);
    session.services.alerts.test(&channel).await?;
    Ok(Response::Done("TEST NOTIFICATION CHANNEL".to_owned()))
}

/// `SHOW CREATE NOTIFICATION CHANNEL name`: the statement, with `...` in place of secrets.
pub fn show(session: &mut Session, name: &str) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let channel = named(&catalog, name)?;
    let options: Vec<_> =
        channel.shown.iter().map(|(key, value)| format!("{} = '{}'", quote_identifier(key), value.replace('\'', "''"))).collect();
    let text = format!(
        "CREATE NOTIFICATION CHANNEL {} TYPE {} WITH ({})",
        quote_identifier(&channel.name),
        channel.kind.name(),
        options.join(", ")
    );
    show_create::answer(name, &text)
}
