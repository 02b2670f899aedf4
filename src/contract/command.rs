//! Contracts of commands: what central may ask of the targets of this gateway, and who may ask it.
//!
//! Promise: a command that [`CommandContract::check`] accepts comes from a listed sender, goes to a listed target, and its
//! arguments conform to the schema.
//!
//! Not here: the envelope of a command, its state and its effect (`command`).

use super::check::Contract;
use super::file::{check_stream_name, check_version, load_schema};
use super::json::Tree;
use super::publication::{Publication, escaped, major_of};
use super::schema::Schema;
use super::terms::{GatewayNames, KEY_BYTES_MAX, quoted};
use crate::setting::{Document, Problem, Span};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Stream of the receipts of all commands.
pub const RECEIPTS: &str = "command.receipt";
/// Start of the streams that carry commands to devices.
const TO_DEVICES: &str = "command.";
/// Value of `kind` in the file of such a contract.
const KIND: &str = "command";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "kind")]
    _kind: Kind,
    name: String,
    version: String,
    owner: String,
    #[serde(default)]
    purpose: String,
    #[serde(default = "lane")]
    lane: String,
    from: Vec<String>,
    targets: Vec<String>,
    actions: Vec<String>,
    schema: Option<String>,
    expires_max: Span,
    #[serde(default = "queue")]
    queue: u32,
    #[serde(default = "rate")]
    rate: u32,
    adapter: Adapter,
    confirm: Confirm,
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    allow_commands: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Command,
}

/// How a command has its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adapter {
    /// A device that subscribes to the topic of the command at the listener of the gateway.
    Device,
}

/// How a device confirms a command.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// Stream of the confirmations, without its version. Its key is the target.
    pub stream: String,
    /// How long the gateway waits for the confirmation after `expirytime`, until which a device may receive the command.
    pub within: Span,
}

fn lane() -> String {
    "critical".into()
}
fn queue() -> u32 {
    64
}
fn rate() -> u32 {
    600
}

/// Longest `expires_max`: central's broker keeps the commands for a gateway that is away.
const EXPIRES_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Longest `confirm.within`.
const CONFIRM_MAX: Duration = Duration::from_secs(86_400);
/// Largest `queue`.
const QUEUE_MAX: u32 = 1000;

/// A checked contract of commands.
#[derive(Debug)]
pub struct CommandContract {
    /// The file of the contract.
    pub file: PathBuf,
    pub name: String,
    pub version: String,
    pub owner: String,
    pub purpose: String,
    /// Lane of the records that carry the commands to devices.
    pub lane: String,
    /// Who may ask: the level of the topic that the ACL of central's broker proves.
    pub from: Vec<String>,
    /// Names of targets; a pattern may end in `*`.
    pub targets: Vec<String>,
    /// Values of `do`.
    pub actions: Vec<String>,
    schema: Option<Schema>,
    schema_value: Option<serde_json::Value>,
    /// Longest time between the arrival of a command and its `expirytime`.
    pub expires_max: Duration,
    /// Number of commands that may wait for one target.
    pub queue: usize,
    /// Number of commands per minute.
    pub rate: u32,
    pub adapter: Adapter,
    pub confirm: Confirm,
    pub is_enabled: bool,
    /// Whether the contract may be used in environment `production`.
    pub allow_commands: bool,
}

/// Why a contract refuses a command: a code for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandViolation {
    pub code: &'static str,
    pub text: String,
}

/// Reads and checks a file if it is the contract of a command.
pub(super) fn load(file: &Path, lanes: &[String]) -> Result<Option<CommandContract>, Problem> {
    let document = Document::read(file)?;
    if document.value_without_parsing("kind").as_deref() != Some(KIND) {
        return Ok(None);
    }
    let raw: File = document.parse()?;
    check(&raw, lanes).map_err(|(key, message)| document.problem(key, message))?;
    let schema = raw.schema.as_deref().map(|name| load_schema(&document, name)).transpose()?;
    let (schema_value, schema) = schema.unzip();
    Ok(Some(CommandContract {
        file: file.to_owned(),
        name: raw.name,
        version: raw.version,
        owner: raw.owner,
        purpose: raw.purpose,
        lane: raw.lane,
        from: raw.from,
        targets: raw.targets,
        actions: raw.actions,
        schema,
        schema_value,
        expires_max: raw.expires_max.0,
        queue: raw.queue as usize,
        rate: raw.rate,
        adapter: raw.adapter,
        confirm: raw.confirm,
        is_enabled: raw.enabled,
        allow_commands: raw.allow_commands,
    }))
}

