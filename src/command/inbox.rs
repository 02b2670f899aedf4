//! The inbox: the state of every command, in the notes of the journal.
//!
//! Promise: after [`Inbox::commit`], what was taken and what has changed survives a power cut. Each command has one final
//! receipt, or one that says `unknown`.
//! Invariants:
//! - commands of a target begin in the order of their arrival, one at a time;
//! - the intent of an effect is stored before the effect;
//! - what central can make the gateway hold is bounded: open commands by number and bytes, remembered ids by number.
//!
//! Not here: what is accepted (`intake`), how receipts and commands to devices enter the journal (`outlet`).

use super::message::{Confirmation, EXPIRED, Now, Outgoing};
use super::row::{Begun, Reason, Row, State, StoredReceipt};
use crate::api::OpenCommand;
use crate::contract::{CommandContract, GatewayNames};
use crate::event::Timestamp;
use crate::journal::{JournalError, Note, Notes};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Start of the names of the notes with rows.
pub(super) const ROWS: &str = "row/";
/// Note with the position in each lane up to which confirmations were read.
pub(super) const POSITIONS: &str = "positions";
/// Note with the time from which the inbox remembers commands.
const SINCE: &str = "since";
/// Largest number of open commands.
pub(super) const OPEN_MAX: usize = 10_000;
/// Largest number of bytes of open commands.
pub(super) const OPEN_BYTES_MAX: usize = 8 << 20;
/// Largest number of remembered ids of final commands: about 10 MB in `state.redb`.
pub(super) const REMEMBERED_MAX: usize = 50_000;
/// How long an id is remembered after its `expirytime`. Before it, it is never forgotten; after it, a repeat expires.
const MEMORY: Duration = Duration::from_secs(90 * 86_400);
/// A command that was started this long ago, and may or may not have been published, is not published again: the dedupe
/// window of the journal reaches back a day.
const REPUBLISH_MAX: Duration = Duration::from_secs(12 * 3600);

/// What the journal knows of the time before the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    /// Whether it has had commands.
    pub(super) is_used: bool,
    /// Time from which its dedupe window is complete; `None` for all of its events.
    pub(super) window_from: Option<Timestamp>,
}

/// The state of every command.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) notes: Notes,
    pub(super) around: GatewayNames,
    pub(super) contracts: Vec<Arc<CommandContract>>,
    /// Open commands, and final ones whose receipts are not known to be in the journal, by name.
    pub(super) rows: BTreeMap<String, Row>,
    /// Names of the open commands of each target, in order of arrival.
    pub(super) queues: BTreeMap<String, Vec<String>>,
    pub(super) bytes: usize,
    pub(super) order: u64,
    /// `expirytime` and name of remembered final commands.
    pub(super) remembered: BTreeSet<(Timestamp, u128)>,
    /// Rows that differ from their notes.
    changed: BTreeSet<String>,
    /// Receipts of refused messages that get no row, with their targets.
    pub(super) rowless: Vec<(String, StoredReceipt)>,
    /// Minute and number of commands in it, by contract.
    pub(super) rates: HashMap<String, (i64, u32)>,
    /// Time of a loss of the state: commands from before may come again.
    pub(super) lost_at: Option<Timestamp>,
}

impl Inbox {
    /// Restores the inbox. Blocks the thread.
    pub(super) fn open(
        notes: Notes,
        around: GatewayNames,
        contracts: Vec<Arc<CommandContract>>,
        past: Past,
        now: Now,
    ) -> Result<Self, JournalError> {
        let since = notes.read(SINCE)?;
        let lost_at = match since {
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or(Some(now.time)),
            None => {
                let lost_at = past.is_used.then_some(now.time);
                notes.write(vec![(SINCE.into(), serde_json::to_vec(&lost_at).ok())])?;
                lost_at
            }
        };
        let mut inbox = Self {
            notes: notes.clone(),
            around,
            contracts,
            rows: BTreeMap::new(),
            queues: BTreeMap::new(),
            bytes: 0,
            order: 0,
            remembered: BTreeSet::new(),
            changed: BTreeSet::new(),
            rowless: Vec::new(),
            rates: HashMap::new(),
            lost_at,
        };
        let mut open: Vec<(u64, String, Row)> = Vec::new();
        notes.each(ROWS, |name, content| {
            let name = &name[ROWS.len()..];
            match Row::decode(content) {
                Some(row) if row.request.is_none() => inbox.remember(name, row.expires),
                Some(row) => open.push((row.order, name.to_owned(), row)),
                None => {
                    tracing::warn!(command = name, "the stored state of a command cannot be read; it stays as it is")
                }
            }
        })?;
        open.sort_by_key(|(order, ..)| *order);
        for (order, name, row) in open {
            inbox.order = inbox.order.max(order + 1);
            inbox.admit(name, row);
        }
        inbox.settle_doubtful(past, now);
        Ok(inbox)
    }

