//! ALTER TABLE and ALTER MATERIALIZED VIEW.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::{AlterTable, Name};

/// `ALTER TABLE t ADD [COLUMN] [IF NOT EXISTS] column`.
pub async fn table(session: &mut Session, statement: &AlterTable) -> Result<Response> {
    let _ = (session, statement);
    unimplemented!()
}

/// `ALTER MATERIALIZED VIEW v SET (ttl = ...)`.
pub async fn view(session: &mut Session, name: &Name, options: &[(String, String)]) -> Result<Response> {
    let _ = (session, name, options);
    unimplemented!()
}
