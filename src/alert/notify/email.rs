//! Mail by SMTP (RFC 5321).
//!
//! Options: `smtp`, `smtp://[user:password@]host[:port]` with STARTTLS where the server has it, or `smtps://...` with TLS from the start;
//! `to`, addresses separated by commas; `from`. A password goes only over TLS (RFC 4954, AUTH PLAIN).
//!
//! *Invariants*: (1) addresses and subjects hold no line ends, so that nobody adds headers or commands; (2) the message's `id` is its
//! Message-ID, so that mailboxes know one that comes again; (3) as for HTTP: the address has passed the guard, and all of it takes at
//! most [`http::WITHIN`].

use std::collections::BTreeMap;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use super::guard::Guard;
use super::{Message, http, invalid, option};
use crate::catalog::vault::Options;
use crate::error::{Error, Result};

const FROM_DEFAULT: &str = "verus@localhost";
const LINE_BYTES_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 50;

/// Where mail is handed in.
struct Relay {
    host: String,
    port: u16,
    tls: bool,
    login: Option<(String, String)>,
}

impl Relay {
    fn parse(url: &str) -> Result<Relay> {
        let bad =
            || invalid("invalid value for option \"smtp\"".to_owned()).hint("It is smtp://host:port or smtps://user:password@host:port.");
        let (tls, rest) = match (url.strip_prefix("smtps://"), url.strip_prefix("smtp://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(bad()),
        };
        let rest = rest.trim_end_matches('/');
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) = login.split_once(':').ok_or_else(bad)?;
                (Some((decoded(user).ok_or_else(bad)?, decoded(password).ok_or_else(bad)?)), place)
            }
            None => (None, rest),
        };
        let authority: hyper::http::uri::Authority = place.parse().map_err(|_| bad())?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || place.contains('/') {
            return Err(bad());
        }
        Ok(Relay { host, port: authority.port_u16().unwrap_or(if tls { 465 } else { 587 }), tls, login })
    }
}

/// `%40` and its like.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// What may be shown: all but the login.
pub fn check(options: &Options) -> Result<BTreeMap<String, String>> {
    let relay = Relay::parse(option(options, "smtp")?)?;
    addresses(option(options, "to")?, "to")?;
    let scheme = if relay.tls { "smtps" } else { "smtp" };
    let mut shown: BTreeMap<_, _> =
        [("smtp".to_owned(), format!("{scheme}://{}:{}", relay.host, relay.port)), ("to".to_owned(), option(options, "to")?.to_owned())]
            .into();
    if let Some(from) = options.get("from") {
        addresses(from, "from")?;
        shown.insert("from".to_owned(), from.clone());
    }
    Ok(shown)
}

/// Addresses without names: `user@host`.
fn addresses<'a>(list: &'a str, option: &str) -> Result<Vec<&'a str>> {
    let all: Vec<&str> = list.split(',').map(str::trim).collect();
    let plain = |address: &&str| {
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | '(' | ')' | '"' | '\\' | ',' | ';' | ':');
        address.chars().all(allowed) && address.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
    };
    match all.iter().all(plain) && all.len() <= ADDRESSES_MAX {
        true => Ok(all),
        false => Err(invalid(format!("invalid value for option \"{option}\""))
            .detail("It is an address such as ops@shop.example, or several with commas.")),
    }
}

/// Sends a mail.
pub async fn send(options: &Options, message: &Message, guard: &Guard) -> Result<()> {
    let relay = Relay::parse(option(options, "smtp")?)?;
    let from = options.get("from").map_or(FROM_DEFAULT, String::as_str);
    let to = addresses(option(options, "to")?, "to")?;
    let text = compose(from, &to, message);
    let host = relay.host.clone();
    let work = async {
        let stream = http::connect(&relay.host, relay.port, guard).await?;
        if relay.tls {
            let mut dialogue = Dialogue::new(http::secure(&relay.host, stream).await?);
            dialogue.expect(220).await?;
            dialogue.hello().await?;
            return dialogue.deliver(relay.login.as_ref(), from, &to, &text).await;
        }
        let mut dialogue = Dialogue::new(stream);
        dialogue.expect(220).await?;
        if dialogue.hello().await?.iter().any(|line| line.eq_ignore_ascii_case("STARTTLS")) {
            dialogue.ask("STARTTLS", 220).await?;
            // What came before the handshake was not protected: it is dropped with the reader.
            let mut dialogue = Dialogue::new(http::secure(&relay.host, dialogue.stream.into_inner()).await?);
            dialogue.hello().await?;
            return dialogue.deliver(relay.login.as_ref(), from, &to, &text).await;
        }
        if relay.login.is_some() {
            return Err(http::failed(format!("\"{}\" offers no TLS, without which no password is sent", relay.host)));
        }
        dialogue.deliver(None, from, &to, &text).await
    };
    http::within(&host, work).await
}

