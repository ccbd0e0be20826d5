//! Runs every `sqllogictest/*.slt` over the wire, each on a server of its own.
//!
//! A file whose name begins with `commerce_` gets the commerce schema, the others an empty server. `statement error (42P01)`
//! asserts the SQLSTATE; NULL is written `NULL`, an empty text `(empty)`.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use tokio_postgres::SimpleQueryMessage;

use crate::harness::{Options, Server, Session, SqlError};

struct Wire(Session);

#[async_trait::async_trait]
impl AsyncDB for Wire {
    type Error = SqlError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, SqlError> {
        let mut columns = None;
        let mut rows = Vec::new();
        let mut affected = 0;
        for message in self.0.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::RowDescription(description) => columns = Some(description.len()),
                SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|column| show(row.get(column))).collect()),
                SimpleQueryMessage::CommandComplete(count) => affected = count,
                _ => {}
            }
        }
        Ok(match columns {
            Some(count) => DBOutput::Rows { types: vec![DefaultColumnType::Any; count], rows },
            None => DBOutput::StatementComplete(affected),
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "verus"
    }

    fn error_sql_state(error: &SqlError) -> Option<String> {
        Some(error.state.clone())
    }
}

fn show(value: Option<&str>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.to_owned(),
    }
}

async fn run(path: PathBuf) -> Result<(), String> {
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    let server = Server::start_with(Options { template: name.starts_with("commerce_"), ..Options::default() }).await;
    let port = server.port;
    let mut runner = Runner::new(move || async move { Session::open(port).await.map(Wire) });
    runner.run_file_async(&path).await.map_err(|error| format!("{name}: {}", error.display(false)))
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_answer_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("sqllogictest");
    let only = std::env::var("VERUS_SLT").unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "slt") && path.to_string_lossy().contains(&only));
    files.sort();
    assert!(!files.is_empty(), "no .slt file matches VERUS_SLT={only}");
    let results: Vec<_> = futures::stream::iter(files).map(run).buffered(2).collect().await;
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} files fail:\n\n{}", failures.len(), failures.join("\n\n"));
}
