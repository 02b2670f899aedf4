//! A root, an authority below it that issues to devices, and the revocation lists of both.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LEAF: u64 = 7001;
const ISSUER: u64 = 7002;

pub struct Authorities {
    folder: PathBuf,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf(name: &str, purpose: ExtendedKeyUsagePurpose, serial: u64) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from(serial));
    (params, KeyPair::generate().expect("key"))
}

impl Authorities {
    /// Writes certificates of a server and of the device `press`, and lists that revoke nothing.
    pub fn write(folder: &Path) -> Self {
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().expect("key")).expect("root");
        let mut params = authority("issuer");
        params.serial_number = Some(SerialNumber::from(ISSUER));
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().expect("key"), &root).expect("issuer");
        let put = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("written");
        put("root.pem", root.pem());
        let (params, key) = leaf("localhost", ExtendedKeyUsagePurpose::ServerAuth, 1);
        put("server.pem", params.signed_by(&key, &root).expect("server").pem());
        put("server.key", key.serialize_pem());
        let (params, key) = leaf("press", ExtendedKeyUsagePurpose::ClientAuth, LEAF);
        put("press.pem", params.signed_by(&key, &issuer).expect("device").pem() + &issuer.pem());
        put("press.key", key.serialize_pem());
        let authorities = Self { folder: folder.to_owned(), root, issuer };
        authorities.write_lists(&[], &[], 2099);
        authorities
    }

    /// The setting of a listener.
    pub fn tls(&self) -> String {
        let name = |file: &str| self.folder.join(file).display().to_string();
        format!(
            "tls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\", crl = \"{}\" }}",
            name("server.pem"),
            name("server.key"),
            name("root.pem"),
            name("lists.pem")
        )
    }

    /// How the device connects.
    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        let files = forebay::tls::ClientFiles {
            ca: Some(self.folder.join("root.pem")),
            cert: Some(self.folder.join("press.pem")),
            key: Some(self.folder.join("press.key")),
            ..Default::default()
        };
        forebay::tls::client(&files).expect("client TLS")
    }

    pub fn revoke_leaf(&self) {
        self.write_lists(&[], &[LEAF], 2099);
    }

    pub fn revoke_issuer(&self) {
        self.write_lists(&[ISSUER], &[], 2099);
    }

    /// The lists end in the past.
    pub fn expire(&self) {
        self.write_lists(&[], &[], 2021);
    }

    fn write_lists(&self, of_root: &[u64], of_issuer: &[u64], until: i32) {
        let list = |revoked: &[u64], signer: &CertifiedIssuer<'static, KeyPair>| {
            let revoked = revoked.iter().map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2020, 6, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1),
                next_update: date_time_ymd(until, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(signer).expect("list").pem().expect("PEM")
        };
        let text = list(of_root, &self.root) + &list(of_issuer, &self.issuer);
        let new = self.folder.join("lists.new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, self.folder.join("lists.pem")).expect("renamed");
    }
}
