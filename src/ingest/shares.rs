//! Shares: no single publisher can use up the budget of a lane, or of the dead letters.
//!
//! Promise: while destinations still need more than half of a lane's budget, a party must wait once it holds
//! [`TIMES_FREE`] times the free space. A publisher without limit stops at five sixths, and others continue. No event
//! is lost: the source submits a rejected event again.
//! Invariants:
//! - a lane that sheds its oldest events when it is full slows nobody;
//! - memory is bounded: [`ENTRIES_MAX`] entries per lane; above that, counts are coarser;
//! - counts start at zero on every start: older bytes in a log belong to no party. Nothing is counted while less than
//!   an eighth of the budget is used, where counting would only cost time per event.
//!
//! A party is an authenticated name at a source, or an anonymous client there.
//!
//! Dead letters stay for weeks, so waiting for room could take forever. A party may fill a quarter of their budget at
//! once and another quarter in [`DEAD_PERIOD`]. Above that it gets free space, and then the space of its own oldest
//! letters. If its next letter would displace letters of others, it waits.

use crate::clock;
use crate::journal::{Full, Lane};
use crate::rate::Rates;
use crate::setting::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// Factor of the free space that one party may hold. It is large because a plant may have a single publisher for
/// everything, which loses a sixth of the budget. Each further such publisher leaves a ninth of the rest.
const TIMES_FREE: u64 = 8;
/// Slice of the budget that no party gets, one segment: a start or a disk failure begins a new segment.
const RESERVED_PART: u64 = 16;
/// Slice of the budget up to which a party never has to wait for a share: 1 MB of a gigabyte.
const SMALL_PART: u64 = 1024;
/// Maximum size of an event on disk, as a multiple of its own bytes: a small event alone in a commit takes a page.
const DISK_TIMES_MAX: u64 = 64;
/// Maximum number of entries in all slices of a lane's tally; about 50 bytes each.
const ENTRIES_MAX: usize = 8192;
/// Number of slices of a lane's tally: settled bytes are removed a slice at a time.
const SLICES: u64 = 64;
/// Slice of the budget below which nothing is counted.
const UNCOUNTED_PART: u64 = 8;
/// Slice of the budget that is accepted without another check: times [`DISK_TIMES_MAX`] it is an eighth of the budget,
/// so counting begins before a quarter is used.
const UNCHECKED_PART: u64 = 512;
/// Interval at which the load of a lane is read, which takes its lock.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the status names a slowed-down party.
const NAMED_FOR: Duration = Duration::from_secs(60);
/// Refill period for a quarter of the dead letters' budget. A party displaces no letters of others for at least three
/// periods, which is time to inspect them.
const DEAD_PERIOD: Duration = Duration::from_secs(7 * 86_400);
/// Approximate overhead of a letter, in bytes.
const LETTER_BYTES: u64 = 512;

/// Keyed hash of source and name. The random key prevents chosen collisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PartyId(u64);

/// Maximum event rate per party of a source. Faster parties are slowed down and lose nothing.
#[derive(Debug)]
pub struct Pace(Rates<PartyId>);

impl Pace {
    /// Allows `per_second` events per second, with a burst of one second.
    pub fn new(per_second: u32) -> Self {
        Self(Rates::new(per_second.into(), Duration::from_secs(1)))
    }

    /// Time that a party must wait.
    pub(super) fn wait(&self, party: PartyId) -> Duration {
        self.0.check(&party, clock::instant()).err().unwrap_or_default()
    }

    pub(super) fn charge(&self, party: PartyId) {
        self.0.charge(&party, 1, clock::instant());
    }
}

/// Bytes that the parties hold in each lane, with the dead letters last.
#[derive(Debug)]
pub(super) struct Shares {
    lanes: Vec<LaneShares>,
    dead: Mutex<Option<DeadShares>>,
    slowed: Mutex<VecDeque<SlowedParty>>,
    names: RandomState,
}

