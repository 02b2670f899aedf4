//! The files that a configuration names: their paths, and digests that show whether their content has changed.

use super::file::File;
use crate::secret::Secret;
use crate::tls::{CertificateFile, NamedFile, RevocationFile};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// A setting that is a path to a secret, a certificate, contracts or a device table.
pub(super) struct FileSetting<'a> {
    /// Key of the part, such as `source.mqtt[0]`; empty for settings of the gateway.
    part: String,
    /// Key in the part, such as `tls.cert`.
    key: String,
    pub path: &'a mut PathBuf,
    pub is_secret: bool,
}

impl FileSetting<'_> {
    /// The whole key, such as `source.mqtt[0].tls.cert`.
    pub(super) fn key(&self) -> String {
        if self.part.is_empty() { self.key.clone() } else { format!("{}.{}", self.part, self.key) }
    }
}

/// Returns the settings of all parts that name files, each with the key of its part.
pub(super) fn named_files(raw: &mut File) -> Vec<(String, NamedFile<'_>)> {
    let mut found = vec![(String::new(), NamedFile::Plain("contracts", &mut raw.contracts))];
    found.extend(raw.mask_key.as_mut().map(|file| (String::new(), NamedFile::Secret("mask_key", file))));
    for (part, source) in &mut raw.source.0 {
        found.extend(source.settings_mut().files().into_iter().map(|file| (part.clone(), file)));
    }
    for (index, destination) in raw.destination.iter_mut().enumerate() {
        found.extend(destination.files().into_iter().map(|file| (format!("destination[{index}]"), file)));
    }
    found
}

/// Returns every setting that is a path to a secret, a certificate, contracts or a device table.
pub(super) fn file_settings(raw: &mut File) -> Vec<FileSetting<'_>> {
    let mut found = Vec::new();
    for (part, named) in named_files(raw) {
        let mut add = |key: &str, rest: &str, path: Option<_>, is_secret| {
            let Some(path) = path else { return };
            let key = if rest.is_empty() { key.to_owned() } else { format!("{key}.{rest}") };
            found.push(FileSetting { part: part.clone(), key, path, is_secret });
        };
        match named {
            NamedFile::Secret(key, path) => add(key, "", Some(path), true),
            NamedFile::Plain(key, path) => add(key, "", Some(path), false),
            NamedFile::Server(key, files) => {
                add(key, "key", Some(&mut files.key), true);
                add(key, "cert", Some(&mut files.cert), false);
                add(key, "client_ca", files.client_ca.as_mut(), false);
                add(key, "crl", files.crl.as_mut(), false);
            }
            NamedFile::Client(key, files) => {
                add(key, "key", files.key.as_mut(), true);
                add(key, "cert", files.cert.as_mut(), false);
                add(key, "ca", files.ca.as_mut(), false);
            }
        }
    }
    found
}

