//! REFRESH MATERIALIZED VIEW.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;

/// `REFRESH MATERIALIZED VIEW v`.
pub async fn execute(session: &mut Session, name: &Name) -> Result<Response> {
    let _ = (session, name);
    unimplemented!()
}
