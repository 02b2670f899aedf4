//! Shares: no publisher alone uses up what a lane's log, or that of the dead letters, may take.
//!
//! Promise: while more than half of a lane's budget is used by what a destination still needs, a party gets nothing more
//! once it holds [`TIMES_FREE`] times what is still free: one that publishes without end stops at five sixths, and the
//! others go on. Nothing is lost: what finds no room is handed in again by its source.
//! Invariants:
//! - a lane that gives up its oldest events when it is full slows nobody;
//! - what is remembered is bounded: [`ENTRIES_MAX`] for each lane; beyond it what parties hold is known more coarsely;
//! - counting begins at zero with each start: what was in a log before belongs to nobody. Nor is anything counted while
//!   less than an eighth of the budget is used: it would cost each event time, and matters to nobody.
//!
//! A party is a proven name at a source, or a client there that has proven none.
//!
//! Dead letters stay for weeks, so that waiting for room could be for ever: a party may fill a quarter of their budget at
//! once and another quarter in [`DEAD_PERIOD`]. Beyond that it gets what is free, and then room that its own oldest
//! letters leave; where those of others would leave for its next one, it waits.

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

/// How many times what is free one party may hold. Large, since a plant may have one publisher that hands in for all:
/// it loses a sixth of the budget. Each further one of its kind leaves a ninth of what was left.
const TIMES_FREE: u64 = 8;
/// A segment's worth of the budget is nobody's: a start, or a disk that failed, begins a new one.
const SEGMENTS: u64 = 16;
/// Whoever holds so small a part of the budget goes on until there is no room at all: 1 MB of a gigabyte.
const SMALL: u64 = 1024;
/// What an event takes on the disk at most, in times of its own bytes: a small one alone in a commit takes a page.
const DISK_TIMES_MAX: u64 = 64;
/// Parties in all parts of a lane's tally; some 50 bytes each.
const ENTRIES_MAX: usize = 8192;
/// A lane's tally has so many parts: what is settled is forgotten a part at a time.
const PARTS: u64 = 64;
/// While a destination needs less than this part of the budget, nothing is counted.
const CALM: u64 = 8;
/// And for so small a part of the budget nobody looks again: times [`DISK_TIMES_MAX`] it is an eighth of the budget, so
/// that counting begins before a quarter is used.
const CALM_BYTES: u64 = 512;
/// How the lane stands is looked at that often: looking takes its lock.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a party that was slowed down is named in the status.
const NAMED_FOR: Duration = Duration::from_secs(60);
/// A party's letters leave others' alone for at least three of these, which is time to look at them.
const DEAD_PERIOD: Duration = Duration::from_secs(7 * 86_400);
/// What a letter takes beside its payload, about.
const LETTER_BYTES: u64 = 512;

/// Who hands in, as a number that stands for source and name; nobody can choose a name that shares another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Party(u64);

/// How many events a second each party of a source may hand in; whoever is quicker is slowed down, and loses nothing.
#[derive(Debug)]
pub struct Pace(Rates<Party>);

impl Pace {
    /// So many events a second, and a second's worth of them at once.
    pub fn new(per_second: u32) -> Self {
        Self(Rates::new(per_second.into(), Duration::from_secs(1)))
    }

    /// How long a party has to wait.
    pub(super) fn wait(&self, party: Party) -> Duration {
        self.0.check(&party, clock::instant()).err().unwrap_or_default()
    }

    pub(super) fn charge(&self, party: Party) {
        self.0.charge(&party, 1, clock::instant());
    }
}

/// What the parties hold of each lane, and of the dead letters behind them.
#[derive(Debug)]
pub(super) struct Shares {
    lanes: Vec<LaneShares>,
    dead: Mutex<Option<DeadShares>>,
    slowed: Mutex<VecDeque<Slowed>>,
    names: RandomState,
}

#[derive(Debug, Default)]
struct LaneShares {
    /// Bytes that may still be handed in before somebody has to look how the lane stands; nothing is counted until then.
    calm: AtomicI64,
    tally: Mutex<Tally>,
}

/// A party that was slowed down.
#[derive(Debug)]
struct Slowed {
    at: Instant,
    lane: usize,
    party: Party,
    name: String,
}

