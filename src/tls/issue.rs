//! Issues certificates: authorities, certificates for gateways, devices and programs, and signing requests.
//!
//! Promise: every certificate has X.509 version 3, a random serial number, alternative names and a purpose. It never
//! outlives its authority. A private key leaves this module only as PEM text that is overwritten when it is dropped.
//!
//! Not here: files, their owners and modes (`cli/cert`).

use super::names::alternative_names;
use super::pem::{TlsError, certificates, private_key, unusable};
use super::seal::ENVIRONMENT;
use crate::clock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// A certificate is valid from this long before its issue: the clock of a peer may be slow.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The sides of a TLS connection that a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Server,
    Client,
    /// A gateway: server for its devices, client of central.
    Both,
}

/// One alternative name of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    Dns(String),
    Ip(IpAddr),
    Uri(String),
    Email(String),
}

impl AlternativeName {
    /// Returns an address or a DNS name.
    pub fn host(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }

    /// Returns the name that assigns a certificate to an environment.
    pub fn environment(environment: &str) -> Self {
        Self::Uri(format!("{ENVIRONMENT}{environment}"))
    }
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Uri(text) | Self::Email(text) => f.write_str(text),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// The contents of a certificate or of a signing request, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Common name.
    pub name: String,
    pub names: Vec<AlternativeName>,
    pub purpose: Purpose,
}

impl Subject {
    /// Reads the subject of the first certificate of a file.
    pub fn of(file: &Path) -> Result<Self, TlsError> {
        let all = certificates(file)?;
        let parsed = all.first().and_then(|first| X509Certificate::from_der(first).ok());
        let (_, parsed) = parsed.ok_or_else(|| unusable(file, "holds no readable certificate"))?;
        let names = alternative_names(&parsed).map_err(|error| unusable(file, error.to_string()))?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(text) => Some(AlternativeName::Dns((*text).to_owned())),
            GeneralName::URI(text) => Some(AlternativeName::Uri((*text).to_owned())),
            GeneralName::RFC822Name(text) => Some(AlternativeName::Email((*text).to_owned())),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| AlternativeName::Ip(IpAddr::from(bytes))),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| AlternativeName::Ip(IpAddr::from(bytes))),
            },
            _ => None,
        });
        let names = names.collect();
        let usage =
            parsed.extended_key_usage().ok().flatten().map(|found| (found.value.server_auth, found.value.client_auth));
        let purpose = match usage {
            Some((true, false)) => Purpose::Server,
            Some((false, true)) => Purpose::Client,
            _ => Purpose::Both,
        };
        Ok(Self { name: name.unwrap_or_default().to_owned(), names, purpose })
    }

    fn params(&self) -> Result<CertificateParams, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&self.name);
        params.subject_alt_names = self.names.iter().map(alternative).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match self.purpose {
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        Ok(params)
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn alternative(name: &AlternativeName) -> Result<SanType, TlsError> {
    let wrong = |text: &str| TlsError::Unusable(format!("\"{text}\" is no name for a certificate; ASCII is allowed"));
    Ok(match name {
        AlternativeName::Ip(address) => SanType::IpAddress(*address),
        AlternativeName::Dns(text) => SanType::DnsName(text.as_str().try_into().map_err(|_| wrong(text))?),
        AlternativeName::Uri(text) => SanType::URI(text.as_str().try_into().map_err(|_| wrong(text))?),
        AlternativeName::Email(text) => SanType::Rfc822Name(text.as_str().try_into().map_err(|_| wrong(text))?),
    })
}

fn failed(error: rcgen::Error) -> TlsError {
    TlsError::Unusable(format!("cannot make the certificate: {error}"))
}

/// Creates a private key (ECDSA P-256), as PEM.
pub fn new_key() -> Result<Zeroizing<String>, TlsError> {
    Ok(Zeroizing::new(KeyPair::generate().map_err(failed)?.serialize_pem()))
}

/// Creates a signing request (CSR), as PEM.
pub fn signing_request(subject: &Subject, key: &str) -> Result<String, TlsError> {
    let key = KeyPair::from_pem(key).map_err(failed)?;
    subject.params()?.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)
}

/// Reads the private key of a file and returns it as PEM.
pub fn key_in(file: &Path) -> Result<Zeroizing<String>, TlsError> {
    let pair = key_pair(file)?;
    Ok(Zeroizing::new(pair.serialize_pem()))
}

fn key_pair(file: &Path) -> Result<KeyPair, TlsError> {
    let der = private_key(file)?;
    let pair = match &*der {
        PrivateKeyDer::Pkcs8(pkcs8) => KeyPair::try_from(pkcs8),
        _ => {
            return Err(unusable(
                file,
                "holds a key that is not in PKCS#8; convert it with `openssl pkcs8 -topk8 -nodes`",
            ));
        }
    };
    pair.map_err(|error| unusable(file, format!("holds a key that cannot sign: {error}")))
}

