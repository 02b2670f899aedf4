//! A feed: one reader's position in all lanes of the journal.
//!
//! Invariant: a feed holds at most one block of each lane in memory; unread events stay in the journal.

use crate::event::{Record, Timestamp};
use crate::journal::{BlockReader, Follower, Journal, Lane, Published, ReadResult};
use crate::runtime::spawn_blocking;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Position of an event in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalPosition {
    pub lane: usize,
    pub offset: u64,
}

/// An event in the block that a feed reads.
#[derive(Debug)]
pub struct EventRef<'a> {
    pub place: JournalPosition,
    /// The event as it is stored.
    pub record: &'a Record<'a>,
    /// The publication that renders it.
    pub published: &'a Arc<Published>,
    /// Sequence of the event in its stream.
    pub sequence: u64,
    /// Time at which the gateway accepted it.
    pub recorded: Timestamp,
}

/// An owned copy of an event, independent of its block.
#[derive(Debug)]
pub struct Event {
    pub place: JournalPosition,
    /// The publication that renders it.
    pub published: Arc<Published>,
    /// Sequence of the event in its stream.
    pub sequence: u64,
    /// Time at which the gateway accepted it.
    pub recorded: Timestamp,
    record: Vec<u8>,
}

impl Event {
    /// Copies an event of a feed.
    pub fn of(event: &EventRef<'_>) -> Self {
        let mut record = Vec::new();
        event.record.encode(&mut record);
        let EventRef { place, published, sequence, recorded, .. } = event;
        Self { place: *place, published: Arc::clone(published), sequence: *sequence, recorded: *recorded, record }
    }

    pub(super) async fn at(journal: &Journal, place: JournalPosition) -> Option<Self> {
        let lane = Arc::clone(journal.lanes().get(place.lane)?);
        let read = spawn_blocking(move || {
            let mut walk = lane.walk_at(place.offset).ok()??;
            let recorded = walk.recorded();
            let step = walk.step_to(&lane, place.offset)?;
            let (published, sequence) = step.numbered?;
            Some(Self::of(&EventRef { place, record: &step.record, published, sequence, recorded }))
        });
        read.await.ok()?
    }

    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(&self.record).ok()
    }
}

/// Events of a lane that a feed could not read: retention has removed them, or their segment is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Position of the first one.
    pub from: JournalPosition,
    /// Offset after the last one.
    pub to: u64,
}

/// A reader of all lanes.
#[derive(Debug)]
pub struct Feed {
    lanes: Vec<LaneReader>,
    /// The gap that the last [`Feed::poll_ready`] skipped.
    gap: Option<Gap>,
}

struct LaneReader {
    lane: Arc<Lane>,
    /// Offset of the next event to read.
    next: u64,
    walk: Option<BlockReader>,
    /// The follower, while `finding` does not own it.
    follower: Option<Follower>,
    finding: Option<Finding>,
}

/// A pending search for the next block; it owns the follower.
type Finding = Pin<Box<dyn Future<Output = (Follower, Option<ReadResult>)> + Send>>;

impl std::fmt::Debug for LaneReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reading({} at {})", self.lane.name, self.next)
    }
}

impl LaneReader {
    fn jump(&mut self, to: u64) {
        self.next = to;
        self.walk = None;
        self.finding = None;
    }

    fn poll_find(&mut self, context: &mut Context<'_>) -> Poll<Option<ReadResult>> {
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
    /// Opens a feed at the offset that `from` returns for a lane; `None` stands for the end of the lane.
    pub fn new(journal: &Journal, from: impl Fn(&Lane) -> Option<u64>) -> Self {
        let lanes = journal.lanes().iter().map(|lane| LaneReader {
            next: from(lane).unwrap_or_else(|| lane.end()),
            follower: None,
            finding: None,
            walk: None,
            lane: Arc::clone(lane),
        });
        Self { lanes: lanes.collect(), gap: None }
    }

    /// Returns the name of each lane and the offset of its next event.
    pub fn positions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lanes.iter().map(|reader| (reader.lane.name.as_str(), reader.next))
    }