#[derive(Debug, Default)]
struct LaneShares {
    /// Bytes that may still be submitted before the load must be read; until then nothing is counted.
    uncounted: AtomicI64,
    tally: Mutex<Tally>,
}

/// A party that was slowed down recently.
#[derive(Debug)]
struct SlowedParty {
    at: Instant,
    lane: usize,
    party: PartyId,
    name: String,
}

#[derive(Debug)]
struct DeadShares {
    budget: u64,
    bytes: Rates<PartyId>,
}

/// Unsettled bytes of a lane by party, the newest slice last.
#[derive(Debug, Default)]
struct Tally {
    slices: VecDeque<Slice>,
    held: HashMap<PartyId, u64>,
    events: u64,
    bytes: u64,
    load: Load,
    checked_at: Option<Instant>,
    /// Bytes submitted since `checked_at`.
    unchecked: u64,
}

#[derive(Debug, Default)]
struct Slice {
    held: HashMap<PartyId, u64>,
    events: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Budget of the lane, in bytes.
    pub budget: u64,
    /// Bytes of segments with events that a destination still needs.
    pub needed: u64,
    /// Number of events that a destination still needs.
    pub queued: u64,
}

impl Load {
    fn free(&self) -> u64 {
        self.budget.saturating_sub(self.needed).saturating_sub(self.budget / RESERVED_PART)
    }
}

impl Tally {
    /// Updates the load and removes settled slices.
    fn update(&mut self, load: Load) {
        self.load = load;
        self.unchecked = 0;
        while let Some(oldest) = self.slices.front()
            && self.events - oldest.events >= load.queued
        {
            self.remove_oldest();
        }
    }

    /// Returns the number of bytes that need no counting, and clears the tally; `None` while the lane fills up.
    fn uncounted(&mut self) -> Option<u64> {
        let load = self.current();
        if load.needed >= load.budget / UNCOUNTED_PART {
            return None;
        }
        *self = Self { load, ..Self::default() };
        Some(load.budget / UNCHECKED_PART)
    }

    fn remove_oldest(&mut self) {
        let Some(oldest) = self.slices.pop_front() else { return };
        self.events -= oldest.events;
        self.bytes -= oldest.bytes;
        for (party, bytes) in oldest.held {
            if let Some(held) = self.held.get_mut(&party) {
                *held = held.saturating_sub(bytes);
                if *held == 0 {
                    self.held.remove(&party);
                }
            }
        }
    }

    /// Load of the lane, assuming that all bytes submitted since the last check are on disk uncompressed.
    fn current(&self) -> Load {
        Load { needed: self.load.needed + self.unchecked, ..self.load }
    }

    /// Approximate number of bytes that a party holds in the log.
    fn held_by(&self, party: PartyId) -> u64 {
        let held = self.held.get(&party).copied().unwrap_or(0);
        if held == 0 || self.load.queued == 0 {
            return 0;
        }
        // Bytes from before the start belong to no party.
        let counted = (self.events as f64 / self.load.queued as f64).min(1.0);
        let share = self.current().needed as f64 * counted * (held as f64 / self.bytes.max(1) as f64);
        (share as u64).min(held.saturating_mul(DISK_TIMES_MAX))
    }

