//! `SHOW name | ALL`.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::command::{Response, set};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::session::variable::{self, VARIABLES};
use crate::types::SqlType;

/// What happens to very late rows where neither the session nor the table says.
const LATE_ROWS_DEFAULT: &str = "divert";

/// Output columns, for Describe. 42704 when there is no such variable.
pub fn schema(session: &Session, name: &str) -> Result<SchemaRef> {
    let name = set::alias(name);
    if name.eq_ignore_ascii_case("all") {
        return Ok(of_names(&["name", "setting", "description"]));
    }
    session.vars.get(name)?;
    Ok(of_names(&[variable::find(name).map_or(name, |variable| variable.name)]))
}

/// `SHOW name | ALL`.
pub fn execute(session: &mut Session, name: &str) -> Result<Response> {
    let schema = schema(session, name)?;
    let name = set::alias(name);
    let columns: Vec<ArrayRef> = if name.eq_ignore_ascii_case("all") {
        let value = |name: &str| session.vars.get(name).unwrap_or_default().to_owned();
        vec![
            texts(VARIABLES.iter().map(|variable| variable.name)),
            texts(VARIABLES.iter().map(|variable| value(variable.name))),
            texts(VARIABLES.iter().map(|variable| variable.description)),
        ]
    } else {
        let value = session.vars.get(name)?;
        // Unset, each table says; what it does unless told otherwise is shown.
        let unset = name.eq_ignore_ascii_case("verus.late_rows") && value.is_empty();
        vec![texts([if unset { LATE_ROWS_DEFAULT } else { value }])]
    };
    let batch = RecordBatch::try_new(schema, columns).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "SHOW"))
}

fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(values))
}

fn of_names(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|name| SqlType::Text.field(name, false)).collect::<Vec<_>>()))
}
