//! The invariant: what was acknowledged is in the journal, or in an account that was announced.

use super::world::{EventKey, World};
use crate::journal::{Journal, Lane, Loss, ReadResult};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the model knows of the journal from looking into it.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Up to where each lane was looked at since the start of the process.
    scanned: BTreeMap<String, u64>,
    /// What stands at each offset, as found since the start of the process.
    held: BTreeMap<(String, u64), EventKey>,
    /// Losses that were announced.
    losses: Vec<Loss>,
    /// `true` after a failing disk hid losses or dead letters: a missing event may be among these.
    is_unread: bool,
    /// A lane could not be read at the last look: the disk fails.
    is_lane_unread: bool,
    /// Events that were acknowledged while a lane could not be read. They may be repeats of events in it.
    unseen: Vec<EventKey>,
    /// Dead letters: destination and event.
    dead: BTreeSet<(String, EventKey)>,
}

impl Ledger {
    /// A process begins: everything is looked at again.
    pub fn forget(&mut self) {
        self.scanned.clear();
        self.held.clear();
    }

    /// Forgets the losses of a destination that was dropped: another may come under its name.
    pub fn forget_destination(&mut self, name: &str) {
        self.losses.retain(|loss| loss.destination != name);
        self.dead.retain(|(destination, _)| destination != name);
    }
}

impl World {
    /// Looks at what came to the logs, and at the losses.
    pub fn look(&mut self) {
        let Some(journal) = self.journal().cloned() else { return };
        let are_lanes_read: Vec<bool> = journal.lanes().iter().map(|lane| self.scan(&journal, lane)).collect();
        self.ledger.is_lane_unread = are_lanes_read.contains(&false);
        let are_letters_read = self.scan_dead(journal.dead());
        // A disk that fails keeps them for later.
        let losses = journal.losses();
        self.ledger.is_unread = losses.is_err() || !are_letters_read;
        for loss in losses.unwrap_or_default() {
            if journal.forget_loss(&loss).is_ok() {
                self.note(format_args!("announced: {} of {} to {}", loss.count, loss.lane, loss.destination));
            }
            self.ledger.losses.push(loss);
        }
    }

    /// `false` if a part of the lane could not be read.
    fn scan(&mut self, journal: &Journal, lane: &Arc<Lane>) -> bool {
        let mut next = self.ledger.scanned.get(&lane.name).copied().unwrap_or(1).max(lane.first());
        while next < lane.end() {
            match lane.read_at(next) {
                Ok(ReadResult::Block(block)) => {
                    for (offset, record) in (block.header.first..).zip(block.records()) {
                        let known = journal.published(record.publication);
                        let kind =
                            known.and_then(|known| Some(known.publication.stream.strip_prefix("m.")?.to_owned()));
                        let (Some(kind), Some(number)) = (kind, EventKey::number_in(record.payload)) else { continue };
                        let key = EventKey { kind, machine: record.key.to_owned(), number };
                        if let Some(event) = self.events.get_mut(&key) {
                            event.places.insert((lane.name.clone(), offset));
                        }
                        self.ledger.held.insert((lane.name.clone(), offset), key);
                    }
                    next = block.end().max(next + 1);
                }
                Ok(ReadResult::Lost { to }) => next = to.max(next + 1),
                Err(_) => break,
            }
        }
        self.ledger.scanned.insert(lane.name.clone(), next);
        next >= lane.end()
    }

    /// `false` if some letters could not be read.
    fn scan_dead(&mut self, dead: &Arc<Lane>) -> bool {
        let mut next = self.ledger.scanned.get(&dead.name).copied().unwrap_or(1).max(dead.first());
        while next < dead.end() {
            match dead.read_at(next) {
                Ok(ReadResult::Block(block)) => {
                    for record in block.records() {
                        let Some(split) = record.payload.iter().position(|byte| *byte == b'\n') else { continue };
                        let (head, payload) = record.payload.split_at(split);
                        let head: serde_json::Value = serde_json::from_slice(head).expect("a letter");
                        let kind = head["stream"].as_str().and_then(|stream| stream.strip_prefix("m."));
                        let (Some(kind), Some(number)) = (kind, EventKey::number_in(payload)) else { continue };
                        let key = EventKey {
                            kind: kind.to_owned(),
                            machine: head["key"].as_str().unwrap_or("").to_owned(),
                            number,
                        };
                        let to = head["destination"].as_str().unwrap_or("").to_owned();
                        self.ledger.dead.insert((to, key));
                    }
                    next = block.end().max(next + 1);
                }
                Ok(ReadResult::Lost { to }) => next = to.max(next + 1),
                Err(_) => break,
            }
        }
        self.ledger.scanned.insert(dead.name.clone(), next);
        next >= dead.end()
    }

