//! The contents of certificate files in words, and whether a listener or a client accepts them.
//!
//! Promise: the verdict comes from the verifier that the gateway itself uses in a handshake.
//!
//! Not here: the wording of a failed handshake (`explain`).

use super::clients::{Certificates, Clients, of};
use super::names::alternative_names;
use super::pem::{TlsError, certificates, unusable};
use super::provider::provider;
use super::seal::environments;
use super::settings::ServerFiles;
use super::{own, roots};
use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

/// One certificate of a file.
#[derive(Debug, Serialize)]
pub struct CertificateFacts {
    pub subject: String,
    pub issuer: String,
    pub serial: String,
    /// Start and end of its validity, in seconds since 1970.
    pub from: i64,
    pub until: i64,
    /// Alternative names, such as `DNS:gw-01`.
    pub names: Vec<String>,
    pub environments: Vec<String>,
    /// Extended key usages.
    pub purposes: Vec<&'static str>,
    pub is_authority: bool,
    pub is_self_signed: bool,
    pub key: String,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
}

impl CertificateFacts {
    /// Reads every certificate of a file.
    pub fn read(file: &Path) -> Result<Vec<Self>, TlsError> {
        let of = |der: &rustls::pki_types::CertificateDer<'_>| {
            let (_, parsed) =
                X509Certificate::from_der(der).map_err(|_| unusable(file, "holds what is no X.509 certificate"))?;
            let names = alternative_names(&parsed).map_err(|error| unusable(file, error.to_string()))?;
            let usage = parsed.extended_key_usage().ok().flatten().map(|found| found.value);
            let mut purposes = Vec::new();
            if let Some(usage) = usage {
                let known = [
                    (usage.server_auth, "serverAuth"),
                    (usage.client_auth, "clientAuth"),
                    (usage.any, "any"),
                    (usage.code_signing, "codeSigning"),
                    (usage.email_protection, "emailProtection"),
                ];
                purposes.extend(known.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word));
            }
            Ok(Self {
                subject: parsed.subject().to_string(),
                issuer: parsed.issuer().to_string(),
                serial: parsed.raw_serial_as_string(),
                from: parsed.validity().not_before.timestamp(),
                until: parsed.validity().not_after.timestamp(),
                names: names.iter().map(name_in_words).collect(),
                environments: environments(der).unwrap_or_default(),
                purposes,
                is_authority: parsed.is_ca(),
                is_self_signed: parsed.subject().as_raw() == parsed.issuer().as_raw(),
                key: key_in_words(&parsed),
                fingerprint: Sha256::digest(der).iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                }),
            })
        };
        certificates(file)?.iter().map(of).collect()
    }
}

/// Returns the expiry of a certificate, in seconds since 1970.
pub fn end_of(certificate: &rustls::pki_types::CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn name_in_words(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(text) => format!("DNS:{text}"),
        GeneralName::URI(text) => format!("URI:{text}"),
        GeneralName::RFC822Name(text) => format!("email:{text}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(four), _) => format!("IP:{}", std::net::IpAddr::from(four)),
            (_, Ok(sixteen)) => format!("IP:{}", std::net::IpAddr::from(sixteen)),
            _ => "IP: malformed".into(),
        },
        other => other.to_string(),
    }
}

fn key_in_words(certificate: &X509Certificate<'_>) -> String {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("EC P-{}", point.key_size()),
        _ if certificate.public_key().algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".into(),
        _ => certificate.public_key().algorithm.algorithm.to_id_string(),
    }
}

/// Returns the proven name of a client with this certificate at a listener, or why the listener refuses it.
pub fn name_at_listener(file: &Path, listener: &ServerFiles) -> Result<String, String> {
    let chain = certificates(file).map_err(|error| error.to_string())?;
    let clients: Option<Clients> = of(listener, Certificates::Required).map_err(|error| error.to_string())?;
    let clients = clients.ok_or("the listener requests no certificates (client_ca is not set)")?;
    let now = Clients::now();
    let (first, others) = chain.split_first().ok_or("the file holds no certificate")?;
    clients.verifier().verify_client_cert(first, others, now).map_err(|error| reason(&error))?;
    clients.name(&chain, now).map_err(|error| error.to_string())
}

/// Returns why a client that trusts the authorities in `ca` refuses a server with this certificate. Without a host, only
/// the chain, the dates and the purpose count.
pub fn refusal_as_server(file: &Path, ca: &Path, host: Option<&str>) -> Option<String> {
    let verify = || -> Result<(), String> {
        let chain = certificates(file).map_err(|error| error.to_string())?;
        let (first, others) = chain.split_first().ok_or("the file holds no certificate")?;
        let store = roots(ca).map_err(|error| error.to_string())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider());
        let verifier = verifier.build().map_err(|error| error.to_string())?;
        let host = host.unwrap_or("name.invalid");
        let name = ServerName::try_from(host).map_err(|_| format!("\"{host}\" is no host name"))?;
        let now: UnixTime = Clients::now();
        verifier.verify_server_cert(first, others, &name, &[], now).map(drop).map_err(|error| match host {
            "name.invalid" if is_name_fault(&error) => String::new(),
            _ => reason(&error),
        })
    };
    verify().err().filter(|reason| !reason.is_empty())
}

fn is_name_fault(error: &rustls::Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(error, rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}

/// Returns why the gateway cannot use a certificate with a key; `None` if they belong together.
pub fn pair_fault(cert: &Path, key: &Path) -> Option<String> {
    own(cert, key, &super::CertificateSeal::default()).err().map(|error| error.to_string())
}

fn reason(error: &rustls::Error) -> String {
    let day = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds)
            .map_or_else(|_| seconds.to_string(), |time| time.strftime("%Y-%m-%d").to_string())
    };
    let rustls::Error::InvalidCertificate(fault) = error else { return error.to_string() };
    match fault {
        CertificateError::UnknownIssuer => {
            "no authority that it trusts has issued the certificate, or an intermediate certificate is missing in the file".into()
        }
        CertificateError::ExpiredContext { not_after, .. } => format!("it expired on {}", day(not_after)),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("it is valid from {} on; check the clock", day(not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => match presented.is_empty() {
            true => "it has no alternative name (subjectAltName); a common name does not count".into(),
            false => format!("it is for {}, not for {}", presented.join(", "), expected.to_str()),
        },
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this purpose".into()
        }
        CertificateError::Revoked => "it is revoked".into(),
        CertificateError::ExpiredRevocationListContext { next_update, .. } => {
            format!("the revocation list of its authority ended on {}", day(next_update))
        }
        CertificateError::BadSignature => "an authority of the same name with another key has issued it".into(),
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is the certificate of an authority (CA:TRUE); an authority issues certificates for others".into()
        }
        CertificateError::Other(other) if format!("{other:?}").contains("UnsupportedCertVersion") => {
            "it has X.509 version 1; version 3 is required".into()
        }
        fault => fault.to_string(),
    }
}
