//! The options of `CREATE SOURCE ... FROM KAFKA (...)`.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::ScalarValue;
use tokio_rustls::rustls::ClientConfig;

use crate::config::Secret;
use crate::error::{Error, Result, SqlState};
use crate::kafka::api::At;
use crate::kafka::sasl::Mechanism;
use crate::kafka::{Address, Login, connection};
use crate::types::SqlType;
use crate::types::text::parse_scalar;
use crate::types::zone::Zone;

/// As errors list them.
const KNOWN: [&str; 10] = ["brokers", "format", "out_of_range", "password", "sasl", "start", "tls", "tls_ca", "topic", "username"];

/// What identifies what is read: not to be changed, because offsets would mean other messages.
const FIXED: [&str; 2] = ["start", "topic"];

/// Shown in place of what is secret.
const HIDDEN: &str = "...";

/// Characters of a topic's name (Kafka's rule).
const TOPIC_CHARS_MAX: usize = 249;

/// Brokers that may be named.
const BROKERS_MAX: usize = 32;

/// What to do where the broker does not have the next message any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfRange {
    /// Stop, with an error.
    Fail,
    /// Go on with the first message that there is.
    Earliest,
    /// Go on with the next message that comes.
    Latest,
}

/// The options, read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to begin to look for the topic's brokers.
    pub brokers: Vec<Address>,
    /// What is read.
    pub topic: String,
    /// From where, the first time.
    pub start: At,
    /// What becomes of lost messages.
    pub out_of_range: OutOfRange,
    /// TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// Login.
    pub login: Option<Login>,
}

/// Options as they were written, by name.
pub type Given = BTreeMap<String, String>;

/// Collects what was written. 42601 where an option stands twice.
pub fn collect(options: &[(String, String)]) -> Result<Given> {
    let mut given = Given::new();
    for (key, value) in options {
        if given.insert(key.clone(), value.clone()).is_some() {
            return Err(Error::syntax("conflicting or redundant options"));
        }
    }
    Ok(given)
}

/// Replaces some. 0A000 for one that cannot change.
pub fn altered(mut given: Given, changes: &[(String, String)]) -> Result<Given> {
    for (key, value) in collect(changes)? {
        if FIXED.contains(&key.as_str()) {
            return Err(Error::unsupported(format!("option \"{key}\" of a source cannot be changed"))
                .detail("The offsets that were read would stand for other messages.")
                .hint("CREATE another source."));
        }
        given.insert(key, value);
    }
    Ok(given)
}

/// What may be shown of them.
pub fn shown(given: &Given) -> BTreeMap<String, String> {
    let one = |(key, value): (&String, &String)| {
        let value = if key == "password" { HIDDEN } else { value };
        (key.clone(), value.to_owned())
    };
    given.iter().map(one).collect()
}

/// Reads them. 22023 for an unknown one, a bad value, and one that is missing.
pub fn read(given: &Given) -> Result<Options> {
    if let Some(key) = given.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(invalid(format!("unrecognized option \"{key}\"")).hint(format!("Known are {}.", KNOWN.join(", "))));
    }
    let get = |key: &str| given.get(key).map(String::as_str);
    let required = |key: &str| get(key).ok_or_else(|| invalid(format!("option \"{key}\" is missing")));
    let brokers = brokers(required("brokers")?)?;
    let topic = topic(required("topic")?)?;
    match get("format").unwrap_or("json").to_ascii_lowercase().as_str() {
        "json" => {}
        other => return Err(bad_value("format", other).hint("Known is json.")),
    }
    let out_of_range = match get("out_of_range").unwrap_or("fail").to_ascii_lowercase().as_str() {
        "fail" => OutOfRange::Fail,
        "earliest" => OutOfRange::Earliest,
        "latest" => OutOfRange::Latest,
        other => return Err(bad_value("out_of_range", other).hint("Known are fail, earliest and latest.")),
    };
    let start = start(get("start").unwrap_or("earliest"))?;
    let tls = match get("tls").unwrap_or("false").to_ascii_lowercase().as_str() {
        "true" | "on" => {
            let config = connection::tls(get("tls_ca"));
            Some(config.map_err(|reason| invalid(format!("invalid value for option \"tls_ca\": {reason}")))?)
        }
        "false" | "off" if get("tls_ca").is_some() => {
            return Err(invalid("option \"tls_ca\" needs option \"tls\"").hint("Add tls = true."));
        }
        "false" | "off" => None,
        other => return Err(bad_value("tls", other).hint("Known are true and false.")),
    };
    let login = login(get("sasl"), get("username"), get("password"))?;
    Ok(Options { brokers, topic, start, out_of_range, tls, login })
}

fn brokers(text: &str) -> Result<Vec<Address>> {
    let read = |part: &str| {
        Address::parse(part)
            .ok_or_else(|| bad_value("brokers", part.trim()).hint("Name one or several brokers as host:port, separated by commas."))
    };
    let brokers = text.split(',').map(read).collect::<Result<Vec<_>>>()?;
    match brokers.len() <= BROKERS_MAX {
        true => Ok(brokers),
        false => Err(invalid(format!("option \"brokers\" names more than {BROKERS_MAX} brokers"))),
    }
}

