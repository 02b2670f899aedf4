//! Files that a command creates for the gateway: secrets, certificates, configuration.
//!
//! Promise: no file is replaced without permission, and then atomically. All files of a command are checked before the
//! first one is written. A secret has mode 0600 from its first byte on, and the service's user can read it.

use crate::config;
use crate::setting::access::user_name;
use anyhow::{Context, bail};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The access that a new file allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody may read it.
    Public,
    /// Only the user that runs the command may read it.
    Own,
    /// Only the user of the gateway's service may read it.
    Service,
}

pub(super) struct NewFile {
    pub path: PathBuf,
    pub content: Zeroizing<Vec<u8>>,
    pub access: Access,
}

impl NewFile {
    pub(super) fn new(path: PathBuf, content: &str, access: Access) -> Self {
        Self { path, content: Zeroizing::new(content.as_bytes().to_vec()), access }
    }
}

/// The user of the gateway's service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Returns the user of the service, if the process is root and another user runs it: the owner of the data folder;
    /// before there is one, the user of the package for the configuration of the package.
    pub(super) fn of_service(config: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let data = config::journal_of(config).ok().and_then(|journal| Some(journal.parent()?.to_owned()));
        match data.and_then(|data| std::fs::metadata(data).ok()) {
            Some(found) => (found.uid() != 0).then(|| Self { uid: found.uid(), gid: found.gid() }),
            None if config.starts_with("/etc/forebay") => Self::named(&std::fs::read_to_string("/etc/passwd").ok()?),
            None => None,
        }
    }

    /// Finds the user of the package in the text of `/etc/passwd`.
    fn named(users: &str) -> Option<Self> {
        let line = users.lines().find(|line| line.starts_with("forebay:"))?;
        let mut parts = line.split(':').skip(2);
        Some(Self { uid: parts.next()?.parse().ok()?, gid: parts.next()?.parse().ok()? })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn gid(&self) -> u32 {
        self.gid
    }

    /// Returns the name of the user, or its number.
    pub(super) fn name(&self) -> String {
        user_name(self.uid)
    }

    /// Gives a folder to the service.
    pub(super) fn take(&self, folder: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(folder, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to the user of the service", folder.display()))
    }
}

/// Writes all files. Fails before the first one if one exists and `may_replace` is false.
pub(super) fn write_all(files: &[NewFile], owner: Option<&Owner>, may_replace: bool) -> anyhow::Result<()> {
    for file in files {
        if !may_replace && std::fs::symlink_metadata(&file.path).is_ok() {
            bail!("{} exists; nothing was written. Use --yes to replace it", file.path.display());
        }
    }
    for file in files {
        write(file, owner).with_context(|| format!("cannot write {}", file.path.display()))?;
    }
    Ok(())
}

fn write(new: &NewFile, owner: Option<&Owner>) -> anyhow::Result<()> {
    // A symbolic link stays a link: its target is replaced.
    let path = std::fs::canonicalize(&new.path).unwrap_or_else(|_| new.path.clone());
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let name = path.file_name().context("this is no file name")?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&new.content)?;
        match (new.access, owner) {
            (Access::Service, Some(owner)) => fchown(&file, Some(owner.uid), Some(owner.gid))?,
            (Access::Public, _) => file.set_permissions(std::fs::Permissions::from_mode(0o644))?,
            _ => {}
        }
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    let result = written();
    if result.is_err() {
        // The error is returned; the incomplete temporary file is of no use.
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_of_a_command_is_written_if_one_of_them_exists() {
        let folder = tempfile::tempdir().expect("folder");
        let files = ["gw.key", "gw.pem"].map(|name| NewFile::new(folder.path().join(name), "new", Access::Own));
        std::fs::write(&files[1].path, "old").expect("written");
        let error = write_all(&files, None, false).expect_err("refused").to_string();
        assert!(error.contains("gw.pem exists") && error.contains("--yes"), "{error}");
        assert!(!files[0].path.exists());
        write_all(&files, None, true).expect("replaced");
        for file in &files {
            let found = std::fs::metadata(&file.path).expect("a file");
            assert_eq!((found.mode() & 0o7777, found.len()), (0o600, 3));
        }
    }

    #[test]
    fn the_user_of_the_package_is_found() {
        let users = "root:x:0:0:root:/root:/bin/sh\nforebay:x:998:997::/var/lib/forebay:/usr/sbin/nologin\n";
        assert_eq!(Owner::named(users), Some(Owner { uid: 998, gid: 997 }));
        assert_eq!(Owner::named("forebays:x:1:1::"), None);
    }
}
