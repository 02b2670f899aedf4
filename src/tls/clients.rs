//! Client certificates: verifies trust and revocation, and extracts the client's name.
//!
//! Promise: a client's certificate and every authority between it and `client_ca` is checked against the revocation
//! lists, in the handshake and at every later verification; a name is valid only if its issuing authorities may issue it.

use super::constraints;
use super::names::{NO_CERTIFICATE, alternative_names};
use super::pem::{TlsError, certificates, unusable};
use super::provider::{VerificationTime, certificate_fault, provider};
use super::revocation::{CrlExpiry, RevocationLists};
use super::seal::ENVIRONMENT;
use super::settings::{NameKind, ServerFiles};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use std::sync::Arc;
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Whether a client of a listener with `client_ca` must present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// The handshake fails without one.
    Required,
    /// A client without one authenticates by other means after the handshake.
    Optional,
}

/// Verifies client certificates, in the handshake and later.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Verifier>);

#[derive(Debug)]
struct Verifier {
    /// Verifies the signatures of a handshake.
    handshake: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    authorities: Vec<CertificateDer<'static>>,
    lists: RevocationLists,
    crl_expiry: CrlExpiry,
    identity: NameKind,
}

/// Why a certificate yields no client name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// It has no name of the configured kind.
    #[error("its certificate has no {} (tls.identity = \"{}\")", .0.words(), .0.written())]
    Missing(NameKind),
    /// It cannot be parsed, although the handshake accepted it.
    #[error("its certificate {}", NO_CERTIFICATE)]
    Unreadable,
    /// One of its names is malformed: its first name is unknown.
    #[error("its certificate has a malformed alternative name (subjectAltName), and so none of its names counts")]
    Malformed,
    /// An issuing authority may not issue this name.
    #[error("the authority of its certificate may not give the name in it (name constraints)")]
    Constrained,
    /// It has a common name and was issued by an authority that is not in `client_ca`.
    #[error(
        "a common name counts only from an authority that is itself in tls.client_ca, and another has issued its certificate"
    )]
    Indirect,
}

/// Builds the verifier of client certificates; returns `None` without `client_ca`.
pub(super) fn of(files: &ServerFiles, certificates_of_clients: Certificates) -> Result<Option<Clients>, TlsError> {
    let Some(file) = &files.client_ca else {
        return match files.crl {
            None => Ok(None),
            Some(_) => {
                Err(TlsError::Unusable("tls.crl needs tls.client_ca: without it no client shows a certificate".into()))
            }
        };
    };
    let lists = files.crl.as_deref().map(RevocationLists::read).transpose()?.unwrap_or_default();
    let (mut roots, mut authorities) = (RootCertStore::empty(), Vec::new());
    let mut revoked = 0;
    for certificate in certificates(file)? {
        // The issuer of this authority has revoked it: certificates that it issued are not trusted any more.
        if lists.revokes(&certificate) {
            revoked += 1;
            continue;
        }
        roots.add(certificate.clone()).map_err(|error| unusable(file, certificate_fault(&error)))?;
        authorities.push(certificate);
    }
    if authorities.is_empty() {
        return Err(unusable(file, format!("holds no authority that is not revoked by tls.crl; {revoked} are")));
    }
    let roots = Arc::new(roots);
    let handshake = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
    let handshake = match certificates_of_clients {
        Certificates::Required => handshake,
        Certificates::Optional => handshake.allow_unauthenticated(),
    };
    let handshake = handshake.build().map_err(|error| unusable(file, error.to_string()))?;
    let (crl_expiry, identity) = (files.crl_expiry, files.identity);
    Ok(Some(Clients(Arc::new(Verifier { handshake, roots, authorities, lists, crl_expiry, identity }))))
}

