//! Probe: finds out whether one event is the reason that central disconnects.

use super::fill::push_rendered;
use super::in_flight::Publish;
use super::{Forwarder, SessionEnd, Suspect};
use crate::clock;
use crate::journal::BlockReader;
use crate::link::{Output, Protocol, Session};
use crate::shutdown::Shutdown;

impl Forwarder {
    /// Sends the suspect event alone, after central has answered a PINGREQ. If central then disconnects, the event is
    /// the reason and becomes a dead letter.
    pub(super) async fn probe(
        &mut self,
        session: &mut Session,
        output: &mut Output,
        shutdown: &mut Shutdown,
    ) -> Option<SessionEnd> {
        let suspect = self.suspect.offset;
        self.rewind();
        session.ping(output);
        let mut is_sent = false;
        loop {
            if !session.is_ping_pending() && !is_sent {
                match self.lane.walk_at(suspect) {
                    Ok(Some(mut walk)) => is_sent = self.push_suspect(&mut walk, suspect, session, output),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(lane = %self.lane.name, %error, "cannot read the event to probe from the journal")
                    }
                }
                if !is_sent {
                    // The event is settled or cannot be read now: there is nothing to probe.
                    self.suspect = Suspect::default();
                    self.rewind();
                    return None;
                }
            }
            if is_sent && self.flight.is_empty() {
                // Central acknowledged the event: the disconnects have another reason.
                self.suspect = Suspect::default();
                self.rewind();
                return None;
            }
            let next_check = match session.check(!self.flight.is_empty(), output) {
                Ok(wait) => wait,
                Err(error) => return Some(SessionEnd::Lost(error)),
            };
            let result = tokio::select! {
                () = shutdown.begun() => return Some(SessionEnd::Shutdown),
                result = session.exchange(output) => result,
                () = tokio::time::sleep(next_check) => Ok(()),
            };
            let answers = match result {
                Ok(()) => match self.handle_replies(session).await {
                    Ok(true) => Ok(()),
                    Ok(false) => return Some(SessionEnd::Pause),
                    Err(end) => Err(end),
                },
                Err(error) => Err(SessionEnd::Lost(error)),
            };
            if let Err(end) = answers {
                if is_sent
                    && self.flight.lowest() == Some(suspect)
                    && matches!(&end, SessionEnd::Lost(error) if error.is_by_peer())
                {
                    let reason = "central ends the connection whenever it is sent this event";
                    self.write_dead_letters(&[(suspect, reason.into())]).await;
                    self.suspect = Suspect::default();
                    self.flight.clear();
                }
                return Some(end);
            }
        }
    }

    /// Sends one event alone, regardless of batches, rate limits and hours; returns `false` if it must not be sent.
    fn push_suspect(&mut self, walk: &mut BlockReader, offset: u64, session: &Session, output: &mut Output) -> bool {
        let recorded = walk.recorded();
        if self.settled.contains(offset) {
            return false;
        }
        let Some(step) = walk.step_to(&self.lane, offset) else { return false };
        let Some((published, sequence)) = step.numbered else { return false };
        let is_v5 = session.protocol() == Protocol::V5;
        let out = &mut self.rendering;
        published.renderer.render(&step.record, sequence, recorded, is_v5, out);
        push_rendered(output, session, self.flight.next_id(), out);
        self.flight.push(Publish::single(offset, published.stream, clock::instant(), recorded));
        self.stats.sent.add(1);
        true
    }
}
