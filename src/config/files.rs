//! The files that a configuration names: where they are, and whether what they say has changed.

use super::File;
use crate::secret::Secret;
use crate::tls::{CertificateFile, ClientFiles, RevocationFile, ServerFiles};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A path that leads to a secret, or to something else that the configuration is made of.
pub(super) struct Named<'a> {
    /// Its key, such as `source.mqtt[0].tls.cert`.
    pub key: String,
    pub path: &'a mut PathBuf,
    pub is_secret: bool,
}

type Found<'a> = Vec<Named<'a>>;

fn named<'a>(found: &mut Found<'a>, key: String, path: impl Into<Option<&'a mut PathBuf>>, is_secret: bool) {
    found.extend(path.into().map(|path| Named { key, path, is_secret }));
}

fn of_server<'a>(found: &mut Found<'a>, key: &str, files: Option<&'a mut ServerFiles>) {
    let Some(files) = files else { return };
    named(found, format!("{key}.key"), &mut files.key, true);
    named(found, format!("{key}.cert"), &mut files.cert, false);
    named(found, format!("{key}.client_ca"), files.client_ca.as_mut(), false);
    named(found, format!("{key}.crl"), files.crl.as_mut(), false);
}

fn of_client<'a>(found: &mut Found<'a>, key: &str, files: &'a mut ClientFiles) {
    named(found, format!("{key}.key"), files.key.as_mut(), true);
    named(found, format!("{key}.cert"), files.cert.as_mut(), false);
    named(found, format!("{key}.ca"), files.ca.as_mut(), false);
}

/// Every place of a secret, a certificate, contracts or tables, with its key.
pub(super) fn places(raw: &mut File) -> Found<'_> {
    let mut found = Vec::new();
    named(&mut found, "contracts".into(), &mut raw.contracts, false);
    named(&mut found, "mask_key".into(), raw.mask_key.as_mut(), true);
    for (index, source) in raw.source.mqtt.iter_mut().enumerate() {
        named(&mut found, format!("source.mqtt[{index}].passwords"), source.passwords.as_mut(), true);
        of_server(&mut found, &format!("source.mqtt[{index}].tls"), source.tls.as_mut());
    }
    for (index, source) in raw.source.http.iter_mut().enumerate() {
        named(&mut found, format!("source.http[{index}].tokens"), source.tokens.as_mut(), true);
        of_server(&mut found, &format!("source.http[{index}].tls"), source.tls.as_mut());
    }
    for (index, source) in raw.source.broker.iter_mut().enumerate() {
        named(&mut found, format!("source.broker[{index}].password_file"), source.password_file.as_mut(), true);
        of_client(&mut found, &format!("source.broker[{index}].tls"), &mut source.tls);
    }
    for (index, source) in raw.source.modbus.iter_mut().enumerate() {
        named(&mut found, format!("source.modbus[{index}].devices"), &mut source.devices, false);
        of_client(&mut found, &format!("source.modbus[{index}].tls"), &mut source.tls);
    }
    for (index, source) in raw.source.odoo.iter_mut().enumerate() {
        named(&mut found, format!("source.odoo[{index}].key_file"), &mut source.key_file, true);
        of_client(&mut found, &format!("source.odoo[{index}].tls"), &mut source.tls);
        if let Some(hook) = &mut source.hook {
            named(&mut found, format!("source.odoo[{index}].hook.token_file"), &mut hook.token_file, true);
            of_server(&mut found, &format!("source.odoo[{index}].hook.tls"), hook.tls.as_mut());
        }
    }
    for (index, destination) in raw.destination.iter_mut().enumerate() {
        named(&mut found, format!("destination[{index}].password_file"), destination.password_file.as_mut(), true);
        of_client(&mut found, &format!("destination[{index}].tls"), &mut destination.tls);
    }
    found
}

