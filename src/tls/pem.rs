//! Certificates and keys in PEM files.
//!
//! Promise: an error names the file and what it should hold; a private key is overwritten in memory after use.

use crate::secret::Secret;
use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or its content cannot be used.
    #[error("{file}: {reason}", file = file.display())]
    File {
        file: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// The files or settings cannot be used together, or the server's certificate is rejected.
    #[error("{0}")]
    Unusable(String),
}

pub(super) fn unusable(file: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { file: file.to_owned(), reason: reason.into() }
}

/// Reads all items of a type from a PEM file; at least one. `what` names the type, `begin` is its PEM label.
pub(super) fn pem<T: PemObject>(file: &Path, what: &str, begin: &str) -> Result<Vec<T>, TlsError> {
    let read = Secret::read_text(file).map_err(|error| unusable(file, format!("cannot be read: {}", error.reason)))?;
    let found: Result<Vec<_>, _> = T::pem_slice_iter(read.unmarked()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(file, format!("holds no {what}; expected PEM with BEGIN {begin}"))),
        Err(error) => Err(unusable(file, format!("is no PEM {what}: {error}"))),
    }
}

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem(file, "certificate", "CERTIFICATE")
}

pub(super) fn private_key(file: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, TlsError> {
    let pem = Secret::read_text(file).map_err(|error| unusable(file, format!("cannot be read: {}", error.reason)))?;
    key_of_pem(pem.line().unwrap_or_default()).map_err(|reason| unusable(file, reason))
}

/// Returns the first private key of a PEM text. It is parsed here because PEM libraries do not overwrite their copies
/// of the key in memory.
fn key_of_pem(text: &str) -> Result<Zeroizing<PrivateKeyDer<'static>>, String> {
    const NONE: &str = "holds no private key; expected PEM with BEGIN PRIVATE KEY";
    const KINDS: [&str; 4] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"];
    let is_boundary = |line: &str, edge: &str, kind: &str| {
        line.strip_prefix(edge).and_then(|rest| rest.trim_end().strip_suffix("-----")) == Some(kind)
    };
    let mut lines = text.lines().map(str::trim);
    let kind = lines.find_map(|line| KINDS.into_iter().find(|kind| is_boundary(line, "-----BEGIN ", kind)));
    let kind = kind.ok_or(NONE)?;
    let mut body = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut is_whole = false;
    for line in lines {
        if is_boundary(line, "-----END ", kind) {
            is_whole = true;
            break;
        }
        if line.contains("ENCRYPTED") || kind == "ENCRYPTED PRIVATE KEY" {
            return Err("holds an encrypted key; the gateway cannot ask for a passphrase: store the key without one, readable by the service alone".into());
        }
        body.extend_from_slice(line.as_bytes());
    }
    let der =
        base64::engine::general_purpose::STANDARD.decode(body.as_slice()).ok().filter(|_| is_whole).ok_or(NONE)?;
    Ok(Zeroizing::new(match kind {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(der.into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(der.into()),
        _ => PrivateKeyDer::Pkcs8(der.into()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::KeyPair;

    #[test]
    fn a_byte_order_mark_before_a_certificate_or_key_does_no_harm_and_utf_16_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("gw.pem");
        let pair = KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["gw-01".to_owned()]).expect("parameters");
        let both = params.self_signed(&pair).expect("certificate").pem() + &pair.serialize_pem();
        std::fs::write(&file, format!("\u{feff}{both}")).expect("written");
        assert_eq!(certificates(&file).expect("reads").len(), 1);
        assert!(private_key(&file).is_ok());
        let wide: Vec<u8> = both.encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&file, [&b"\xff\xfe"[..], &wide].concat()).expect("written");
        let errors = [certificates(&file).map(drop), private_key(&file).map(drop)];
        for error in errors.map(|read| read.expect_err("UTF-16").to_string()) {
            assert!(error.contains("gw.pem: cannot be read: it is text in UTF-16"), "{error}");
        }
    }

    #[test]
    fn keys_are_read_in_each_form_or_refused_with_a_word() {
        let pair = KeyPair::generate().expect("key");
        let pem = pair.serialize_pem();
        let read = key_of_pem(&pem).expect("reads");
        assert_eq!(*read, PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("the same"));
        // The form that openssl writes: parameters first, CRLF line ends, trailing text.
        let other = format!(
            "-----BEGIN EC PARAMETERS-----\r\nBggq\r\n-----END EC PARAMETERS-----\r\n{}x",
            pem.replace('\n', "\r\n")
        );
        assert_eq!(*key_of_pem(&other).expect("reads"), *read);
        assert!(matches!(*key_of_pem(&pem.replace("PRIVATE", "EC PRIVATE")).expect("reads"), PrivateKeyDer::Sec1(_)));
        assert!(matches!(*key_of_pem(&pem.replace("PRIVATE", "RSA PRIVATE")).expect("reads"), PrivateKeyDer::Pkcs1(_)));
        for wrong in [
            "",
            "sesame",
            &pem.replace("PRIVATE", "PUBLIC"),
            &pem[..pem.len() / 2],
            &pem.replace("END", "BEGIN"),
            &pem.replace('M', "*"),
        ] {
            let said = key_of_pem(wrong).expect_err("refused");
            assert!(said.contains("BEGIN PRIVATE KEY"), "{said}");
        }
        for locked in
            [pem.replace("PRIVATE", "ENCRYPTED PRIVATE"), pem.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n", 1)]
        {
            assert!(key_of_pem(&locked).expect_err("refused").contains("encrypted key"));
        }
    }
}
