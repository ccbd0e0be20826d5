//! What can be told from a user agent, an address of a page, and where its reader came from. `docs/ingestion.md` has the rules as tables.
//!
//! *Place*: called by name, above all in the defaults of `sql/commerce.sql`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;

use super::text::strings;
use super::{Function, Typed, is_text, undefined};
use crate::config::ClientAddresses;
use crate::error::Error;

/// The functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let functions = [
        Function::new("device_type", |types| texts::<1>("device_type", types), |args, _| rows(args, |row| device(row[0]?).map(Cow::from))),
        Function::new("url_host", |types| texts::<1>("url_host", types), |args, _| rows(args, |row| host(row[0]?).map(Cow::from))),
        Function::new("url_parameter", |types| texts::<2>("url_parameter", types), |args, _| rows(args, |row| parameter(row[0]?, row[1]?))),
        Function::new("source_of", |types| texts::<2>("source_of", types), |args, _| rows(args, |row| Some(origin(row[0], row[1])?.0))),
        Function::new("medium_of", |types| texts::<2>("medium_of", types), |args, _| rows(args, |row| Some(origin(row[0], row[1])?.1))),
        Function::new(
            "campaign_of",
            |types| texts::<1>("campaign_of", types),
            |args, _| rows(args, |row| parameter(row[0]?, "utm_campaign")),
        ),
        Function::new(
            "truncate_ip",
            |types| texts::<1>("truncate_ip", types),
            |args, _| {
                rows(args, |row| {
                    let address: IpAddr = row[0]?.trim().parse().ok()?;
                    Some(ClientAddresses::Truncate.kept(address)?.to_string().into())
                })
            },
        ),
    ];
    functions.into_iter().map(Function::udf).collect()
}

/// `N` texts give a text.
pub(super) fn texts<const N: usize>(name: &str, types: &[DataType]) -> Result<Typed, Error> {
    match types.len() == N && types.iter().all(|each| is_text(each) || each.is_null()) {
        true => Ok((vec![DataType::Utf8View; N], DataType::Utf8View)),
        false => Err(undefined(name, types)),
    }
}

/// A text, or NULL, for each row.
pub(super) fn rows(args: &[ArrayRef], mut of: impl for<'a> FnMut(&[Option<&'a str>]) -> Option<Cow<'a, str>>) -> Result<ArrayRef, Error> {
    let columns = args.iter().map(strings).collect::<Result<Vec<_>, _>>()?;
    let length = columns.first().map_or(0, |column| column.len());
    let mut built = StringViewBuilder::with_capacity(length);
    let mut row = Vec::with_capacity(columns.len());
    for index in 0..length {
        row.clear();
        row.extend(columns.iter().map(|column| (!column.is_null(index)).then(|| column.value(index))));
        built.append_option(of(&row));
    }
    Ok(Arc::new(built.finish()))
}

/// `bot`, `tablet`, `mobile`, `desktop`; none for a program that is no browser.
fn device(user_agent: &str) -> Option<&'static str> {
    const BOTS: [&str; 8] = ["bot", "crawler", "spider", "slurp", "headless", "preview", "lighthouse", "facebookexternalhit"];
    const TABLETS: [&str; 6] = ["ipad", "tablet", "kindle", "silk/", "playbook", "sm-t"];
    const MOBILES: [&str; 7] = ["mobi", "iphone", "ipod", "android", "windows phone", "blackberry", "opera mini"];
    const DESKTOPS: [&str; 6] = ["windows nt", "macintosh", "x11", "cros ", "linux", "mac os x"];
    let lower = user_agent.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&BOTS) {
        Some("bot")
    } else if has(&TABLETS) || (lower.contains("android") && !lower.contains("mobi")) {
        Some("tablet")
    } else if has(&MOBILES) {
        Some("mobile")
    } else if has(&DESKTOPS) {
        Some("desktop")
    } else {
        None
    }
}

