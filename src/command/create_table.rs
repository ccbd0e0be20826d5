//! CREATE TABLE.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::CreateTable;

/// `CREATE TABLE [IF NOT EXISTS] name (...) [WITH (...)]`.
pub async fn execute(session: &mut Session, statement: &CreateTable) -> Result<Response> {
    let _ = (session, statement);
    unimplemented!()
}
