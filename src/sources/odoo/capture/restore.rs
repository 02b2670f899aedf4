//! The state of a capture across restarts: saved notes, and the journal's events behind the last note.

use super::super::known_records::KnownRecords;
use super::super::position::Position;
use super::{Capture, NOTE_AFTER, NOTE_EVERY};
use crate::clock;
use crate::ingest::JournalError;
use crate::runtime::spawn_blocking;
use std::time::Duration;

/// Additional delay while no record changed and only the position is saved. After a crash the capture then reads a
/// longer window.
const NOTE_IDLE: Duration = Duration::from_secs(600);

impl Capture {
    /// Prefix of the names of this contract's notes.
    fn prefix(&self) -> String {
        format!("{}/{}/", self.shared.config.name, self.contract.publication.stream_id())
    }

    /// Saves the changed records and the position, if that is due.
    pub(super) async fn note_if_due(&mut self) {
        let now = clock::instant();
        let changed = self.mirror.known().dirty_count();
        let is_due = changed > 0 && now >= self.next_note || now >= self.next_note + NOTE_IDLE;
        if is_due || changed >= NOTE_AFTER {
            self.note().await;
        }
    }

    /// Saves the changed records and the position as notes.
    pub(super) async fn note(&mut self) {
        self.next_note = clock::instant() + NOTE_EVERY;
        let records = format!("{}known/", self.prefix());
        let mut notes = self.mirror.known().take_notes(&records);
        let position = Position { offset: self.applied_offset, ..self.position.clone() };
        notes.push((format!("{}position", self.prefix()), position.encode()));
        let (ours, written) = (self.notes.clone(), notes.clone());
        let result = spawn_blocking(move || ours.write(written)).await;
        if let Ok(Err(error)) = result {
            self.mirror.known().mark_dirty(&records, &notes);
            tracing::warn!(stream = %self.stream, %error, "could not save the state of Odoo records; will retry, the journal holds their events");
        }
    }

    /// Restores the state from the notes and from the events that the journal accepted after them.
    pub(super) async fn restore(&mut self) -> Result<(), JournalError> {
        let (notes, prefix, log) = (self.notes.clone(), self.prefix(), self.log.clone());
        let stream = self.contract.publication.stream_id();
        let origin = self.route.origin().to_owned();
        let pool = self.mirror.known().pool();
        let reading = spawn_blocking(move || -> Result<Option<(Position, KnownRecords)>, JournalError> {
            let position = notes.read(&format!("{prefix}position"))?.and_then(|bytes| Position::decode(&bytes));
            let Some(position) = position else { return Ok(None) };
            let mut known = KnownRecords::restore(notes.all(&format!("{prefix}known/"))?, pool);
            log.each(position.offset.max(1), |record| {
                if record.origin == origin
                    && log.is_of(record, &stream)
                    && let Ok(payload) = serde_json::from_slice(record.payload)
                {
                    let mut id = Vec::new();
                    record.id.push_text(&mut id);
                    known.apply(&String::from_utf8_lossy(&id), &payload);
                }
            })?;
            Ok(Some((position, known)))
        });
        // After a panic the capture starts without saved state.
        let Ok(read) = reading.await else { return Ok(()) };
        if let Some((position, known)) = read? {
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, records = known.len(), "capture restored; continues at the saved position");
            self.position = position;
            *self.mirror.known() = known;
            if self.position.load_after.is_none() {
                self.mirror.complete();
            }
            self.applied_offset = self.log.end();
        } else {
            // With this position a crash before the first saved records can be restored from the journal.
            self.applied_offset = self.log.end();
            self.note().await;
        }
        Ok(())
    }
}
