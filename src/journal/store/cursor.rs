//! The cursor of a destination: a low mark, and a bounded set of settled ranges above it.
//!
//! Invariants:
//! - everything below `low` is settled; ranges are above it, in order, and never touch;
//! - settling the same offset again changes nothing.

use serde::{Deserialize, Serialize};

/// The cursor and the accounts of one destination in one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub destination: String,
    /// Every offset below is settled.
    pub low: u64,
    /// Settled offsets above `low`: from, to (exclusive).
    pub ranges: Vec<(u64, u64)>,
    pub accounts: Vec<Account>,
}

/// Outcomes of the settled events of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Number of the stream in this journal; 0 for events in a damaged file whose stream is unknown.
    pub stream: u32,
    /// Sequence of the first event that the destination is owed.
    pub from: u64,
    /// Number of events by [`Outcome`], in its order; zeros at the end may be missing.
    counts: Vec<u64>,
}

/// Outcome of one settled event. New outcomes are appended: the order is part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Delivered,
    /// Central refused it permanently; it is a dead letter now.
    Dead,
    /// The destination does not receive its stream.
    NotOwed,
    /// It reached the age limit of its contract.
    Expired,
    /// It was discarded for newer events, since the budget of its lane or the `hold` of the destination was used up.
    Shed,
    Discarded,
    /// It was in a damaged file.
    SetAside,
}

/// All outcomes, in the order of [`Account`].
pub const OUTCOMES: [Outcome; 7] = [
    Outcome::Delivered,
    Outcome::Dead,
    Outcome::NotOwed,
    Outcome::Expired,
    Outcome::Shed,
    Outcome::Discarded,
    Outcome::SetAside,
];

impl Account {
    /// Creates the account of a stream that is owed from a sequence on.
    pub fn new(stream: u32, from: u64) -> Self {
        Self { stream, from, counts: Vec::new() }
    }

    /// Number of events with an outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts.get(outcome as usize).copied().unwrap_or(0)
    }

    pub fn settled(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds events with an outcome.
    pub fn add(&mut self, outcome: Outcome, count: u64) {
        if self.counts.len() <= outcome as usize {
            self.counts.resize(outcome as usize + 1, 0);
        }
        self.counts[outcome as usize] += count;
    }
}

/// A cursor in blocks and summaries of format 1.
#[derive(Debug, Deserialize)]
pub(super) struct SettledV1 {
    destination: String,
    low: u64,
    ranges: Vec<(u64, u64)>,
    accounts: Vec<(u32, u64, u64)>,
    set_aside: u64,
}

impl From<SettledV1> for Cursor {
    fn from(old: SettledV1) -> Self {
        let mut settled = Self { ranges: old.ranges, ..Self::new(&old.destination, old.low) };
        for (stream, delivered, dead) in old.accounts {
            settled.account(stream).add(Outcome::Delivered, delivered);
            settled.account(stream).add(Outcome::Dead, dead);
        }
        if old.set_aside > 0 {
            settled.account(0).add(Outcome::SetAside, old.set_aside);
        }
        settled
    }
}

impl Cursor {
    /// Creates the cursor of a destination that has settled everything below `low`, and nothing else.
    pub fn new(destination: &str, low: u64) -> Self {
        Self { destination: destination.to_owned(), low, ..Self::default() }
    }

    /// Creates the cursor of a destination that is owed the events from `offset` on, with these next sequences.
    pub(in crate::journal) fn owed_from(
        destination: &str,
        offset: u64,
        sequences: impl IntoIterator<Item = (u32, u64)>,
    ) -> Self {
        let accounts = sequences.into_iter().map(|(stream, next)| Account::new(stream, next)).collect();
        Self { accounts, ..Self::new(destination, offset) }
    }

    /// Like [`Cursor::owed_from`] if the sequences are unknown: the events before `offset` are counted without a stream.
    pub(in crate::journal) fn owed_from_unknown(destination: &str, offset: u64, events_before: u64) -> Self {
        let mut cursor = Self::new(destination, offset);
        cursor.account(0).add(Outcome::NotOwed, events_before);
        cursor
    }

    /// Takes the newer of two states of a destination into `known`.
    pub(in crate::journal) fn advance(known: &mut Vec<Self>, newer: &Self) {
        match known.iter_mut().find(|known| known.destination == newer.destination) {
            Some(known) if newer.is_past(known) => *known = newer.clone(),
            Some(_) => {}
            None => known.push(newer.clone()),
        }
    }

    /// Whether an offset is settled.
    pub fn contains(&self, offset: u64) -> bool {
        let range = self.ranges.partition_point(|&(_, end)| end <= offset);
        offset < self.low || self.ranges.get(range).is_some_and(|&(from, _)| from <= offset)
    }

    /// Settles one event. Returns `false` if it was settled before.
    pub fn settle(&mut self, offset: u64, stream: u32, outcome: Outcome) -> bool {
        if !self.mark(offset, offset + 1) {
            return false;
        }
        self.account(stream).add(outcome, 1);
        true
    }

    /// Marks a range as settled that holds no event; no account changes.
    pub fn skip(&mut self, from: u64, to: u64) {
        if from < to {
            self.mark(from, to);
        }
    }

