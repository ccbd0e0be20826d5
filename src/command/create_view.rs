//! CREATE MATERIALIZED VIEW.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::CreateView;

/// `CREATE MATERIALIZED VIEW [IF NOT EXISTS] name [(columns)] [WITH (...)] AS query [WITH [NO] DATA]`.
pub async fn execute(session: &mut Session, statement: &CreateView) -> Result<Response> {
    let _ = (session, statement);
    unimplemented!()
}