/// The files of certificates that are in use, each once for each use.
pub(super) fn certificates(raw: &mut File) -> Vec<CertificateFile> {
    let mut found: Vec<CertificateFile> = Vec::new();
    for Named { key, path, .. } in places(raw) {
        let what = match key.rsplit('.').next() {
            Some("cert") => "own",
            Some("ca") => "authority of servers",
            Some("client_ca") => "authority of clients",
            _ => continue,
        };
        let one = CertificateFile { path: path.clone(), what };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// The files of revocation lists that are in use, each once for each of what becomes of clients when one has ended.
pub(super) fn revocations(raw: &File) -> Vec<RevocationFile> {
    let mqtt = raw.source.mqtt.iter().filter_map(|source| source.tls.as_ref());
    let http = raw.source.http.iter().filter_map(|source| source.tls.as_ref());
    let hooks = raw.source.odoo.iter().filter_map(|source| source.hook.as_ref()?.tls.as_ref());
    let mut found: Vec<RevocationFile> = Vec::new();
    for files in mqtt.chain(http).chain(hooks) {
        let Some(path) = files.crl.clone() else { continue };
        let one = RevocationFile { path, crl_expiry: files.crl_expiry };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// Makes every path one that does not depend on where the program was started.
pub(super) fn resolve(raw: &mut File, beside: &impl Fn(&Path) -> PathBuf) {
    raw.data_dir = beside(&raw.data_dir);
    places(raw).into_iter().for_each(|Named { path, .. }| *path = beside(path));
}

/// Prints of a part of the configuration: they differ where the part does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Print {
    /// Of what is written in the configuration.
    pub settings: u64,
    /// Of what the files hold that it names.
    pub files: u64,
}

/// Prints of the contracts and of every source and destination, and the files behind them.
#[derive(Clone, Debug, Default)]
pub struct Prints {
    parts: BTreeMap<String, Print>,
    /// What each file holds, by its part and the key that names it, such as `passwords` or `tls.cert`.
    contents: BTreeMap<(String, String), u64>,
    /// Files and folders that the configuration is made of.
    pub files: Vec<PathBuf>,
}

impl Prints {
    /// The print of a part, such as `source shopfloor`, `destination central` or `contracts`.
    pub fn of(&self, part: &str) -> Print {
        self.parts.get(part).copied().unwrap_or_default()
    }

    /// The parts whose files hold something else than in `before`, and which of them do.
    pub fn changed_files(&self, before: &Self) -> Vec<(&str, String)> {
        let is_changed = |(part, print): &(&String, &Print)| {
            before.parts.get(*part).is_some_and(|before| before.files != print.files)
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

    /// Taken before anything is read, so that a change while it is read shows the next time.
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
        for Named { key, path, .. } in places(raw) {
            let end = key.find(']').map_or(key.len(), |end| end + 1);
            let name = names.get(&key[..end]).cloned().unwrap_or_else(|| key.clone());
            let rest = key[end..].trim_start_matches('.').to_owned();
            contents.insert((name.clone(), rest), content(std::slice::from_ref(path)));
            files.entry(name).or_default().push(path.clone());
        }
        let print = |(name, files): (String, Vec<PathBuf>)| {
            let settings = settings.get(&name).map_or(0, |text| xxh3_64(text.as_bytes()));
            (name, Print { settings, files: content(&files) })
        };
        let all = [file.to_owned()].into_iter().chain(files.values().flatten().cloned()).collect();
        Self { parts: files.into_iter().map(print).collect(), contents, files: all }
    }

    /// A number that changes when one of the files does: its time, size or identity.
    pub fn stamp(&self) -> u64 {
        let mut stamp = Xxh3::new();
        for path in &self.files {
            walk(path, FOLDERS_DEEP_MAX, &mut |file, found| {
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

/// Print of what files and folders hold.
fn content(files: &[PathBuf]) -> u64 {
    let mut print = Xxh3::new();
    for path in files {
        walk(path, FOLDERS_DEEP_MAX, &mut |file, _| {
            print.update(file.as_os_str().as_encoded_bytes());
            print.update(Secret::read(file).unwrap_or_default().bytes());
        });
    }
    print.digest()
}

/// Links may lead round in a circle.
const FOLDERS_DEEP_MAX: u32 = 4;

/// Shows a file, or every contract, schema and table in a folder, in the order of their names. What cannot be
/// read is left out.
fn walk(path: &Path, deep: u32, see: &mut impl FnMut(&Path, &std::fs::Metadata)) {
    let Ok(found) = std::fs::metadata(path) else { return };
    if !found.is_dir() {
        return see(path, &found);
    }
    let Some(deep) = deep.checked_sub(1) else { return };
    let mut inside: Vec<_> =
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    inside.retain(|path| path.is_dir() || path.extension().is_some_and(|ending| ending == "toml" || ending == "json"));
    inside.sort();
    inside.iter().for_each(|path| walk(path, deep, see));
}

/// Every contract, schema and table in a folder; nothing for a file.
pub(super) fn within(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, FOLDERS_DEEP_MAX, &mut |file, _| found.push(file.to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_a_file_and_a_print_with_what_it_holds() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("state.toml");
        std::fs::write(&file, "one").expect("writes");
        let print = |path: &Path| {
            let files = vec![path.to_owned()];
            (content(&files), Prints { files, ..Prints::default() }.stamp())
        };
        let first = print(folder.path());
        assert_eq!(print(folder.path()), first);
        // The same content in a new file: looked at again, and found to be the same.
        std::fs::write(folder.path().join("new"), "one").expect("writes");
        assert_eq!(print(folder.path()), first, "what is neither contract nor schema does not count");
        std::fs::rename(folder.path().join("new"), &file).expect("renames");
        let second = print(folder.path());
        assert_eq!(second.0, first.0);
        assert_ne!(second.1, first.1);
        std::fs::write(&file, "two").expect("writes");
        assert_ne!(print(folder.path()).0, first.0);
    }
}
