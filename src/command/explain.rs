//! EXPLAIN.
use datafusion::common::ScalarValue;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::query::Bound;
use crate::session::Session;

/// Runs an EXPLAIN that `Engine::bind` has bound.
pub async fn execute(session: &mut Session, bound: &Bound, parameters: &[ScalarValue], cancel: CancellationToken) -> Result<Response> {
    let _ = (session, bound, parameters, cancel);
    unimplemented!()
}
