//! CHECK MATERIALIZED VIEW.
use arrow::datatypes::SchemaRef;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::session::Session;
use crate::sql::statement::Name;

/// Output columns, for Describe.
pub fn schema() -> SchemaRef {
    unimplemented!()
}

/// `CHECK MATERIALIZED VIEW v`.
pub async fn execute(session: &mut Session, name: &Name, cancel: CancellationToken) -> Result<Response> {
    let _ = (session, name, cancel);
    unimplemented!()
}
