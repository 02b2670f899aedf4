//! The byte stream of a session: TCP, TLS, WebSocket, or a peer in the same process.

use super::traffic::MeteredStream;
use super::websocket::WebSocket;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(super) enum Stream {
    Plain(MeteredStream),
    Tls(Box<TlsStream<MeteredStream>>),
    /// A WebSocket over one of the streams above.
    WebSocket(Box<WebSocket<Self>>),
    /// A peer in the same process.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl Stream {
    /// The other end of the TCP connection: the broker, or a proxy.
    pub(super) fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_address(),
            Self::Tls(stream) => stream.get_ref().0.peer_address(),
            Self::WebSocket(_) => None,
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// The TCP connection.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream.tcp()),
            Self::Tls(stream) => Some(stream.get_ref().0.tcp()),
            Self::WebSocket(stream) => stream.inner().tcp(),
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// The certificate that the server has shown.
    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        let Self::Tls(stream) = self else { return None };
        stream.get_ref().1.peer_certificates()?.first().map(|der| der.to_vec())
    }
}

/// Marks the packets of a connection with a DSCP from 0 to 63, as far as the system allows it.
pub(super) fn mark(tcp: &TcpStream, dscp: u8) {
    // The two lower bits of the field are those of congestion notification.
    let (socket, field) = (socket2::SockRef::from(tcp), u32::from(dscp) << 2);
    // A socket of IPv6 has both fields: it sends IPv4 to a peer with a mapped address.
    let _ = socket.set_tos_v4(field);
    if tcp.peer_addr().is_ok_and(|peer| peer.is_ipv6()) {
        let _ = socket.set_tclass_v6(field);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Self::WebSocket(stream) => Pin::new(stream).poll_read(context, into),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::WebSocket(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::WebSocket(stream) => Pin::new(stream).poll_flush(context),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::WebSocket(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use tokio::net::TcpSocket;

    #[tokio::test]
    async fn packets_are_marked_on_ipv4_ipv6_and_mapped_addresses() {
        for (listen, is_v6) in [("127.0.0.1:0", false), ("[::1]:0", true), ("[::ffff:127.0.0.1]:0", true)] {
            let listener = match TcpListener::bind(listen) {
                Ok(listener) => listener,
                // The machine has no IPv6.
                Err(error) => {
                    println!("{listen}: {error}");
                    assert!(is_v6);
                    continue;
                }
            };
            let address = listener.local_addr().expect("an address");
            let socket = if is_v6 { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
            let tcp = socket.expect("a socket").connect(address).await.expect("connects");
            mark(&tcp, 46);
            let socket = socket2::SockRef::from(&tcp);
            assert_eq!(socket.tos_v4().expect("a field"), 46 << 2, "{listen}");
            if is_v6 {
                assert_eq!(socket.tclass_v6().expect("a field"), 46 << 2, "{listen}");
            }
        }
    }
}
