//! COPY FROM: a chunk of whole lines (in binary, tuples) to a batch, and where in the input it failed.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use crate::error::{Error, Result, SqlState};
use crate::event::Target;
use crate::event::binary::{BinaryFields, BinaryReader};
use crate::event::column::{ColumnBuilder, Misfit};
use crate::event::csv::{CsvReader, CsvStyle};
use crate::event::cut::LineEnd;
use crate::event::fields::{CHUNK_BYTES_MAX, Fields};
use crate::event::text::TextReader;
use crate::types::copy::{CopyFormat, CopyOptions, Header};
use crate::types::text::scalar::{not_utf8, not_utf8_at};
use crate::types::zone::Zone;

/// Rows whose fields are found before columns read them: so many that spans and text stay in the processor's cache.
const BLOCK_ROWS: usize = 1024;

/// Characters of a value or line that an error shows.
const SHOWN_CHARS_MAX: usize = 100;

/// Decodes chunks for one set of columns. Shared by the tasks that decode in parallel.
#[derive(Debug)]
pub struct Decoder {
    relation: String,
    targets: Vec<Target>,
    /// Targets for which a last column says whether a row gave them.
    told: Vec<usize>,
    schema: SchemaRef,
    options: CopyOptions,
    force_not_null: Vec<bool>,
    force_null: Vec<bool>,
    zone: Zone,
}

/// What a chunk held.
#[derive(Debug)]
pub struct Decoded {
    /// Its rows, with the targets' columns.
    pub batch: RecordBatch,
    /// Its lines, the header among them.
    pub lines: u64,
    /// `\.` came: what follows the chunk is not data.
    pub ended: bool,
}

/// Why a chunk was refused.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    /// Lines up to the faulty one, it included, within the chunk.
    line: u64,
    /// What the context says behind the line's number.
    place: String,
}

impl Failure {
    /// The error with its context, `lines_before` being the lines of the chunks before.
    pub fn at(self, relation: &str, lines_before: u64) -> Error {
        self.error.context(format!("COPY {relation}, line {}{}", lines_before + self.line, self.place))
    }
}

/// A fault that a reader finds.
#[derive(Debug)]
pub(crate) struct Fault {
    kind: Kind,
    line: u64,
    text: String,
}

#[derive(Debug)]
enum Kind {
    /// Fewer fields than columns: how many.
    Missing(usize),
    Extra,
    Other(Error, Place),
}

/// How much of a place the context shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The line's number and its text.
    Line,
    /// The line's number.
    LineNumber,
}

impl Fault {
    pub(crate) fn new(error: Error, place: Place) -> Fault {
        Fault { kind: Kind::Other(error, place), line: 0, text: String::new() }
    }

    pub(crate) fn missing(fields: usize) -> Fault {
        Fault { kind: Kind::Missing(fields), line: 0, text: String::new() }
    }

    pub(crate) fn extra() -> Fault {
        Fault { kind: Kind::Extra, line: 0, text: String::new() }
    }

    pub(crate) fn on_line(self, line: u64, text: &str) -> Fault {
        Fault { line, text: shown(text), ..self }
    }
}

