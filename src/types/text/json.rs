//! JSON: checked as `json`, brought to the one form of `jsonb`.
//!
//! jsonb's form is PostgreSQL's: keys by length, then bytewise, the last of equal ones kept, one space behind `:` and `,`,
//! numbers without exponent, no needless escapes.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::error::{Error, Result, SqlState};

/// Nesting of arrays and objects. Deeper ones could exhaust a stack.
const DEPTH_MAX: usize = 256;

/// Digits that the exponent of a jsonb number may stand for.
const EXPONENT_MAX: i64 = 1000;

/// Characters of a token that an error shows.
const TOKEN_CHARS_MAX: usize = 100;

/// Refuses what is not JSON (22P02).
pub fn check_json(text: &str) -> Result<()> {
    Reader { text, at: 0, depth: 0, members: Vec::new(), out: None }.document()
}

/// Appends the jsonb form of `text`. 22P02 when it is not JSON. After an error `out` holds a part of it.
pub fn normalize_jsonb(text: &str, out: &mut String) -> Result<()> {
    Reader { text, at: 0, depth: 0, members: Vec::new(), out: Some(out) }.document()
}

/// Reads JSON values one after the other from a longer text.
pub struct Scan<'a>(Reader<'a, 'static>);

impl std::fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("at", &self.0.at).finish_non_exhaustive()
    }
}

impl<'a> Scan<'a> {
    /// From the start of `text`.
    pub fn new(text: &'a str) -> Scan<'a> {
        Scan(Reader { text, at: 0, depth: 0, members: Vec::new(), out: None })
    }

    /// From a position of `text` on.
    pub fn at(text: &'a str, position: usize) -> Scan<'a> {
        Scan(Reader { text, at: position, depth: 0, members: Vec::new(), out: None })
    }

    /// Bytes read, or where an error was found.
    pub fn position(&self) -> usize {
        self.0.at
    }

    /// The next byte that is not blank; none at the end.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        self.0.space();
        self.0.peek()
    }

    /// Steps over a byte that [`Scan::peek`] has shown.
    #[inline]
    pub fn step(&mut self) {
        self.0.at += 1;
    }

    /// Reads a string, whose opening quote [`Scan::peek`] has shown: its characters, borrowed where there was no escape.
    #[inline]
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.0.string()
    }

    /// Reads a value of any kind: its text. 22P02 when it is not JSON.
    pub fn value(&mut self) -> Result<&'a str> {
        self.0.space();
        let start = self.0.at;
        self.0.value()?;
        Ok(&self.0.text[start..self.0.at])
    }

    /// What is wrong at the present position.
    pub fn unexpected(&self, expected: &str) -> Error {
        self.0.found(expected)
    }
}

struct Reader<'a, 'o> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Members of the objects being read, innermost last.
    members: Vec<Member<'a>>,
    /// Where jsonb goes; none for a check.
    out: Option<&'o mut String>,
}

/// One member of an object: its key, and where it stands in `out`.
struct Member<'a> {
    key: Cow<'a, str>,
    start: usize,
    end: usize,
}

