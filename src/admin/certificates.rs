//! Certificates that expire and revocation lists that end: said early, in the status and in the log.

use crate::clock;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::tls::{CertificateFile, CrlExpiry, RevocationFile};
use std::time::{Duration, UNIX_EPOCH};

/// So long before a certificate expires people are told.
const WARNING: Duration = Duration::from_secs(30 * 86_400);

/// What to say of certificates: a problem where one has expired, a note where one soon will. Reads the files.
pub(super) fn judge(files: &[CertificateFile], problems: &mut Vec<String>, notes: &mut Vec<String>) {
    let now = clock::for_certificates().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    for file in files {
        let (path, what) = (file.path.display(), file.what);
        match file.expiry() {
            // A file that is being replaced, or that went away: what is in memory is used on.
            Err(error) => notes.push(format!("certificate ({what}): {error}")),
            Ok(expiry) => {
                let (day, left) = (Timestamp(expiry.saturating_mul(1_000_000)), expiry.saturating_sub(now));
                if left <= 0 {
                    problems.push(format!("certificate {path} ({what}) expired at {day}; put a new one in its place"));
                } else if left < WARNING.as_secs() as i64 {
                    let left = rough(Duration::from_secs(left.unsigned_abs()));
                    notes.push(format!("certificate {path} ({what}) expires in {left}, at {day}; put a new one in its place, no restart is needed"));
                }
            }
        }
    }
}

/// What to say of revocation lists: a problem where one has ended, a note in the last quarter of its life. Reads the files.
pub(crate) fn judge_lists(files: &[RevocationFile], problems: &mut Vec<String>, notes: &mut Vec<String>) {
    let now = clock::for_certificates().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    for file in files {
        let path = file.path.display();
        let validity = match file.validity() {
            // As above.
            Err(error) => {
                notes.push(format!("revocation list: {error}"));
                continue;
            }
            Ok(validity) => validity,
        };
        let (day, left) = (Timestamp(validity.end.saturating_mul(1_000_000)), validity.end.saturating_sub(now));
        let warning = validity.end.saturating_sub(validity.from) / 4;
        let outcome = match file.crl_expiry {
            CrlExpiry::Refuse => {
                "clients of its authority are refused until a newer one is in its place; crl_expiry = \"accept\" lets them in until then"
            }
            CrlExpiry::Accept => {
                "clients are let in all the same, also those whose certificate was revoked since; put a newer one in its place"
            }
        };
        if left <= 0 {
            problems.push(format!("revocation list {path} ended at {day} (next update): {outcome}"));
        } else if left < warning.min(WARNING.as_secs() as i64) {
            let left = rough(Duration::from_secs(left.unsigned_abs()));
            notes.push(format!("revocation list {path} ends in {left}, at {day}: from then on {outcome}"));
        }
    }
}

/// Says the same in the log.
pub(super) fn warn(files: &[CertificateFile], lists: &[RevocationFile]) {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    judge(files, &mut problems, &mut notes);
    judge_lists(lists, &mut problems, &mut notes);
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}