    /// Number of unread events in all lanes.
    pub fn backlog(&self) -> u64 {
        self.lanes.iter().map(|reader| reader.lane.end().saturating_sub(reader.next)).sum()
    }

    /// Skips all but the newest events of each lane: at most `events`, in about `bytes` of its log. Returns
    /// the number of skipped events.
    pub fn skip_to_newest(&mut self, events: u64, bytes: u64) -> u64 {
        let mut skipped = 0;
        for reader in &mut self.lanes {
            let from = reader.lane.end().saturating_sub(events.min(reader.lane.newest_within(bytes)));
            if from > reader.next {
                skipped += from - reader.next;
                reader.jump(from);
            }
        }
        skipped
    }

    /// Whether it has unread events below these offsets of the lanes.
    pub fn has_unread_below(&self, reach: &[u64]) -> bool {
        self.lanes.iter().zip(reach).any(|(reader, reach)| reader.next < *reach)
    }

    /// Skips the events of a lane before `offset`.
    pub fn skip_to(&mut self, lane: usize, offset: u64) {
        if let Some(reader) = self.lanes.get_mut(lane).filter(|reader| reader.next < offset) {
            reader.jump(offset);
        }
    }

    /// Bytes of the loaded blocks.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().filter_map(|reader| reader.walk.as_ref()).map(BlockReader::bytes).sum()
    }

    /// Frees the loaded blocks and the followers; keeps the position.
    pub fn release_blocks(&mut self) {
        for reader in &mut self.lanes {
            reader.jump(reader.next);
            reader.follower = None;
        }
    }

    /// Waits until there are events to read; returns `false` once the journal is closed. Safe to drop half-way.
    pub async fn ready(&mut self) -> bool {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// Poll variant of [`Feed::ready`].
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.lanes.iter().any(|reader| reader.walk.is_some()) {
            return Poll::Ready(true);
        }
        for (lane, reader) in self.lanes.iter_mut().enumerate() {
            let from = JournalPosition { lane, offset: reader.next };
            match reader.poll_find(context) {
                Poll::Pending => continue,
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Ready(Some(ReadResult::Block(block))) => {
                    reader.next = reader.next.max(block.header.first);
                    reader.walk = Some(BlockReader::new(block));
                }
                Poll::Ready(Some(ReadResult::Lost { to })) => reader.next = to.max(reader.next + 1),
            }
            self.gap = (reader.next > from.offset).then_some(Gap { from, to: reader.next });
            return Poll::Ready(true);
        }
        Poll::Pending
    }

    /// Takes the gap that the last [`Feed::poll_ready`] skipped.
    pub fn take_gap(&mut self) -> Option<Gap> {
        self.gap.take()
    }

    /// Passes the events of the loaded blocks to `look` until it returns [`Enough::Yes`] or none is left.
    pub fn look(&mut self, mut look: impl FnMut(EventRef<'_>) -> Enough) -> Enough {
        for (lane, reader) in self.lanes.iter_mut().enumerate() {
            let Some(walk) = &mut reader.walk else { continue };
            let (recorded, end) = (walk.recorded(), walk.end());
            while let Some(step) = walk.step(&reader.lane) {
                if step.offset < reader.next {
                    continue;
                }
                reader.next = step.offset + 1;
                let Some((published, sequence)) = step.numbered else { continue };
                let place = JournalPosition { lane, offset: step.offset };
                let event = EventRef { place, record: &step.record, published, sequence, recorded };
                if look(event) == Enough::Yes {
                    return Enough::Yes;
                }
            }
            reader.next = end.max(reader.next);
            reader.walk = None;
        }
        Enough::No
    }
}

/// Whether to stop reading a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// Stop; the next call continues after this event.
    Yes,
    /// Continue with the next event.
    No,
}
