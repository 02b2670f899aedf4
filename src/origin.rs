//! Owner of a connection. Shares, rate limits and evictions count per origin until a name is authenticated, and per
//! party from then on.
//!
//! Promise: a host counts once, whichever of the addresses of its /64 it uses.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Owner of a share: an authenticated name, wherever it connects from, or the origin of anonymous clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// A name authenticated by a password, a certificate or a token.
    Name(Arc<str>),
    /// All anonymous clients of one origin.
    Origin(Origin),
}

impl Party {
    /// Returns the party of a client at an address.
    pub fn of(proven: Option<&str>, address: IpAddr) -> Self {
        proven.map_or_else(|| Self::Origin(Origin::of(address)), |name| Self::Name(name.into()))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "name {name}"),
            Self::Origin(origin) => write!(f, "address {}", origin.address()),
        }
    }
}

/// An IPv4 address, or the /64 of an IPv6 address: a host may use any number of addresses in its /64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(IpAddr);

/// Bits of an IPv6 address behind its /64.
const HOST_BITS: u128 = u64::MAX as u128;

impl Origin {
    /// Returns the origin of a peer.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self(IpAddr::V6((address.to_bits() & !HOST_BITS).into())),
            address => Self(address),
        }
    }

    /// Returns the address, or the first address of the network.
    pub fn address(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_origin_however_it_is_written() {
        let of = |text: &str| Origin::of(text.parse().expect("an address"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_ne!(of("10.0.0.7"), of("10.0.0.8"));
        assert_eq!(of("2001:db8:0:1::7"), of("2001:db8:0:1:ffff::8"));
        assert_ne!(of("2001:db8:0:1::7"), of("2001:db8:0:2::7"));
        assert_eq!(of("2001:db8:0:1::7").to_string(), "2001:db8:0:1::/64");
    }
}
