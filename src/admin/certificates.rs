//! Certificates that expire: said early, in the status and in the log.

use crate::clock;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::tls::CertificateFile;
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

/// Says the same in the log.
pub(super) fn warn(files: &[CertificateFile]) {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    judge(files, &mut problems, &mut notes);
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}
