//! Which addresses a channel may call: those of the public Internet, unless the configuration opens others.
//!
//! *Place*: asked at connect time, with the very address that is connected to, after names are resolved; so a name that changes its
//! address between two look-ups gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Network;

/// What may be called.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Everything.
    pub private: bool,
    /// Networks that may be called although they are not public.
    pub allowed: Vec<Network>,
}

impl Guard {
    /// Whether an address may be called.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.private || is_public(address) || self.allowed.iter().any(|network| network.contains(address.to_canonical()))
    }
}

/// Whether an address is one of the public Internet: not of this machine, its networks, its provider's metadata service, and not
/// reserved, in any of the spellings that lead to one.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let reserved = match a {
        0 | 10 | 127 | 224.. => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => (b == 168) || (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99),
        198 => matches!(b, 18 | 19) || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !reserved
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match segments {
        // NAT64 and 6to4 carry an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, documentation, benchmarks, ORCHID.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Only 2000::/3 is given out.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        for private in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn what_is_opened_passes() {
        let guard = Guard { private: false, allowed: vec!["10.1.0.0/16".parse().unwrap(), "::1".parse().unwrap()] };
        for (address, passes) in [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.2.3", false), ("::1", true), ("127.0.0.1", false)] {
            assert_eq!(guard.admits(address.parse().unwrap()), passes, "{address}");
        }
        assert!(Guard { private: true, allowed: Vec::new() }.admits("127.0.0.1".parse().unwrap()));
    }
}
