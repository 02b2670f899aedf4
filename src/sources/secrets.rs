//! Files of hashed secrets: one line `name:…` per name; lines that begin with `#` are comments.
//!
//! Promise: writes are atomic: at any moment the old or the new file is complete. The file keeps owner, group and mode,
//! and a symbolic link stays a link. A file with any other content is not changed.

use crate::secret::Secret;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A file of secrets that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}{place}: {reason}", file = file.display(), place = if *line > 0 { format!(":{line}") } else { String::new() })]
pub struct BadSecrets {
    file: PathBuf,
    line: usize,
    reason: String,
}

impl BadSecrets {
    /// An error that concerns the whole file.
    pub fn whole(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: 0, reason: reason.into() }
    }
}

/// Reads a file. `entry` parses each line that is not empty and no comment. Its error must not quote the line: in a
/// wrong file it may be a key.
pub(super) fn load<T>(file: &Path, entry: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, BadSecrets> {
    let read =
        Secret::read(file).map_err(|error| BadSecrets::whole(file, format!("cannot be read: {}", error.reason)))?;
    match read.text() {
        Ok(text) => parse(file, text, entry),
        Err(why) => Err(BadSecrets::whole(file, format!("cannot be read: {why}"))),
    }
}

fn parse<T>(file: &Path, text: &str, entry: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, BadSecrets> {
    let lines = text.lines().map(str::trim).enumerate();
    let entries = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let read = entries.map(|(index, line)| {
        entry(line).map_err(|reason| BadSecrets { file: file.to_owned(), line: index + 1, reason })
    });
    read.collect()
}

/// Writes the line `name:…` to a file; replaces an earlier one of that name. Creates the file if it does not exist.
/// `entry` is that of [`load`].
pub(super) fn put<T>(
    file: &Path,
    name: &str,
    line: &str,
    entry: impl Fn(&str) -> Result<T, String>,
) -> Result<(), BadSecrets> {
    change(file, name, Some(line), entry).map(drop)
}

/// Removes the line of a name. Returns whether there was one.
pub(super) fn remove<T>(
    file: &Path,
    name: &str,
    entry: impl Fn(&str) -> Result<T, String>,
) -> Result<bool, BadSecrets> {
    change(file, name, None, entry)
}

/// Replaces the line of a name, or removes it. Returns whether there was one.
fn change<T>(
    file: &Path,
    name: &str,
    line: Option<&str>,
    entry: impl Fn(&str) -> Result<T, String>,
) -> Result<bool, BadSecrets> {
    let bad = |reason: String| BadSecrets::whole(file, reason);
    // A symbolic link stays a link: its target is written.
    let target = match std::fs::canonicalize(file) {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound && std::fs::symlink_metadata(file).is_err() => {
            file.to_owned()
        }
        Err(error) => return Err(bad(format!("cannot be read: {error}"))),
    };
    let old = match std::fs::read(&target) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text; it was not changed".into()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(bad(format!("cannot be read: {error}"))),
    };
    parse(file, &old, entry)?;
    let prefix = format!("{name}:");
    let is_of_name = |line: &&str| line.trim().starts_with(&prefix);
    let was_there = old.lines().any(|line| is_of_name(&line));
    if line.is_none() && !was_there {
        return Ok(false);
    }
    let kept = old.lines().filter(|line| !is_of_name(line));
    let text: String = kept.chain(line).flat_map(|line| [line, "\n"]).collect();
    replace(&target, text.as_bytes()).map_err(|error| bad(format!("cannot be written: {error}")))?;
    Ok(was_there)
}

/// Mode of a new file: the service reads it through its group.
const NEW_MODE: u32 = 0o640;

fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let folder = file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let written = write_like(file, &temporary, content)
        .and_then(|()| std::fs::rename(&temporary, file))
        .and_then(|()| std::fs::File::open(folder)?.sync_all());
    if written.is_err() {
        // The error is returned; the incomplete temporary file is of no use.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Writes a new file with owner, group and mode of the old one, as far as this user has the right.
fn write_like(old: &Path, new: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(content)?;
    let mode = match std::fs::metadata(old) {
        Ok(old) => {
            if fchown(&file, Some(old.uid()), Some(old.gid())).is_err() {
                // Only root may change the owner. A user may still set a group that it belongs to; if that fails too,
                // the mode alone decides who can read the file.
                let _ = fchown(&file, None, Some(old.gid()));
            }
            old.mode() & 0o777
        }
        Err(_) => NEW_MODE,
    };
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}
