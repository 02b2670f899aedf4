//! Intake: whether a message is a command that may be executed.
//!
//! Promise: each message gets a row, or a receipt that depends on nothing but the message, or is a repeat.

use super::envelope::{self, Address, CommandId, Envelope};
use super::inbox::{Inbox, OPEN_BYTES_MAX, OPEN_MAX, REMEMBERED_MAX, ROWS};
use super::message::{Arrival, EXPIRED, Now};
use super::row::{Reason, Request, Row, State, digest, name_of, receipt};
use crate::contract::Tree;
use crate::journal::JournalError;
use crate::setting::Span;
use serde_json::json;
use serde_json::value::RawValue;
use std::sync::Arc;

const TOPIC_FORM: &str =
    "the topic of a command is {environment}/{site}/command/{gateway}/{sender}/{contract}/v{major}/{target}";
const RETAINED: &str = "a retained command would be executed again by each new session; publish it without retain";
const MEMORY_LOST: &str =
    "the gateway has lost the ids of earlier commands, and this one may have been executed; send a new one later";

impl Inbox {
    /// Takes a message in. It may be acknowledged after the next [`Inbox::commit`], and after its rowless receipt.
    pub(super) fn take(&mut self, arrival: &Arrival, now: Now) -> Result<(), JournalError> {
        let Some(address) = Address::parse(&arrival.levels) else {
            self.refuse_rowless(arrival, None, &Reason::new("schema", TOPIC_FORM), now);
            return Ok(());
        };
        let tree = match arrival.is_truncated {
            true => Err("payload: is too large".to_owned()),
            false => Tree::parse(&arrival.payload).map_err(|error| format!("payload: {error}")),
        };
        let identified = tree.and_then(|tree| Ok((envelope::identify(&tree)?, tree)));
        let (id, tree) = match identified {
            Ok(identified) => identified,
            Err(text) => {
                self.refuse_rowless(arrival, None, &Reason::new("schema", text), now);
                return Ok(());
            }
        };
        let (name, digest) = (name_of(&id), digest(&[arrival.levels.as_bytes(), b"\0", &arrival.payload]));
        if let Some(known) = self.digest_of(&name)? {
            if known != digest {
                let reason = Reason::new("id-reused", "another command had this source and id");
                self.refuse_rowless(arrival, Some(&id), &reason, now);
            }
            // The same command again: it has its receipts.
            return Ok(());
        }
        self.forget_expired(now)?;
        if self.remembered.len() + self.rows.len() >= REMEMBERED_MAX {
            let reason = Reason::new("too-many", "the gateway remembers too many commands that have not expired");
            self.refuse_rowless(arrival, Some(&id), &reason, now);
            return Ok(());
        }
        let kind = format!("{}.command.{}.v{}", self.around.namespace, address.contract, address.major);
        let parsed = envelope::parse(&tree, &kind, address.target).map_err(|text| Reason::new("schema", text));
        let parsed = if arrival.is_retained { Err(Reason::new("retained", RETAINED)) } else { parsed };
        let judged = parsed.and_then(|envelope| self.judge(&address, &id, &envelope, now).map(|()| envelope));
        self.add(&address, (id, name, digest), judged, now);
        Ok(())
    }

    /// Stores a command that was judged.
    fn add(
        &mut self,
        address: &Address<'_>,
        (id, name, digest): (CommandId, String, String),
        judged: Result<Envelope, Reason>,
        now: Now,
    ) {
        let contract = self.contract(address.contract, address.major);
        let version = contract.map_or_else(String::new, |contract| contract.version.clone());
        let (envelope, refusal) = match judged {
            Ok(envelope) => (Some(envelope), None),
            Err(reason) => (None, Some(reason)),
        };
        let field = |value: Option<&String>| value.cloned();
        let with = envelope.as_ref().and_then(|envelope| RawValue::from_string(envelope.with.clone()).ok());
        let request = Request {
            source: id.source,
            id: id.id,
            contract: address.contract.to_owned(),
            version,
            major: address.major,
            sender: address.sender.to_owned(),
            target: address.target.to_owned(),
            action: envelope.as_ref().map_or_else(String::new, |envelope| envelope.action.clone()),
            with: with.unwrap_or_default(),
            correlation: envelope.as_ref().and_then(|envelope| field(envelope.correlation.as_ref())),
            causation: envelope.as_ref().and_then(|envelope| field(envelope.causation.as_ref())),
            is_dry_run: envelope.as_ref().is_some_and(|envelope| envelope.is_dry_run),
        };
        let expires = envelope.map_or(now.time, |envelope| envelope.expires);
        let row = Row::new(digest, self.order, expires, request);
        self.order += 1;
        self.admit(name.clone(), row);
        match refusal {
            Some(reason) if reason.code == EXPIRED => self.enter(&name, State::Expired, Some(&reason), now),
            Some(reason) => self.enter(&name, State::Refused, Some(&reason), now),
            None => self.enter(&name, State::Accepted, None, now),
        }
    }

