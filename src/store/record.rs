//! The payload of a log record: catalog changes and rows, one commit.
//!
//! *Place*: written by `store::commit`, read by `store::recover`.
//!
//! Bytes: `header length u32 LE | header JSON | Arrow IPC messages, one a batch | Arrow IPC messages of what views joined them with |
//! sets of deleted LSNs | new states of views that lose rows (an Arrow IPC stream each) | dedup keys of deleted rows`, each part in
//! header order. The header names
//! each batch's table, LSN range and length, the table or view and length of each other part, and the files of a statement whose rows
//! did not fit memory. A message carries no schema: the catalog as of the record has it, and replay applies
//! changes and rows in the same order as the commit did.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{StreamDecoder, StreamReader};
use arrow::ipc::writer::{StreamEncoder, StreamWriter};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::catalog::{Change, Oid, Table};
use crate::columnar::LsnSet;
use crate::error::{Error, Result, SqlState};
use crate::store::classify::Lateness;
use crate::store::erased::Keys;
use crate::store::progress::Logged;

/// The JSON part of a record.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Header {
    /// Catalog changes, applied before the rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// The batches that follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowsHeader>,
    /// What views joined the batches with: messages after those of the batches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<FoundHeader>,
    /// Files that hold the rows of a statement that did not fit memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<StagedHeader>,
    /// After the batches, one with those rows of the files that move the watermarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<RowsHeader>,
    /// How many rows of the files were out of order.
    #[serde(default, skip_serializing_if = "is_none")]
    pub lateness: Lateness,
    /// The sets of deleted rows that follow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deletes: Vec<DeletesHeader>,
    /// The new states that follow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<CorrectionHeader>,
    /// Views whose state was made anew as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rebuilt: Vec<Oid>,
    /// The keys of deleted rows that follow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub erased: Vec<ErasedHeader>,
    /// Where sources are after the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Logged>,
    /// The server's clock at the commit, microseconds: arrival time of the rows.
    pub committed_at: i64,
}

/// One batch of a record.
#[derive(Debug, Serialize, Deserialize)]
pub struct RowsHeader {
    /// The table (an event table or its `$late` companion).
    pub table: Oid,
    /// LSN of the first row; the others follow.
    pub first_lsn: u64,
    /// Columns of the batch: the first ones of the table, which may have grown since.
    pub columns: usize,
    /// Bytes of the IPC message.
    pub bytes: u64,
    /// Of the rows of an event table, how many were behind the watermark and accepted all the same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub very_late: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn is_none(lateness: &Lateness) -> bool {
    *lateness == Lateness::default()
}

/// Files of one table.
#[derive(Debug, Serialize, Deserialize)]
pub struct StagedHeader {
    /// The table (an event table, its `$late` companion or a plain one).
    pub table: Oid,
    /// By chunk of rows in arrival order, each file as the table log describes it.
    pub chunks: Vec<Vec<String>>,
}

/// What some views joined one batch with.
#[derive(Debug, Serialize, Deserialize)]
pub struct FoundHeader {
    /// Which of the record's batches.
    pub batch: usize,
    /// The views, whose joins are the same.
    pub views: Vec<Oid>,
    /// Bytes of the IPC message.
    pub bytes: u64,
}

/// A record's messages.
#[derive(Debug, Default)]
pub struct Messages {
    /// Of [`Header::rows`].
    pub rows: Vec<Buffer>,
    /// Of [`Header::found`].
    pub found: Vec<Buffer>,
    /// Of [`Header::newest`].
    pub newest: Option<Buffer>,
}

/// The deleted rows of one table, as [`LsnSet::encode`] writes them.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeletesHeader {
    /// The table.
    pub table: Oid,
    /// Bytes of the set.
    pub bytes: u64,
}

/// The states of a view's groups that lose rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct CorrectionHeader {
    /// The view.
    pub view: Oid,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// The dedup keys of the deleted rows of one table, as [`Keys::encode`] writes them.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErasedHeader {
    /// The table that drops duplicates.
    pub table: Oid,
    /// Bytes of the keys.
    pub bytes: u64,
}

