//! Tokens with which clients send events over HTTP.
//!
//! *Invariant*: what is kept of a token is its hash (SHA-256). It has 256 random bits, so that nobody finds it from the hash.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Micros;

/// What is kept of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestToken {
    /// Its name.
    pub name: String,
    /// The store (the partition of the table) whose events it may send; none for all.
    pub store: Option<String>,
    /// SHA-256 of the token, in hexadecimal.
    pub hash: String,
    /// When it was made.
    pub created_at: Micros,
}

impl IngestToken {
    /// The hash of a token.
    pub fn hash_of(token: &str) -> String {
        Sha256::digest(token.as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            _ = write!(text, "{byte:02x}");
            text
        })
    }
}
