//! The stored state of one command, and its receipts.
//!
//! Promise: a receipt is stored with the change that it reports, with its bytes. After a crash it is handed in again as it
//! was, so that the journal recognises the repeat.

use super::envelope::CommandId;
use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// Version of the stored format.
const FORMAT: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Durable; will begin until `expirytime`.
    Accepted,
    /// The effect may have begun.
    Started,
    Done,
    /// Nothing was done.
    Refused,
    /// Not begun in time.
    Expired,
    /// Begun, and the device says that it failed.
    Failed,
    /// Begun, and neither confirmed nor denied in time.
    Unknown,
}

impl State {
    /// Whether nothing follows.
    pub(super) fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Started)
    }
}

/// Why a command was refused, has failed or is unknown.
#[derive(Clone, Debug)]
pub(super) struct Reason {
    /// For programs.
    pub(super) code: &'static str,
    /// For people.
    pub(super) text: String,
}

impl Reason {
    pub(super) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// A receipt that is not known to be in the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredReceipt {
    pub(super) id: String,
    pub(super) time: Timestamp,
    pub(super) payload: Box<RawValue>,
}

/// What is needed until the command is final.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) source: String,
    pub(super) id: String,
    pub(super) contract: String,
    pub(super) version: String,
    pub(super) major: u64,
    pub(super) sender: String,
    pub(super) target: String,
    pub(super) action: String,
    pub(super) with: Box<RawValue>,
    pub(super) correlation: Option<String>,
    pub(super) causation: Option<String>,
    pub(super) is_dry_run: bool,
}

/// The intent of an effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) at: Timestamp,
    /// Without a confirmation by then, the command is unknown.
    pub(super) until: Timestamp,
    /// Stream of the confirmation.
    pub(super) stream: String,
    /// Whether the record for the device is known to be in the journal.
    pub(super) is_published: bool,
}

/// The stored state of one command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    format: u8,
    /// Digest of the payload.
    pub(super) digest: String,
    /// Order of arrival.
    pub(super) order: u64,
    pub(super) expires: Timestamp,
    pub(super) state: State,
    /// Number of receipts so far.
    pub(super) n: u32,
    /// `None` once the command is final and all its receipts are in the journal.
    pub(super) request: Option<Request>,
    pub(super) begun: Option<Begun>,
    pub(super) unsent: Vec<StoredReceipt>,
}

impl Row {
    pub(super) fn new(digest: String, order: u64, expires: Timestamp, request: Request) -> Self {
        Self {
            format: FORMAT,
            digest,
            order,
            expires,
            state: State::Accepted,
            n: 0,
            request: Some(request),
            begun: None,
            unsent: Vec::new(),
        }
    }

    /// Changes the state and adds the receipt of the change.
    pub(super) fn enter(&mut self, name: &str, state: State, reason: Option<&Reason>, now: Timestamp) {
        let Some(request) = &self.request else { return };
        self.state = state;
        self.n += 1;
        let mut payload = json!({
            "command": name, "source": request.source, "id": request.id, "state": state, "n": self.n,
            "contract": request.contract, "version": request.version, "do": request.action,
        });
        for (field, value) in [
            ("correlationid", request.correlation.clone()),
            ("causationid", request.causation.clone()),
            ("reason", reason.map(|reason| reason.code.to_owned())),
            ("text", reason.map(|reason| reason.text.clone())),
        ] {
            if let Some(value) = value {
                payload[field] = value.into();
            }
        }
        if request.is_dry_run {
            payload["dry_run"] = true.into();
        }
        self.unsent.extend(receipt(format!("{name}.{}", self.n), now, &payload));
    }

    /// Removes what a final command does not need any more.
    pub(super) fn compact(&mut self) {
        if self.state.is_final() && self.unsent.is_empty() {
            (self.request, self.begun) = (None, None);
        }
    }

    /// Target of a command that is not compacted.
    pub(super) fn target(&self) -> &str {
        self.request.as_ref().map_or("", |request| &request.target)
    }

    /// Bytes that it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let request = self.request.as_ref().map_or(0, |request| request.with.get().len() + request.target.len() * 2);
        let unsent: usize = self.unsent.iter().map(|receipt| receipt.payload.get().len()).sum();
        size_of::<Self>() + 512 + request + unsent
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes a stored row; `None` for one that is damaged or of a later version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|row: &Self| row.format == FORMAT)
    }
}

/// A receipt with its bytes.
pub(super) fn receipt(id: String, time: Timestamp, payload: &serde_json::Value) -> Option<StoredReceipt> {
    let payload = RawValue::from_string(payload.to_string()).ok()?;
    Some(StoredReceipt { id, time, payload })
}

/// Name of a command made of its idempotency key: devices, receipts and notes know it by this name. ASCII, 24 bytes.
pub(super) fn name_of(id: &CommandId) -> String {
    let length = (id.source.len() as u64).to_be_bytes();
    // The length keeps `a` + `bc` apart from `ab` + `c`.
    digest(&[&length, id.source.as_bytes(), id.id.as_bytes()])
}

/// A digest of 96 bits in hexadecimal digits.
pub(super) fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    let mut name = String::new();
    for byte in &hasher.finalize()[..12] {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_idempotency_key_has_its_own_name() {
        let name = |(source, id): (&str, &str)| name_of(&CommandId { source: source.into(), id: id.into() });
        let names: std::collections::BTreeSet<_> =
            [("a", "bc"), ("ab", "c"), ("a", "bd"), ("", "abc")].map(name).into();
        assert_eq!(names.len(), 4, "{names:?}");
    }
}
