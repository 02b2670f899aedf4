//! The checks of a destination, and the files that its settings name.

use super::Config;
use crate::link::Address;
use crate::secret::Secret;
use crate::setting::{Bytes, Findings};
use crate::tls::{self, NamedFile};

/// Smallest `hold`: less could not contain the events in flight of normal operation.
const HOLD_MIN: u64 = 8 << 20;

impl Config {
    /// Lists the files that the settings name.
    pub fn files(&mut self) -> Vec<NamedFile<'_>> {
        let password = self.password_file.as_mut().map(|file| NamedFile::Secret("password_file", file));
        password.into_iter().chain([NamedFile::Client("tls", &mut self.tls)]).collect()
    }

    /// Checks the settings, and reads the files that they name.
    pub fn check(&self, found: &mut Findings<'_>) {
        if self.window == 0 {
            found.problem("window", "0 is not allowed; 1 to 65535 are");
        }
        if self.url.0.is_empty() {
            found.problem("url", "is empty; expected \"mqtts://host:8883\", or a list of URLs");
        }
        self.url.0.iter().for_each(|url| self.check_url(url, found));
        if let Some(hold) = self.hold.filter(|hold| hold.0 < HOLD_MIN) {
            found.problem("hold", format!("{hold} is too little; at least {} are needed", Bytes(HOLD_MIN)));
        }
        if self.user.is_some() != self.password_file.is_some() {
            found.problem("user", "user and password_file go together; one of them is missing");
        }
        if let Some(Err(error)) = self.password_file.as_deref().map(Secret::read) {
            found.problem("password_file", error.to_string());
        }
    }

    fn check_url(&self, url: &str, found: &mut Findings<'_>) {
        match Address::parse(url) {
            Err(message) => found.problem("url", message),
            Ok(address) if address.is_tls => {
                if let Err(error) = tls::client(&self.tls) {
                    found.problem("tls", error.to_string());
                }
            }
            Ok(_) if self.tls.is_set() => found.problem(
                "tls",
                format!(
                    "is set, but \"{url}\" speaks no TLS and would send everything in plain text; use mqtts://, or remove tls"
                ),
            ),
            Ok(_) if found.is_production() => found.problem(
                "url",
                format!("\"{url}\" is without TLS, which is not allowed in environment \"production\"; use mqtts://"),
            ),
            Ok(_) => {}
        }
    }
}