#[derive(Debug)]
struct DeadShares {
    budget: u64,
    bytes: Rates<Party>,
}

/// What the parties have handed in of what a lane still needs, newest part last.
#[derive(Debug, Default)]
struct Tally {
    parts: VecDeque<Part>,
    held: HashMap<Party, u64>,
    events: u64,
    bytes: u64,
    load: Load,
    looked_at: Option<Instant>,
    /// Bytes handed in since then.
    fresh: u64,
}

#[derive(Debug, Default)]
struct Part {
    held: HashMap<Party, u64>,
    events: u64,
    bytes: u64,
}

/// How a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes that its log may take.
    pub budget: u64,
    /// Bytes of the segments that a destination still needs.
    pub needed: u64,
    /// Events that a destination still needs.
    pub queued: u64,
}

impl Load {
    fn free(&self) -> u64 {
        self.budget.saturating_sub(self.needed).saturating_sub(self.budget / SEGMENTS)
    }
}

impl Tally {
    /// Forgets what is settled by now.
    fn look(&mut self, load: Load) {
        self.load = load;
        self.fresh = 0;
        while let Some(oldest) = self.parts.front()
            && self.events - oldest.events >= load.queued
        {
            self.forget_oldest();
        }
    }

    /// For how many bytes nothing has to be counted, and forgets what was; `None` while the lane fills up.
    fn calm(&mut self) -> Option<u64> {
        let load = self.now();
        if load.needed >= load.budget / CALM {
            return None;
        }
        *self = Self { load, ..Self::default() };
        Some(load.budget / CALM_BYTES)
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.parts.pop_front() else { return };
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

    /// How the lane stands when what was handed in since the last look is on the disk, as it came.
    fn now(&self) -> Load {
        Load { needed: self.load.needed + self.fresh, ..self.load }
    }

    /// About how many bytes of the log a party holds.
    fn held_by(&self, party: Party) -> u64 {
        let held = self.held.get(&party).copied().unwrap_or(0);
        if held == 0 || self.load.queued == 0 {
            return 0;
        }
        // What was there before the start is nobody's.
        let counted = (self.events as f64 / self.load.queued as f64).min(1.0);
        let share = self.now().needed as f64 * counted * (held as f64 / self.bytes.max(1) as f64);
        (share as u64).min(held.saturating_mul(DISK_TIMES_MAX))
    }

    /// Whether the oldest `events` are a party's own.
    fn oldest_are_of(&self, party: Party, events: u64) -> bool {
        if self.events < self.load.queued {
            return false;
        }
        let mut left = events;
        for part in &self.parts {
            if left == 0 {
                break;
            }
            if part.held.get(&party).copied().unwrap_or(0) < part.bytes {
                return false;
            }
            left = left.saturating_sub(part.events);
        }
        true
    }

    fn has_share(&self, party: Party) -> bool {
        let load = self.now();
        let is_tight = load.needed > load.budget / 2;
        !is_tight || self.held_by(party) <= (load.free() * TIMES_FREE).max(load.budget / SMALL)
    }

    fn add(&mut self, party: Party, bytes: u64) {
        let is_full = self.parts.back().is_none_or(|part| part.bytes >= (self.load.budget / PARTS).max(64 << 10));
        if is_full {
            let entries: usize = self.parts.iter().map(|part| part.held.len()).sum();
            if entries >= ENTRIES_MAX {
                self.join_oldest();
            }
            self.parts.push_back(Part::default());
        }
        let Some(part) = self.parts.back_mut() else { return };
        self.fresh += bytes;
        part.events += 1;
        part.bytes += bytes;
        self.events += 1;
        self.bytes += bytes;
        // Beyond the bound a newcomer is counted in the whole, and has no row of its own: it has its share.
        if self.held.len() < ENTRIES_MAX || self.held.contains_key(&party) {
            *part.held.entry(party).or_default() += bytes;
            *self.held.entry(party).or_default() += bytes;
        }
    }

    fn join_oldest(&mut self) {
        let Some(oldest) = self.parts.pop_front() else { return };
        let Some(next) = self.parts.front_mut() else { return self.parts.push_front(oldest) };
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

    /// The party of a name at a source.
    pub(super) fn party(&self, source: &str, name: &str) -> Party {
        Party(self.names.hash_one((source, name)))
    }

    fn tally(&self, index: usize, lane: &Lane, now: Instant) -> Option<MutexGuard<'_, Tally>> {
        let mut tally = self.lanes.get(index)?.tally.lock();
        if tally.looked_at.is_none_or(|at| now.duration_since(at) >= LOOK_EVERY) {
            tally.looked_at = Some(now);
            let (needed, budget, queued) = lane.load();
            tally.look(Load { budget, needed, queued });
        }
        Some(tally)
    }

    /// Whether a party may hand in more for a lane.
    pub(super) fn has_share(&self, index: usize, lane: &Lane, party: Party) -> bool {
        let Some(LaneShares { calm, .. }) = self.lanes.get(index) else { return true };
        if calm.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let Some(mut tally) = self.tally(index, lane, clock::instant()) else { return true };
        if let Some(bytes) = tally.calm() {
            calm.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
            return true;
        }
        let has_share = tally.has_share(party);
        drop(tally);
        has_share || lane.full() == Full::ShedOldest
    }

    /// Notes what a party has handed in for a lane.
    pub(super) fn add(&self, index: usize, party: Party, bytes: usize) {
        let Some(LaneShares { calm, tally }) = self.lanes.get(index) else { return };
        if calm.load(Ordering::Relaxed) > 0 {
            calm.fetch_sub(bytes as i64, Ordering::Relaxed);
            return;
        }
        tally.lock().add(party, bytes as u64);
    }

    /// Whether a party may have another dead letter.
    pub(super) fn has_dead_share(&self, lane: &Lane, party: Party) -> bool {
        let now = clock::instant();
        if self.dead(lane, |bytes| bytes.check(&party, now).is_ok()) {
            return true;
        }
        let Some(tally) = self.tally(self.lanes.len() - 1, lane, now) else { return true };
        let load = tally.now();
        // The oldest segment leaves when the budget is used up.
        let is_tight = load.needed > load.budget - load.budget / 8;
        !is_tight || tally.oldest_are_of(party, lane.oldest_events())
    }

    /// Notes a dead letter of a party.
    pub(super) fn add_dead(&self, lane: &Lane, party: Party, bytes: usize) {
        self.dead(lane, |rates| rates.charge(&party, bytes as u64 + LETTER_BYTES, clock::instant()));
        self.add(self.lanes.len() - 1, party, bytes + LETTER_BYTES as usize);
    }

    fn dead<T>(&self, lane: &Lane, then: impl FnOnce(&Rates<Party>) -> T) -> T {
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

    /// Notes that a party is slowed down; `true` if that is news.
    pub(super) fn note_slowed(&self, lane: usize, party: Party, name: &str) -> bool {
        // As many as a person reads.
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
        slowed.push_back(Slowed { at: now, lane, party, name: name.to_owned() });
        true
    }

    /// Why parties of a lane are slowed down at present, with their names; `None` if none is.
    pub(super) fn slowed(&self, index: usize, lane: &Lane) -> Option<String> {
        let now = clock::instant();
        let parties: Vec<(Party, String)> = {
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

    /// Why one party is slowed down.
    pub(super) fn why(&self, index: usize, lane: &Lane, party: Party, name: &str) -> String {
        self.explain(index + 1 == self.lanes.len(), lane, &self.named(index, lane, party, name))
    }

    fn named(&self, index: usize, lane: &Lane, party: Party, name: &str) -> String {
        let held = self.tally(index, lane, clock::instant()).map_or(0, |tally| tally.held_by(party));
        format!("\"{name}\" ({})", Bytes(held))
    }

    fn explain(&self, is_dead: bool, lane: &Lane, named: &str) -> String {
        let (needed, budget, _) = lane.load();
        let free = Bytes(budget.saturating_sub(needed));
        let budget = Bytes(budget);
        match is_dead {
            true => format!(
                "what else cannot be taken from {named} waits, since dead letters of others would leave their budget of {budget} for it; see `forebay dead list`, mend the device or the contract, or raise budget in [dead]"
            ),
            false => format!(
                "the budget of {budget} is used up by events that central has not acknowledged, mostly of {named}, which has to wait; {free} are left for others"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// Hands in until there is no share left, with half of the bytes on the disk; how much that was.
    fn fill(tally: &mut Tally, party: Party, budget: u64) -> u64 {
        let mut taken = 0;
        loop {
            let (needed, queued) = (tally.bytes / 2, tally.events);
            tally.look(Load { budget, needed, queued });
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
        let first = fill(&mut tally, Party(1), 90 * MB);
        assert!((74 * MB..=76 * MB).contains(&first), "{first}");
        assert!(tally.has_share(Party(2)));
        let second = fill(&mut tally, Party(2), 90 * MB);
        assert!((8 * MB..=9 * MB).contains(&second), "{second}");
        assert!(tally.has_share(Party(3)) && !tally.has_share(Party(1)) && !tally.has_share(Party(2)));
    }

    #[test]
    fn what_is_settled_is_forgotten_and_what_was_there_before_is_nobodys() {
        let mut tally = Tally::default();
        fill(&mut tally, Party(1), 90 * MB);
        let queued = tally.events / 4;
        tally.look(Load { budget: 90 * MB, needed: 20 * MB, queued });
        assert!(tally.has_share(Party(1)));
        assert!(tally.events < queued + queued / 4, "{} of {queued}", tally.events);
        tally.look(Load { budget: 90 * MB, needed: 0, queued: 0 });
        assert!(tally.held.is_empty() && tally.parts.is_empty() && tally.bytes == 0);
        // After a start with a log that is nearly full, a small one goes on.
        tally.look(Load { budget: 90 * MB, needed: 88 * MB, queued: 100_000 });
        (0..50).for_each(|_| tally.add(Party(1), 1000));
        tally.look(Load { budget: 90 * MB, needed: 88 * MB, queued: 100_050 });
        assert!(tally.has_share(Party(1)));
    }

    #[test]
    fn nothing_is_counted_while_the_lane_is_nearly_empty_and_counting_begins_before_a_quarter() {
        let mut tally = Tally::default();
        tally.look(Load { budget: 512 * MB, needed: 0, queued: 0 });
        (0..50).for_each(|_| tally.add(Party(1), 1000));
        assert_eq!(tally.calm(), Some(MB));
        assert!(tally.held.is_empty() && tally.parts.is_empty() && tally.bytes == 0 && tally.looked_at.is_none());
        tally.look(Load { budget: 512 * MB, needed: 64 * MB - 1, queued: 200_000 });
        let worst = tally.calm().map(|bytes| 64 * MB + bytes * DISK_TIMES_MAX);
        assert_eq!(worst, Some(128 * MB), "a quarter");
        tally.look(Load { budget: 512 * MB, needed: 64 * MB, queued: 200_000 });
        assert_eq!(tally.calm(), None);
    }

    #[test]
    fn one_that_fills_a_lane_from_the_beginning_still_leaves_a_seventh() {
        let (budget, mut needed, mut queued, mut left) = (512 * MB, 0, 0, 0);
        let mut tally = Tally::default();
        tally.look(Load { budget, needed, queued });
        loop {
            (needed, queued) = (needed + 10_000, queued + 1);
            if left > 10_000 {
                left -= 10_000;
                continue;
            }
            tally.look(Load { budget, needed, queued });
            left = tally.calm().unwrap_or(0);
            if left == 0 && !tally.has_share(Party(1)) {
                break;
            }
            tally.add(Party(1), 10_000);
        }
        assert!((budget - needed) > budget / 7, "{} of {budget} are left", budget - needed);
        assert!(tally.has_share(Party(2)));
    }

    #[test]
    fn parties_without_end_take_no_memory_without_end() {
        let mut tally = Tally::default();
        tally.look(Load { budget: 64 * MB, needed: 0, queued: u64::MAX });
        for number in 0..20 * ENTRIES_MAX as u64 {
            tally.add(Party(number), 600);
        }
        let entries: usize = tally.parts.iter().map(|part| part.held.len()).sum();
        assert!(entries <= 2 * ENTRIES_MAX && tally.held.len() <= ENTRIES_MAX, "{entries} {}", tally.held.len());
    }
}
