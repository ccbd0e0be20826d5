//! One connection to a broker: a request, then its answer.
//!
//! *Invariants*: (1) connecting, TLS and login together take at most [`OPEN_WITHIN`], an answer [`ANSWER_WITHIN`] beyond what it may wait;
//! (2) after an error the connection is of no use any more.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::api::{self, Api, Fetch, Fetched, Topic};
use super::error::{KafkaError, Refusal};
use super::sasl::{self, Mechanism, Scram};
use super::wire::{Reader, Writer};
use super::{Address, Result};
use crate::config::Secret;

/// How long it may take to open a connection.
pub const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// How long an answer may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What brokers see in their logs.
const CLIENT_ID: &str = "verus";

/// How brokers are spoken to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// With a login.
    pub login: Option<Login>,
    /// Bytes of an answer.
    pub frame_bytes_max: usize,
}

/// A user.
#[derive(Clone, Debug)]
pub struct Login {
    /// How.
    pub mechanism: Mechanism,
    /// Who.
    pub user: String,
    /// The proof.
    pub password: Secret,
}

/// What TLS trusts: Mozilla's roots, or the certificates in a PEM text. The error is a reason.
pub fn tls(authorities: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(text) => {
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let certificate = certificate.map_err(|_| "it is not PEM".to_owned())?;
                roots.add(certificate).map_err(|error| format!("{error}"))?;
            }
            if roots.is_empty() {
                return Err("it holds no certificate".to_owned());
            }
        }
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// An open connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    broker: String,
    correlation: i32,
    versions: HashMap<i16, (i16, i16)>,
    frame_bytes_max: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, and logs in.
    pub async fn open(address: &Address, settings: &Settings) -> Result<Connection> {
        let broker = address.to_string();
        let late = KafkaError::Unreachable {
            broker: broker.clone(),
            reason: format!("it did not answer within {} seconds", OPEN_WITHIN.as_secs()),
        };
        tokio::time::timeout(OPEN_WITHIN, Connection::open_now(address, broker, settings)).await.map_err(|_| late)?
    }

    async fn open_now(address: &Address, broker: String, settings: &Settings) -> Result<Connection> {
        let unreachable = |error: std::io::Error| KafkaError::Unreachable { broker: broker.clone(), reason: error.to_string() };
        let socket = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let stream: Box<dyn Stream> = match &settings.tls {
            None => Box::new(socket),
            Some(config) => {
                let failed = |reason: String| KafkaError::Tls { broker: broker.clone(), reason };
                let name = ServerName::try_from(address.host.clone()).map_err(|error| failed(error.to_string()))?;
                let connected = TlsConnector::from(Arc::clone(config)).connect(name, socket).await;
                Box::new(connected.map_err(|error| failed(error.to_string()))?)
            }
        };
        let frame_bytes_max = settings.frame_bytes_max;
        let mut connection = Connection { stream, broker, correlation: 0, versions: HashMap::new(), frame_bytes_max };
        let answer = connection.ask(Api::ApiVersions, 0, &[], Duration::ZERO).await?;
        connection.versions = api::versions(&answer)?.into_iter().map(|(api, least, greatest)| (api, (least, greatest))).collect();
        if let Some(login) = &settings.login {
            connection.log_in(login).await?;
        }
        Ok(connection)
    }

    /// The broker's address.
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// The greatest version of a request that both sides speak.
    fn version(&self, api: Api) -> Result<i16> {
        let (what, least, greatest) = api.spoken();
        let spoken = self.versions.get(&(api as i16)).copied().unwrap_or((0, -1));
        let version = greatest.min(spoken.1);
        if version < least || version < spoken.0 {
            return Err(KafkaError::Unsupported { broker: self.broker.clone(), what });
        }
        Ok(version)
    }

    async fn log_in(&mut self, login: &Login) -> Result<()> {
        let refused = |broker: &str, reason: String| KafkaError::Login { broker: broker.to_owned(), reason };
        let mut request = Writer::default();
        request.string(login.mechanism.name());
        let version = self.version(Api::SaslHandshake)?;
        let answer = self.ask(Api::SaslHandshake, version, &request.0, Duration::ZERO).await?;
        let mut reader = Reader::new(&answer);
        let code = reader.i16()?;
        if code != 0 {
            let spoken = reader.each(|reader| Ok(reader.string()?.to_owned())).unwrap_or_default();
            let reason = format!("{}; it speaks {}", Refusal(code), spoken.join(", "));
            return Err(refused(&self.broker, reason));
        }
        let password = login.password.expose();
        if login.mechanism == Mechanism::Plain {
            return self.authenticate(&sasl::plain(&login.user, password)).await.map(|_| ());
        }
        let mut scram = Scram::new(login.mechanism, &login.user).map_err(|reason| refused(&self.broker, reason))?;
        let challenge = self.authenticate(&scram.first()).await?;
        let second = scram.second(&challenge, password).map_err(|reason| refused(&self.broker, reason))?;
        let last = self.authenticate(&second).await?;
        scram.finish(&last).map_err(|reason| refused(&self.broker, reason))
    }

    async fn authenticate(&mut self, token: &[u8]) -> Result<Vec<u8>> {
        let mut request = Writer::default();
        request.bytes(token);
        let version = self.version(Api::SaslAuthenticate)?;
        let answer = self.ask(Api::SaslAuthenticate, version, &request.0, Duration::ZERO).await?;
        let mut reader = Reader::new(&answer);
        let code = reader.i16()?;
        let message = reader.nullable()?;
        if code != 0 {
            let reason = message.map_or_else(|| Refusal(code).to_string(), str::to_owned);
            return Err(KafkaError::Login { broker: self.broker.clone(), reason });
        }
        Ok(reader.bytes()?.to_vec())
    }

    /// A topic's partitions and their leaders.
    pub async fn topic(&mut self, name: &str) -> Result<Topic> {
        let version = self.version(Api::Metadata)?;
        let answer = self.ask(Api::Metadata, version, &api::metadata(name), Duration::ZERO).await?;
        api::topic(name, &answer)
    }

    /// Offsets of partitions that this broker leads.
    pub async fn offsets(&mut self, topic: &str, partitions: &[(i32, api::At)]) -> Result<Vec<(i32, Option<i64>)>> {
        let version = self.version(Api::ListOffsets)?;
        let answer = self.ask(Api::ListOffsets, version, &api::list_offsets(topic, partitions), Duration::ZERO).await?;
        api::offsets(topic, &answer)
    }

    /// Messages of partitions that this broker leads.
    pub async fn fetch(&mut self, wanted: &Fetch<'_>) -> Result<Vec<Fetched>> {
        let version = self.version(Api::Fetch)?;
        let wait = Duration::from_millis(wanted.wait_ms.unsigned_abs().into());
        let answer = self.ask(Api::Fetch, version, &api::fetch(version, wanted), wait).await?;
        api::fetched(version, &answer)
    }

    /// Writes a batch to a partition that this broker leads: its first offset.
    pub async fn produce(&mut self, topic: &str, partition: i32, batch: &[u8]) -> Result<i64> {
        let version = self.version(Api::Produce)?;
        let answer = self.ask(Api::Produce, version, &api::produce(topic, partition, batch), Duration::ZERO).await?;
        api::produced(topic, &answer)
    }

    async fn ask(&mut self, api: Api, version: i16, body: &[u8], wait: Duration) -> Result<Bytes> {
        let within = ANSWER_WITHIN + wait;
        let late =
            KafkaError::Broken { broker: self.broker.clone(), reason: format!("no answer came within {} seconds", within.as_secs()) };
        let asked: std::pin::Pin<Box<dyn Future<Output = Result<Bytes>> + Send + '_>> = Box::pin(self.ask_now(api, version, body));
        tokio::time::timeout(within, asked).await.map_err(|_| late)?
    }

    async fn ask_now(&mut self, api: Api, version: i16, body: &[u8]) -> Result<Bytes> {
        self.correlation = self.correlation.wrapping_add(1);
        let mut head = Writer::default();
        head.i16(api as i16).i16(version).i32(self.correlation).nullable(Some(CLIENT_ID));
        let mut frame = Writer::default();
        frame.count(head.0.len() + body.len()).raw(&head.0).raw(body);
        let broken = |error: std::io::Error| KafkaError::Broken { broker: self.broker.clone(), reason: error.to_string() };
        self.stream.write_all(&frame.0).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)?;
        let length = self.stream.read_i32().await.map_err(broken)?;
        let length = usize::try_from(length).map_err(|_| KafkaError::Malformed("it has a negative length"))?;
        if length > self.frame_bytes_max {
            let limit = "limits.kafka.frame_bytes_max";
            return Err(KafkaError::TooLong { what: "an answer", bytes: length as u64, limit, max: self.frame_bytes_max });
        }
        let mut answer = BytesMut::with_capacity(length);
        while answer.len() < length {
            let mut rest = (&mut self.stream).take((length - answer.len()) as u64);
            if rest.read_buf(&mut answer).await.map_err(broken)? == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let mut answer = answer.freeze();
        if Reader::new(&answer).i32()? != self.correlation {
            return Err(KafkaError::Malformed("it answers another request"));
        }
        Ok(answer.split_off(4))
    }
}
