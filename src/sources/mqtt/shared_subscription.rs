//! Shared subscriptions: each event goes to one member of the group.
//!
//! Invariant: an event that a member did not acknowledge before it went goes to another.

use crate::journal::Journal;
use crate::local::{Enough, Event, Feed, Filter, FilterWaiter, Local, MatchRange, Place, split_share};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;

/// Events of a group that are noted one by one as handed out and not acknowledged: four members with full windows of
/// 1,024. Beyond it the oldest is where the group goes on.
const OPEN_MAX: usize = 4096;
/// So many groups are not worth being looked through for those that have ended.
const SWEPT_MIN: usize = 64;

/// The groups of all listeners, by listener and shared filter as it was written. A group lives as long as a member is
/// connected; beyond that its note says how far it was.
#[derive(Debug)]
pub struct Groups {
    journal: Arc<Journal>,
    all: Mutex<All>,
}

/// By listener and filter. Those that have ended are taken out now and then.
#[derive(Debug, Default)]
struct All {
    groups: HashMap<(String, String), Weak<Group>>,
    /// How many there were after the ended were taken out last.
    living: usize,
}

impl All {
    fn sweep(&mut self) {
        self.groups.retain(|_, group| group.strong_count() > 0);
        self.living = self.groups.len();
    }
}

/// One group.
#[derive(Debug)]
pub struct Group {
    filter: Filter,
    journal: Arc<Journal>,
    /// Whoever holds it takes the next event.
    feed: tokio::sync::Mutex<GroupFeed>,
    state: Mutex<GroupState>,
    has_given_back: tokio::sync::Notify,
    /// Whether it has got further since it was noted.
    has_moved: AtomicBool,
}

/// How a group goes through the lanes.
#[derive(Debug)]
struct GroupFeed {
    feed: Feed,
    /// Calls it when an event of its filter is there: most events are nobody's, and groups are many.
    attention: FilterWaiter,
    /// For each lane up to where events are to be looked at.
    reach: Vec<u64>,
}

#[derive(Debug, Default)]
struct GroupState {
    given_back: VecDeque<Place>,
    /// With a member, and not acknowledged.
    out: BTreeSet<Place>,
    /// For each lane its name and where the feed is.
    next: Vec<(String, u64)>,
}

/// How far a group was handed out. The order of the fields is part of the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupNote {
    /// For each lane its name and the next event.
    lanes: Vec<(String, u64)>,
    /// Events before those that nobody has acknowledged: index in `lanes`, and offset.
    open: Vec<(u8, u64)>,
}

impl GroupNote {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads what [`GroupNote::encode`] made.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl Groups {
    /// No groups yet.
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal, all: Mutex::default() }
    }

    /// The group of a listener's shared filter, which the caller has checked. One without connected members goes on
    /// where `note` says, or begins now.
    pub fn join(
        &self,
        source: &str,
        written: &str,
        local: &Local,
        note: impl FnOnce() -> Option<GroupNote>,
    ) -> Arc<Group> {
        let mut all = self.all.lock();
        // Not each time: a client may join hundreds of groups beside thousands of others.
        if all.groups.len() >= SWEPT_MIN + 2 * all.living {
            all.sweep();
        }
        let key = (source.to_owned(), written.to_owned());
        if let Some(group) = all.groups.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        let note = note();
        let feed = match &note {
            None => local.feed(),
            Some(note) => {
                local.feed_from(|lane| note.lanes.iter().find(|(name, _)| name == lane).map(|(_, next)| *next))
            }
        };
        let next: Vec<_> = feed.positions().map(|(lane, next)| (lane.to_owned(), next)).collect();
        let given_back = note.map(|note| note.places(&next)).unwrap_or_default();
        let filter = split_share(written).and_then(|(_, filter)| Filter::parse(filter)).unwrap_or_default();
        let attention = local.register_waiter(&filter, &feed);
        let group = Arc::new(Group {
            filter,
            journal: Arc::clone(&self.journal),
            feed: tokio::sync::Mutex::new(GroupFeed { feed, attention, reach: Vec::new() }),
            state: Mutex::new(GroupState { next, given_back, ..GroupState::default() }),
            has_given_back: tokio::sync::Notify::new(),
            has_moved: AtomicBool::new(true),
        });
        all.groups.insert(key, Arc::downgrade(&group));
        group
    }

    /// The groups that have got further since the last call: listener, filter, and the group.
    pub fn moved(&self) -> Vec<(String, String, Arc<Group>)> {
        let mut all = self.all.lock();
        all.sweep();
        let living =
            all.groups.iter().filter_map(|((source, written), group)| Some((source, written, group.upgrade()?)));
        let moved = living.filter(|(.., group)| group.has_moved.swap(false, Ordering::AcqRel));
        moved.map(|(source, written, group)| (source.clone(), written.clone(), group)).collect()
    }
}

