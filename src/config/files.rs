//! The files that a configuration names: their paths, and digests that show whether their content has changed.

use super::File;
use crate::secret::Secret;
use crate::tls::{CertificateFile, ClientFiles, RevocationFile, ServerFiles};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A setting that is a path to a secret, a certificate, contracts or a device table.
pub(super) struct FileSetting<'a> {
    /// Key of the setting, such as `source.mqtt[0].tls.cert`.
    pub key: String,
    pub path: &'a mut PathBuf,
    pub is_secret: bool,
}

type FileSettings<'a> = Vec<FileSetting<'a>>;

fn push_setting<'a>(
    found: &mut FileSettings<'a>,
    key: String,
    path: impl Into<Option<&'a mut PathBuf>>,
    is_secret: bool,
) {
    found.extend(path.into().map(|path| FileSetting { key, path, is_secret }));
}

fn of_server<'a>(found: &mut FileSettings<'a>, key: &str, files: Option<&'a mut ServerFiles>) {
    let Some(files) = files else { return };
    push_setting(found, format!("{key}.key"), &mut files.key, true);
    push_setting(found, format!("{key}.cert"), &mut files.cert, false);
    push_setting(found, format!("{key}.client_ca"), files.client_ca.as_mut(), false);
    push_setting(found, format!("{key}.crl"), files.crl.as_mut(), false);
}

fn of_client<'a>(found: &mut FileSettings<'a>, key: &str, files: &'a mut ClientFiles) {
    push_setting(found, format!("{key}.key"), files.key.as_mut(), true);
    push_setting(found, format!("{key}.cert"), files.cert.as_mut(), false);
    push_setting(found, format!("{key}.ca"), files.ca.as_mut(), false);
}

/// Returns every setting that is a path to a secret, a certificate, contracts or a device table.
pub(super) fn file_settings(raw: &mut File) -> FileSettings<'_> {
    let mut found = Vec::new();
    push_setting(&mut found, "contracts".into(), &mut raw.contracts, false);
    push_setting(&mut found, "mask_key".into(), raw.mask_key.as_mut(), true);
    for (index, source) in raw.source.mqtt.iter_mut().enumerate() {
        push_setting(&mut found, format!("source.mqtt[{index}].passwords"), source.passwords.as_mut(), true);
        of_server(&mut found, &format!("source.mqtt[{index}].tls"), source.tls.as_mut());
    }
    for (index, source) in raw.source.http.iter_mut().enumerate() {
        push_setting(&mut found, format!("source.http[{index}].tokens"), source.tokens.as_mut(), true);
        of_server(&mut found, &format!("source.http[{index}].tls"), source.tls.as_mut());
    }
    for (index, source) in raw.source.broker.iter_mut().enumerate() {
        push_setting(&mut found, format!("source.broker[{index}].password_file"), source.password_file.as_mut(), true);
        of_client(&mut found, &format!("source.broker[{index}].tls"), &mut source.tls);
    }
    for (index, source) in raw.source.modbus.iter_mut().enumerate() {
        push_setting(&mut found, format!("source.modbus[{index}].devices"), &mut source.devices, false);
        of_client(&mut found, &format!("source.modbus[{index}].tls"), &mut source.tls);
    }
    for (index, source) in raw.source.odoo.iter_mut().enumerate() {
        push_setting(&mut found, format!("source.odoo[{index}].key_file"), &mut source.key_file, true);
        of_client(&mut found, &format!("source.odoo[{index}].tls"), &mut source.tls);
        if let Some(hook) = &mut source.hook {
            push_setting(&mut found, format!("source.odoo[{index}].hook.token_file"), &mut hook.token_file, true);
            of_server(&mut found, &format!("source.odoo[{index}].hook.tls"), hook.tls.as_mut());
        }
    }
    for (index, destination) in raw.destination.iter_mut().enumerate() {
        push_setting(
            &mut found,
            format!("destination[{index}].password_file"),
            destination.password_file.as_mut(),
            true,
        );
        of_client(&mut found, &format!("destination[{index}].tls"), &mut destination.tls);
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
pub(super) fn revocations(raw: &File) -> Vec<RevocationFile> {
    let mqtt = raw.source.mqtt.iter().filter_map(|source| source.tls.as_ref());
    let http = raw.source.http.iter().filter_map(|source| source.tls.as_ref());
    let hooks = raw.source.odoo.iter().filter_map(|source| source.hook.as_ref()?.tls.as_ref());
    let mut found: Vec<RevocationFile> = Vec::new();
    for files in mqtt.chain(http).chain(hooks) {
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
}

/// Digests of one part of the configuration. They differ where the part differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Digest of the settings in the configuration file.
    pub settings: u64,
    /// Digest of the content of the files that the settings name.
    pub files: u64,
}

/// Digests of the contracts and of every source and destination, with the files that they cover.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    parts: BTreeMap<String, Digest>,
    /// Digest of each file's content, by part and key, such as `passwords` or `tls.cert`.
    contents: BTreeMap<(String, String), u64>,
    /// The configuration file, and the files and folders that it names.
    pub files: Vec<PathBuf>,
}

impl Digests {
    /// Returns the digests of a part, such as `source shopfloor`, `destination central` or `contracts`.
    pub fn of(&self, part: &str) -> Digest {
        self.parts.get(part).copied().unwrap_or_default()
    }

    /// Returns the parts whose files differ in content from `before`, each with a description of the files.
    pub fn changed_files(&self, before: &Self) -> Vec<(&str, String)> {
        let is_changed = |(part, digest): &(&String, &Digest)| {
            before.parts.get(*part).is_some_and(|before| before.files != digest.files)
        };
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

    /// Computes all digests. Called before the files are read, so a change during the reading shows at the next poll.
    pub(super) fn take(file: &Path, raw: &mut File) -> Self {
        let mut names = BTreeMap::new();
        let mut settings = BTreeMap::new();
        macro_rules! each {
            ($list:expr, $key:literal, $kind:literal) => {
                for (index, part) in $list.iter().enumerate() {
                    let name = format!(concat!($kind, " {}"), part.name);
                    settings.insert(name.clone(), format!("{part:?}"));
                    names.insert(format!(concat!($key, "[{}]"), index), name);
                }
            };
        }
        each!(raw.source.mqtt, "source.mqtt", "source");
        each!(raw.source.http, "source.http", "source");
        each!(raw.source.broker, "source.broker", "source");
        each!(raw.source.modbus, "source.modbus", "source");
        each!(raw.source.odoo, "source.odoo", "source");
        each!(raw.destination, "destination", "destination");
        let mut files: BTreeMap<String, Vec<PathBuf>> =
            settings.keys().map(|name| (name.clone(), Vec::new())).collect();
        let mut contents = BTreeMap::new();
        for FileSetting { key, path, .. } in file_settings(raw) {
            let end = key.find(']').map_or(key.len(), |end| end + 1);
            let name = names.get(&key[..end]).cloned().unwrap_or_else(|| key.clone());
            let rest = key[end..].trim_start_matches('.').to_owned();
            contents.insert((name.clone(), rest), content(std::slice::from_ref(path)));
            files.entry(name).or_default().push(path.clone());
        }
        let digest = |(name, files): (String, Vec<PathBuf>)| {
            let settings = settings.get(&name).map_or(0, |text| xxh3_64(text.as_bytes()));
            (name, Digest { settings, files: content(&files) })
        };
        let all = [file.to_owned()].into_iter().chain(files.values().flatten().cloned()).collect();
        Self { parts: files.into_iter().map(digest).collect(), contents, files: all }
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
