//! Secrets: read from a file, a systemd credential or an environment variable, and never shown.
//!
//! Promise: a secret is overwritten in memory when it is dropped, and no message or debug output contains it.
//!
//! The configuration refers to a secret, or to a certificate, in one of three ways:
//!
//! | setting | source |
//! |---|---|
//! | `gw.key`, `/etc/ssl/gw.key` | a file |
//! | `credential:tls-key` | a systemd credential (`LoadCredential=tls-key`) |
//! | `env:PLANT_PASSWORD` | an environment variable, set by `EnvironmentFile=` |

use crate::event::text;
use crate::setting::access;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Prefix of a reference to a systemd credential.
const CREDENTIAL: &str = "credential:";
/// Prefix of a reference to an environment variable.
const VARIABLE: &str = "env:";
/// Variable in which systemd passes the folder of the credentials.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// Maximum size, above any key, password file or list of certificates.
const BYTES_MAX: u64 = 4 << 20;

/// A secret; overwritten when it is dropped.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// A secret that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{place}: cannot be read: {reason}", place = place.display())]
pub struct Unreadable {
    pub place: PathBuf,
    pub reason: String,
}

/// Resolves the reference in a configuration file of `folder`. A credential becomes the path of its
/// file if systemd passed credentials.
pub fn place(folder: &Path, named: &Path) -> PathBuf {
    let text = named.as_os_str().to_string_lossy();
    if let Some(name) = text.strip_prefix(CREDENTIAL).filter(|name| is_credential_name(name)) {
        return match std::env::var_os(CREDENTIALS_VARIABLE) {
            Some(credentials) => Path::new(&credentials).join(name),
            None => named.to_owned(),
        };
    }
    if text.starts_with(CREDENTIAL) || text.starts_with(VARIABLE) { named.to_owned() } else { folder.join(named) }
}

/// Whether a name is valid for a systemd credential: a file name.
fn is_credential_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains('/')
}

/// Returns the name of the credential at `place`, if it is one.
fn credential_of(place: &Path) -> Option<String> {
    let text = place.as_os_str().to_string_lossy();
    if let Some(name) = text.strip_prefix(CREDENTIAL) {
        return Some(name.to_owned());
    }
    let credentials = std::env::var_os(CREDENTIALS_VARIABLE)?;
    let name = place.strip_prefix(Path::new(&credentials)).ok()?;
    Some(name.to_string_lossy().into_owned())
}

impl Secret {
    /// Reads the secret at `place`; blocks the thread.
    pub fn read(place: &Path) -> Result<Self, Unreadable> {
        let text = place.as_os_str().to_string_lossy();
        let found = match text.strip_prefix(VARIABLE) {
            Some(name) => variable(name),
            None if text.starts_with(CREDENTIAL) => Err(no_credential(text.trim_start_matches(CREDENTIAL))),
            None => file(place),
        };
        found.map_err(|reason| Unreadable { place: place.to_owned(), reason })
    }

