//! Finds files and folders of the configuration that every user of the machine can change.
//!
//! Promise: only operators can change the files that the gateway reads, and the folders on their paths. A violation is a
//! problem in `production` and a warning elsewhere.
//!
//! Not here: the check of who can read secrets (`seal`).

use super::file::File;
use super::files::{file_settings, files_within};
use crate::secret;
use crate::setting::access::open_to_everybody;
use crate::setting::{Document, Findings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Paths that are reported one by one; the rest is counted. A folder with open rights can contain thousands.
const NAMED_MAX: usize = 12;

/// Violations by path: the first key that leads to the path, and the message.
type Violations = BTreeMap<PathBuf, (String, String)>;

/// Reports every path of the configuration that any user of the machine can change.
pub(super) fn check(raw: &mut File, socket: &Path, found: &mut Findings<'_>) {
    let mut open = Violations::new();
    let mut check_path = |key: &str, path: &Path, is_read_whole: bool| {
        for (path, message) in open_to_everybody(path, is_read_whole) {
            open.entry(path).or_insert_with(|| (key.to_owned(), message));
        }
    };
    check_path("", found.document().file(), false);
    for setting in file_settings(raw) {
        let (key, path) = (setting.key(), setting.path);
        if !secret::is_file(path) {
            continue;
        }
        if setting.is_secret {
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
    let count = open.len();
    open.into_values().take(NAMED_MAX).for_each(|(key, message)| found.risk(&key, message));
    if count > NAMED_MAX {
        let message = format!("every user of this machine can change {} more files and folders", count - NAMED_MAX);
        found.risk("", message);
    }
}

/// Returns the path of the schema that a contract names.
fn schema_of(contract: &Path) -> Option<PathBuf> {
    let named: String = serde_json::from_str(&Document::read(contract).ok()?.value("schema")?).ok()?;
    Some(contract.parent()?.join(named))
}