    /// Whether the oldest `events` all belong to a party.
    fn oldest_are_of(&self, party: PartyId, events: u64) -> bool {
        if self.events < self.load.queued {
            return false;
        }
        let mut left = events;
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            if slice.held.get(&party).copied().unwrap_or(0) < slice.bytes {
                return false;
            }
            left = left.saturating_sub(slice.events);
        }
        true
    }

    fn has_share(&self, party: PartyId) -> bool {
        let load = self.current();
        let is_tight = load.needed > load.budget / 2;
        !is_tight || self.held_by(party) <= (load.free() * TIMES_FREE).max(load.budget / SMALL_PART)
    }

    fn add(&mut self, party: PartyId, bytes: u64) {
        let is_full = self.slices.back().is_none_or(|slice| slice.bytes >= (self.load.budget / SLICES).max(64 << 10));
        if is_full {
            let entries: usize = self.slices.iter().map(|slice| slice.held.len()).sum();
            if entries >= ENTRIES_MAX {
                self.merge_oldest();
            }
            self.slices.push_back(Slice::default());
        }
        let Some(slice) = self.slices.back_mut() else { return };
        self.unchecked += bytes;
        slice.events += 1;
        slice.bytes += bytes;
        self.events += 1;
        self.bytes += bytes;
        // Above the bound, a new party only counts in the total and gets no entry: it has its share.
        if self.held.len() < ENTRIES_MAX || self.held.contains_key(&party) {
            *slice.held.entry(party).or_default() += bytes;
            *self.held.entry(party).or_default() += bytes;
        }
    }

    fn merge_oldest(&mut self) {
        let Some(oldest) = self.slices.pop_front() else { return };
        let Some(next) = self.slices.front_mut() else { return self.slices.push_front(oldest) };
        next.events += oldest.events;
        next.bytes += oldest.bytes;
        for (party, bytes) in oldest.held {
            *next.held.entry(party).or_default() += bytes;
        }
    }
}

impl Shares {
    pub(super) fn new(lanes: usize) -> Self {
        let lanes = (0..=lanes).map(|_| LaneShares::default()).collect();
        Self { lanes, dead: Mutex::default(), slowed: Mutex::default(), names: RandomState::new() }
    }

    /// Returns the party of a name at a source.
    pub(super) fn party(&self, source: &str, name: &str) -> PartyId {
        PartyId(self.names.hash_one((source, name)))
    }