/// The mail: headers, an empty line, the text in base64, which holds any line as it is.
fn compose(from: &str, to: &[&str], message: &Message) -> String {
    let date = chrono::DateTime::from_timestamp_micros(message.at).map(|at| at.to_rfc2822()).unwrap_or_default();
    let mut lines = vec![message.title()];
    lines.extend(message.lines());
    let text = base64(lines.join("\r\n").as_bytes());
    let text: Vec<&str> = text.as_bytes().chunks(76).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!(
        "From: <{from}>\r\nTo: {}\r\nSubject: =?UTF-8?B?{}?=\r\nDate: {date}\r\nMessage-ID: <{}@verus>\r\nMIME-Version: 1.0\r\n\
         Auto-Submitted: auto-generated\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
        to.iter().map(|address| format!("<{address}>")).collect::<Vec<_>>().join(", "),
        base64(subject(&message.title()).as_bytes()),
        message.id,
        text.join("\r\n")
    )
}

/// An encoded word has at most 75 characters: 45 bytes of text.
fn subject(title: &str) -> &str {
    let end = (0..=title.len().min(45)).rev().find(|end| title.is_char_boundary(*end)).unwrap_or(0);
    &title[..end]
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (u32::from(chunk[0]) << 16) | (u32::from(*chunk.get(1).unwrap_or(&0)) << 8) | u32::from(*chunk.get(2).unwrap_or(&0));
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            text.push(if shown { char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63]) } else { '=' });
        }
    }
    text
}

struct Dialogue<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<S> {
    fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// EHLO: the server's extensions.
    async fn hello(&mut self) -> Result<Vec<String>> {
        self.ask("EHLO verus", 250).await
    }

    async fn deliver(&mut self, login: Option<&(String, String)>, from: &str, to: &[&str], text: &str) -> Result<()> {
        if let Some((user, password)) = login {
            // Not even what the server answered is told: some repeat what was sent.
            let login = self.ask(&format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}").as_bytes())), 235).await;
            login.map_err(|_| http::failed("the mail server refused the login".to_owned()))?;
        }
        self.ask(&format!("MAIL FROM:<{from}>"), 250).await?;
        for address in to {
            self.ask(&format!("RCPT TO:<{address}>"), 250).await?;
        }
        self.ask("DATA", 354).await?;
        // No line of base64 or of the headers begins with a dot.
        self.ask(&format!("{text}."), 250).await?;
        // It is delivered: how the server parts does not matter.
        let _ = self.ask("QUIT", 221).await;
        Ok(())
    }

    async fn ask(&mut self, line: &str, code: u16) -> Result<Vec<String>> {
        let stream = self.stream.get_mut();
        stream.write_all(format!("{line}\r\n").as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        self.expect(code).await
    }

    /// The lines of an answer, without their code.
    async fn expect(&mut self, code: u16) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await?;
            let (found, rest) = line.split_at_checked(3).ok_or_else(|| http::failed("the mail server does not speak SMTP".to_owned()))?;
            let last = !rest.starts_with('-');
            lines.push(rest.get(1..).unwrap_or_default().trim().to_owned());
            if last && found.parse() == Ok(code) {
                return Ok(lines);
            }
            if last || lines.len() > 100 {
                return Err(http::failed(format!("the mail server answered {found}")).detail(lines.join(" ")));
            }
        }
    }

    async fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            let buffer = self.stream.fill_buf().await.map_err(broken)?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            bytes.extend_from_slice(&buffer[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned());
            }
            if taken == 0 || bytes.len() > LINE_BYTES_MAX {
                return Err(http::failed("the mail server ended the dialogue".to_owned()));
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "map_err gives values")]
fn broken(error: std::io::Error) -> Error {
    http::failed(format!("the dialogue with the mail server broke off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn addresses_add_no_commands() {
        assert_eq!(addresses("a@x.example, b@y.example", "to").unwrap(), ["a@x.example", "b@y.example"]);
        for bad in ["", "a", "a@b>\r\nDATA", "a b@c", "<a@b>", "@b", "a@"] {
            assert!(addresses(bad, "to").is_err(), "{bad}");
        }
        let relay = Relay::parse("smtps://me%40x:p%3Aw@mail.example").unwrap();
        assert_eq!((relay.host.as_str(), relay.port, relay.login), ("mail.example", 465, Some(("me@x".to_owned(), "p:w".to_owned()))));
        assert!(Relay::parse("http://x").is_err() && Relay::parse("smtp://").is_err() && Relay::parse("smtp://user@host").is_err());
    }
}
