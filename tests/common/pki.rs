//! Certificates made on the fly.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct Pki {
    pub ca: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
    /// A client certificate that `crl` revokes, with its key.
    pub revoked: (PathBuf, PathBuf),
    pub crl: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

const SERVER: [&str; 2] = ["localhost", "127.0.0.1"];
const CLIENT: [&str; 1] = ["gw-01"];

fn serial_of(file: &str) -> u64 {
    file.bytes().map(u64::from).sum()
}

/// Replaces a file as careful tools do: at any moment the old or the new one is whole.
fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, &path).expect("renamed");
    path
}

fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    folder: &Path,
    names: &[&str],
    purpose: ExtendedKeyUsagePurpose,
    file: &str,
    serial: u64,
    change: impl Fn(&mut CertificateParams),
) -> (PathBuf, PathBuf) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, names[0].clone());
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from(serial));
    change(&mut params);
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, authority).expect("certificate");
    let cert = put(folder, &format!("{file}.pem"), &certificate.pem());
    (cert, put(folder, &format!("{file}.key"), &key.serialize_pem()))
}

impl Pki {
    pub fn write(folder: &Path) -> Self {
        Self::write_with(folder, |_| ())
    }

    /// `server` changes what the server's certificate says.
    pub fn write_with(folder: &Path, server: impl Fn(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("certificate");
        let leaf = |names: &[&str], purpose: ExtendedKeyUsagePurpose, file: &str| {
            let special = |params: &mut CertificateParams| {
                if file == "server" {
                    server(params);
                }
            };
            issue(&ca, folder, names, purpose, file, serial_of(file), special)
        };
        let (server_cert, server_key) = leaf(&SERVER, ExtendedKeyUsagePurpose::ServerAuth, "server");
        let (client_cert, client_key) = leaf(&CLIENT, ExtendedKeyUsagePurpose::ClientAuth, "client");
        let revoked = leaf(&["gw-02"], ExtendedKeyUsagePurpose::ClientAuth, "revoked");
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial_of("revoked")),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let crl = put(folder, "crl.pem", &list.signed_by(&ca).expect("list").pem().expect("PEM"));
        let folder = folder.to_owned();
        let ca_file = put(&folder, "ca.pem", &ca.pem());
        Self { ca: ca_file, server_cert, server_key, client_cert, client_key, revoked, crl, authority: ca, folder }
    }

    /// Puts a new certificate with a new key in the place of the server's.
    pub fn renew_server(&self, serial: u64) {
        issue(&self.authority, &self.folder, &SERVER, ExtendedKeyUsagePurpose::ServerAuth, "server", serial, |_| {});
    }

    /// Puts a new certificate with a new key in the place of the client's.
    pub fn renew_client(&self, serial: u64) {
        issue(&self.authority, &self.folder, &CLIENT, ExtendedKeyUsagePurpose::ClientAuth, "client", serial, |_| {});
    }

    /// A server that wants client certificates.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        let files = forebay::tls::ServerFiles {
            cert: self.server_cert.clone(),
            key: self.server_key.clone(),
            client_ca: Some(self.ca.clone()),
            ..Default::default()
        };
        forebay::tls::server(&files).expect("server TLS")
    }

    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        let files = forebay::tls::ClientFiles {
            ca: Some(self.ca.clone()),
            cert: Some(self.client_cert.clone()),
            key: Some(self.client_key.clone()),
            ..Default::default()
        };
        forebay::tls::client(&files).expect("client TLS")
    }
}