    fn tally(&self, index: usize, lane: &Lane, now: Instant) -> Option<MutexGuard<'_, Tally>> {
        let mut tally = self.lanes.get(index)?.tally.lock();
        if tally.checked_at.is_none_or(|at| now.duration_since(at) >= CHECK_INTERVAL) {
            tally.checked_at = Some(now);
            let (needed, budget, queued) = lane.load();
            tally.update(Load { budget, needed, queued });
        }
        Some(tally)
    }

    /// Whether a party may submit another event to a lane.
    pub(super) fn has_share(&self, index: usize, lane: &Lane, party: PartyId) -> bool {
        let Some(LaneShares { uncounted, .. }) = self.lanes.get(index) else { return true };
        if uncounted.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let Some(mut tally) = self.tally(index, lane, clock::instant()) else { return true };
        if let Some(bytes) = tally.uncounted() {
            uncounted.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
            return true;
        }
        let has_share = tally.has_share(party);
        drop(tally);
        has_share || lane.full() == Full::ShedOldest
    }

    /// Counts bytes that a party submitted to a lane.
    pub(super) fn add(&self, index: usize, party: PartyId, bytes: usize) {
        let Some(LaneShares { uncounted, tally }) = self.lanes.get(index) else { return };
        if uncounted.load(Ordering::Relaxed) > 0 {
            uncounted.fetch_sub(bytes as i64, Ordering::Relaxed);
            return;
        }
        tally.lock().add(party, bytes as u64);
    }

    /// Whether a party may add another dead letter.
    pub(super) fn has_dead_share(&self, lane: &Lane, party: PartyId) -> bool {
        let now = clock::instant();
        if self.dead(lane, |bytes| bytes.check(&party, now).is_ok()) {
            return true;
        }
        let Some(tally) = self.tally(self.lanes.len() - 1, lane, now) else { return true };
        let load = tally.current();
        // The journal removes the oldest segment when the budget is used up.
        let is_tight = load.needed > load.budget - load.budget / 8;
        !is_tight || tally.oldest_are_of(party, lane.oldest_events())
    }

    /// Counts a dead letter of a party.
    pub(super) fn add_dead(&self, lane: &Lane, party: PartyId, bytes: usize) {
        self.dead(lane, |rates| rates.charge(&party, bytes as u64 + LETTER_BYTES, clock::instant()));
        self.add(self.lanes.len() - 1, party, bytes + LETTER_BYTES as usize);
    }

    fn dead<T>(&self, lane: &Lane, then: impl FnOnce(&Rates<PartyId>) -> T) -> T {
        let mut dead = self.dead.lock();
        let budget = lane.budget();
        let dead = match &mut *dead {
            Some(dead) if dead.budget == budget => dead,
            other => {
                let per_second = budget as f64 / 4.0 / DEAD_PERIOD.as_secs_f64();
                other.insert(DeadShares { budget, bytes: Rates::new(per_second, DEAD_PERIOD) })
            }
        };
        then(&dead.bytes)
    }

    /// Records that a party is slowed down; `true` if it was not recorded yet.
    pub(super) fn note_slowed(&self, lane: usize, party: PartyId, name: &str) -> bool {
        // As many names as a person reads.
        const NAMED_MAX: usize = 8;
        let now = clock::instant();
        let mut slowed = self.slowed.lock();
        slowed.retain(|one| now.duration_since(one.at) < NAMED_FOR);
        if let Some(known) = slowed.iter_mut().find(|one| one.lane == lane && one.party == party) {
            known.at = now;
            return false;
        }
        if slowed.len() >= NAMED_MAX {
            slowed.pop_front();
        }
        slowed.push_back(SlowedParty { at: now, lane, party, name: name.to_owned() });
        true
    }

    /// Reason why parties of a lane are slowed down now, with their names; `None` if none is.
    pub(super) fn slowed(&self, index: usize, lane: &Lane) -> Option<String> {
        let now = clock::instant();
        let parties: Vec<(PartyId, String)> = {
            let slowed = self.slowed.lock();
            let recent = slowed.iter().filter(|one| one.lane == index && now.duration_since(one.at) < NAMED_FOR);
            recent.map(|one| (one.party, one.name.clone())).collect()
        };
        let is_dead = index + 1 == self.lanes.len();
        let is_slowed = |party| match is_dead {
            true => !self.has_dead_share(lane, party),
            false => !self.has_share(index, lane, party),
        };
        let named = parties.into_iter().filter(|(party, _)| is_slowed(*party));
        let named: Vec<_> = named.map(|(party, name)| self.named(index, lane, party, &name)).collect();
        (!named.is_empty()).then(|| self.explain(is_dead, lane, &named.join(", ")))
    }

    /// Reason why one party is slowed down.
    pub(super) fn why(&self, index: usize, lane: &Lane, party: PartyId, name: &str) -> String {
        self.explain(index + 1 == self.lanes.len(), lane, &self.named(index, lane, party, name))
    }

    fn named(&self, index: usize, lane: &Lane, party: PartyId, name: &str) -> String {
        let held = self.tally(index, lane, clock::instant()).map_or(0, |tally| tally.held_by(party));
        format!("\"{name}\" ({})", Bytes(held))
    }

    fn explain(&self, is_dead: bool, lane: &Lane, named: &str) -> String {
        let (needed, budget, _) = lane.load();
        let free = Bytes(budget.saturating_sub(needed));
        let budget = Bytes(budget);
        match is_dead {
            true => format!(
                "further dead letters of {named} must wait, since they would displace dead letters of others from the budget of {budget}; see `forebay dead list`, repair the device or the contract, or raise budget in [dead]"
            ),
            false => format!(
                "the budget of {budget} is used up by events that central has not acknowledged, mostly of {named}, which must wait; {free} are free for others"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// Submits events until the share is used up, with half of their bytes on disk; returns the number of those bytes.
    fn fill(tally: &mut Tally, party: PartyId, budget: u64) -> u64 {
        let mut taken = 0;
        loop {
            let (needed, queued) = (tally.bytes / 2, tally.events);
            tally.update(Load { budget, needed, queued });
            if !tally.has_share(party) || needed >= budget {
                return taken;
            }
            tally.add(party, 10_000);
            taken += 5_000;
        }
    }

    #[test]
    fn one_without_end_leaves_a_sixth_and_the_next_one_a_ninth_of_that() {
        let mut tally = Tally::default();
        let first = fill(&mut tally, PartyId(1), 90 * MB);
        assert!((74 * MB..=76 * MB).contains(&first), "{first}");
        assert!(tally.has_share(PartyId(2)));
        let second = fill(&mut tally, PartyId(2), 90 * MB);
        assert!((8 * MB..=9 * MB).contains(&second), "{second}");
        assert!(tally.has_share(PartyId(3)) && !tally.has_share(PartyId(1)) && !tally.has_share(PartyId(2)));
    }

    #[test]
    fn what_is_settled_is_forgotten_and_what_was_there_before_is_nobodys() {
        let mut tally = Tally::default();
        fill(&mut tally, PartyId(1), 90 * MB);
        let queued = tally.events / 4;
        tally.update(Load { budget: 90 * MB, needed: 20 * MB, queued });
        assert!(tally.has_share(PartyId(1)));
        assert!(tally.events < queued + queued / 4, "{} of {queued}", tally.events);
        tally.update(Load { budget: 90 * MB, needed: 0, queued: 0 });
        assert!(tally.held.is_empty() && tally.slices.is_empty() && tally.bytes == 0);
        // After a start with a nearly full log, a small party is not slowed down.
        tally.update(Load { budget: 90 * MB, needed: 88 * MB, queued: 100_000 });
        (0..50).for_each(|_| tally.add(PartyId(1), 1000));
        tally.update(Load { budget: 90 * MB, needed: 88 * MB, queued: 100_050 });
        assert!(tally.has_share(PartyId(1)));
    }

    #[test]
    fn nothing_is_counted_while_the_lane_is_nearly_empty_and_counting_begins_before_a_quarter() {
        let mut tally = Tally::default();
        tally.update(Load { budget: 512 * MB, needed: 0, queued: 0 });
        (0..50).for_each(|_| tally.add(PartyId(1), 1000));
        assert_eq!(tally.uncounted(), Some(MB));
        assert!(tally.held.is_empty() && tally.slices.is_empty() && tally.bytes == 0 && tally.checked_at.is_none());
        tally.update(Load { budget: 512 * MB, needed: 64 * MB - 1, queued: 200_000 });
        let worst = tally.uncounted().map(|bytes| 64 * MB + bytes * DISK_TIMES_MAX);
        assert_eq!(worst, Some(128 * MB), "a quarter");
        tally.update(Load { budget: 512 * MB, needed: 64 * MB, queued: 200_000 });
        assert_eq!(tally.uncounted(), None);
    }

    #[test]
    fn one_that_fills_a_lane_from_the_beginning_still_leaves_a_seventh() {
        let (budget, mut needed, mut queued, mut left) = (512 * MB, 0, 0, 0);
        let mut tally = Tally::default();
        tally.update(Load { budget, needed, queued });
        loop {
            (needed, queued) = (needed + 10_000, queued + 1);
            if left > 10_000 {
                left -= 10_000;
                continue;
            }
            tally.update(Load { budget, needed, queued });
            left = tally.uncounted().unwrap_or(0);
            if left == 0 && !tally.has_share(PartyId(1)) {
                break;
            }
            tally.add(PartyId(1), 10_000);
        }
        assert!((budget - needed) > budget / 7, "{} of {budget} are left", budget - needed);
        assert!(tally.has_share(PartyId(2)));
    }

    #[test]
    fn parties_without_end_take_no_memory_without_end() {
        let mut tally = Tally::default();
        tally.update(Load { budget: 64 * MB, needed: 0, queued: u64::MAX });
        for number in 0..20 * ENTRIES_MAX as u64 {
            tally.add(PartyId(number), 600);
        }
        let entries: usize = tally.slices.iter().map(|slice| slice.held.len()).sum();
        assert!(entries <= 2 * ENTRIES_MAX && tally.held.len() <= ENTRIES_MAX, "{entries} {}", tally.held.len());
    }
}
