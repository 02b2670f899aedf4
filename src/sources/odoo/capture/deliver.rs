//! From rows to events: compares rows with the known records, hands events in, and updates the known records once the
//! events are durable.

use super::super::change_event::Occasion;
use super::super::known_records::{ChangeEvent, Comparison};
use super::super::model_fields::Row;
use super::{Capture, Reading, RoundError};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Closed, EventMetadata, Submission};

impl Capture {
    /// Makes events of the changed rows, and updates the known records once the events are durable.
    pub(super) async fn process_rows(&mut self, mut rows: Vec<Row>, reading: Reading) -> Result<(), RoundError> {
        let overlap = i64::try_from(self.shared.config.overlap.0.as_secs()).unwrap_or(i64::MAX);
        let created_after = self.position.load_mark - overlap;
        if !self.section.linked.is_empty() {
            self.add_linked_to_changed(&mut rows).await?;
        }
        if matches!(reading, Reading::Poll | Reading::Reconciliation) {
            self.report_passed(&rows, created_after).await?;
        }
        let mut events = Vec::new();
        {
            let (context, id_scope) = (self.event_context(), self.id_scope());
            let mut known = self.mirror.known();
            for row in &mut rows {
                if row.write_date == 0 {
                    // Odoo does not know it, or cannot read it.
                    row.write_date = known.write_date(row.id).unwrap_or(self.position.mark);
                }
                let occasion = match reading {
                    Reading::FirstLoad => Occasion::FirstLoad,
                    Reading::Again => Occasion::Again,
                    _ if row.create_date >= created_after => Occasion::New,
                    Reading::Poll => Occasion::Written,
                    Reading::Reconciliation => Occasion::Visible,
                };
                match known.compare(row, occasion, &context, &id_scope) {
                    Comparison::Unchanged => {}
                    Comparison::Unreported(record) => known.update(row.id, Some(record)),
                    Comparison::Changed(changes) => events.extend(changes),
                }
            }
        }
        if reading == Reading::Reconciliation {
            self.reconciliation_found(&events);
        }
        self.hand_in(events).await
    }

    /// Adds the fields of linked records to the rows that differ from the known records.
    async fn add_linked_to_changed(&mut self, rows: &mut [Row]) -> Result<(), RoundError> {
        let differs: Vec<bool> = {
            let known = self.mirror.known();
            rows.iter().map(|row| known.differs(row)).collect()
        };
        let mut changed: Vec<Row> = Vec::new();
        for (row, _) in rows.iter_mut().zip(&differs).filter(|(_, differs)| **differs) {
            changed.push(std::mem::take(row));
        }
        let added = self.reader.add_linked(&mut changed).await;
        let mut changed = changed.into_iter();
        for (row, _) in rows.iter_mut().zip(&differs).filter(|(_, differs)| **differs) {
            *row = changed.next().unwrap_or_default();
        }
        Ok(added?)
    }

    /// Hands events in, waits for their receipts, then updates the known records.
    pub(super) async fn hand_in(&mut self, events: Vec<ChangeEvent>) -> Result<(), RoundError> {
        let arrived = clock::instant();
        let now = Timestamp::from(clock::wall());
        let texts = events.iter().map(|event| (event.payload.to_string(), event.record_id.to_string()));
        let texts: Vec<(String, String)> = texts.collect();
        let submissions = events.iter().zip(&texts).map(|(event, (payload, key))| {
            let time = event.time.map(|time| Timestamp(time.saturating_mul(1_000_000)));
            let metadata = EventMetadata { id: Some(&event.id), key: Some(key), time, ..EventMetadata::default() };
            let refusal = event.refusal.as_deref();
            Submission { metadata, refusal, ..Submission::new(&self.route, payload.as_bytes(), now) }
        });
        let submissions: Vec<Submission<'_>> = submissions.collect();
        self.producer.deliver(&submissions).await.map_err(|Closed| RoundError::Closed)?;
        self.shared.stats.received.add(events.len() as u64);
        if !events.is_empty() {
            self.shared.stats.ack.record(clock::instant().duration_since(arrived), events.len() as u64);
        }
        let bytes_max = self.bytes_max();
        if self.mirror.known().is_full(bytes_max) && clock::instant() >= self.next_forget {
            self.forget();
        }
        let mut known = self.mirror.known();
        let mut is_full = false;
        for event in events {
            if known.is_full(bytes_max) && !known.contains(event.record_id) {
                is_full = true;
                continue;
            }
            known.update(event.record_id, Some(event.after));
        }
        let has_room = !known.is_full(bytes_max);
        drop(known);
        if is_full || has_room {
            self.shared.health.full(&self.stream, is_full);
        }
        Ok(())
    }
}
