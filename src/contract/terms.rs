//! The terms of a contract: the words that its file is written in.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Maximum length of a key, in bytes. With the levels around it, a topic stays far below MQTT's 65,535 bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Maximum length of an id from a device, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Default dedupe window, for events with an id.
pub(super) const DEDUPE: Duration = Duration::from_secs(86_400);

/// Names that every event of this gateway carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayNames {
    /// Environment, such as `test` or `production`.
    pub environment: String,
    pub site: String,
    /// Name of the gateway, unique within the site.
    pub gateway: String,
    /// Prefix of every event type.
    pub namespace: String,
}

/// Kind of source that an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// MQTT clients of the gateway's own listener.
    Mqtt,
    /// A broker of the plant, to which the gateway subscribes.
    Broker,
    /// HTTP clients that post to the gateway.
    Http,
    /// Modbus devices that the gateway polls.
    Modbus,
    /// An Odoo server that the gateway polls.
    Odoo,
    /// Files that programs drop into a folder.
    Folder,
    /// The gateway's own monitoring of business rules (`watch`).
    Watch,
}

impl std::fmt::Display for SourceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Mqtt => "mqtt",
            Self::Broker => "broker",
            Self::Http => "http",
            Self::Modbus => "modbus",
            Self::Odoo => "odoo",
            Self::Folder => "folder",
            Self::Watch => "watch",
        })
    }
}

/// CloudEvents content mode of published events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One JSON object with attributes and payload.
    #[default]
    Structured,
    /// Attributes as MQTT 5 user properties, the payload unchanged.
    Binary,
}

/// Values of the CloudEvents attribute `dataclassification`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Classification {
    Public,
    Internal,
    Confidential,
    Restricted,
}

impl Classification {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        }
    }
}

/// Payload formats that a contract accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accepts {
    /// JSON only.
    #[default]
    Json,
    /// JSON; anything else is embedded as base64.
    Any,
    /// Any bytes, embedded as base64 without parsing.
    Bytes,
}

/// Format that the gateway decodes to JSON before the contract reads the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// Sparkplug B, on topics such as `spBv1.0/{group}/{type}/{node}/{device}`.
    SparkplugB,
}

/// Treatment of an event that breaks its contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// The gateway keeps it as a dead letter.
    #[default]
    DeadLetter,
    /// The gateway delivers it, marked with the violation.
    Flag,
}

/// Ordering guarantee for the consumers of a stream, the weakest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// No guarantee: events may arrive in any order.
    None,
    /// Events of one key never overtake each other, unless central refuses one for now while later ones are on the way.
    #[default]
    Key,
    /// Events of one key never overtake each other: one of them is on the way at a time.
    Strict,
}

/// `"a", "b" and "c"`.
pub(super) fn quoted(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".into(),
    }
}
