//! The records of a text file: lines, or in CSV what stands between line ends outside quotes; with the hash of all that was read.
//!
//! *Invariants*: a [`Mark`] stands before its record's line end, so a last line without one is the same record when the file has grown.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::super::{Error, Result};
use super::Mark;

/// Bytes that are read at once.
const STEP_BYTES: usize = 1024 * 1024;

/// Bytes of a record.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads records one by one.
pub struct Records {
    /// For errors.
    name: String,
    reader: Box<dyn Read + Send>,
    quote: Option<u8>,
    buffer: Vec<u8>,
    /// Where the next record begins.
    at: usize,
    /// Where the last one ends that was given out: what is before is hashed at the latest when it leaves the buffer.
    last_end: usize,
    /// Where the search for its end goes on.
    scanned: usize,
    /// Inside quotes there.
    quoted: bool,
    /// Line ends inside the record so far.
    inside: u64,
    /// Where the bytes begin that are not hashed yet.
    hashed: usize,
    /// Of the buffer's first byte in the file.
    offset: u64,
    hash: Xxh3,
    /// Of the next record.
    line: u64,
    ended: bool,
}

/// A record within [`Records::text`].
#[derive(Clone, Debug)]
pub struct Record {
    /// Without its line end.
    pub content: Range<usize>,
    /// The line that it begins on.
    pub line: u64,
}

impl Records {
    /// From the beginning. With a quote, line ends between two of them belong to a record.
    pub fn new(name: &str, reader: Box<dyn Read + Send>, quote: Option<u8>) -> Records {
        Records {
            name: name.to_owned(),
            reader,
            quote,
            buffer: Vec::new(),
            at: 0,
            last_end: 0,
            scanned: 0,
            quoted: false,
            inside: 0,
            hashed: 0,
            offset: 0,
            hash: Xxh3::new(),
            line: 1,
            ended: false,
        }
    }

    /// The next record that is not an empty line, valid until the next call; none at the end.
    pub fn next(&mut self) -> Result<Option<Record>> {
        while let Some(record) = self.record()? {
            if !record.content.is_empty() {
                self.last_end = record.content.end;
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The bytes that records are ranges of.
    pub fn text(&self) -> &[u8] {
        &self.buffer
    }

    /// Where the last record ends in the file.
    pub fn position(&self) -> u64 {
        self.offset + self.last_end as u64
    }

    /// Where it ends, and the hash of all before that.
    pub fn mark(&mut self) -> Mark {
        self.hash_to(self.last_end);
        Mark { position: self.position(), hash: self.hash.digest128() }
    }

    fn hash_to(&mut self, end: usize) {
        if end > self.hashed {
            self.hash.update(&self.buffer[self.hashed..end]);
            self.hashed = end;
        }
    }

    fn record(&mut self) -> Result<Option<Record>> {
        loop {
            while let Some(found) = self.find() {
                let byte = self.buffer[found];
                self.scanned = found + 1;
                if byte != b'\n' {
                    self.quoted = !self.quoted;
                } else if self.quoted {
                    self.inside += 1;
                } else {
                    return Ok(Some(self.take(found, found + 1)));
                }
            }
            self.scanned = self.buffer.len();
            if self.ended {
                let end = self.buffer.len();
                if self.quoted {
                    return Err(Error::Setup(format!("{}, line {}: a quote is not closed", self.name, self.line)));
                }
                return Ok((self.at < end).then(|| self.take(end, end)));
            }
            self.fill()?;
        }
    }

    fn find(&self) -> Option<usize> {
        let rest = &self.buffer[self.scanned..];
        let found = match self.quote {
            Some(quote) => memchr::memchr2(quote, b'\n', rest),
            None => memchr::memchr(b'\n', rest),
        };
        found.map(|found| self.scanned + found)
    }

    fn take(&mut self, end: usize, next: usize) -> Record {
        let has_return = end > self.at && self.buffer[end - 1] == b'\r';
        let record = Record { content: self.at..end - usize::from(has_return), line: self.line };
        self.line += 1 + std::mem::take(&mut self.inside);
        self.at = next;
        record
    }

    fn fill(&mut self) -> Result<()> {
        if self.buffer.len() - self.at > RECORD_BYTES_MAX {
            let what = if self.quoted { "; perhaps a quote is not closed" } else { "" };
            return Err(Error::Setup(format!("{}, line {}: more than {RECORD_BYTES_MAX} bytes{what}", self.name, self.line)));
        }
        let done = self.last_end;
        self.hash_to(done);
        self.buffer.drain(..done);
        self.offset += done as u64;
        self.hashed -= done;
        self.scanned -= done;
        self.at -= done;
        self.last_end = 0;
        let length = self.buffer.len();
        self.buffer.resize(length + STEP_BYTES, 0);
        loop {
            match self.reader.read(&mut self.buffer[length..]) {
                Ok(read) => {
                    self.buffer.truncate(length + read);
                    self.ended = read == 0;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(length);
                    return Err(Error::Setup(format!("{}: cannot be read on after line {}: {error}", self.name, self.line)));
                }
            }
        }
    }
}

/// Which line of the file a line of the data is.
#[derive(Debug, Default)]
pub struct Lines {
    /// The next line of the data, less one.
    data: u64,
    pairs: Vec<(u64, u64)>,
}

impl Lines {
    /// `count` lines of data come from the file's line `line` on.
    pub fn add(&mut self, line: u64, count: u64) {
        let data = self.data + 1;
        self.data += count;
        if self.pairs.last().is_none_or(|(before, file)| file + (data - before) != line) {
            self.pairs.push((data, line));
        }
    }

    /// The pairs of [`super::Portion::lines`].
    pub fn into_pairs(self) -> Vec<(u64, u64)> {
        self.pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, quote: Option<u8>) -> Vec<(String, u64, Mark)> {
        let mut records = Records::new("f", Box::new(std::io::Cursor::new(text.to_owned().into_bytes())), quote);
        let mut found = Vec::new();
        while let Some(record) = records.next().unwrap() {
            let content = String::from_utf8(records.text()[record.content.clone()].to_vec()).unwrap();
            found.push((content, record.line, records.mark()));
        }
        found
    }

    #[test]
    fn records_lines_and_marks() {
        let text = "a,b\r\n\n1,\"x\ny\"\n2,z";
        let found = read(text, Some(b'"'));
        let shown: Vec<_> = found.iter().map(|(content, line, _)| (content.as_str(), *line)).collect();
        assert_eq!(shown, [("a,b", 1), ("1,\"x\ny\"", 3), ("2,z", 5)]);
        // The same file, grown: what was there has the same marks.
        let grown = read(&format!("{text}\n3,w\n"), Some(b'"'));
        assert_eq!(grown[..3], found[..]);
        assert_eq!(grown[2].2.position, text.len() as u64);
        // Another beginning, another hash.
        assert_ne!(read(&text.replace('a', "c"), Some(b'"'))[2].2.hash, found[2].2.hash);
        assert_eq!(read("{\"a\":\"\\\"\"}\n{}", None).len(), 2);
    }

    #[test]
    fn lines_of_the_file() {
        let mut lines = Lines::default();
        for (line, count) in [(2, 1), (3, 2), (7, 1), (8, 1)] {
            lines.add(line, count);
        }
        assert_eq!(lines.into_pairs(), [(1, 2), (4, 7)]);
    }
}
