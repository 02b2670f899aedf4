//! Blocks: the read requests of a group, split where the device refuses them.
//!
//! Promise: a point that the device has is read, whatever registers around it are missing; a refusal is reported only for
//! points that it is about. What was learnt about a device is tried again: after a minute, then ever more rarely, and
//! after each silence of the device.
//! Invariant: a sweep sends at most `splits_max` requests in addition to two for each block; there are at most as many
//! blocks as points.

use super::plan::{Read, plan_of};
use super::table::Device;
use super::transport::Fault;
use super::value::Table;
use crate::backoff::{Backoff, Jitter};
use std::time::{Duration, Instant};

/// Splits in one poll. At 9,600 baud the requests of as many splits take two to three seconds.
pub const SPLITS_MAX: usize = 32;
/// Pause before registers that the device refused are searched again; it doubles each time.
const SEARCH_AGAIN: Duration = Duration::from_secs(60);
const SEARCH_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// The requests of a group.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    read: Read,
    /// Set while the device refuses every point of the block.
    refusal: Option<Refusal>,
}

#[derive(Clone, Debug)]
struct Refusal {
    fault: Fault,
    attempts: u32,
    next_search: Instant,
    /// Whether the device answered for other points of the group meanwhile. One that refuses everything may only be busy
    /// with its start.
    is_certain: bool,
}

impl Refusal {
    /// Whether the device will say the same for a while. Other refusals are about its present state.
    fn is_lasting(&self) -> bool {
        self.is_certain && matches!(self.fault, Fault::Refused { code: 1..=3, .. })
    }
}

/// One pass over the blocks of a group: the caller sends what [`Sweep::next`] returns and hands in each answer.
#[derive(Debug)]
pub struct Sweep {
    /// What is to be asked, the next one last.
    open: Vec<Block>,
    done: Vec<Block>,
    splits_left: usize,
    has_answer: bool,
    is_healed: bool,
    outcome: Outcome,
}

/// How a pass has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether points are still to be searched.
    pub is_pending: bool,
    /// Whether the requests are other ones now.
    pub has_changed: bool,
    /// Whether points are refused that were not before.
    pub has_refused: bool,
}

/// What an answer means for the points of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The registers are theirs.
    Answered,
    /// The device refuses each of them.
    Refused {
        /// Why it refused the point when it was asked for it alone.
        fault: Fault,
    },
    /// The device refuses some of them; smaller requests follow, at once or with the next sweep.
    Unknown,
}

impl Verdict {
    pub fn refused(fault: &Fault) -> Self {
        Self::Refused { fault: fault.clone() }
    }
}

impl Blocks {
    pub fn new(reads: Vec<Read>) -> Self {
        Self { blocks: reads.into_iter().map(|read| Block { read, refusal: None }).collect() }
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The requests that the device has not refused as a whole.
    pub fn reads(&self) -> impl Iterator<Item = &Read> {
        self.blocks.iter().filter(|block| block.refusal.is_none()).map(|block| &block.read)
    }

    /// Begins a pass; [`Blocks::finish`] has to end it.
    pub fn sweep(&mut self, splits_max: usize, now: Instant) -> Sweep {
        let is_due = |block: &Block| {
            block.refusal.as_ref().is_none_or(|refusal| !refusal.is_lasting() || refusal.next_search <= now)
        };
        let (mut open, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.blocks).into_iter().partition(is_due);
        open.reverse();
        Sweep { open, done, splits_left: splits_max, has_answer: false, is_healed: false, outcome: Outcome::default() }
    }

    /// Ends a pass, which may have been broken off.
    pub fn finish(&mut self, device: &Device, sweep: Sweep) -> Outcome {
        let Sweep { open, mut done, is_healed, outcome, has_answer, .. } = sweep;
        if has_answer {
            done.iter_mut().filter_map(|block| block.refusal.as_mut()).for_each(|refusal| refusal.is_certain = true);
        }
        if !outcome.has_changed && open.is_empty() && done.is_sorted_by_key(place) {
            self.blocks = done;
            return outcome;
        }
        done.extend(open.into_iter().rev());
        done.sort_by_key(place);
        self.blocks = if is_healed { replanned(device, done) } else { merged(device, done) };
        outcome
    }

    /// Searches refused registers again with the next sweep: the device may be another one now.
    pub fn search_again(&mut self, now: Instant) {
        for refusal in self.blocks.iter_mut().filter_map(|block| block.refusal.as_mut()) {
            (refusal.next_search, refusal.attempts, refusal.is_certain) = (now, 0, false);
        }
    }

    /// Points that the device refuses, with the reasons.
    pub fn refused(&self) -> impl Iterator<Item = (usize, &Fault)> {
        let refused = self.blocks.iter().filter_map(|block| Some((block, &block.refusal.as_ref()?.fault)));
        refused.flat_map(|(block, fault)| block.read.points.iter().map(move |point| (*point, fault)))
    }
}

impl Sweep {
    pub fn next(&self) -> Option<&Read> {
        self.open.last().map(|block| &block.read)
    }

