//! One HTTP POST: for webhooks and Slack.
//!
//! *Invariants*: (1) the address that is connected to has passed the [`Guard`]; (2) redirects are not followed; (3) connecting, sending
//! and reading together take at most [`WITHIN`]; (4) at most [`ANSWER_BYTES_MAX`] of an answer are read; (5) certificates are checked
//! against Mozilla's roots; (6) no error names more of an address than its host.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::guard::Guard;
use crate::error::{Error, Result, SqlState};

/// How long a delivery may take.
pub const WITHIN: Duration = Duration::from_secs(10);

/// Bytes of an answer that are read, for the error.
const ANSWER_BYTES_MAX: usize = 512;

/// An address to post to.
#[derive(Clone)]
pub struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: bool,
}

impl Target {
    /// Reads a URL. The error does not repeat it.
    pub fn parse(url: &str) -> Result<Target> {
        let invalid = |why: &str| Error::new(SqlState::INVALID_PARAMETER_VALUE, format!("invalid value for option \"url\": {why}"));
        let uri: Uri = url.parse().map_err(|_| invalid("it is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it may not hold a user and password").hint("Use option \"secret\", or a token in the path."));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(invalid("it has no host"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Target { uri, host, port, tls })
    }

    /// What may be shown of it.
    pub fn shown(&self) -> String {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}/...", if self.tls { "https" } else { "http" })
    }
}

/// Posts JSON. An answer other than 2xx is an error.
pub async fn post(target: &Target, guard: &Guard, headers: &[(&'static str, String)], body: String) -> Result<()> {
    let work = async {
        let stream = connect(&target.host, target.port, guard).await?;
        let request = request(target, headers, body)?;
        match target.tls {
            true => exchange(secure(&target.host, stream).await?, request).await,
            false => exchange(stream, request).await,
        }
    };
    within(&target.host, work).await
}

/// Ends what takes too long.
pub async fn within<T>(host: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(WITHIN, work)
        .await
        .map_err(|_| failed(format!("\"{host}\" did not answer within {} seconds", WITHIN.as_secs())))?
}

/// Connects to the first address of a name that may be called and answers. 42501 where none may.
pub async fn connect(host: &str, port: u16, guard: &Guard) -> Result<TcpStream> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| failed(format!("cannot find host \"{host}\": {error}")))?;
    let addresses: Vec<SocketAddr> = found.collect();
    let admitted: Vec<_> = addresses.iter().copied().filter(|address| guard.admits(address.ip())).collect();
    if admitted.is_empty() {
        return Err(Error::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("host \"{host}\" has no address that channels may call"))
            .detail("Addresses of this machine and of private networks are refused.")
            .hint("Start the server with --allow-private-channels, or name the network in channel_networks."));
    }
    let mut last = None;
    for address in admitted {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A small request in one piece.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(failed(format!("cannot connect to \"{host}\": {}", last.map_or_else(String::new, |error| error.to_string()))))
}

/// TLS over a connection.
pub async fn secure(host: &str, stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    static CONFIG: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| {
        let roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        Some(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    });
    let config = CONFIG.clone().ok_or_else(|| Error::internal("TLS could not be set up"))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| failed(format!("\"{host}\" is no name for a certificate")))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(format!("no secure connection to \"{host}\": {error}")))
}

fn request(target: &Target, headers: &[(&'static str, String)], body: String) -> Result<Request<Full<Bytes>>> {
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = target.uri.authority().map_or("", |authority| authority.as_str());
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("verus/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).map_err(|_| Error::internal("a header cannot be sent"))?;
        builder = builder.header(HeaderName::from_static(name), value);
    }
    builder.body(Full::new(Bytes::from(body))).map_err(|error| Error::internal(error.to_string()))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| failed(format!("the exchange broke off: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let mut answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let mut text = Vec::new();
        while text.len() < ANSWER_BYTES_MAX
            && let Some(Ok(frame)) = answer.body_mut().frame().await
        {
            text.extend(frame.data_ref().into_iter().flat_map(|data| data.iter().copied()).take(ANSWER_BYTES_MAX - text.len()));
        }
        let error = failed(format!("the answer was {status}"));
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Err(match (status.is_redirection(), text.is_empty()) {
            (true, _) => error.detail("Redirects are not followed."),
            (false, true) => error,
            (false, false) => error.detail(text),
        })
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        // Once the connection has ended, what has been read is still to be taken.
        _ = &mut connection => answer.await,
    }
}

/// 08006.
pub fn failed(message: String) -> Error {
    Error::new(SqlState::CONNECTION_FAILURE, message)
}