    /// Settles the unsettled events of a quarantined segment. `owed_below` is the number of events below `to` that the
    /// destination is owed, by stream.
    pub fn mark_lost(&mut self, from: u64, to: u64, owed_below: &[(u32, u64)]) {
        let is_all_below = from <= self.low && self.ranges.last().is_none_or(|range| range.1 <= to);
        let from = from.max(self.low);
        let lost = self.unsettled_in(from, to);
        if lost == 0 {
            return;
        }
        // The unsettled events of each stream below `to` are its lost ones.
        let missing: Vec<(u32, u64)> = owed_below
            .iter()
            .map(|(stream, count)| (*stream, count.saturating_sub(self.account(*stream).settled())))
            .collect();
        if is_all_below && missing.iter().map(|(_, count)| count).sum::<u64>() == lost {
            missing.iter().for_each(|(stream, count)| self.account(*stream).add(Outcome::SetAside, *count));
        } else {
            self.account(0).add(Outcome::SetAside, lost);
        }
        self.skip(from, to);
    }

    /// Number of offsets in a range that are not settled.
    pub fn unsettled_in(&self, from: u64, to: u64) -> u64 {
        let from = from.max(self.low);
        let settled: u64 = self.ranges.iter().map(|range| range.1.min(to).saturating_sub(range.0.max(from))).sum();
        to.saturating_sub(from).saturating_sub(settled)
    }

    /// Number of events with an outcome, over all streams.
    pub fn total(&self, outcome: Outcome) -> u64 {
        self.accounts.iter().map(|account| account.count(outcome)).sum()
    }

    /// The account of a stream; a new one is owed every event.
    pub fn account(&mut self, stream: u32) -> &mut Account {
        let index = match self.accounts.iter().position(|account| account.stream == stream) {
            Some(index) => index,
            None => {
                self.accounts.push(Account::new(stream, 1));
                self.accounts.len() - 1
            }
        };
        &mut self.accounts[index]
    }

    fn mark(&mut self, from: u64, to: u64) -> bool {
        if from == self.low && self.ranges.is_empty() {
            self.low = to;
            return true;
        }
        if to <= self.low {
            return false;
        }
        let from = from.max(self.low);
        let after = self.ranges.partition_point(|&(_, end)| end < from);
        let mut merged = (from, to);
        let mut last = after;
        while let Some(&(start, end)) = self.ranges.get(last) {
            if start > to {
                break;
            }
            if start <= from && to <= end {
                return false;
            }
            merged = (merged.0.min(start), merged.1.max(end));
            last += 1;
        }
        self.ranges.splice(after..last, [merged]);
        if let Some(&(start, end)) = self.ranges.first()
            && start <= self.low
        {
            self.low = end;
            self.ranges.remove(0);
        }
        true
    }

    /// Whether this cursor is at least as far as `other`.
    pub fn is_past(&self, other: &Self) -> bool {
        let done = |settled: &Self| {
            let above: u64 = settled.ranges.iter().map(|(from, to)| to - from).sum();
            (settled.low, above, settled.accounts.iter().map(Account::settled).sum::<u64>())
        };
        done(self) >= done(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_lost_takes_nothing_with_it_that_is_settled_or_on_its_way() {
        let mut settled = Cursor::new("central", 1);
        settled.settle(3, 1, Outcome::Delivered);
        settled.settle(6, 1, Outcome::Delivered);
        // 1 and 2 are in flight, 5 to 9 are lost but for 6.
        settled.mark_lost(5, 10, &[(1, 9)]);
        assert_eq!((settled.low, settled.account(0).count(Outcome::SetAside)), (1, 4), "nobody knows whose they were");
        assert!(!settled.contains(1) && !settled.contains(4) && settled.contains(9));
        settled.mark_lost(5, 10, &[(1, 9)]);
        assert_eq!(settled.total(Outcome::SetAside), 4, "once");
    }

    #[test]
    fn what_is_lost_is_told_apart_by_stream_where_that_is_known() {
        let mut settled = Cursor::new("central", 1);
        settled.settle(1, 1, Outcome::Delivered);
        settled.settle(2, 2, Outcome::Delivered);
        settled.settle(4, 2, Outcome::Dead);
        // Offsets 3 and 5 to 9 are lost; of the nine events below 10, five were of stream 1.
        settled.mark_lost(3, 10, &[(1, 5), (2, 4)]);
        assert_eq!((settled.low, settled.total(Outcome::SetAside)), (10, 6));
        assert_eq!(settled.account(1).count(Outcome::SetAside), 4);
        assert_eq!(settled.account(2).count(Outcome::SetAside), 2);
        assert_eq!((settled.account(2).settled(), settled.account(0).settled()), (4, 0));
    }

    #[test]
    fn a_cursor_of_format_1_is_read() {
        let stored =
            postcard::to_stdvec(&("central", 7u64, [(9u64, 12u64)].as_slice(), [(3u32, 5u64, 1u64)].as_slice(), 2u64));
        let old: SettledV1 = postcard::from_bytes(&stored.expect("encodes")).expect("reads");
        let settled = Cursor::from(old);
        assert_eq!((settled.destination.as_str(), settled.low, &settled.ranges[..]), ("central", 7, &[(9, 12)][..]));
        let counts = [Outcome::Delivered, Outcome::Dead, Outcome::SetAside].map(|outcome| settled.total(outcome));
        assert_eq!(counts, [5, 1, 2]);
    }

    proptest! {
        #[test]
        fn settling_in_any_order_is_what_a_set_says(offsets in proptest::collection::vec(1u64..60, 0..120)) {
            let mut settled = Cursor::new("central", 1);
            let mut model = BTreeSet::new();
            for offset in offsets {
                prop_assert_eq!(settled.settle(offset, 3, Outcome::Delivered), model.insert(offset));
            }
            for offset in 1..60 {
                prop_assert_eq!(settled.contains(offset), model.contains(&offset));
            }
            prop_assert!(settled.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            prop_assert!(settled.ranges.iter().all(|range| range.0 > settled.low && range.0 < range.1));
            prop_assert_eq!(settled.total(Outcome::Delivered), model.len() as u64);
        }
    }
}
