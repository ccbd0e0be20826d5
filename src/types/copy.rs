//! COPY's formats and their options.
//!
//! *Place*: `sql` reads them, `event` decodes and encodes by them.

/// COPY's format options, defaults filled in by format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// Text, csv or binary.
    pub format: CopyFormat,
    /// One byte.
    pub delimiter: u8,
    /// Text that stands for NULL.
    pub null: String,
    /// text and csv FROM only: text that stands for the column's default.
    pub default: Option<String>,
    /// The first line names the columns (HEADER MATCH checks them).
    pub header: Header,
    /// csv only.
    pub quote: u8,
    /// csv only.
    pub escape: u8,
    /// csv TO only: columns always quoted; `["*"]` for all.
    pub force_quote: Vec<String>,
    /// csv FROM only: columns never matched against the null text.
    pub force_not_null: Vec<String>,
    /// csv FROM only: quoted values match the null text too.
    pub force_null: Vec<String>,
}

/// HEADER option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the option's own values")]
pub enum Header {
    Off,
    On,
    Match,
}

/// FORMAT option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the option's own values")]
pub enum CopyFormat {
    Text,
    Csv,
    Binary,
}
