//! TLS: builds rustls configurations from certificate and key files.
//!
//! Promise: an error names the unusable file and the reason, before the gateway listens or connects; a private key never
//! appears in a message. The gateway never presents a certificate that belongs to another environment.
//!
//! Certificates are verified at [`crate::clock::for_certificates`]: a clock that starts in 1970 does not keep the gateway from
//! connecting to central, and a certificate that expired before the latest known time stays rejected.

mod chain;
mod clients;
mod constraints;
mod explain;
mod facts;
mod issue;
mod names;
mod pem;
mod provider;
mod revocation;
mod seal;
mod settings;

pub use clients::{Certificates, Clients, NoName};
pub use explain::{explain, is_fault};
pub use facts::{CertificateFacts, end_of, name_at_listener, pair_fault, refusal_as_server};
pub use issue::{AlternativeName, Authority, Purpose, Subject, is_issued_by, key_in, new_key, signing_request};
pub use pem::TlsError;
pub use revocation::{CrlExpiry, Validity};
pub use seal::CertificateSeal;
pub use settings::{ClientFiles, NameKind, NamedFile, ServerFiles};

use chain::key_fault;
use names::NO_CERTIFICATE;
use pem::{certificates, private_key, unusable};
use provider::{VerificationTime, certificate_fault, provider};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use seal::{ENVIRONMENT, environments};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Loads a certificate of the gateway with its key.
fn own(cert: &Path, key: &Path, seal: &CertificateSeal) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let chain = certificates(cert)?;
    let der = private_key(key)?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&der).map_err(|error| match chain.first() {
        Some(leaf) => key_fault(leaf).map_or_else(|| mismatch(key, cert, &error), |reason| unusable(key, reason)),
        None => mismatch(key, cert, &error),
    })?;
    let chain = chain::in_order(chain, &signing);
    if let Some(leaf) = chain.first() {
        seal.check(cert, leaf)?;
    }
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(error) => return Err(mismatch(key, cert, &error)),
    }
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

/// Returns the error for a key and a certificate that cannot be used together.
fn mismatch(key: &Path, cert: &Path, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InvalidCertificate(_) => unusable(cert, certificate_fault(error)),
        rustls::Error::InconsistentKeys(_) => {
            unusable(key, format!("does not fit {}: it is the key of another certificate", cert.display()))
        }
        _ => unusable(key, format!("does not fit {}: {error}", cert.display())),
    }
}

/// Rejects a server whose certificate names another environment.
pub fn check_server(files: &ClientFiles, certificates: Option<&[CertificateDer<'_>]>) -> Result<(), TlsError> {
    let (Some(leaf), own) = (certificates.and_then(<[_]>::first), &files.seal.environment) else { return Ok(()) };
    if own.is_empty() {
        return Ok(());
    }
    let wrong = |reason| TlsError::Unusable(format!("the certificate of the server {reason}"));
    let named = environments(leaf).map_err(wrong)?;
    match named.first() {
        Some(other) if !named.contains(own) => Err(TlsError::Unusable(format!(
            "the server belongs to environment \"{other}\" (its certificate has the alternative name URI:{ENVIRONMENT}{other}), not to \"{own}\""
        ))),
        _ => Ok(()),
    }
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|error| unusable(file, certificate_fault(&error)))?;
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

/// The TLS configuration of a listener and the verifier of its clients.
#[derive(Debug)]
pub struct Served {
    pub config: Arc<ServerConfig>,
    /// Verifies client certificates; `None` if the listener requests none.
    pub clients: Option<Clients>,
}

/// Builds the configuration of a listener: TLS 1.2 and 1.3. With a `client_ca`, clients must present a certificate.
pub fn server(files: &ServerFiles) -> Result<Arc<ServerConfig>, TlsError> {
    Ok(served(files, Certificates::Required)?.config)
}

/// Builds the configuration of a listener and the verifier of its clients; `certificates_of_clients` says whether a
/// client must present a certificate.
pub fn served(files: &ServerFiles, certificates_of_clients: Certificates) -> Result<Served, TlsError> {
    let clients = clients::of(files, certificates_of_clients)?;
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(VerificationTime))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    let builder = match &clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
    };
    let config = Arc::new(builder.with_cert_resolver(own(&files.cert, &files.key, &files.seal)?));
    Ok(Served { config, clients })
}

