//! Who a client is: the name that it proved and how, or the name that it merely claims.
//!
//! Promise: [`Identity::proven`] is a name that a password, a certificate or a token proves, and nothing else; a client
//! id and the user name of an anonymous client are never in it.
//! An identity keeps what let the client in, so that it can be judged again later. It holds no secret.
//!
//! Not here: what a name may do (`mqtt::acl`), who may have which name (`mqtt::login`, `http::tokens`, `tls`).

use crate::contract::Sender;
use crate::event::AuthType;
use crate::tls::Clients;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{HandshakeKind, ServerConnection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// The longest name, in bytes: it stands in topics, in events and in every line of a log.
const NAME_BYTES_MAX: usize = 128;

/// Whether something can be the name of a client: it stands for one level of a topic and for nobody else, and a person
/// who reads it sees all of it.
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

/// Marks that are not seen, or turn the direction of what is: two names that look the same would differ by them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Digest of the stored entry (password hash or token hash) that a login was checked against. Another password, also
/// for the same name, has another one. It is no secret: a password cannot be tried against it without the entry's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof([u8; 32]);

impl Proof {
    /// The proof of a stored entry.
    pub(crate) fn of(entry: &[u8]) -> Self {
        Self(Sha256::digest(entry).into())
    }
}

/// Why a certificate names nobody who can be known here.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unnamed(String);

/// The certificates that a client presented, its own first.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    certificates: Arc<[CertificateDer<'static>]>,
    /// When they were trusted.
    at: UnixTime,
}

/// Certificates as they are stored: each as DER, and when they were trusted, in seconds since 1970.
pub(crate) type StoredChain = (Vec<Vec<u8>>, u64);

impl Chain {
    /// As it is stored.
    pub(crate) fn stored(&self) -> StoredChain {
        (self.certificates.iter().map(|one| one.to_vec()).collect(), self.at.as_secs())
    }

    /// What [`Chain::stored`] made.
    pub(crate) fn restore((certificates, at): StoredChain) -> Self {
        let certificates = certificates.into_iter().map(CertificateDer::from).collect();
        Self { certificates, at: UnixTime::since_unix_epoch(Duration::from_secs(at)) }
    }

    /// Whether they are still trusted, and not revoked.
    pub(crate) fn is_trusted(&self, clients: &Clients) -> bool {
        clients.accept(&self.certificates, self.at)
    }
}

/// A client's certificate behind the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Presented {
    /// What the client presented.
    pub(crate) chain: Chain,
    name: Result<String, Unnamed>,
}

impl Presented {
    /// The certificate of a connection whose handshake is done; `None` where the client showed none. The error says why
    /// it is not trusted any more.
    pub(crate) fn of(clients: &Clients, session: &ServerConnection) -> Result<Option<Self>, Unnamed> {
        let shown = session.peer_certificates().filter(|chain| !chain.is_empty());
        let Some(certificates) = shown else { return Ok(None) };
        let chain = Chain { certificates: certificates.into(), at: Clients::now() };
        // A session that is resumed has the certificates of the one before, which nobody has judged since.
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

    /// Whom it names, or why nobody who can be known here.
    pub(crate) fn identity(&self) -> Result<Identity, Unnamed> {
        let name = self.name.clone()?;
        Ok(Identity::Certificate { name, chain: self.chain.clone() })
    }
}

/// Who a client is.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// A user of the password file.
    Password {
        /// The user name.
        name: String,
        /// The entry of the password file that let the client in.
        proof: Proof,
        /// What the client presented beside it, where the listener asks for certificates.
        chain: Option<Chain>,
    },
    /// The subject of a client certificate.
    Certificate {
        /// The name in the certificate.
        name: String,
        /// What the client presented.
        chain: Chain,
    },
    /// The holder of a bearer token.
    Token {
        /// The name that the token stands for.
        name: String,
    },
    /// Somebody who proved nothing.
    Anonymous {
        /// The user name that the client gave; empty if it gave none. Nobody has checked it.
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

    /// The sender of what a client hands in under this client id.
    pub(crate) fn sender<'a>(&'a self, client: &'a str) -> Sender<'a> {
        let proven_by = match self {
            Self::Password { .. } => Some(AuthType::User),
            Self::Certificate { .. } => Some(AuthType::ServiceAccount),
            Self::Token { .. } => Some(AuthType::ApiKey),
            Self::Anonymous { .. } => None,
        };
        Sender { client, user: self.name(), proven_by }
    }

    /// The proven name, or what an anonymous client claims to be called. For people to look at: it grants nothing.
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