/// A reader of either format.
enum Reader<'a> {
    Text(TextReader<'a>),
    Csv(CsvReader<'a>),
}

impl<'a> Reader<'a> {
    fn read(&mut self, fields: &mut Fields<'a>, rows_max: usize) -> Result<(), Fault> {
        match self {
            Reader::Text(reader) => reader.read(fields, rows_max),
            Reader::Csv(reader) => reader.read(fields, rows_max),
        }
    }

    fn lines(&self) -> u64 {
        match self {
            Reader::Text(reader) => reader.lines,
            Reader::Csv(reader) => reader.lines,
        }
    }

    fn ended(&self) -> bool {
        match self {
            Reader::Text(reader) => reader.ended,
            Reader::Csv(reader) => reader.ended,
        }
    }

    fn position(&self) -> usize {
        match self {
            Reader::Text(reader) => reader.position(),
            Reader::Csv(reader) => reader.position(),
        }
    }

    fn header(&mut self, visit: impl FnMut(&str)) -> Result<(), Fault> {
        match self {
            Reader::Text(reader) => reader.header(visit),
            Reader::Csv(reader) => reader.header(visit),
        }
    }
}

impl Decoder {
    /// For the named relation's columns, in the order of the fields. 42P10 where a FORCE option names none of the columns.
    pub fn new(relation: &str, targets: Vec<Target>, options: CopyOptions, zone: Zone) -> Result<Decoder> {
        let force_not_null = forced(&targets, &options.force_not_null, "FORCE_NOT_NULL")?;
        let force_null = forced(&targets, &options.force_null, "FORCE_NULL")?;
        let fields: Vec<_> = targets.iter().map(|target| target.sql_type.field(&target.name, true)).collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Decoder { relation: relation.to_owned(), targets, told: Vec::new(), schema, options, force_not_null, force_null, zone })
    }

    /// For columns some of which have a default, where the DEFAULT option lets a row ask for it: the batch says for these targets whether
    /// they were given.
    #[must_use]
    pub fn with_told(mut self, told: Vec<usize>) -> Decoder {
        let told_fields = told.iter().map(|target| Field::new(format!("{} given", self.targets[*target].name), DataType::Boolean, false));
        let fields: Vec<Field> = self.schema.fields().iter().map(|field| field.as_ref().clone()).chain(told_fields).collect();
        self.schema = Arc::new(Schema::new(fields));
        self.told = told;
        self
    }

    /// The relation's name, for contexts.
    pub fn relation(&self) -> &str {
        &self.relation
    }

    /// The format and its options.
    pub fn options(&self) -> &CopyOptions {
        &self.options
    }

    /// Of decoded batches; every column is nullable.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Decodes whole lines. `first` says that the chunk begins the stream, where the header is.
    pub fn decode(&self, chunk: &[u8], line_end: LineEnd, first: bool) -> Result<Decoded, Failure> {
        if chunk.len() > CHUNK_BYTES_MAX {
            let error = Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a line of COPY data is too long");
            return Err(Failure { error, line: 1, place: String::new() });
        }
        if self.options.format == CopyFormat::Binary {
            return self.decode_binary(chunk, first);
        }
        let (text, invalid) = valid_text(chunk, line_end);
        let mut reader = self.reader(text, line_end);
        if first && !text.is_empty() {
            self.header(text, &mut reader)?;
        }
        // Exact but for line ends inside quotes: what is too much room would stay with the rows.
        let rows = memchr::memchr_iter(line_end.byte(), text.as_bytes()).count() + 1;
        let mut columns: Vec<_> = self.targets.iter().map(|target| ColumnBuilder::new(&target.sql_type, self.zone, rows)).collect();
        let mut told: Vec<_> = self.told.iter().map(|_| BooleanBufferBuilder::new(0)).collect();
        let mut fields = Fields::new(text, self.targets.len());
        let mut done = 0;
        loop {
            fields.clear();
            let fault = reader.read(&mut fields, BLOCK_ROWS).err();
            if self.options.default.is_some()
                && let Some((row, column)) = self.without_default(&fields)
            {
                let error = Error::new(SqlState::BAD_COPY_FILE_FORMAT, "unexpected default marker in COPY data");
                let error = error.detail(format!("Column \"{}\" has no default value.", self.targets[column].name));
                return Err(self.refuse(chunk, line_end, first, Some(done + row), error));
            }
            for (target, given) in self.told.iter().zip(&mut told) {
                (0..fields.rows()).for_each(|row| given.append(fields.is_given(row, *target)));
            }
            if let Some((row, column, error)) = first_misfit(&mut columns, |column, index| column.append(fields.column(index))) {
                let value = fields.get(row, column).unwrap_or("");
                let place = format!(", column {}: \"{}\"", self.targets[column].name, shown(value));
                return Err(Failure { error, line: self.locate(text, line_end, first, done + row).0, place });
            }
            if let Some(fault) = fault {
                return Err(self.failure(fault));
            }
            if fields.rows() == 0 {
                break;
            }
            done += fields.rows();
        }
        if let (Some(error), false) = (invalid, reader.ended()) {
            return Err(Failure { error, line: reader.lines() + 1, place: String::new() });
        }
        let batch = self.finish(columns, told, done)?;
        Ok(Decoded { batch, lines: reader.lines(), ended: reader.ended() })
    }

    /// The first field that asks for the default of a column that has none.
    fn without_default(&self, fields: &Fields<'_>) -> Option<(usize, usize)> {
        let without: Vec<usize> = (0..self.targets.len()).filter(|target| !self.told.contains(target)).collect();
        (0..fields.rows()).find_map(|row| without.iter().find(|column| !fields.is_given(row, **column)).map(|column| (row, *column)))
    }

    fn decode_binary(&self, chunk: &[u8], first: bool) -> Result<Decoded, Failure> {
        let mut reader = BinaryReader::new(chunk, first).map_err(|fault| self.failure(fault))?;
        let mut columns: Vec<_> = self.targets.iter().map(|target| ColumnBuilder::new(&target.sql_type, self.zone, 0)).collect();
        let mut fields = BinaryFields::new(chunk, self.targets.len());
        let mut done = 0;
        loop {
            fields.clear();
            let fault = reader.read(&mut fields, BLOCK_ROWS).err();
            if let Some((row, column, error)) = first_misfit(&mut columns, |column, index| column.append_binary(fields.column(index))) {
                let place = format!(", column {}", self.targets[column].name);
                return Err(Failure { error, line: (done + row + 1) as u64, place });
            }
            if let Some(fault) = fault {
                return Err(self.failure(fault));
            }
            if fields.rows() == 0 {
                break;
            }
            done += fields.rows();
        }
        let batch = self.finish(columns, Vec::new(), done)?;
        Ok(Decoded { batch, lines: reader.lines, ended: reader.ended })
    }

    fn finish(&self, columns: Vec<ColumnBuilder>, told: Vec<BooleanBufferBuilder>, rows: usize) -> Result<RecordBatch, Failure> {
        let internal = |error: Error| Failure { error, line: 0, place: String::new() };
        let mut arrays = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>().map_err(internal)?;
        arrays.extend(told.into_iter().map(|mut given| Arc::new(BooleanArray::new(given.finish(), None)) as ArrayRef));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map_err(|error| internal(Error::internal(error.to_string())))
    }

    /// A failure of rows that decoded well but were refused later: for the sake of one, or of the chunk as a whole.
    pub fn refuse(&self, chunk: &[u8], line_end: LineEnd, first: bool, row: Option<usize>, error: Error) -> Failure {
        if self.options.format == CopyFormat::Binary {
            return Failure { error, line: row.map_or(1, |row| row as u64 + 1), place: String::new() };
        }
        let (text, _) = valid_text(chunk, line_end);
        match row {
            Some(row) => {
                let (line, row_text) = self.locate(text, line_end, first, row);
                Failure { error, line, place: format!(": \"{row_text}\"") }
            }
            None => Failure { error, line: 1, place: String::new() },
        }
    }

    fn reader<'a>(&'a self, text: &'a str, line_end: LineEnd) -> Reader<'a> {
        let options = &self.options;
        match options.format {
            CopyFormat::Csv => Reader::Csv(CsvReader::new(
                text,
                CsvStyle {
                    delimiter: options.delimiter,
                    quote: options.quote,
                    escape: options.escape,
                    null: &options.null,
                    default: options.default.as_deref(),
                    line_end,
                    force_not_null: &self.force_not_null,
                    force_null: &self.force_null,
                },
            )),
            CopyFormat::Text | CopyFormat::Binary => {
                Reader::Text(TextReader::new(text, options.delimiter, &options.null, options.default.as_deref(), line_end))
            }
        }
    }

    /// Reads past the header, and compares it where HEADER MATCH asks for that.
    fn header(&self, text: &str, reader: &mut Reader<'_>) -> Result<(), Failure> {
        if self.options.header == Header::Off {
            return Ok(());
        }
        let mut names = Vec::new();
        reader.header(|name| names.push(name.to_owned())).map_err(|fault| self.failure(fault.on_line(1, "")))?;
        if self.options.header == Header::On {
            return Ok(());
        }
        let line = text.get(..reader.position()).unwrap_or("").trim_end_matches(['\r', '\n']);
        let refuse = |message: String| Failure {
            error: Error::new(SqlState::BAD_COPY_FILE_FORMAT, message),
            line: 1,
            place: format!(": \"{}\"", shown(line)),
        };
        if names.len() != self.targets.len() {
            return Err(refuse(format!("wrong number of fields in header line: got {}, expected {}", names.len(), self.targets.len())));
        }
        for (index, (name, target)) in names.iter().zip(&self.targets).enumerate() {
            if *name != target.name {
                let field = index + 1;
                return Err(refuse(format!(
                    "column name mismatch in header line field {field}: got \"{}\", expected \"{}\"",
                    shown(name),
                    target.name
                )));
            }
        }
        Ok(())
    }

    fn failure(&self, fault: Fault) -> Failure {
        let (error, place) = match fault.kind {
            Kind::Missing(fields) => {
                let name = self.targets.get(fields).map_or("", |target| target.name.as_str());
                (Error::new(SqlState::BAD_COPY_FILE_FORMAT, format!("missing data for column \"{name}\"")), Place::Line)
            }
            Kind::Extra => (Error::new(SqlState::BAD_COPY_FILE_FORMAT, "extra data after last expected column"), Place::Line),
            Kind::Other(error, place) => (error, place),
        };
        let place = if place == Place::Line { format!(": \"{}\"", fault.text) } else { String::new() };
        Failure { error, line: fault.line, place }
    }

    /// The last line of a row, counted from 1, and the row's text: by reading the chunk again, which only errors pay for.
    fn locate(&self, text: &str, line_end: LineEnd, first: bool, row: usize) -> (u64, String) {
        let mut reader = self.reader(text, line_end);
        if first && self.options.header != Header::Off {
            // It went well the first time.
            _ = reader.header(|_| ());
        }
        let mut fields = Fields::new(text, self.targets.len());
        _ = reader.read(&mut fields, row);
        fields.clear();
        let from = reader.position();
        _ = reader.read(&mut fields, 1);
        let row_text = text.get(from..reader.position()).unwrap_or("").trim_end_matches(['\r', '\n']);
        (reader.lines(), shown(row_text))
    }
}

