//! How to reach a broker.

use crate::mqtt::Protocol;
use crate::tls::ClientFiles;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS; the gateway tries several in their order.
    pub urls: Vec<String>,
    /// Files for TLS: authorities, client certificate and key.
    pub tls: ClientFiles,
    pub protocol: Protocol,
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Time without traffic after which the gateway sends a PINGREQ.
    pub keep_alive: Duration,
    /// Longest wait for an acknowledgement while the connection is alive.
    pub answer_wait_max: Duration,
}
