//! PREPARE, EXECUTE, DEALLOCATE.
//!
//! *Place*: shares the session's statements with the protocol's Parse, as in PostgreSQL.

use std::sync::Arc;

use arrow::array::RecordBatchOptions;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::physical_plan::ColumnarValue;
use sqlparser::ast;
use tokio_util::sync::CancellationToken;

use crate::command::{self, Response};
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::sql;
use crate::types::SqlType;

/// `PREPARE name [(types)] AS statement`.
pub fn prepare(session: &mut Session, name: &str, types: &[SqlType], text: &str) -> Result<Response> {
    let declared: Vec<_> = types.iter().cloned().map(Some).collect();
    let prepared = command::prepare(session, Some(only(text)?), &declared)?;
    session.add_statement(name, Arc::new(prepared))?;
    Ok(Response::Done("PREPARE".to_owned()))
}

/// `EXECUTE name [(arguments)]`.
pub async fn execute(session: &mut Session, name: &str, arguments: &[ast::Expr], cancel: CancellationToken) -> Result<Response> {
    let prepared = Arc::clone(session.statement(name)?);
    let prepared = command::revalidate(session, &prepared)?;
    if arguments.len() != prepared.parameters.len() {
        return Err(Error::syntax(format!("wrong number of parameters for prepared statement \"{name}\"")).detail(format!(
            "Expected {} parameters but got {}.",
            prepared.parameters.len(),
            arguments.len()
        )));
    }
    let parameters = evaluate(session, arguments, &prepared.parameters)?;
    // Boxed: a prepared statement may be an EXECUTE, and futures do not nest in themselves.
    Box::pin(command::execute(session, &prepared, &parameters, cancel)).await
}

/// `DEALLOCATE [PREPARE] name | ALL`.
pub fn deallocate(session: &mut Session, name: Option<&str>) -> Result<Response> {
    match name {
        None => {
            session.statements.retain(|name, _| name.is_empty());
            Ok(Response::Done("DEALLOCATE ALL".to_owned()))
        }
        Some(name) => {
            session.statement(name)?;
            session.statements.remove(name);
            Ok(Response::Done("DEALLOCATE".to_owned()))
        }
    }
}

/// The one statement of a text.
pub(super) fn only(text: &str) -> Result<sql::Parsed> {
    let mut parsed = sql::parse(text)?;
    match (parsed.pop(), parsed.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(Error::new(SqlState::SYNTAX_ERROR, "expected one statement")),
    }
}

fn evaluate(session: &Session, arguments: &[ast::Expr], types: &[SqlType]) -> Result<Vec<ScalarValue>> {
    let schema = Arc::new(Schema::empty());
    let texts: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let targets: Vec<_> = types.iter().map(|each| Some(each.arrow())).collect();
    let row = RecordBatch::try_new_with_options(Arc::clone(&schema), vec![], &RecordBatchOptions::new().with_row_count(Some(1)))
        .map_err(|error| Error::internal(error.to_string()))?;
    let expressions = session.services.binder.bind_expressions(&schema, &texts, &targets)?;
    expressions
        .iter()
        .map(|expression| {
            let value = expression.evaluate(&row).map_err(crate::session::engine_error)?;
            match value {
                ColumnarValue::Scalar(value) => Ok(value),
                ColumnarValue::Array(values) => ScalarValue::try_from_array(&values, 0).map_err(crate::session::engine_error),
            }
        })
        .collect()
}
