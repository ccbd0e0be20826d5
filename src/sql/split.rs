//! A query text cut into statements at its semicolons, without tokens.
//!
//! *Place*: first step of `sql::parse`. Knows strings, quoted names, dollar quotes and comments, nothing else.

use std::ops::Range;

use memchr::memchr;

use crate::error::{Error, Result};

/// What lies at a byte offset of SQL text.
enum Piece {
    /// A semicolon.
    Semicolon,
    /// Whitespace or a comment.
    Blank,
    /// Anything else.
    Code,
}

/// The next statement at or after byte `start`: its range, without surrounding whitespace and semicolon, and where to go on.
/// None at the end of the text. A statement of comments alone is skipped.
pub(super) fn next_statement(text: &str, start: usize) -> Result<Option<(Range<usize>, usize)>> {
    let mut begin = None;
    let mut end = start;
    let mut at = start;
    while at < text.len() {
        let (piece, next) = step(text, at)?;
        match piece {
            Piece::Blank => {}
            Piece::Code => {
                begin.get_or_insert(at);
                end = next;
            }
            Piece::Semicolon => {
                if let Some(begin) = begin {
                    return Ok(Some((begin..end, next)));
                }
            }
        }
        at = next;
    }
    Ok(begin.map(|begin| (begin..end, text.len())))
}

/// One lexical step from byte `at`: what it is and where it ends.
fn step(text: &str, at: usize) -> Result<(Piece, usize)> {
    let bytes = text.as_bytes();
    Ok(match bytes[at] {
        b';' => (Piece::Semicolon, at + 1),
        byte if byte.is_ascii_whitespace() || byte == 0x0b => (Piece::Blank, at + 1),
        b'-' if bytes.get(at + 1) == Some(&b'-') => (Piece::Blank, memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |end| at + end + 1)),
        b'/' if bytes.get(at + 1) == Some(&b'*') => (Piece::Blank, block_comment(text, at)?),
        b'\'' => (Piece::Code, quoted(text, at, b'\'')?),
        b'"' => (Piece::Code, quoted(text, at, b'"')?),
        b'$' => (Piece::Code, dollar_quoted(text, at)?),
        byte if is_word(byte) => (Piece::Code, word(text, at)?),
        _ => (Piece::Code, at + 1),
    })
}

/// A name, keyword or number; an escape string (`E'it\'s'`) with its prefix.
fn word(text: &str, at: usize) -> Result<usize> {
    let bytes = text.as_bytes();
    let length = bytes[at..].iter().take_while(|byte| is_word(**byte) || **byte == b'$').count();
    let end = at + length;
    if length == 1 && bytes[at].eq_ignore_ascii_case(&b'e') && bytes.get(end) == Some(&b'\'') {
        return escape_string(text, end);
    }
    Ok(end)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The end of a string or quoted name that starts at `at`. A doubled quote ends it and starts another: the same to us.
fn quoted(text: &str, at: usize, quote: u8) -> Result<usize> {
    match memchr(quote, &text.as_bytes()[at + 1..]) {
        Some(length) => Ok(at + length + 2),
        None if quote == b'"' => Err(unterminated(text, at, "unterminated quoted identifier")),
        None => Err(unterminated(text, at, "unterminated quoted string")),
    }
}

fn escape_string(text: &str, at: usize) -> Result<usize> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'\\' => end += 2,
            b'\'' => return Ok(end + 1),
            _ => end += 1,
        }
    }
    Err(unterminated(text, at, "unterminated quoted string"))
}

/// A dollar-quoted string, or a lone `$` (as of a parameter).
fn dollar_quoted(text: &str, at: usize) -> Result<usize> {
    let bytes = text.as_bytes();
    let tag = bytes[at + 1..].iter().take_while(|byte| is_word(**byte)).count();
    let numbered = bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
    let open = at + tag + 2;
    if numbered || bytes.get(open - 1) != Some(&b'$') {
        return Ok(at + 1);
    }
    match text[open..].find(&text[at..open]) {
        Some(length) => Ok(open + length + (open - at)),
        None => Err(unterminated(text, at, "unterminated dollar-quoted string")),
    }
}

fn block_comment(text: &str, at: usize) -> Result<usize> {
    let bytes = text.as_bytes();
    let mut depth = 1_u32;
    let mut end = at + 2;
    while end + 1 < bytes.len() {
        match &bytes[end..end + 2] {
            b"/*" => (depth, end) = (depth + 1, end + 2),
            b"*/" => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            return Ok(end);
        }
    }
    Err(unterminated(text, at, "unterminated /* comment"))
}

fn unterminated(text: &str, at: usize, what: &str) -> Error {
    Error::syntax(format!("{what} at or near \"{}\"", &text[at..])).position(super::position_of(text, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some((range, next)) = next_statement(text, at).unwrap() {
            found.push(&text[range]);
            at = next;
        }
        found
    }

    #[test]
    fn semicolons_inside_quotes_and_comments_do_not_split() {
        assert_eq!(split("select 1; ;\n select ';''' /* ; /* ; */ */ ; -- ;\n"), ["select 1", "select ';'''"]);
        assert_eq!(split(r#"select E'it\'s;', ";", $a$;$$;$a$, $1; x"#), [r#"select E'it\'s;', ";", $a$;$$;$a$, $1"#, "x"]);
        assert_eq!(split(" -- only a comment"), Vec::<&str>::new());
    }

    #[test]
    fn what_is_left_open_is_an_error_with_its_place() {
        for (text, message, position) in [
            ("select 'abc", "unterminated quoted string at or near \"'abc\"", 8),
            ("é \"abc", "unterminated quoted identifier at or near \"\"abc\"", 3),
            ("/* x", "unterminated /* comment at or near \"/* x\"", 1),
        ] {
            let error = next_statement(text, 0).unwrap_err();
            assert_eq!((error.report().message.as_str(), error.report().position), (message, Some(position)));
        }
    }
}
