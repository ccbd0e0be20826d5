//! PostgreSQL's text format of values, both ways.
//!
//! *Place*: `event` decodes and encodes COPY with it, `pg` the wire's text format, `sql` and `command` typed literals,
//! `ingest` the rows that its errors show.
//!
//! *Invariants*: (1) what [`Writer`] writes, the parser of the same type reads back to the same value; (2) errors carry
//! PostgreSQL's SQLSTATE and wording; (3) nothing here allocates for a value, beyond the value itself; (4) DateStyle is
//! `ISO, MDY` always.

pub mod array;
pub mod calendar;
pub mod datetime;
pub mod interval;
pub mod json;
pub mod number;
pub mod scalar;
#[cfg(test)]
mod tests;
pub mod to_json;
pub mod writer;

pub use scalar::parse_scalar;
pub use writer::{Writer, write};

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
