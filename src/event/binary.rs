//! COPY's binary format: a signature, tuples of sized fields, a trailer.
//!
//! ```text
//! "PGCOPY\n\377\r\n\0"  flags: i32  extension length: i32  extension
//! tuple: number of fields: i16, each a length: i32 (-1 for NULL) and so many bytes
//! trailer: -1: i16
//! ```

use crate::error::{Error, SqlState};
use crate::event::copy::{Fault, Place};

/// First bytes of a stream.
pub(crate) const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// Signature, flags and the extension's length.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

/// The lower flags may be ignored, the upper may not.
const CRITICAL_FLAGS: u32 = 0xffff_0000;

/// What stands at a position of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something whole, up to this position.
    To(usize),
    /// The trailer, up to this position.
    End(usize),
    /// Not all of it has come.
    Partial,
    /// Nothing that a stream can have.
    Malformed,
}

/// Steps over the header.
pub(crate) fn header(bytes: &[u8]) -> Step {
    if !bytes.starts_with(&SIGNATURE[..bytes.len().min(SIGNATURE.len())]) {
        return Step::Malformed;
    }
    let Some(length) = integer(bytes, HEADER_BYTES - 4) else { return Step::Partial };
    match usize::try_from(length) {
        Ok(length) if bytes.len() >= HEADER_BYTES + length => Step::To(HEADER_BYTES + length),
        Ok(_) => Step::Partial,
        Err(_) => Step::Malformed,
    }
}

/// Steps over the tuple at `at`, showing each field's start and end, none for NULL.
pub(crate) fn tuple(bytes: &[u8], at: usize, mut field: impl FnMut(Option<(usize, usize)>)) -> Step {
    let Some(count) = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>) else { return Step::Partial };
    let count = i16::from_be_bytes(*count);
    let mut at = at + 2;
    match count {
        -1 => return Step::End(at),
        ..0 => return Step::Malformed,
        _ => {}
    }
    for _ in 0..count {
        let Some(length) = integer(bytes, at) else { return Step::Partial };
        at += 4;
        if length == -1 {
            field(None);
            continue;
        }
        let Ok(length) = usize::try_from(length) else { return Step::Malformed };
        if bytes.len() - at < length {
            return Step::Partial;
        }
        field(Some((at, at + length)));
        at += length;
    }
    Step::To(at)
}

fn integer(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// The fields of a chunk, row by row.
#[derive(Debug)]
pub(crate) struct BinaryFields<'a> {
    bytes: &'a [u8],
    spans: Vec<Option<(usize, usize)>>,
    columns: usize,
}

/// One column of [`BinaryFields`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct BinaryCells<'a> {
    bytes: &'a [u8],
    spans: &'a [Option<(usize, usize)>],
    columns: usize,
    column: usize,
}

impl<'a> BinaryFields<'a> {
    pub(crate) fn new(bytes: &'a [u8], columns: usize) -> Self {
        BinaryFields { bytes, spans: Vec::new(), columns: columns.max(1) }
    }

    pub(crate) fn clear(&mut self) {
        self.spans.clear();
    }

    pub(crate) fn rows(&self) -> usize {
        self.spans.len() / self.columns
    }

    pub(crate) fn column(&self, column: usize) -> BinaryCells<'_> {
        BinaryCells { bytes: self.bytes, spans: &self.spans, columns: self.columns, column }
    }
}

impl<'a> BinaryCells<'a> {
    /// The elements of arrays, as one column.
    pub(crate) fn of_elements(bytes: &'a [u8], spans: &'a [Option<(usize, usize)>]) -> Self {
        BinaryCells { bytes, spans, columns: 1, column: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len() / self.columns
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes in a row, none for NULL.
    #[inline]
    pub(crate) fn get(&self, row: usize) -> Option<&'a [u8]> {
        self.span(row).map(|(start, end)| &self.bytes[start..end])
    }

    /// Where they stand.
    #[inline]
    pub(crate) fn span(&self, row: usize) -> Option<(usize, usize)> {
        self.spans[row * self.columns + self.column]
    }
}

/// Finds the fields of a chunk, from its start to its end.
#[derive(Debug)]
pub(crate) struct BinaryReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Tuples read: what PostgreSQL calls lines.
    pub(crate) lines: u64,
    /// The trailer was read.
    pub(crate) ended: bool,
}

impl<'a> BinaryReader<'a> {
    /// `first` says that the chunk begins with the stream's header.
    pub(crate) fn new(bytes: &'a [u8], first: bool) -> Result<Self, Fault> {
        let mut reader = BinaryReader { bytes, at: 0, lines: 0, ended: false };
        if !first {
            return Ok(reader);
        }
        reader.at = match header(bytes) {
            Step::To(at) => at,
            _ if bytes.starts_with(SIGNATURE) => return Err(refused("invalid COPY file header (wrong length)")),
            _ => return Err(refused("COPY file signature not recognized")),
        };
        let flags = integer(bytes, SIGNATURE.len()).unwrap_or(0) as u32;
        if flags & CRITICAL_FLAGS != 0 {
            return Err(refused("unrecognized critical flags in COPY file header"));
        }
        Ok(reader)
    }

    /// Reads tuples into `fields` until it has `rows_max` or the chunk ends. Before a fault come the rows in front of it.
    pub(crate) fn read(&mut self, fields: &mut BinaryFields<'a>, rows_max: usize) -> Result<(), Fault> {
        while fields.rows() < rows_max && self.at < self.bytes.len() && !self.ended {
            let before = fields.spans.len();
            let step = tuple(self.bytes, self.at, |field| fields.spans.push(field));
            let (got, expected) = (fields.spans.len() - before, fields.columns);
            let problem = match step {
                Step::End(at) => {
                    (self.at, self.ended) = (at, true);
                    continue;
                }
                Step::To(at) if got == expected => {
                    self.at = at;
                    self.lines += 1;
                    continue;
                }
                Step::To(_) => format!("row field count is {got}, expected {expected}"),
                Step::Partial => "unexpected EOF in COPY data".to_owned(),
                Step::Malformed => "invalid field size".to_owned(),
            };
            fields.spans.truncate(before);
            return Err(refused(problem).on_line(self.lines + 1, ""));
        }
        Ok(())
    }
}

fn refused(message: impl Into<String>) -> Fault {
    Fault::new(Error::new(SqlState::BAD_COPY_FILE_FORMAT, message), Place::LineNumber).on_line(1, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let mut stream = SIGNATURE.to_vec();
        stream.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 2, 9, 9]);
        let start = stream.len();
        stream.extend_from_slice(&[0, 2, 0, 0, 0, 1, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        for length in 0..start {
            assert_eq!(header(&stream[..length]), Step::Partial);
        }
        assert_eq!(header(&stream), Step::To(start));
        assert_eq!(header(b"id,name"), Step::Malformed);
        let mut fields = Vec::new();
        assert_eq!(tuple(&stream, start, |field| fields.push(field)), Step::To(stream.len() - 2));
        assert_eq!(fields, [Some((start + 6, start + 7)), None]);
        assert_eq!(tuple(&stream[..start + 9], start, |_| ()), Step::Partial);
        assert_eq!(tuple(&stream, stream.len() - 2, |_| ()), Step::End(stream.len()));
    }
}
