//! The table of clients in memory: connection, session, unwritten changes, will and limits.
//!
//! Invariant: a session whose client is not connected and whose rows are written takes some hundred bytes here,
//! however much of it is on the disk.

use super::super::shared_subscription::GroupNote;
use super::rows::{self, GroupId, HeadContent, head_bytes};
use super::session::{Key, NoSession, Quotas, SessionRequest, Unanswered};
use crate::ingest::{Change, Waiter};
use crate::memory::Permit;
use crate::mqtt::connect::NEVER_EXPIRES;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The time that redeliveries of a client are recognised after its connection: as long as
/// most clients take to reconnect.
const REDELIVERY_FOR: Duration = Duration::from_secs(300);
/// Bytes of publishes that clients left without an acknowledgement: some 40,000 publishes. Beyond it the oldest are
/// forgotten; a redelivery of one of those is stored as another event.
const UNANSWERED_BYTES_MAX: usize = 4 << 20;

/// A listener that has not asked for due wills for this long is not configured any more: a
/// listener asks twice per second.
const LISTENER_GONE_AFTER: Duration = Duration::from_secs(60);

/// Seconds that the row of an ended session without a will is kept; 0 would be a session without a row.
const ENDED_EXPIRY: u32 = 1;

/// The connection slot of a client that is connected.
#[derive(Debug, Default)]
pub(super) struct ConnectionSlot {
    /// Notified when a newer connection takes over.
    pub(super) taken_over: Notify,
    pub(super) is_released: watch::Sender<bool>,
}

/// A session that outlives its connection.
#[derive(Debug)]
pub(super) struct StoredSession {
    pub(super) number: u64,
    pub(super) expiry: u32,
    pub(super) share: Arc<str>,
    /// Bytes that its rows count for in the limits.
    pub(super) bytes: u64,
    /// Of these, bytes of its will.
    pub(super) will_bytes: u64,
    pub(super) groups: Vec<GroupId>,
}

/// State of a session that is in memory because it is not on the disk yet, or because the client is connected.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pub(super) content: HeadContent,
    /// Changes of rows other than the head, in their order.
    pub(super) changes: Vec<Change>,
}

/// Publishes that a client left without an acknowledgement.
#[derive(Debug)]
pub(super) struct UnansweredPublishes {
    pub(super) publishes: Box<[Unanswered]>,
    /// Woken when those are on the disk.
    pub(super) waiter: Option<Waiter>,
    /// Covers the bytes of both.
    pub(super) permit: Option<Permit>,
}

/// The will of a client that is not connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WillState {
    #[default]
    None,
    /// It is due this long after the end of the connection.
    Pending(Duration),
    /// It is due and is being published.
    Publishing,
}

#[derive(Debug, Default)]
pub(super) struct ClientEntry {
    pub(super) slot: Option<Arc<ConnectionSlot>>,
    pub(super) left_at: Option<Instant>,
    pub(super) stored: Option<StoredSession>,
    pub(super) unwritten: Option<Box<Unwritten>>,
    pub(super) unanswered: Option<Box<UnansweredPublishes>>,
    pub(super) will: WillState,
}

/// The usage of one proven name, or of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    sessions: usize,
    bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) clients: HashMap<Key, ClientEntry>,
    pub(super) changed: BTreeSet<Key>,
    /// Removals of rows, in their order; they are written before all other changes.
    pub(super) removals: Vec<Change>,
    /// Positions of groups whose last connected member has left, until they are written.
    pub(super) ended_groups: HashMap<GroupId, Vec<u8>>,
    /// Number of persistent sessions of each shared subscription.
    pub(super) groups: HashMap<GroupId, u32>,
    /// Number of the newest requested write.
    pub(super) wanted: u64,
    pub(super) persistent: usize,
    pub(super) bytes: u64,
    pub(super) is_closing: bool,
    /// The moment at which each listener last asked for due wills.
    pub(super) listeners: HashMap<String, Instant>,
    shares: HashMap<Arc<str>, Share>,
    /// Clients that left publishes without an acknowledgement, the oldest first.
    left: VecDeque<(Key, Instant)>,
    left_bytes: usize,
}

fn unanswered_bytes(unanswered: &UnansweredPublishes) -> usize {
    size_of::<UnansweredPublishes>() + size_of_val(&*unanswered.publishes)
}

impl Table {
    /// Takes a client out of the table to change it. Returns the key that the table has, so that the key is allocated
    /// once however often the client reconnects.
    pub(super) fn take(&mut self, key: &Key) -> (Key, ClientEntry) {
        self.clients.remove_entry(key).unwrap_or_else(|| (key.clone(), ClientEntry::default()))
    }

