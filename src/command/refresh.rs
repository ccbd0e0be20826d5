//! REFRESH MATERIALIZED VIEW.

use std::sync::Arc;

use crate::command::{Response, relation};
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;

/// `REFRESH MATERIALIZED VIEW name`: brings a refreshed view up to now, and joins a view's rows with the plain tables as they are now;
/// returns when that is durable and visible. Any other view is fresh already. What an open transaction has not committed yet is not
/// in it.
pub async fn execute(session: &mut Session, name: &Name) -> Result<Response> {
    let catalog = Arc::clone(&session.snapshot()?.catalog);
    let view = relation::view(&catalog, name)?;
    for part in catalog.parts(view.oid) {
        session.services.store.refresh(part.oid).await?;
    }
    session.services.store.refresh(view.oid).await?;
    Ok(Response::Done("REFRESH MATERIALIZED VIEW".to_owned()))
}
