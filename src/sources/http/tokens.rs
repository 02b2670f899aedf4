//! Bearer tokens of callers: names and token hashes from a file.
//!
//! The file has a line for each token, `name:sha256:…`, written by `forebay token add`. A token has 244 random bits and
//! cannot be guessed, so a plain hash is enough; no slow password hash is needed.

use crate::sources::identity::check_name;
use crate::sources::secrets::{self, BadSecrets};
use base64::Engine;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// The tokens of a source, by their hashes.
pub struct Tokens {
    names: HashMap<[u8; 32], String>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.names.len())
    }
}

/// Parses a line of a token file: hash and name.
fn entry(line: &str) -> Result<([u8; 32], String), String> {
    let (name, hash) =
        line.rsplit_once(":sha256:").ok_or("expected \"name:sha256:hash\"; `forebay token add` writes such lines")?;
    check_name(name)?;
    let hash = unhex(hash)
        .ok_or_else(|| format!("the hash of \"{name}\" is not 64 hex digits; `forebay token add` makes one"))?;
    Ok((hash, name.to_owned()))
}

impl Tokens {
    pub fn load(file: &Path) -> Result<Self, BadSecrets> {
        Ok(Self { names: secrets::load(file, entry)?.into_iter().collect() })
    }

    /// The names with a token, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.values().map(String::as_str).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether there is a token for a name.
    pub fn has(&self, name: &str) -> bool {
        self.names.values().any(|known| known == name)
    }

    /// The name that a token belongs to.
    pub fn name(&self, token: &[u8]) -> Option<&str> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        self.names.get(&hash).map(String::as_str)
    }
}

/// Makes a token for a name and writes its hash to a token file; replaces an earlier one of that name. Returns the
/// token, which is stored nowhere.
pub fn put_token(file: &Path, name: &str) -> Result<String, BadSecrets> {
    let bad = |reason: String| BadSecrets::whole(file, reason);
    check_name(name).map_err(bad)?;
    let random = [*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat();
    // The prefix lets people and secret scanners recognise a leaked token.
    let token = format!("forebay_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random));
    let hash: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    // The prefix of the line includes the hash algorithm, because a name may contain colons.
    secrets::put(file, &format!("{name}:sha256"), &format!("{name}:sha256:{hash}"), entry)?;
    Ok(token)
}

/// Removes the token of a name from a token file. Returns whether it was there.
pub fn remove_token(file: &Path, name: &str) -> Result<bool, BadSecrets> {
    secrets::remove(file, &format!("{name}:sha256"), entry)
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_name_until_it_is_replaced() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("tokens");
        let first = put_token(&file, "erp").expect("writes");
        let robot = put_token(&file, "robot").expect("writes");
        let second = put_token(&file, "erp").expect("writes");
        let tokens = Tokens::load(&file).expect("reads");
        assert_eq!(tokens.name(second.as_bytes()), Some("erp"));
        assert_eq!(tokens.name(robot.as_bytes()), Some("robot"));
        assert_eq!(tokens.name(first.as_bytes()), None);
        assert_eq!(tokens.name(b""), None);
        let text = std::fs::read_to_string(&file).expect("reads");
        assert!(!text.contains(&second) && text.lines().count() == 2, "{text}");
        assert!(remove_token(&file, "erp").expect("writes") && !remove_token(&file, "erp").expect("reads"));
        assert_eq!(Tokens::load(&file).expect("reads").names(), ["robot"]);
    }

    #[test]
    fn what_is_no_token_file_is_refused_with_its_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("tokens");
        for (text, place) in [
            ("\nerp:secret\n", ":2:"),
            ("erp:sha256:abc\n", ":1:"),
            ("a/b:sha256:00\n", ":1:"),
            ("# x\n$a:sha256:00", ":2:"),
        ] {
            std::fs::write(&file, text).expect("writes");
            let error = Tokens::load(&file).expect_err("refused").to_string();
            assert!(error.contains(place), "{error}");
        }
        for name in ["", "a/b", "$a", "a#", " a"] {
            assert!(put_token(&file, name).is_err(), "{name}");
        }
    }
}
