//! The identity of a client: its authenticated name and the method of authentication, or a name that it only claims.
//!
//! Promise: [`Identity::proven`] is a name that a password, a certificate or a token proves. It is never a client id or
//! the user name of an anonymous client.
//! An identity keeps the evidence of the login for later checks. It contains no secret.
//!
//! Not here: authorisation (`mqtt::acl`), authentication (`mqtt::login`, `http::tokens`, `tls`).

use crate::contract::Sender;
use crate::event::AuthType;
use crate::tls::Clients;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{HandshakeKind, ServerConnection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// The longest name, in bytes: names are part of topics, events and log lines.
const NAME_BYTES_MAX: usize = 128;

/// Checks that a text can be the name of a client: it is one level of a topic, matches no other name, and contains
/// no characters that a reader cannot see.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_bad = |c: char| c.is_control() || is_invisible(c) || matches!(c, '/' | '+' | '#' | '*');
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with('$')
        || name.trim() != name
        || name.contains(is_bad)
    {
        return Err(format!(
            "\"{}\" cannot be a name; allowed are 1 to {NAME_BYTES_MAX} bytes without \"/\", \"+\", \"#\", \"*\", control and invisible characters, without blanks at the ends and a leading \"$\"",
            name.escape_debug()
        ));
    }
    Ok(())
}

/// Invisible characters and direction marks: two names that look equal could differ by them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Digest of the stored entry (password hash or token hash) against which a login was checked. It changes with the
/// password. It is no secret: without the salt of the entry, passwords cannot be tested against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof([u8; 32]);

impl Proof {
    /// The proof of a stored entry.
    pub(crate) fn of(entry: &[u8]) -> Self {
        Self(Sha256::digest(entry).into())
    }
}

/// Why a certificate gives no usable name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unnamed(String);

/// The certificate chain that a client presented, its own certificate first.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    certificates: Arc<[CertificateDer<'static>]>,
    at: UnixTime,
}

/// Stored form of a chain: each certificate as DER, and the time of the verification in seconds since 1970.
pub(crate) type StoredChain = (Vec<Vec<u8>>, u64);

impl Chain {
    /// Converts the chain to its stored form.
    pub(crate) fn stored(&self) -> StoredChain {
        (self.certificates.iter().map(|one| one.to_vec()).collect(), self.at.as_secs())
    }

    /// Restores a chain from its stored form.
    pub(crate) fn restore((certificates, at): StoredChain) -> Self {
        let certificates = certificates.into_iter().map(CertificateDer::from).collect();
        Self { certificates, at: UnixTime::since_unix_epoch(Duration::from_secs(at)) }
    }

    /// Whether the chain is still trusted and not revoked.
    pub(crate) fn is_trusted(&self, clients: &Clients) -> bool {
        clients.accept(&self.certificates, self.at)
    }
}

/// A client's certificate after the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Presented {
    pub(crate) chain: Chain,
    name: Result<String, Unnamed>,
}

impl Presented {
    /// The certificate of a connection after its handshake; `None` if the client presented none. The error says why the
    /// certificate of a resumed session is no longer trusted.
    pub(crate) fn of(clients: &Clients, session: &ServerConnection) -> Result<Option<Self>, Unnamed> {
        let shown = session.peer_certificates().filter(|chain| !chain.is_empty());
        let Some(certificates) = shown else { return Ok(None) };
        let chain = Chain { certificates: certificates.into(), at: Clients::now() };
        // A resumed session has the certificates of the earlier session, which were not verified again.
        if session.handshake_kind() == Some(HandshakeKind::Resumed) && !chain.is_trusted(clients) {
            return Err(Unnamed(
                "the certificate of its resumed session has expired, or is not trusted any more".into(),
            ));
        }
        let name = clients.name(certificates, chain.at).map_err(|error| Unnamed(error.to_string())).and_then(|name| {
            let usable = check_name(&name).map_err(|error| Unnamed(format!("its certificate names nobody: {error}")));
            usable.map(|()| name)
        });
        Ok(Some(Self { chain, name }))
    }

    /// The identity that the certificate proves; the error says why its name is not usable.
    pub(crate) fn identity(&self) -> Result<Identity, Unnamed> {
        let name = self.name.clone()?;
        Ok(Identity::Certificate { name, chain: self.chain.clone() })
    }
}

/// The identity of a client.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// A user of the password file.
    Password {
        name: String,
        /// Digest of the entry of the password file.
        proof: Proof,
        /// The client's certificate chain, if the listener requests certificates.
        chain: Option<Chain>,
    },
    /// The subject of a client certificate.
    Certificate {
        /// The name in the certificate.
        name: String,
        chain: Chain,
    },
    /// The holder of a bearer token.
    Token {
        /// The name that the token stands for.
        name: String,
    },
    /// A client that proved nothing.
    Anonymous {
        /// The unverified user name of the client; empty if it sent none.
        claimed: String,
    },
}

impl Identity {
    /// The name that the client proved; `None` for an anonymous client.
    pub(crate) fn proven(&self) -> Option<&str> {
        match self {
            Self::Password { name, .. } | Self::Certificate { name, .. } | Self::Token { name } => Some(name),
            Self::Anonymous { .. } => None,
        }
    }

    /// The sender of the events of a client with this client id.
    pub(crate) fn sender<'a>(&'a self, client: &'a str) -> Sender<'a> {
        let proven_by = match self {
            Self::Password { .. } => Some(AuthType::User),
            Self::Certificate { .. } => Some(AuthType::ServiceAccount),
            Self::Token { .. } => Some(AuthType::ApiKey),
            Self::Anonymous { .. } => None,
        };
        Sender { client, user: self.name(), proven_by }
    }

    /// The proven name, or the claimed name of an anonymous client. For display only: it grants no rights.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Password { name, .. } | Self::Certificate { name, .. } | Self::Token { name } => name,
            Self::Anonymous { claimed } => claimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_level_that_can_be_read() {
        for good in ["press-4", "press-4.plant", "urn:press:4", "a@plant", "Prüfstand 1", "x"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in [
            "",
            " ",
            "a ",
            "\ta",
            "a/b",
            "/",
            "+",
            "a+",
            "#",
            "*.plant",
            "$SYS",
            "a\0",
            "a\nb",
            "a\u{7f}",
            "a\u{200b}",
            "\u{202e}a",
            "\u{feff}",
            &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
