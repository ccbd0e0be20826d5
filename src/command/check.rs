//! CHECK MATERIALIZED VIEW.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use crate::command::{Response, relation};
use crate::error::{Error, Result};
use crate::session::{Session, engine_error};
use crate::sql::Statement;
use crate::sql::statement::{Name, quote_identifier};
use crate::types::SqlType;

/// Output columns, for Describe.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        SqlType::Text.field("view", false),
        SqlType::BigInt.field("groups", false),
        SqlType::BigInt.field("differing", false),
        SqlType::Boolean.field("ok", false),
    ]))
}

/// `CHECK MATERIALIZED VIEW v`: runs the defining query on the snapshot that the view is read from and counts the rows that
/// only one of them has.
pub async fn execute(session: &mut Session, name: &Name, cancel: CancellationToken) -> Result<Response> {
    let context = session.context()?;
    let view = relation::view(&context.snapshot.catalog, name)?;
    let own = quote_identifier(&view.name);
    // Rows are compared as sets, their numbers apart: a row that one side has twice shows in the counts.
    let query = format!(
        "WITH kept AS (SELECT * FROM {own}), expected AS ({query}) \
         SELECT (SELECT count(*) FROM kept), (SELECT count(*) FROM expected), \
         (SELECT count(*) FROM (SELECT * FROM kept EXCEPT SELECT * FROM expected) AS surplus) \
         + (SELECT count(*) FROM (SELECT * FROM expected EXCEPT SELECT * FROM kept) AS missing)",
        query = view.query
    );
    let engine = Arc::clone(&session.services.engine);
    let statement = Statement::Query(Box::new(crate::sql::parse_query(&query)?));
    let bound = engine.bind(&context, &statement, &[])?;
    let stream = engine.run(&context, &bound, &[], cancel).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(engine_error)?;
    let row = batches.iter().find(|batch| batch.num_rows() == 1).ok_or_else(|| Error::internal("the check gave no row"))?;
    let number = |column: usize| row.column(column).as_primitive_opt::<Int64Type>().map(|values| values.value(0));
    let (Some(groups), Some(expected), Some(unmatched)) = (number(0), number(1), number(2)) else {
        return Err(Error::internal("the check gave no counts"));
    };
    let differing = unmatched.max((groups - expected).abs());
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(StringViewArray::from_iter_values([view.name.as_str()])),
            Arc::new(Int64Array::from(vec![groups])),
            Arc::new(Int64Array::from(vec![differing])),
            Arc::new(BooleanArray::from(vec![differing == 0])),
        ],
    )
    .map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "CHECK"))
}
