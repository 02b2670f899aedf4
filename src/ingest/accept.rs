//! Accepts an event: checks it, builds its record, and submits it to its lane or to the dead letters.

use super::Ingest;
use super::cloudevents::CloudEvent;
use super::dead::DeadLetter;
use super::route::Target;
use super::submission::{EventMetadata, Submission, Submitted};
use crate::api::LetterStage;
use crate::clock;
use crate::contract::Decode;
use crate::event::{Attribute, Id, Record, push_path_segment};
use crate::journal::{SubmitError, Waiter};
use crate::mqtt::properties::PublishProperties;
use crate::telemetry;
use std::borrow::Cow;

impl Ingest {
    pub(super) fn accept(&self, submission: &Submission<'_>, waiter: &mut Waiter) -> Result<Submitted, SubmitError> {
        let route = submission.route;
        if let Some(reason) = submission.refusal {
            let target = route.target.as_ref();
            let payload = target.map(|to| to.contract.minimised(submission.payload, to.mask_key.bytes()));
            let submission = Submission { payload: payload.as_deref().unwrap_or(submission.payload), ..*submission };
            return self.violation(&submission, reason, waiter);
        }
        if route.is_over_pace() {
            return Err(SubmitError::NoRoom);
        }
        let taken = match &route.target {
            None => {
                let taken =
                    self.dead_letter(submission, &format!("topic: no contract matches it{}", route.hint()), waiter)?;
                self.stats.unmatched.add(1);
                taken
            }
            Some(target) if target.contract.decode == Some(Decode::SparkplugB) => {
                self.accept_sparkplug(submission, target, waiter)?
            }
            Some(target) => match CloudEvent::of_publish(&submission.metadata, submission.payload) {
                None => self.accept_json(submission, target, waiter)?,
                Some(Ok(event)) => {
                    let metadata = event.metadata(&submission.metadata, &route.client);
                    self.accept_json(&Submission { metadata, payload: &event.payload, ..*submission }, target, waiter)?
                }
                Some(Err(reason)) => self.violation(submission, &reason, waiter)?,
            },
        };
        route.pace.iter().for_each(|pace| pace.charge(route.party));
        Ok(taken)
    }

    /// Decodes the message, submits the event or dead letter, and only then updates the state of the node.
    fn accept_sparkplug(
        &self,
        submission: &Submission<'_>,
        target: &Target,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let Some(sparkplug) = self.sparkplug() else {
            // `apply` has created it for this contract.
            return self.accept_json(submission, target, waiter);
        };
        let route = submission.route;
        let decoded = sparkplug.decode(&route.source, &route.topic, submission.payload);
        let metadata = EventMetadata { content_type: None, ..submission.metadata };
        let submission = Submission { metadata, ..*submission };
        let mut taken = match &decoded.json {
            Ok(json) => self.accept_json(&Submission { payload: json, ..submission }, target, waiter)?,
            Err(reason) => {
                let taken = self.violation(&submission, reason, waiter)?;
                sparkplug.stats.refused.add(1);
                taken
            }
        };
        if let Some(change) = decoded.change {
            taken.sparkplug_save = sparkplug.apply(change, route.sender(), || waiter.bell());
        }
        Ok(taken)
    }

    /// Makes a dead letter of an event that breaks its contract; `reason` starts with the field.
    fn violation(
        &self,
        submission: &Submission<'_>,
        reason: &str,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let taken = self.dead_letter(submission, reason, waiter)?;
        self.stats.violations.add(1);
        Ok(taken)
    }

