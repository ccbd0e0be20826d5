//! SELECT, VALUES, WITH, TABLE.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::query::Bound;
use crate::session::Session;

/// Runs a bound query.
pub async fn execute(session: &mut Session, bound: &Bound, parameters: &[ScalarValue], cancel: CancellationToken) -> Result<Response> {
    let context = session.context()?;
    let stream = session.services.engine.run(&context, bound, parameters, cancel).await?;
    Ok(Response::Rows { schema: Arc::clone(&bound.schema), stream, tag: "SELECT" })
}
