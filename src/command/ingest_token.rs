//! CREATE INGEST TOKEN, DROP INGEST TOKEN.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use arrow::datatypes::{Schema, SchemaRef};
use rand::Rng;

use crate::catalog::Change;
use crate::catalog::token::IngestToken;
use crate::command::Response;
use crate::error::{Error, Result, SqlState};
use crate::session::Session;
use crate::store::Transaction;
use crate::types::SqlType;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// Output columns of CREATE, for Describe.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![SqlType::Text.field("name", false), SqlType::Text.field("token", false)]))
}

/// Answers the token, which is shown this once: only its hash is kept. 42710 when the name is taken.
pub async fn create(session: &mut Session, name: &str, store: Option<&str>) -> Result<Response> {
    let mut random = [0_u8; TOKEN_BYTES];
    rand::rng().fill(&mut random);
    let token = random.iter().fold(String::from("verus_"), |text, byte| text + &format!("{byte:02x}"));
    let created_at = session.context()?.now;
    let kept = IngestToken { name: name.to_owned(), store: store.map(str::to_owned), hash: IngestToken::hash_of(&token), created_at };
    let changes = vec![Change::CreateIngestToken(Arc::new(kept))];
    session.submit(Transaction { changes, ..Transaction::default() }).await?;
    let text = |value: &str| Arc::new(StringViewArray::from_iter_values([value])) as ArrayRef;
    let batch = RecordBatch::try_new(schema(), vec![text(name), text(&token)]).map_err(|error| Error::internal(error.to_string()))?;
    Ok(Response::of_batch(batch, "CREATE INGEST TOKEN"))
}

/// The token opens nothing from then on. 42704 when there is none.
pub async fn drop(session: &mut Session, name: &str, if_exists: bool) -> Result<Response> {
    let tag = || Response::Done("DROP INGEST TOKEN".to_owned());
    if if_exists && session.snapshot()?.catalog.token(name).is_none() {
        session.warn(SqlState("00000"), format!("ingest token \"{name}\" does not exist, skipping"));
        return Ok(tag());
    }
    let changes = vec![Change::DropIngestToken(name.to_owned())];
    session.submit(Transaction { changes, ..Transaction::default() }).await?;
    Ok(tag())
}
