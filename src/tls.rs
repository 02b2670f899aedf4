//! TLS: certificates and keys from files, made into what rustls wants.
//!
//! Promise: a file that cannot be used is named with the reason, before anything listens or
//! connects; a private key never appears in a message.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients are let in; without it no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
}

/// TLS of a connection to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFiles {
    /// Certificates of the authorities that the server's certificate may come from; without it, the system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain to show to the server, PEM.
    pub cert: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    pub key: Option<PathBuf>,
    /// Name to expect in the server's certificate, where it differs from the address.
    pub server_name: Option<String>,
    /// Also accept TLS 1.2, for servers that speak nothing newer.
    #[serde(default)]
    pub tls12: bool,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or holds nothing usable.
    #[error("{file}: {reason}", file = file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key are each readable but do not work together.
    #[error("{0}")]
    Unusable(String),
}

fn unusable(file: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { file: file.to_owned(), reason: reason.into() }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = std::fs::read(file).map_err(|error| unusable(file, format!("cannot be read: {error}")))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(file, "holds no certificate; expected PEM with BEGIN CERTIFICATE")),
        Err(error) => Err(unusable(file, format!("is no PEM certificate: {error}"))),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = std::fs::read(file).map_err(|error| unusable(file, format!("cannot be read: {error}")))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| unusable(file, "holds no private key; expected PEM with BEGIN PRIVATE KEY"))
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|error| unusable(file, format!("holds an unusable certificate: {error}")))?;
    }
    Ok(store)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(TlsError::Unusable(
            "the system has no root certificates; install ca-certificates or set tls.ca".into(),
        ));
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A configuration for a listener: TLS 1.2 and 1.3.
pub fn server(files: &ServerFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(file)?), provider())
                .build()
                .map_err(|error| unusable(file, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .map_err(|error| unusable(&files.key, format!("does not fit {}: {error}", files.cert.display())))?;
    Ok(Arc::new(config))
}

/// A configuration for connections to a server: TLS 1.3, and 1.2 where the files say so.
pub fn client(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let versions: &[&rustls::SupportedProtocolVersion] =
        if files.tls12 { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let store = files.ca.as_deref().map_or_else(system_roots, roots)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Unusable(error.to_string()))?
        .with_root_certificates(store);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| unusable(key, format!("does not fit {}: {error}", cert.display())))?,
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(TlsError::Unusable("tls.cert and tls.key go together; one of them is missing".into())),
    };
    Ok(Arc::new(config))
}
