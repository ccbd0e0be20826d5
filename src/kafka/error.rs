//! What goes wrong between a source and its brokers.

use crate::error::{Error, SqlState};

/// An error of the protocol, the network or a broker.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KafkaError {
    /// Nobody answers there.
    #[error("cannot connect to broker \"{broker}\": {reason}")]
    Unreachable {
        /// Its address.
        broker: String,
        /// What the system said.
        reason: String,
    },
    /// A connection ended, or its answer did not come in time.
    #[error("the connection to broker \"{broker}\" broke off: {reason}")]
    Broken {
        /// Its address.
        broker: String,
        /// Why.
        reason: String,
    },
    /// The certificate or the key of a TLS connection does not fit.
    #[error("no secure connection to broker \"{broker}\": {reason}")]
    Tls {
        /// Its address.
        broker: String,
        /// Why.
        reason: String,
    },
    /// The user or the password is wrong, or the mechanism is not spoken.
    #[error("broker \"{broker}\" refuses the login: {reason}")]
    Login {
        /// Its address.
        broker: String,
        /// What it said.
        reason: String,
    },
    /// The broker is older or younger than what is spoken here.
    #[error("broker \"{broker}\" does not support {what}")]
    Unsupported {
        /// Its address.
        broker: String,
        /// The request.
        what: &'static str,
    },
    /// An answer is not what the protocol says.
    #[error("a broker's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// A batch is not what its checksum says, or cannot be decompressed.
    #[error("the batch at offset {offset} cannot be read: {reason}")]
    Damaged {
        /// Its first offset.
        offset: i64,
        /// Why.
        reason: String,
    },
    /// A batch or an answer is longer than there is room for.
    #[error("{what} of {bytes} bytes is longer than {limit}, which is {max}")]
    TooLong {
        /// What.
        what: &'static str,
        /// How long.
        bytes: u64,
        /// The limit's key in the configuration.
        limit: &'static str,
        /// Its value.
        max: usize,
    },
    /// An error of the broker's.
    #[error("{what}: {refusal}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer.
        refusal: Refusal,
    },
}

impl KafkaError {
    /// An error code of an answer about `what`; none for 0.
    pub fn of_code(code: i16, what: impl FnOnce() -> String) -> super::Result<()> {
        match code {
            0 => Ok(()),
            code => Err(KafkaError::Refused { what: what(), refusal: Refusal(code) }),
        }
    }
}

/// An error code of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub i16);

impl Refusal {
    /// An offset that the log does not have.
    pub const OFFSET_OUT_OF_RANGE: Refusal = Refusal(1);
    /// A topic or partition that is not there, or not yet.
    pub const UNKNOWN_TOPIC_OR_PARTITION: Refusal = Refusal(3);
    /// An election is under way.
    pub const LEADER_NOT_AVAILABLE: Refusal = Refusal(5);
    /// Another broker leads the partition.
    pub const NOT_LEADER: Refusal = Refusal(6);
    /// A version of a request that is not spoken.
    pub const UNSUPPORTED_VERSION: Refusal = Refusal(35);
    /// A SASL mechanism that is not spoken.
    pub const UNSUPPORTED_SASL_MECHANISM: Refusal = Refusal(33);
    /// User or password.
    pub const SASL_AUTHENTICATION_FAILED: Refusal = Refusal(58);
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // https://kafka.apache.org/protocol#protocol_error_codes
        f.write_str(match self.0 {
            -1 => "the broker has an error that it does not know",
            1 => "the offset is out of range",
            2 => "the broker found a damaged message",
            3 => "the topic or partition does not exist",
            5 => "the partition has no leader at present",
            6 => "another broker leads the partition",
            7 => "the broker had no time to answer",
            8 => "the broker is not available",
            9 => "the replica is not available",
            13 => "the broker lost a connection of its own",
            17 => "the topic's name is not valid",
            29 => "the user may not read the topic",
            30 => "the user may not read with this group",
            31 => "the user may not use the cluster",
            33 => "the SASL mechanism is not supported",
            34 => "the login is not wanted at this point",
            35 => "the version of the request is not supported",
            43 => "the message format is too old",
            56 => "the disk of the broker has failed",
            58 => "user or password are not accepted",
            74..=76 => "the broker's view of the partition is not up to date",
            78 => "the offset is not available at present",
            87 => "a record is not valid",
            code => return write!(f, "error code {code}"),
        })
    }
}

impl From<KafkaError> for Error {
    fn from(error: KafkaError) -> Self {
        let message = error.to_string();
        match error {
            KafkaError::Unreachable { .. } | KafkaError::Broken { .. } | KafkaError::Tls { .. } => {
                Error::new(SqlState::CONNECTION_FAILURE, message)
            }
            KafkaError::Login { .. } => Error::new(SqlState::INVALID_PASSWORD, message),
            KafkaError::Unsupported { .. } => Error::unsupported(message),
            KafkaError::Malformed(_) => Error::new(SqlState::PROTOCOL_VIOLATION, message),
            KafkaError::Damaged { .. } => Error::new(SqlState::DATA_CORRUPTED, message),
            KafkaError::TooLong { .. } => Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message),
            KafkaError::Refused { refusal: Refusal::UNKNOWN_TOPIC_OR_PARTITION, .. } => Error::new(SqlState::UNDEFINED_OBJECT, message),
            KafkaError::Refused { refusal: Refusal(29..=31), .. } => Error::new(SqlState::INSUFFICIENT_PRIVILEGE, message),
            KafkaError::Refused { .. } => Error::new(SqlState::CONNECTION_FAILURE, message),
        }
    }
}
