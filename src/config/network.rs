//! A network of addresses: `10.0.0.0/8`, `::1`; and what is kept of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address with the number of its leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.bits),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.bits),
            _ => false,
        }
    }
}

/// Without bits it is one address.
impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = text.trim().split_once('/').map_or((text.trim(), None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| ())?;
        if bits <= most { Ok(Network { address, bits }) } else { Err(()) }
    }
}

/// What is kept of the addresses of those who send events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddresses {
    /// All of it.
    Keep,
    /// Its network: the last 8 bits of IPv4 and 80 of IPv6 are zero.
    Truncate,
    /// Nothing.
    Drop,
}

impl ClientAddresses {
    /// What is kept of an address.
    pub fn kept(self, address: IpAddr) -> Option<IpAddr> {
        match (self, address.to_canonical()) {
            (ClientAddresses::Drop, _) => None,
            (ClientAddresses::Keep, address) => Some(address),
            (ClientAddresses::Truncate, IpAddr::V4(address)) => Some(IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & !0xff))),
            (ClientAddresses::Truncate, IpAddr::V6(address)) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80))),
        }
    }
}

impl FromStr for ClientAddresses {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "keep" => Ok(ClientAddresses::Keep),
            "truncate" => Ok(ClientAddresses::Truncate),
            "drop" => Ok(ClientAddresses::Drop),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_in_part() {
        let kept = |way: &str, address: &str| {
            let way: ClientAddresses = way.parse().unwrap();
            way.kept(address.parse().unwrap()).map(|address| address.to_string())
        };
        assert_eq!(kept("truncate", "203.0.113.77").as_deref(), Some("203.0.113.0"));
        assert_eq!(kept("truncate", "::ffff:203.0.113.77").as_deref(), Some("203.0.113.0"));
        assert_eq!(kept("truncate", "2001:db8:7:8::9").as_deref(), Some("2001:db8:7::"));
        assert_eq!(kept("keep", "203.0.113.77").as_deref(), Some("203.0.113.77"));
        assert_eq!(kept("drop", "203.0.113.77"), None);
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("fd00::/8", "fd12::1", true),
            ("::/0", "10.0.0.1", false),
        ] {
            assert_eq!(network.parse::<Network>().unwrap().contains(address.parse().unwrap()), inside, "{network} {address}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "x", "::/129", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
