//! Attention: who waits for events of a filter is woken by those alone, and not by every event.
//!
//! Promise: whoever has slept at the place that [`Attention::catch_up`] gave hears of the first event behind it that its
//! filter matches.
//! Invariant: an event is rendered and matched once for all who wait, however many they are.

use super::Filter;
use super::tree::Tree;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Everybody who waits.
#[derive(Debug, Default)]
pub(super) struct Attentions {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree<u64>,
    all: HashMap<u64, (Filter, Weak<Signal>)>,
    /// Levels of all filters.
    levels: usize,
    next: u64,
    /// For each lane up to where events were matched.
    followed: Vec<u64>,
}

#[derive(Debug, Default)]
struct Signal {
    notify: Notify,
    /// For each lane the first event that matched since it was asked for last.
    matched: Mutex<Vec<Option<u64>>>,
}

/// One that waits for events of a filter.
#[derive(Debug)]
pub struct Attention {
    number: u64,
    signal: Arc<Signal>,
    among: Arc<Attentions>,
}

/// Where to read on in a lane, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No event before this one matches: reading goes on there.
    Quiet(u64),
    /// Events from the first on may match; those before do not. They are to be looked at up to the second.
    Matched(u64, u64),
}

impl Attentions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Begins to wait. `from` is for each lane where reading begins: what was matched for others before is looked at
    /// once more.
    pub(super) fn attend(self: &Arc<Self>, filter: &Filter, from: &[u64]) -> Attention {
        let mut state = self.lock();
        let followed = &state.followed;
        let behind = |(lane, from): (usize, &u64)| (*from < followed.get(lane).copied().unwrap_or(0)).then_some(*from);
        let matched = from.iter().enumerate().map(behind).collect();
        let signal = Arc::new(Signal { notify: Notify::new(), matched: Mutex::new(matched) });
        let number = state.next;
        state.next += 1;
        state.levels += levels(filter);
        state.tree.insert(filter, number);
        state.all.insert(number, (filter.clone(), Arc::downgrade(&signal)));
        Attention { number, signal, among: Arc::clone(self) }
    }

    /// What is matched next; the events of a lane have to be in their order.
    pub(super) fn follow(&self) -> Following<'_> {
        Following { state: self.lock() }
    }
}

fn levels(filter: &Filter) -> usize {
    filter.as_str().split('/').count()
}

/// Events are being matched.
pub(super) struct Following<'a> {
    state: MutexGuard<'a, State>,
}

impl Following<'_> {
    /// Wakes those whose filter matches an event.
    pub(super) fn note(&mut self, lane: usize, offset: u64, topic: &str) {
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

    /// Says that everything below was matched.
    pub(super) fn reached(&mut self, lane: usize, next: u64) {
        if self.state.followed.len() <= lane {
            self.state.followed.resize(lane + 1, 0);
        }
        self.state.followed[lane] = next;
    }
}

impl Attention {
    /// For each lane how far to read before there is nothing to do but wait.
    pub fn catch_up(&self) -> Vec<Reach> {
        // Nothing is matched meanwhile.
        let state = self.among.lock();
        let mut matched = self.signal.matched.lock();
        let lanes = matched.len().max(state.followed.len());
        matched.resize(lanes, None);
        let reach = |(lane, matched): (usize, &mut Option<u64>)| {
            let followed = state.followed.get(lane).copied().unwrap_or(0);
            matched.take().map_or(Reach::Quiet(followed), |first| Reach::Matched(first, followed))
        };
        matched.iter_mut().enumerate().map(reach).collect()
    }

    /// Returns when an event has matched since the last [`Attention::catch_up`]. Safe to drop half-way.
    pub async fn called(&self) {
        self.signal.notify.notified().await;
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        let mut state = self.among.lock();
        let Some((filter, _)) = state.all.remove(&self.number) else { return };
        state.levels -= levels(&filter);
        state.tree.remove(&filter, self.number);
        if state.tree.is_overgrown(state.levels) {
            let mut tree = Tree::default();
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
        let all = Arc::new(Attentions::default());
        let follow = |events: &[(u64, &str)], next: u64| {
            let mut following = all.follow();
            events.iter().for_each(|(offset, topic)| following.note(0, *offset, topic));
            following.reached(0, next);
        };
        follow(&[(1, "a/b")], 2);
        let late = all.attend(&filter("a/#"), &[2]);
        let early = all.attend(&filter("a/#"), &[1]);
        assert_eq!(late.catch_up(), [Reach::Quiet(2)]);
        assert_eq!(early.catch_up(), [Reach::Matched(1, 2)], "what was matched before is looked at");
        follow(&[(2, "b"), (3, "b")], 4);
        assert_eq!(late.catch_up(), [Reach::Quiet(4)]);
        follow(&[(4, "b"), (5, "a"), (6, "a/x"), (7, "b")], 8);
        assert_eq!(late.catch_up(), [Reach::Matched(5, 8)], "all of it is to be looked at: more may match");
        assert_eq!(late.catch_up(), [Reach::Quiet(8)]);
    }

    #[test]
    fn who_goes_leaves_nothing_behind() {
        let all = Arc::new(Attentions::default());
        for number in 0..1000 {
            drop(all.attend(&filter(&format!("a/{number}/b/c")), &[1]));
        }
        let state = all.lock();
        assert!(state.all.is_empty() && state.levels == 0 && !state.tree.is_overgrown(0));
    }
}
