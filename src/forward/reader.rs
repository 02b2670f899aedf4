//! The reader of a forwarder: live events and backlog of a lane, behind the cursor of its destination.
//!
//! Promise: it skips what is settled, what the destination does not take, what has expired, and what another connection
//! of the lane sends. With `live-first`, live events come before the backlog.
//! Invariant: a connection is never further than a fixed number of events ahead of the lowest unsettled one of its lane,
//! which bounds the ranges of the cursor.

use super::keys::{StreamOrders, key_of_event, key_of_none};
use super::lane_link::LaneLink;
use super::outgoing::{Mark, Outgoing};
use super::pace::{CatchUp, Sending};
use crate::clock;
use crate::journal::{BlockReader, Cursor, Follower, Lane, ReadResult, Step};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Each jump to the live end adds a range to the set of settled offsets; with more ranges than this, the
/// forwarder sends the backlog first.
const LIVE_RANGES_MAX: usize = 64;
/// `live-first` jumps to the live end within a session when the lag exceeds this number of windows for [`LIVE_LAG`].
const LIVE_LAG_WINDOWS: u64 = 4;
const LIVE_LAG: Duration = Duration::from_secs(2);

/// Events by which a connection may be ahead of the lowest unsettled one, in windows of all connections of the lane, and at
/// least.
const AHEAD_WINDOWS: u64 = 2;
const AHEAD_MIN: u64 = 4096;

#[derive(Debug)]
pub(super) struct EventReader {
    link: LaneLink,
    sending: Arc<Sending>,
    orders: StreamOrders,
    /// Offset from which on nothing is read until the other connections of the lane have followed.
    ahead: u64,
    /// Reads the events to send first.
    primary: LaneReader,
    /// Reads the backlog while `primary` reads live events (`live-first`).
    backfill: LaneReader,
    /// The offsets that were settled when the readers were last rewound.
    settled: Cursor,
    /// `live-first`: the end of the lane, and the time, when the primary reader began to lag far behind.
    lagging: Option<(u64, Instant)>,
    is_closed: bool,
}

/// What the reader came to.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    /// An event that is not to be sent, or the end of a block.
    Skipped,
    Event,
    /// The destination does not take the event of this offset and stream.
    NotOwed(u64, u32),
    /// The contract of the event at this offset is lost.
    Unreadable(u64),
}

/// One of the two readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderKind {
    Primary,
    Backfill,
}

impl EventReader {
    pub(super) fn new(link: LaneLink, sending: Arc<Sending>) -> Self {
        Self {
            primary: LaneReader::new(&link.lane, 1, u64::MAX),
            backfill: LaneReader::new(&link.lane, 1, 1),
            link,
            orders: StreamOrders::new(&sending.orders),
            sending,
            ahead: u64::MAX,
            settled: Cursor::default(),
            lagging: None,
            is_closed: false,
        }
    }