    /// Leaves the next request out of this pass: the device did not answer.
    pub fn skip(&mut self) -> Option<Read> {
        let block = self.open.pop()?;
        let read = block.read.clone();
        self.done.push(block);
        Some(read)
    }

    /// Takes the answer to the request that [`Sweep::next`] returned; returns the request and what the answer means.
    pub fn take(&mut self, device: &Device, answer: Result<(), &Fault>, now: Instant) -> Option<(Read, Verdict)> {
        let mut block = self.open.pop()?;
        let read = block.read.clone();
        let fault = match answer {
            Ok(()) => {
                self.is_healed |= block.refusal.take().is_some();
                self.outcome.has_changed |= self.is_healed;
                self.has_answer = true;
                self.done.push(block);
                return Some((read, Verdict::Answered));
            }
            Err(fault) => fault,
        };
        let verdict = match block.refusal.take() {
            known if fault.is_busy() => {
                self.done.push(Block { refusal: known, ..block });
                Verdict::refused(fault)
            }
            Some(mut known) if known.next_search > now => {
                // Refused for its length, a request of several points says nothing of each.
                if read.points.len() == 1 || !matches!(fault, Fault::Refused { code: 3, .. }) {
                    known.fault = fault.clone();
                }
                let verdict = Verdict::refused(&known.fault);
                self.done.push(Block { refusal: Some(known), ..block });
                verdict
            }
            known if read.points.len() == 1 => {
                let attempts = known.as_ref().map_or(0, |known| known.attempts);
                let wait = Backoff::new(SEARCH_AGAIN, SEARCH_AGAIN_MAX, Jitter::None).pause(attempts);
                let is_certain = known.as_ref().is_some_and(|known| known.is_certain);
                let next_search = now + wait;
                let refusal = Refusal { fault: fault.clone(), attempts: attempts + 1, next_search, is_certain };
                self.done.push(Block { refusal: Some(refusal), ..block });
                self.outcome.has_changed = true;
                self.outcome.has_refused |= known.is_none();
                Verdict::refused(fault)
            }
            known if self.splits_left == 0 => {
                self.outcome.is_pending = true;
                self.done.push(Block { refusal: known, ..block });
                Verdict::Unknown
            }
            known => {
                self.splits_left -= 1;
                self.split(device, &read, known);
                Verdict::Unknown
            }
        };
        Some((read, verdict))
    }

    fn split(&mut self, device: &Device, read: &Read, known: Option<Refusal>) {
        self.outcome.has_changed = true;
        let (left, right) = read.points.split_at(read.points.len() / 2);
        for points in [right, left] {
            self.open.push(Block { read: Read::of(device, points.to_vec()), refusal: known.clone() });
        }
    }
}

fn place(block: &Block) -> (Table, u16) {
    (block.read.table, block.read.address)
}

/// Joins neighbours that the device refuses entirely: one request is enough to notice that it does not refuse them any
/// more.
fn merged(device: &Device, blocks: Vec<Block>) -> Vec<Block> {
    let mut merged: Vec<Block> = Vec::new();
    for block in blocks {
        if let (Some(last), Some(refusal)) = (merged.last_mut(), &block.refusal)
            && let Some(known) = &mut last.refusal
            && known.fault == refusal.fault
            && let Some(read) = joined(device, &last.read, &block.read)
        {
            known.attempts = known.attempts.max(refusal.attempts);
            known.next_search = known.next_search.max(refusal.next_search);
            known.is_certain &= refusal.is_certain;
            last.read = read;
            continue;
        }
        merged.push(block);
    }
    merged
}

/// One request for the points of both, if the rules of the plan allow it.
fn joined(device: &Device, one: &Read, other: &Read) -> Option<Read> {
    let points: Vec<usize> = one.points.iter().chain(&other.points).copied().collect();
    let mut reads = plan_of(device, points);
    if reads.len() == 1 { reads.pop() } else { None }
}

/// Plans the points again that the device does not refuse: registers that were missing are there.
fn replanned(device: &Device, blocks: Vec<Block>) -> Vec<Block> {
    let (refused, open): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.refusal.is_some());
    let points = open.into_iter().flat_map(|block| block.read.points).collect();
    let mut blocks = Blocks::new(plan_of(device, points)).blocks;
    blocks.extend(refused);
    blocks.sort_by_key(place);
    merged(device, blocks)
}

