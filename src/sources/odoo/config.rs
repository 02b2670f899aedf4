//! The settings of an Odoo source, with their checks.

use super::hook;
use crate::contract::odoo::is_language;
use crate::odoo::{self, Client};
use crate::setting::{Bytes, Span};
use crate::tls::ClientFiles;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The error for a key that grants too much.
pub(super) const ADMINISTRATOR: &str = "the key belongs to an administrator, which is far more than reading needs; use an account with read access only, or set administrator = true";

/// The configuration of an Odoo source.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// `https://host`, or `http://host:8069` without TLS.
    pub url: String,
    pub database: String,
    /// File that holds the API key of the account.
    pub key_file: PathBuf,
    /// Login of the account; needed over `/jsonrpc` only, as for 14 to 18.
    pub user: Option<String>,
    #[serde(default)]
    pub tls: ClientFiles,
    /// Whether the key of an administrator is accepted. Such a key may do far more than read.
    #[serde(default)]
    pub administrator: bool,
    /// Longest duration of an Odoo transaction whose changes every poll window still covers.
    #[serde(default = "overlap")]
    pub overlap: Span,
    /// Interval of sweeps. A sweep compares every record written since the last sweep once more.
    #[serde(default = "sweep")]
    pub sweep: Span,
    /// Interval of checks for deleted and hidden records.
    #[serde(default = "deletions")]
    pub deletions: Span,
    /// Time within which all known records are compared with Odoo.
    #[serde(default = "reconcile")]
    pub reconcile: Span,
    /// Language of names and other translated texts, such as `de_DE`; unset: the language of the account.
    pub language: Option<String>,
    /// How long records in a final state are remembered.
    #[serde(default = "forget")]
    pub forget: Span,
    /// Memory for known records, over all contracts. Past it, events of further records carry no earlier values.
    #[serde(default = "records_memory")]
    pub records_memory: Bytes,
    /// Endpoint for hints of Odoo about changes.
    pub hook: Option<hook::Config>,
}

/// Longer than most scheduled jobs, and more than twice the 120 s after which Odoo ends a call.
fn overlap() -> Span {
    Span(Duration::from_secs(300))
}
fn sweep() -> Span {
    Span(Duration::from_secs(86_400))
}
fn deletions() -> Span {
    Span(Duration::from_secs(300))
}
/// A restored backup stays unnoticed for this long; 60,000 records then take a call every 10 s.
fn reconcile() -> Span {
    Span(Duration::from_secs(3600))
}
fn forget() -> Span {
    Span(Duration::from_secs(30 * 86_400))
}
/// Room for some hundred thousand records; half of the memory that the systemd unit allows.
fn records_memory() -> Bytes {
    Bytes(96 << 20)
}
const RECORDS_MEMORY: (u64, u64) = (1 << 20, 4 << 30);

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub(super) fn check_values(&self) -> Result<(), (&'static str, String)> {
        odoo::check_url(&self.url).map_err(|message| ("url", message))?;
        let is_name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !is_name(&self.database) {
            return Err((
                "database",
                format!(
                    "\"{}\" is no name of a database; letters, digits and signs other than blanks and \"/\" are allowed, such as \"plant\"",
                    self.database.escape_debug()
                ),
            ));
        }
        let bounds = [
            ("overlap", self.overlap, 30, 86_400),
            ("sweep", self.sweep, 3600, 7 * 86_400),
            ("deletions", self.deletions, 1, 86_400),
            ("reconcile", self.reconcile, 1, 7 * 86_400),
            ("forget", self.forget, 3600, 3650 * 86_400),
        ];
        for (key, value, min, max) in bounds {
            let (min, max) = (Duration::from_secs(min), Duration::from_secs(max));
            if !(min..=max).contains(&value.0) {
                return Err((key, format!("{value} is out of bounds; {} to {} are allowed", Span(min), Span(max))));
            }
        }
        if !(RECORDS_MEMORY.0..=RECORDS_MEMORY.1).contains(&self.records_memory.0) {
            let (least, most) = (Bytes(RECORDS_MEMORY.0), Bytes(RECORDS_MEMORY.1));
            let message = format!("{} is out of bounds; {least} to {most} are allowed", self.records_memory);
            return Err(("records_memory", message));
        }
        if let Some(language) = self.language.as_ref().filter(|language| !is_language(language)) {
            return Err(("language", format!("\"{language}\" is no language; expected one such as \"de_DE\"")));
        }
        self.hook.as_ref().map_or(Ok(()), hook::Config::check)
    }

    /// Returns a client; it connects at its first call.
    pub fn client(&self) -> Result<Client, String> {
        Client::new(odoo::Config {
            url: self.url.clone(),
            database: self.database.clone(),
            key_file: self.key_file.clone(),
            user: self.user.clone(),
            tls: self.tls.clone(),
        })
    }
}