/// The certificate files in use; a file with several uses is listed once per use.
pub(super) fn certificates(raw: &mut File) -> Vec<CertificateFile> {
    let mut found: Vec<CertificateFile> = Vec::new();
    for FileSetting { key, path, .. } in file_settings(raw) {
        let what = match key.rsplit('.').next() {
            Some("cert") => "own",
            Some("ca") => "authority of servers",
            Some("client_ca") => "authority of clients",
            _ => continue,
        };
        let file = CertificateFile { path: path.clone(), what };
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// The revocation lists in use; a list with several `crl_expiry` settings is listed once for each.
pub(super) fn revocations(raw: &mut File) -> Vec<RevocationFile> {
    let mut found: Vec<RevocationFile> = Vec::new();
    for (_, named) in named_files(raw) {
        let NamedFile::Server(_, files) = named else { continue };
        let Some(path) = files.crl.clone() else { continue };
        let file = RevocationFile { path, crl_expiry: files.crl_expiry };
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// Makes every path independent of the working directory of the process.
pub(super) fn resolve(raw: &mut File, resolve: &impl Fn(&Path) -> PathBuf) {
    raw.data_dir = resolve(&raw.data_dir);
    file_settings(raw).into_iter().for_each(|FileSetting { path, .. }| *path = resolve(path));
    let sources = raw.source.0.iter_mut();
    sources.flat_map(|(_, source)| source.settings_mut().folders()).for_each(|path| *path = resolve(path));
}

/// Digests of the files that the contracts and every source and destination name.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    /// Digest of the content of all files of a part.
    parts: BTreeMap<String, u64>,
    /// Digest of each file's content, by part and key, such as `passwords` or `tls.cert`.
    contents: BTreeMap<(String, String), u64>,
    /// The configuration file, and the files and folders that it names.
    pub files: Vec<PathBuf>,
}

impl Digests {
    /// Returns the digest of the files of a part, such as `source shopfloor`, `destination central` or `contracts`.
    pub fn of(&self, part: &str) -> u64 {
        self.parts.get(part).copied().unwrap_or_default()
    }

    /// Returns the parts whose files differ in content from `before`, each with a description of the files.
    pub fn changed_files(&self, before: &Self) -> Vec<(&str, String)> {
        let is_changed =
            |(part, digest): &(&String, &u64)| before.parts.get(*part).is_some_and(|before| before != *digest);
        let words = |part: &str| match part {
            "contracts" => "a file of the folder has changed".to_owned(),
            "mask_key" => "the key has changed".to_owned(),
            _ => {
                let differs = |(key, content): &(&(String, String), &u64)| {
                    key.0 == part && before.contents.get(*key).is_some_and(|before| before != *content)
                };
                let named: Vec<_> = self.contents.iter().filter(differs).map(|((_, key), _)| key.as_str()).collect();
                format!("the files of {} have changed", named.join(", "))
            }
        };
        self.parts.iter().filter(is_changed).map(|(part, _)| (part.as_str(), words(part))).collect()
    }

    /// Reads all files and computes the digests.
    pub(super) fn take(file: &Path, raw: &mut File) -> Self {
        let sources = raw.source.0.iter().map(|(key, one)| (key.clone(), format!("source {}", one.settings().name())));
        let destinations = raw.destination.iter().enumerate();
        let destinations =
            destinations.map(|(index, one)| (format!("destination[{index}]"), format!("destination {}", one.name)));
        let parts: BTreeMap<String, String> = sources.chain(destinations).collect();
        let mut files: BTreeMap<String, Vec<PathBuf>> = parts.values().map(|part| (part.clone(), Vec::new())).collect();
        let mut contents = BTreeMap::new();
        for FileSetting { part, key, path, .. } in file_settings(raw) {
            let name = parts.get(&part).unwrap_or(&key).clone();
            contents.insert((name.clone(), key), content(std::slice::from_ref(path)));
            files.entry(name).or_default().push(path.clone());
        }
        let all = [file.to_owned()].into_iter().chain(files.values().flatten().cloned()).collect();
        let parts = files.into_iter().map(|(part, files)| (part, content(&files))).collect();
        Self { parts, contents, files: all }
    }

    /// Returns a number that changes when the time, size or inode of one of the files changes.
    pub fn stamp(&self) -> u64 {
        let mut stamp = Xxh3::new();
        for path in &self.files {
            walk(path, FOLDER_DEPTH_MAX, &mut |file, found| {
                stamp.update(file.as_os_str().as_encoded_bytes());
                for number in [found.mtime(), found.mtime_nsec(), found.size().cast_signed(), found.ino().cast_signed()]
                {
                    stamp.update(&number.to_le_bytes());
                }
            });
        }
        stamp.digest()
    }
}

/// Digest of the content of files and folders.
fn content(files: &[PathBuf]) -> u64 {
    let mut digest = Xxh3::new();
    for path in files {
        walk(path, FOLDER_DEPTH_MAX, &mut |file, _| {
            digest.update(file.as_os_str().as_encoded_bytes());
            digest.update(Secret::read(file).unwrap_or_default().bytes());
        });
    }
    digest.digest()
}

/// Deepest folder level that is read: symbolic links may form a cycle.
const FOLDER_DEPTH_MAX: u32 = 4;

/// Visits a file, or every contract, schema and table in a folder, ordered by name. Skips unreadable entries.
fn walk(path: &Path, depth: u32, visit: &mut impl FnMut(&Path, &std::fs::Metadata)) {
    let Ok(found) = std::fs::metadata(path) else { return };
    if !found.is_dir() {
        return visit(path, &found);
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    let mut inside: Vec<_> =
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    inside.retain(|path| path.is_dir() || path.extension().is_some_and(|ending| ending == "toml" || ending == "json"));
    inside.sort();
    inside.iter().for_each(|path| walk(path, depth, visit));
}

/// Returns every contract, schema and table in a folder; nothing for a file.
pub(super) fn files_within(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, FOLDER_DEPTH_MAX, &mut |file, _| found.push(file.to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_a_file_and_a_digest_with_its_content() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("state.toml");
        std::fs::write(&file, "one").expect("writes");
        let digest = |path: &Path| {
            let files = vec![path.to_owned()];
            (content(&files), Digests { files, ..Digests::default() }.stamp())
        };
        let first = digest(folder.path());
        assert_eq!(digest(folder.path()), first);
        // The same content in a new file: the stamp changes, the digest does not.
        std::fs::write(folder.path().join("new"), "one").expect("writes");
        assert_eq!(digest(folder.path()), first, "a file that is neither contract nor schema is ignored");
        std::fs::rename(folder.path().join("new"), &file).expect("renames");
        let second = digest(folder.path());
        assert_eq!(second.0, first.0);
        assert_ne!(second.1, first.1);
        std::fs::write(&file, "two").expect("writes");
        assert_ne!(digest(folder.path()).0, first.0);
    }
}
