//! Checks of secrets, certificates and folders: the rules for every environment, and the stricter ones of
//! `production`.

use super::file::File;
use super::files::{file_settings, named_files};
use crate::journal::{JournalError, Seal};
use crate::secret::{self, Secret};
use crate::setting::access;
use crate::setting::{Findings, Problem};
use crate::tls::{CertificateSeal, NamedFile};
use std::path::Path;

/// The environment in which settings are refused that only cause a warning elsewhere.
pub(super) const PRODUCTION: &str = "production";
/// Replaces a secret that was written into the configuration, so no message repeats it.
const NOT_SHOWN: &str = "(not shown)";
/// Shortest mask key: with less, masked values could be found by brute force.
const MASK_KEY_BYTES_MIN: usize = 16;

/// Binds every certificate of the gateway itself to the environment.
pub(super) fn seal_certificates(raw: &mut File) {
    let seal = CertificateSeal { environment: raw.environment.clone(), is_required: raw.sealed_certificates };
    for (_, named) in named_files(raw) {
        match named {
            NamedFile::Server(_, files) => files.seal = seal.clone(),
            NamedFile::Client(_, files) => files.seal = seal.clone(),
            NamedFile::Secret(..) | NamedFile::Plain(..) => {}
        }
    }
}

/// Refuses an environment or a name that the journal does not belong to.
pub(super) fn check_journal(raw: &File, found: &mut Findings<'_>) {
    let folder = raw.data_dir.join("journal");
    let Some(seal) = Seal::of(&folder) else { return };
    if seal.environment != raw.environment {
        let (sealed, wanted) = (seal.environment, raw.environment.clone());
        let error = JournalError::Sealed { folder: folder.clone(), sealed, wanted };
        found.problem("environment", error.to_string());
    }
    if let (Some(sealed), Some(wanted)) = (seal.name, raw.name.clone())
        && sealed != wanted
    {
        found.problem("name", JournalError::Named { folder, sealed, wanted }.to_string());
    }
}

/// The name of the gateway: the one that is set, else that of the journal, else the host name.
pub(super) fn gateway_name(raw: &File, found: &mut Findings<'_>) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let sealed = || Seal::of(&raw.data_dir.join("journal"))?.name;
    match raw.name.clone().or_else(sealed) {
        None => host,
        Some(name) => {
            if raw.name.is_none() && name != host {
                let message = format!(
                    "is not set; the journal belongs to \"{name}\", so that is the name, and not the host name \"{host}\"; set name = \"{name}\""
                );
                found.warning("name", message);
            }
            name
        }
    }
}

/// Refuses secrets written directly into the configuration, and removes them from `raw`.
pub(super) fn check_inline(raw: &mut File, found: &mut Findings<'_>) {
    for file in file_settings(raw) {
        if secret::is_inline(file.path) {
            *file.path = NOT_SHOWN.into();
            found.problem(
                &file.key(),
                "holds a secret, which belongs into a file; put it into one that only the service can read, and name the file, \"credential:NAME\" or \"env:NAME\"",
            );
        }
    }
}

/// Reports secret files that others can read or change: a problem in `production`, a warning elsewhere.
pub(super) fn check_exposure(raw: &mut File, found: &mut Findings<'_>) {
    for file in file_settings(raw).into_iter().filter(|file| file.is_secret) {
        if let Some(message) = secret::exposed(file.path) {
            found.risk(&file.key(), message);
        }
    }
}

/// Reads the key that masked fields are hashed with; empty if none is set.
pub(super) fn mask_key(raw: &File, found: &mut Findings<'_>) -> Secret {
    let Some(path) = &raw.mask_key else { return Secret::default() };
    match Secret::read(path) {
        Ok(key) if key.bytes().len() >= MASK_KEY_BYTES_MIN => return key,
        Ok(key) => {
            let held = key.bytes().len();
            let message = format!("{} holds {held} bytes; at least {MASK_KEY_BYTES_MIN} are needed", path.display());
            found.problem("mask_key", message);
        }
        Err(error) => found.problem("mask_key", error.to_string()),
    }
    Secret::default()
}

/// Checks that the journal and the socket can be created at their paths.
pub(super) fn check_folders(raw: &File, socket: &Path, found: &mut Findings<'_>) {
    let data = access::check_folder(&raw.data_dir).err().or_else(|| access::foreign_within(&raw.data_dir));
    if let Some(message) = data {
        found.problem("data_dir", message);
    } else if let Some(owner) = access::other_owner_for_root(&raw.data_dir) {
        found.warning(
            "data_dir",
            format!(
                "{} belongs to {owner}, and this process is root: {owner} cannot write files that root creates there, and missing rights of {owner} go unnoticed; run it as {owner}: sudo -u {owner} forebay …",
                raw.data_dir.display()
            ),
        );
    }
    let folder = socket.parent().unwrap_or(Path::new("/"));
    // The start creates the data folder, but no other.
    if raw.socket.is_some() && folder != raw.data_dir {
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        let wrong = if folder.exists() {
            access::check_folder(folder).err()
        } else {
            Some(format!(
                "its folder {} does not exist; mend it with: {}",
                folder.display(),
                access::create_command(folder)
            ))
        };
        if let Some(message) = wrong {
            found.problem("socket", message);
        }
    }
}

/// Rewrites the parse problem of a secret that was written instead of its path: leaves out the value, and
/// says where a secret belongs.
pub(super) fn explained(problem: Problem) -> Problem {
    let words = ["password", "passphrase", "secret", "token", "key"];
    let last = problem.key.rsplit('.').next().unwrap_or_default();
    let is_of_secret = words.iter().any(|word| last.contains(word));
    let unknown = problem.message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    if unknown.is_some_and(|name| words.iter().any(|word| name.contains(word))) {
        let message = format!(
            "{}; the configuration does not contain secrets: name a file, \"credential:NAME\" or \"env:NAME\" (password_file, key_file, token_file, tls.key)",
            problem.message
        );
        return Problem { message, ..problem };
    }
    if is_of_secret && problem.message.starts_with("invalid type") {
        let message = "is no path; expected the path of a file, \"credential:NAME\" or \"env:NAME\"".to_owned();
        return Problem { message, ..problem };
    }
    problem
}
