//! The address of a message, from its topic, and why a message cannot be decoded.

use std::fmt;

/// Maximum length of a topic, from which the names of node and device are kept in memory; as in `sources::mqtt`.
const TOPIC_BYTES_MAX: usize = 1024;

/// Parsed topic of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageTopic<'a> {
    pub(super) group: &'a str,
    pub(super) kind: MessageKind,
    pub(super) node: &'a str,
    pub(super) device: Option<&'a str>,
}

impl MessageTopic<'_> {
    /// Message type as in topics.
    pub(super) fn message_type(&self) -> &'static str {
        match (self.kind, self.device.is_some()) {
            (MessageKind::Birth, false) => "NBIRTH",
            (MessageKind::Birth, true) => "DBIRTH",
            (MessageKind::Death, false) => "NDEATH",
            (MessageKind::Death, true) => "DDEATH",
            (MessageKind::Data, false) => "NDATA",
            (MessageKind::Data, true) => "DDATA",
            (MessageKind::Command, false) => "NCMD",
            (MessageKind::Command, true) => "DCMD",
        }
    }
}

/// Type of a message, the same for nodes and devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    Birth,
    Death,
    Data,
    Command,
}

impl fmt::Display for MessageTopic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            None => write!(f, "node {}/{}", self.group, self.node),
            Some(device) => write!(f, "device {}/{}/{device}", self.group, self.node),
        }
    }
}

/// Reason why a message cannot be decoded.
#[derive(Debug)]
pub(super) struct DecodeError {
    pub(super) reason: String,
    pub(super) needs_rebirth: bool,
}

impl DecodeError {
    /// An error that a rebirth would resolve.
    pub(super) fn unborn(reason: String) -> Self {
        Self { reason, needs_rebirth: true }
    }

    pub(super) fn wrong(reason: String) -> Self {
        Self { reason, needs_rebirth: false }
    }
}

fn not_sparkplug() -> DecodeError {
    let reason =
        "topic: is none of Sparkplug B; expected spBv1.0/{group}/{type}/{node}, followed by /{device} for a device";
    DecodeError::wrong(reason.into())
}

pub(super) fn parse_topic(topic: &str) -> Result<MessageTopic<'_>, DecodeError> {
    let levels: Vec<&str> = topic.split('/').collect();
    let (group, message_type, node, device) = match levels[..] {
        ["spBv1.0", group, message_type, node] => (group, message_type, node, None),
        ["spBv1.0", group, message_type, node, device] => (group, message_type, node, Some(device)),
        _ => return Err(not_sparkplug()),
    };
    let kind = match (message_type, device) {
        ("NBIRTH", None) | ("DBIRTH", Some(_)) => MessageKind::Birth,
        ("NDEATH", None) | ("DDEATH", Some(_)) => MessageKind::Death,
        ("NDATA", None) | ("DDATA", Some(_)) => MessageKind::Data,
        ("NCMD", None) | ("DCMD", Some(_)) => MessageKind::Command,
        _ => return Err(not_sparkplug()),
    };
    if topic.len() > TOPIC_BYTES_MAX {
        let length = topic.len();
        return Err(DecodeError::wrong(format!(
            "topic: has {length} bytes; {TOPIC_BYTES_MAX} are allowed for Sparkplug B"
        )));
    }
    Ok(MessageTopic { group, kind, node, device })
}