/// The host of an address, in lower case and without `www.`; none for a path.
fn host(url: &str) -> Option<String> {
    let url = url.trim();
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest,
        None => url.strip_prefix("//").unwrap_or(url),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(host, _)| host);
    let host = host.to_ascii_lowercase();
    let host = host.strip_prefix("www.").unwrap_or(&host);
    // A word without a dot is no host that one can come from.
    (host.contains('.') && !host.contains(char::is_whitespace)).then(|| host.to_owned())
}

/// A parameter of an address, decoded; none where it is missing or empty.
fn parameter<'a>(url: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = url.split_once('?')?;
    let query = query.split('#').next().unwrap_or_default();
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (decoded(key) == name && !value.is_empty()).then(|| decoded(value))
    })
}

/// Percent-decoded; what is no UTF-8 then stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let number =
            behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, number) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &behind[2..];
                continue;
            }
            _ => bytes.push(*first),
        }
        rest = behind;
    }
    match String::from_utf8(bytes) {
        Ok(decoded) if !decoded.contains('\0') => Cow::Owned(decoded),
        _ => Cow::Borrowed(text),
    }
}

/// Hosts that stand for a source, each with all its subdomains and, where it ends in a dot, all its endings.
const SOURCES: [(&str, &str, &str); 38] = [
    ("mail.google.com", "gmail", "email"),
    ("mail.yahoo.com", "yahoo", "email"),
    ("outlook.live.com", "outlook", "email"),
    ("outlook.office.com", "outlook", "email"),
    ("google.", "google", "organic"),
    ("bing.com", "bing", "organic"),
    ("duckduckgo.com", "duckduckgo", "organic"),
    ("yahoo.", "yahoo", "organic"),
    ("yandex.", "yandex", "organic"),
    ("baidu.com", "baidu", "organic"),
    ("ecosia.org", "ecosia", "organic"),
    ("qwant.com", "qwant", "organic"),
    ("startpage.com", "startpage", "organic"),
    ("search.brave.com", "brave", "organic"),
    ("naver.com", "naver", "organic"),
    ("seznam.cz", "seznam", "organic"),
    ("facebook.com", "facebook", "social"),
    ("fb.com", "facebook", "social"),
    ("instagram.com", "instagram", "social"),
    ("threads.net", "threads", "social"),
    ("twitter.com", "twitter", "social"),
    ("x.com", "twitter", "social"),
    ("t.co", "twitter", "social"),
    ("linkedin.com", "linkedin", "social"),
    ("lnkd.in", "linkedin", "social"),
    ("pinterest.", "pinterest", "social"),
    ("tiktok.com", "tiktok", "social"),
    ("reddit.com", "reddit", "social"),
    ("youtube.com", "youtube", "social"),
    ("youtu.be", "youtube", "social"),
    ("snapchat.com", "snapchat", "social"),
    ("whatsapp.com", "whatsapp", "social"),
    ("wa.me", "whatsapp", "social"),
    ("t.me", "telegram", "social"),
    ("vk.com", "vk", "social"),
    ("chatgpt.com", "chatgpt", "referral"),
    ("perplexity.ai", "perplexity", "referral"),
    ("claude.ai", "claude", "referral"),
];

/// Parameters that advertisers' links carry.
const CLICKS: [(&str, &str, &str); 5] = [
    ("gclid", "google", "cpc"),
    ("msclkid", "bing", "cpc"),
    ("fbclid", "facebook", "social"),
    ("ttclid", "tiktok", "cpc"),
    ("li_fat_id", "linkedin", "cpc"),
];

