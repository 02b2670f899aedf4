//! Who may connect: user names and passwords from a file of argon2id hashes.
//!
//! The file has a line for each user, `name:$argon2id$…`, made by `forebay user add`. A change of it
//! counts for the next login; a broken one is named in the log, and the users before stay in force.

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

/// Logins that are remembered: a plant's devices all come back at once after a power cut, and
/// each hash takes tens of milliseconds.
const REMEMBERED_MAX: usize = 16_384;

/// The file is looked at this often, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    /// Keyed hashes of logins that were right; the key lives as long as the process.
    right: Mutex<HashMap<String, [u8; 32]>>,
}

/// What tells one state of a file from another: time of change, size and inode.
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

/// Reads a line of a password file: name and hash.
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
    /// Reads a password file.
    pub fn load(file: &Path) -> Result<Self, BadSecrets> {
        // Taken before the file is read, so that a change in between shows at the next look.
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

    /// Every user, in order.
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
        if now.duration_since(looked.0) < LOOK_EVERY {
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
                tracing::info!(file = %self.file.display(), users = hashes.len(), "the password file has changed and is in force");
                // Logins that were right may be so no longer.
                let loaded = LoadedUsers { hashes, ..LoadedUsers::default() };
                *self.loaded.write() = loaded;
            }
            Err(error) => {
                tracing::error!(%error, "the password file has changed and cannot be used; the users before stay in force")
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

    /// Whether the entry that let a user in is still that user's: neither removed nor given another password.
    pub(super) fn accepts(&self, name: &str, proof: &Proof) -> bool {
        self.refresh();
        self.loaded().hashes.get(name).is_some_and(|hash| Proof::of(hash.as_bytes()) == *proof)
    }

    /// The proof of a login that was right before; takes no time.
    pub(super) fn known(&self, name: &str, password: &[u8]) -> Option<Proof> {
        self.refresh();
        let loaded = self.loaded();
        let is_right = {
            let right = loaded.right.lock();
            right.get(name).is_some_and(|known| *known == self.digest(name, password))
        };
        loaded.hashes.get(name).filter(|_| is_right).map(|hash| Proof::of(hash.as_bytes()))
    }

    /// The proof of a login if it is right; takes tens of milliseconds, and waits for others that are checked.
    pub(super) fn verify(&self, name: &str, password: &[u8]) -> Option<Proof> {
        self.refresh();
        let hash = self.loaded().hashes.get(name).map_or_else(|| hashing::NOBODY.to_owned(), String::clone);
        let is_right = hashing::is_right(&hash, password);
        let loaded = self.loaded();
        // Only while the hash is still in force: the file may have changed in the meantime.
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

/// Puts a user into a password file, or gives one a new password. The file keeps its owner, group
/// and mode; one that is no password file is left alone.
pub fn put_user(file: &Path, name: &str, password: &[u8]) -> Result<(), BadSecrets> {
    let bad = |reason: String| BadSecrets::whole(file, reason);
    if name.contains(':') {
        return Err(bad(format!("\"{}\" is no user name; \":\" is not allowed", name.escape_debug())));
    }
    check_name(name).map_err(bad)?;
    let hash = hashing::make(password).map_err(bad)?;
    secrets::put(file, name, &format!("{name}:{hash}"), entry)
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
        std::fs::write(&file, "press:plain\n").expect("writes");
        assert!(Users::load(&file).expect_err("no hash").to_string().contains(":1:"));
    }
}