impl<'a> Reader<'a, '_> {
    fn document(mut self) -> Result<()> {
        self.space();
        self.value()?;
        self.space();
        if self.at < self.text.len() { Err(self.found("Expected end of input")) } else { Ok(()) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn emit(&mut self, text: &str) {
        if let Some(out) = self.out.as_deref_mut() {
            out.push_str(text);
        }
    }

    fn written(&self) -> usize {
        self.out.as_deref().map_or(0, String::len)
    }

    fn value(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => {
                let string = self.string()?;
                self.emit_string(&string);
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(first) if first.is_ascii_alphabetic() => {
                let word = self.word();
                if !matches!(word, "true" | "false" | "null") {
                    return Err(invalid_token(word));
                }
                self.emit(word);
                self.at += word.len();
                Ok(())
            }
            _ => Err(self.found("Expected JSON value")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<()>) -> Result<()> {
        if self.depth == DEPTH_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("json is nested more than {DEPTH_MAX} levels deep")));
        }
        self.depth += 1;
        self.at += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn array(&mut self) -> Result<()> {
        self.emit("[");
        self.space();
        if self.peek() != Some(b']') {
            loop {
                self.space();
                self.value()?;
                self.space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.emit(", ");
                    }
                    Some(b']') => break,
                    _ => return Err(self.found("Expected \",\" or \"]\"")),
                }
            }
        }
        self.at += 1;
        self.emit("]");
        Ok(())
    }

    fn object(&mut self) -> Result<()> {
        let first = self.members.len();
        let start = self.written();
        self.emit("{");
        self.space();
        if self.peek() != Some(b'}') {
            loop {
                self.space();
                if self.peek() != Some(b'"') {
                    let expected = if self.members.len() == first { "Expected string or \"}\"" } else { "Expected string" };
                    return Err(self.found(expected));
                }
                self.member()?;
                self.space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.emit(", ");
                    }
                    Some(b'}') => break,
                    _ => return Err(self.found("Expected \",\" or \"}\"")),
                }
            }
        }
        self.at += 1;
        self.emit("}");
        self.put_in_order(first, start);
        self.members.truncate(first);
        Ok(())
    }

    fn member(&mut self) -> Result<()> {
        let key = self.string()?;
        let start = self.written();
        self.emit_string(&key);
        self.emit(": ");
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.found("Expected \":\""));
        }
        self.at += 1;
        self.space();
        self.value()?;
        let end = self.written();
        if self.out.is_some() {
            self.members.push(Member { key, start, end });
        }
        Ok(())
    }

    /// Rewrites the object that starts at `start` of `out` unless its keys are in jsonb's order already.
    fn put_in_order(&mut self, first: usize, start: usize) {
        let Some(out) = self.out.as_deref_mut() else { return };
        let rank = |member: &Member<'_>| (member.key.len(), member.key.as_bytes().to_vec());
        let members = &mut self.members[first..];
        let ordered = members.windows(2).all(|pair| {
            let (left, right) = (&pair[0].key, &pair[1].key);
            (left.len(), left.as_bytes()) < (right.len(), right.as_bytes())
        });
        if ordered {
            return;
        }
        // Stable: of equal keys the last stays last.
        members.sort_by_cached_key(rank);
        let old = out.split_off(start);
        out.push('{');
        let mut separator = "";
        for (index, member) in members.iter().enumerate() {
            if members.get(index + 1).is_some_and(|next| next.key == member.key) {
                continue;
            }
            out.push_str(separator);
            out.push_str(&old[member.start - start..member.end - start]);
            separator = ", ";
        }
        out.push('}');
    }

    /// A string at the present position, without quotes and escapes.
    fn string(&mut self) -> Result<Cow<'a, str>> {
        let start = self.at + 1;
        let mut at = start;
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(at) {
                None => return Err(invalid_token(&self.text[self.at..])),
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(Cow::Borrowed(&self.text[start..at]));
                }
                Some(b'\\') => break,
                Some(0..=0x1f) => return Err(self.control(at)),
                Some(_) => at += 1,
            }
        }
        let mut decoded = self.text[start..at].to_owned();
        let opening = self.at;
        self.at = at;
        loop {
            match self.peek() {
                None => return Err(invalid_token(&self.text[opening..])),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(decoded));
                }
                Some(b'\\') => self.escape(&mut decoded)?,
                Some(0..=0x1f) => return Err(self.control(self.at)),
                Some(_) => {
                    let rest = &self.text[self.at..];
                    let end = rest.find(|character: char| matches!(character, '"' | '\\' | '\0'..='\x1f')).unwrap_or(rest.len());
                    decoded.push_str(&rest[..end]);
                    self.at += end;
                }
            }
        }
    }

    fn control(&self, at: usize) -> Error {
        syntax(format!("Character with value 0x{:02x} must be escaped.", self.text.as_bytes()[at]))
    }

    fn escape(&mut self, decoded: &mut String) -> Result<()> {
        let letter = *self.text.as_bytes().get(self.at + 1).ok_or_else(ended)?;
        let plain = match letter {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(decoded),
            _ => {
                let shown = self.text[self.at + 1..].chars().next().unwrap_or('\\');
                return Err(syntax(format!("Escape sequence \"\\{shown}\" is invalid.")));
            }
        };
        decoded.push(plain);
        self.at += 2;
        Ok(())
    }

    fn unicode(&mut self, decoded: &mut String) -> Result<()> {
        let unit = self.hex(self.at)?;
        self.at += 6;
        let character = match unit {
            0 if self.out.is_some() => {
                return Err(Error::new(SqlState::UNTRANSLATABLE_CHARACTER, "unsupported Unicode escape sequence")
                    .detail("\\u0000 cannot be converted to text."));
            }
            0xd800..=0xdbff => {
                let low = if self.text[self.at..].starts_with("\\u") { self.hex(self.at)? } else { 0 };
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(syntax("Unicode low surrogate must follow a high surrogate."));
                }
                self.at += 6;
                char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
            }
            0xdc00..=0xdfff => return Err(syntax("Unicode low surrogate must follow a high surrogate.")),
            _ => char::from_u32(unit),
        };
        decoded.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }

    /// The number of the `\uXXXX` at a position.
    fn hex(&self, at: usize) -> Result<u32> {
        let digits = self.text.as_bytes().get(at + 2..at + 6).ok_or_else(ended)?;
        digits
            .iter()
            .try_fold(0, |unit, digit| (*digit as char).to_digit(16).map(|value| unit * 16 + value))
            .ok_or_else(|| syntax("\"\\u\" must be followed by four hexadecimal digits."))
    }

    fn emit_string(&mut self, string: &str) {
        let Some(out) = self.out.as_deref_mut() else { return };
        out.push('"');
        let mut copied = 0;
        for (at, byte) in string.bytes().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            out.push_str(&string[copied..at]);
            copied = at + 1;
            match byte {
                b'"' => out.push_str("\\\""),
                b'\\' => out.push_str("\\\\"),
                b'\x08' => out.push_str("\\b"),
                b'\x0c' => out.push_str("\\f"),
                b'\n' => out.push_str("\\n"),
                b'\r' => out.push_str("\\r"),
                b'\t' => out.push_str("\\t"),
                // Writing to a String cannot fail.
                _ => _ = write!(out, "\\u{byte:04x}"),
            }
        }
        out.push_str(&string[copied..]);
        out.push('"');
    }

    fn number(&mut self) -> Result<()> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut at = start + usize::from(bytes[start] == b'-');
        let digits = |at: &mut usize| {
            let from = *at;
            while bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            *at > from
        };
        let whole = at;
        let mut sound = digits(&mut at) && !(bytes[whole] == b'0' && at - whole > 1);
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            sound &= digits(&mut at);
        }
        let mantissa = at;
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            at += 1;
            at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
            sound &= digits(&mut at);
        }
        let trailing = bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80);
        if !sound || trailing {
            let rest = &self.text[start..];
            let end = rest.find(|character: char| character.is_whitespace() || ",:[]{}\"".contains(character)).unwrap_or(rest.len());
            return Err(invalid_token(&rest[..end]));
        }
        self.at = at;
        let Some(out) = self.out.as_deref_mut() else { return Ok(()) };
        plain_number(&self.text[start..mantissa], self.text.get(mantissa + 1..at).unwrap_or(""), out)
    }

    fn word(&self) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find(|character: char| !(character.is_alphanumeric() || character == '_')).unwrap_or(rest.len());
        &rest[..end]
    }

    #[cold]
    fn found(&self, expected: &str) -> Error {
        let Some(first) = self.text[self.at..].chars().next() else { return ended() };
        if first.is_alphabetic() && !matches!(self.word(), "true" | "false" | "null") {
            return invalid_token(self.word());
        }
        let token = if first.is_alphanumeric() { self.word().to_owned() } else { first.to_string() };
        if first.is_alphanumeric() || "{}[]:,\"".contains(first) {
            syntax(format!("{expected}, but found \"{token}\"."))
        } else {
            invalid_token(&token)
        }
    }
}

