//! Users and their passwords: a file of argon2id hashes.
//!
//! The file has one line per user, `name:$argon2id$…`, written by `forebay user add`. The gateway reads a changed
//! file at the next login; if it is damaged, the gateway logs that and keeps the users that it had.

mod hashing;
mod queue;

pub(super) use queue::Queue;

use crate::clock;
use crate::sources::identity::{Proof, check_name};
use crate::sources::secrets::{self, BadSecrets};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Number of successful logins that are cached: all devices of a plant reconnect at once after a power cut, and a
/// hash takes tens of milliseconds.
const REMEMBERED_MAX: usize = 16_384;

/// The shortest time between two checks whether the file has changed.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The users of a listener.
pub struct Users {
    file: PathBuf,
    loaded: RwLock<LoadedUsers>,
    looked: Mutex<(Instant, FileStamp)>,
    key: [u8; 32],
}

#[derive(Default)]
struct LoadedUsers {
    hashes: HashMap<String, String>,
    /// Keyed hashes of successful logins; the key lives as long as the process.
    right: Mutex<HashMap<String, [u8; 32]>>,
}

/// Identifies a version of the file: modification time, size and inode.
type FileStamp = Option<(SystemTime, u64, u64)>;

fn stamp(file: &Path) -> FileStamp {
    let found = std::fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len(), found.ino()))
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.loaded().hashes.len())
    }
}

/// Parses a line of a password file: name and hash.
fn entry(line: &str) -> Result<(String, String), String> {
    let (name, hash) =
        line.split_once(':').ok_or("expected \"name:$argon2id$…\"; `forebay user add` writes such lines")?;
    check_name(name)?;
    hashing::check(hash).map_err(|reason| format!("the hash of user \"{name}\" {reason}"))?;
    Ok((name.to_owned(), hash.to_owned()))
}

fn read(file: &Path) -> Result<HashMap<String, String>, BadSecrets> {
    Ok(secrets::load(file, entry)?.into_iter().collect())
}

impl Users {
    pub fn load(file: &Path) -> Result<Self, BadSecrets> {
        // Before the file is read: a later change is then noticed at the next check.
        let stamp = stamp(file);
        let hashes = read(file)?;
        let mut key = [0; 32];
        key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Ok(Self {
            file: file.to_owned(),
            loaded: RwLock::new(LoadedUsers { hashes, ..LoadedUsers::default() }),
            looked: Mutex::new((clock::instant(), stamp)),
            key,
        })
    }

    /// Returns all user names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.loaded().hashes.keys().cloned().collect();
        names.sort();
        names
    }

    fn loaded(&self) -> RwLockReadGuard<'_, LoadedUsers> {
        self.loaded.read()
    }

    /// Reads the file again if it has changed.
    fn refresh(&self) {
        let mut looked = self.looked.lock();
        let now = clock::instant();
        if now.duration_since(looked.0) < CHECK_EVERY {
            return;
        }
        let stamp = stamp(&self.file);
        let is_same = stamp == looked.1;
        *looked = (now, stamp);
        if is_same {
            return;
        }
        match read(&self.file) {
            Ok(hashes) => {
                tracing::info!(file = %self.file.display(), users = hashes.len(), "loaded the changed password file");
                // Cached logins are dropped with the old hashes.
                let loaded = LoadedUsers { hashes, ..LoadedUsers::default() };
                *self.loaded.write() = loaded;
            }
            Err(error) => {
                tracing::error!(%error, "could not load the changed password file; the earlier users stay in force")
            }
        }
    }

    fn digest(&self, name: &str, password: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        if let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(&self.key) {
            mac.update(&(name.len() as u64).to_le_bytes());
            mac.update(name.as_bytes());
            mac.update(password);
            out.copy_from_slice(&mac.finalize().into_bytes());
        }
        out
    }

    /// Returns whether the entry that a user logged in with still exists unchanged.
    pub(super) fn accepts(&self, name: &str, proof: &Proof) -> bool {
        self.refresh();
        self.loaded().hashes.get(name).is_some_and(|hash| Proof::of(hash.as_bytes()) == *proof)
    }

    /// Returns the proof of a login that is cached as right, without hashing.
    pub(super) fn known(&self, name: &str, password: &[u8]) -> Option<Proof> {
        self.refresh();
        let loaded = self.loaded();
        let is_right = {
            let right = loaded.right.lock();
            right.get(name).is_some_and(|known| *known == self.digest(name, password))
        };
        loaded.hashes.get(name).filter(|_| is_right).map(|hash| Proof::of(hash.as_bytes()))
    }

    /// Checks a login and returns its proof. Takes tens of milliseconds; one hash is computed at a time.
    pub(super) fn verify(&self, name: &str, password: &[u8]) -> Option<Proof> {
        self.refresh();
        let hash = self.loaded().hashes.get(name).map_or_else(|| hashing::NOBODY.to_owned(), String::clone);
        let is_right = hashing::is_right(&hash, password);
        let loaded = self.loaded();
        // Only if the hash is still in force: the file may have changed meanwhile.
        if is_right && loaded.hashes.get(name) == Some(&hash) {
            let mut right = loaded.right.lock();
            if right.len() >= REMEMBERED_MAX {
                right.clear();
            }
            right.insert(name.to_owned(), self.digest(name, password));
        }
        is_right.then(|| Proof::of(hash.as_bytes()))
    }
}

/// Adds a user to a password file, or sets a new password. The file keeps its owner, group and mode; a file that is
/// no password file is not changed.
pub fn put_user(file: &Path, name: &str, password: &[u8]) -> Result<(), BadSecrets> {
    let bad = |reason: String| BadSecrets::whole(file, reason);
    if name.contains(':') {
        return Err(bad(format!("\"{}\" is no user name; \":\" is not allowed", name.escape_debug())));
    }
    check_name(name).map_err(bad)?;
    let hash = hashing::make(password).map_err(bad)?;
    secrets::put(file, name, &format!("{name}:{hash}"), entry)
}

/// Removes a user from a password file. Returns whether it was there.
pub fn remove_user(file: &Path, name: &str) -> Result<bool, BadSecrets> {
    secrets::remove(file, name, entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_lets_in_and_is_remembered() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("passwd");
        put_user(&file, "press", b"first").expect("writes");
        put_user(&file, "robot", b"secret").expect("writes");
        put_user(&file, "press", b"second").expect("writes");
        let users = Users::load(&file).expect("reads");
        assert!(users.known("press", b"second").is_none());
        let proof = users.verify("press", b"second").expect("the password is right");
        assert_eq!(users.known("press", b"second"), Some(proof));
        assert!(users.verify("press", b"first").is_none() && users.known("press", b"first").is_none());
        assert!(users.verify("nobody", b"second").is_none());
        assert!(users.accepts("press", &proof) && !users.accepts("robot", &proof));
        put_user(&file, "press", b"third").expect("writes");
        assert!(!Users::load(&file).expect("reads").accepts("press", &proof), "the password is another one");
        assert!(put_user(&file, "a:b", b"x").is_err());
        assert!(remove_user(&file, "press").expect("writes") && !remove_user(&file, "press").expect("reads"));
        assert_eq!(Users::load(&file).expect("reads").names(), ["robot"]);
        std::fs::write(&file, "press:plain\n").expect("writes");
        assert!(Users::load(&file).expect_err("no hash").to_string().contains(":1:"));
    }
}
