//! Revocation lists: what they say, and until when.
//!
//! Promise: of the lists that one authority has issued, the newest counts; that a list has ended is never silent.

use super::{TlsError, pem, unusable};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// What becomes of clients whose authority's revocation list has ended: nobody knows what it has revoked since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrlExpiry {
    /// They are refused, and disconnected.
    #[default]
    Refuse,
    /// They are let in as before; only what the list revokes is refused.
    Accept,
}

/// One list.
#[derive(Debug)]
struct List {
    says: CertRevocationList<'static>,
    /// When it was issued, in seconds since 1970.
    from: i64,
    /// When the next one was due.
    end: i64,
}

/// The lists of a file, the newest of each authority alone.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<List>);

/// From when to when something holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub from: i64,
    /// Its last.
    pub end: i64,
}

impl Lists {
    /// Reads a file of lists.
    pub(super) fn read(file: &Path) -> Result<Self, TlsError> {
        let mut lists: Vec<List> = Vec::new();
        for der in pem::<CertificateRevocationListDer<'_>>(file, "revocation list", "X509 CRL")? {
            let list = List::read(&der)
                .map_err(|reason| unusable(file, format!("holds an unusable revocation list: {reason}")))?;
            let same = |other: &List| {
                other.says.issuer() == list.says.issuer()
                    && other.says.issuing_distribution_point() == list.says.issuing_distribution_point()
            };
            match lists.iter_mut().find(|other| same(other)) {
                Some(older) if (older.from, older.end) < (list.from, list.end) => *older = list,
                Some(_) => {}
                None => lists.push(list),
            }
        }
        Ok(Self(lists))
    }

    /// What they say, as webpki takes it.
    pub(super) fn all(&self) -> Vec<&CertRevocationList<'static>> {
        self.0.iter().map(|list| &list.says).collect()
    }

    /// When the list of this issuer has ended, if it has.
    pub(super) fn ended(&self, issuer: &[u8], now: UnixTime) -> Option<UnixTime> {
        let mut of_issuer = self.0.iter().filter(|list| list.says.issuer() == issuer);
        of_issuer.find(|list| list.has_ended(now)).map(List::end)
    }

    /// How many have ended.
    pub(super) fn count_ended(&self, now: UnixTime) -> usize {
        self.0.iter().filter(|list| list.has_ended(now)).count()
    }

    /// The validity of the one that ends first.
    pub(super) fn validity(&self) -> Option<Validity> {
        let first = self.0.iter().min_by_key(|list| list.end)?;
        Some(Validity { from: first.from, end: first.end })
    }

    /// Whether an authority's own certificate is in the list of whoever issued it.
    pub(super) fn revokes(&self, authority: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(authority) else { return false };
        let is_in = |list: &List| {
            let is_listed = || list.says.find_serial(certificate.serial()).is_ok_and(|found| found.is_some());
            list.says.issuer() == certificate.issuer() && is_listed()
        };
        self.0.iter().any(is_in)
    }
}

impl List {
    fn read(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let (_, read) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        let end = read.next_update().ok_or("it does not say when the next one is due (nextUpdate)")?.timestamp();
        let from = read.last_update().timestamp();
        let says = OwnedCertRevocationList::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self { says: says.into(), from, end })
    }

    fn has_ended(&self, now: UnixTime) -> bool {
        now >= self.end()
    }

    fn end(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.end).unwrap_or(0)))
    }
}
