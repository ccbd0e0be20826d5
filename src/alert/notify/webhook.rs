//! JSON by HTTP POST.
//!
//! Options: `url`; `secret`, with which each message is signed: header `X-Verus-Signature: sha256=` and the HMAC-SHA256 of the body in
//! hexadecimal digits. Header `Idempotency-Key` is the message's `id`, the same whenever it is sent again.

use std::collections::BTreeMap;
use std::fmt::Write;

use ring::hmac;

use super::guard::Guard;
use super::http::{self, Target};
use super::{Message, option};
use crate::catalog::vault::Options;
use crate::error::Result;

/// What may be shown.
pub fn check(options: &Options) -> Result<BTreeMap<String, String>> {
    let mut shown: BTreeMap<_, _> = [("url".to_owned(), Target::parse(option(options, "url")?)?.shown())].into();
    if options.contains_key("secret") {
        shown.insert("secret".to_owned(), "...".to_owned());
    }
    Ok(shown)
}

/// Posts a message.
pub async fn send(options: &Options, message: &Message, guard: &Guard) -> Result<()> {
    let target = Target::parse(option(options, "url")?)?;
    let body = message.json().to_string();
    let mut headers = vec![("idempotency-key", message.id.clone())];
    headers.extend(options.get("secret").map(|secret| ("x-verus-signature", signature(secret, &body))));
    http::post(&target, guard, &headers, body).await
}

fn signature(secret: &str, body: &str) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
    tag.as_ref().iter().fold("sha256=".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature("Jefe", "what do ya want for nothing?"), expected);
    }

    #[test]
    fn nothing_secret_is_shown() {
        let options: Options = [("url", "https://shop.example/hook?token=abc"), ("secret", "s3cret")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let shown = check(&options).unwrap();
        assert_eq!(shown["url"], "https://shop.example/...");
        assert!(!format!("{shown:?}").contains("s3cret"));
        for bad in ["ftp://x/", "nonsense", "http:///x", "https://user:pass@host/"] {
            let options: Options = [("url".to_owned(), bad.to_owned())].into();
            assert!(!check(&options).unwrap_err().to_string().contains(bad));
        }
    }
}