    /// Commands that may have been published: those that the journal may not recognise as repeats become `unknown`.
    fn settle_doubtful(&mut self, past: Past, now: Now) {
        let is_doubtful = |row: &Row| {
            let Some((begun, request)) = row.begun.as_ref().zip(row.request.as_ref()) else { return false };
            let is_known = self.contract(&request.contract, request.major).is_some();
            row.state == State::Started
                && !begun.is_published
                && (!is_known
                    || now.time.since(begun.at) > REPUBLISH_MAX
                    || past.window_from.is_some_and(|from| from >= begun.at))
        };
        let doubtful = self.rows.iter().filter(|(_, row)| is_doubtful(row)).map(|(name, _)| name.clone());
        let reason =
            Reason::new("not-confirmed", "the gateway was stopped while it began; the device may have received it");
        for name in doubtful.collect::<Vec<_>>() {
            self.enter(&name, State::Unknown, Some(&reason), now);
        }
    }

    /// Adds a row that is not compacted.
    pub(super) fn admit(&mut self, name: String, row: Row) {
        self.bytes += row.bytes();
        if !row.state.is_final() {
            self.queues.entry(row.target().to_owned()).or_default().push(name.clone());
        }
        self.rows.insert(name, row);
    }

    fn remember(&mut self, name: &str, expires: Timestamp) {
        self.remembered.extend(u128::from_str_radix(name, 16).ok().map(|name| (expires, name)));
    }

    pub(super) fn contract(&self, name: &str, major: u64) -> Option<&Arc<CommandContract>> {
        self.contracts.iter().find(|contract| contract.name == name && contract.major() == major)
    }

    /// Changes the state of a command, and removes it from its queue once it is final.
    pub(super) fn enter(&mut self, name: &str, state: State, reason: Option<&Reason>, now: Now) {
        let Some(row) = self.rows.get_mut(name) else { return };
        row.enter(name, state, reason, now.time);
        tracing::debug!(command = name, ?state, reason = reason.map(|reason| reason.code), "command");
        self.changed.insert(name.to_owned());
        let target = row.target().to_owned();
        if state.is_final()
            && let Some(queue) = self.queues.get_mut(&target)
        {
            queue.retain(|queued| queued != name);
            if queue.is_empty() {
                self.queues.remove(&target);
            }
        }
    }

    /// Ends what is too late, and begins the next command of each target. With a clock in doubt nothing of this happens.
    pub(super) fn advance(&mut self, now: Now) {
        if !now.is_trusted {
            return;
        }
        let expired = Reason::new(EXPIRED, "was not begun before its expirytime");
        let silent = Reason::new("not-confirmed", "the device did not confirm it in time");
        let over = |row: &Row| match (row.state, &row.begun) {
            (State::Accepted, _) if row.expires <= now.time => Some((State::Expired, &expired)),
            (State::Started, Some(begun)) if begun.until <= now.time => Some((State::Unknown, &silent)),
            _ => None,
        };
        let ended: Vec<_> = self.rows.iter().filter_map(|(name, row)| Some((name.clone(), over(row)?))).collect();
        for (name, (state, reason)) in ended {
            self.enter(&name, state, Some(reason), now);
        }
        let targets: Vec<String> = self.queues.keys().cloned().collect();
        for target in targets {
            // A command that ends at once makes room for the next one.
            while let Some(first) = self.queues.get(&target).and_then(|queue| queue.first()).cloned()
                && self.rows.get(&first).is_some_and(|row| row.state == State::Accepted)
            {
                self.begin(&first, now);
            }
        }
    }

    /// Begins a command: its contract may have changed since it was accepted.
    fn begin(&mut self, name: &str, now: Now) {
        let Some(request) = self.rows.get(name).and_then(|row| row.request.clone()) else { return };
        let Some(contract) = self.contract(&request.contract, request.major).map(Arc::clone) else {
            let reason = Reason::new("not-allowed", "its contract is no longer enabled");
            return self.enter(name, State::Refused, Some(&reason), now);
        };
        let with = request.with.get().as_bytes();
        if let Err(violation) = contract.check(&request.sender, &request.target, &request.action, with) {
            return self.enter(name, State::Refused, Some(&Reason::new(violation.code, violation.text)), now);
        }
        if request.is_dry_run {
            return self.enter(name, State::Done, None, now);
        }
        let Some(row) = self.rows.get_mut(name) else { return };
        row.begun = Some(Begun {
            at: now.time,
            until: row.expires.plus(contract.confirm.within.0),
            stream: contract.confirm.stream.clone(),
            is_published: false,
        });
        self.enter(name, State::Started, None, now);
    }

    /// Ends a started command that its target confirms.
    pub(super) fn confirm(&mut self, confirmation: &Confirmation, now: Now) {
        let Some(row) = self.rows.get(&confirmation.command) else { return };
        let is_expected = row.begun.as_ref().is_some_and(|begun| begun.stream == confirmation.stream);
        if row.state != State::Started || !is_expected || row.target() != confirmation.key {
            return;
        }
        let text = confirmation.text.clone();
        match confirmation.is_done {
            true => {
                let reason = text.map(|text| Reason::new("confirmed", text));
                self.enter(&confirmation.command, State::Done, reason.as_ref(), now);
            }
            false => {
                let reason = Reason::new("device", text.unwrap_or_else(|| "the device reports a failure".into()));
                self.enter(&confirmation.command, State::Failed, Some(&reason), now);
            }
        }
    }

