//! Rows to the wire: RowDescription and DataRow, streamed.
//!
//! *Invariants*: (1) at most one batch and [`FLUSH_BYTES`](crate::pg::sink::FLUSH_BYTES) of encoded rows are held; (2) a column's array
//! is looked at once a batch, not once a value.

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::data::{FieldDescription, RowDescription};

use crate::error::{Error, Result, SqlState};
use crate::pg::error::Fault;
use crate::pg::sink::Sink;
use crate::session::Rows;
use crate::types::SqlType;
use crate::types::binary::BinaryWriter;
use crate::types::text::{self, Style};

/// Rows taken at once from a stream whose batches are larger.
const BATCH_ROWS_MAX: usize = 8192;

/// How the columns of one result are written.
#[derive(Debug)]
pub(super) struct Encoder {
    columns: Vec<(SqlType, bool)>,
    style: Style,
}

/// The columns of one batch, ready to be written.
struct Columns(Vec<Column>);

enum Column {
    Text(text::Writer),
    Binary(BinaryWriter),
}

impl Encoder {
    /// `formats`: none (all text), one for all columns, or one each; see [`check_formats`].
    pub(super) fn new(schema: &Schema, formats: &[i16], style: Style) -> Self {
        let columns = schema.fields().iter().enumerate().map(|(at, field)| (SqlType::of_field(field), format_of(formats, at) == 1));
        Self { columns: columns.collect(), style }
    }

    fn columns(&self, batch: &RecordBatch) -> Result<Columns> {
        let column = |(at, (sql_type, binary)): (usize, &(SqlType, bool))| {
            let values = batch.column(at);
            Ok(if *binary {
                Column::Binary(BinaryWriter::new(values.as_ref(), sql_type)?)
            } else {
                Column::Text(text::Writer::new(values.as_ref(), sql_type, &self.style)?)
            })
        };
        self.columns.iter().enumerate().take(batch.num_columns()).map(column).collect::<Result<_>>().map(Columns)
    }

    /// Sends at most `rows_max` rows, none for all of them. Returns how many.
    pub(super) async fn send(&self, sink: &mut Sink, rows: &mut Rows, rows_max: usize) -> Result<u64, Fault> {
        let mut sent = 0usize;
        while sent < rows_max {
            let Some(batch) = rows.next(BATCH_ROWS_MAX.min(rows_max - sent)).await else { break };
            let batch = batch?;
            let columns = self.columns(&batch)?;
            for row in 0..batch.num_rows() {
                columns.write(row, &mut sink.buffer);
                sink.flush_if_full().await?;
            }
            sent += batch.num_rows();
        }
        Ok(sent as u64)
    }
}

impl Columns {
    /// One DataRow.
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        const NULL: [u8; 4] = (-1i32).to_be_bytes();
        out.push(b'D');
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.0.len() as u16).to_be_bytes());
        for column in &self.0 {
            match column {
                Column::Text(values) if values.is_null(row) => out.extend_from_slice(&NULL),
                Column::Text(values) => with_length(out, |out| values.write(row, out)),
                Column::Binary(values) => values.write_sized(row, out),
            }
        }
        let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends what `write` appends, with its length (four bytes) before it.
#[inline]
fn with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// The RowDescription of a result.
pub(super) fn description(schema: &Schema, formats: &[i16]) -> PgWireBackendMessage {
    let fields = schema.fields().iter().enumerate().map(|(at, field)| {
        let sql_type = SqlType::of_field(field);
        // Table and attribute numbers are zero: the column may be an expression, and nothing depends on them.
        let name = field.name().replace('\0', "");
        FieldDescription::new(name, 0, 0, sql_type.oid(), sql_type.wire_size(), sql_type.typmod(), format_of(formats, at))
    });
    PgWireBackendMessage::RowDescription(RowDescription::new(fields.collect()))
}

/// Refuses result formats that do not fit the columns: 08P01 for their number, 22023 for a code that is neither 0 nor 1.
pub(super) fn check_formats(formats: &[i16], columns: usize) -> Result<()> {
    if formats.len() > 1 && formats.len() != columns {
        return Err(Error::new(
            SqlState::PROTOCOL_VIOLATION,
            format!("bind message has {} result formats but query has {columns} columns", formats.len()),
        ));
    }
    check_codes(formats)
}

/// 22023 for a format code that is neither text nor binary.
pub(super) fn check_codes(formats: &[i16]) -> Result<()> {
    match formats.iter().find(|code| !(0..=1).contains(*code)) {
        Some(code) => Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("unsupported format code: {code}"))),
        None => Ok(()),
    }
}

/// The format of one of many: none means text, a single one is for all.
pub(super) fn format_of(formats: &[i16], at: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    }
}
