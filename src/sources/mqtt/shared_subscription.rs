//! Shared subscriptions (`$share/{group}/{filter}`): each event goes to one member of the group.
//!
//! Promise: an event that a member did not acknowledge before it left goes to another member.

use crate::local::{Enough, Event, Feed, FilterWaiter, JournalPosition, Local, MatchRange};
use crate::mqtt::topic::{Filter, split_share};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;

/// Number of unacknowledged events that the stored position lists one by one: four members with full windows of
/// 1,024. Beyond it the group continues at the oldest.
const OPEN_MAX: usize = 4096;
/// Number of groups below which ended groups are not searched for.
const SWEPT_MIN: usize = 64;

/// The groups of all listeners, by listener and filter with `$share/`. A group lives as long as a member is
/// connected; after that its stored position remains.
#[derive(Debug)]
pub struct Groups {
    local: Arc<Local>,
    all: Mutex<All>,
}

/// By listener and filter. Ended groups are removed now and then.
#[derive(Debug, Default)]
struct All {
    groups: HashMap<(String, String), Weak<Group>>,
    /// Number of groups after the last removal of ended ones.
    living: usize,
}

impl All {
    fn sweep(&mut self) {
        self.groups.retain(|_, group| group.strong_count() > 0);
        self.living = self.groups.len();
    }
}

#[derive(Debug)]
pub struct Group {
    filter: Filter,
    local: Arc<Local>,
    /// The member that holds the lock takes the next event.
    feed: tokio::sync::Mutex<GroupFeed>,
    state: Mutex<GroupState>,
    has_given_back: tokio::sync::Notify,
    /// Whether its position has changed since it was stored.
    has_moved: AtomicBool,
}

/// The position of a group in the lanes.
#[derive(Debug)]
struct GroupFeed {
    feed: Feed,
    /// Wakes it when there is an event that its filter matches: most events match no group, and
    /// there may be many groups.
    attention: FilterWaiter,
    /// For each lane the offset up to which events may match.
    reach: Vec<u64>,
}

#[derive(Debug, Default)]
struct GroupState {
    given_back: VecDeque<JournalPosition>,
    /// Events that a member has and has not acknowledged.
    out: BTreeSet<JournalPosition>,
    /// For each lane its name and the position of the feed.
    next: Vec<(String, u64)>,
}

/// The stored position of a group. The order of the fields is part of the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupNote {
    /// For each lane its name and the next event.
    lanes: Vec<(String, u64)>,
    /// Earlier events that no member has acknowledged: index in `lanes`, and offset.
    open: Vec<(u8, u64)>,
}

impl GroupNote {
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads a stored position; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl Groups {
    pub fn new(local: Arc<Local>) -> Self {
        Self { local, all: Mutex::default() }
    }

    /// Returns the group of a shared filter, which the caller has checked. A group without connected members
    /// continues at `note`, or begins now.
    pub fn join(
        &self,
        source: &str,
        written: &str,
        local: &Local,
        note: impl FnOnce() -> Option<GroupNote>,
    ) -> Arc<Group> {
        let mut all = self.all.lock();
        // Not on each call: a client may join hundreds of groups while there are thousands of others.
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
            local: Arc::clone(&self.local),
            feed: tokio::sync::Mutex::new(GroupFeed { feed, attention, reach: Vec::new() }),
            state: Mutex::new(GroupState { next, given_back, ..GroupState::default() }),
            has_given_back: tokio::sync::Notify::new(),
            has_moved: AtomicBool::new(true),
        });
        all.groups.insert(key, Arc::downgrade(&group));
        group
    }

    /// Returns the groups whose position has changed since the last call: listener, filter, and the group.
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
    /// Returns the unacknowledged events, with these lanes.
    fn places(&self, lanes: &[(String, u64)]) -> VecDeque<JournalPosition> {
        let lane = |index: u8| {
            let (name, _) = self.lanes.get(usize::from(index))?;
            lanes.iter().position(|(known, _)| known == name)
        };
        self.open
            .iter()
            .filter_map(|(index, offset)| Some(JournalPosition { lane: lane(*index)?, offset: *offset }))
            .collect()
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock()
    }

    /// Returns an event to the group that a member did not acknowledge.
    pub fn give_back(&self, place: JournalPosition) {
        let mut state = self.state();
        state.out.remove(&place);
        state.given_back.push_back(place);
        drop(state);
        self.has_given_back.notify_one();
    }

    /// Ends an event that a member has acknowledged, or that could not be sent.
    pub fn done(&self, place: JournalPosition) {
        self.state().out.remove(&place);
        self.has_moved.store(true, Ordering::Release);
    }

    /// Marks the position as unsaved, since its write failed.
    pub fn note_again(&self) {
        self.has_moved.store(true, Ordering::Release);
    }

    /// Returns the position to store.
    pub fn note(&self) -> GroupNote {
        let state = self.state();
        let mut lanes = state.next.clone();
        let open: BTreeSet<JournalPosition> = state.out.iter().chain(&state.given_back).copied().collect();
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

    fn take(&self, feed: &Feed, place: JournalPosition) {
        self.state().out.insert(place);
        self.passed(feed);
        self.has_moved.store(true, Ordering::Release);
    }

    /// Notes the position of the feed. Events that were only skipped need no write: they are
    /// skipped again after a start.
    fn passed(&self, feed: &Feed) {
        let mut state = self.state();
        for (known, (_, next)) in state.next.iter_mut().zip(feed.positions()) {
            known.1 = next;
        }
    }

    /// Takes the next event. Safe to drop half-way: an event is taken in the last step.
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

    /// Takes an event that a member returned.
    async fn again(&self) -> Option<Event> {
        loop {
            let place = *self.state().given_back.front()?;
            let event = self.local.event_at(place).await;
            // From here on there is no await: a drop before this point has taken nothing.
            self.state().given_back.pop_front();
            // An event that the journal does not have any more is skipped.
            if event.is_some() {
                return event;
            }
        }
    }
}

/// Skips events that do not match. Returns `true` if there are events to read.
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

/// Returns the next event of any of these groups; waits for ever without one. Safe to drop half-way.
pub(super) async fn next(groups: &[Arc<Group>]) -> (Arc<Group>, Event) {
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
