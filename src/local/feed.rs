//! A feed: one reader's way through every lane, at its own pace.
//!
//! Invariant: a feed holds no more than a block of each lane; what it has not read stays in the journal.

use crate::event::{Record, Timestamp};
use crate::journal::{Follower, Found, Journal, Lane, Published, Walk};
use crate::runtime::spawn_blocking;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Where an event is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of its lane.
    pub lane: usize,
    /// Its offset there.
    pub offset: u64,
}

/// An event as a feed comes upon it.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Where it is.
    pub place: Place,
    /// What is stored of it.
    pub record: &'a Record<'a>,
    /// Its publication.
    pub published: &'a Arc<Published>,
    /// Its sequence.
    pub sequence: u64,
    /// When it was recorded.
    pub recorded: Timestamp,
}

/// An event that is held apart from its block.
#[derive(Debug)]
pub struct Event {
    /// Where it is.
    pub place: Place,
    /// Its publication.
    pub published: Arc<Published>,
    /// Its sequence.
    pub sequence: u64,
    /// When it was recorded.
    pub recorded: Timestamp,
    record: Vec<u8>,
}

impl Event {
    /// A copy of an event that a feed comes upon.
    pub fn of(passing: &Passing<'_>) -> Self {
        let mut record = Vec::new();
        passing.record.encode(&mut record);
        let Passing { place, published, sequence, recorded, .. } = passing;
        Self { place: *place, published: Arc::clone(published), sequence: *sequence, recorded: *recorded, record }
    }

    /// Reads the event at a place. `None` if retention has removed it, or its segment is damaged.
    pub async fn at(journal: &Journal, place: Place) -> Option<Self> {
        let lane = Arc::clone(journal.lanes().get(place.lane)?);
        let read = spawn_blocking(move || {
            let mut walk = lane.walk_at(place.offset).ok()??;
            let recorded = walk.recorded();
            let step = walk.step_to(&lane, place.offset)?;
            let (published, sequence) = step.numbered?;
            Some(Self::of(&Passing { place, record: &step.record, published, sequence, recorded }))
        });
        read.await.ok()?
    }

    /// The event as it was recorded.
    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(&self.record).ok()
    }
}

/// Events of a lane that a feed could not look at: retention removed them, or their segment is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub from: Place,
    /// The offset behind the last.
    pub to: u64,
}

/// A reader of every lane.
#[derive(Debug)]
pub struct Feed {
    lanes: Vec<Reading>,
    /// The gap that the last [`Feed::poll_ready`] passed over.
    gap: Option<Gap>,
}

struct Reading {
    lane: Arc<Lane>,
    /// The next event to look at.
    next: u64,
    walk: Option<Walk>,
    /// There while it does not find.
    follower: Option<Follower>,
    finding: Option<Finding>,
}

/// A find that is under way, with the follower that it needs.
type Finding = Pin<Box<dyn Future<Output = (Follower, Option<Found>)> + Send>>;

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reading({} at {})", self.lane.name, self.next)
    }
}

impl Reading {
    /// Goes on at another place.
    fn jump(&mut self, to: u64) {
        self.next = to;
        self.walk = None;
        self.finding = None;
    }

    fn poll_find(&mut self, context: &mut Context<'_>) -> Poll<Option<Found>> {
        let finding = self.finding.get_or_insert_with(|| {
            let mut follower = self.follower.take().unwrap_or_else(|| Follower::new(&self.lane));
            let next = self.next;
            Box::pin(async move {
                let found = follower.find(next).await;
                (follower, found)
            })
        });
        let (follower, found) = ready!(finding.as_mut().poll(context));
        self.finding = None;
        self.follower = Some(follower);
        Poll::Ready(found)
    }
}

impl Feed {
    /// A feed that begins at these offsets; at the end of lanes for which none is given.
    pub fn new(journal: &Journal, from: impl Fn(&Lane) -> Option<u64>) -> Self {
        let lanes = journal.lanes().iter().map(|lane| Reading {
            next: from(lane).unwrap_or_else(|| lane.end()),
            follower: None,
            finding: None,
            walk: None,
            lane: Arc::clone(lane),
        });
        Self { lanes: lanes.collect(), gap: None }
    }