#[cfg(test)]
mod tests {
    use super::super::plan::plan;
    use super::super::table::Point;
    use super::super::value::{Encoding, Order, Type};
    use super::*;
    use crate::clock;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// A device that refuses requests which touch certain registers, or are too long.
    struct Quirky {
        device: Device,
        missing: BTreeSet<u32>,
        longest: u16,
        code: u8,
    }

    impl Quirky {
        fn new(addresses: impl IntoIterator<Item = u16>, missing: impl IntoIterator<Item = u32>) -> Self {
            Self::of(addresses.into_iter().map(|address| (address, Type::U16)), missing)
        }

        /// With points of other types.
        fn of(points: impl IntoIterator<Item = (u16, Type)>, missing: impl IntoIterator<Item = u32>) -> Self {
            let point = |(address, kind): (u16, Type)| Point {
                name: format!("p{address}"),
                address,
                count: kind.registers().unwrap_or(1),
                ..Point::plain(Encoding::of(kind, Order::Abcd))
            };
            let device = Device { points: points.into_iter().map(point).collect(), ..Device::default() };
            Self { device, missing: missing.into_iter().collect(), longest: 125, code: 2 }
        }

        fn blocks(&self) -> Blocks {
            Blocks::new(plan(&self.device, 0))
        }

        /// One pass: which addresses were read (true) or refused (false), the number of requests, and what is pending.
        fn pass(&self, blocks: &mut Blocks, now: Instant) -> (BTreeMap<u16, bool>, usize, bool) {
            let mut sweep = blocks.sweep(SPLITS_MAX, now);
            let (mut seen, mut requests) = (BTreeMap::new(), 0);
            while let Some(read) = sweep.next().cloned() {
                requests += 1;
                let is_missing = (u32::from(read.address)..read.end()).any(|address| self.missing.contains(&address));
                let fault = match () {
                    () if read.count > self.longest => Some(Fault::Refused { code: 3, words: "too long".into() }),
                    () if is_missing => Some(Fault::Refused { code: self.code, words: "missing".into() }),
                    () => None,
                };
                let (read, verdict) = sweep.take(&self.device, fault.as_ref().map_or(Ok(()), Err), now).expect("asked");
                for point in &read.points {
                    let address = self.device.points[*point].address;
                    match verdict {
                        Verdict::Answered => drop(seen.insert(address, true)),
                        Verdict::Refused { .. } => drop(seen.insert(address, false)),
                        Verdict::Unknown => {}
                    }
                }
            }
            let is_pending = blocks.finish(&self.device, sweep).is_pending;
            (seen, requests, is_pending)
        }
    }

    #[test]
    fn one_missing_register_costs_only_its_own_point() {
        let quirky = Quirky::new([0, 2, 3, 4], [3]);
        let (mut blocks, now) = (quirky.blocks(), clock::instant());
        let (seen, requests, _) = quirky.pass(&mut blocks, now);
        assert_eq!(seen, [(0, true), (2, true), (3, false), (4, true)].into());
        assert_eq!(requests, 5, "the whole, both halves, and the halves of the second one");
        let refused: Vec<_> = blocks.refused().map(|(point, _)| point).collect();
        assert_eq!(refused, [2]);
        let (seen, requests, _) = quirky.pass(&mut blocks, now);
        assert_eq!((seen.len(), requests), (3, 2), "what is known to be missing is not asked for");
    }

    #[test]
    fn registers_that_appear_are_found_again() {
        let mut quirky = Quirky::new(0..20, [7, 8]);
        let (mut blocks, now) = (quirky.blocks(), clock::instant());
        quirky.pass(&mut blocks, now);
        quirky.missing.clear();
        let (_, requests, _) = quirky.pass(&mut blocks, now);
        assert!(requests > 1);
        let later = now + SEARCH_AGAIN;
        let (seen, ..) = quirky.pass(&mut blocks, later);
        assert!(seen.len() == 20 && seen.values().all(|is_read| *is_read), "{seen:?}");
        assert_eq!(quirky.pass(&mut blocks, later).1, 1, "and one request is enough again");
        quirky.missing.insert(3);
        quirky.pass(&mut blocks, later);
        quirky.missing.clear();
        blocks.search_again(later);
        assert_eq!(quirky.pass(&mut blocks, later).0.get(&3), Some(&true), "after a silence at once");
    }

