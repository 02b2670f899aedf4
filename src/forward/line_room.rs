//! How much of a lane may be written to the line now.
//!
//! Promise: the lane keeps to its share of the line; an event that is larger than the share is written in slices; a lane
//! with nothing in flight can always send an event.

use super::in_flight::InFlight;
use crate::clock;
use crate::link::{LineShare, Output, SEGMENT_BYTES, Session};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct LineRoom {
    share: LineShare,
    /// Bytes that may be written now.
    room: u64,
    /// Bytes that are written and not acknowledged.
    written: u64,
    /// Least room for another event: that of a usual one, and at most a segment.
    least: u64,
    /// The send buffer of the socket, if it was reduced.
    buffer: Option<u64>,
}

impl LineRoom {
    pub(super) fn new(share: LineShare) -> Self {
        Self { share, room: 0, written: 0, least: SEGMENT_BYTES, buffer: None }
    }

    pub(super) fn share(&self) -> &LineShare {
        &self.share
    }

    /// Begins a session, on which nothing is in flight.
    pub(super) fn begin(&mut self) {
        (self.room, self.written, self.buffer) = (0, 0, None);
        self.share.room(0, clock::instant());
    }

    /// Finds out what may be written now, before anything is added to the output.
    pub(super) fn measure<T>(&mut self, in_flight: &InFlight<T>, session: &Session, output: &mut Output) {
        let (now, waiting) = (clock::instant(), output.waiting() as u64);
        output.compact();
        self.written = in_flight.bytes().saturating_sub(waiting);
        self.room = self.share.room(self.written, now);
        self.least = in_flight.bytes().checked_div(in_flight.count() as u64).unwrap_or_default().min(SEGMENT_BYTES);
        // No acknowledgement can make room for an event that nothing is in front of.
        let is_large = waiting > self.room && self.written < in_flight.first_bytes();
        output.is_incomplete = is_large;
        if is_large {
            self.room = self.room.max(self.share.paced_room(now));
        }
        if is_large || self.buffer.is_some() {
            let wanted = self.share.line().send_buffer(now, session.broker_round_trip());
            self.buffer = resize(session, self.buffer, wanted);
        }
        output.limit_to(self.room as usize);
    }

    /// Returns whether another event may be added: only one that is written as a whole or in segments, because small parts
    /// cost as many headers.
    pub(super) fn has_room(&self, output: &Output) -> bool {
        let waiting = output.waiting() as u64;
        waiting < self.room && (self.room >= self.least || self.written == 0)
    }

    /// Sets what is written of the output. Returns the time until the next look at the line, if it is full.
    pub(super) fn limit(&self, output: &mut Output, has_more: bool) -> Option<Duration> {
        let waiting = output.waiting() as u64;
        let is_part = self.room < waiting.min(SEGMENT_BYTES) && self.written > 0;
        output.limit_to(if is_part { 0 } else { self.room as usize });
        let is_full = self.room < waiting || has_more && !self.has_room(output);
        if !is_full {
            return None;
        }
        self.share.line().mark_full();
        Some(self.share.line().look_again())
    }
}

/// Changes the send buffer if it has to shrink, or to grow much.
fn resize(session: &Session, known: Option<u64>, wanted: Option<u64>) -> Option<u64> {
    let Some(wanted) = wanted else { return known };
    if known.is_some_and(|known| (known / 2..=known * 2).contains(&wanted)) {
        return known;
    }
    session.set_send_buffer(wanted as usize);
    Some(wanted)
}
