//! Links without a network, for a single-threaded simulation.

use super::address::Address;
use super::stream::Stream;
use std::cell::RefCell;
use std::io;
use tokio::io::DuplexStream;

/// Opens a connection to a host and port.
type Network = Box<dyn Fn(&str) -> io::Result<DuplexStream>>;

thread_local! {
    static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// Directs all further links of this thread to `network`.
pub(crate) fn begin(network: Network) {
    NETWORK.set(Some(network));
}

pub(super) fn connect(address: &Address) -> Option<io::Result<Stream>> {
    NETWORK.with_borrow(|network| Some(network.as_ref()?(&address.to_string()).map(Stream::Memory)))
}