    /// Adds a session to the usage of its party.
    pub(super) fn add_session(&mut self, key: &Key, number: u64, expiry: u32, share: &str) -> StoredSession {
        let share = self.shares.get_key_value(share).map_or_else(|| Arc::from(share), |(known, _)| Arc::clone(known));
        let mut stored =
            StoredSession { number, expiry, bytes: 0, will_bytes: 0, groups: Vec::new(), share: Arc::clone(&share) };
        let counted = usize::from(!key.is_of_ended());
        self.shares.entry(share).or_default().sessions += counted;
        self.persistent += counted;
        let bytes = head_bytes(key, &stored.share);
        self.charge(&mut stored, bytes.cast_signed());
        stored
    }

    /// Changes the bytes of a session, and the sums that it is part of.
    pub(super) fn charge(&mut self, stored: &mut StoredSession, bytes: i64) {
        let change = |total: &mut u64| *total = total.saturating_add_signed(bytes);
        change(&mut stored.bytes);
        change(&mut self.bytes);
        if let Some(share) = self.shares.get_mut(&stored.share) {
            change(&mut share.bytes);
        }
    }

    /// Gives back the bytes of a session's will.
    pub(super) fn release_will(&mut self, stored: &mut StoredSession) {
        let bytes = std::mem::take(&mut stored.will_bytes);
        self.charge(stored, -bytes.cast_signed());
    }

    /// Ends a session whose will is not published yet (MQTT 5, section 3.1.2.5: the will is published when the session
    /// ends, however long its delay is). The will moves to a key of its own, so that its client may have a new session.
    pub(super) fn end_before_will(&mut self, key: &Key, mut ended: ClientEntry) {
        let Some(mut stored) = ended.stored.take() else { return };
        let ended_key = Key::of_ended(key.source(), stored.number);
        self.uncount(&stored);
        for group in std::mem::take(&mut stored.groups) {
            self.leave_group(group);
        }
        let bytes = head_bytes(&ended_key, &stored.share) + stored.will_bytes;
        let more = bytes.cast_signed() - stored.bytes.cast_signed();
        self.charge(&mut stored, more);
        stored.expiry = ENDED_EXPIRY;
        self.removals.push(Change::Remove(rows::head_row(key)));
        self.removals.push(Change::RemoveAll(rows::subscription_rows(stored.number)));
        // Of what is not written yet, the will alone is left.
        let will = rows::will_row(stored.number);
        let mut unwritten = ended.unwritten.unwrap_or_default();
        unwritten.content = HeadContent::default();
        unwritten.changes.retain(|change| matches!(change, Change::Put(name, _) if *name == will));
        if let WillState::Pending(delay) = &mut ended.will {
            *delay = Duration::ZERO;
        }
        let entry = ClientEntry {
            slot: None,
            left_at: ended.left_at,
            stored: Some(stored),
            unwritten: Some(unwritten),
            unanswered: None,
            will: ended.will,
        };
        self.changed.insert(ended_key.clone());
        self.clients.insert(ended_key, entry);
    }

    /// Subtracts a session from the numbers of sessions.
    fn uncount(&mut self, stored: &StoredSession) {
        self.persistent -= 1;
        if let Some(share) = self.shares.get_mut(&stored.share) {
            share.sessions -= 1;
        }
    }

    /// Deletes a session; its rows are removed with the next write.
    pub(super) fn delete(&mut self, key: &Key, stored: StoredSession) {
        if !key.is_of_ended() {
            self.uncount(&stored);
        }
        self.bytes -= stored.bytes.min(self.bytes);
        if let Some(share) = self.shares.get_mut(&stored.share) {
            share.bytes -= stored.bytes.min(share.bytes);
            if share.sessions == 0 && share.bytes == 0 {
                self.shares.remove(&stored.share);
            }
        }
        self.removals.push(Change::Remove(rows::head_row(key)));
        self.removals.push(Change::RemoveAll(rows::subscription_rows(stored.number)));
        self.removals.push(Change::Remove(rows::will_row(stored.number)));
        for group in stored.groups {
            self.leave_group(group);
        }
    }

    /// Counts a persistent session of a shared subscription.
    pub(super) fn join_group(&mut self, group: GroupId) {
        *self.groups.entry(group).or_default() += 1;
    }

    /// Counts one persistent session less; without any the stored position is removed.
    pub(super) fn leave_group(&mut self, group: GroupId) {
        let Some(count) = self.groups.get_mut(&group) else { return };
        *count -= 1;
        if *count == 0 {
            self.groups.remove(&group);
            self.ended_groups.remove(&group);
            self.removals.push(Change::Remove(group.row()));
        }
    }

    /// Keeps the positions of groups whose last connected member may leave until they are written.
    pub(super) fn keep_groups(&mut self, source: &str, notes: Vec<(String, GroupNote)>) {
        for (filter, note) in notes {
            if let Some(id) = GroupId::of(source, &filter).filter(|id| self.groups.contains_key(id)) {
                self.ended_groups.insert(id, note.encode());
            }
        }
    }

