//! The WAN of the demo: it carries connections to central, until it is cut.

use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A WAN that can be cut.
pub(super) struct Wan {
    /// Where the gateway reaches it.
    pub address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Wan {
    /// Begins to carry connections to `central`.
    pub(super) async fn start(central: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (is_cut, seen) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, central, seen.clone()));
            }
        });
        Ok(Self { address, is_cut })
    }

    /// Cuts or restores it.
    pub(super) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }

    pub(super) fn is_cut(&self) -> bool {
        *self.is_cut.borrow()
    }
}

/// Carries one connection until it ends or the WAN is cut.
async fn carry(mut near: TcpStream, central: SocketAddr, mut seen: watch::Receiver<bool>) {
    if *seen.borrow_and_update() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(central).await else { return };
    // Both only cost latency where they fail.
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    tokio::select! {
        _ = seen.wait_for(|is_cut| *is_cut) => {}
        // However a connection ends, the gateway finds out by itself.
        _ = copy_bidirectional(&mut near, &mut far) => {}
    }
}