    fn accept_json(
        &self,
        submission: &Submission<'_>,
        target: &Target,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let &Submission { route, payload, ref metadata, arrived, .. } = submission;
        let reading = match target.contract.read(&target.captures, payload, target.mask_key.bytes()) {
            Ok(reading) => reading,
            Err(violation) => {
                let submission = Submission { payload: &violation.payload, ..*submission };
                return self.violation(&submission, &violation.reason, waiter);
            }
        };
        let properties = metadata.properties.filter(|block| !block.is_empty()).map(PublishProperties::read);
        let kept = properties.map(|found| target.contract.kept_properties(&found, arrived)).transpose();
        let kept = match kept {
            Ok(kept) => kept.unwrap_or_default(),
            Err(reason) => {
                let submission = Submission { payload: &reading.payload, ..*submission };
                return self.violation(&submission, &reason, waiter);
            }
        };
        let mut attributes = metadata.attributes();
        attributes.extend(kept);
        attributes.extend(route.auth());
        attributes.extend(reading.violation.as_deref().map(Attribute::Violation));
        attributes.extend((!clock::is_trusted()).then_some(Attribute::ClockStatus("untrusted")));
        attributes.extend(metadata.exchange());
        let given = reading.id.as_deref().or(metadata.id);
        let id = match given {
            Some(id) => Id::Text(id),
            None => Id::mint(),
        };
        let key = metadata.key.filter(|_| !target.contract.has_own_key).unwrap_or(&reading.key);
        let record = Record {
            publication: target.placed.publication,
            id,
            time: reading.time.or(metadata.time).unwrap_or(arrived),
            origin: &origin(submission),
            key,
            content: reading.content,
            attributes,
            payload: &reading.payload,
        };
        let (index, lane) = (target.placed.lane, self.lanes(target.placed.lane));
        if !self.shares.has_share(index, lane, route.party) {
            self.note_slowed(index, lane, route);
            return Err(SubmitError::NoRoom);
        }
        let ticket = lane.submit(&record, target.contract.dedupe_of(metadata.id.is_some()), waiter)?;
        self.shares.add(index, route.party, record.payload.len() + record.key.len() + record.origin.len());
        if let Some(span) = telemetry::follow(&record.id) {
            let stream = target.contract.stream();
            span.in_scope(|| tracing::debug!(target: telemetry::FOLLOW, source = %route.origin, stream, "taken in"));
        }
        if reading.violation.is_some() {
            self.stats.flagged.add(1);
        }
        let clock_offset = reading.time.map(|time| time.0.saturating_sub(arrived.0));
        Ok(Submitted { lane: target.placed.lane, ticket, is_dead: false, clock_offset, sparkplug_save: 0 })
    }

    fn dead_letter(
        &self,
        submission: &Submission<'_>,
        reason: &str,
        waiter: &mut Waiter,
    ) -> Result<Submitted, SubmitError> {
        let &Submission { route, payload, ref metadata, arrived, .. } = submission;
        let target = route.target.as_ref();
        let (stream, version) = target.map_or(("unmatched", ""), |target| {
            (target.contract.stream(), target.contract.publication.version.as_str())
        });
        let letter = DeadLetter {
            stage: LetterStage::Intake,
            reason: Cow::Borrowed(reason),
            stream: Cow::Borrowed(stream),
            version: Cow::Borrowed(version),
            topic: Cow::Borrowed(&route.topic),
            origin: origin(submission),
            event_id: metadata.id.unwrap_or_default().to_owned(),
            key: Cow::Borrowed(metadata.key.unwrap_or_default()),
            sequence: 0,
            time: metadata.time.unwrap_or(arrived),
            first_attempt: arrived,
            last_attempt: arrived,
            attempts: 0,
            destination: Cow::Borrowed(""),
            client: Cow::Borrowed(&route.client),
            user: Cow::Borrowed(&route.user),
            authtype: route.proven_by,
            is_by_rule: route.is_by_rule,
            taken: None,
            is_opaque: false,
            payload: Cow::Borrowed(payload),
        };
        let publication = target.map_or(0, |target| target.placed.publication);
        // A requeue needs all data that the source provided.
        let mut attributes = metadata.attributes();
        attributes.extend(metadata.exchange());
        attributes.extend(metadata.properties.filter(|block| !block.is_empty()).map(Attribute::Properties));
        let log = self.journal.dead();
        if !self.shares.has_dead_share(log, route.party) {
            self.note_slowed(self.journal.lanes().len(), log, route);
            return Err(SubmitError::NoRoom);
        }
        let ticket = log.submit(&letter.record(&letter.encode(), publication, attributes), None, waiter)?;
        self.shares.add_dead(log, route.party, payload.len());
        Ok(Submitted { lane: self.journal.lanes().len(), ticket, is_dead: true, clock_offset: None, sparkplug_save: 0 })
    }
}

/// The origin of an event: source and device, and the part of the device if there is one.
fn origin<'s>(submission: &'s Submission<'_>) -> Cow<'s, str> {
    let route = submission.route;
    submission.metadata.part.map_or(Cow::Borrowed(route.origin.as_str()), |part| {
        let mut origin = route.origin.clone();
        origin.push('/');
        push_path_segment(&mut origin, part);
        Cow::Owned(origin)
    })
}