/// Problems of the contracts with each other, and with those of their confirmations.
pub(super) fn conflicts(commands: &[Arc<CommandContract>], events: &[Arc<Contract>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, contract) in commands.iter().enumerate() {
        let mut add = |key: &str, message| {
            problems.push(Problem { file: contract.file.clone(), line: 0, key: key.into(), message });
        };
        let same = |other: &&Arc<CommandContract>| other.name == contract.name && other.major() == contract.major();
        if let Some(other) = commands[..index].iter().find(same) {
            add(
                "name",
                format!("\"{}\" is the name in {} too; remove one of them", contract.name, other.file.display()),
            );
        }
        let stream = &contract.confirm.stream;
        if !events.iter().any(|event| event.stream() == stream) {
            let message = format!(
                "\"{stream}\" is no stream of an enabled contract; write one for the confirmations of the devices, with the target as its key"
            );
            add("confirm.stream", message);
        }
    }
    problems
}

/// Checks the values. The error is the key and the reason.
fn check(raw: &File, lanes: &[String]) -> Result<(), (&'static str, String)> {
    check_stream_name(&raw.name).map_err(|message| ("name", message))?;
    if raw.name == "receipt" {
        return Err(("name", "\"receipt\" is taken: \"command.receipt\" is the stream of all receipts".into()));
    }
    check_version(&raw.version).map_err(|message| ("version", message))?;
    if !lanes.contains(&raw.lane) {
        return Err(("lane", format!("\"{}\" is no lane; there are {}", raw.lane, quoted(lanes))));
    }
    check_words("from", &raw.from, "a sender such as \"planner\"", is_word)?;
    check_words("targets", &raw.targets, "a target such as \"press-4\", or \"press-*\"", |target| {
        !target.is_empty() && target.len() <= KEY_BYTES_MAX && !target.contains(['+', '#', '{', '}', '%'])
    })?;
    check_words("actions", &raw.actions, "an action such as \"start\"", is_word)?;
    let within = |span: Duration, most: Duration| !span.is_zero() && span <= most;
    if !within(raw.expires_max.0, EXPIRES_MAX) {
        let message = format!("{} is out of bounds; more than 0s and at most {}", raw.expires_max, Span(EXPIRES_MAX));
        return Err(("expires_max", message));
    }
    if !within(raw.confirm.within.0, CONFIRM_MAX) {
        let message =
            format!("{} is out of bounds; more than 0s and at most {}", raw.confirm.within, Span(CONFIRM_MAX));
        return Err(("confirm.within", message));
    }
    if !(1..=QUEUE_MAX).contains(&raw.queue) {
        return Err(("queue", format!("{} is out of bounds; 1 to {QUEUE_MAX} are allowed", raw.queue)));
    }
    if raw.rate == 0 {
        return Err(("rate", "0 commands per minute would refuse all; 1 and more are allowed".into()));
    }
    Ok(())
}

/// Whether a text may be a level of a topic as it is.
fn is_word(word: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=100).contains(&word.len()) && word.bytes().all(is_allowed)
}

fn check_words(
    key: &'static str,
    words: &[String],
    expected: &str,
    is_good: impl Fn(&str) -> bool,
) -> Result<(), (&'static str, String)> {
    if words.is_empty() {
        return Err((key, format!("is empty and allows no command; expected {expected}")));
    }
    match words.iter().find(|word| !is_good(word)) {
        Some(wrong) => Err((key, format!("\"{wrong}\" is not allowed; expected {expected}"))),
        None => Ok(()),
    }
}

impl CommandContract {
    /// First number of the version.
    pub fn major(&self) -> u64 {
        major_of(&self.version)
    }

    /// Publication of the records that carry commands of a sender to devices: they have the topic of the command itself.
    pub fn publication(&self, sender: &str, around: &GatewayNames) -> Publication {
        Publication {
            version: self.version.clone(),
            topic: format!("{{environment}}/{{site}}/command/{{gateway}}/{sender}/{}/v{{major}}/{{key}}", self.name),
            schema: self.schema_value.clone(),
            owner: self.owner.clone(),
            key: "{target}".into(),
            ..Publication::own(&format!("{TO_DEVICES}{}", self.name), around, &self.lane)
        }
    }

