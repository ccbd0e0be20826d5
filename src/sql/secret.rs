//! Statement texts as others may see them: without the secrets of notification channels.
//!
//! *Place*: what `verus.sessions` and pg_stat_activity show of a running statement passes here. What is not about channels is left as it
//! is, without a copy.

use std::sync::Arc;

/// The text up to its first value, where it is about notification channels: a value may be a string of any form, or a word.
pub fn masked(text: &Arc<str>) -> Arc<str> {
    match text.find(['\'', '$', '=']).filter(|_| mentions_channels(text)) {
        Some(end) => Arc::from(format!("{}...", &text[..end])),
        None => Arc::clone(text),
    }
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
                "create Notification channel c type webhook with (url ...",
            ),
            ("CREATE NOTIFICATION CHANNEL \"a'b\" TYPE slack WITH (url = 'open", "CREATE NOTIFICATION CHANNEL \"a..."),
            ("CREATE NOTIFICATION CHANNEL c WITH (secret=word)", "CREATE NOTIFICATION CHANNEL c WITH (secret..."),
            ("/* don't */ CREATE NOTIFICATION CHANNEL c WITH (url = 'x')", "/* don..."),
            ("TEST NOTIFICATION CHANNEL c", "TEST NOTIFICATION CHANNEL c"),
        ] {
            assert_eq!(&*masked(&Arc::from(text)), expected);
        }
    }
}
