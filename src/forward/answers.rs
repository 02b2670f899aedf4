//! What central's answers mean for the events in flight.

use super::{End, Forwarder, REFUSED_PAUSE};
use crate::clock;
use crate::contract::Rendering;
use crate::event::{Attribute, Content, Record, Timestamp};
use crate::ingest::dead::{DeadLetter, Stage};
use crate::journal::{Outcome, Published, Step, Waiter};
use crate::link::{Answer, LinkError, Refusal, Session};
use crate::runtime::spawn_blocking;
use std::borrow::Cow;
use std::sync::Arc;

impl Forwarder {
    /// Settles what central has answered. `false`: something has to be sent again.
    pub(super) async fn settle_answers(&mut self, session: &mut Session) -> Result<bool, End> {
        let mut settled: Vec<(u64, u32, Outcome)> = Vec::new();
        let mut poison = Vec::new();
        let mut is_all_settled = true;
        let mut end = Ok(());
        let (now, wall) = (clock::instant(), Timestamp::from(clock::wall()));
        loop {
            let (id, refusal) = match session.answer() {
                Ok(None) => break,
                Ok(Some(Answer::Alive | Answer::Connected { .. })) => continue,
                Ok(Some(Answer::Taken(id))) => (id, None),
                Ok(Some(Answer::Unheard(id))) => {
                    self.stats.unheard.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central acknowledged an event that nobody there has subscribed to");
                    }
                    let holds = self.config.require_subscriber;
                    (id, holds.then_some(Refusal::ForNow(0x10, "no matching subscribers")))
                }
                Ok(Some(Answer::Refused(id, refusal))) => (id, Some(refusal)),
                Ok(Some(Answer::NotConnected(reason) | Answer::Goodbye(reason))) => {
                    end = Err(End::Lost(LinkError::Ended(reason)));
                    break;
                }
                Err(error) => {
                    end = Err(End::Lost(error));
                    break;
                }
            };
            let Some(sent) = self.flight.answered(id) else {
                end = Err(End::Lost(LinkError::Protocol(format!(
                    "an acknowledgement of packet {id}, which is not in flight"
                ))));
                break;
            };
            match refusal {
                None => {
                    self.stats.answer.record(now.duration_since(sent.at), 1);
                    self.stats.settle.record(wall.since(sent.recorded), 1);
                    settled.extend(sent.offsets().map(|offset| (offset, sent.stream, Outcome::Delivered)));
                    self.gatherings.relax();
                }
                Some(Refusal::ForEver(code, why)) if sent.count() > 1 => {
                    tracing::debug!(lane = %self.lane.name, destination = %self.config.name, events = sent.count(), "central refuses a batch: 0x{code:02x} {why}; it is halved");
                    self.gatherings.halve(sent.count());
                    is_all_settled = false;
                }
                Some(Refusal::ForEver(code, why)) => {
                    poison.push((sent.offset, format!("central refuses it: 0x{code:02x} {why}")))
                }
                Some(Refusal::ForNow(code, why)) => {
                    self.stats.refused_for_now.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central refuses for now: 0x{code:02x} {why}");
                    }
                    is_all_settled = false;
                }
            }
        }
        if !settled.is_empty() {
            self.lane.settle(&self.config.name, &settled);
            self.followed.end(&settled);
            self.stats.delivered.add(settled.len() as u64);
            self.refused_pause = REFUSED_PAUSE.0;
        }
        is_all_settled &= self.bury(&poison).await;
        end.map(|()| is_all_settled)
    }

    /// Makes dead letters of events, and settles them once those are on the disk. `false`: not all
    /// of them could be read or stored, and remain as they are.
    pub(super) async fn bury(&mut self, events: &[(u64, String)]) -> bool {
        if events.is_empty() {
            return true;
        }
        let now = Timestamp::from(clock::wall());
        let mut waiter = Waiter::default();
        let mut settled = Vec::new();
        for (offset, reason) in events {
            let lane = Arc::clone(&self.lane);
            let at = *offset;
            let Ok(Ok(Some(mut walk))) = spawn_blocking(move || lane.walk_at(at)).await else {
                continue;
            };
            let recorded = walk.recorded();
            let Some(Step { record, numbered, .. }) = walk.step_to(&self.lane, at) else { continue };
            let (stream, publication) = (numbered.map_or(0, |(published, _)| published.stream), record.publication);
            let letter = self.letter(&record, numbered, reason, recorded, now);
            let ticket = loop {
                // A letter has no exchange to acknowledge.
                let attributes = record.attributes.iter().filter(|one| !matches!(one, Attribute::Exchange { .. }));
                match letter.submit(&self.dead, publication, attributes.copied().collect(), &mut waiter) {
                    Ok(ticket) => break Some(ticket),
                    Err(crate::journal::NotTaken::NoRoom) => self.dead.room().await,
                    Err(crate::journal::NotTaken::Closed) => break None,
                }
            };
            if let Some(ticket) = ticket {
                settled.push((at, stream, ticket));
            }
        }
        let mut done = Vec::new();
        for (offset, stream, ticket) in settled {
            // A dead letter first, then the cursor: dying in between only repeats the event.
            if self.dead.await_receipt(ticket, &waiter).await.is_ok() {
                done.push((offset, stream, Outcome::Dead));
            }
        }
        self.stats.dead.add(done.len() as u64);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(lane = %self.lane.name, destination = %self.config.name, count = done.len(), held_back, "events became dead letters; see `forebay dead list`");
        }
        self.lane.settle(&self.config.name, &done);
        self.followed.end(&done);
        if !done.is_empty() {
            // A cursor that is lost would make second letters of these.
            self.lane.write_cursors_soon();
        }
        done.len() == events.len()
    }

    fn letter<'a>(
        &'a self,
        record: &'a Record<'a>,
        numbered: Option<(&Arc<Published>, u64)>,
        reason: &'a str,
        recorded: Timestamp,
        now: Timestamp,
    ) -> DeadLetter<'a> {
        let (stream, version, sequence, topic) = match numbered {
            Some((published, sequence)) => {
                let mut rendering = Rendering::default();
                published.renderer.render(record, sequence, recorded, false, &mut rendering);
                let topic = String::from_utf8_lossy(&rendering.topic).into_owned();
                (published.publication.stream.clone(), published.publication.version.clone(), sequence, topic)
            }
            None => (String::new(), String::new(), 0, String::new()),
        };
        let auth = record.attribute(|attribute| match attribute {
            Attribute::Auth { kind, name } => Some((*kind, *name)),
            _ => None,
        });
        DeadLetter {
            stage: Stage::Central,
            reason: Cow::Borrowed(reason),
            stream: Cow::Owned(stream),
            version: Cow::Owned(version),
            topic: Cow::Owned(topic),
            origin: Cow::Borrowed(record.origin),
            event_id: record.id.to_string(),
            key: Cow::Borrowed(record.key),
            sequence,
            time: record.time,
            first_attempt: now,
            last_attempt: now,
            attempts: 1,
            destination: Cow::Borrowed(&self.config.name),
            client: Cow::Borrowed(""),
            user: Cow::Borrowed(auth.map_or("", |(_, name)| name)),
            authtype: auth.map(|(kind, _)| kind),
            is_by_rule: false,
            taken: Some(recorded),
            is_opaque: record.content == Content::Bytes,
            payload: Cow::Borrowed(record.payload),
        }
    }
}
