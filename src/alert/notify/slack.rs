//! Slack's incoming webhooks: a text with blocks.
//!
//! Options: `url`, the whole of which is a secret.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::guard::Guard;
use super::http::{self, Target};
use super::{Message, option, shown};
use crate::alert::lifecycle::Kind;
use crate::catalog::vault::Options;
use crate::error::Result;

/// Slack's limit of a header block is 150 characters, of a section's text 3000.
const HEADER_CHARS_MAX: usize = 150;
const TEXT_CHARS_MAX: usize = 2_900;

/// What may be shown.
pub fn check(options: &Options) -> Result<BTreeMap<String, String>> {
    Ok([("url".to_owned(), Target::parse(option(options, "url")?)?.shown())].into())
}

/// Posts a message.
pub async fn send(options: &Options, message: &Message, guard: &Guard) -> Result<()> {
    let target = Target::parse(option(options, "url")?)?;
    http::post(&target, guard, &[("idempotency-key", message.id.clone())], body(message).to_string()).await
}

fn body(message: &Message) -> Value {
    let sign = match message.kind {
        Kind::Firing | Kind::Reminder => ":red_circle:",
        Kind::Resolved => ":large_green_circle:",
        Kind::Correction => ":large_yellow_circle:",
        Kind::Test => ":bell:",
    };
    let title = message.title();
    let mut blocks =
        vec![json!({"type": "header", "text": {"type": "plain_text", "text": cut(&format!("{sign} {title}"), HEADER_CHARS_MAX)}})];
    let lines = message.lines();
    if !lines.is_empty() {
        let text = cut(&escaped(&lines.join("\n")), TEXT_CHARS_MAX);
        blocks.push(json!({"type": "section", "text": {"type": "mrkdwn", "text": text}}));
    }
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": format!("{}, {}", shown(message.at), message.id)}]}));
    json!({"text": cut(&escaped(&title), TEXT_CHARS_MAX), "blocks": blocks})
}

/// Slack's three control characters.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..text[..end].char_indices().next_back().map_or(0, |(last, _)| last)]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_blocks() {
        let values = serde_json::from_str(r#"{"order_count": 3, "page": "<a & b>"}"#).unwrap();
        let instance = serde_json::from_str(r#"{"store_id": "s1"}"#).unwrap();
        let message = Message {
            id: "i".to_owned(),
            kind: Kind::Firing,
            alert: "order_drop".to_owned(),
            instance,
            at: 0,
            window: Some(0),
            values,
            told: None,
            reason: None,
        };
        let body = body(&message);
        assert_eq!(body["text"], "order_drop fires: store_id = s1");
        assert_eq!(body["blocks"][1]["text"]["text"], "order_count = 3\npage = &lt;a &amp; b&gt;\nwindow of 1970-01-01T00:00:00Z");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