/// A validity period from now on, in seconds since 1970.
fn validity(days: u32, end_max: Option<i64>) -> Result<(u64, u64), TlsError> {
    let now = clock::wall();
    if now < clock::built() {
        return Err(TlsError::Unusable(
            "the time of day is before the build date of this program; set the clock first: certificates name times"
                .into(),
        ));
    }
    let seconds = |moment: std::time::SystemTime| moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = seconds(now + DAY * days);
    let end = end_max.and_then(|max| u64::try_from(max).ok()).map_or(end, |max| max.min(end));
    Ok((seconds(now - BACKDATED), end))
}

fn set_validity(params: &mut CertificateParams, (from, end): (u64, u64)) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(end);
    let mut serial = uuid::Uuid::new_v4().into_bytes();
    // Positive, and never shortened by its encoding.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// An authority that issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Expiry of its own certificate, in seconds since 1970.
    end: i64,
}

impl Authority {
    /// Creates an authority. Returns its certificate and its key, both as PEM.
    pub fn create(name: &str, days: u32) -> Result<(String, Zeroizing<String>), TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, validity(days, None)?);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
    }

    /// Reads the certificate and the key of an authority.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let all = certificates(certificate)?;
        let der = all.first().ok_or_else(|| unusable(certificate, "holds no certificate"))?;
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|_| unusable(certificate, "holds no readable certificate"))?;
        if !parsed.is_ca() {
            return Err(unusable(certificate, "is not the certificate of an authority (CA:TRUE is missing)"));
        }
        let end = parsed.validity().not_after.timestamp();
        if UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or(0)) < clock::wall() {
            return Err(unusable(
                certificate,
                "has expired; create a new authority, and give it to all devices and to central",
            ));
        }
        let pair = key_pair(key)?;
        if pair.public_key_raw() != &*parsed.public_key().subject_public_key.data {
            return Err(unusable(key, format!("does not fit {}", certificate.display())));
        }
        let issuer = Issuer::from_ca_cert_der(der, pair).map_err(|error| unusable(certificate, error.to_string()))?;
        Ok(Self { issuer, end })
    }

    /// Issues a certificate for the key; returns it as PEM.
    pub fn issue(&self, subject: &Subject, key: &str, days: u32) -> Result<String, TlsError> {
        let key = KeyPair::from_pem(key).map_err(failed)?;
        let mut params = subject.params()?;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity(days, Some(self.end))?);
        params.signed_by(&key, &self.issuer).map(|certificate| certificate.pem()).map_err(failed)
    }
}

/// Returns whether the first certificate of a file was issued by the authority of another file.
pub fn is_issued_by(file: &Path, authority: &Path) -> Result<bool, TlsError> {
    let (own, above) = (certificates(file)?, certificates(authority)?);
    let (Some(own), Some(above)) = (own.first(), above.first()) else { return Ok(false) };
    let (Ok((_, own)), Ok((_, above))) = (X509Certificate::from_der(own), X509Certificate::from_der(above)) else {
        return Ok(false);
    };
    Ok(own.issuer().as_raw() == above.subject().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_keeps_its_subject_when_it_is_renewed_and_never_outlives_its_authority() {
        let folder = tempfile::tempdir().expect("folder");
        let file = |name: &str| folder.path().join(name);
        let (pem, key) = Authority::create("Plant 01 CA", 30).expect("an authority");
        std::fs::write(file("ca.pem"), pem).expect("written");
        std::fs::write(file("ca.key"), &*key).expect("written");
        let authority = Authority::load(&file("ca.pem"), &file("ca.key")).expect("reads");
        let names = ["gw-01", "10.0.0.21", "::1"].map(AlternativeName::host);
        let others = [AlternativeName::environment("test"), AlternativeName::Email("a@b".into())];
        let subject = Subject { name: "gw-01".into(), names: [&names[..], &others].concat(), purpose: Purpose::Both };
        let key = new_key().expect("a key");
        let mut serials = Vec::new();
        for days in [1, 400] {
            std::fs::write(file("gw.pem"), authority.issue(&subject, &key, days).expect("issued")).expect("written");
            assert_eq!(Subject::of(&file("gw.pem")).expect("reads"), subject);
            let all = certificates(&file("gw.pem")).expect("reads");
            let (_, parsed) = X509Certificate::from_der(&all[0]).expect("parses");
            assert!(parsed.validity().not_after.timestamp() <= authority.end);
            serials.push(parsed.raw_serial().to_vec());
        }
        assert_ne!(serials[0], serials[1], "the same key gets a new serial number");
        assert!(is_issued_by(&file("gw.pem"), &file("ca.pem")).expect("reads"));
        assert!(Authority::load(&file("gw.pem"), &file("ca.key")).is_err(), "a gateway is no authority");
        std::fs::write(file("other.key"), &*new_key().expect("a key")).expect("written");
        let error = Authority::load(&file("ca.pem"), &file("other.key")).err().expect("refused").to_string();
        assert!(error.contains("other.key: does not fit"), "{error}");
    }
}
