//! COPY's text format: fields between delimiters, backslash escapes, `\N`, `\.`.

use std::ops::ControlFlow;

use crate::error::{Error, SqlState};
use crate::event::copy::{Fault, Place};
use crate::event::cut::LineEnd;
use crate::event::fields::Fields;
use crate::event::scan::Scanner;
use crate::types::text::scalar::{not_utf8, not_utf8_at};

/// Finds the fields of a chunk, from its start to its end.
#[derive(Debug)]
pub(crate) struct TextReader<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    delimiter: u8,
    null: &'a [u8],
    default: Option<&'a [u8]>,
    line_end: LineEnd,
    /// Start of the next line.
    at: usize,
    /// Lines read.
    pub(crate) lines: u64,
    /// `\.` was read.
    pub(crate) ended: bool,
}

impl<'a> TextReader<'a> {
    pub(crate) fn new(text: &'a str, delimiter: u8, null: &'a str, default: Option<&'a str>, line_end: LineEnd) -> Self {
        let newline = line_end.byte();
        let scanner = Scanner::new(text.as_bytes(), [delimiter, newline, b'\\', line_end.other_byte(), newline]);
        let default = default.map(str::as_bytes);
        TextReader { text, scanner, delimiter, null: null.as_bytes(), default, line_end, at: 0, lines: 0, ended: false }
    }

    /// Reads rows into `fields` until it has `rows_max` or the chunk ends. Before a fault come the rows in front of it.
    pub(crate) fn read(&mut self, fields: &mut Fields<'a>, rows_max: usize) -> Result<(), Fault> {
        while fields.rows() < rows_max && self.at < self.text.len() && !self.ended {
            let first = self.at;
            let line = self.line(fields);
            self.lines += 1;
            if let Err(fault) = line {
                fields.drop_pending();
                return Err(fault.on_line(self.lines, self.line_text(first)));
            }
        }
        Ok(())
    }

