//! Statement texts as others may see them: without the secrets of notification channels and sources.
//!
//! *Place*: what `verus.sessions` and pg_stat_activity show of a running statement passes here. What is about neither is left as it
//! is, without a copy.

use std::sync::Arc;

/// The text up to its first value, where it is about notification channels or a source's password: a value may be a string of any form, or
/// a word.
pub fn masked(text: &Arc<str>) -> Arc<str> {
    match text.find(['\'', '$', '=']).filter(|_| mentions_secrets(text)) {
        Some(end) => Arc::from(format!("{}...", &text[..end])),
        None => Arc::clone(text),
    }
}

/// Whether the word NOTIFICATION stands in a text, or a PASSWORD of a SOURCE.
fn mentions_secrets(text: &str) -> bool {
    mentions(text, b"notification", 4) || (mentions(text, b"password", 4) && mentions(text, b"source", 3))
}

/// Whether a word in lower case stands in a text. Its rarest letter, which is `at` its beginning, is looked for.
fn mentions(text: &str, word: &[u8], at: usize) -> bool {
    let bytes = text.as_bytes();
    memchr::memchr2_iter(word[at], word[at].to_ascii_uppercase(), bytes).any(|found| {
        let there = found.checked_sub(at).and_then(|begin| bytes.get(begin..begin + word.len()));
        there.is_some_and(|there| there.eq_ignore_ascii_case(word))
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
                "create Notification channel c type webhook with (url ...",
            ),
            ("CREATE NOTIFICATION CHANNEL \"a'b\" TYPE slack WITH (url = 'open", "CREATE NOTIFICATION CHANNEL \"a..."),
            ("CREATE NOTIFICATION CHANNEL c WITH (secret=word)", "CREATE NOTIFICATION CHANNEL c WITH (secret..."),
            ("/* don't */ CREATE NOTIFICATION CHANNEL c WITH (url = 'x')", "/* don..."),
            ("TEST NOTIFICATION CHANNEL c", "TEST NOTIFICATION CHANNEL c"),
            ("ALTER SOURCE s SET (Password = 'x')", "ALTER SOURCE s SET (Password ..."),
            ("SELECT utm_source FROM t WHERE a = 'x'", "SELECT utm_source FROM t WHERE a = 'x'"),
        ] {
            assert_eq!(&*masked(&Arc::from(text)), expected);
        }
    }
}
