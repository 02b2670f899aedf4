//! A command and its effect, apart from how the command arrived and how its receipts leave.
//!
//! An adapter is a type with `async fn execute(&self, command: &Command, may_have_begun: bool) -> Outcome`. Its caller stores
//! the intent durably before the call, and the outcome after it. `may_have_begun` says that an earlier call for the same
//! command may have had its effect, or a part of it: the adapter then reads what is there before it acts. An adapter never
//! waits for a target that is away; it returns [`Outcome::Away`], and its caller tries again.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A command that has passed its contract: the sender may ask for it, and its values are in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// `source` and `id` of the CloudEvent: together the idempotency key.
    pub source: String,
    pub id: String,
    /// Name of the command contract.
    pub contract: String,
    /// Key of the target, for which order is kept: `press-4`, `WH/MO/00039`.
    pub target: String,
    /// The instruction, `do` in the data.
    pub action: String,
    /// The arguments, `with` in the data: absolute values, never increments.
    pub with: Map<String, Value>,
    /// The preconditions, `if` in the data: for each field a value, or a list of allowed values.
    pub conditions: Map<String, Value>,
    /// Whether only the preconditions are checked, and nothing is changed.
    pub dry_run: bool,
}

impl Command {
    /// A name for records that the command creates, made of the idempotency key: a repeat finds them by it. ASCII, 32 bytes.
    pub fn own_name(&self) -> String {
        let mut hasher = Sha256::new();
        // The length keeps `a` + `bc` apart from `ab` + `c`.
        hasher.update((self.source.len() as u64).to_be_bytes());
        hasher.update(self.source.as_bytes());
        hasher.update(self.id.as_bytes());
        let mut name = String::from("forebay.");
        for byte in &hasher.finalize()[..12] {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// Why a command was refused, has failed or waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// For programs: `precondition`, `range`, `not-owner`, …
    pub code: &'static str,
    /// A sentence for people. It contains no secret and no value that a contract masks.
    pub text: String,
    /// What was expected and what was found, by field.
    pub details: Map<String, Value>,
}

impl Reason {
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), details: Map::new() }
    }
}

/// What became of one attempt to execute a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A read after the effect agrees with the command. `changed` is false if it was so already.
    Done { changed: bool, result: Map<String, Value> },
    /// Nothing was done.
    Refused(Reason),
    /// The command had begun, and its effect is known to be missing. `partial` names the steps that stay done.
    Failed { reason: Reason, partial: Vec<String> },
    /// Nothing was done, and the target may be tried again.
    Away(String),
    /// Something may have been done; the next attempt reads first.
    Open(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_idempotency_key_has_its_own_name() {
        let command = |source: &str, id: &str| Command {
            source: source.into(),
            id: id.into(),
            contract: String::new(),
            target: String::new(),
            action: String::new(),
            with: Map::new(),
            conditions: Map::new(),
            dry_run: false,
        };
        let names = [("a", "bc"), ("ab", "c"), ("a", "bd"), ("", "abc")].map(|(s, i)| command(s, i).own_name());
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert!(names.iter().all(|name| name.len() == 32 && name.is_ascii()), "{names:?}");
    }
}
