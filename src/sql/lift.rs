//! A query's text without the strings that a dashboard changes: `WHERE store_id = 'a'` and `WHERE store_id = 'b'` are one text.
//!
//! *Place*: `session::prepared` keeps plans by it. A string is lifted only where it is compared with a column and nothing else is done
//! to it, so that as a parameter it has the column's type as it has as a literal; whether that is so is checked on the plan.

/// A text with `$n` in place of strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifted {
    /// The text.
    pub text: String,
    /// What `$1`, `$2`, ... stand for.
    pub values: Vec<String>,
}

/// Most strings of a text.
const VALUES_MAX: usize = 64;

/// What a token is, as far as lifting asks.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// An unquoted or quoted name or a keyword.
    Word,
    Comparison,
    Other,
}

/// Lifts the strings of a query; none where the text has what is not looked through here (comments, parameters, escape strings,
/// several statements).
pub fn lift(text: &str) -> Option<Lifted> {
    let bytes = text.as_bytes();
    let begins = |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    if !begins("select") && !begins("with") {
        return None;
    }
    let mut lifted = Lifted { text: String::with_capacity(text.len()), values: Vec::new() };
    let (mut at, mut copied) = (0, 0);
    let mut before = [Kind::Other, Kind::Other];
    while let Some(byte) = bytes.get(at) {
        let (kind, end) = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            b'$' | b'\\' => return None,
            // The steps of an operator are named by their text.
            b':' if bytes.get(at + 1) == Some(&b'=') => return None,
            b'=' if bytes.get(at + 1) == Some(&b'>') => return None,
            b'-' if bytes.get(at + 1) == Some(&b'-') => return None,
            b'/' if bytes.get(at + 1) == Some(&b'*') => return None,
            b';' if !text[at + 1..].trim().is_empty() => return None,
            b'"' => (Kind::Word, quoted(bytes, at)?),
            b'\'' => {
                let end = quoted(bytes, at)?;
                // E'...', B'...', U&'...' are read otherwise.
                if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'&' || bytes[at - 1] == b'_') {
                    return None;
                }
                if before == [Kind::Word, Kind::Comparison] && ends_comparison(&text[end..]) && lifted.values.len() < VALUES_MAX {
                    lifted.text.push_str(&text[copied..at]);
                    lifted.values.push(text[at + 1..end - 1].replace("''", "'"));
                    lifted.text.push('$');
                    lifted.text.push_str(&lifted.values.len().to_string());
                    copied = end;
                }
                (Kind::Other, end)
            }
            b'=' | b'<' | b'>' | b'!' => (Kind::Comparison, end_of(bytes, at, |byte| matches!(byte, b'=' | b'<' | b'>' | b'!'))),
            byte if byte.is_ascii_alphabetic() || *byte == b'_' || *byte >= 0x80 => {
                (Kind::Word, end_of(bytes, at, |byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte >= 0x80))
            }
            byte if byte.is_ascii_digit() => (Kind::Other, end_of(bytes, at, |byte| byte.is_ascii_alphanumeric() || byte == b'.')),
            _ => (Kind::Other, at + 1),
        };
        // Other operators next to a comparison are operators of their own: `@>`, `->`, `=~`.
        let operator = kind == Kind::Comparison
            && !(matches!(&text[at..end], "=" | "<>" | "!=" | "<" | ">" | "<=" | ">=")
                && bytes.get(end).is_none_or(|next| !is_operator(*next))
                && at.checked_sub(1).is_none_or(|before| !is_operator(bytes[before])));
        before = [before[1], if operator { Kind::Other } else { kind }];
        at = end;
    }
    lifted.text.push_str(&text[copied..]);
    Some(lifted)
}

fn is_operator(byte: u8) -> bool {
    b"+-*/<>=~!@#%^&|`?".contains(&byte)
}

fn end_of(bytes: &[u8], from: usize, part: impl Fn(u8) -> bool) -> usize {
    bytes[from..].iter().position(|byte| !part(*byte)).map_or(bytes.len(), |length| from + length)
}

/// The byte after a quoted name or string, in which a doubled quote stands for itself.
fn quoted(bytes: &[u8], from: usize) -> Option<usize> {
    let quote = bytes[from];
    let mut at = from + 1;
    loop {
        at += bytes[at..].iter().position(|byte| *byte == quote)?;
        if bytes.get(at + 1) != Some(&quote) {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Whether nothing but the end of the comparison follows.
fn ends_comparison(rest: &str) -> bool {
    let rest = rest.trim_start();
    let Some(first) = rest.chars().next() else { return true };
    let word = rest.split(|character: char| !character.is_ascii_alphanumeric() && character != '_').next().unwrap_or_default();
    matches!(first, ';' | ')' | ',')
        || ["and", "or", "group", "order", "limit", "having", "offset", "window", "union", "then"]
            .iter()
            .any(|next| word.eq_ignore_ascii_case(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(&str, &[&str])>) {
        let expected = expected
            .map(|(text, values)| Lifted { text: text.to_owned(), values: values.iter().map(|value| (*value).to_owned()).collect() });
        assert_eq!(lift(text), expected, "{text}");
    }

    #[test]
    fn compared_strings_are_lifted() {
        check("SELECT 1 FROM t WHERE a = 'x'", Some(("SELECT 1 FROM t WHERE a = $1", &["x"])));
        check(
            "select sum(x) from t where t.a='it''s' and \"b\" >= '2024-01-01' group by 1;",
            Some(("select sum(x) from t where t.a=$1 and \"b\" >= $2 group by 1;", &["it's", "2024-01-01"])),
        );
    }

    #[test]
    fn anything_else_stays() {
        for text in [
            "SELECT 'x'",
            "SELECT 1 FROM t WHERE a = 'x' || b",
            "SELECT 1 FROM t WHERE a = 'x'::date",
            "SELECT 1 FROM t WHERE a + 1 = 'x'",
            "SELECT 1 FROM t WHERE f(a) = 'x'",
            "SELECT 1 FROM t WHERE a @> 'x'",
            "SELECT 1 FROM t WHERE at > now() - interval '1 day'",
            "SELECT date_trunc('day', at) FROM t",
        ] {
            check(text, Some((text, &[])));
        }
    }

    #[test]
    fn what_is_not_looked_through_is_left() {
        for text in [
            "SELECT 1 FROM t WHERE a = E'x'",
            "SELECT 1 FROM t WHERE a = 'x' -- c",
            "SELECT 1 FROM t WHERE a = 'x' AND b = $1",
            "SELECT 1 FROM t WHERE a = 'x'; SELECT 2",
            "INSERT INTO t SELECT 1 WHERE a = 'x'",
            "SELECT 1 FROM t WHERE a = 'x",
        ] {
            check(text, None);
        }
    }
}
