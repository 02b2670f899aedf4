//! The WAN of the demo: a TCP proxy to central that can be cut.

use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A WAN that can be cut.
pub(super) struct Wan {
    /// Address to which the gateway connects.
    pub address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Wan {
    /// Starts the proxy to `central`.
    pub(super) async fn start(central: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (is_cut, cut_signal) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(proxy(near, central, cut_signal.clone()));
            }
        });
        Ok(Self { address, is_cut })
    }

    /// Cuts or restores the WAN.
    pub(super) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }

    pub(super) fn is_cut(&self) -> bool {
        *self.is_cut.borrow()
    }
}

/// Proxies one connection until it ends or the WAN is cut.
async fn proxy(mut near: TcpStream, central: SocketAddr, mut cut_signal: watch::Receiver<bool>) {
    if *cut_signal.borrow_and_update() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(central).await else { return };
    // A failure only costs latency.
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    tokio::select! {
        _ = cut_signal.wait_for(|is_cut| *is_cut) => {}
        // The gateway detects the end of the connection itself.
        _ = copy_bidirectional(&mut near, &mut far) => {}
    }
}
