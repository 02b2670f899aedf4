//! Probe: finds out whether one event is the reason that central disconnects.
//!
//! After several disconnects with the same lowest event in flight, the forwarder sends that event alone, with a window
//! of one, after central has answered a PINGREQ. If central then disconnects, the event is the reason.

use crate::link::LinkError;

/// After this number of disconnects with the same lowest event in flight, the forwarder sends that event alone.
const DISCONNECTS_BEFORE_PROBE: u32 = 3;

/// The event under suspicion, and how far its probe is.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The lowest offset in flight at repeated disconnects.
    suspect: u64,
    disconnects: u32,
    pub step: ProbeStep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ProbeStep {
    /// Nothing is probed in this session.
    #[default]
    Off,
    Pinged,
    /// The event was sent alone.
    Sent,
}

impl Probe {
    /// Returns the offset of the event to probe.
    pub(super) fn due(&self) -> Option<u64> {
        (self.disconnects >= DISCONNECTS_BEFORE_PROBE).then_some(self.suspect)
    }

    /// Clears the event: it is not the reason, or it needs no probe.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the offset of the event that proved to be the reason for a disconnect.
    pub(super) fn guilty(&self, error: &LinkError, lowest: Option<u64>) -> Option<u64> {
        let is_guilty = self.step == ProbeStep::Sent && lowest == Some(self.suspect) && error.is_by_peer();
        is_guilty.then_some(self.suspect)
    }

    /// Counts the disconnects by the peer while the same event was the lowest in flight.
    pub(super) fn record_disconnect(&mut self, error: &LinkError, lowest: Option<u64>) {
        let Some(lowest) = lowest else { return };
        if !error.is_by_peer() || self.suspect != lowest {
            *self = Self { suspect: lowest, ..Self::default() };
        }
        if error.is_by_peer() {
            self.disconnects += 1;
        }
    }
}
