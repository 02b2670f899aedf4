//! Wakes a waiting reader only for events that match its filter.
//!
//! Promise: a reader that sleeps at the position from [`FilterWaiter::catch_up`] is woken by the first later event that
//! matches its filter.
//! Invariant: each event is rendered and matched once for all waiting readers.

use super::tree::FilterTree;
use crate::mqtt::Filter;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct FilterWaiters {
    state: Mutex<WaiterTable>,
}

#[derive(Debug, Default)]
struct WaiterTable {
    tree: FilterTree<u64>,
    all: HashMap<u64, (Filter, Weak<Signal>)>,
    /// Total number of levels of all filters.
    levels: usize,
    next: u64,
    /// For each lane, the offset up to which events were matched.
    processed: Vec<u64>,
}

#[derive(Debug, Default)]
struct Signal {
    notify: Notify,
    /// For each lane, the first event that matched since the last [`FilterWaiter::catch_up`].
    matched: Mutex<Vec<Option<u64>>>,
}

/// A reader that waits for events of a filter; it is removed when dropped.
#[derive(Debug)]
pub struct FilterWaiter {
    number: u64,
    signal: Arc<Signal>,
    waiters: Arc<FilterWaiters>,
}

/// The range of a lane in which events may match a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchRange {
    /// No event before this offset matches; the reader continues there.
    NoneBefore(u64),
    /// No event before the first offset matches; the reader has to check those from there up to the second offset.
    Between(u64, u64),
}

impl FilterWaiters {
    fn lock(&self) -> MutexGuard<'_, WaiterTable> {
        self.state.lock()
    }

    /// Registers a reader. `from` holds its position in each lane: events from there on that were matched before the
    /// registration count as possible matches.
    pub(super) fn register(self: &Arc<Self>, filter: &Filter, from: &[u64]) -> FilterWaiter {
        let mut state = self.lock();
        let processed = &state.processed;
        let behind = |(lane, from): (usize, &u64)| (*from < processed.get(lane).copied().unwrap_or(0)).then_some(*from);
        let matched = from.iter().enumerate().map(behind).collect();
        let signal = Arc::new(Signal { notify: Notify::new(), matched: Mutex::new(matched) });
        let number = state.next;
        state.next += 1;
        state.levels += levels(filter);
        state.tree.insert(filter, number);
        state.all.insert(number, (filter.clone(), Arc::downgrade(&signal)));
        FilterWaiter { number, signal, waiters: Arc::clone(self) }
    }

    /// Locks the readers for matching events, which must come in the order of their lane.
    pub(super) fn matcher(&self) -> Matcher<'_> {
        Matcher { state: self.lock() }
    }
}

fn levels(filter: &Filter) -> usize {
    filter.as_str().split('/').count()
}

/// Matches events against the filters of all readers.
pub(super) struct Matcher<'a> {
    state: MutexGuard<'a, WaiterTable>,
}

impl Matcher<'_> {
    /// Wakes the readers whose filter matches an event.
    pub(super) fn wake_matching(&mut self, lane: usize, offset: u64, topic: &str) {
        let state = &*self.state;
        state.tree.matching(topic, |number| {
            let Some(signal) = state.all.get(&number).and_then(|(_, signal)| signal.upgrade()) else { return };
            let mut matched = signal.matched.lock();
            if matched.len() <= lane {
                matched.resize(lane + 1, None);
            }
            if matched[lane].is_none() {
                matched[lane] = Some(offset);
                signal.notify.notify_one();
            }
        });
    }

    /// Records that all events of `lane` below `next` were matched.
    pub(super) fn advance(&mut self, lane: usize, next: u64) {
        if self.state.processed.len() <= lane {
            self.state.processed.resize(lane + 1, 0);
        }
        self.state.processed[lane] = next;
    }
}

impl FilterWaiter {
    /// Returns for each lane the events to check before the reader may sleep.
    pub fn catch_up(&self) -> Vec<MatchRange> {
        // The lock keeps events from being matched meanwhile.
        let state = self.waiters.lock();
        let mut matched = self.signal.matched.lock();
        let lanes = matched.len().max(state.processed.len());
        matched.resize(lanes, None);
        let reach = |(lane, matched): (usize, &mut Option<u64>)| {
            let processed = state.processed.get(lane).copied().unwrap_or(0);
            matched.take().map_or(MatchRange::NoneBefore(processed), |first| MatchRange::Between(first, processed))
        };
        matched.iter_mut().enumerate().map(reach).collect()
    }

    /// Waits until an event has matched since the last [`FilterWaiter::catch_up`]. Safe to drop half-way.
    pub async fn woken(&self) {
        self.signal.notify.notified().await;
    }
}

impl Drop for FilterWaiter {
    fn drop(&mut self) {
        let mut state = self.waiters.lock();
        let Some((filter, _)) = state.all.remove(&self.number) else { return };
        state.levels -= levels(&filter);
        state.tree.remove(&filter, self.number);
        if state.tree.is_overgrown(state.levels) {
            let mut tree = FilterTree::default();
            state.all.iter().for_each(|(number, (filter, _))| tree.insert(filter, *number));
            state.tree = tree;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text).expect("a filter")
    }

    #[test]
    fn who_sleeps_hears_of_the_first_match_and_of_nothing_else() {
        let all = Arc::new(FilterWaiters::default());
        let follow = |events: &[(u64, &str)], next: u64| {
            let mut matcher = all.matcher();
            events.iter().for_each(|(offset, topic)| matcher.wake_matching(0, *offset, topic));
            matcher.advance(0, next);
        };
        follow(&[(1, "a/b")], 2);
        let late = all.register(&filter("a/#"), &[2]);
        let early = all.register(&filter("a/#"), &[1]);
        assert_eq!(late.catch_up(), [MatchRange::NoneBefore(2)]);
        assert_eq!(early.catch_up(), [MatchRange::Between(1, 2)], "what was matched before is looked at");
        follow(&[(2, "b"), (3, "b")], 4);
        assert_eq!(late.catch_up(), [MatchRange::NoneBefore(4)]);
        follow(&[(4, "b"), (5, "a"), (6, "a/x"), (7, "b")], 8);
        assert_eq!(late.catch_up(), [MatchRange::Between(5, 8)], "all of it is to be looked at: more may match");
        assert_eq!(late.catch_up(), [MatchRange::NoneBefore(8)]);
    }

    #[test]
    fn who_goes_leaves_nothing_behind() {
        let all = Arc::new(FilterWaiters::default());
        for number in 0..1000 {
            drop(all.register(&filter(&format!("a/{number}/b/c")), &[1]));
        }
        let state = all.lock();
        assert!(state.all.is_empty() && state.levels == 0 && !state.tree.is_overgrown(0));
    }
}
