//! A checkpoint of the table log: one Parquet file with a row for each action that still counts.
//!
//! *Place*: written and read by `log::delta`. Removed files are not in it: their only use is to other tools' clean-up, and
//! Verus deletes files itself.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::action::Action;
use crate::columnar::error::{ColumnarError, Result};

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, true)
}

fn long(name: &str) -> Field {
    Field::new(name, DataType::Int64, true)
}

fn int(name: &str) -> Field {
    Field::new(name, DataType::Int32, true)
}

fn boolean(name: &str) -> Field {
    Field::new(name, DataType::Boolean, true)
}

fn list(name: &str) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new("element", DataType::Utf8, true))), true)
}

fn map(name: &str) -> Field {
    let entry = Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
    let entries = Field::new("key_value", DataType::Struct(entry), false);
    Field::new(name, DataType::Map(Arc::new(entries), false), true)
}

fn record(name: &str, fields: Vec<Field>) -> Field {
    Field::new(name, DataType::Struct(fields.into()), true)
}

/// The columns that the protocol prescribes.
fn schema() -> SchemaRef {
    let format = record("format", vec![text("provider"), map("options")]);
    Arc::new(Schema::new(vec![
        record("txn", vec![text("appId"), long("version"), long("lastUpdated")]),
        record(
            "add",
            vec![
                text("path"),
                map("partitionValues"),
                long("size"),
                long("modificationTime"),
                boolean("dataChange"),
                text("stats"),
                map("tags"),
            ],
        ),
        record(
            "remove",
            vec![
                text("path"),
                long("deletionTimestamp"),
                boolean("dataChange"),
                boolean("extendedFileMetadata"),
                map("partitionValues"),
                long("size"),
            ],
        ),
        record(
            "metaData",
            vec![
                text("id"),
                text("name"),
                format,
                text("schemaString"),
                list("partitionColumns"),
                map("configuration"),
                long("createdTime"),
            ],
        ),
        record("protocol", vec![int("minReaderVersion"), int("minWriterVersion"), list("readerFeatures"), list("writerFeatures")]),
    ]))
}

/// Rows of one step through JSON.
const STEP_ROWS: usize = 1024;

/// The bytes of a checkpoint with these actions.
pub fn encode(actions: &[Action]) -> Result<Vec<u8>> {
    let schema = schema();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer =
        ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options).map_err(ColumnarError::encoding("checkpoint"))?;
    for actions in actions.chunks(STEP_ROWS) {
        let mut decoder = ReaderBuilder::new(Arc::clone(&schema)).build_decoder().map_err(ColumnarError::encoding("checkpoint"))?;
        decoder.serialize(actions).map_err(ColumnarError::encoding("checkpoint"))?;
        if let Some(batch) = decoder.flush().map_err(ColumnarError::encoding("checkpoint"))? {
            writer.write(&batch).map_err(ColumnarError::encoding("checkpoint"))?;
        }
    }
    writer.into_inner().map_err(ColumnarError::encoding("checkpoint"))
}

/// The actions of a checkpoint; an error says what is wrong with it.
pub fn decode(bytes: Bytes) -> Result<Vec<Action>, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|builder| builder.build());
    let mut actions = Vec::new();
    for batch in reader.map_err(|error| error.to_string())? {
        let batch = batch.map_err(|error| error.to_string())?;
        let mut lines = LineDelimitedWriter::new(Vec::new());
        lines.write(&batch).and_then(|()| lines.finish()).map_err(|error| error.to_string())?;
        for line in lines.into_inner().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            actions.push(serde_json::from_slice(line).map_err(|error| error.to_string())?);
        }
    }
    Ok(actions)
}
