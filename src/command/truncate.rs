//! TRUNCATE.
use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;

/// `TRUNCATE [TABLE] name [, ...]`.
pub async fn execute(session: &mut Session, names: &[Name]) -> Result<Response> {
    let _ = (session, names);
    unimplemented!()
}