    #[test]
    fn a_device_that_takes_few_registers_at_once_is_read_in_pieces() {
        let mut quirky = Quirky::new(0..100, []);
        quirky.longest = 10;
        let (mut blocks, now) = (quirky.blocks(), clock::instant());
        let (seen, ..) = quirky.pass(&mut blocks, now);
        assert!(seen.len() == 100 && seen.values().all(|is_read| *is_read), "{seen:?}");
        assert_eq!(quirky.pass(&mut blocks, now).1, 16);
    }

    #[test]
    fn a_device_that_refuses_everything_for_a_while_is_not_searched_each_time() {
        let mut quirky = Quirky::new(0..8, 0..8);
        quirky.code = 4;
        let (mut blocks, now) = (quirky.blocks(), clock::instant());
        assert_eq!(quirky.pass(&mut blocks, now).1, 15);
        assert_eq!(quirky.pass(&mut blocks, now).1, 1, "one request, to notice its end");
        quirky.missing.clear();
        assert_eq!(quirky.pass(&mut blocks, now).0.len(), 8);
    }

    #[test]
    fn a_device_that_refuses_everything_while_it_starts_is_asked_at_each_poll() {
        let mut quirky = Quirky::new([0, 1], [0, 1]);
        let (mut blocks, now) = (quirky.blocks(), clock::instant());
        quirky.pass(&mut blocks, now);
        assert_eq!(quirky.pass(&mut blocks, now).1, 1);
        quirky.missing.clear();
        assert_eq!(quirky.pass(&mut blocks, now).0, [(0, true), (1, true)].into());
    }

    proptest! {
        #[test]
        fn any_set_of_missing_registers_costs_only_the_points_that_need_them(
            places in prop::collection::vec((0u16..20, prop::sample::select(vec![Type::U16, Type::U32, Type::U64])), 1..120),
            missing in prop::collection::btree_set(0u32..600, 0..60),
            longest in 1u16..=125,
            code in prop::sample::select(vec![1u8, 2, 4]),
            gap_max in 0u16..20,
        ) {
            // Points one behind the other, most of them next to each other.
            let mut next = 0;
            let points: Vec<(u16, Type)> = places
                .into_iter()
                .map(|(gap, kind)| {
                    let address = next + gap.saturating_sub(10);
                    next = address + kind.registers().unwrap_or(1);
                    (address, kind)
                })
                .collect();
            let mut quirky = Quirky::of(points.iter().copied(), missing.iter().copied());
            (quirky.longest, quirky.code, quirky.device.gap_max) = (longest, code, gap_max);
            let (mut blocks, now) = (quirky.blocks(), clock::instant());
            let mut known: BTreeMap<u16, bool> = BTreeMap::new();
            for pass in 0.. {
                let before = blocks.blocks.len();
                let (seen, requests, is_pending) = quirky.pass(&mut blocks, now);
                prop_assert!(requests <= before + 2 * SPLITS_MAX);
                known.extend(seen);
                if !is_pending {
                    break;
                }
                prop_assert!(pass < 40, "it does not come to an end");
            }
            let wanted: BTreeMap<u16, bool> =
                points.iter().map(|(address, kind)| {
                    let (from, count) = (u32::from(*address), kind.registers().unwrap_or(1));
                    let has_all = (from..from + u32::from(count)).all(|register| !missing.contains(&register));
                    (*address, has_all && count <= longest)
                }).collect();
            prop_assert_eq!(&known, &wanted);
            let refused: BTreeSet<u16> = blocks.refused().map(|(point, _)| quirky.device.points[point].address).collect();
            prop_assert!(refused.iter().all(|address| !wanted[address]));
            prop_assert_eq!(refused.len(), wanted.values().filter(|is_read| !**is_read).count());
            let (_, requests, _) = quirky.pass(&mut blocks, now);
            prop_assert!(requests <= wanted.len(), "{requests} requests for {} points", wanted.len());
            let points: usize = blocks.blocks.iter().map(|block| block.read.points.len()).sum();
            prop_assert_eq!(points, wanted.len());
        }
    }
}
