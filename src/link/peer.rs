//! What tells the server of one session from that of another.

use super::stream::Stream;
use std::net::SocketAddr;
use xxhash_rust::xxh3::xxh3_64;

/// Address and certificate of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Address of the TCP connection; unknown behind a proxy.
    pub address: Option<SocketAddr>,
    /// Hash of the server's certificate, if it has shown one.
    pub certificate: Option<u64>,
}

impl Peer {
    pub(super) fn of(stream: &Stream, is_proxied: bool) -> Self {
        let address = if is_proxied { None } else { stream.peer_address() };
        Self { address, certificate: stream.certificate().map(|der| xxh3_64(&der)) }
    }

    /// Whether both are certainly one broker.
    pub fn is_same(&self, other: &Self) -> bool {
        let equal = |one: Option<u64>, other: Option<u64>| one.is_some() && one == other;
        self.address.is_some() && self.address == other.address || equal(self.certificate, other.certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_is_known_by_its_address_or_its_certificate() {
        let peer = |port: u16, certificate: u64| Peer {
            address: (port > 0).then(|| SocketAddr::from(([10, 0, 0, 7], port))),
            certificate: (certificate > 0).then_some(certificate),
        };
        for (one, other, is_same) in [
            (peer(1883, 0), peer(1883, 0), true),
            (peer(1883, 0), peer(1884, 0), false),
            (peer(8883, 5), peer(8884, 5), true),
            (peer(0, 5), peer(8883, 5), true),
            (peer(0, 0), peer(0, 0), false),
            (peer(0, 4), peer(0, 5), false),
        ] {
            assert_eq!(one.is_same(&other), is_same, "{one:?} {other:?}");
        }
    }
}
