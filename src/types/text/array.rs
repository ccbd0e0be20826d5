//! Array literals: `{a,"b c",NULL}`.

use crate::error::{Error, Result, SqlState};
use crate::types::text::number::is_space;

/// Calls `element` with each element of a one-dimensional array literal, none for NULL. Text without escapes comes as it
/// stands; elements of an inner array come as its literal, braces included.
pub fn elements(text: &str, mut element: impl FnMut(Option<&str>) -> Result<()>) -> Result<()> {
    let malformed =
        |detail: &str| Error::new(SqlState::INVALID_TEXT_REPRESENTATION, format!("malformed array literal: \"{text}\"")).detail(detail);
    let trimmed = text.trim_matches(is_space);
    if trimmed.starts_with('[') {
        return Err(Error::unsupported("array literals with explicit dimensions are not supported"));
    }
    let Some(inner) = trimmed.strip_prefix('{') else {
        return Err(malformed("Array value must start with \"{\" or dimension information."));
    };
    let mut rest = inner.trim_start_matches(is_space);
    if let Some(after) = rest.strip_prefix('}') {
        return if after.is_empty() { Ok(()) } else { Err(malformed("Junk after closing right brace.")) };
    }
    loop {
        rest = rest.trim_start_matches(is_space);
        let item = Item::read(rest).ok_or_else(|| malformed("Unexpected end of input."))?;
        if item.text.is_empty() && !item.quoted {
            return Err(malformed(&format!("Unexpected \"{}\" character.", &item.rest[..1])));
        }
        let null = !item.quoted && item.text.eq_ignore_ascii_case("null");
        element(if null { None } else { Some(&item.text) })?;
        rest = item.rest.trim_start_matches(is_space);
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if let Some(after) = rest.strip_prefix('}') {
            return if after.is_empty() { Ok(()) } else { Err(malformed("Junk after closing right brace.")) };
        } else {
            return Err(malformed("Unexpected array element."));
        }
    }
}

struct Item<'a> {
    text: std::borrow::Cow<'a, str>,
    quoted: bool,
    /// From the delimiter on; never empty.
    rest: &'a str,
}

impl<'a> Item<'a> {
    fn read(text: &'a str) -> Option<Item<'a>> {
        match text.chars().next()? {
            '"' => Self::quoted(text),
            '{' => Self::inner(text),
            _ => Self::plain(text),
        }
    }

    fn quoted(text: &'a str) -> Option<Item<'a>> {
        let mut content = String::new();
        let mut characters = text.char_indices().skip(1);
        loop {
            match characters.next()? {
                (at, '"') => {
                    let rest = &text[at + 1..];
                    return (!rest.is_empty()).then_some(Item { text: content.into(), quoted: true, rest });
                }
                (_, '\\') => content.push(characters.next()?.1),
                (_, character) => content.push(character),
            }
        }
    }

    fn plain(text: &'a str) -> Option<Item<'a>> {
        let end = text.find([',', '}', '{', '"', '\\'])?;
        if !text[end..].starts_with('\\') {
            return Some(Item { text: text[..end].trim_end_matches(is_space).into(), quoted: false, rest: &text[end..] });
        }
        let mut content = String::new();
        let mut characters = text.char_indices();
        loop {
            match characters.next()? {
                (at, ',' | '}' | '{' | '"') => return Some(Item { text: content.into(), quoted: true, rest: &text[at..] }),
                (_, '\\') => content.push(characters.next()?.1),
                (_, character) => content.push(character),
            }
        }
    }

    /// A whole inner array.
    fn inner(text: &'a str) -> Option<Item<'a>> {
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        for (at, character) in text.char_indices() {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                '{' if !quoted => depth += 1,
                '}' if !quoted => {
                    depth -= 1;
                    if depth == 0 {
                        let rest = &text[at + 1..];
                        return (!rest.is_empty()).then_some(Item { text: text[..=at].into(), quoted: true, rest });
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Appends an element as it stands in an array literal: quoted where its text would be misread.
pub fn write_element(text: &[u8], out: &mut Vec<u8>) {
    let special = |byte: &u8| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(special) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}