    /// Whether the journal is closed and has no further event.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn is_settled(&self, offset: u64) -> bool {
        self.settled.contains(offset)
    }

    /// Finds out how far this connection may read, if the lane has several.
    pub(super) fn look_at_others(&mut self) {
        let LaneLink { lane, to, connection, .. } = &self.link;
        if connection.is_shared() {
            let windows = u64::from(to.window) * u64::from(connection.of) * AHEAD_WINDOWS;
            let low = lane.settled_below(&to.name).unwrap_or_default();
            self.ahead = low.saturating_add(windows.max(AHEAD_MIN));
        }
    }

    /// Returns whether the next event has to wait until the other connections have followed.
    pub(super) fn is_ahead(&self) -> bool {
        self.primary.next >= self.ahead
    }

    /// Moves back to the lowest unsettled event; with `live-first`, to the end, and the second reader back.
    pub(super) fn rewind(&mut self) {
        let settled = self.link.lane.settled(&self.link.to.name).unwrap_or_default();
        let (low, end) = (settled.low.max(1), self.primary.follower.end());
        let is_live_first = self.sending.catch_up == CatchUp::LiveFirst
            && end.saturating_sub(low) > u64::from(self.link.to.window)
            && settled.ranges.len() <= LIVE_RANGES_MAX;
        if is_live_first {
            self.primary.restart(end, u64::MAX);
            self.backfill.restart(low, end);
        } else {
            self.primary.restart(low, u64::MAX);
            self.backfill.restart(low, low);
        }
        self.settled = settled;
    }

    /// Whether new events wait behind a backlog from sending hours, rate limits or a slow line in this session.
    pub(super) fn is_live_lagging(&mut self) -> bool {
        if self.sending.catch_up != CatchUp::LiveFirst {
            return false;
        }
        let (end, now) = (self.primary.follower.end(), clock::instant());
        let events = self.sending.batch.as_ref().map_or(1, |batch| batch.events as u64);
        let lag_max = LIVE_LAG_WINDOWS * u64::from(self.link.to.window) * events;
        // One large commit is not a lag: the lag must last.
        let (seen, since) = match self.lagging {
            Some((seen, since)) if self.primary.next < seen => (seen, since),
            _ => (end, now),
        };
        self.lagging = (end.saturating_sub(self.primary.next) > lag_max).then_some((seen, since));
        let is_settled_in_few_ranges = |settled: Cursor| settled.ranges.len() <= LIVE_RANGES_MAX;
        self.lagging.is_some()
            && now.duration_since(since) >= LIVE_LAG
            && self.link.lane.settled(&self.link.to.name).is_some_and(is_settled_in_few_ranges)
    }

    /// Returns whether there are events that were not read yet.
    pub(super) fn has_more(&self) -> bool {
        self.primary.follower.end() > self.primary.next || self.backfill.until > self.backfill.next
    }

    /// Offset below which every event counts as acknowledged while `in_flight` events are not.
    pub(super) fn reached(&self, in_flight: usize) -> u64 {
        let end = self.primary.follower.end();
        let unread = end.saturating_sub(self.primary.next) + self.backfill.until.saturating_sub(self.backfill.next);
        end.saturating_sub(unread + in_flight as u64)
    }

    /// Passes the next event to `send` if it is to be sent. Live events go first.
    pub(super) fn next(&mut self, may_backfill: bool, send: impl FnOnce(Outgoing<'_>)) -> Next {
        if self.is_ahead() {
            return Next::Nothing;
        }
        let Self { link, sending, orders, settled, primary, backfill, .. } = self;
        let (reader, is_backfill) = match primary.block.is_some() {
            true => (primary, false),
            false if may_backfill => (backfill, true),
            false => return Next::Nothing,
        };
        let Some(walk) = &mut reader.block else { return Next::Nothing };
        let (recorded, end) = (walk.recorded(), walk.end());
        let Some(Step { offset, record, numbered }) = walk.step(&link.lane).filter(|step| step.offset < reader.until)
        else {
            reader.next = end.min(reader.until);
            reader.block = None;
            return Next::Skipped;
        };
        if offset < reader.next || settled.contains(offset) {
            return Next::Skipped;
        }
        reader.next = offset + 1;
        if link.connection.is_shared() {
            let key = numbered.map_or_else(
                || key_of_none(offset),
                |(published, _)| key_of_event((offset, published, &record), orders.of(published), false),
            );
            if !link.connection.sends(key) {
                return Next::Skipped;
            }
        }
        let Some((published, sequence)) = numbered else { return Next::Unreadable(offset) };
        if !link.to.takes(&published.publication) {
            return Next::NotOwed(offset, published.stream);
        }
        if link.lane.is_expired(&link.to.name, published.publication.retention_unsettled, offset, &record) {
            return Next::Skipped;
        }
        let mark = is_backfill.then(|| Mark::backfill(sending));
        send(Outgoing { offset, record, published, sequence, recorded, mark });
        Next::Event
    }

    /// Loads the next block. Returns once there is one; never while one is loaded. Safe to drop half-way.
    pub(super) async fn load_next(&mut self) {
        if self.primary.block.is_some() || self.is_closed {
            return std::future::pending().await;
        }
        let wants_backfill = self.backfill.block.is_none() && !self.backfill.is_over();
        let Self { primary, backfill, .. } = self;
        let (found, kind) = tokio::select! {
            biased;
            found = primary.follower.find(primary.next) => (found, ReaderKind::Primary),
            found = backfill.follower.find(backfill.next), if wants_backfill => (found, ReaderKind::Backfill),
        };
        match found {
            Some(found) => self.load(found, kind),
            None => self.is_closed = true,
        }
    }

    fn load(&mut self, found: ReadResult, kind: ReaderKind) {
        let reader = match kind {
            ReaderKind::Primary => &mut self.primary,
            ReaderKind::Backfill => &mut self.backfill,
        };
        match found {
            ReadResult::Block(block) => {
                reader.next = reader.next.max(block.header.first);
                reader.block = Some(BlockReader::new(block));
            }
            ReadResult::Lost { to } => {
                let LaneLink { lane, to: destination, .. } = &self.link;
                tracing::error!(lane = %lane.name, from = reader.next, to, "events are lost: their segment is damaged and quarantined; continuing after it");
                lane.mark_lost(&destination.name, reader.next, to);
                reader.next = to;
            }
        }
    }
}

/// A position in a lane's log, and the loaded block at that position.
#[derive(Debug)]
struct LaneReader {
    follower: Follower,
    /// Offset of the event to send next.
    next: u64,
    /// End of the range (exclusive).
    until: u64,
    block: Option<BlockReader>,
}

impl LaneReader {
    fn new(lane: &Arc<Lane>, next: u64, until: u64) -> Self {
        Self { follower: Follower::new(lane), next, until, block: None }
    }

    /// Moves to another range and drops the loaded block.
    fn restart(&mut self, next: u64, until: u64) {
        (self.next, self.until, self.block) = (next, until, None);
    }

    fn is_over(&self) -> bool {
        self.block.is_none() && self.next >= self.until
    }
}
