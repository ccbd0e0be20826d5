//! Bytes to Arrow columns, and back: COPY's text, csv and binary formats, literal VALUES, JSON.
//!
//! *Place*: called by `ingest` (in) and `command::copy` (out). Knows column names and types, not tables.
//!
//! In: [`cut`] finds where a stream may be cut into chunks of whole lines, so that they can be decoded apart from each other.
//! A format's reader ([`text`], [`csv`], [`values`]) finds the fields of a thousand rows ([`fields::Fields`]: spans of the
//! chunk, or of a scratch text where escapes were undone); then each column reads its values from them ([`column`]). So a
//! row costs no allocation, a value's type is looked at once a thousand values, and both the fields and the builders stay
//! in the processor's cache.
//!
//! *Invariants*: (1) of several errors in the input the first by row, then by column, is reported, as if it had been read
//! value by value; (2) text is valid UTF-8 without the character 0 before a value is looked at.

pub mod binary;
pub mod column;
pub mod copy;
pub mod csv;
pub mod cut;
pub mod encode;
pub mod fields;
pub mod json;
mod scan;
pub mod text;
pub mod values;

pub use copy::{Decoded, Decoder, Failure};
pub use cut::{Cutter, LineEnd};
pub use encode::Encoder;
pub use json::{JsonDecoder, JsonRows, RefusedEvent, too_many_refused};

use crate::types::SqlType;

/// A column that values are decoded for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, for errors and headers.
    pub name: String,
    /// Its declared type.
    pub sql_type: SqlType,
}