    /// Checks the request of a client against the limits; `before` is its earlier session.
    pub(super) fn check_limits(
        &self,
        key: &Key,
        request: &SessionRequest<'_>,
        before: Option<&StoredSession>,
    ) -> Result<(), NoSession> {
        let is_kept = before.is_some() && !request.is_clean;
        let (freed, freed_bytes) = match before {
            Some(stored) if is_kept => (0, stored.will_bytes),
            // A will that waits stays until it is published.
            Some(stored) if stored.will_bytes > 0 => {
                (1, stored.bytes.saturating_sub(stored.will_bytes + head_bytes(key, &stored.share)))
            }
            Some(stored) => (1, stored.bytes),
            None => (0, 0),
        };
        if request.expiry == 0 {
            return Ok(());
        }
        let new_bytes = if is_kept { 0 } else { head_bytes(key, request.share) };
        if !is_kept {
            let share = self.shares.get(request.share).copied().unwrap_or_default();
            if self.persistent - freed >= request.quotas.sessions {
                return Err(NoSession::TooMany("there are too many sessions; see sessions_max"));
            }
            if share.sessions - freed.min(share.sessions) >= request.quotas.sessions_of_name {
                return Err(NoSession::TooMany("this client's name has too many sessions; see sessions_per_name_max"));
            }
        }
        if new_bytes + request.will_bytes == 0 {
            return Ok(());
        }
        let more = (new_bytes + request.will_bytes).cast_signed() - freed_bytes.cast_signed();
        if self.has_bytes(request.share, more, request.quotas) {
            Ok(())
        } else {
            Err(NoSession::TooMany(
                "the sessions take too many bytes; see sessions_bytes_max and sessions_bytes_per_name_max",
            ))
        }
    }

    /// Returns whether the limits allow `more` bytes for a party.
    pub(super) fn has_bytes(&self, share: &str, more: i64, quotas: Quotas) -> bool {
        let of_share = self.shares.get(share).map_or(0, |share| share.bytes);
        self.bytes.saturating_add_signed(more) <= quotas.bytes
            && of_share.saturating_add_signed(more) <= quotas.bytes_of_name
    }

    /// Keeps the publishes that a client left without an acknowledgement.
    pub(super) fn keep_unanswered(
        &mut self,
        key: &Key,
        entry: &mut ClientEntry,
        unanswered: UnansweredPublishes,
        now: Instant,
    ) {
        self.left_bytes += unanswered_bytes(&unanswered);
        entry.unanswered = Some(Box::new(unanswered));
        self.left.push_back((key.clone(), now));
    }

    /// Takes the publishes that a client left without an acknowledgement.
    pub(super) fn take_unanswered(&mut self, entry: &mut ClientEntry) -> Option<UnansweredPublishes> {
        let unanswered = *entry.unanswered.take()?;
        self.left_bytes -= unanswered_bytes(&unanswered).min(self.left_bytes);
        Some(unanswered)
    }

    /// Drops the oldest of these publishes: those beyond the limit, and those that are too old.
    pub(super) fn trim_unanswered(&mut self, now: Instant) {
        while let Some((key, left_at)) = self.left.front() {
            let is_old = now.duration_since(*left_at) >= REDELIVERY_FOR;
            if !is_old && self.left_bytes <= UNANSWERED_BYTES_MAX {
                return;
            }
            let (key, left_at) = (key.clone(), *left_at);
            self.left.pop_front();
            let Some(mut entry) = self.clients.remove(&key) else { continue };
            if entry.left_at == Some(left_at) && entry.slot.is_none() {
                self.take_unanswered(&mut entry);
            }
            if entry.slot.is_some() || entry.stored.is_some() || entry.unanswered.is_some() {
                self.clients.insert(key, entry);
            }
        }
    }

    /// Returns the sessions that have expired. A session with an unpublished will stays while there
    /// is a listener for it.
    pub(super) fn expired(&self, now: Instant) -> Vec<Key> {
        let has_listener = |key: &Key| {
            let asked_at = self.listeners.get(key.source());
            asked_at.is_some_and(|at| now.duration_since(*at) < LISTENER_GONE_AFTER)
        };
        let is_over = |key: &Key, entry: &ClientEntry| {
            let (Some(stored), Some(left_at)) = (&entry.stored, entry.left_at) else { return false };
            let expiry = Duration::from_secs(stored.expiry.into());
            let is_over = stored.expiry != NEVER_EXPIRES && now.duration_since(left_at) >= expiry;
            entry.slot.is_none() && is_over && (entry.will == WillState::None || !has_listener(key))
        };
        self.clients.iter().filter(|(key, entry)| is_over(key, entry)).map(|(key, _)| key.clone()).collect()
    }
}