/// A record's payload, taken apart.
#[derive(Debug)]
pub struct Decoded {
    /// What follows it.
    pub header: Header,
    /// The IPC messages.
    pub messages: Messages,
    /// The deleted rows, by the header's order.
    pub deletes: Vec<LsnSet>,
    /// View and states, by the header's order.
    pub corrections: Vec<(Oid, RecordBatch)>,
    /// Keys of deleted rows.
    pub erased: Vec<Keys>,
}

/// Encodes batches without repeating the schema in each record.
#[derive(Default)]
pub struct Encoder {
    streams: HashMap<Oid, (SchemaRef, StreamEncoder)>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("tables", &self.streams.len()).finish()
    }
}

impl Encoder {
    /// The IPC message of a batch as buffers to be written one after the other; columns are shared, not copied.
    pub fn encode(&mut self, table: Oid, rows: &RecordBatch) -> Result<Vec<Buffer>> {
        let schema = rows.schema();
        let fits = self.streams.get(&table).is_some_and(|(known, _)| *known == schema);
        if !fits {
            self.streams.insert(table, (schema.clone(), primed(&schema)?));
        }
        let (_, stream) = self.streams.get_mut(&table).expect("inserted above when missing");
        stream.encode(rows).map_err(|error| Error::internal(format!("cannot encode a log record: {error}")))
    }
}

/// A stream encoder that has written its schema already.
fn primed(schema: &SchemaRef) -> Result<StreamEncoder> {
    let failed = |error: arrow::error::ArrowError| Error::internal(format!("cannot encode a table's schema: {error}"));
    let mut stream = StreamEncoder::try_new(schema).map_err(failed)?;
    stream.encode(&RecordBatch::new_empty(schema.clone())).map_err(failed)?;
    Ok(stream)
}

/// The head of a record's payload, before the IPC messages.
pub fn encode_header(header: &Header) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, header).map_err(|error| Error::internal(format!("cannot encode a log record: {error}")))?;
    let length =
        u32::try_from(bytes.len() - 4).map_err(|_| Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many changes in one transaction"))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Splits a payload into its parts.
pub fn decode(payload: Vec<u8>) -> Result<Decoded> {
    let damaged = |what: &str| Error::new(SqlState::DATA_CORRUPTED, format!("log record cannot be read: {what}"));
    let length = payload.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize).ok_or_else(|| damaged("no header"))?;
    let json = payload.get(4..4 + length).ok_or_else(|| damaged("short header"))?;
    let header: Header = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
    let payload = Buffer::from_vec(payload);
    let mut offset = 4 + length;
    let mut part = |bytes: u64| {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= payload.len() - offset).ok_or_else(|| damaged("short part"))?;
        offset += bytes;
        Ok(payload.slice_with_length(offset - bytes, bytes))
    };
    let rows = header.rows.iter().map(|rows| part(rows.bytes)).collect::<Result<_>>()?;
    let found = header.found.iter().map(|found| part(found.bytes)).collect::<Result<_>>()?;
    let newest = header.newest.as_ref().map(|newest| part(newest.bytes)).transpose()?;
    let messages = Messages { rows, found, newest };
    let set = |deletes: &DeletesHeader| LsnSet::decode(&part(deletes.bytes)?).ok_or_else(|| damaged("deleted rows"));
    let deletes = header.deletes.iter().map(set).collect::<Result<Vec<_>>>()?;
    let states = |correction: &CorrectionHeader| {
        let bytes = part(correction.bytes)?;
        let unreadable = |error: arrow::error::ArrowError| damaged(&error.to_string());
        let mut stream = StreamReader::try_new(bytes.as_slice(), None).map_err(unreadable)?;
        let batch = stream.next().ok_or_else(|| damaged("no states"))?.map_err(unreadable)?;
        Ok((correction.view, batch))
    };
    let corrections = header.corrections.iter().map(states).collect::<Result<Vec<_>>>()?;
    let keys = |erased: &ErasedHeader| Keys::decode(erased.table, &part(erased.bytes)?).ok_or_else(|| damaged("keys of deleted rows"));
    let erased = header.erased.iter().map(keys).collect::<Result<Vec<_>>>()?;
    Ok(Decoded { header, messages, deletes, corrections, erased })
}

