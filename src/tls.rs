//! TLS: builds rustls configurations from certificate and key files.
//!
//! Promise: an error names the unusable file and the reason, before the gateway listens or connects; a private key never
//! appears in a message. The gateway never presents a certificate that belongs to another environment.
//!
//! Certificates are verified at [`clock::for_certificates`]: a clock that starts in 1970 does not keep the gateway from
//! connecting to central, and a certificate that expired before the latest known time stays rejected.

mod clients;
mod constraints;
mod names;
mod revocation;

pub use clients::{Clients, NoName};
pub use revocation::{CrlExpiry, Validity};

use crate::clock;
use crate::secret::Secret;
use base64::Engine;
use names::alternative_names;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// Prefix of the alternative name (URI) that assigns a certificate to an environment.
const ENVIRONMENT: &str = "forebay:environment:";

/// The environment to which the gateway's own certificates must belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateSeal {
    /// Name of the environment; empty to accept any.
    pub environment: String,
    /// Whether a certificate must name the environment; one that names another is rejected in any case.
    pub is_required: bool,
}

/// TLS settings of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificates of the authorities that issue client certificates; without it, the gateway requests none.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these authorities, PEM. The gateway rejects a client if its certificate or an issuing
    /// authority is revoked.
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
    /// Client certificate chain, PEM.
    pub cert: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    pub key: Option<PathBuf>,
    /// Expected name in the server's certificate, if it differs from the address.
    pub server_name: Option<String>,
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

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or its content cannot be used.
    #[error("{file}: {reason}", file = file.display())]
    File {
        file: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// The files or settings cannot be used together, or the server's certificate is rejected.
    #[error("{0}")]
    Unusable(String),
}

fn unusable(file: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { file: file.to_owned(), reason: reason.into() }
}

/// Reads all items of a type from a PEM file; at least one. `what` names the type, `begin` is its PEM label.
fn pem<T: PemObject>(file: &Path, what: &str, begin: &str) -> Result<Vec<T>, TlsError> {
    let read = Secret::read(file).map_err(|error| unusable(file, format!("cannot be read: {}", error.reason)))?;
    let found: Result<Vec<_>, _> = T::pem_slice_iter(read.bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(file, format!("holds no {what}; expected PEM with BEGIN {begin}"))),
        Err(error) => Err(unusable(file, format!("is no PEM {what}: {error}"))),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem(file, "certificate", "CERTIFICATE")
}

fn private_key(file: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, TlsError> {
    let pem = Secret::read(file).map_err(|error| unusable(file, format!("cannot be read: {}", error.reason)))?;
    key_of_pem(pem.line().unwrap_or_default()).map_err(|reason| unusable(file, reason))
}

/// Returns the first private key of a PEM text. It is parsed here because PEM libraries do not overwrite their copies of
/// the key in memory.
fn key_of_pem(text: &str) -> Result<Zeroizing<PrivateKeyDer<'static>>, String> {
    const NONE: &str = "holds no private key; expected PEM with BEGIN PRIVATE KEY";
    const KINDS: [&str; 4] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"];
    let is_boundary = |line: &str, edge: &str, kind: &str| {
        line.strip_prefix(edge).and_then(|rest| rest.trim_end().strip_suffix("-----")) == Some(kind)
    };
    let mut lines = text.lines().map(str::trim);
    let kind = lines.find_map(|line| KINDS.into_iter().find(|kind| is_boundary(line, "-----BEGIN ", kind)));
    let kind = kind.ok_or(NONE)?;
    let mut body = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut is_whole = false;
    for line in lines {
        if is_boundary(line, "-----END ", kind) {
            is_whole = true;
            break;
        }
        if line.contains("ENCRYPTED") || kind == "ENCRYPTED PRIVATE KEY" {
            return Err("holds an encrypted key; the gateway cannot ask for a passphrase: store the key without one, readable by the service alone".into());
        }
        body.extend_from_slice(line.as_bytes());
    }
    let der =
        base64::engine::general_purpose::STANDARD.decode(body.as_slice()).ok().filter(|_| is_whole).ok_or(NONE)?;
    Ok(Zeroizing::new(match kind {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(der.into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(der.into()),
        _ => PrivateKeyDer::Pkcs8(der.into()),
    }))
}

/// Loads a certificate of the gateway with its key.
fn own(cert: &Path, key: &Path, seal: &CertificateSeal) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let chain = certificates(cert)?;
    if let Some(leaf) = chain.first() {
        seal.check(cert, leaf)?;
    }
    let der = private_key(key)?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&der).map_err(|error| mismatch(key, cert, &error))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(error) => return Err(mismatch(key, cert, &error)),
    }
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

