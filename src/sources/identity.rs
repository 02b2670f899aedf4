//! Who a client is: the name that it proved and how, or the name that it merely claims.
//!
//! Promise: [`Identity::proven`] is a name that a password, a certificate or a token proves, and nothing else; a client
//! id and the user name of an anonymous client are never in it.
//! An identity keeps what let the client in, so that it can be judged again later. It holds no secret.
//!
//! Not here: what a name may do (`mqtt::acl`), who may have which name (`mqtt::login`, `http::tokens`, `tls`).

use crate::contract::Sender;
use crate::event::AuthType;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Digest of the stored entry (password hash or token hash) that a login was checked against. Another password, also
/// for the same name, has another one. It is no secret: a password cannot be tried against it without the entry's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof([u8; 32]);

impl Proof {
    /// The proof of a stored entry.
    pub(crate) fn of(entry: &[u8]) -> Self {
        Self(Sha256::digest(entry).into())
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
    },
    /// The subject of a client certificate.
    Certificate {
        /// The name in the certificate.
        name: String,
        /// The chain that the client presented, its own certificate first.
        chain: Arc<[CertificateDer<'static>]>,
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
