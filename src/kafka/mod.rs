//! The consumer's half of the Kafka protocol: what a source needs to read a topic, and no more.
//!
//! *Place*: used by `ingest::source`, which decides what is read and when; `verus bench` and the tests use the other half of the same
//! encoders. The only module that knows the protocol.
//!
//! Spoken are ApiVersions 0, Metadata 4, ListOffsets 2, Fetch 4 to 10, SaslHandshake 1, SaslAuthenticate 0 and, for measurements,
//! Produce 3: every broker from Kafka 0.11 to 4 has them, Redpanda and the like too. Fetch 10 is needed for batches in zstd.
//!
//! *Invariants*: (1) nothing is created on a broker: a topic that is not there stays so; (2) of transactions, only what was committed is
//! read ([`batch::Aborted`]); (3) every batch's checksum is verified; (4) an answer is at most `frame_bytes_max` long, a batch at most
//! `batch_bytes_max` when it is decompressed; (5) passwords are in no error.
//!
//! *On failure*: a connection that has failed is dropped by its owner; nothing is retried here.

pub mod api;
pub mod batch;
pub mod codec;
pub mod connection;
mod error;
mod lz4;
pub mod sasl;
pub mod wire;

pub use connection::{Connection, Login, Settings};
pub use error::{KafkaError, Refusal};

/// Result of this module.
pub type Result<T, E = KafkaError> = std::result::Result<T, E>;

/// `host:port` of a broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The port of brokers that do not say one.
const PORT_DEFAULT: u16 = 9092;

impl Address {
    /// Reads `host`, `host:port`, `[::1]:port`; none for anything else.
    pub fn parse(text: &str) -> Option<Address> {
        let text = text.trim();
        if text.is_empty() || text.contains("://") || text.contains(|character: char| character.is_whitespace() || character == '/') {
            return None;
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
            }
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Some(PORT_DEFAULT), |port| port.parse().ok().filter(|port| *port > 0))?;
        if host.is_empty() || (host.contains(':') && !text.starts_with('[')) {
            return None;
        }
        Some(Address { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("kafka-1:9093", Some(("kafka-1", 9093))),
            (" kafka-1 ", Some(("kafka-1", 9092))),
            ("[::1]:9094", Some(("::1", 9094))),
            ("10.0.0.1:1", Some(("10.0.0.1", 1))),
            ("::1", None),
            ("kafka:", None),
            ("kafka:0", None),
            ("kafka:70000", None),
            (":9092", None),
            ("", None),
            ("a b:1", None),
            ("kafka://a:1", None),
            ("[::1", None),
        ] {
            let found = Address::parse(text);
            assert_eq!(found.as_ref().map(|found| (found.host.as_str(), found.port)), expected, "{text}");
        }
    }
}
