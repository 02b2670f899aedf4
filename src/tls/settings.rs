//! The TLS settings of listeners and of connections to servers.
//!
//! Invariant: settings name files; no value of theirs is a secret.

use super::revocation::CrlExpiry;
use super::seal::CertificateSeal;
use serde::Deserialize;
use std::path::PathBuf;

/// TLS settings of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Certificates of the authorities that issue client certificates; without it, the gateway requests none.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these authorities, PEM. The gateway rejects a client if its certificate or
    /// an issuing authority is revoked.
    pub crl: Option<PathBuf>,
    /// Treatment of clients after the revocation list of their authority has expired.
    #[serde(default)]
    pub crl_expiry: CrlExpiry,
    /// Which part of a client's certificate is its name.
    #[serde(default)]
    pub identity: NameKind,
    /// The environment to which `cert` must belong.
    #[serde(skip)]
    pub seal: CertificateSeal,
}

/// The part of a certificate that names its client: the first name of this kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameKind {
    /// A DNS name among the alternative names.
    #[default]
    Dns,
    /// A URI among the alternative names.
    Uri,
    /// A mail address among the alternative names.
    Email,
    /// The common name of the subject, if an authority in `client_ca` issued the certificate directly.
    CommonName,
}

impl NameKind {
    /// Returns the value of the setting `identity`.
    pub fn written(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Uri => "uri",
            Self::Email => "email",
            Self::CommonName => "common-name",
        }
    }

    /// Returns the name of the kind for messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::Dns => "DNS name",
            Self::Uri => "URI",
            Self::Email => "mail address",
            Self::CommonName => "common name",
        }
    }
}

/// TLS settings of a connection to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFiles {
    /// Certificates of the authorities that may issue the server's certificate; without it, those of the system.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    pub key: Option<PathBuf>,
    /// Expected name in the server's certificate, if it differs from the address. It is sent to the server, too (SNI).
    pub server_name: Option<String>,
    /// Application protocols to offer (ALPN), for servers that choose their protocol by it.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Whether to accept TLS 1.2 as well, for servers without TLS 1.3.
    #[serde(default)]
    pub tls12: bool,
    /// The environment to which `cert` must belong.
    #[serde(skip)]
    pub seal: CertificateSeal,
}

impl ClientFiles {
    /// Whether any TLS setting is present.
    pub fn is_set(&self) -> bool {
        *self != Self { seal: self.seal.clone(), ..Self::default() }
    }
}

/// A setting of a part that names files or a folder, with its key in the part.
#[derive(Debug)]
pub enum NamedFile<'a> {
    /// A secret, which only the service may read.
    Secret(&'static str, &'a mut PathBuf),
    /// A file or a folder without secrets.
    Plain(&'static str, &'a mut PathBuf),
    /// Certificates and key of a listener.
    Server(&'static str, &'a mut ServerFiles),
    /// Certificates and key of a connection to a server.
    Client(&'static str, &'a mut ClientFiles),
}