/// The first value by row, then column, that is refused, when `append` is called for every column.
fn first_misfit(
    columns: &mut [ColumnBuilder],
    append: impl Fn(&mut ColumnBuilder, usize) -> Result<(), Misfit>,
) -> Option<(usize, usize, Error)> {
    let mut first: Option<(usize, usize, Error)> = None;
    for (index, column) in columns.iter_mut().enumerate() {
        if let Err(misfit) = append(column, index)
            && first.as_ref().is_none_or(|(row, ..)| misfit.row < *row)
        {
            first = Some((misfit.row, index, misfit.error));
        }
    }
    first
}

fn forced(targets: &[Target], names: &[String], option: &str) -> Result<Vec<bool>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut flags = vec![false; targets.len()];
    for name in names {
        if name == "*" {
            flags.fill(true);
            continue;
        }
        let index = targets
            .iter()
            .position(|target| target.name == *name)
            .ok_or_else(|| Error::new(SqlState::INVALID_COLUMN_REFERENCE, format!("{option} column \"{name}\" not referenced by COPY")))?;
        flags[index] = true;
    }
    Ok(flags)
}

/// The chunk as text, up to the line of the first byte that is no text; and the error that comes after those lines.
fn valid_text(chunk: &[u8], line_end: LineEnd) -> (&str, Option<Error>) {
    let (valid, bad) = match std::str::from_utf8(chunk) {
        Ok(text) => (text, None),
        Err(error) => {
            let from = error.valid_up_to();
            // The prefix was just found to be valid.
            (std::str::from_utf8(&chunk[..from]).unwrap_or(""), Some((from, not_utf8_at(chunk, from))))
        }
    };
    let bad = match memchr::memchr(0, valid.as_bytes()) {
        Some(at) => Some((at, not_utf8(&[0]))),
        None => bad,
    };
    match bad {
        None => (valid, None),
        Some((at, error)) => {
            let line = memchr::memrchr(line_end.byte(), &chunk[..at]).map_or(0, |newline| newline + 1);
            (&valid[..line], Some(error))
        }
    }
}

/// Cut to what an error shows.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
