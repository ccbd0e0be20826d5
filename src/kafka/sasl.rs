//! SASL: PLAIN (RFC 4616), SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677).
//!
//! *Invariant*: with SCRAM the server has to prove that it knows the password too.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// How a user logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// User and password as they are: for TLS.
    Plain,
    /// Salted challenge and response.
    ScramSha256,
    /// The same with the longer hash.
    ScramSha512,
}

/// Iterations that a server may ask for: more would keep a core busy for it.
const ITERATIONS_MAX: u32 = 1_000_000;

impl Mechanism {
    /// All of them.
    pub const ALL: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The only message of PLAIN.
pub fn plain(user: &str, password: &str) -> Vec<u8> {
    format!("\0{user}\0{password}").into_bytes()
}

/// A login by SCRAM under way. Errors are reasons.
#[derive(Debug)]
pub struct Scram {
    mechanism: Mechanism,
    first: String,
    nonce: String,
    /// What the server has to sign, and with what.
    expected: Option<(hmac::Key, String)>,
}

impl Scram {
    /// Begins with a random nonce.
    pub fn new(mechanism: Mechanism, user: &str) -> Result<Scram, String> {
        let mut random = [0; 18];
        SystemRandom::new().fill(&mut random).map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok(Scram::with_nonce(mechanism, user, STANDARD.encode(random)))
    }

    fn with_nonce(mechanism: Mechanism, user: &str, nonce: String) -> Scram {
        let first = format!("n={},r={nonce}", user.replace('=', "=3D").replace(',', "=2C"));
        Scram { mechanism, first, nonce, expected: None }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first).into_bytes()
    }

    /// The second one, in answer to the server's first.
    pub fn second(&mut self, challenge: &[u8], password: &str) -> Result<Vec<u8>, String> {
        let (hash, derivation, digest_of) = match self.mechanism {
            Mechanism::ScramSha512 => (hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512, &digest::SHA512),
            Mechanism::Plain | Mechanism::ScramSha256 => (hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256, &digest::SHA256),
        };
        let challenge = std::str::from_utf8(challenge).map_err(|_| "its challenge is not text".to_owned())?;
        let field = |name: &str| {
            let found = challenge.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| format!("its challenge has no {name}"))
        };
        let (nonce, salt, iterations) = (field("r")?, field("s")?, field("i")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("its challenge is for another login".to_owned());
        }
        let salt = STANDARD.decode(salt).map_err(|_| "its salt is not base64".to_owned())?;
        let iterations = iterations.parse().ok().filter(|count| *count <= ITERATIONS_MAX).and_then(NonZeroU32::new);
        let iterations = iterations.ok_or_else(|| "its number of iterations is out of range".to_owned())?;
        let mut salted = vec![0; digest_of.output_len()];
        pbkdf2::derive(derivation, iterations, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(hash, &salted);
        let client = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(digest_of, client.as_ref());
        let last = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{last}", self.first);
        let signature = hmac::sign(&hmac::Key::new(hash, stored.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(key, signature)| key ^ signature).collect();
        let server = hmac::sign(&salted, b"Server Key");
        self.expected = Some((hmac::Key::new(hash, server.as_ref()), signed));
        Ok(format!("{last},p={}", STANDARD.encode(proof)).into_bytes())
    }

    /// Checks the server's last message.
    pub fn finish(&self, last: &[u8]) -> Result<(), String> {
        let last = String::from_utf8_lossy(last);
        if let Some(reason) = last.strip_prefix("e=") {
            return Err(reason.to_owned());
        }
        let signature = last.split(',').find_map(|field| field.strip_prefix("v=")).and_then(|text| STANDARD.decode(text).ok());
        let proven =
            self.expected.as_ref().zip(signature).is_some_and(|((key, signed), tag)| hmac::verify(key, signed.as_bytes(), &tag).is_ok());
        if proven { Ok(()) } else { Err("it does not know the password".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_exchange_is_the_standards() {
        let mut scram = Scram::with_nonce(Mechanism::ScramSha256, "user", "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let second = scram.second(challenge, "pencil").unwrap();
        let expected: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(second, expected);
        scram.finish(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        assert!(scram.finish(b"v=AAAA").is_err());
        assert_eq!(scram.finish(b"e=invalid-proof").unwrap_err(), "invalid-proof");
        for wrong in ["r=other,s=W22Z,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=0", "r=rOprNGfwEbeRWgbNEkqOx,s=?,i=1", "nothing"] {
            assert!(scram.second(wrong.as_bytes(), "pencil").is_err(), "{wrong}");
        }
    }
}
