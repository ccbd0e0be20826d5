//! Parts of a JSON text by their place, without building a tree: numbers keep their digits, `json` keeps its spaces.
//!
//! *Invariant*: a walk over checked text fails nowhere; over any other it ends in 22P02, never in a panic.

use std::borrow::Cow;

use crate::error::{Error, SqlState};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are JSON's own names")]
pub enum Kind {
    Object,
    Array,
    String,
    Number,
    Boolean,
    Null,
}

impl Kind {
    /// As `jsonb_typeof` names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
            Kind::Null => "null",
        }
    }
}

/// `invalid input syntax for type json`.
pub fn invalid() -> Error {
    Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json")
}

/// The kind of a value by its first character.
pub fn kind(text: &str) -> Result<Kind, Error> {
    Ok(match text.trim_start_matches(SPACE).as_bytes().first() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'n') => Kind::Null,
        Some(b'-' | b'0'..=b'9') => Kind::Number,
        _ => return Err(invalid()),
    })
}

const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The members of an object, or the items of an array (with an empty key), in the text's order.
#[derive(Debug)]
pub struct Parts<'a> {
    text: &'a str,
    at: usize,
    object: bool,
    done: bool,
}

/// The parts of an object or array; none of a scalar.
pub fn parts(text: &str) -> Result<Parts<'_>, Error> {
    let text = text.trim_matches(SPACE);
    let kind = kind(text)?;
    let nested = matches!(kind, Kind::Object | Kind::Array);
    let mut parts = Parts { text, at: 1, object: kind == Kind::Object, done: !nested };
    if nested {
        parts.space();
        parts.done = matches!(parts.peek(), Some(b'}' | b']'));
    }
    Ok(parts)
}

impl<'a> Parts<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<&'a str, Error> {
        self.space();
        let from = self.at;
        self.at = end_of_value(self.text, from)?;
        Ok(&self.text[from..self.at])
    }

    fn part(&mut self) -> Result<(Cow<'a, str>, &'a str), Error> {
        let mut key = Cow::Borrowed("");
        if self.object {
            key = string(self.value()?)?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(invalid());
            }
            self.at += 1;
        }
        let value = self.value()?;
        self.space();
        match self.peek() {
            Some(b',') => self.at += 1,
            Some(b'}' | b']') => self.done = true,
            _ => return Err(invalid()),
        }
        Ok((key, value))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(Cow<'a, str>, &'a str), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let part = self.part();
        self.done |= part.is_err();
        Some(part)
    }
}

/// Where the value that starts at `from` ends.
fn end_of_value(text: &str, from: usize) -> Result<usize, Error> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut at = from;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at).ok_or_else(invalid)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
            _ => at += 1,
        }
        if depth == 0 && matches!(bytes[at - 1], b'"' | b'}' | b']') {
            break;
        }
    }
    if at == from || depth > 0 { Err(invalid()) } else { Ok(at) }
}

fn end_of_string(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// What a JSON string says.
pub fn string(text: &str) -> Result<Cow<'_, str>, Error> {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(invalid)?;
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(text).map(Cow::Owned).map_err(|_| invalid())
}

/// A value as text: strings without their quotes, none for null.
pub fn as_text(value: &str) -> Result<Option<Cow<'_, str>>, Error> {
    Ok(match kind(value)? {
        Kind::Null => None,
        Kind::String => Some(string(value)?),
        _ => Some(Cow::Borrowed(value)),
    })
}

/// The member of a name; the last where a `json` has several.
pub fn member<'a>(document: &'a str, name: &str) -> Result<Option<&'a str>, Error> {
    if kind(document)? != Kind::Object {
        return Ok(None);
    }
    let mut found = None;
    for part in parts(document)? {
        let (key, value) = part?;
        if key == name {
            found = Some(value);
        }
    }
    Ok(found)
}

/// The item of an index, from the end where it is negative.
pub fn item(document: &str, index: i64) -> Result<Option<&str>, Error> {
    if kind(document)? != Kind::Array {
        return Ok(None);
    }
    let from_front = match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => parts(document)?.count().checked_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    match from_front.and_then(|index| parts(document).ok()?.nth(index)) {
        Some(part) => Ok(Some(part?.1)),
        None => Ok(None),
    }
}

/// The value at the end of a path of names and indexes.
pub fn path<'a>(document: &'a str, steps: &[Cow<'_, str>]) -> Result<Option<&'a str>, Error> {
    let mut value = document.trim_matches(SPACE);
    for step in steps {
        let next = match kind(value)? {
            Kind::Object => member(value, step)?,
            Kind::Array => match step.trim().parse() {
                Ok(index) => item(value, index)?,
                Err(_) => None,
            },
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

/// Appends a JSON string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if (control as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#" {"a": {"b": [1.50, "x\"y", null]}, "c" : true, "a2":{}, "e": []} "#;

    fn at(steps: &[&str]) -> Option<&'static str> {
        let steps: Vec<_> = steps.iter().map(|step| Cow::Borrowed(*step)).collect();
        path(DOCUMENT, &steps).unwrap()
    }

    #[test]
    fn parts_are_slices() {
        assert_eq!(at(&["a", "b", "0"]), Some("1.50"));
        assert_eq!(at(&["a", "b", "-2"]), Some(r#""x\"y""#));
        assert_eq!(at(&["a", "b", "2"]), Some("null"));
        assert_eq!(at(&["a", "b", "3"]), None);
        assert_eq!(at(&["c"]), Some("true"));
        assert_eq!(at(&["a2"]), Some("{}"));
        assert_eq!(at(&["e", "0"]), None);
        assert_eq!(as_text(at(&["a", "b", "1"]).unwrap()).unwrap().unwrap(), "x\"y");
    }

    #[test]
    fn damaged_text_is_an_error() {
        for text in ["{\"a\"", "[1,", "{\"a\" 1}", "[\"x", "", "{1:2", "\\"] {
            let walked = parts(text).and_then(|parts| parts.collect::<Result<Vec<_>, _>>());
            assert!(walked.is_err() || walked.unwrap().is_empty(), "{text}");
        }
    }
}
