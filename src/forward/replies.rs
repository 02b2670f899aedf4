//! Handles central's replies: settles events, retries them, or turns them into dead letters.

use super::{Forwarder, SessionEnd};
use crate::api::LetterStage;
use crate::clock;
use crate::contract::Rendering;
use crate::event::{Attribute, Content, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::journal::{Outcome, Published, Step, Waiter};
use crate::link::{LinkError, Rejection, Reply, Session};
use crate::runtime::spawn_blocking;
use std::borrow::Cow;
use std::sync::Arc;

impl Forwarder {
    /// Handles all replies that have arrived. Returns `false` if events have to be sent again.
    pub(super) async fn handle_replies(&mut self, session: &mut Session) -> Result<bool, SessionEnd> {
        let mut settled: Vec<(u64, u32, Outcome)> = Vec::new();
        let mut poison = Vec::new();
        let mut is_all_settled = true;
        let mut end = Ok(());
        let (now, wall) = (clock::instant(), Timestamp::from(clock::wall()));
        loop {
            let (id, rejection) = match session.next_reply() {
                Ok(None) => break,
                Ok(Some(Reply::PingResponse | Reply::Connected { .. })) => continue,
                Ok(Some(Reply::Acknowledged(id))) => (id, None),
                Ok(Some(Reply::NoSubscribers(id))) => {
                    self.stats.unheard.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central acknowledged an event whose topic has no subscriber there");
                    }
                    let holds = self.config.require_subscriber;
                    (id, holds.then_some(Rejection::NO_SUBSCRIBERS))
                }
                Ok(Some(Reply::Rejected(id, rejection))) => (id, Some(rejection)),
                Ok(Some(Reply::ConnectRejected(reason) | Reply::Disconnected(reason))) => {
                    end = Err(SessionEnd::Lost(LinkError::Ended(reason)));
                    break;
                }
                Err(error) => {
                    end = Err(SessionEnd::Lost(error));
                    break;
                }
            };
            let Some(sent) = self.flight.take(id) else {
                end = Err(SessionEnd::Lost(LinkError::Protocol(format!(
                    "an acknowledgement of packet {id}, which is not in flight"
                ))));
                break;
            };
            match rejection {
                None => {
                    self.stats.answer.record(now.duration_since(sent.sent_at), 1);
                    self.stats.settle.record(wall.since(sent.recorded), 1);
                    settled.extend(sent.offsets().map(|offset| (offset, sent.stream, Outcome::Delivered)));
                    self.batcher.double_size();
                }
                Some(Rejection::Permanent(code, why)) if sent.count() > 1 => {
                    tracing::debug!(lane = %self.lane.name, destination = %self.config.name, events = sent.count(), "central rejected a batch: 0x{code:02x} {why}; will retry with batches of half the size");
                    self.batcher.halve_size(sent.count());
                    is_all_settled = false;
                }
                Some(Rejection::Permanent(code, why)) => {
                    poison.push((sent.offset, format!("central refuses it: 0x{code:02x} {why}")))
                }
                Some(Rejection::Temporary(code, why)) => {
                    self.stats.refused_for_now.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central rejected an event temporarily: 0x{code:02x} {why}; will retry");
                    }
                    is_all_settled = false;
                }
            }
        }
        if !settled.is_empty() {
            self.lane.settle(&self.config.name, &settled);
            self.followed.end(&settled);
            self.stats.delivered.add(settled.len() as u64);
            self.refused_pauses.reset();
        }
        is_all_settled &= self.write_dead_letters(&poison).await;
        end.map(|()| is_all_settled)
    }

    /// Writes dead letters for events, and settles the events once the letters are durable. Returns `false` if an
    /// event could not be read or its letter not stored; that event stays unsettled.
    pub(super) async fn write_dead_letters(&mut self, events: &[(u64, String)]) -> bool {
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
            let dead_letter = self.dead_letter(&record, numbered, reason, recorded, now);
            // A dead letter acknowledges no exchange with a client.
            let attributes = record.attributes.iter().filter(|one| !matches!(one, Attribute::Exchange { .. }));
            let stored = dead_letter.encode();
            let letter = dead_letter.record(&stored, publication, attributes.copied().collect());
            if let Ok(ticket) = self.dead.submit_when_room(&letter, &mut waiter).await {
                settled.push((at, stream, ticket));
            }
        }
        let mut durable = Vec::new();
        for (offset, stream, ticket) in settled {
            // The cursor moves after the dead letter is durable: a crash in between only repeats the event.
            if self.dead.await_receipt(ticket, &waiter).await.is_ok() {
                durable.push((offset, stream, Outcome::Dead));
            }
        }
        self.stats.dead.add(durable.len() as u64);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(lane = %self.lane.name, destination = %self.config.name, count = durable.len(), held_back, "events became dead letters; see `forebay dead list`");
        }
        self.lane.settle(&self.config.name, &durable);
        self.followed.end(&durable);
        if !durable.is_empty() {
            // A crash that loses the cursor would write second dead letters for these events.
            self.lane.write_cursors_soon();
        }
        durable.len() == events.len()
    }

    fn dead_letter<'a>(
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
            stage: LetterStage::Central,
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
