//! Bytes to Arrow columns, and back: COPY's text, csv and binary formats, literal VALUES.
//!
//! *Place*: called by `ingest` (in) and `command::copy` (out). Knows column names and types, not tables.