/// Longest name of an application protocol (RFC 7301).
const ALPN_BYTES_MAX: usize = 255;

/// Builds the configuration for connections to a server: TLS 1.3, and 1.2 with the setting `tls12`.
pub fn client(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let versions: &[&rustls::SupportedProtocolVersion] =
        if files.tls12 { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let store = files.ca.as_deref().map_or_else(system_roots, roots)?;
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(VerificationTime))
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Unusable(error.to_string()))?
        .with_root_certificates(store);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => builder.with_client_cert_resolver(own(cert, key, &files.seal)?),
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(TlsError::Unusable("tls.cert and tls.key go together; one of them is missing".into())),
    };
    if let Some(wrong) = files.alpn.iter().find(|name| !(1..=ALPN_BYTES_MAX).contains(&name.len())) {
        return Err(TlsError::Unusable(format!(
            "tls.alpn: \"{wrong}\" is no protocol; 1 to {ALPN_BYTES_MAX} bytes are allowed, such as \"x-amzn-mqtt-ca\""
        )));
    }
    config.alpn_protocols = files.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Arc::new(config))
}

/// A certificate file in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    pub path: PathBuf,
    /// Purpose of its certificates: `own`, `authority of servers`, `authority of clients`.
    pub what: &'static str,
}

/// A file of revocation lists in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationFile {
    pub path: PathBuf,
    /// Treatment of clients after a list has expired.
    pub crl_expiry: CrlExpiry,
}

impl RevocationFile {
    /// Returns the validity of the list that expires first. Reads the file.
    pub fn validity(&self) -> Result<Validity, TlsError> {
        revocation::RevocationLists::read(&self.path)?
            .validity()
            .ok_or_else(|| unusable(&self.path, "holds no revocation list"))
    }
}

impl CertificateFile {
    /// Returns the earliest expiry of its certificates, in seconds since 1970. Reads the file.
    pub fn expiry(&self) -> Result<i64, TlsError> {
        let not_after = |certificate: &CertificateDer<'_>| {
            let parsed = X509Certificate::from_der(certificate);
            let (_, parsed) = parsed.map_err(|_| unusable(&self.path, format!("holds what {NO_CERTIFICATE}")))?;
            Ok(parsed.validity().not_after.timestamp())
        };
        let all = certificates(&self.path)?.iter().map(not_after).collect::<Result<Vec<_>, TlsError>>()?;
        all.into_iter().min().ok_or_else(|| unusable(&self.path, "holds no certificate"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    #[test]
    fn a_certificate_of_another_environment_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let (cert, key) = (folder.path().join("gw.pem"), folder.path().join("gw.key"));
        let tried = |uris: &[&str], is_required: bool| {
            let mut params = CertificateParams::new(vec!["gw-01".to_owned()]).expect("parameters");
            params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI"))));
            let pair = KeyPair::generate().expect("key");
            std::fs::write(&cert, params.self_signed(&pair).expect("certificate").pem()).expect("written");
            std::fs::write(&key, pair.serialize_pem()).expect("written");
            let seal = CertificateSeal { environment: "test".into(), is_required };
            let shown = client(&ClientFiles {
                ca: Some(cert.clone()),
                cert: Some(cert.clone()),
                key: Some(key.clone()),
                seal: seal.clone(),
                ..ClientFiles::default()
            });
            let served = server(&ServerFiles { cert: cert.clone(), key: key.clone(), seal, ..ServerFiles::default() });
            let said = shown.err().map(|error| error.to_string());
            assert_eq!(said, served.err().map(|error| error.to_string()));
            said.unwrap_or_default()
        };
        assert_eq!(tried(&[], false), "");
        assert_eq!(tried(&["forebay:environment:test"], true), "");
        assert_eq!(tried(&["urn:x", "forebay:environment:production", "forebay:environment:test"], true), "");
        let text = tried(&["forebay:environment:production"], false);
        assert!(
            text.contains("gw.pem: belongs to environment \"production\"") && text.contains("not to \"test\""),
            "{text}"
        );
        let text = tried(&["urn:x"], true);
        assert!(text.contains("names no environment") && text.contains("URI:forebay:environment:test"), "{text}");
    }
}