    /// Reads a secret that is text, such as PEM; refuses text in UTF-16. Blocks the thread.
    pub fn read_text(place: &Path) -> Result<Self, Unreadable> {
        let read = Self::read(place)?;
        match text::is_utf16(read.bytes()) {
            true => Err(Unreadable { place: place.to_owned(), reason: text::UTF16.to_owned() }),
            false => Ok(read),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the secret as text, without the line end that editors add; `None` if it is not UTF-8.
    pub fn line(&self) -> Option<&str> {
        Some(self.text().ok()?.trim_end_matches(['\r', '\n']))
    }

    /// The bytes without a byte order mark, for formats that are read as bytes.
    pub fn unmarked(&self) -> &[u8] {
        text::without_byte_order_mark(&self.0)
    }

    /// Returns the secret as text, without a byte order mark. The error says what it is instead, and what to do.
    pub fn text(&self) -> Result<&str, &'static str> {
        if text::is_utf16(&self.0) {
            return Err(text::UTF16);
        }
        std::str::from_utf8(self.unmarked()).map_err(|_| "it is no text in UTF-8; save it as UTF-8")
    }
}

fn variable(name: &str) -> Result<Secret, String> {
    match std::env::var_os(name) {
        Some(value) if !value.is_empty() => Ok(Secret::from(value.as_os_str().as_bytes().to_vec())),
        Some(_) => Err(format!("the variable {name} is empty")),
        None => Err(format!("there is no variable {name}; set it in the file of EnvironmentFile= of the unit")),
    }
}

fn no_credential(name: &str) -> String {
    if !is_credential_name(name) {
        return format!("\"{name}\" is no name of a credential; expected one such as \"credential:tls-key\"");
    }
    format!(
        "there is no ${CREDENTIALS_VARIABLE}: the process was not started by systemd with credentials; add LoadCredential={name} to the unit (systemctl edit forebay). To check by hand, set {CREDENTIALS_VARIABLE} to the folder that holds {name}"
    )
}

fn file(path: &Path) -> Result<Secret, String> {
    let failed = |error: std::io::Error| match credential_of(path) {
        Some(name) if error.kind() == std::io::ErrorKind::NotFound => format!(
            "systemd has passed no credential \"{name}\"; add LoadCredential={name} to the unit (systemctl edit forebay), put the file into /etc/credstore/{name}, and restart it"
        ),
        _ => access::unreadable(path, &error),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    // Read into one allocation: a growing buffer would leave copies behind.
    let length = file.metadata().map_err(failed)?.len();
    if length > BYTES_MAX {
        return Err(format!("it has {length} bytes; at most {BYTES_MAX} are read"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Secret(bytes))
}

/// Returns the problem and remedy if other users can read or change the secret.
pub fn exposed(place: &Path) -> Option<String> {
    if is_file(place) { access::exposed(place) } else { None }
}

/// Whether `place` is a file whose permissions the operator sets: systemd protects credentials, and
/// a variable has no permissions.
pub fn is_file(place: &Path) -> bool {
    credential_of(place).is_none() && !is_variable(place)
}

fn is_variable(place: &Path) -> bool {
    place.as_os_str().to_string_lossy().starts_with(VARIABLE)
}

/// Whether the setting contains the secret itself instead of a file name: text of several lines, or PEM.
pub fn is_inline(named: &Path) -> bool {
    let text: &OsStr = named.as_os_str();
    let text = text.to_string_lossy();
    text.contains('\n') || text.contains("-----BEGIN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_secret() {
        let secret = Secret::from(b"sesame\n".to_vec());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret Some(Secret)");
        assert_eq!(secret.line(), Some("sesame"));
        assert_eq!(Secret::from(vec![0xFF]).line(), None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let text = |bytes: &[u8]| Secret::from(bytes.to_vec()).text().map(str::to_owned);
        assert_eq!(text("\u{feff}sesame\r\n".as_bytes()), Ok("sesame\r\n".to_owned()));
        assert_eq!(Secret::from("\u{feff}sesame\n".as_bytes().to_vec()).line(), Some("sesame"));
        assert!(text(b"\xff\xfes\x00").expect_err("UTF-16").contains("UTF-16"));
        assert!(text(b"\xfe\xff\x00s").expect_err("UTF-16").contains("UTF-16"));
        assert!(text(b"s\xe9same").expect_err("Latin-1").contains("UTF-8"));
    }

    #[test]
    fn a_place_is_a_file_a_credential_or_a_variable() {
        let folder = Path::new("/etc/forebay");
        assert_eq!(place(folder, Path::new("gw.key")), Path::new("/etc/forebay/gw.key"));
        assert_eq!(place(folder, Path::new("/srv/gw.key")), Path::new("/srv/gw.key"));
        assert_eq!(place(folder, Path::new("env:PASSWORD")), Path::new("env:PASSWORD"));
        // Without systemd, the reference to a credential is unchanged.
        assert_eq!(place(folder, Path::new("credential:key")), Path::new("credential:key"));
        let error = Secret::read(Path::new("credential:key")).expect_err("no systemd").to_string();
        assert!(error.contains("LoadCredential=key") && error.contains("CREDENTIALS_DIRECTORY"), "{error}");
        let error = Secret::read(Path::new("credential:../key")).expect_err("no name").to_string();
        assert!(error.contains("is no name of a credential"), "{error}");
        let error = Secret::read(Path::new("env:FOREBAY_NONE")).expect_err("no variable").to_string();
        assert!(error.contains("there is no variable FOREBAY_NONE") && error.contains("EnvironmentFile="), "{error}");
        assert!(
            Secret::read(Path::new("env:PATH")).is_ok_and(|path| path.line() == std::env::var("PATH").ok().as_deref())
        );
    }

    #[test]
    fn a_file_is_read_as_it_is_or_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "s1\r\n").expect("writes");
        assert_eq!(Secret::read(&file).expect("reads").bytes(), b"s1\r\n");
        let error = Secret::read(&folder.path().join("gone/secret")).expect_err("gone").to_string();
        assert!(error.contains("cannot be read") && error.contains("does not exist either"), "{error}");
        assert!(is_inline(Path::new("-----BEGIN PRIVATE KEY-----")) && !is_inline(&file));
    }
}