    /// Checks who asks, for which target, for what, and with which arguments.
    pub fn check(&self, sender: &str, target: &str, action: &str, with: &[u8]) -> Result<(), CommandViolation> {
        let refuse = |code, text| Err(CommandViolation { code, text });
        if !self.from.iter().any(|from| from == sender) {
            return refuse("not-allowed", format!("sender \"{sender}\" is not in `from` of contract {}", self.name));
        }
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => target.starts_with(start),
            None => pattern == target,
        };
        if !self.targets.iter().any(fits) {
            return refuse("unknown-target", format!("contract {} has no target \"{target}\"", self.name));
        }
        if !self.actions.iter().any(|allowed| allowed == action) {
            let text = format!("contract {} allows {}, not the requested action", self.name, quoted(&self.actions));
            return refuse("not-allowed", text);
        }
        let tree = Tree::parse(with).map_err(|error| format!("with: {error}"));
        let checked = tree.and_then(|tree| self.schema.as_ref().map_or(Ok(()), |schema| schema.check(&tree)));
        checked.or_else(|text| refuse("schema", text))
    }
}

impl GatewayNames {
    /// Start of the topics of all commands to this gateway.
    pub fn command_prefix(&self) -> String {
        let [environment, site, gateway] = [&self.environment, &self.site, &self.gateway].map(|name| escaped(name));
        format!("{environment}/{site}/command/{gateway}/")
    }
}

impl Publication {
    /// Whether the stream carries commands to devices. Such an event never goes to central: the gateway subscribes
    /// to its topic there.
    pub fn is_to_devices(&self) -> bool {
        self.stream.starts_with(TO_DEVICES) && self.stream != RECEIPTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
kind = "command"
name = "press.setpoint"
version = "1.0.0"
owner = "production control"
from = ["planner"]
targets = ["press-*", "oven"]
actions = ["set"]
expires_max = "1h"
adapter = "device"
confirm = { stream = "device.answer", within = "10s" }
"#;

    fn loaded(text: &str) -> Result<CommandContract, String> {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("setpoint.toml");
        std::fs::write(&file, text).expect("written");
        let loaded =
            load(&file, &["critical".into()]).map_err(|problem| format!("{}: {}", problem.key, problem.message));
        loaded.map(|contract| contract.expect("a command"))
    }

    #[test]
    fn a_contract_says_who_may_ask_what_of_whom() {
        let contract = loaded(GOOD).expect("good");
        assert!(!contract.is_enabled, "off by default");
        let code = |sender, target, action, with: &str| {
            contract.check(sender, target, action, with.as_bytes()).err().map(|violation| violation.code)
        };
        assert_eq!(code("planner", "press-4", "set", "{}"), None);
        assert_eq!(code("planner", "oven", "set", "{}"), None);
        assert_eq!(code("somebody", "press-4", "set", "{}"), Some("not-allowed"));
        assert_eq!(code("planner", "oven-2", "set", "{}"), Some("unknown-target"));
        assert_eq!(code("planner", "press-4", "explode", "{}"), Some("not-allowed"));
        assert_eq!(code("planner", "press-4", "set", "{"), Some("schema"));
    }

    #[test]
    fn a_contract_that_allows_nothing_or_too_much_is_refused() {
        for (before, after, said) in [
            ("[\"planner\"]", "[]", "from: is empty"),
            ("\"planner\"", "\"a/b\"", "from: \"a/b\" is not allowed"),
            ("\"oven\"", "\"#\"", "targets: \"#\" is not allowed"),
            ("[\"set\"]", "[\"\"]", "actions: \"\" is not allowed"),
            ("\"1h\"", "\"90d\"", "expires_max: 90d is out of bounds"),
            ("\"10s\"", "\"0s\"", "confirm.within: 0s is out of bounds"),
            ("press.setpoint", "receipt", "name: \"receipt\" is taken"),
            ("\"device\"", "\"teleport\"", "adapter: "),
        ] {
            let error = loaded(&GOOD.replace(before, after)).expect_err(after);
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn commands_to_devices_are_told_from_receipts() {
        let contract = loaded(GOOD).expect("good");
        let publication = contract.publication("planner", &GatewayNames::default());
        assert!(publication.is_to_devices());
        assert_eq!(publication.stream_id(), "command.press.setpoint.v1");
        assert!(!Publication::own(RECEIPTS, &GatewayNames::default(), "critical").is_to_devices());
    }
}
