//! How to reach a broker.

use super::proxy::Proxy;
use crate::mqtt::Protocol;
use crate::tls::ClientFiles;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// URLs as [`super::Address::parse`] reads them; the gateway tries several in their order.
    pub urls: Vec<String>,
    /// The proxy through which every connection goes.
    pub proxy: Option<Proxy>,
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

/// Longest client id of a setting, in bytes. The standard allows 65,535, of which a lane takes a part.
const CLIENT_ID_BYTES_MAX: usize = 60_000;

/// Checks a client id, or a part of one: it is neither empty nor too long, and has no control characters.
pub fn check_client_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Err("\"\" is no client id; leave it out for one that is unique".into());
    }
    if id.len() > CLIENT_ID_BYTES_MAX {
        return Err(format!("has {} bytes; at most {CLIENT_ID_BYTES_MAX} are allowed", id.len()));
    }
    if id.chars().any(char::is_control) {
        return Err(format!("{id:?} has a control character, which a client id cannot have"));
    }
    Ok(())
}
