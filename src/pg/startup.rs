//! From an accepted socket to a session: encryption requests, the startup packet, cancel requests, login.
//!
//! *Place*: `pg::serve` runs it on the io runtime under the login timeout.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey};

use crate::error::{Error, SqlState};
use crate::pg::auth::{self, Verifier};
use crate::pg::error::Fault;
use crate::pg::frame::Reader;
use crate::pg::sink::Sink;
use crate::session::{Services, Session, variable};

/// The one user and the one database.
const NAME: &str = "verus";

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// Encryption requests that one connection may make: libpq asks for GSS, then for TLS.
const ENCRYPTION_REQUESTS_MAX: usize = 4;

/// Logs a client in. None when the connection was for something else (a cancel, a probe) and is over.
pub(super) async fn login(
    reader: &mut Reader,
    sink: &mut Sink,
    services: &Arc<Services>,
    verifier: Option<&Verifier>,
    client: Option<SocketAddr>,
) -> Result<Option<Session>, Fault> {
    let bytes_max = services.config.limits.wire.startup_bytes_max;
    let Some(startup) = startup_packet(reader, sink, services).await? else { return Ok(None) };
    if startup.minor > 2 || !startup.unknown.is_empty() {
        // The newest version that is spoken here is 3.2 (it differs from 3.0 in the length of the cancel key).
        let newest = (3 << 16) | i32::from(startup.minor.min(2));
        sink.put(&PgWireBackendMessage::NegotiateProtocolVersion(NegotiateProtocolVersion::new(newest, startup.unknown.clone())));
    }
    let user = startup.parameters.get("user").filter(|user| !user.is_empty()).ok_or_else(|| {
        Fault::Fatal(Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "no PostgreSQL user name specified in startup packet"))
    })?;
    match verifier {
        // An unknown user goes through the exchange as well, so that names cannot be tried out.
        Some(verifier) => auth::authenticate(reader, sink, verifier, user, bytes_max).await?,
        None if user != NAME => {
            return Err(Fault::Fatal(
                Error::new(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, format!("role \"{user}\" does not exist"))
                    .hint("The user is \"verus\"."),
            ));
        }
        None => {}
    }
    if user != NAME {
        return Err(Fault::Fatal(Error::new(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))));
    }
    let database = startup.parameters.get("database").filter(|database| !database.is_empty()).unwrap_or(user);
    if database != NAME {
        return Err(Fault::Fatal(
            Error::new(SqlState::INVALID_CATALOG_NAME, format!("database \"{database}\" does not exist"))
                .hint("The database is \"verus\"."),
        ));
    }
    let registration = services.registry.enter(user, database, client, services.clock.now(), startup.minor >= 2);
    let mut session = Session::new(Arc::clone(services), registration);
    apply_parameters(&mut session, &startup).map_err(Fault::Fatal)?;
    sink.put(&PgWireBackendMessage::Authentication(Authentication::Ok));
    let key = session.entry().key();
    let key = match <[u8; 4]>::try_from(key) {
        Ok(short) => SecretKey::I32(i32::from_be_bytes(short)),
        Err(_) => SecretKey::Bytes(Bytes::copy_from_slice(key)),
    };
    sink.put(&PgWireBackendMessage::BackendKeyData(BackendKeyData::new(session.backend, key)));
    Ok(Some(session))
}

struct Startup {
    minor: u16,
    parameters: HashMap<String, String>,
    /// Protocol options (`_pq_.`) that nobody here knows.
    unknown: Vec<String>,
}

/// Answers encryption and cancel requests until the startup packet comes.
async fn startup_packet(reader: &mut Reader, sink: &mut Sink, services: &Services) -> Result<Option<Startup>, Fault> {
    for _ in 0..ENCRYPTION_REQUESTS_MAX {
        let Some(mut packet) = reader.startup_packet(services.config.limits.wire.startup_bytes_max).await? else { return Ok(None) };
        match packet.get_u32() {
            SSL_REQUEST | GSS_REQUEST => {
                // A single byte, without a frame.
                sink.buffer.push(b'N');
                sink.flush().await?;
            }
            CANCEL_REQUEST => {
                if packet.len() >= 8 {
                    let backend = packet.get_i32();
                    services.registry.cancel(backend, &packet);
                }
                return Ok(None);
            }
            version if version >> 16 == 3 => return read_startup((version & 0xffff) as u16, packet).map(Some),
            version => {
                return Err(Fault::Fatal(Error::unsupported(format!(
                    "unsupported frontend protocol {}.{}: server supports 3.0 to 3.2",
                    version >> 16,
                    version & 0xffff
                ))));
            }
        }
    }
    Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "too many encryption requests")))
}

fn read_startup(minor: u16, packet: BytesMut) -> Result<Startup, Fault> {
    let invalid =
        || Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "invalid startup packet layout: expected terminator as last byte"));
    let text = std::str::from_utf8(&packet)
        .map_err(|_| Fault::Fatal(Error::new(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "startup packet is not UTF8")))?;
    let mut startup = Startup { minor, parameters: HashMap::new(), unknown: Vec::new() };
    let mut parts = text.split('\0');
    loop {
        let name = parts.next().ok_or_else(invalid)?;
        if name.is_empty() {
            return Ok(startup);
        }
        let value = parts.next().ok_or_else(invalid)?;
        if name.starts_with("_pq_.") {
            startup.unknown.push(name.to_owned());
        } else {
            startup.parameters.insert(name.to_ascii_lowercase(), value.to_owned());
        }
    }
}

/// Sets what the packet asks for: its parameters and those in `options` (`-c name=value`, `--name=value`).
fn apply_parameters(session: &mut Session, startup: &Startup) -> Result<(), Error> {
    let user = session.user().to_owned();
    session.vars.initialize("session_authorization", &user)?;
    if let Some(options) = startup.parameters.get("options") {
        for (name, value) in options_of(options)? {
            session.vars.initialize(&name, &value)?;
        }
    }
    for (name, value) in &startup.parameters {
        if matches!(name.as_str(), "user" | "database" | "options" | "replication") {
            continue;
        }
        session.vars.initialize(name, value)?;
    }
    if startup.parameters.get("replication").is_some_and(|value| variable::boolean(value) != Some(false)) {
        return Err(Error::unsupported("replication connections are not supported"));
    }
    let application = session.vars.get("application_name").unwrap_or_default().to_owned();
    session.entry().set_application(&application);
    Ok(())
}

/// The settings in `options`; a backslash keeps the character after it.
fn options_of(options: &str) -> Result<Vec<(String, String)>, Error> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(characters.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next().unwrap_or_default(),
            Some(setting) => setting.to_owned(),
            None => word.strip_prefix("--").map(|setting| setting.replacen('-', "_", setting.find('=').unwrap_or(0))).unwrap_or_default(),
        };
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| Error::new(SqlState::SYNTAX_ERROR, format!("invalid command-line argument for server process: {word}")))?;
        settings.push((name.to_owned(), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_writes_them() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let settings = options_of(text).unwrap();
            let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(settings, expected, "{text}");
        };
        check("-c statement_timeout=5s -c TimeZone=UTC", &[("statement_timeout", "5s"), ("TimeZone", "UTC")]);
        check("-cjit=off --statement-timeout=1", &[("jit", "off"), ("statement_timeout", "1")]);
        check("-c application_name=two\\ words", &[("application_name", "two words")]);
        assert!(options_of("-x").is_err());
    }
}
