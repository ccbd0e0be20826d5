//! REFRESH MATERIALIZED VIEW.

use crate::command::{Response, relation};
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;

/// `REFRESH MATERIALIZED VIEW name`: a view that is kept incrementally is fresh already.
pub async fn execute(session: &mut Session, name: &Name) -> Result<Response> {
    relation::view(&session.snapshot()?.catalog, name)?;
    Ok(Response::Done("REFRESH MATERIALIZED VIEW".to_owned()))
}