impl Clients {
    /// Returns the verifier for the handshake of rustls.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::<Verifier>::clone(&self.0)
    }

    /// Returns the time at which certificates are verified.
    pub fn now() -> UnixTime {
        VerificationTime.current_time().unwrap_or_else(UnixTime::now)
    }

    /// Whether a chain was trusted at the time `at` and is not revoked now; an expiry since then ends no connection.
    /// After the list of an authority has expired, its certificates count as revoked, unless `crl_expiry` accepts them.
    pub fn accept(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> bool {
        let Some((first, others)) = chain.split_first() else { return false };
        self.0.verify(first, others, at, &|path| self.0.check_expiry(path, Self::now())).is_ok()
    }

    /// Number of expired revocation lists because of which clients are rejected.
    pub fn ended_lists(&self) -> usize {
        match self.0.crl_expiry {
            CrlExpiry::Refuse => self.0.lists.count_expired(Self::now()),
            CrlExpiry::Accept => 0,
        }
    }

    /// Returns the client name of a chain that is trusted at the time `at`.
    pub fn name(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<String, NoName> {
        let kind = self.0.identity;
        let (first, others) = chain.split_first().ok_or(NoName::Missing(kind))?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| NoName::Unreadable)?;
        let name = kind.of(&parsed)?.filter(|name| !name.is_empty()).ok_or(NoName::Missing(kind))?;
        let mut above = others.iter().chain(&self.0.authorities);
        // webpki checks DNS names against constraints on DNS names; everything else is checked on the path.
        if kind == NameKind::CommonName || above.any(constraints::are_in) {
            let is_direct = |path: &VerifiedPath<'_>| path.intermediate_certificates().next().is_none();
            let refuse = webpki::Error::NameConstraintViolation;
            if kind == NameKind::CommonName {
                let direct = |path: &VerifiedPath<'_>| if is_direct(path) { Ok(()) } else { Err(refuse.clone()) };
                self.0.verify(first, others, at, &direct).map_err(|_| NoName::Indirect)?;
            }
            let permitted = |path: &VerifiedPath<'_>| {
                let is_direct = kind != NameKind::CommonName || is_direct(path);
                if is_direct && self.0.permits(path, name) { Ok(()) } else { Err(refuse.clone()) }
            };
            self.0.verify(first, others, at, &permitted).map_err(|_| NoName::Constrained)?;
        }
        Ok(name.to_owned())
    }
}

impl NameKind {
    /// Returns the first name of this kind; a URI that names an environment is not a client name. Rejects a certificate
    /// with a malformed name of any kind.
    fn of<'c>(self, certificate: &'c X509Certificate<'_>) -> Result<Option<&'c str>, NoName> {
        let names = alternative_names(certificate).map_err(|_| NoName::Malformed)?;
        if self == Self::CommonName {
            return Ok(certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()));
        }
        Ok(names.iter().find_map(|name| match (self, name) {
            (Self::Dns, GeneralName::DNSName(text)) | (Self::Email, GeneralName::RFC822Name(text)) => Some(*text),
            (Self::Uri, GeneralName::URI(text)) => (!text.starts_with(ENVIRONMENT)).then_some(*text),
            _ => None,
        }))
    }
}

type Condition<'a> = dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> + 'a;

impl Verifier {
    /// Searches a path to an authority that is trusted at the time `at`, not revoked, and meets `condition`.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        at: UnixTime,
        condition: &Condition<'_>,
    ) -> Result<(), webpki::Error> {
        let lists = self.lists.all();
        // Without a revocation list of an authority, none of its certificates counts as revoked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = provider().signature_verification_algorithms.all;
        let usage = KeyUsage::client_auth();
        let certificate = EndEntityCert::try_from(certificate)?;
        certificate
            .verify_for_usage(algorithms, &self.roots.roots, others, at, usage, revocation, Some(condition))
            .map(|_| ())
    }

    /// Rejects a path with an expired revocation list.
    fn check_expiry(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        if self.crl_expiry == CrlExpiry::Accept {
            return Ok(());
        }
        let issuers = path.intermediate_certificates().map(|one| one.issuer());
        let expired = issuers.chain([path.end_entity().issuer()]).find_map(|issuer| self.lists.expired(issuer, now));
        match expired {
            None => Ok(()),
            Some(next_update) => Err(webpki::Error::CrlExpired { time: now, next_update }),
        }
    }

    /// Whether every authority of a path may issue a name.
    fn permits(&self, path: &VerifiedPath<'_>, name: &str) -> bool {
        let may_issue = |authority: &CertificateDer<'_>| constraints::permit(authority, self.identity, name);
        let anchor = path.anchor();
        let is_anchor = |authority: &CertificateDer<'_>| {
            webpki::anchor_from_trusted_cert(authority).is_ok_and(|one| {
                one.subject == anchor.subject && one.subject_public_key_info == anchor.subject_public_key_info
            })
        };
        path.intermediate_certificates().all(|one| may_issue(&one.der()))
            && self.authorities.iter().filter(|authority| is_anchor(authority)).all(may_issue)
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.handshake.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.handshake.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.handshake.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, &|path| self.check_expiry(path, now))
            .map(|()| ClientCertVerified::assertion())
            .map_err(|error| rustls::Error::InvalidCertificate(to_rustls_error(error)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.handshake.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.handshake.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.handshake.supported_verify_schemes()
    }
}

/// Translates an error to the one for which rustls sends the matching alert.
fn to_rustls_error(error: webpki::Error) -> CertificateError {
    use webpki::Error;
    match error {
        Error::BadDer | Error::TrailingData(_) => CertificateError::BadEncoding,
        Error::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        Error::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        Error::CertRevoked => CertificateError::Revoked,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::CrlExpired { time, next_update } => CertificateError::ExpiredRevocationListContext { time, next_update },
        Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}
