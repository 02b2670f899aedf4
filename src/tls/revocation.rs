//! Certificate revocation lists and their validity.
//!
//! Promise: of several lists of one authority, only the newest is used; an expired list is always reported.

use super::pem::{TlsError, pem, unusable};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Treatment of clients after the revocation list of their authority has expired: later revocations are unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrlExpiry {
    /// The gateway rejects and disconnects them.
    #[default]
    Refuse,
    /// The gateway accepts them as before; it rejects only the revoked certificates of the list.
    Accept,
}

#[derive(Debug)]
struct RevocationList {
    parsed: CertRevocationList<'static>,
    /// Time of issue (thisUpdate), in seconds since 1970.
    from: i64,
    /// Time of the next list (nextUpdate), in seconds since 1970.
    end: i64,
}

/// The lists of a file; only the newest of each authority.
#[derive(Debug, Default)]
pub(super) struct RevocationLists(Vec<RevocationList>);

/// A period of validity, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: i64,
    pub end: i64,
}

impl RevocationLists {
    /// Reads the lists of a PEM file.
    pub(super) fn read(file: &Path) -> Result<Self, TlsError> {
        let mut lists: Vec<RevocationList> = Vec::new();
        for der in pem::<CertificateRevocationListDer<'_>>(file, "revocation list", "X509 CRL")? {
            let list = RevocationList::read(&der)
                .map_err(|reason| unusable(file, format!("holds an unusable revocation list: {reason}")))?;
            let same = |other: &RevocationList| {
                other.parsed.issuer() == list.parsed.issuer()
                    && other.parsed.issuing_distribution_point() == list.parsed.issuing_distribution_point()
            };
            match lists.iter_mut().find(|other| same(other)) {
                Some(older) if (older.from, older.end) < (list.from, list.end) => *older = list,
                Some(_) => {}
                None => lists.push(list),
            }
        }
        Ok(Self(lists))
    }

    /// Returns the lists in the form of webpki.
    pub(super) fn all(&self) -> Vec<&CertRevocationList<'static>> {
        self.0.iter().map(|list| &list.parsed).collect()
    }

    /// Returns when the list of this issuer expired; `None` if it has not.
    pub(super) fn expired(&self, issuer: &[u8], now: UnixTime) -> Option<UnixTime> {
        let mut of_issuer = self.0.iter().filter(|list| list.parsed.issuer() == issuer);
        of_issuer.find(|list| list.has_expired(now)).map(RevocationList::end)
    }

    pub(super) fn count_expired(&self, now: UnixTime) -> usize {
        self.0.iter().filter(|list| list.has_expired(now)).count()
    }

    /// Returns the validity of the list that expires first.
    pub(super) fn validity(&self) -> Option<Validity> {
        let first = self.0.iter().min_by_key(|list| list.end)?;
        Some(Validity { from: first.from, end: first.end })
    }

    /// Whether the issuer of an authority's certificate has revoked it.
    pub(super) fn revokes(&self, authority: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(authority) else { return false };
        let is_revoked_by = |list: &RevocationList| {
            let is_listed = || list.parsed.find_serial(certificate.serial()).is_ok_and(|found| found.is_some());
            list.parsed.issuer() == certificate.issuer() && is_listed()
        };
        self.0.iter().any(is_revoked_by)
    }
}

impl RevocationList {
    fn read(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let (_, read) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        let end = read.next_update().ok_or("it does not say when the next one is due (nextUpdate)")?.timestamp();
        let from = read.last_update().timestamp();
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self { parsed: parsed.into(), from, end })
    }

    fn has_expired(&self, now: UnixTime) -> bool {
        now >= self.end()
    }

    fn end(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.end).unwrap_or(0)))
    }
}
