//! Authorities below authorities, their certificates of every kind, and their revocation lists.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An authority, and the certificates between it and the one on top.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    chain: String,
}

/// What a client's certificate says.
#[derive(Clone, Debug, Default)]
pub struct Names<'a> {
    pub common: Option<&'a str>,
    pub dns: &'a [&'a str],
    pub uri: &'a [&'a str],
    pub mail: &'a [&'a str],
    /// Whether a DNS name that is no text follows the others.
    pub has_malformed: bool,
}

fn params(name: &str, serial: u64, permitted: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from(serial));
    params.use_authority_key_identifier_extension = true;
    if !permitted.is_empty() {
        let permitted_subtrees = permitted.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    }
    params
}

/// The content of subjectAltName with these names and one that is not UTF-8; short enough for lengths of one byte.
fn malformed(names: &[SanType]) -> Vec<u8> {
    let encoded = |tag: u8, text: &[u8]| [&[tag, u8::try_from(text.len()).expect("short")], text].concat();
    let mut list: Vec<u8> = names
        .iter()
        .flat_map(|name| match name {
            SanType::Rfc822Name(text) => encoded(0x81, text.as_str().as_bytes()),
            SanType::DnsName(text) => encoded(0x82, text.as_str().as_bytes()),
            SanType::URI(text) => encoded(0x86, text.as_str().as_bytes()),
            other => panic!("{other:?} is not written here"),
        })
        .collect();
    list.extend(encoded(0x82, &[0xff, 0xfe]));
    encoded(0x30, &list)
}

fn key() -> KeyPair {
    KeyPair::generate().expect("key")
}

impl Authority {
    pub fn root(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(params(name, 1, &[]), key()).expect("certificate");
        Self { issuer, chain: String::new() }
    }

    /// An authority below this one, permitted these DNS names; all of them, if there are none.
    pub fn below(&self, name: &str, serial: u64, permitted: &[&str]) -> Self {
        let issuer = CertifiedIssuer::signed_by(params(name, serial, permitted), key(), &self.issuer);
        let issuer = issuer.expect("certificate");
        let chain = format!("{}{}", issuer.pem(), self.chain);
        Self { issuer, chain }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A client with a certificate that says these names; it trusts the server's `ca.pem` in `folder`.
    pub fn client(&self, folder: &Path, serial: u64, names: &Names<'_>) -> Arc<rustls::ClientConfig> {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        if let Some(common) = names.common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        // In the worst order: what does not count stands first.
        let mails = names.mail.iter().map(|name| SanType::Rfc822Name((*name).try_into().expect("a name")));
        let uris = names.uri.iter().map(|name| SanType::URI((*name).try_into().expect("a name")));
        let dns = names.dns.iter().map(|name| SanType::DnsName((*name).try_into().expect("a name")));
        params.subject_alt_names = mails.chain(uris).chain(dns).collect();
        if names.has_malformed {
            let list = malformed(&std::mem::take(&mut params.subject_alt_names));
            params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], list));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let unique = uuid::Uuid::new_v4();
        let (cert, private) = (folder.join(format!("{unique}.pem")), folder.join(format!("{unique}.key")));
        std::fs::write(&cert, format!("{}{}", certificate.pem(), self.chain)).expect("written");
        std::fs::write(&private, key.serialize_pem()).expect("written");
        let files = forebay::tls::ClientFiles {
            ca: Some(folder.join("ca.pem")),
            cert: Some(cert),
            key: Some(private),
            ..Default::default()
        };
        forebay::tls::client(&files).expect("client TLS")
    }

    /// A list of these serial numbers, from so long ago until so long from now; both may be in the past.
    pub fn list(&self, number: u64, revoked: &[u64], age: Duration, until: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let epoch = date_time_ymd(1970, 1, 1);
        let end = now.as_secs().saturating_add_signed(until);
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: epoch + (now - age),
            next_update: epoch + Duration::from_secs(end),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("list").pem().expect("PEM")
    }
}