    /// Whether a confirmation is awaited.
    pub(super) fn awaits_confirmation(&self) -> bool {
        self.queues.values().any(|queue| {
            let first = queue.first().and_then(|name| self.rows.get(name));
            first.is_some_and(|row| row.state == State::Started)
        })
    }

    /// The first open commands, those of a target in their order.
    pub(super) fn listed(&self, most: usize) -> Vec<OpenCommand> {
        let open = self.queues.values().flatten().filter_map(|name| Some((name, self.rows.get(name)?)));
        let listed = open.filter_map(|(name, row)| {
            let request = row.request.as_ref()?;
            Some(OpenCommand {
                command: name.clone(),
                state: if row.state == State::Started { "started" } else { "accepted" }.into(),
                contract: request.contract.clone(),
                target: request.target.clone(),
                sender: request.sender.clone(),
                r#do: request.action.clone(),
                expires: row.expires.to_string(),
                source: request.source.clone(),
                id: request.id.clone(),
            })
        });
        listed.take(most).collect()
    }

    /// Number of open commands.
    pub(super) fn open_count(&self) -> usize {
        self.queues.values().map(Vec::len).sum()
    }

    /// Time of the next change that only time causes.
    pub(super) fn next_change(&self) -> Option<Timestamp> {
        let of_row = |row: &Row| match (row.state, &row.begun) {
            (State::Accepted, _) => Some(row.expires),
            (State::Started, Some(begun)) => Some(begun.until),
            _ => None,
        };
        self.rows.values().filter_map(of_row).min()
    }

    /// Whether notes differ from the state.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Stores every change together, durably. `positions` are those up to which confirmations were read.
    pub(super) fn commit(&mut self, positions: Option<Vec<u8>>) -> Result<(), JournalError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let mut notes: Vec<Note> = positions.map(|bytes| (POSITIONS.to_owned(), Some(bytes))).into_iter().collect();
        for name in &self.changed {
            if let Some(row) = self.rows.get_mut(name) {
                row.compact();
                notes.push((format!("{ROWS}{name}"), Some(row.encode())));
            }
        }
        self.notes.write(notes)?;
        for name in std::mem::take(&mut self.changed) {
            if self.rows.get(&name).is_some_and(|row| row.request.is_none())
                && let Some(row) = self.rows.remove(&name)
            {
                self.remember(&name, row.expires);
            }
        }
        self.bytes = self.rows.values().map(Row::bytes).sum();
        Ok(())
    }

    /// Records that have to be handed in now, receipts of a command in order. All of them are backed by committed rows.
    pub(super) fn outgoing(&mut self) -> Vec<Outgoing> {
        let rowless = std::mem::take(&mut self.rowless).into_iter();
        let mut found: Vec<_> = rowless.map(|(target, receipt)| Outgoing::Receipt { target, receipt }).collect();
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| row.order);
        for (name, row) in rows {
            let Some(request) = &row.request else { continue };
            found.extend(
                row.unsent
                    .iter()
                    .map(|receipt| Outgoing::Receipt { target: request.target.clone(), receipt: receipt.clone() }),
            );
            if row.state == State::Started && row.begun.as_ref().is_some_and(|begun| !begun.is_published) {
                let (name, request) = (name.clone(), Box::new(request.clone()));
                found.push(Outgoing::ToDevice { name, request, expires: row.expires });
            }
        }
        found
    }

    /// Notes that the records of the last [`Inbox::outgoing`] are durable.
    pub(super) fn handed_in(&mut self) {
        for (name, row) in &mut self.rows {
            let is_new = row.state == State::Started && row.begun.as_ref().is_some_and(|begun| !begun.is_published);
            if row.unsent.is_empty() && !is_new {
                continue;
            }
            row.unsent.clear();
            row.begun.iter_mut().for_each(|begun| begun.is_published = true);
            self.changed.insert(name.clone());
        }
    }

    /// Forgets ids that are old, and the oldest expired ones if there are too many.
    pub(super) fn forget_expired(&mut self, now: Now) -> Result<(), JournalError> {
        let mut gone = Vec::new();
        while let Some(&(expires, name)) = self.remembered.first() {
            let is_full = self.remembered.len() + self.rows.len() >= REMEMBERED_MAX;
            let is_old = expires.plus(MEMORY) <= now.time;
            if !now.is_trusted || expires > now.time || !(is_old || is_full) {
                break;
            }
            self.remembered.pop_first();
            gone.push((format!("{ROWS}{name:024x}"), None));
        }
        if gone.is_empty() { Ok(()) } else { self.notes.write(gone) }
    }
}
