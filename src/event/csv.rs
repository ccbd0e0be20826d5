//! COPY's csv format: quoted fields, embedded line ends, NULL by unquoted text.

use crate::error::{Error, SqlState};
use crate::event::copy::{Fault, Place};
use crate::event::cut::LineEnd;
use crate::event::fields::Fields;
use crate::event::scan::Scanner;

/// The csv options of a reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CsvStyle<'a> {
    pub(crate) delimiter: u8,
    pub(crate) quote: u8,
    pub(crate) escape: u8,
    pub(crate) null: &'a str,
    pub(crate) default: Option<&'a str>,
    pub(crate) line_end: LineEnd,
    /// By column; empty when no column is forced.
    pub(crate) force_not_null: &'a [bool],
    /// By column; empty when no column is forced.
    pub(crate) force_null: &'a [bool],
}

/// Finds the fields of a chunk, from its start to its end.
#[derive(Debug)]
pub(crate) struct CsvReader<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    style: CsvStyle<'a>,
    at: usize,
    /// Lines read, those inside quotes among them.
    pub(crate) lines: u64,
    /// `\.` was read.
    pub(crate) ended: bool,
}

/// A field on the way: pieces of it may be in the scratch already.
struct Field {
    start: usize,
    /// Of the piece that is not in the scratch yet.
    piece: usize,
    scratch: Option<usize>,
    quoted: bool,
    /// The closing quote of a field that is one quoted piece.
    closed: Option<usize>,
}

impl<'a> CsvReader<'a> {
    pub(crate) fn new(text: &'a str, style: CsvStyle<'a>) -> Self {
        let needles = [style.delimiter, style.line_end.byte(), style.quote, style.escape, style.line_end.other_byte()];
        CsvReader { text, scanner: Scanner::new(text.as_bytes(), needles), style, at: 0, lines: 0, ended: false }
    }

