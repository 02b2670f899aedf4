//! Who may connect: user names and passwords from a file of argon2id hashes.
//!
//! The file has a line for each user, `name:$argon2id$…`, made by `forebay user add`.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use hmac::{Hmac, KeyInit, Mac};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Memory and passes of a hash: the OWASP choice with the least memory
/// (Password Storage Cheat Sheet: m = 7168 KiB, t = 5, p = 1), since gateways are small.
const MEMORY_KIB: u32 = 7168;
const PASSES: u32 = 5;
/// Logins that are remembered: a plant's devices all come back at once after a power cut, and
/// each hash takes tens of milliseconds.
const REMEMBERED_MAX: usize = 16_384;

fn hasher() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The users of a listener.
pub struct Users {
    hashes: HashMap<String, String>,
    /// Keyed hashes of logins that were right; the key lives as long as the process.
    right: Mutex<HashMap<String, [u8; 32]>>,
    key: [u8; 32],
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.hashes.len())
    }
}

/// A password file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}{place}: {reason}", file = file.display(), place = if *line > 0 { format!(":{line}") } else { String::new() })]
pub struct BadUsers {
    file: PathBuf,
    line: usize,
    reason: String,
}

impl Users {
    /// Reads a password file.
    pub fn load(file: &Path) -> Result<Self, BadUsers> {
        let bad = |line, reason: String| BadUsers { file: file.to_owned(), line, reason };
        let text = std::fs::read_to_string(file).map_err(|error| bad(0, format!("cannot be read: {error}")))?;
        let mut hashes = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash) = line
                .split_once(':')
                .ok_or_else(|| bad(index + 1, "expected \"name:hash\"; `forebay user add` writes such lines".into()))?;
            if PasswordHash::new(hash).is_err() {
                return Err(bad(
                    index + 1,
                    format!("the hash of user \"{name}\" is no argon2id hash; `forebay user add` makes one"),
                ));
            }
            hashes.insert(name.to_owned(), hash.to_owned());
        }
        let key = *uuid::Uuid::new_v4().as_bytes();
        let other = *uuid::Uuid::new_v4().as_bytes();
        let mut whole = [0; 32];
        whole[..16].copy_from_slice(&key);
        whole[16..].copy_from_slice(&other);
        Ok(Self { hashes, right: Mutex::new(HashMap::new()), key: whole })
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

    /// Whether this login was right before; takes no time.
    pub fn is_known(&self, name: &str, password: &[u8]) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.get(name).is_some_and(|known| *known == self.digest(name, password))
    }

    /// Whether a login is right; takes tens of milliseconds and 7 MiB.
    pub fn verify(&self, name: &str, password: &[u8]) -> bool {
        // An unknown name takes as long as a wrong password, so that names cannot be guessed.
        const NOBODY: &str =
            "$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHRzb21lc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let hash = self.hashes.get(name).map_or(NOBODY, String::as_str);
        let is_right = PasswordHash::new(hash).is_ok_and(|hash| hasher().verify_password(password, &hash).is_ok());
        if is_right {
            let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
            if right.len() >= REMEMBERED_MAX {
                right.clear();
            }
            right.insert(name.to_owned(), self.digest(name, password));
        }
        is_right
    }
}

/// Puts a user into a password file, or gives one a new password.
pub fn put_user(file: &Path, name: &str, password: &[u8]) -> Result<(), BadUsers> {
    let bad = |reason: String| BadUsers { file: file.to_owned(), line: 0, reason };
    if name.is_empty() || name.contains([':', '\n', '\r']) || name.starts_with('#') {
        return Err(bad(format!(
            "\"{name}\" is no user name; \":\" and line ends are not allowed, nor a leading \"#\""
        )));
    }
    let hash = hasher().hash_password(password).map_err(|error| bad(error.to_string()))?.to_string();
    let old = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(bad(format!("cannot be read: {error}"))),
    };
    let prefix = format!("{name}:");
    let mut lines: Vec<_> = old.lines().filter(|line| !line.starts_with(&prefix)).map(str::to_owned).collect();
    lines.push(format!("{name}:{hash}"));
    let mut text = lines.join("\n");
    text.push('\n');
    crate::journal::disk::write_whole(&crate::journal::RealDisk, file, text.as_bytes())
        .map_err(|error| bad(format!("cannot be written: {error}")))
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
        assert!(!users.is_known("press", b"second"));
        assert!(users.verify("press", b"second") && users.is_known("press", b"second"));
        assert!(!users.verify("press", b"first") && !users.is_known("press", b"first"));
        assert!(!users.verify("nobody", b"second"));
        assert!(put_user(&file, "a:b", b"x").is_err());
        std::fs::write(&file, "press:plain\n").expect("writes");
        assert!(Users::load(&file).expect_err("no hash").to_string().contains(":1:"));
    }
}