fn topic(text: &str) -> Result<String> {
    let fits = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    match text.is_empty() || text.len() > TOPIC_CHARS_MAX || text == "." || text == ".." || !text.chars().all(fits) {
        true => Err(bad_value("topic", text)
            .hint(format!("A topic's name has 1 to {TOPIC_CHARS_MAX} letters, digits, points, underscores and hyphens."))),
        false => Ok(text.to_owned()),
    }
}

fn start(text: &str) -> Result<At> {
    match text.to_ascii_lowercase().as_str() {
        "earliest" => return Ok(At::Earliest),
        "latest" => return Ok(At::Latest),
        _ => {}
    }
    match parse_scalar(&SqlType::Timestamptz, text, &Zone::UTC) {
        // Kafka counts milliseconds: rounded up, so that nothing before the time is read.
        Ok(ScalarValue::TimestampMicrosecond(Some(us), _)) if us >= 0 => Ok(At::Time(us.div_euclid(1_000) + i64::from(us % 1_000 != 0))),
        _ => Err(bad_value("start", text).hint("Known are earliest, latest and a time such as 2026-01-31T00:00:00Z.")),
    }
}

fn login(mechanism: Option<&str>, user: Option<&str>, password: Option<&str>) -> Result<Option<Login>> {
    let Some(wanted) = mechanism else {
        return match user.map(|_| "username").or(password.map(|_| "password")) {
            Some(key) => Err(invalid(format!("option \"{key}\" needs option \"sasl\"")).hint(known_mechanisms())),
            None => Ok(None),
        };
    };
    let known = Mechanism::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(wanted));
    let mechanism = known.ok_or_else(|| bad_value("sasl", wanted).hint(known_mechanisms()))?;
    let (Some(user), Some(password)) = (user, password) else {
        return Err(invalid("option \"sasl\" needs options \"username\" and \"password\""));
    };
    if user.contains('\0') || password.contains('\0') {
        return Err(invalid("a user name or password cannot hold the character 0"));
    }
    Ok(Some(Login { mechanism, user: user.to_owned(), password: Secret::new(password) }))
}

fn known_mechanisms() -> String {
    format!("Known are {}.", Mechanism::ALL.map(|known| known.name().to_ascii_lowercase()).join(", "))
}

/// The value is repeated: none of these is a secret.
fn bad_value(key: &str, value: &str) -> Error {
    invalid(format!("invalid value for option \"{key}\": \"{value}\""))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(more: &[(&str, &str)]) -> Given {
        let base = [("brokers", "a:1, b"), ("topic", "t")];
        base.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_read() {
        let options =
            read(&given(&[("start", "2026-01-01 00:00:00.0001Z"), ("sasl", "scram-sha-512"), ("username", "u"), ("password", "p")]))
                .unwrap();
        assert_eq!(options.brokers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:9092"]);
        assert_eq!((options.start, options.out_of_range), (At::Time(1_767_225_600_001), OutOfRange::Fail));
        assert_eq!(options.login.unwrap().mechanism, Mechanism::ScramSha512);
        assert!(read(&given(&[("tls", "true")])).unwrap().tls.is_some());
        let hidden = shown(&given(&[("password", "p")]));
        assert_eq!(hidden["password"], "...");
    }

    #[test]
    fn wrong_options_are_named() {
        for (key, value, message) in [
            ("brokers", "", "invalid value for option \"brokers\": \"\""),
            ("topic", "a b", "invalid value for option \"topic\": \"a b\""),
            ("topic", "..", "invalid value for option \"topic\": \"..\""),
            ("format", "avro", "invalid value for option \"format\": \"avro\""),
            ("start", "yesterday-ish", "invalid value for option \"start\": \"yesterday-ish\""),
            ("out_of_range", "skip", "invalid value for option \"out_of_range\": \"skip\""),
            ("tls", "maybe", "invalid value for option \"tls\": \"maybe\""),
            ("tls_ca", "x", "option \"tls_ca\" needs option \"tls\""),
            ("sasl", "kerberos", "invalid value for option \"sasl\": \"kerberos\""),
            ("sasl", "plain", "option \"sasl\" needs options \"username\" and \"password\""),
            ("password", "p", "option \"password\" needs option \"sasl\""),
            ("partitions", "3", "unrecognized option \"partitions\""),
        ] {
            assert_eq!(read(&given(&[(key, value)])).unwrap_err().to_string(), message);
        }
        let ca = read(&given(&[("tls", "on"), ("tls_ca", "no certificate")])).unwrap_err();
        assert_eq!(ca.to_string(), "invalid value for option \"tls_ca\": it holds no certificate");
        let mut none = given(&[]);
        none.remove("topic");
        assert_eq!(read(&none).unwrap_err().to_string(), "option \"topic\" is missing");
        assert_eq!(altered(given(&[]), &[("topic".to_owned(), "u".to_owned())]).unwrap_err().state().0, "0A000");
    }
}
