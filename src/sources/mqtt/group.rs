//! Shared subscriptions: each event goes to one member of the group.
//!
//! Invariant: an event that a member did not acknowledge before it went goes to another.

use crate::journal::Journal;
use crate::local::{Enough, Event, Feed, Filter, Local, Place};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

/// The groups of a listener, by share name and filter. A group lives as long as its members.
#[derive(Debug)]
pub struct Groups {
    journal: Arc<Journal>,
    all: Mutex<HashMap<(String, String), Weak<Group>>>,
}

/// One group.
#[derive(Debug)]
pub struct Group {
    filter: Filter,
    journal: Arc<Journal>,
    /// Whoever holds it takes the next event.
    feed: tokio::sync::Mutex<Feed>,
    state: Mutex<State>,
    has_given_back: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    given_back: VecDeque<Place>,
    /// With a member, and not acknowledged.
    out: BTreeSet<Place>,
    /// For each lane its name and where the feed is.
    next: Vec<(String, u64)>,
}

impl Groups {
    /// No groups yet.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal, all: Mutex::default() }
    }

    /// The group of a share and a filter, which the caller has checked. A new one begins where
    /// `from` says for a lane, or now.
    pub fn join(&self, share: &str, filter: &str, local: &Local, from: &[(String, u64)]) -> Arc<Group> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, group| group.strong_count() > 0);
        let key = (share.to_owned(), filter.to_owned());
        if let Some(group) = all.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        let feed = if from.is_empty() {
            local.feed()
        } else {
            local.feed_from(|lane| from.iter().find(|(name, _)| name == lane).map(|(_, at)| *at))
        };
        let next = feed.positions().map(|(lane, next)| (lane.to_owned(), next)).collect();
        let group = Arc::new(Group {
            filter: Filter::parse(filter).unwrap_or_default(),
            journal: Arc::clone(&self.journal),
            feed: tokio::sync::Mutex::new(feed),
            state: Mutex::new(State { next, ..State::default() }),
            has_given_back: tokio::sync::Notify::new(),
        });
        all.insert(key, Arc::downgrade(&group));
        group
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an event back that a member did not acknowledge.
    pub fn give_back(&self, place: Place) {
        let mut state = self.state();
        state.out.remove(&place);
        state.given_back.push_back(place);
        drop(state);
        self.has_given_back.notify_one();
    }

    /// A member has acknowledged an event, or could not be sent it.
    pub fn done(&self, place: Place) {
        self.state().out.remove(&place);
    }

    /// For each lane the first event that no member has acknowledged.
    pub fn positions(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let open = || state.out.iter().chain(&state.given_back);
        let lowest = |lane: usize| open().filter(|place| place.lane == lane).map(|place| place.offset).min();
        let next = state.next.iter().enumerate();
        next.map(|(lane, (name, next))| (name.clone(), lowest(lane).unwrap_or(*next).min(*next))).collect()
    }

    fn take(&self, feed: &Feed, place: Place) {
        let mut state = self.state();
        state.out.insert(place);
        for (known, (_, next)) in state.next.iter_mut().zip(feed.positions()) {
            known.1 = next;
        }
    }

    /// The next event. Safe to drop half-way: an event is taken in the last step.
    async fn next(&self) -> Event {
        let mut feed = self.feed.lock().await;
        loop {
            if let Some(event) = self.again().await {
                self.take(&feed, event.place);
                return event;
            }
            let mut found = None;
            feed.look(|passing| {
                let mut topic = Vec::new();
                passing.published.renderer.push_topic(passing.record, &mut topic);
                if !std::str::from_utf8(&topic).is_ok_and(|topic| self.filter.matches(topic)) {
                    return Enough::No;
                }
                found = Some(Event::of(&passing));
                Enough::Yes
            });
            if let Some(found) = found {
                self.take(&feed, found.place);
                return found;
            }
            tokio::select! {
                is_open = feed.ready() => if !is_open {
                    std::future::pending::<()>().await;
                },
                () = self.has_given_back.notified() => {}
            }
        }
    }

    /// An event that was given back.
    async fn again(&self) -> Option<Event> {
        loop {
            let place = *self.state().given_back.front()?;
            let event = Event::at(&self.journal, place).await;
            // From here on nothing waits: whoever is dropped before has taken nothing.
            self.state().given_back.pop_front();
            // What is no longer there is not owed any more.
            if event.is_some() {
                return event;
            }
        }
    }
}

/// The next event of any of some groups; for ever, if there is none. Safe to drop half-way.
pub async fn next(groups: &[Arc<Group>]) -> (Arc<Group>, Event) {
    let mut nexts: Vec<Pin<Box<dyn Future<Output = Event> + Send + '_>>> =
        groups.iter().map(|group| Box::pin(group.next()) as _).collect();
    poll_fn(|context| {
        for (index, next) in nexts.iter_mut().enumerate() {
            if let Poll::Ready(event) = next.as_mut().poll(context) {
                return Poll::Ready((Arc::clone(&groups[index]), event));
            }
        }
        Poll::Pending
    })
    .await
}