/// Writes a JSON number as numeric does: the exponent carried out, no negative zero.
fn plain_number(mantissa: &str, exponent: &str, out: &mut String) -> Result<()> {
    let (sign, unsigned) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let zero = unsigned.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    let sign = if zero { "" } else { sign };
    out.push_str(sign);
    if exponent.is_empty() {
        out.push_str(unsigned);
        return Ok(());
    }
    let exponent = exponent
        .parse::<i64>()
        .ok()
        .filter(|exponent| exponent.abs() <= EXPONENT_MAX)
        .ok_or_else(|| Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format"))?;
    let (before, after) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = format!("{before}{after}");
    let point = before.len() as i64 + exponent;
    if point <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', point.unsigned_abs() as usize));
        out.push_str(&digits);
    } else {
        let point = point as usize;
        let whole = &digits[..point.min(digits.len())];
        let padded = format!("{whole}{}", "0".repeat(point.saturating_sub(digits.len())));
        let trimmed = padded.trim_start_matches('0');
        out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
        if point < digits.len() {
            out.push('.');
            out.push_str(&digits[point..]);
        }
    }
    Ok(())
}

fn syntax(detail: impl Into<String>) -> Error {
    Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json").detail(detail)
}

fn ended() -> Error {
    syntax("The input string ended unexpectedly.")
}

fn invalid_token(token: &str) -> Error {
    let end = token.char_indices().nth(TOKEN_CHARS_MAX).map_or(token.len(), |(end, _)| end);
    syntax(format!("Token \"{}\" is invalid.", &token[..end]))
}
