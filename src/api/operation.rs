//! The operation of the gateway: health, audit, devices, reload, new events.

use crate::event::AuthType;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Name of the check, such as `ledger` or `lane critical`.
    pub check: String,
    pub good: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Changes of the configuration, one line each.
    pub changes: Vec<String>,
    /// Problems of the refused configuration.
    pub problems: Vec<String>,
}

/// Selects what Odoo sources load again; without a field, all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OdooLoadRequest {
    /// Name of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Model of the contracts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// The streams whose records are loaded again, each with the records that are known now.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct OdooLoadAnswer {
    pub streams: Vec<OdooLoad>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OdooLoad {
    pub source: String,
    pub stream: String,
    pub model: String,
    /// Records that are known now.
    pub records: u64,
}

/// An entry of the audit, as the journal stores it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Time of the action, RFC 3339.
    pub at: String,
    /// `untrusted` if the clock was not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clockstatus: Option<String>,
    /// User id of the caller; absent if a limit, a signal or a changed file caused the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<u32>,
    pub action: String,
    pub detail: serde_json::Value,
    /// Outcome: `done`, `begun`, or an error.
    #[serde(default = "done")]
    pub result: String,
}

fn done() -> String {
    "done".to_owned()
}

/// The status of a device, as the command socket reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub source: String,
    pub client: String,
    /// The proven name, or the user name that an anonymous client gives; empty without one.
    pub identity: String,
    /// How the name was proven; `None` for an unproven name.
    pub authtype: Option<AuthType>,
    /// Address and port of its newest connection.
    pub peer: String,
    pub version: String,
    /// The moment of its connection, RFC 3339; `None` if it is not connected.
    pub connected_since: Option<String>,
    /// Publishes per second since it connected.
    pub rate: f64,
    /// Publishes since the gateway started.
    pub received: u64,
    /// The moment of its last publish, RFC 3339.
    pub last_event: Option<String>,
    /// Publishes, subscriptions and connections that were refused since the gateway started.
    pub refused: u64,
    /// The newest of them.
    pub last_refusal: Option<DeviceRefusal>,
    /// Events that became dead letters on the way in.
    pub dead: u64,
    /// Repeats that the id of the contract or MQTT's redelivery revealed.
    pub duplicates: u64,
    /// Seconds that its clock is ahead of the gateway's, by its newest event with a time of its own.
    pub clock_offset: Option<f64>,
}

/// The newest refusal of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRefusal {
    /// RFC 3339.
    pub at: String,
    /// IP address of the connection.
    #[serde(default)]
    pub address: String,
    /// Topic or filter; at most 128 bytes.
    pub what: String,
    /// The cause, and the rule that would allow it; at most 256 bytes.
    pub why: String,
}

/// A device in the list of devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ListedDevice {
    /// A client that has connected.
    Mqtt(DeviceStatus),
    /// A device that the gateway polls.
    Modbus(UnitStatus),
    /// A client that was refused and has not logged in since.
    Refused(RefusedClient),
}

/// A client that a listener refused before it had a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedClient {
    pub source: String,
    /// Client id; empty if the client was refused before it sent one.
    pub client: String,
    /// User name that it gave, or the proven name; may be empty.
    pub user: String,
    /// Address and port of its newest connection.
    pub peer: String,
    pub why: String,
    /// Refused connections since the start of the gateway, or since the client left the list.
    pub count: u64,
    /// Time of the newest refusal, RFC 3339.
    pub at: String,
}

/// The status of a device that the gateway polls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    pub source: String,
    /// Its name.
    pub unit: String,
    /// Its number on the bus.
    pub number: u8,
    /// `good` if every point has a value or a declared absence, `bad` if one has not, `silent`, or `unknown` before the
    /// first answer.
    pub state: String,
    pub reason: Option<String>,
    /// Since when it has this state, RFC 3339.
    pub since: String,
    /// Time of the last answer, RFC 3339.
    pub last_answer: Option<String>,
    pub points: Vec<PointStatus>,
}

/// The status of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointStatus {
    pub group: String,
    pub name: String,
    /// `good`, `absent`, `bad`, `stale` while the unit is silent, or `unknown` before it was read.
    pub state: String,
    pub reason: Option<String>,
    /// Since when it has a value, none, or a bad one, RFC 3339.
    pub since: String,
}

/// An event in the output of `tail`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TailEvent {
    pub lane: String,
    /// Name of the stream, without version.
    pub stream: String,
    pub offset: u64,
    /// Time of the commit, RFC 3339.
    pub recorded: String,
    /// Time of the event, RFC 3339.
    pub time: String,
    /// Source and device, as `{source}/{device}`.
    pub origin: String,
    /// Key within which order is kept.
    pub key: String,
    pub id: String,
    /// The payload if it is JSON, on one line, with its numbers as they were written.
    pub data: Option<Box<serde_json::value::RawValue>>,
    /// The payload in base64 if it is not JSON.
    pub data_base64: Option<String>,
    /// Topic on which a dead letter arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Reason of a dead letter; `None` for an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
