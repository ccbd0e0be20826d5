//! DROP TABLE, DROP MATERIALIZED VIEW.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Drop;

/// `DROP {TABLE | MATERIALIZED VIEW} [IF EXISTS] name [, ...] [CASCADE | RESTRICT]`.
pub async fn execute(session: &mut Session, statement: &Drop) -> Result<Response> {
    let _ = (session, statement);
    unimplemented!()
}