/// The states of a view as a stream of their own.
pub fn encode_states(rows: &RecordBatch) -> Result<Vec<u8>> {
    let failed = |error: arrow::error::ArrowError| Error::internal(format!("cannot encode a log record: {error}"));
    let mut bytes = Vec::new();
    let mut stream = StreamWriter::try_new(&mut bytes, rows.schema_ref()).map_err(failed)?;
    stream.write(rows).and_then(|()| stream.finish()).map_err(failed)?;
    drop(stream);
    Ok(bytes)
}

/// Reads one batch of a table from its IPC message: the first `columns` of the table, filled up with those added since.
pub fn decode_rows(table: &Table, columns: usize, message: Buffer) -> Result<RecordBatch> {
    let schema = table.schema();
    let written = Arc::new(schema.project(&(0..columns).collect::<Vec<_>>()).map_err(damaged)?);
    let rows = decode_batch(&written, message)?;
    let mut arrays = rows.columns().to_vec();
    for column in &table.columns[columns..] {
        arrays.push(column.filled(rows.num_rows())?);
    }
    RecordBatch::try_new(schema, arrays).map_err(damaged)
}

/// Reads one batch of `schema` from its IPC message.
pub fn decode_batch(schema: &SchemaRef, mut message: Buffer) -> Result<RecordBatch> {
    let mut stream = StreamDecoder::new();
    let mut head = StreamEncoder::try_new(schema).map_err(damaged)?;
    let head = head.encode(&RecordBatch::new_empty(Arc::clone(schema))).map_err(damaged)?;
    // The head is a schema message and an empty batch: both are read before the record's own message.
    for mut buffer in head {
        while !buffer.is_empty() {
            stream.decode(&mut buffer).map_err(damaged)?;
        }
    }
    // The decoder may hand out the head's empty batch only now; a record's own batch has rows.
    loop {
        match stream.decode(&mut message).map_err(damaged)? {
            Some(rows) if rows.num_rows() > 0 => return Ok(rows),
            Some(_) => {}
            None => return Err(Error::new(SqlState::DATA_CORRUPTED, "log record holds no rows")),
        }
    }
}

fn damaged(error: arrow::error::ArrowError) -> Error {
    Error::new(SqlState::DATA_CORRUPTED, format!("log record cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, Int64Array, StringViewArray};

    use super::*;
    use crate::catalog::{Column, TableKind, TableOptions};
    use crate::types::SqlType;

    #[test]
    fn a_record_comes_back_in_the_grown_table() {
        let column = |name: &str, sql_type, fill: Option<&str>| Column {
            name: name.to_owned(),
            sql_type,
            nullable: true,
            default: None,
            generated: None,
            fill: fill.map(str::to_owned),
        };
        let columns = vec![
            column("a", SqlType::BigInt, None),
            column("b", SqlType::Text, None),
            column("c", SqlType::BigInt, None),
            column("d", SqlType::Text, Some("filled in")),
        ];
        let grown = Table {
            oid: 1,
            name: "t".to_owned(),
            kind: TableKind::Plain,
            columns,
            checks: Vec::new(),
            primary_key: Vec::new(),
            unique: Vec::new(),
            watermark: None,
            options: TableOptions::default(),
            late_oid: None,
        };
        let narrow = Arc::new(grown.schema().project(&[0, 1]).unwrap());
        let text = StringViewArray::from_iter([Some("short"), None, Some("longer than twelve bytes")]);
        let rows = RecordBatch::try_new(narrow, vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(text)]).unwrap();
        let mut encoder = Encoder::default();
        for first_lsn in [7, 10] {
            let message = encoder.encode(1, &rows).unwrap();
            let bytes = message.iter().map(|buffer| buffer.len() as u64).sum();
            let header = Header { rows: vec![RowsHeader { table: 1, first_lsn, columns: 2, bytes, very_late: 0 }], ..Header::default() };
            let mut payload = encode_header(&header).unwrap();
            message.iter().for_each(|buffer| payload.extend_from_slice(buffer));
            let Decoded { header, messages, .. } = decode(payload).unwrap();
            assert_eq!(header.rows[0].first_lsn, first_lsn);
            let read = decode_rows(&grown, 2, messages.rows[0].clone()).unwrap();
            assert_eq!(read.project(&[0, 1]).unwrap().columns(), rows.columns());
            assert_eq!(read.column(2).null_count(), 3);
            assert!(read.column(3).as_string_view().iter().all(|value| value == Some("filled in")));
        }
    }
}
