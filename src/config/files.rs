//! The files that a configuration names: where they are, and whether what they say has changed.

use super::{File, Sources};
use crate::forward;
use crate::sources::{broker, http, modbus, mqtt, odoo};
use crate::tls::{ClientFiles, ServerFiles};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

type Paths<'a> = Vec<&'a mut PathBuf>;

fn of_server(tls: &mut Option<ServerFiles>) -> Paths<'_> {
    let Some(ServerFiles { cert, key, client_ca, crl }) = tls else { return Vec::new() };
    [Some(cert), Some(key), client_ca.as_mut(), crl.as_mut()].into_iter().flatten().collect()
}

fn of_client(ClientFiles { ca, cert, key, .. }: &mut ClientFiles) -> Paths<'_> {
    [ca, cert, key].into_iter().flatten().collect()
}

fn of_listener(source: &mut mqtt::Config) -> Paths<'_> {
    of_server(&mut source.tls).into_iter().chain(&mut source.passwords).collect()
}

fn of_http(source: &mut http::Config) -> Paths<'_> {
    of_server(&mut source.tls).into_iter().chain(&mut source.tokens).collect()
}

fn of_broker(source: &mut broker::Config) -> Paths<'_> {
    of_client(&mut source.tls).into_iter().chain(&mut source.password_file).collect()
}

fn of_bus(source: &mut modbus::Config) -> Paths<'_> {
    of_client(&mut source.tls).into_iter().chain([&mut source.devices]).collect()
}

fn of_odoo(source: &mut odoo::Config) -> Paths<'_> {
    let mut paths = of_client(&mut source.tls);
    paths.push(&mut source.key_file);
    if let Some(hook) = &mut source.hook {
        paths.push(&mut hook.token_file);
        paths.extend(of_server(&mut hook.tls));
    }
    paths
}

fn of_destination(destination: &mut forward::Config) -> Paths<'_> {
    of_client(&mut destination.tls).into_iter().chain(&mut destination.password_file).collect()
}

/// Every path of a configuration.
fn of(raw: &mut File) -> Paths<'_> {
    let Sources { mqtt, http, broker, modbus, odoo } = &mut raw.source;
    let sources = mqtt.iter_mut().flat_map(of_listener).chain(http.iter_mut().flat_map(of_http));
    let sources = sources.chain(broker.iter_mut().flat_map(of_broker)).chain(modbus.iter_mut().flat_map(of_bus));
    let parts =
        sources.chain(odoo.iter_mut().flat_map(of_odoo)).chain(raw.destination.iter_mut().flat_map(of_destination));
    [&mut raw.data_dir, &mut raw.contracts].into_iter().chain(&mut raw.mask_key).chain(parts).collect()
}

/// Makes every path one that does not depend on where the program was started.
pub(super) fn resolve(raw: &mut File, beside: &impl Fn(&Path) -> PathBuf) {
    of(raw).into_iter().for_each(|path| *path = beside(path));
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
    /// Files and folders that the configuration is made of.
    pub files: Vec<PathBuf>,
}

impl Prints {
    /// The print of a part, such as `source shopfloor`, `destination central` or `contracts`.
    pub fn of(&self, part: &str) -> Print {
        self.parts.get(part).copied().unwrap_or_default()
    }

    /// The parts whose files hold something else than in `before`, and what those are.
    pub fn changed_files(&self, before: &Self) -> Vec<(&str, &'static str)> {
        let is_changed = |(part, print): &(&String, &Print)| {
            before.parts.get(*part).is_some_and(|before| before.files != print.files)
        };
        let words = |part: &str| match part {
            "contracts" => "a file of the folder has changed",
            "mask_key" => "the key has changed",
            _ => "certificates, keys or other files have changed",
        };
        self.parts.iter().filter(is_changed).map(|(part, _)| (part.as_str(), words(part))).collect()
    }

    /// Taken before anything is read, so that a change while it is read shows the next time.
    pub(super) fn take(file: &Path, raw: &mut File) -> Self {
        let mut prints = Self { parts: BTreeMap::new(), files: vec![file.to_owned()] };
        prints.add("contracts".into(), &(), vec![&mut raw.contracts]);
        prints.add("mask_key".into(), &(), raw.mask_key.iter_mut().collect());
        macro_rules! each {
            ($list:expr, $kind:literal, $paths:ident) => {
                for part in $list {
                    let (name, settings) = (format!(concat!($kind, " {}"), part.name), format!("{part:?}"));
                    prints.add(name, &settings, $paths(part));
                }
            };
        }
        each!(&mut raw.source.mqtt, "source", of_listener);
        each!(&mut raw.source.http, "source", of_http);
        each!(&mut raw.source.broker, "source", of_broker);
        each!(&mut raw.source.modbus, "source", of_bus);
        each!(&mut raw.source.odoo, "source", of_odoo);
        each!(&mut raw.destination, "destination", of_destination);
        prints
    }

    fn add(&mut self, name: String, settings: &impl Debug, paths: Paths<'_>) {
        let mut files = Xxh3::new();
        for path in &paths {
            walk(path, FOLDERS_DEEP_MAX, &mut |file, _| {
                files.update(file.as_os_str().as_encoded_bytes());
                files.update(&std::fs::read(file).unwrap_or_default());
            });
        }
        let settings = xxhash_rust::xxh3::xxh3_64(format!("{settings:?}").as_bytes());
        self.parts.insert(name, Print { settings, files: files.digest() });
        self.files.extend(paths.into_iter().map(|path| path.clone()));
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
    inside.sort_unstable();
    inside.iter().for_each(|path| walk(path, deep, see));
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
            let mut prints = Prints::default();
            prints.add("source a".into(), &(), vec![&mut path.to_owned()]);
            (prints.of("source a"), prints.stamp())
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