impl GroupNote {
    /// The places of what is open, among lanes of these names.
    fn places(&self, lanes: &[(String, u64)]) -> VecDeque<Place> {
        let lane = |index: u8| {
            let (name, _) = self.lanes.get(usize::from(index))?;
            lanes.iter().position(|(known, _)| known == name)
        };
        self.open.iter().filter_map(|(index, offset)| Some(Place { lane: lane(*index)?, offset: *offset })).collect()
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock()
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
        self.has_moved.store(true, Ordering::Release);
    }

    /// Has it noted once more: the last note did not get to the disk.
    pub fn note_again(&self) {
        self.has_moved.store(true, Ordering::Release);
    }

    /// How far it was handed out.
    pub fn note(&self) -> GroupNote {
        let state = self.state();
        let mut lanes = state.next.clone();
        let open: BTreeSet<Place> = state.out.iter().chain(&state.given_back).copied().collect();
        if open.len() > OPEN_MAX {
            for place in &open {
                if let Some((_, next)) = lanes.get_mut(place.lane) {
                    *next = place.offset.min(*next);
                }
            }
            return GroupNote { lanes, open: Vec::new() };
        }
        let open = open.iter().filter_map(|place| Some((u8::try_from(place.lane).ok()?, place.offset)));
        GroupNote { open: open.collect(), lanes }
    }

    fn take(&self, feed: &Feed, place: Place) {
        self.state().out.insert(place);
        self.passed(feed);
        self.has_moved.store(true, Ordering::Release);
    }

    /// Keeps where the feed is. What was only passed over needs no note: after a start it is passed over again.
    fn passed(&self, feed: &Feed) {
        let mut state = self.state();
        for (known, (_, next)) in state.next.iter_mut().zip(feed.positions()) {
            known.1 = next;
        }
    }

    /// The next event. Safe to drop half-group_feed: an event is taken in the last step.
    async fn next(&self) -> Event {
        let mut group_feed = self.feed.lock().await;
        loop {
            let GroupFeed { feed, attention, reach } = &mut *group_feed;
            if let Some(event) = self.again().await {
                self.take(feed, event.place);
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
                self.take(feed, found.place);
                return found;
            }
            if feed.has_unread_below(reach) {
                tokio::select! {
                    is_open = feed.ready() => if !is_open {
                        std::future::pending::<()>().await;
                    },
                    () = self.has_given_back.notified() => {}
                }
            } else if !catch_up(feed, attention, reach) {
                self.passed(feed);
                tokio::select! {
                    () = attention.woken() => {}
                    () = self.has_given_back.notified() => {}
                }
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

/// Passes over what does not match; `true` if there are events to look at.
fn catch_up(feed: &mut Feed, attention: &FilterWaiter, reach: &mut Vec<u64>) -> bool {
    let reaches = attention.catch_up();
    reach.resize(reaches.len(), 0);
    let mut has_matched = false;
    for (lane, found) in reaches.into_iter().enumerate() {
        match found {
            MatchRange::NoneBefore(next) => feed.skip_to(lane, next),
            MatchRange::Between(first, next) => {
                feed.skip_to(lane, first);
                reach[lane] = next;
                has_matched = true;
            }
        }
    }
    has_matched
}

/// The next event of any of some groups; for ever, if there is none. Safe to drop half-group_feed.
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
