//! What a destination has settled: a low mark, and a bounded set of ranges above it.
//!
//! Invariants:
//! - everything below `low` is settled; ranges are above it, in order, and never touch;
//! - settling the same offset again changes nothing.

use serde::{Deserialize, Serialize};

/// The cursor of one destination in one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Name of the destination.
    pub destination: String,
    /// Everything below is settled.
    pub low: u64,
    /// Settled offsets above `low`: from, to (exclusive).
    pub ranges: Vec<(u64, u64)>,
    /// How it went, for each stream.
    pub accounts: Vec<Account>,
    /// Offsets passed over because their segment is set aside.
    pub set_aside: u64,
}

/// How the settled events of one stream ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The stream's number in this journal.
    pub stream: u32,
    /// Events that central acknowledged.
    pub delivered: u64,
    /// Events that became dead letters.
    pub dead: u64,
}

/// How one event was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Central acknowledged it.
    Delivered,
    /// Central refuses it for ever; it is a dead letter now.
    Dead,
    /// The destination does not take its stream.
    NotOwed,
}

impl Settled {
    /// A destination that has settled nothing from `low` on.
    pub fn new(destination: &str, low: u64) -> Self {
        Self { destination: destination.to_owned(), low, ..Self::default() }
    }

    /// Whether an offset is settled.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.low || self.ranges.iter().any(|&(from, to)| (from..to).contains(&offset))
    }

    /// Settles one event. `false` if it was settled before.
    pub fn settle(&mut self, offset: u64, stream: u32, outcome: Outcome) -> bool {
        if !self.mark(offset, offset + 1) {
            return false;
        }
        match outcome {
            Outcome::Delivered => self.account(stream).delivered += 1,
            Outcome::Dead => self.account(stream).dead += 1,
            Outcome::NotOwed => {}
        }
        true
    }

    /// Marks a range as settled without an account: offsets that hold no event.
    pub fn skip(&mut self, from: u64, to: u64) {
        if from < to {
            self.mark(from, to);
        }
    }

    /// Passes over events whose segment is set aside. What is settled among them stays as it is.
    pub fn lose(&mut self, from: u64, to: u64) {
        let from = from.max(self.low);
        let settled: u64 = self.ranges.iter().map(|range| range.1.min(to).saturating_sub(range.0.max(from))).sum();
        self.set_aside += to.saturating_sub(from).saturating_sub(settled);
        self.skip(from, to);
    }

    fn account(&mut self, stream: u32) -> &mut Account {
        let index = match self.accounts.iter().position(|account| account.stream == stream) {
            Some(index) => index,
            None => {
                self.accounts.push(Account { stream, ..Account::default() });
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

    /// Whether this is at least as far as `other`.
    pub fn is_past(&self, other: &Self) -> bool {
        let done = |settled: &Self| {
            let above: u64 = settled.ranges.iter().map(|(from, to)| to - from).sum();
            (settled.low, above, settled.accounts.iter().map(|a| a.delivered + a.dead).sum::<u64>())
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
        let mut settled = Settled::new("central", 1);
        settled.settle(3, 1, Outcome::Delivered);
        settled.settle(6, 1, Outcome::Delivered);
        // 1 and 2 are in flight, 5 to 9 are lost but for 6.
        settled.lose(5, 10);
        assert_eq!((settled.low, settled.set_aside), (1, 4));
        assert!(!settled.contains(1) && !settled.contains(4) && settled.contains(9));
        settled.lose(5, 10);
        assert_eq!(settled.set_aside, 4, "once");
    }

    proptest! {
        #[test]
        fn settling_in_any_order_is_what_a_set_says(offsets in proptest::collection::vec(1u64..60, 0..120)) {
            let mut settled = Settled::new("central", 1);
            let mut model = BTreeSet::new();
            for offset in offsets {
                prop_assert_eq!(settled.settle(offset, 3, Outcome::Delivered), model.insert(offset));
            }
            for offset in 1..60 {
                prop_assert_eq!(settled.contains(offset), model.contains(&offset));
            }
            prop_assert!(settled.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            prop_assert!(settled.ranges.iter().all(|range| range.0 > settled.low && range.0 < range.1));
            let delivered: u64 = settled.accounts.iter().map(|account| account.delivered).sum();
            prop_assert_eq!(delivered, model.len() as u64);
        }
    }
}