    /// Where the next line begins.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Reads the header line, its names one by one.
    pub(crate) fn header(&mut self, mut visit: impl FnMut(&str)) -> Result<(), Fault> {
        let bytes = self.text.as_bytes();
        self.lines += 1;
        loop {
            let hit = self.scanner.next();
            let end = hit.unwrap_or(bytes.len());
            let last = hit.is_none() || bytes[end] == self.line_end.byte();
            if last || bytes[end] == self.delimiter {
                let mut name = String::new();
                unescape(self.text[self.at..end].trim_end_matches('\r'), &mut name)?;
                visit(&name);
                self.at = (end + 1).min(bytes.len());
            } else if bytes[end] == b'\\' {
                self.scanner.skip(end + 1);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn line(&mut self, fields: &mut Fields<'a>) -> Result<(), Fault> {
        let bytes = self.text.as_bytes();
        let first = self.at;
        let columns = fields.columns();
        let (mut start, mut escaped, mut count) = (first, false, 0);
        loop {
            let hit = self.scanner.next();
            let at = hit.unwrap_or(bytes.len());
            let byte = if hit.is_some() { bytes[at] } else { self.line_end.byte() };
            if byte == b'\\' {
                if bytes.get(at + 1) == Some(&b'.') {
                    return self.end_of_data(fields, first, start, at, count, escaped);
                }
                escaped = true;
                self.scanner.skip(at + 1);
                continue;
            }
            let delimiter = byte == self.delimiter;
            if !delimiter && byte != self.line_end.byte() {
                self.line_end.stray(bytes, at, false)?;
                continue;
            }
            let mut end = at;
            if !delimiter && hit.is_some() && self.line_end == LineEnd::CrLf {
                end = self.line_end.before(bytes, first, at, false)?;
            }
            if count == columns {
                return Err(Fault::extra());
            }
            self.field(fields, start, end, escaped)?;
            count += 1;
            (start, escaped) = (at + 1, false);
            if !delimiter {
                self.at = start.min(bytes.len());
                return if count < columns { Err(Fault::missing(count)) } else { Ok(()) };
            }
        }
    }

    /// `\.` at `at`: the end of the data, where nothing follows it on its line. What stands before it is a last row.
    fn end_of_data(
        &mut self,
        fields: &mut Fields<'a>,
        first: usize,
        start: usize,
        at: usize,
        count: usize,
        escaped: bool,
    ) -> Result<(), Fault> {
        let bytes = self.text.as_bytes();
        let rest = &bytes[at + 2..];
        if !(rest.is_empty() || rest[0] == self.line_end.byte() || (self.line_end == LineEnd::CrLf && rest.starts_with(b"\r\n"))) {
            let error = Error::new(SqlState::BAD_COPY_FILE_FORMAT, "end-of-copy marker corrupt");
            return Err(Fault::new(error, Place::LineNumber));
        }
        self.ended = true;
        self.at = bytes.len();
        if at == first {
            return Ok(());
        }
        if count == fields.columns() {
            return Err(Fault::extra());
        }
        self.field(fields, start, at, escaped)?;
        if count + 1 < fields.columns() { Err(Fault::missing(count + 1)) } else { Ok(()) }
    }

    #[inline]
    fn field(&mut self, fields: &mut Fields<'a>, start: usize, end: usize, escaped: bool) -> Result<(), Fault> {
        if end - start == self.null.len() && &self.text.as_bytes()[start..end] == self.null {
            fields.push_null();
            return Ok(());
        }
        if self.default == Some(&self.text.as_bytes()[start..end]) {
            fields.push_absent();
            return Ok(());
        }
        if !escaped {
            fields.push(start, end);
            return Ok(());
        }
        let from = fields.scratch().len();
        unescape(&self.text[start..end], fields.scratch())?;
        fields.push_scratch(from);
        Ok(())
    }

    fn line_text(&mut self, first: usize) -> &'a str {
        let bytes = self.text.as_bytes();
        let end = memchr::memchr(self.line_end.byte(), &bytes[first..]).map_or(bytes.len(), |length| first + length);
        self.text[first..end].trim_end_matches('\r')
    }
}

/// Appends a field with its backslash escapes undone.
fn unescape(field: &str, out: &mut String) -> Result<(), Fault> {
    let mut rest = field;
    // Bytes written as numbers need not be characters one by one.
    let mut numeric: Option<Vec<u8>> = None;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        push(&rest[..at], &mut numeric, out);
        rest = &rest[at + 1..];
        match escape(rest) {
            ControlFlow::Continue((character, length)) => {
                push(character, &mut numeric, out);
                rest = &rest[length..];
            }
            ControlFlow::Break((byte, length)) => {
                match &mut numeric {
                    Some(bytes) => bytes.push(byte),
                    None if byte < 0x80 && byte != 0 => out.push(char::from(byte)),
                    None => numeric = Some(vec![byte]),
                }
                rest = &rest[length..];
            }
        }
    }
    push(rest, &mut numeric, out);
    let Some(bytes) = numeric else { return Ok(()) };
    match std::str::from_utf8(&bytes) {
        Ok(text) if !bytes.contains(&0) => {
            out.push_str(text);
            Ok(())
        }
        Ok(_) => Err(Fault::new(not_utf8(&[0]), Place::Line)),
        Err(error) => Err(Fault::new(not_utf8_at(&bytes, error.valid_up_to()), Place::Line)),
    }
}

/// Once bytes have been written as numbers, the rest of the field is gathered behind them, to be checked as a whole.
fn push(text: &str, numeric: &mut Option<Vec<u8>>, out: &mut String) {
    match numeric {
        Some(bytes) => bytes.extend_from_slice(text.as_bytes()),
        None => out.push_str(text),
    }
}

/// What stands behind a backslash: text, or a byte by its number, and how many bytes of input it takes.
fn escape(rest: &str) -> ControlFlow<(u8, usize), (&str, usize)> {
    let bytes = rest.as_bytes();
    let plain = |text| ControlFlow::Continue((text, 1));
    match bytes.first() {
        // As PostgreSQL, a backslash at the end of the data stands for nothing.
        None => ControlFlow::Continue(("", 0)),
        Some(b'b') => plain("\x08"),
        Some(b'f') => plain("\x0c"),
        Some(b'n') => plain("\n"),
        Some(b'r') => plain("\r"),
        Some(b't') => plain("\t"),
        Some(b'v') => plain("\x0b"),
        Some(b'0'..=b'7') => {
            let digits = bytes.iter().take(3).take_while(|byte| (b'0'..=b'7').contains(byte));
            let (value, length) = digits.fold((0u32, 0), |(value, length), byte| (value * 8 + u32::from(byte - b'0'), length + 1));
            ControlFlow::Break((value as u8, length))
        }
        Some(b'x') if bytes.get(1).is_some_and(u8::is_ascii_hexdigit) => {
            let digits = rest[1..].chars().take(2).map_while(|character| character.to_digit(16));
            let (value, length) = digits.fold((0, 1), |(value, length), digit| (value * 16 + digit, length + 1));
            ControlFlow::Break((value as u8, length))
        }
        Some(_) => {
            let length = rest.chars().next().map_or(0, char::len_utf8);
            ControlFlow::Continue((&rest[..length], length))
        }
    }
}

impl LineEnd {
    /// Judges a carriage return or newline that does not end a line.
    pub(crate) fn stray(self, bytes: &[u8], at: usize, csv: bool) -> Result<(), Fault> {
        let pair = self == LineEnd::CrLf && bytes.get(at + 1) == Some(&b'\n');
        if pair || self == LineEnd::Cr {
            return Ok(());
        }
        Err(literal("carriage return", "\\r", csv))
    }

    /// Where the line's text ends whose newline is at `at`.
    pub(crate) fn before(self, bytes: &[u8], first: usize, at: usize, csv: bool) -> Result<usize, Fault> {
        if at > first && bytes[at - 1] == b'\r' { Ok(at - 1) } else { Err(literal("newline", "\\n", csv)) }
    }
}

fn literal(what: &str, escape: &str, csv: bool) -> Fault {
    let error = if csv {
        Error::new(SqlState::BAD_COPY_FILE_FORMAT, format!("unquoted {what} found in data"))
            .hint(format!("Use quoted CSV field to represent {what}."))
    } else {
        Error::new(SqlState::BAD_COPY_FILE_FORMAT, format!("literal {what} found in data"))
            .hint(format!("Use \"{escape}\" to represent {what}."))
    };
    Fault::new(error, Place::LineNumber)
}
