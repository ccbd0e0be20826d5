//! `INSERT INTO t [(columns)] VALUES (literals), ...` recognised from its bytes, without tokens or a tree.
//!
//! *Place*: tried by `sql::parse` before anything else, because a VALUES list of a thousand rows costs more to parse into
//! a tree than to insert. What does not fit (casts, functions, escape strings, parameters, DEFAULT, comments, RETURNING,
//! ON CONFLICT, rows of different widths) falls back to the parser, which also words the error.
//!
//! *Invariant*: what is recognised here means the same to the parser.

use std::ops::Range;

use memchr::memchr;

use super::reader::RESERVED;
use super::statement::{InsertLiterals, Name};

/// Recognises a literal INSERT at the start of `text`. Also returns the byte after the last row, where a semicolon or the end
/// of the text was found.
pub(super) fn scan(text: &str) -> Option<(InsertLiterals, usize)> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    scan.keyword("insert")?;
    scan.keyword("into")?;
    let first = scan.name(text)?;
    let table = if scan.byte(b'.') { Name { schema: Some(first), name: scan.name(text)? } } else { Name { schema: None, name: first } };
    let mut columns = Vec::new();
    scan.blank();
    if scan.byte(b'(') {
        loop {
            columns.push(scan.name(text)?);
            scan.blank();
            if scan.byte(b')') {
                break;
            }
            scan.byte(b',').then_some(())?;
        }
    }
    scan.keyword("values")?;
    scan.blank();
    let (rows, width) = scan.rows()?;
    let end = rows.end;
    Some((InsertLiterals { table, columns, rows, width }, end))
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn blank(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// A keyword that is not part of a longer word.
    fn keyword(&mut self, wanted: &str) -> Option<()> {
        self.blank();
        let word = self.bytes.get(self.at..self.at + wanted.len())?;
        let follows = self.bytes.get(self.at + wanted.len()).copied().unwrap_or(b' ');
        if !word.eq_ignore_ascii_case(wanted.as_bytes()) || is_name(follows) {
            return None;
        }
        self.at += wanted.len();
        Some(())
    }

    /// A plain or quoted name (without doubled quotes inside), folded.
    fn name(&mut self, text: &str) -> Option<String> {
        self.blank();
        if self.byte(b'"') {
            let length = memchr(b'"', &self.bytes[self.at..])?;
            let name = &text[self.at..self.at + length];
            self.at += length + 1;
            return (length > 0 && self.peek() != Some(b'"')).then(|| name.to_owned());
        }
        let length = self.bytes[self.at..].iter().take_while(|byte| is_name(**byte)).count();
        let name = text[self.at..self.at + length].to_ascii_lowercase();
        self.at += length;
        let plain = name.as_bytes().first().is_some_and(|byte| !byte.is_ascii_digit() && *byte != b'$');
        (plain && RESERVED.binary_search(&name.as_str()).is_err()).then_some(name)
    }

    /// `(literal, ...), (literal, ...)` up to a semicolon or the end.
    fn rows(&mut self) -> Option<(Range<usize>, usize)> {
        let begin = self.at;
        let mut width = None;
        loop {
            self.blank();
            self.byte(b'(').then_some(())?;
            let mut values = 0_usize;
            loop {
                self.blank();
                self.literal()?;
                values += 1;
                self.blank();
                if self.byte(b')') {
                    break;
                }
                self.byte(b',').then_some(())?;
            }
            if *width.get_or_insert(values) != values {
                return None;
            }
            let end = self.at;
            self.blank();
            match self.peek() {
                Some(b',') => self.at += 1,
                None | Some(b';') => return Some((begin..end, width?)),
                Some(_) => return None,
            }
        }
    }

    fn literal(&mut self) -> Option<()> {
        match self.peek()? {
            b'\'' => self.string(),
            b'0'..=b'9' | b'.' => self.number(),
            b'-' | b'+' => {
                self.at += 1;
                self.number()
            }
            b'n' | b'N' => self.keyword("null"),
            b't' | b'T' => self.keyword("true"),
            b'f' | b'F' => self.keyword("false"),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<()> {
        loop {
            self.at += memchr(b'\'', self.bytes.get(self.at + 1..)?)? + 2;
            if self.peek() != Some(b'\'') {
                return Some(());
            }
        }
    }

    /// Digits with an optional point and exponent; nothing that belongs to a name may follow.
    fn number(&mut self) -> Option<()> {
        let mut digits = self.digits();
        if self.byte(b'.') {
            digits += self.digits();
        }
        if digits == 0 {
            return None;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if !self.byte(b'-') {
                self.byte(b'+');
            }
            if self.digits() == 0 {
                return None;
            }
        }
        (!self.peek().is_some_and(|byte| is_name(byte) || byte == b'.')).then_some(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_rows_are_recognised() {
        let text = "insert into public.\"E v\" (a, \"B\", c) values (1, 'it''s; (x', NULL),\n(-2.5e3, '', tRuE) ; select 1";
        let (insert, end) = scan(text).unwrap();
        assert_eq!(insert.table, Name { schema: Some("public".into()), name: "E v".into() });
        assert_eq!(insert.columns, ["a", "B", "c"]);
        assert_eq!(&text[insert.rows.clone()], "(1, 'it''s; (x', NULL),\n(-2.5e3, '', tRuE)");
        assert_eq!((insert.width, end), (3, insert.rows.end));
    }

    #[test]
    fn everything_else_falls_back() {
        for text in [
            "insert into t values (1, default)",
            "insert into t values (1), (2, 3)",
            "insert into t values (now())",
            "insert into t values ('1'::int)",
            "insert into t values (date '2024-01-01')",
            "insert into t values (E'\\n')",
            "insert into t values ($1)",
            "insert into t values (1) returning a",
            "insert into t values (1",
            "insert into t values (1_000)",
            "insert into t values ('a' 'b')",
            "insert into t select 1",
            "insert into select values (1)",
            "select 1",
            "insert",
        ] {
            assert!(scan(text).is_none(), "{text}");
        }
    }
}