    /// Reads rows into `fields` until it has `rows_max` or the chunk ends. Before a fault come the rows in front of it.
    pub(crate) fn read(&mut self, fields: &mut Fields<'a>, rows_max: usize) -> Result<(), Fault> {
        while fields.rows() < rows_max && self.at < self.text.len() && !self.ended {
            let first = self.at;
            self.lines += 1;
            if let Err(fault) = self.record(fields) {
                fields.drop_pending();
                let bytes = self.text.as_bytes();
                let end = memchr::memchr(self.style.line_end.byte(), &bytes[first..]).map_or(bytes.len(), |length| first + length);
                let end = end.max(self.at.saturating_sub(1).min(bytes.len()));
                return Err(fault.on_line(self.lines, self.text.get(first..end).unwrap_or("").trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(())
    }

    /// Where the next record begins.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Reads the header line, its names one by one.
    pub(crate) fn header(&mut self, mut visit: impl FnMut(&str)) -> Result<(), Fault> {
        self.lines += 1;
        let mut fields = Fields::new(self.text, 1);
        loop {
            let (last, _) = self.next_field(&mut fields, 0, self.at)?;
            visit(fields.get(fields.rows() - 1, 0).unwrap_or(""));
            if last {
                return Ok(());
            }
        }
    }

    fn record(&mut self, fields: &mut Fields<'a>) -> Result<(), Fault> {
        let columns = fields.columns();
        let first = self.at;
        let mut count = 0;
        loop {
            if count == columns {
                self.skip_record();
                return Err(Fault::extra());
            }
            let (last, end) = self.next_field(fields, count, first)?;
            count += 1;
            if last {
                if count == 1 && &self.text.as_bytes()[first..end] == b"\\." {
                    self.ended = true;
                    self.at = self.text.len();
                    if columns == 1 {
                        fields.drop_last_row();
                    } else {
                        fields.drop_pending();
                    }
                    return Ok(());
                }
                return if count < columns { Err(Fault::missing(count)) } else { Ok(()) };
            }
        }
    }

    /// Moves behind a record whose other fields do not matter any more.
    fn skip_record(&mut self) {
        let mut quoted = false;
        let bytes = self.text.as_bytes();
        loop {
            let Some(at) = self.scanner.next() else {
                self.at = bytes.len();
                return;
            };
            if bytes[at] == self.style.quote {
                quoted = !quoted;
            } else if bytes[at] == self.style.line_end.byte() && !quoted {
                self.at = at + 1;
                return;
            }
        }
    }

    /// Reads one field from `self.at` on. True when it was the record's last, and where its text ends.
    #[inline]
    fn next_field(&mut self, fields: &mut Fields<'a>, column: usize, first: usize) -> Result<(bool, usize), Fault> {
        let bytes = self.text.as_bytes();
        let newline = self.style.line_end.byte();
        let mut field = Field { start: self.at, piece: self.at, scratch: None, quoted: false, closed: None };
        loop {
            let hit = self.scanner.next();
            let at = hit.unwrap_or(bytes.len());
            let byte = if hit.is_some() { bytes[at] } else { newline };
            if byte == self.style.delimiter || byte == newline {
                let last = byte != self.style.delimiter;
                let mut end = at;
                if last && hit.is_some() && self.style.line_end == LineEnd::CrLf {
                    end = self.style.line_end.before(bytes, first, at, true)?;
                }
                self.at = (at + 1).min(bytes.len());
                self.finish_field(fields, &field, end, column);
                return Ok((last, end));
            }
            if byte == self.style.quote {
                self.quoted_piece(fields, &mut field, at)?;
            } else if byte == self.style.line_end.other_byte() {
                self.style.line_end.stray(bytes, at, true)?;
            }
        }
    }

    /// Reads from an opening quote to the closing one.
    fn quoted_piece(&mut self, fields: &mut Fields<'a>, field: &mut Field, opening: usize) -> Result<(), Fault> {
        let bytes = self.text.as_bytes();
        if field.closed.is_some() || opening > field.piece || field.scratch.is_some() {
            if let Some(end) = field.closed.take() {
                // What looked like the whole field was followed by another quote.
                self.keep(fields, field, end);
                field.piece = end + 1;
            }
            self.keep(fields, field, opening);
        }
        field.quoted = true;
        field.piece = opening + 1;
        loop {
            let Some(at) = self.scanner.next() else {
                self.at = bytes.len();
                return Err(Fault::new(Error::new(SqlState::BAD_COPY_FILE_FORMAT, "unterminated CSV quoted field"), Place::Line));
            };
            let byte = bytes[at];
            if byte == self.style.escape
                && let Some(next) = bytes.get(at + 1)
                && (*next == self.style.quote || *next == self.style.escape)
            {
                self.keep(fields, field, at);
                field.piece = at + 1;
                self.scanner.skip(at + 1);
            } else if byte == self.style.quote {
                let whole = match bytes.get(at + 1) {
                    None => true,
                    Some(next) => *next == self.style.delimiter || matches!(next, b'\n' | b'\r'),
                };
                if whole && field.scratch.is_none() {
                    field.closed = Some(at);
                } else {
                    self.keep(fields, field, at);
                    field.piece = at + 1;
                }
                return Ok(());
            } else if byte == b'\n' || (byte == b'\r' && self.style.line_end == LineEnd::Cr) {
                self.lines += 1;
            }
        }
    }

    /// Moves the piece that ends at `end` into the scratch.
    fn keep(&self, fields: &mut Fields<'a>, field: &mut Field, end: usize) {
        let scratch = fields.scratch();
        field.scratch.get_or_insert(scratch.len());
        scratch.push_str(&self.text[field.piece..end]);
    }

    #[inline]
    fn finish_field(&self, fields: &mut Fields<'a>, field: &Field, end: usize, column: usize) {
        let forced = |columns: &[bool]| columns.get(column).copied().unwrap_or(false);
        if let Some(from) = field.scratch {
            let scratch = fields.scratch();
            scratch.push_str(&self.text[field.piece..end]);
            if forced(self.style.force_null) && &scratch[from..] == self.style.null {
                fields.push_null()
            } else {
                fields.push_scratch(from)
            }
            return;
        }
        let (start, end) = match field.closed {
            Some(closed) => (field.piece, closed),
            None => (field.start, end),
        };
        if !field.quoted && self.style.default == Some(&self.text[start..end]) {
            return fields.push_absent();
        }
        let null_text = end - start == self.style.null.len() && &self.text[start..end] == self.style.null;
        let may_be_null = if field.quoted { forced(self.style.force_null) } else { !forced(self.style.force_not_null) };
        if null_text && may_be_null { fields.push_null() } else { fields.push(start, end) }
    }
}