    /// Name of each lane and the next event it is to look at.
    pub fn positions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lanes.iter().map(|reading| (reading.lane.name.as_str(), reading.next))
    }

    /// How many events of all lanes it has not looked at.
    pub fn behind(&self) -> u64 {
        self.lanes.iter().map(|reading| reading.lane.end().saturating_sub(reading.next)).sum()
    }

    /// Leaves out what is older than the newest `events` of each lane, or than those that take about
    /// `bytes` of its log; how many that were.
    pub fn skip_to_newest(&mut self, events: u64, bytes: u64) -> u64 {
        let mut skipped = 0;
        for reading in &mut self.lanes {
            let from = reading.lane.end().saturating_sub(events.min(reading.lane.newest_within(bytes)));
            if from > reading.next {
                skipped += from - reading.next;
                reading.jump(from);
            }
        }
        skipped
    }

    /// Whether it has not looked at everything below these offsets of the lanes.
    pub fn is_short_of(&self, reach: &[u64]) -> bool {
        self.lanes.iter().zip(reach).any(|(reading, reach)| reading.next < *reach)
    }

    /// Goes on at this event of a lane, if it is not further already: nobody wants those before it.
    pub fn skip_to(&mut self, lane: usize, offset: u64) {
        if let Some(reading) = self.lanes.get_mut(lane).filter(|reading| reading.next < offset) {
            reading.jump(offset);
        }
    }

    /// Bytes of the blocks that it is in.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().filter_map(|reading| reading.walk.as_ref()).map(Walk::bytes).sum()
    }

    /// Lets go of what it has read ahead; it goes on at the same place.
    pub fn rest(&mut self) {
        for reading in &mut self.lanes {
            reading.jump(reading.next);
            reading.follower = None;
        }
    }

    /// Waits until there is something to look at; `false` once the journal is closed.
    /// Safe to drop half-way.
    pub async fn ready(&mut self) -> bool {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// As [`Feed::ready`], for those who poll.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.lanes.iter().any(|reading| reading.walk.is_some()) {
            return Poll::Ready(true);
        }
        for (lane, reading) in self.lanes.iter_mut().enumerate() {
            let from = Place { lane, offset: reading.next };
            match reading.poll_find(context) {
                Poll::Pending => continue,
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Ready(Some(Found::Block(block))) => {
                    reading.next = reading.next.max(block.header.first);
                    reading.walk = Some(Walk::new(block));
                }
                Poll::Ready(Some(Found::Lost { to })) => reading.next = to.max(reading.next + 1),
            }
            self.gap = (reading.next > from.offset).then_some(Gap { from, to: reading.next });
            return Poll::Ready(true);
        }
        Poll::Pending
    }

    /// Takes the gap that the last [`Feed::poll_ready`] passed over.
    pub fn take_gap(&mut self) -> Option<Gap> {
        self.gap.take()
    }

    /// Looks at events that are at hand, until `look` says that it has enough or none is left.
    pub fn look(&mut self, mut look: impl FnMut(Passing<'_>) -> Enough) -> Enough {
        for (lane, reading) in self.lanes.iter_mut().enumerate() {
            let Some(walk) = &mut reading.walk else { continue };
            let (recorded, end) = (walk.recorded(), walk.end());
            while let Some(step) = walk.step(&reading.lane) {
                if step.offset < reading.next {
                    continue;
                }
                reading.next = step.offset + 1;
                let Some((published, sequence)) = step.numbered else { continue };
                let place = Place { lane, offset: step.offset };
                let passing = Passing { place, record: &step.record, published, sequence, recorded };
                if look(passing) == Enough::Yes {
                    return Enough::Yes;
                }
            }
            reading.next = end.max(reading.next);
            reading.walk = None;
        }
        Enough::No
    }
}

/// Whether a look at a feed is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// It ends here; the next look goes on behind this event.
    Yes,
    /// It goes on.
    No,
}
