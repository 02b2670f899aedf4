//! What rustls is given: its cryptography and the time at which certificates are verified.
//!
//! Invariant: every configuration verifies at [`clock::for_certificates`].

use crate::clock;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Provides the time at which certificates are verified.
#[derive(Debug)]
pub(super) struct VerificationTime;

impl TimeProvider for VerificationTime {
    fn current_time(&self) -> Option<UnixTime> {
        clock::for_certificates().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Explains why rustls rejects a certificate.
pub(super) fn certificate_fault(error: &rustls::Error) -> String {
    let text = error.to_string();
    if text.contains("UnsupportedCertVersion") {
        return "holds an X.509 version 1 certificate; it must be of version 3, as `openssl req -x509` or `openssl x509 -req -extfile …` creates it".into();
    }
    format!("holds an unusable certificate: {text}")
}

pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
