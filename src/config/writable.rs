//! Finds files and folders of the configuration that every user of the machine can change.
//!
//! Promise: only operators can change the files that the gateway reads, and the folders on their paths. A violation is a
//! problem in `production` and a warning elsewhere.
//!
//! Not here: the check of who can read secrets (`seal`).

use super::File;
use super::files::{FileSetting, file_settings, files_within};
use super::seal::PRODUCTION;
use crate::secret;
use crate::setting::access::open_to_everybody;
use crate::setting::{Document, Problem};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Paths that are reported one by one; the rest is counted. A folder with open rights can contain thousands.
const NAMED_MAX: usize = 12;

/// Violations by path: the first key that leads to the path, and the message.
type Violations = BTreeMap<PathBuf, (String, String)>;

/// Reports every path of the configuration that any user of the machine can change.
pub(super) fn check(
    raw: &mut File,
    socket: &Path,
    document: &Document,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let mut found = Violations::new();
    let mut check_path = |key: &str, path: &Path, is_read_whole: bool| {
        for (path, message) in open_to_everybody(path, is_read_whole) {
            found.entry(path).or_insert_with(|| (key.to_owned(), message));
        }
    };
    check_path("", document.file(), false);
    for FileSetting { key, path, is_secret } in file_settings(raw) {
        if !secret::is_file(path) {
            continue;
        }
        if is_secret {
            // The rights of the file itself are checked by `seal`.
            check_path(&key, path.parent().unwrap_or(path), false);
            continue;
        }
        check_path(&key, path, path.is_dir());
        for file in files_within(path) {
            check_path(&key, &file, false);
            schema_of(&file).inspect(|schema| check_path(&key, schema, false));
        }
    }
    check_path("data_dir", &raw.data_dir, true);
    check_path("data_dir", &raw.data_dir.join("journal"), true);
    check_path("socket", socket.parent().unwrap_or(socket), true);
    let (count, list) = (found.len(), if raw.environment == PRODUCTION { problems } else { warnings });
    list.extend(found.into_values().take(NAMED_MAX).map(|(key, message)| document.problem(key, message)));
    if count > NAMED_MAX {
        let message = format!("every user of this machine can change {} more files and folders", count - NAMED_MAX);
        list.push(document.problem("", message));
    }
}

/// Returns the path of the schema that a contract names.
fn schema_of(contract: &Path) -> Option<PathBuf> {
    let named: String = serde_json::from_str(&Document::read(contract).ok()?.value("schema")?).ok()?;
    Some(contract.parent()?.join(named))
}
