//! The configuration of the watch.

use crate::api::{ExceptionKind, Severity};
use crate::contract::Pointer;
use crate::setting::Span;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "every")]
    pub every: Span,
    /// Rules that differ from the defaults.
    #[serde(default)]
    pub rule: BTreeMap<ExceptionKind, RuleSetting>,
    /// The states of machines, and the work center of each.
    pub machines: Option<Machines>,
}

/// The rule for one kind of exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSetting {
    /// How long the condition must last before the exception opens.
    pub after: Option<Span>,
    pub severity: Option<Severity>,
    /// Whether the rule is evaluated.
    pub enabled: Option<bool>,
}

/// The source of the states of machines.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    /// The stream whose key is the machine.
    #[serde(default = "stream")]
    pub stream: String,
    /// JSON pointer to the state.
    #[serde(default = "state")]
    pub state: String,
    /// States in which a machine runs.
    #[serde(default = "running")]
    pub running: Vec<String>,
    /// Code of the work center of each machine.
    pub work_centers: BTreeMap<String, String>,
}

fn every() -> Span {
    Span(Duration::from_secs(30))
}
fn stream() -> String {
    "machine.state".into()
}
fn state() -> String {
    "/state".into()
}
fn running() -> Vec<String> {
    vec!["running".into()]
}

/// The streams of the transitions; each needs a contract.
pub const STREAMS: [&str; 3] = ["exception.opened", "exception.updated", "exception.closed"];

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
        if !allowed.contains(&self.every.0) {
            return Err(("every", format!("{} is out of bounds; 1s to 1h are allowed", self.every)));
        }
        match &self.machines {
            Some(machines) => Pointer::parse(&machines.state).map(|_| ()).map_err(|error| ("machines.state", error)),
            None => Ok(()),
        }
    }
}
