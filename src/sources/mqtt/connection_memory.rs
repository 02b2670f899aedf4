//! The memory of one connection: bytes of its buffers and state, covered by a permit of the gateway's budget.
//!
//! Promise: each buffer and state that a client can fill is reserved here first; without room in the budget the
//! connection does not keep it.
//! Invariant: [`INCLUDED`] bytes are reserved when the connection is accepted, so a logged-in device with an ordinary
//! amount of state never waits for the budget.

use super::faults::{ALL_TAKEN, NO_MEMORY};
use crate::clock;
use crate::memory::{NotJoined, Permit};
use crate::mqtt::Fault;
use crate::origin::Party;

/// Bytes of state that are reserved from the start.
pub(super) const INCLUDED: usize = 4 << 10;
/// An idle connection without TLS takes some 8 kB (task, session, device, socket; the benchmark's
/// 5,000 idle connections), and [`INCLUDED`].
pub(super) const PLAIN_BYTES: usize = (8 << 10) + INCLUDED;
/// TLS takes more: an estimate of rustls' buffers and of a client's certificates, not a measurement.
pub(super) const TLS_BYTES: usize = PLAIN_BYTES + (26 << 10);
/// Permits of a connection grow and shrink by this much, so that a publish seldom costs an atomic operation.
const STEP: usize = 4 << 10;
/// Room in the budget below which connections that wait for a lane are not read: twice the bytes of one read.
const SCARCE: usize = 64 << 10;

/// The bytes that a connection holds.
#[derive(Debug)]
pub(super) struct ConnectionMemory {
    permit: Permit,
    /// Bytes of the connection itself.
    fixed: usize,
    used: usize,
    input: usize,
    output: usize,
}

impl ConnectionMemory {
    /// Wraps the permit for the fixed cost of a connection.
    pub(super) fn new(permit: Permit) -> Self {
        let fixed = permit.bytes();
        Self { permit, fixed, used: 0, input: 0, output: 0 }
    }

    /// Returns the permit of the connection.
    pub(super) fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Registers the client after its login; see [`Permit::join`].
    pub(super) fn join(&mut self, party: Party, connections_max: Option<usize>) -> Result<(), Fault> {
        self.permit.heard(clock::instant());
        self.permit.join(party, connections_max).map_err(|error| match error {
            NotJoined::Crowded => ALL_TAKEN,
            NotJoined::Memory(_) => NO_MEMORY,
        })
    }

    /// Reserves `bytes`. Without room nothing changes.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), Fault> {
        let used = self.used.saturating_add(bytes);
        let needed = self.needed(used);
        if let Some(more) = needed.checked_sub(self.permit.bytes()).filter(|more| *more > 0) {
            self.permit.grow(more).map_err(|_| NO_MEMORY)?;
        }
        self.used = used;
        Ok(())
    }

    pub(super) fn release(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
        let needed = self.needed(self.used);
        // Hysteresis: a connection near a step would grow and shrink all the time.
        if self.permit.bytes() >= needed + 2 * STEP {
            self.permit.shrink(self.permit.bytes() - needed);
        }
    }

    /// Resizes the reservation of a part to `bytes`. Without room nothing changes.
    pub(super) fn resize(&mut self, part: &mut usize, bytes: usize) -> Result<(), Fault> {
        match bytes.checked_sub(*part) {
            Some(more) => self.reserve(more)?,
            None => self.release(*part - bytes),
        }
        *part = bytes;
        Ok(())
    }

    fn needed(&self, used: usize) -> usize {
        self.fixed.saturating_add(used.saturating_sub(INCLUDED).next_multiple_of(STEP))
    }

    /// Returns whether little of the budget is left, so that clients should be slowed down.
    pub(super) fn is_scarce(&self) -> bool {
        self.permit.budget().room() < SCARCE
    }

    /// Returns whether more than half of the budget is free, so that caches may grow.
    pub(super) fn is_plentiful(&self) -> bool {
        let budget = self.permit.budget();
        budget.room() > budget.permits_max() / 2
    }

    /// Appends bytes of an incomplete packet to a buffer. The buffer doubles its capacity, but does not exceed
    /// `packet_bytes` if that is known.
    pub(super) fn buffer(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes: &[u8],
        packet_bytes: Option<usize>,
    ) -> Result<(), Fault> {
        let length = buffer.len() + bytes.len();
        if length > buffer.capacity() {
            let doubled = buffer.capacity().saturating_mul(2).max(512);
            let wanted = packet_bytes.map_or(length, |whole| doubled.min(whole)).max(length);
            let before = self.input;
            let mut part = before;
            self.resize(&mut part, wanted)?;
            self.input = part;
            buffer.reserve_exact(wanted - buffer.len());
        }
        buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Notes that the buffer of [`ConnectionMemory::buffer`] has a smaller capacity now.
    pub(super) fn buffer_shrunk(&mut self, capacity: usize) {
        self.release(self.input.saturating_sub(capacity));
        self.input = self.input.min(capacity);
    }

    /// Reserves the capacity of the output buffer.
    pub(super) fn hold_output(&mut self, capacity: usize) -> Result<(), Fault> {
        let mut part = self.output;
        self.resize(&mut part, capacity)?;
        self.output = part;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Budget, ListenerId};

    fn memory(limit: u64) -> ConnectionMemory {
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        ConnectionMemory::new(Budget::new(limit).admit(PLAIN_BYTES, address, ListenerId::new()).expect("room"))
    }

    #[test]
    fn an_ordinary_amount_of_state_is_included_and_more_is_taken_in_steps() {
        let mut memory = memory(1 << 20);
        memory.reserve(INCLUDED).expect("included");
        assert_eq!(memory.permit().bytes(), PLAIN_BYTES);
        memory.reserve(1).expect("room");
        assert_eq!(memory.permit().bytes(), PLAIN_BYTES + STEP);
        memory.reserve(10 * STEP).expect("room");
        memory.release(10 * STEP + 1);
        assert_eq!(memory.permit().bytes(), PLAIN_BYTES, "it shrinks again");
    }

    #[test]
    fn what_has_no_room_changes_nothing() {
        let mut memory = memory(64 << 10);
        let before = memory.permit().bytes();
        assert_eq!(memory.reserve(1 << 20), Err(NO_MEMORY));
        assert_eq!(memory.reserve(usize::MAX), Err(NO_MEMORY));
        assert_eq!(memory.permit().bytes(), before);
        let (mut buffer, mut part) = (Vec::new(), 0);
        assert_eq!(memory.buffer(&mut buffer, &[0; 40 << 10], None), Err(NO_MEMORY));
        assert!(buffer.capacity() == 0 && memory.resize(&mut part, 1 << 20).is_err() && part == 0);
    }

    #[test]
    fn a_buffer_grows_to_the_length_of_its_packet_and_not_beyond() {
        let mut memory = memory(1 << 20);
        let mut buffer = Vec::new();
        for _ in 0..100 {
            memory.buffer(&mut buffer, &[0; 10], Some(1000)).expect("room");
            assert!(buffer.capacity() <= 1000);
        }
        assert_eq!((buffer.len(), memory.used), (1000, buffer.capacity()));
        memory.buffer_shrunk(0);
        assert_eq!(memory.used, 0);
    }
}
