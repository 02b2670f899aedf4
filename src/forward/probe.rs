//! Finding out whether one event is what kills the connection.

use super::fill::push_rendered;
use super::flight::Sent;
use super::{Deaths, End, Forwarder};
use crate::clock;
use crate::journal::Walk;
use crate::link::{Output, Protocol, Session};
use crate::shutdown::Shutdown;

impl Forwarder {
    /// Sends the lowest event alone, over a session that has just shown that it is alive. If that
    /// kills it, the event is what kills it.
    pub(super) async fn probe(
        &mut self,
        session: &mut Session,
        output: &mut Output,
        shutdown: &mut Shutdown,
    ) -> Option<End> {
        let suspect = self.deaths.lowest;
        self.resume();
        session.ask(output);
        let mut is_sent = false;
        loop {
            if !session.is_asked() && !is_sent {
                match self.lane.walk_at(suspect) {
                    Ok(Some(mut walk)) => is_sent = self.push_alone(&mut walk, suspect, session, output),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(lane = %self.lane.name, %error, "an event cannot be read"),
                }
                if !is_sent {
                    // It is settled, or cannot be read now: there is nothing to find out.
                    self.deaths = Deaths::default();
                    self.resume();
                    return None;
                }
            }
            if is_sent && self.flight.is_empty() {
                // It was taken: the connection died of something else.
                self.deaths = Deaths::default();
                self.resume();
                return None;
            }
            let look_again = match session.watch(!self.flight.is_empty(), output) {
                Ok(wait) => wait,
                Err(error) => return Some(End::Lost(error)),
            };
            let moved = tokio::select! {
                () = shutdown.begun() => return Some(End::Shutdown),
                moved = session.exchange(output) => moved,
                () = tokio::time::sleep(look_again) => Ok(()),
            };
            let answers = match moved {
                Ok(()) => match self.settle_answers(session).await {
                    Ok(true) => Ok(()),
                    Ok(false) => return Some(End::Pause),
                    Err(end) => Err(end),
                },
                Err(error) => Err(End::Lost(error)),
            };
            if let Err(end) = answers {
                if is_sent
                    && self.flight.lowest() == Some(suspect)
                    && matches!(&end, End::Lost(error) if error.is_by_peer())
                {
                    let reason = "central ends the connection whenever it is sent this event";
                    self.bury(&[(suspect, reason.into())]).await;
                    self.deaths = Deaths::default();
                    self.flight.clear();
                }
                return Some(end);
            }
        }
    }

    /// Sends one event alone, whatever else the lane's settings say; `false` if it is not to be sent.
    fn push_alone(&mut self, walk: &mut Walk, offset: u64, session: &Session, output: &mut Output) -> bool {
        let recorded = walk.recorded();
        if self.skip.contains(offset) {
            return false;
        }
        let Some(step) = walk.step_to(&self.lane, offset) else { return false };
        let Some((published, sequence)) = step.numbered else { return false };
        let is_v5 = session.protocol() == Protocol::V5;
        let out = &mut self.rendering;
        published.renderer.render(&step.record, sequence, recorded, is_v5, out);
        push_rendered(output, session, self.flight.next_id(), out);
        self.flight.push(Sent::one(offset, published.stream, clock::instant(), recorded));
        self.stats.sent.add(1);
        true
    }
}