    /// Checks a command against its contract and the bounds.
    fn judge(&mut self, address: &Address<'_>, id: &CommandId, envelope: &Envelope, now: Now) -> Result<(), Reason> {
        let refuse = |code, text: String| Err(Reason::new(code, text));
        if id.source.starts_with(&format!("/{}/{}/", self.around.site, self.around.gateway)) {
            return refuse("not-allowed", "source: is an event of this gateway, not a command of central".into());
        }
        let Some(contract) = self.contract(address.contract, address.major).map(Arc::clone) else {
            let text = format!("no enabled contract \"{}\" with major version {}", address.contract, address.major);
            return refuse("not-allowed", text);
        };
        let checked = contract.check(address.sender, address.target, &envelope.action, envelope.with.as_bytes());
        checked.map_err(|violation| Reason::new(violation.code, violation.text))?;
        if let Some(unknown) = envelope.unknown.first() {
            let text = format!(
                "data/{unknown}: contract {} has no such member; do, with and dry_run are allowed",
                contract.name
            );
            return refuse("precondition", text);
        }
        if now.is_trusted && envelope.expires <= now.time {
            return refuse(EXPIRED, "expirytime: had passed when the command arrived".into());
        }
        if now.is_trusted && envelope.expires > now.time.plus(contract.expires_max) {
            let text = format!("expirytime: is later than {} from now", Span(contract.expires_max));
            return refuse("range", text);
        }
        if self.lost_at.is_some_and(|lost_at| envelope.expires <= lost_at.plus(contract.expires_max)) {
            return refuse("memory-lost", MEMORY_LOST.into());
        }
        let waiting = self.queues.get(address.target).map_or(0, Vec::len);
        let open: usize = self.queues.values().map(Vec::len).sum();
        if waiting >= contract.queue || open >= OPEN_MAX || self.bytes >= OPEN_BYTES_MAX {
            return refuse("too-many", format!("{waiting} commands of the target and {open} in all wait"));
        }
        let minute = now.time.0.div_euclid(60_000_000);
        let rate = self.rates.entry(contract.name.clone()).or_insert((minute, 0));
        if rate.0 != minute {
            *rate = (minute, 0);
        }
        if rate.1 >= contract.rate {
            return refuse(
                "too-many",
                format!("contract {} allows {} commands per minute", contract.name, contract.rate),
            );
        }
        rate.1 += 1;
        Ok(())
    }

    /// Digest of the payload of a known command.
    fn digest_of(&self, name: &str) -> Result<Option<String>, JournalError> {
        if let Some(row) = self.rows.get(name) {
            return Ok(Some(row.digest.clone()));
        }
        let stored = self.notes.read(&format!("{ROWS}{name}"))?;
        // A row that cannot be read has an id that was used.
        Ok(stored.map(|bytes| Row::decode(&bytes).map_or_else(String::new, |row| row.digest)))
    }

    /// Refuses a message that gets no row. Its receipt depends on nothing but the message: a repeat is recognised.
    fn refuse_rowless(&mut self, arrival: &Arrival, id: Option<&CommandId>, reason: &Reason, now: Now) {
        let name = digest(&[arrival.levels.as_bytes(), b"\0", &arrival.payload, reason.code.as_bytes()]);
        let payload = json!({
            "command": id.map(name_of), "source": id.map(|id| &id.source), "id": id.map(|id| &id.id),
            "state": State::Refused, "n": 0, "reason": reason.code, "text": reason.text,
        });
        let target = Address::parse(&arrival.levels).map_or(&*self.around.gateway, |address| address.target).to_owned();
        self.rowless.extend(receipt(format!("{name}.refused"), now.time, &payload).map(|receipt| (target, receipt)));
    }
}
