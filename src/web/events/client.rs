//! Who sends: the address, through proxies that are trusted, and the program.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};

use crate::config::Config;
use crate::ingest::defaults::Client;

/// Bytes of a user agent that are kept.
const USER_AGENT_BYTES_MAX: usize = 1024;

/// The sender's address: the peer's, or behind trusted proxies the last one in X-Forwarded-For that is none of theirs.
pub fn address(config: &Config, headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
    let is_trusted = |address: IpAddr| config.trusted_proxies.iter().any(|network| network.contains(address.to_canonical()));
    let mut found = peer.ip();
    let named: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).collect();
    for text in named.into_iter().rev() {
        if !is_trusted(found) {
            break;
        }
        let Some(named) = parsed(text.trim()) else { break };
        found = named;
    }
    found.to_canonical()
}

/// An address, perhaps with a port.
fn parsed(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// What defaults may name: as much of the address as is kept.
pub fn client(config: &Config, headers: &HeaderMap, address: IpAddr) -> Client {
    let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    Client {
        ip: config.client_addresses.kept(address).map(|address| address.to_string()),
        user_agent: user_agent.map(|text| text[..text.floor_char_boundary(USER_AGENT_BYTES_MAX)].to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_behind_proxies() {
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()], ..Config::default() };
        for (peer, forwarded, expected) in [
            ("203.0.113.1:1", "198.51.100.7", "203.0.113.1"),
            ("10.0.0.1:1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1:1", "6.6.6.6, 198.51.100.7, 10.2.3.4", "198.51.100.7"),
            ("10.0.0.1:1", "198.51.100.7:4711", "198.51.100.7"),
            ("10.0.0.1:1", "[2001:db8::7]:4711", "2001:db8::7"),
            ("10.0.0.1:1", "nonsense, 10.0.0.9", "10.0.0.9"),
            ("10.0.0.1:1", "", "10.0.0.1"),
            ("[::1]:1", "2001:db8::7", "2001:db8::7"),
            ("[::ffff:10.0.0.1]:1", "198.51.100.7", "198.51.100.7"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            assert_eq!(address(&config, &headers, peer.parse().unwrap()).to_string(), expected, "{peer} {forwarded}");
        }
    }
}