impl CertificateSeal {
    /// Rejects a certificate of another environment, and one without an environment if it must name one.
    fn check(&self, file: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
        if self.environment.is_empty() {
            return Ok(());
        }
        let named = environments(certificate).map_err(|reason| unusable(file, reason))?;
        if named.contains(&self.environment) {
            return Ok(());
        }
        match named.first() {
            Some(other) => Err(unusable(
                file,
                format!(
                    "belongs to environment \"{other}\" (alternative name URI:{ENVIRONMENT}{other}), not to \"{}\"",
                    self.environment
                ),
            )),
            None if self.is_required => Err(unusable(
                file,
                format!(
                    "names no environment, and sealed_certificates wants it; have it issued with the alternative name URI:{ENVIRONMENT}{}",
                    self.environment
                ),
            )),
            None => Ok(()),
        }
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

/// Reason for rejecting bytes that are not a certificate.
const NO_CERTIFICATE: &str = "is no certificate as X.509 wants it (DER, RFC 5280)";

/// Returns the environments that a certificate names. Fails if the certificate or one of its names is malformed: that
/// name may be the one of another environment.
fn environments(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| NO_CERTIFICATE)?;
    let names = alternative_names(&parsed).map_err(|malformed| malformed.to_string())?;
    let environment = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) => text.strip_prefix(ENVIRONMENT).map(str::to_owned),
        _ => None,
    };
    Ok(names.iter().filter_map(environment).collect())
}

/// Provides the time at which certificates are verified.
#[derive(Debug)]
struct VerificationTime;

impl TimeProvider for VerificationTime {
    fn current_time(&self) -> Option<UnixTime> {
        clock::for_certificates().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Returns the error for a key and a certificate that cannot be used together.
fn mismatch(key: &Path, cert: &Path, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InvalidCertificate(_) => unusable(cert, certificate_fault(error)),
        _ => unusable(key, format!("does not fit {}: {error}", cert.display())),
    }
}

/// Explains why rustls rejects a certificate.
fn certificate_fault(error: &rustls::Error) -> String {
    let text = error.to_string();
    if text.contains("UnsupportedCertVersion") {
        return "holds an X.509 version 1 certificate; it must be of version 3, as `openssl req -x509` or `openssl x509 -req -extfile …` creates it".into();
    }
    format!("holds an unusable certificate: {text}")
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

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whether a client of a listener with `client_ca` must present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// The handshake fails without one.
    Required,
    /// A client without one authenticates by other means after the handshake.
    Optional,
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

/// Builds the configuration for connections to a server: TLS 1.3, and 1.2 with the setting `tls12`.
pub fn client(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let versions: &[&rustls::SupportedProtocolVersion] =
        if files.tls12 { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let store = files.ca.as_deref().map_or_else(system_roots, roots)?;
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(VerificationTime))
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Unusable(error.to_string()))?
        .with_root_certificates(store);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => builder.with_client_cert_resolver(own(cert, key, &files.seal)?),
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(TlsError::Unusable("tls.cert and tls.key go together; one of them is missing".into())),
    };
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
    fn keys_are_read_in_each_form_or_refused_with_a_word() {
        let pair = KeyPair::generate().expect("key");
        let pem = pair.serialize_pem();
        let read = key_of_pem(&pem).expect("reads");
        assert_eq!(*read, PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("the same"));
        // The form that openssl writes: parameters first, CRLF line ends, trailing text.
        let other = format!(
            "-----BEGIN EC PARAMETERS-----\r\nBggq\r\n-----END EC PARAMETERS-----\r\n{}x",
            pem.replace('\n', "\r\n")
        );
        assert_eq!(*key_of_pem(&other).expect("reads"), *read);
        assert!(matches!(*key_of_pem(&pem.replace("PRIVATE", "EC PRIVATE")).expect("reads"), PrivateKeyDer::Sec1(_)));
        assert!(matches!(*key_of_pem(&pem.replace("PRIVATE", "RSA PRIVATE")).expect("reads"), PrivateKeyDer::Pkcs1(_)));
        for wrong in [
            "",
            "sesame",
            &pem.replace("PRIVATE", "PUBLIC"),
            &pem[..pem.len() / 2],
            &pem.replace("END", "BEGIN"),
            &pem.replace('M', "*"),
        ] {
            let said = key_of_pem(wrong).expect_err("refused");
            assert!(said.contains("BEGIN PRIVATE KEY"), "{said}");
        }
        for locked in
            [pem.replace("PRIVATE", "ENCRYPTED PRIVATE"), pem.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n", 1)]
        {
            assert!(key_of_pem(&locked).expect_err("refused").contains("encrypted key"));
        }
    }

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
