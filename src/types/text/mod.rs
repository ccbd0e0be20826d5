//! PostgreSQL's text format of values, both ways.
//!
//! *Place*: `event` decodes and encodes COPY with it, `pg` the wire's text format, `sql` and `command` typed literals,
//! `ingest` the rows that its errors show.
//!
//! *Invariants*: (1) what [`Writer`] writes, the parser of the same type reads back to the same value; (2) errors carry
//! PostgreSQL's SQLSTATE and wording; (3) nothing here allocates for a value, beyond the value itself; (4) DateStyle is
//! `ISO, MDY` always.

use arrow::array::Array;
use datafusion::common::ScalarValue;

use crate::error::Result;
use crate::types::SqlType;
use crate::types::zone::Zone;

/// The session variables that change how values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// TimeZone: of timestamptz.
    pub time_zone: Zone,
    /// IntervalStyle.
    pub interval_style: IntervalStyle,
    /// bytea_output.
    pub bytea_output: ByteaOutput,
    /// extra_float_digits, -15..=3: from 1 on the shortest text that reads back to the same value.
    pub extra_float_digits: i32,
}

/// IntervalStyle: `postgres` or `iso_8601`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntervalStyle {
    /// `1 year 2 mons 3 days 04:05:06`.
    #[default]
    Postgres,
    /// `P1Y2M3DT4H5M6S`.
    Iso8601,
}

/// bytea_output: `hex` or `escape`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ByteaOutput {
    /// `\x00ff`.
    #[default]
    Hex,
    /// Printable bytes as they are, others as `\377`.
    Escape,
}

impl Default for Style {
    fn default() -> Self {
        Self { time_zone: Zone::UTC, interval_style: IntervalStyle::Postgres, bytea_output: ByteaOutput::Hex, extra_float_digits: 1 }
    }
}

/// Writes the values of one column; made once a batch.
#[derive(Debug)]
pub struct Writer {}

impl Writer {
    /// A writer over `array`, shown as `sql_type`. Arrow types other than [`SqlType::arrow`] are converted (0A000 where that
    /// is impossible).
    pub fn new(array: &dyn Array, sql_type: &SqlType, style: &Style) -> Result<Writer> {
        let _ = (array, sql_type, style);
        unimplemented!()
    }

    /// True where the value is NULL, which has no text.
    pub fn is_null(&self, row: usize) -> bool {
        let _ = row;
        unimplemented!()
    }

    /// Appends the text of the value in `row`. NULL is the caller's.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        let _ = (row, out);
        unimplemented!()
    }
}

/// Appends the text of one value. For a column of them, make a [`Writer`].
pub fn write(array: &dyn Array, row: usize, sql_type: &SqlType, style: &Style, out: &mut Vec<u8>) -> Result<()> {
    Writer::new(array, sql_type, style).map(|writer| writer.write(row, out))
}

/// The value that `text` stands for, of the type's Arrow form ([`SqlType::arrow`]). 22P02, 22003, 22007, 22008, 22001 as
/// PostgreSQL says them. `zone` is that of timestamptz texts without an offset.
pub fn parse_scalar(sql_type: &SqlType, text: &str, zone: &Zone) -> Result<ScalarValue> {
    let _ = (sql_type, text, zone);
    unimplemented!()
}
