//! The certificate chain that the gateway presents.
//!
//! Promise: the chain begins with the certificate of the key, and each certificate is followed by the one of its issuer,
//! in whatever order the file has them. Peers need not sort a chain, and many do not.

use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SigningKey};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Sizes of RSA keys that can sign, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Sorts a chain: the certificate of the key first, then its issuers. Certificates that are no issuers of it follow in
/// the order of the file. Without a certificate of the key, the order remains.
pub(super) fn in_order(
    mut chain: Vec<CertificateDer<'static>>,
    key: &Arc<dyn SigningKey>,
) -> Vec<CertificateDer<'static>> {
    let is_of_key = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(key)).keys_match().is_ok()
    };
    let Some(leaf) = chain.iter().position(is_of_key) else { return chain };
    let mut sorted = vec![chain.remove(leaf)];
    while let Some(next) = sorted.last().and_then(|last| chain.iter().position(|other| is_issuer(other, last))) {
        sorted.push(chain.remove(next));
    }
    sorted.extend(chain);
    sorted
}

/// Returns whether the subject of `other` is the issuer of `certificate`.
fn is_issuer(other: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let (Ok((_, other)), Ok((_, certificate))) =
        (X509Certificate::from_der(other), X509Certificate::from_der(certificate))
    else {
        return false;
    };
    other.subject().as_raw() == certificate.issuer().as_raw()
}

/// Returns why the key of a certificate cannot be used; `None` if it can, or if the certificate cannot be read.
pub(super) fn key_fault(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let expected = format!(
        "expected ECDSA (P-256, P-384), Ed25519, or RSA with {} to {} bits: make a new key and certificate",
        RSA_BITS.start(),
        RSA_BITS.end()
    );
    match parsed.public_key().parsed().ok()? {
        PublicKey::RSA(rsa) if RSA_BITS.contains(&rsa.key_size()) => None,
        PublicKey::RSA(rsa) => Some(format!("is an RSA key with {} bits; {expected}", rsa.key_size())),
        PublicKey::EC(point) if matches!(point.key_size(), 256 | 384) => None,
        PublicKey::EC(point) => Some(format!("is an ECDSA key with {} bits; {expected}", point.key_size())),
        PublicKey::DSA(_) => Some(format!("is a DSA key; {expected}")),
        PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) | PublicKey::Unknown(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

    fn authority(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[test]
    fn a_chain_in_any_order_is_presented_from_the_leaf_to_the_root() {
        let key = || KeyPair::generate().expect("key");
        let root = CertifiedIssuer::self_signed(authority("root"), key()).expect("root");
        let issuing = CertifiedIssuer::signed_by(authority("issuing"), key(), &root).expect("issuing");
        let own = key();
        let leaf = CertificateParams::new(vec!["gw-01".into()]).expect("parameters");
        let leaf = leaf.signed_by(&own, &issuing).expect("leaf");
        let expected = [leaf.der().clone(), issuing.der().clone(), root.der().clone()];
        let signing = PrivateKeyDer::from_pem_slice(own.serialize_pem().as_bytes()).expect("key");
        let signing = rustls::crypto::ring::sign::any_supported_type(&signing).expect("signs");
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let given = order.map(|at: usize| expected[at].clone()).to_vec();
            assert_eq!(in_order(given, &signing), expected, "{order:?}");
        }
        let others = vec![root.der().clone(), issuing.der().clone()];
        assert_eq!(in_order(others.clone(), &signing), others, "none is of this key");
    }
}
