//! SCRAM-SHA-256 (RFC 5802, RFC 7677), when a password is configured.
//!
//! *Place*: `pg::startup` runs it between the startup packet and AuthenticationOk.
//!
//! *Invariants*: (1) the password itself is never sent, nor compared; (2) what a client is told does not say which half was wrong.

use bytes::Bytes;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramSecret, ScramServerAuth, gen_salted_password};
use pgwire::messages::startup::{Authentication, PasswordMessageFamily};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

use crate::config::Secret;
use crate::error::{Error, SqlState};
use crate::pg::error::Fault;
use crate::pg::frame::{Frame, Reader};
use crate::pg::sink::Sink;

const MECHANISM: &str = "SCRAM-SHA-256";

/// What a client's proof is checked against: made once, because it takes 4096 hashes.
pub(super) struct Verifier {
    salt: Vec<u8>,
    salted_password: Vec<u8>,
}

impl Verifier {
    pub(super) fn new(password: &Secret) -> Self {
        let salt = rand::random::<[u8; 16]>().to_vec();
        let salted_password = gen_salted_password(password.expose(), &salt, SCRAM_ITERATIONS);
        Self { salt, salted_password }
    }

    fn secret(&self) -> ScramSecret {
        ScramSecret::verifier_from_salted_password(self.salt.clone(), self.salted_password.clone(), SCRAM_ITERATIONS)
    }
}

/// The whole exchange up to SASLFinal; AuthenticationOk is the caller's. 28P01 when the password is wrong.
pub(super) async fn authenticate(
    reader: &mut Reader,
    sink: &mut Sink,
    verifier: &Verifier,
    user: &str,
    bytes_max: usize,
) -> Result<(), Fault> {
    let send = |message: Authentication| PgWireBackendMessage::Authentication(message);
    sink.put(&send(Authentication::SASL(vec![MECHANISM.to_owned()])));
    sink.flush().await?;
    let initial = password_message(reader, bytes_max).await?;
    let initial = decode_initial(initial)?;
    let (first, waiting) =
        ScramServerAuth::new().on_client_first_message_with_secret(&initial, verifier.secret()).map_err(|_| malformed())?;
    sink.put(&send(Authentication::SASLContinue(Bytes::from(first))));
    sink.flush().await?;
    let PasswordMessageFamily::Raw(proof) = password_message(reader, bytes_max).await? else { return Err(malformed()) };
    let last = waiting
        .on_client_final_message(&proof)
        .map_err(|_| Fault::Fatal(Error::new(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))))?;
    sink.put(&send(Authentication::SASLFinal(Bytes::from(last))));
    Ok(())
}

async fn password_message(reader: &mut Reader, bytes_max: usize) -> Result<PasswordMessageFamily, Fault> {
    match reader.message(bytes_max).await? {
        Frame::Message(PgWireFrontendMessage::PasswordMessageFamily(message)) => Ok(message),
        _ => Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "expected SASL response"))),
    }
}

/// SASLInitialResponse: mechanism, length, data. pgwire's decoder trusts the length, so it is read here.
fn decode_initial(message: PasswordMessageFamily) -> Result<Vec<u8>, Fault> {
    let PasswordMessageFamily::Raw(body) = message else { return Err(malformed()) };
    let end = memchr::memchr(0, &body).ok_or_else(malformed)?;
    if &body[..end] != MECHANISM.as_bytes() {
        return Err(Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "client selected an invalid SASL authentication mechanism")));
    }
    let rest = &body[end + 1..];
    let (length, data) = rest.split_at_checked(4).ok_or_else(malformed)?;
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if data.len() != length {
        return Err(malformed());
    }
    Ok(data.to_vec())
}

fn malformed() -> Fault {
    Fault::Fatal(Error::new(SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message"))
}
