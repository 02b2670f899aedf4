//! Checks of secrets, certificates and folders: the rules for every environment, and the stricter ones of
//! `production`.

use super::File;
use super::files::{FileSetting, file_settings};
use crate::journal::{JournalError, Seal};
use crate::secret::{self, Secret};
use crate::setting::access;
use crate::setting::{Document, Problem};
use crate::tls::CertificateSeal;
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
    let sources = &mut raw.source;
    let listeners = sources.mqtt.iter_mut().map(|source| &mut source.tls);
    let listeners = listeners.chain(sources.http.iter_mut().map(|source| &mut source.tls));
    let hooks = sources.odoo.iter_mut().filter_map(|source| source.hook.as_mut()).map(|hook| &mut hook.tls);
    listeners.chain(hooks).flatten().for_each(|files| files.seal = seal.clone());
    let clients = sources.broker.iter_mut().map(|source| &mut source.tls);
    let clients = clients.chain(sources.modbus.iter_mut().map(|source| &mut source.tls));
    let clients = clients.chain(sources.odoo.iter_mut().map(|source| &mut source.tls));
    let clients = clients.chain(raw.destination.iter_mut().map(|destination| &mut destination.tls));
    clients.for_each(|files| files.seal = seal.clone());
}

/// Refuses an environment that the journal does not belong to.
pub(super) fn check_journal(raw: &File, document: &Document, problems: &mut Vec<Problem>) {
    let folder = raw.data_dir.join("journal");
    if let Some(seal) = Seal::of(&folder).filter(|seal| seal.environment != raw.environment) {
        let wanted = raw.environment.clone();
        let error = JournalError::Sealed { folder, sealed: seal.environment, wanted };
        problems.push(document.problem("environment", error.to_string()));
    }
}

/// Refuses secrets written directly into the configuration, and removes them from `raw`.
pub(super) fn check_inline(raw: &mut File, document: &Document, problems: &mut Vec<Problem>) {
    for FileSetting { key, path, .. } in file_settings(raw) {
        if secret::is_inline(path) {
            *path = NOT_SHOWN.into();
            problems.push(document.problem(
                key,
                "holds a secret, which belongs into a file; put it into one that only the service can read, and name the file, \"credential:NAME\" or \"env:NAME\"",
            ));
        }
    }
}

/// Reports secret files that others can read or change: a problem in `production`, a warning elsewhere.
pub(super) fn check_exposure(
    raw: &mut File,
    document: &Document,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let is_strict = raw.environment == PRODUCTION;
    for FileSetting { key, path, .. } in file_settings(raw).into_iter().filter(|named| named.is_secret) {
        let Some(message) = secret::exposed(path) else { continue };
        let list = if is_strict { &mut *problems } else { &mut *warnings };
        list.push(document.problem(key, message));
    }
}

/// Reads the key that masked fields are hashed with; empty if none is set.
pub(super) fn mask_key(raw: &File, document: &Document, problems: &mut Vec<Problem>) -> Secret {
    let Some(path) = &raw.mask_key else { return Secret::default() };
    match Secret::read(path) {
        Ok(key) if key.bytes().len() >= MASK_KEY_BYTES_MIN => return key,
        Ok(key) => {
            let held = key.bytes().len();
            let message = format!("{} holds {held} bytes; at least {MASK_KEY_BYTES_MIN} are needed", path.display());
            problems.push(document.problem("mask_key", message));
        }
        Err(error) => problems.push(document.problem("mask_key", error.to_string())),
    }
    Secret::default()
}

/// Checks that the journal and the socket can be created at their paths.
pub(super) fn check_folders(
    raw: &File,
    socket: &Path,
    document: &Document,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let data = access::check_folder(&raw.data_dir).err().or_else(|| access::foreign_within(&raw.data_dir));
    if let Some(message) = data {
        problems.push(document.problem("data_dir", message));
    } else if let Some(owner) = access::other_owner_for_root(&raw.data_dir) {
        warnings.push(document.problem(
            "data_dir",
            format!(
                "{} belongs to {owner}, and this process is root: {owner} cannot write files that root creates there, and missing rights of {owner} go unnoticed; run it as {owner}: sudo -u {owner} forebay …",
                raw.data_dir.display()
            ),
        ));
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
        problems.extend(wrong.map(|message| document.problem("socket", message)));
    }
}

/// Rewrites the parse problem of a secret that was written instead of its path: leaves out the value, and says where a
/// secret belongs.
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