    /// Events that were acknowledged just now are on disk.
    pub fn check_news(&mut self, news: &[EventKey]) -> Result<(), String> {
        if news.is_empty() && self.ledger.unseen.is_empty() {
            return Ok(());
        }
        self.look();
        let unseen = std::mem::take(&mut self.ledger.unseen);
        let (missing, found): (Vec<EventKey>, Vec<EventKey>) =
            unseen.into_iter().chain(news.iter().cloned()).partition(|key| self.events[key].places.is_empty());
        let is_hidden = self.ledger.is_lane_unread || self.journal().is_none();
        if let Some(key) = missing.first().filter(|_| !is_hidden) {
            return Err(format!("{key:?} was acknowledged, and is nowhere on disk"));
        }
        // They are looked for again once the disk can be read.
        self.ledger.unseen = missing;
        let Some(journal) = self.journal().cloned() else {
            self.ledger.unseen.extend(found);
            return Ok(());
        };
        for key in &found {
            let Some(event) = self.events.get_mut(key).filter(|event| !event.is_acknowledged) else { continue };
            event.is_acknowledged = true;
            // A destination that left the configuration before anything of a lane was owed to it is forgotten by the lane.
            let has_cursor = |name: &str| {
                let lanes = event.places.iter().filter_map(|(lane, _)| journal.lane(lane));
                lanes.into_iter().any(|lane| lane.settled(name).is_some())
            };
            let is_configured =
                |name: &str| self.plan.destinations.iter().any(|to| to.is_configured && to.name == name);
            let owed = event.owed.iter().flatten();
            let owed = owed.filter(|(name, _)| is_configured(name) || has_cursor(name)).cloned().collect();
            event.owed = Some(owed);
        }
        Ok(())
    }

    /// The whole invariant.
    pub fn check(&mut self) -> Result<(), String> {
        self.look();
        self.check_news(&[])?;
        let Some(journal) = self.journal().cloned() else { return Ok(()) };
        self.check_balance(&journal)?;
        if self.ledger.is_unread {
            // The gateway cannot read them either, and does so later. So does this check: every event stays in it.
            return Ok(());
        }
        for (key, event) in self.events.iter().filter(|(_, event)| event.is_acknowledged) {
            for (name, incarnation) in event.owed.iter().flatten() {
                let is_present =
                    self.plan.destinations.iter().any(|to| to.name == *name && to.incarnation == *incarnation);
                if is_present && !event.places.iter().any(|place| self.is_accounted(&journal, key, place, name)) {
                    let seen: Vec<String> =
                        event.places.iter().map(|place| self.describe(&journal, place, name)).collect();
                    return Err(format!(
                        "{key:?} was acknowledged, and is owed to {name}: neither delivered, queued, dead nor lost with an \
                         announcement; {}",
                        seen.join("; ")
                    ));
                }
            }
        }
        Ok(())
    }

    /// The whole invariant, with nothing left for later.
    pub fn check_to_the_end(&mut self) -> Result<(), String> {
        self.check()?;
        if self.ledger.is_lane_unread || !self.ledger.unseen.is_empty() {
            return Err("a lane cannot be read on a good disk".into());
        }
        if self.ledger.is_unread {
            return Err("losses or dead letters cannot be read on a good disk".into());
        }
        Ok(())
    }

    fn is_accounted(&self, journal: &Journal, key: &EventKey, place: &(String, u64), destination: &str) -> bool {
        let (lane, offset) = place;
        if self.centres.lock().expect("lock")[destination].lock().expect("lock").acknowledged.contains(key) {
            return true;
        }
        if self.ledger.dead.contains(&(destination.to_owned(), key.clone())) {
            return true;
        }
        let is_lost = |loss: &Loss| {
            loss.lane == *lane && loss.destination == destination && (loss.offsets.0..loss.offsets.1).contains(offset)
        };
        if self.ledger.losses.iter().any(is_lost) {
            return true;
        }
        let Some(lane) = journal.lane(lane) else { return false };
        // Where the disk fails a read, that part of the log is looked at later.
        let is_unseen = self.ledger.scanned.get(&lane.name).is_none_or(|scanned| *offset >= *scanned);
        let is_held = *offset >= lane.first() && (is_unseen || self.ledger.held.get(place) == Some(key));
        is_held && lane.settled(destination).is_some_and(|settled| !settled.contains(*offset))
    }

    fn describe(&self, journal: &Journal, place: &(String, u64), destination: &str) -> String {
        let Some(lane) = journal.lane(&place.0) else { return format!("lane {} is gone", place.0) };
        let settled = lane.settled(destination);
        format!(
            "at {} {}: lane from {} to {}, cursor {:?}, there now {:?}",
            place.0,
            place.1,
            lane.first(),
            lane.end(),
            settled.map(|settled| (settled.low, settled.ranges)),
            self.ledger.held.get(place)
        )
    }

    /// What each destination is owed is what it has settled and what is queued.
    fn check_balance(&self, journal: &Journal) -> Result<(), String> {
        for lane in journal.lanes() {
            for name in lane.destinations() {
                let (rows, queued) = lane.accounts(&name);
                let owed: u64 = rows.iter().map(|(_, _, owed)| owed).sum();
                let settled: u64 = rows.iter().map(|(_, account, _)| account.settled()).sum();
                if owed != settled + queued {
                    let accounts = super::world::describe_accounts(lane, &name);
                    return Err(format!("owed {owed}, settled {settled}, queued {queued}: {accounts}"));
                }
            }
        }
        Ok(())
    }
}
