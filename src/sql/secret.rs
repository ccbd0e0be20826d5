//! Statement texts as others may see them: without the secrets of notification channels.
//!
//! *Place*: what `verus.sessions` and pg_stat_activity show of a running statement passes here. What is not about channels is left as it
//! is, without a copy.

use std::sync::Arc;

/// The text, with `'...'` in place of every string, and of everything from an unfinished one on, where it is about notification channels.
pub fn masked(text: &Arc<str>) -> Arc<str> {
    if !mentions_channels(text) {
        return Arc::clone(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest: &str = text;
    while let Some(begin) = rest.find(['\'', '$', '"']) {
        let (before, quoted) = rest.split_at(begin);
        shown.push_str(before);
        // Names in quotes stay; a dollar may begin a string of any form.
        if let Some(name) = quoted.strip_prefix('"') {
            let end = name.find('"').map_or(quoted.len(), |end| end + 2);
            shown.push_str(&quoted[..end]);
            rest = &quoted[end..];
            continue;
        }
        shown.push_str("'...'");
        let Some(inner) = quoted.strip_prefix('\'') else { return Arc::from(shown) };
        // A backslash may stand before a quote, in a text that is read with escapes: more is hidden rather than less.
        let mut escaped = false;
        let end = inner.char_indices().find(|(_, letter)| {
            let ends = *letter == '\'' && !escaped;
            escaped = *letter == '\\' && !escaped;
            ends
        });
        match end {
            Some((end, _)) => rest = &inner[end + 1..],
            None => return Arc::from(shown),
        }
    }
    shown.push_str(rest);
    Arc::from(shown)
}

/// Whether the word NOTIFICATION stands in a text. Its rarest letter is looked for.
fn mentions_channels(text: &str) -> bool {
    const WORD: &[u8] = b"notification";
    const AT: usize = 4;
    let bytes = text.as_bytes();
    memchr::memchr2_iter(b'f', b'F', bytes).any(|found| {
        let word = found.checked_sub(AT).and_then(|begin| bytes.get(begin..begin + WORD.len()));
        word.is_some_and(|word| word.eq_ignore_ascii_case(WORD))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_channels_are_hidden() {
        for (text, expected) in [
            ("SELECT 'x' FROM t", "SELECT 'x' FROM t"),
            (
                "create Notification channel c type webhook with (url = 'https://x', secret = 's''t')",
                "create Notification channel c type webhook with (url = '...', secret = '...''...')",
            ),
            (
                "CREATE NOTIFICATION CHANNEL \"a'b\" TYPE slack WITH (url = 'open",
                "CREATE NOTIFICATION CHANNEL \"a'b\" TYPE slack WITH (url = '...'",
            ),
            ("CREATE NOTIFICATION CHANNEL c WITH (url = $$secret$$, x = 1)", "CREATE NOTIFICATION CHANNEL c WITH (url = '...'"),
            (
                r"CREATE NOTIFICATION CHANNEL c WITH (url = E'it\'s', x = 'y')",
                "CREATE NOTIFICATION CHANNEL c WITH (url = E'...', x = '...')",
            ),
        ] {
            assert_eq!(&*masked(&Arc::from(text)), expected);
        }
    }
}
