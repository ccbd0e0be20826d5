//! Where a stream of COPY data may be cut, so that each piece is whole lines and can be decoded apart.

use memchr::{memchr, memchr2, memrchr};

use crate::event::binary::{self, Step};
use crate::event::scan::Scanner;
use crate::types::copy::{CopyFormat, CopyOptions};

/// How the lines of a stream end: decided by its first line, as PostgreSQL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// `\n`.
    Lf,
    /// `\r\n`.
    CrLf,
    /// `\r`.
    Cr,
}

impl LineEnd {
    /// The byte behind which the next line begins.
    pub(crate) fn byte(self) -> u8 {
        if self == LineEnd::Cr { b'\r' } else { b'\n' }
    }

    /// The byte that may not stand alone in a line.
    pub(crate) fn other_byte(self) -> u8 {
        b'\r'
    }
}

/// Follows one stream. The buffer that it is shown begins where the last cut was.
#[derive(Clone, Debug)]
pub struct Cutter {
    format: CopyFormat,
    /// In csv.
    quote: u8,
    /// In csv.
    escape: u8,
    /// The header has been stepped over (binary).
    begun: bool,
    line_end: Option<LineEnd>,
    /// Bytes of the buffer already looked at (csv, binary).
    scanned: usize,
    /// End of the last whole line among them (csv, binary).
    safe: usize,
    /// A quoted field is open at `scanned` (csv).
    quoted: bool,
}

impl Cutter {
    /// At the start of a stream.
    pub fn new(options: &CopyOptions) -> Cutter {
        let CopyOptions { format, quote, escape, .. } = *options;
        Cutter { format, quote, escape, begun: false, line_end: None, scanned: 0, safe: 0, quoted: false }
    }

    /// How lines end; with `\n` where no line has ended yet.
    pub fn line_end(&self) -> LineEnd {
        self.line_end.unwrap_or(LineEnd::Lf)
    }

    /// The length of the buffer's part that is whole lines, to be taken away by the caller; 0 for none.
    pub fn cut(&mut self, buffer: &[u8]) -> usize {
        let end = if self.format == CopyFormat::Binary {
            self.last_tuple(buffer)
        } else {
            let Some(line_end) = self.line_end.or_else(|| self.detect(buffer, false)) else { return 0 };
            self.line_end = Some(line_end);
            match self.format {
                CopyFormat::Csv => self.last_csv_line(buffer, line_end.byte(), self.quote, self.escape),
                CopyFormat::Text | CopyFormat::Binary => last_text_line(buffer, line_end.byte()),
            }
        };
        // What is left is looked at again only from where the scan stands.
        self.scanned = self.scanned.saturating_sub(end);
        self.safe = 0;
        end
    }

    /// The stream ends with `buffer`: decides how its lines end.
    pub fn finish(&mut self, buffer: &[u8]) -> LineEnd {
        let line_end = self.line_end.or_else(|| self.detect(buffer, true)).unwrap_or(LineEnd::Lf);
        self.line_end = Some(line_end);
        line_end
    }

    /// By the first line end outside quotes and escapes.
    fn detect(&self, buffer: &[u8], last: bool) -> Option<LineEnd> {
        let mut from = 0;
        let mut quoted = false;
        loop {
            let at = from + memchr2(b'\n', b'\r', buffer.get(from..)?)?;
            match self.format {
                // An escape other than the quote is not looked at: this is the first line only.
                CopyFormat::Csv => quoted ^= buffer[from..at].iter().filter(|byte| **byte == self.quote).count() % 2 == 1,
                CopyFormat::Text | CopyFormat::Binary => quoted = escaped(buffer, at),
            }
            if !quoted {
                return match (buffer[at], buffer.get(at + 1)) {
                    (b'\n', _) => Some(LineEnd::Lf),
                    (_, Some(b'\n')) => Some(LineEnd::CrLf),
                    (_, None) if !last => None,
                    _ => Some(LineEnd::Cr),
                };
            }
            from = at + 1;
        }
    }

    fn last_tuple(&mut self, buffer: &[u8]) -> usize {
        if !self.begun {
            match binary::header(buffer) {
                Step::To(at) => (self.begun, self.scanned, self.safe) = (true, at, at),
                Step::Partial => return 0,
                // The decoder says what is wrong.
                Step::End(_) | Step::Malformed => return buffer.len(),
            }
        }
        loop {
            match binary::tuple(buffer, self.scanned, |_| ()) {
                Step::To(at) => (self.scanned, self.safe) = (at, at),
                Step::Partial => return self.safe,
                Step::End(_) | Step::Malformed => return buffer.len(),
            }
        }
    }

    fn last_csv_line(&mut self, buffer: &[u8], newline: u8, quote: u8, escape: u8) -> usize {
        let fresh = &buffer[self.scanned.min(buffer.len())..];
        if !self.quoted && memchr(quote, fresh).is_none() {
            if let Some(at) = memrchr(newline, fresh) {
                self.safe = self.scanned + at + 1;
            }
            self.scanned = buffer.len();
            return self.safe;
        }
        let mut scanner = Scanner::new(fresh, [quote, escape, newline, newline, newline]);
        let mut seen = fresh.len();
        while let Some(at) = scanner.next() {
            let byte = fresh[at];
            if self.quoted && byte == escape && escape != quote {
                if at + 1 == fresh.len() {
                    // What it escapes has not come yet.
                    seen = at;
                    break;
                }
                if fresh[at + 1] == quote || fresh[at + 1] == escape {
                    scanner.skip(at + 1);
                }
            } else if byte == quote {
                self.quoted = !self.quoted;
            } else if byte == newline && !self.quoted {
                self.safe = self.scanned + at + 1;
            }
        }
        self.scanned += seen;
        self.safe
    }
}

/// True when an odd number of backslashes stands before a position.
fn escaped(buffer: &[u8], at: usize) -> bool {
    buffer[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

fn last_text_line(buffer: &[u8], newline: u8) -> usize {
    let mut end = buffer.len();
    while let Some(at) = memrchr(newline, &buffer[..end]) {
        if !escaped(buffer, at) {
            return at + 1;
        }
        end = at;
    }
    0
}