/// Source and medium: what the page's address says (`utm_source`, then an advertiser's click), else where its reader came from. None for who
/// came directly, and from a page of the same host.
fn origin<'a>(page: Option<&'a str>, referrer: Option<&'a str>) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
    let by_page = |name: &str| page.and_then(|page| parameter(page, name));
    let came_from = || {
        let from = host(referrer?)?;
        if page.and_then(host).is_some_and(|own| own == from) {
            return None;
        }
        let known = SOURCES.iter().find(|(pattern, ..)| is_of(&from, pattern));
        Some(match known {
            Some((_, source, medium)) => (Cow::Borrowed(*source), Cow::Borrowed(*medium)),
            None => (Cow::Owned(from), Cow::Borrowed("referral")),
        })
    };
    if let Some(source) = by_page("utm_source") {
        let medium = by_page("utm_medium").or_else(|| came_from().filter(|(from, _)| *from == source).map(|(_, medium)| medium));
        return Some((source, medium.unwrap_or(Cow::Borrowed("(none)"))));
    }
    if let Some((_, source, medium)) = CLICKS.iter().find(|(click, ..)| by_page(click).is_some()) {
        return Some((Cow::Borrowed(source), Cow::Borrowed(medium)));
    }
    came_from()
}

fn is_of(host: &str, pattern: &str) -> bool {
    if let Some(stem) = pattern.strip_suffix('.') {
        return host.split('.').rev().skip(1).any(|label| label == stem);
    }
    host == pattern || host.strip_suffix(pattern).is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        for (user_agent, expected) in [
            ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1", Some("mobile")),
            ("Mozilla/5.0 (iPad; CPU OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148", Some("tablet")),
            ("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/123.0 Mobile Safari/537.36", Some("mobile")),
            ("Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 Chrome/123.0 Safari/537.36", Some("tablet")),
            ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/123.0 Safari/537.36", Some("desktop")),
            ("Mozilla/5.0 (Macintosh; Intel Mac OS X 14_4) AppleWebKit/605.1.15 Version/17.4 Safari/605.1.15", Some("desktop")),
            ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", Some("bot")),
            ("curl/8.5.0", None),
            ("analytics-python/2.3.2", None),
            ("", None),
        ] {
            assert_eq!(device(user_agent), expected, "{user_agent}");
        }
    }

    #[test]
    fn hosts_and_parameters() {
        for (url, expected) in [
            ("https://www.Google.com:443/search?q=a", Some("google.com")),
            ("http://user:secret@shop.example/x", Some("shop.example")),
            ("//cdn.example#x", Some("cdn.example")),
            ("news.example/page", Some("news.example")),
            ("/products?x=1.5", None),
            ("google", None),
            ("", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
        let url = "https://shop.example/p?a=1&utm_source=news%20letter&b=x+y&c=&bad=%zz%ff#utm_medium=no";
        assert_eq!(parameter(url, "utm_source").as_deref(), Some("news letter"));
        assert_eq!(parameter(url, "b").as_deref(), Some("x y"));
        assert_eq!(parameter(url, "bad").as_deref(), Some("%zz%ff"));
        assert_eq!((parameter(url, "c"), parameter(url, "utm_medium"), parameter("x", "a")), (None, None, None));
    }

    #[test]
    fn sources_and_media() {
        for (page, referrer, expected) in [
            ("https://shop.example/?utm_source=news&utm_medium=email", "https://google.com", Some(("news", "email"))),
            ("https://shop.example/?utm_source=google", "https://www.google.de/", Some(("google", "organic"))),
            ("https://shop.example/?utm_source=flyer", "", Some(("flyer", "(none)"))),
            ("https://shop.example/?gclid=abc", "https://www.google.com/", Some(("google", "cpc"))),
            ("/products", "https://www.google.co.uk/", Some(("google", "organic"))),
            ("/products", "https://mail.google.com/mail", Some(("gmail", "email"))),
            ("/products", "https://l.instagram.com/?u=x", Some(("instagram", "social"))),
            ("/products", "https://t.co/abc", Some(("twitter", "social"))),
            ("/products", "https://blog.example/post", Some(("blog.example", "referral"))),
            ("https://shop.example/a", "https://shop.example/b", None),
            ("https://shop.example/a", "", None),
            ("/a", "direct", None),
        ] {
            let found = origin(Some(page), Some(referrer));
            let found = found.as_ref().map(|(source, medium)| (source.as_ref(), medium.as_ref()));
            assert_eq!(found, expected, "{page} {referrer}");
        }
    }
}
