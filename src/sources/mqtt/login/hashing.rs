//! Password hashes: argon2id in one block of memory that is allocated once and kept.
//!
//! Promise: hashing never holds more than [`MEMORY_KIB_MAX`] and leaves no holes in the heap, however many logins
//! there are. A block of this size that is allocated and freed per login comes from the heap once the allocator has
//! raised its threshold for mapped blocks; later allocations pin it, and each login costs another block.
//!
//! Not here: the order of logins (`queue`), the users (`login`).

use argon2::password_hash::phc::{ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::Mutex;

/// Memory and passes of a new hash: the OWASP choice with the least memory
/// (Password Storage Cheat Sheet: m = 7168 KiB, t = 5, p = 1), since gateways are small.
const MEMORY_KIB: u32 = 7168;
const PASSES: u32 = 5;
/// Most memory that a hash in a file may need: the OWASP choice with the fewest passes that still leaves most of the
/// packaged unit's 256 MB to the events (m = 19456 KiB, t = 2).
const MEMORY_KIB_MAX: u32 = 19_456;
/// Most passes and lanes that a hash may need: beyond them one login takes seconds on a small processor.
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 4;
/// Bytes of a new hash, the same as those of `argon2` and other tools.
const OUTPUT_BYTES: usize = 32;

/// The hash for unknown user names: checking it takes as long as a wrong password, so names
/// cannot be guessed by timing.
pub(super) const NOBODY: &str =
    "$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHRzb21lc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The memory of all hashes of this process, one after another. Empty until the first login.
static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// A parsed hash of a file.
struct ParsedHash {
    hasher: Argon2<'static>,
    salt: Salt,
    hash: argon2::password_hash::phc::Output,
}

/// Checks that a hash can be used. The error does not repeat the hash.
pub(super) fn check(hash: &str) -> Result<(), String> {
    read(hash).map(|_| ())
}

/// Returns whether a password belongs to a hash. Takes tens of milliseconds, and waits for a
/// hash that is being computed.
pub(super) fn is_right(hash: &str, password: &[u8]) -> bool {
    let Ok(stored) = read(hash) else { return false };
    let mut out = vec![0; stored.hash.len()];
    fill(&stored.hasher, password, &stored.salt, &mut out).is_ok()
        && argon2::password_hash::phc::Output::new(&out).is_ok_and(|out| out == stored.hash)
}

/// Hashes a password with a new salt.
pub(super) fn make(password: &[u8]) -> Result<String, String> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(OUTPUT_BYTES)).map_err(|error| error.to_string())?;
    let text = ParamsString::try_from(&params).map_err(|error| error.to_string())?;
    let (salt, mut out) = (Salt::generate(), [0; OUTPUT_BYTES]);
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    fill(&hasher, password, &salt, &mut out)?;
    let hash = argon2::password_hash::phc::Output::new(&out).map_err(|error| error.to_string())?;
    let made = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: text,
        salt: Some(salt),
        hash: Some(hash),
    };
    Ok(made.to_string())
}

fn fill(hasher: &Argon2<'_>, password: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut blocks = BLOCKS.lock();
    let needed = hasher.params().block_count();
    if blocks.len() < needed {
        // The old block is freed first: there are never two.
        *blocks = Vec::new();
        *blocks = vec![Block::new(); needed];
    }
    hasher.hash_password_into_with_memory(password, salt, out, &mut blocks[..needed]).map_err(|error| error.to_string())
}

fn read(hash: &str) -> Result<ParsedHash, String> {
    const OTHER: &str = "is no argon2id hash; `forebay user add` makes one";
    let parsed = PasswordHash::new(hash).map_err(|_| OTHER)?;
    let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).map_err(|_| OTHER)?;
    let version = parsed.version.map_or(Ok(Version::V0x13), Version::try_from).map_err(|_| OTHER)?;
    let params = Params::try_from(&parsed).map_err(|_| OTHER)?;
    let (Some(salt), Some(hash), Algorithm::Argon2id) = (parsed.salt, parsed.hash, algorithm) else {
        return Err(OTHER.into());
    };
    let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    if memory > MEMORY_KIB_MAX || passes > PASSES_MAX || lanes > LANES_MAX {
        return Err(format!(
            "takes m={memory},t={passes},p={lanes}; at most m={MEMORY_KIB_MAX},t={PASSES_MAX},p={LANES_MAX} are allowed; `forebay user add` makes one of m={MEMORY_KIB},t={PASSES},p=1"
        ));
    }
    Ok(ParsedHash { hasher: Argon2::new(algorithm, version, params), salt, hash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::PasswordHasher;

    #[test]
    fn only_the_password_of_a_hash_is_right_whatever_its_parameters() {
        let made = make(b"secret").expect("a hash");
        assert!(made.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{made}");
        assert!(check(&made).is_ok() && is_right(&made, b"secret") && !is_right(&made, b"Secret"));
        assert!(check(NOBODY).is_ok() && !is_right(NOBODY, b""));
        // The library's own way, with memory of its own, judges ours.
        let params = Params::new(256, 2, 2, Some(24)).expect("parameters");
        let library = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let other = library.hash_password_with_salt(b"secret", b"somesaltsomesalt").expect("a hash").to_string();
        assert!(check(&other).is_ok() && is_right(&other, b"secret"), "{other}");
        assert!(
            !is_right(&other, b"Secret") && is_right(&made, b"secret"),
            "a smaller block leaves the larger one right"
        );
    }

    #[test]
    fn a_hash_that_takes_too_much_is_refused_with_what_is_allowed() {
        for (hash, reason) in [
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG", "m=65536,t=2,p=1"),
            ("$argon2id$v=19$m=7168,t=90,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG", "t=16"),
            ("$argon2i$v=19$m=7168,t=5,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG", "no argon2id hash"),
            ("$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHQ", "no argon2id hash"),
            ("plain", "no argon2id hash"),
        ] {
            let error = check(hash).expect_err(hash);
            assert!(error.contains(reason) && !error.contains("c29tZXNhbHQ"), "{error}");
        }
    }
}
