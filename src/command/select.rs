//! SELECT, VALUES, WITH, TABLE.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;
use tokio_util::sync::CancellationToken;

use crate::command::Response;
use crate::error::Result;
use crate::query::Bound;
use crate::query::functions::session::{Kind, kind_of, setting_of};
use crate::session::Session;

/// Applies the `set_config()` calls of a query. The query itself sees the settings from before.
fn configure(session: &mut Session, bound: &Bound, parameters: &[ScalarValue]) -> Result<()> {
    let mut settings = Vec::new();
    let walked = bound.plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::ScalarFunction(function) = expression
                    && kind_of(function) == Some(Kind::SetSetting)
                {
                    settings.extend(setting_of(&function.args, parameters)?);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    walked.map_err(crate::session::engine_error)?;
    for (name, value, local) in settings {
        super::set::execute(session, &name, Some(&value), local)?;
    }
    Ok(())
}

/// Runs a bound query. `text` is the statement's.
pub async fn execute(
    session: &mut Session,
    text: &str,
    bound: &Bound,
    parameters: &[ScalarValue],
    cancel: CancellationToken,
) -> Result<Response> {
    let context = session.context()?;
    if text.contains("set_config") {
        configure(session, bound, parameters)?;
    }
    let stream = session.services.engine.run(&context, bound, parameters, cancel).await?;
    Ok(Response::Rows { schema: Arc::clone(&bound.schema), stream, tag: "SELECT" })
}
