//! The environment that a certificate belongs to.
//!
//! Promise: the gateway presents no certificate of another environment, and talks to no server of another one.

use super::names::{NO_CERTIFICATE, alternative_names};
use super::pem::{TlsError, unusable};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Prefix of the alternative name (URI) that assigns a certificate to an environment.
pub(super) const ENVIRONMENT: &str = "forebay:environment:";

/// The environment to which the gateway's own certificates must belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateSeal {
    /// Name of the environment; empty to accept any.
    pub environment: String,
    /// Whether a certificate must name the environment; one that names another is rejected in any case.
    pub is_required: bool,
}

impl CertificateSeal {
    /// Rejects a certificate of another environment, and one without an environment if it must name one.
    pub(super) fn check(&self, file: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
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

/// Returns the environments that a certificate names. Fails if the certificate or one of its names is malformed: that
/// name may be the one of another environment.
pub(super) fn environments(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| NO_CERTIFICATE)?;
    let names = alternative_names(&parsed).map_err(|malformed| malformed.to_string())?;
    let environment = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) => text.strip_prefix(ENVIRONMENT).map(str::to_owned),
        _ => None,
    };
    Ok(names.iter().filter_map(environment).collect())
}
