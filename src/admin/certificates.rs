//! Early warnings, in status and log, about certificates that expire and revocation lists that end.

use crate::clock;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::tls::{CertificateFile, CrlExpiry, RevocationFile};
use std::time::{Duration, UNIX_EPOCH};

/// Warning period before a certificate expires.
const WARNING: Duration = Duration::from_secs(30 * 86_400);

/// Reads the certificates. Adds a problem for each expired one, and a note for each that expires soon.
pub(super) fn check_certificates(files: &[CertificateFile], problems: &mut Vec<String>, notes: &mut Vec<String>) {
    let now = clock::for_certificates().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    for file in files {
        let (path, what) = (file.path.display(), file.what);
        match file.expiry() {
            // The file is being replaced or was deleted: the certificate in memory stays in use.
            Err(error) => notes.push(format!("certificate ({what}): {error}")),
            Ok(expiry) => {
                let (day, left) = (Timestamp(expiry.saturating_mul(1_000_000)), expiry.saturating_sub(now));
                if left <= 0 {
                    problems.push(format!("certificate {path} ({what}) expired at {day}; replace it with a new one"));
                } else if left < WARNING.as_secs() as i64 {
                    let left = rough(Duration::from_secs(left.unsigned_abs()));
                    notes.push(format!("certificate {path} ({what}) expires in {left}, at {day}; replace it with a new one, no restart is needed"));
                }
            }
        }
    }
}

/// Reads the revocation lists. Adds a problem for each that has ended, and a note in the last quarter of its validity.
pub(crate) fn check_revocations(files: &[RevocationFile], problems: &mut Vec<String>, notes: &mut Vec<String>) {
    let now = clock::for_certificates().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    for file in files {
        let path = file.path.display();
        let validity = match file.validity() {
            // The list in memory stays in use, as above.
            Err(error) => {
                notes.push(format!("revocation list: {error}"));
                continue;
            }
            Ok(validity) => validity,
        };
        let (day, left) = (Timestamp(validity.end.saturating_mul(1_000_000)), validity.end.saturating_sub(now));
        let warning = validity.end.saturating_sub(validity.from) / 4;
        let effect = match file.crl_expiry {
            CrlExpiry::Refuse => {
                "clients of its authority are refused until a newer one replaces it; crl_expiry = \"accept\" lets them in until then"
            }
            CrlExpiry::Accept => {
                "clients are let in all the same, also those whose certificate was revoked since; replace it with a newer one"
            }
        };
        if left <= 0 {
            problems.push(format!("revocation list {path} ended at {day} (next update): {effect}"));
        } else if left < warning.min(WARNING.as_secs() as i64) {
            let left = rough(Duration::from_secs(left.unsigned_abs()));
            notes.push(format!("revocation list {path} ends in {left}, at {day}: from then on {effect}"));
        }
    }
}

/// Logs the same problems and notes.
pub(super) fn log(files: &[CertificateFile], lists: &[RevocationFile]) {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    check_certificates(files, &mut problems, &mut notes);
    check_revocations(lists, &mut problems, &mut notes);
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}
