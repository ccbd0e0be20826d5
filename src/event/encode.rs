//! COPY TO: batches to the text, csv and binary formats.

use arrow::array::AsArray;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use memchr::{memchr, memchr3};

use crate::error::{Error, Result, SqlState};
use crate::event::binary::SIGNATURE;
use crate::types::SqlType;
use crate::types::binary::BinaryWriter;
use crate::types::copy::{CopyFormat, CopyOptions, Header};
use crate::types::text::{Style, Writer};

/// Writes the rows of one COPY TO.
#[derive(Debug)]
pub struct Encoder {
    options: CopyOptions,
    style: Style,
    names: Vec<String>,
    types: Vec<SqlType>,
    force_quote: Vec<bool>,
    /// By column, the column of batches that says which rows give it.
    told: Vec<Option<usize>>,
}

impl Encoder {
    /// For batches of `schema`. 42P10 where FORCE_QUOTE names none of the columns.
    pub fn new(schema: &SchemaRef, options: CopyOptions, style: Style) -> Result<Encoder> {
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let types = schema.fields().iter().map(|field| SqlType::of_field(field)).collect();
        let mut force_quote = vec![false; names.len()];
        for forced in &options.force_quote {
            if forced == "*" {
                force_quote.fill(true);
                continue;
            }
            let index = names.iter().position(|name| name == forced).ok_or_else(|| {
                Error::new(SqlState::INVALID_COLUMN_REFERENCE, format!("FORCE_QUOTE column \"{forced}\" not referenced by COPY"))
            })?;
            force_quote[index] = true;
        }
        let told = vec![None; names.len()];
        Ok(Encoder { options, style, names, types, force_quote, told })
    }

    /// For batches whose last columns say of the columns `told` which rows give them: where one does not, the text of the DEFAULT option is
    /// written.
    #[must_use]
    pub fn with_told(mut self, told: &[usize]) -> Encoder {
        let columns = self.names.len().saturating_sub(told.len());
        self.names.truncate(columns);
        self.types.truncate(columns);
        told.iter().enumerate().for_each(|(number, column)| self.told[*column] = Some(columns + number));
        self
    }

    /// Appends what stands before the rows: the line of column names where HEADER asks for it, the binary signature.
    pub fn header(&self, out: &mut Vec<u8>) {
        if self.options.format == CopyFormat::Binary {
            out.extend_from_slice(SIGNATURE);
            // No flags, no extension.
            out.extend_from_slice(&[0; 8]);
            return;
        }
        if self.options.header == Header::Off {
            return;
        }
        for (index, name) in self.names.iter().enumerate() {
            if index > 0 {
                out.push(self.options.delimiter);
            }
            match self.options.format {
                CopyFormat::Csv => self.csv_field(name.as_bytes(), false, out),
                CopyFormat::Text | CopyFormat::Binary => self.text_field(name.as_bytes(), out),
            }
        }
        out.push(b'\n');
    }

    /// Appends what stands behind the rows: nothing but in binary.
    pub fn trailer(&self, out: &mut Vec<u8>) {
        if self.options.format == CopyFormat::Binary {
            out.extend_from_slice(&(-1i16).to_be_bytes());
        }
    }

    fn binary_rows(&self, batch: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<()> {
        let columns = batch.columns().iter().zip(&self.types);
        let writers = columns.map(|(array, sql_type)| BinaryWriter::new(array.as_ref(), sql_type)).collect::<Result<Vec<_>>>()?;
        let count = i16::try_from(writers.len()).map_err(|_| Error::internal("too many columns for COPY"))?;
        for row in 0..batch.num_rows() {
            out.extend_from_slice(&count.to_be_bytes());
            writers.iter().for_each(|writer| writer.write_sized(row, out));
            ends.push(out.len());
        }
        Ok(())
    }

    /// Appends the rows of a batch, each a line, and to `ends` where each row ends in `out`.
    pub fn rows(&self, batch: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<()> {
        if self.options.format == CopyFormat::Binary {
            return self.binary_rows(batch, out, ends);
        }
        let columns = batch.columns().iter().zip(&self.types);
        let writers = columns.map(|(array, sql_type)| Writer::new(array.as_ref(), sql_type, &self.style)).collect::<Result<Vec<_>>>()?;
        let told: Vec<_> = self.told.iter().map(|told| told.and_then(|column| batch.column(column).as_boolean_opt())).collect();
        let default = self.options.default.as_deref().unwrap_or_default();
        let mut value = Vec::new();
        for row in 0..batch.num_rows() {
            for (index, writer) in writers.iter().enumerate() {
                if index > 0 {
                    out.push(self.options.delimiter);
                }
                if told[index].is_some_and(|given| !given.value(row)) {
                    out.extend_from_slice(default.as_bytes());
                    continue;
                }
                if writer.is_null(row) {
                    out.extend_from_slice(self.options.null.as_bytes());
                    continue;
                }
                value.clear();
                writer.write(row, &mut value);
                match self.options.format {
                    CopyFormat::Csv => self.csv_field(&value, self.force_quote[index], out),
                    CopyFormat::Text | CopyFormat::Binary => self.text_field(&value, out),
                }
            }
            out.push(b'\n');
            ends.push(out.len());
        }
        Ok(())
    }

    fn text_field(&self, value: &[u8], out: &mut Vec<u8>) {
        let delimiter = self.options.delimiter;
        let special = |byte: &u8| *byte < 0x20 || *byte == b'\\' || *byte == delimiter;
        if !value.iter().any(special) {
            out.extend_from_slice(value);
            return;
        }
        for byte in value {
            let letter = match byte {
                b'\\' => b'\\',
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                _ if *byte == delimiter => delimiter,
                _ => {
                    out.push(*byte);
                    continue;
                }
            };
            out.extend_from_slice(&[b'\\', letter]);
        }
    }

    /// Quoted where it would be misread: delimiters, quotes and line ends inside, the null text, a lone `\.`.
    fn csv_field(&self, value: &[u8], forced: bool, out: &mut Vec<u8>) {
        let CopyOptions { delimiter, quote, escape, .. } = self.options;
        let quoted = forced
            || value == self.options.null.as_bytes()
            || value == b"\\."
            || memchr3(delimiter, quote, b'\n', value).is_some()
            || memchr(b'\r', value).is_some();
        if !quoted {
            out.extend_from_slice(value);
            return;
        }
        out.push(quote);
        for byte in value {
            if *byte == quote || *byte == escape {
                out.push(escape);
            }
            out.push(*byte);
        }
        out.push(quote);
    }
}
