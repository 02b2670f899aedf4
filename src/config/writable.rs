//! Files and folders of the configuration that every user of the machine can change.
//!
//! Promise: whoever can change what the gateway reads, or what leads to it, is one of its operators. In `production` anything
//! else is refused; elsewhere it is a warning.
//!
//! Not here: who can read secrets (`seal`).

use super::File;
use super::files::{Named, places, within};
use super::seal::PRODUCTION;
use crate::secret;
use crate::setting::access::open_to_everybody;
use crate::setting::{Document, Problem};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Paths that are named one by one; a folder that was opened as a whole has more, and the others are counted.
const NAMED_MAX: usize = 12;

/// What was found, by path: the key that led there first, and what is wrong.
type Found = BTreeMap<PathBuf, (String, String)>;

/// Names what every user of the machine can change.
pub(super) fn check(
    raw: &mut File,
    socket: &Path,
    document: &Document,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    let mut found = Found::new();
    let mut look = |key: &str, path: &Path, is_read_whole: bool| {
        for (path, message) in open_to_everybody(path, is_read_whole) {
            found.entry(path).or_insert_with(|| (key.to_owned(), message));
        }
    };
    look("", document.file(), false);
    for Named { key, path, is_secret } in places(raw) {
        if !secret::is_file(path) {
            continue;
        }
        if is_secret {
            // The file itself is judged with those who can read it.
            look(&key, path.parent().unwrap_or(path), false);
            continue;
        }
        look(&key, path, path.is_dir());
        for file in within(path) {
            look(&key, &file, false);
            schema_of(&file).inspect(|schema| look(&key, schema, false));
        }
    }
    look("data_dir", &raw.data_dir, true);
    look("data_dir", &raw.data_dir.join("journal"), true);
    look("socket", socket.parent().unwrap_or(socket), true);
    let (count, list) = (found.len(), if raw.environment == PRODUCTION { problems } else { warnings });
    list.extend(found.into_values().take(NAMED_MAX).map(|(key, message)| document.problem(key, message)));
    if count > NAMED_MAX {
        let message = format!("everybody on this machine can change {} more files and folders", count - NAMED_MAX);
        list.push(document.problem("", message));
    }
}

/// The schema that a contract names, wherever it is.
fn schema_of(contract: &Path) -> Option<PathBuf> {
    let named: String = serde_json::from_str(&Document::read(contract).ok()?.value("schema")?).ok()?;
    Some(contract.parent()?.join(named))
}
