//! The state of a capture across restarts: saved notes, and the journal's events behind the last note.

use super::super::known_records::{IdScope, KnownRecords};
use super::super::position::Position;
use super::{Capture, NOTE_AFTER};
use crate::clock;
use crate::journal::{JournalError, Lane, ReadResult};
use crate::runtime::spawn_blocking;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Interval between two saves of changed records. The journal holds later changes, and each save is a commit.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(60);
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
        let (notes, prefix, lane) = (self.notes.clone(), self.prefix(), Arc::clone(&self.lane));
        let stream = self.contract.publication.stream_id();
        let mut origin = String::new();
        crate::event::push_path_segment(&mut origin, &self.shared.config.name);
        origin.push('/');
        crate::event::push_path_segment(&mut origin, self.shared.client.database());
        let (database, model, name) =
            (self.shared.client.database().to_owned(), self.section.model.clone(), self.stream.clone());
        let pool = self.mirror.known().pool();
        let reading = spawn_blocking(move || -> Result<Option<(Position, KnownRecords)>, JournalError> {
            let position = notes.read(&format!("{prefix}position"))?.and_then(|bytes| Position::decode(&bytes));
            let Some(position) = position else { return Ok(None) };
            let mut known = KnownRecords::restore(notes.all(&format!("{prefix}known/"))?, pool);
            let scope = IdScope { database: &database, model: &model, stream: &name };
            replay(&lane, position.offset, &stream, &origin, |payload| known.apply(payload, &scope))?;
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
            self.applied_offset = self.lane.end();
        } else {
            // With this position a crash before the first saved records can be restored from the journal.
            self.applied_offset = self.lane.end();
            self.note().await;
        }
        Ok(())
    }
}

/// Calls `see` with the payload of each event of a stream and origin from an offset on. Blocks the thread.
fn replay(lane: &Lane, from: u64, stream: &str, origin: &str, mut see: impl FnMut(&Value)) -> Result<(), JournalError> {
    let mut next = from.max(1);
    let end = lane.end();
    while next < end {
        match lane.look(next)? {
            ReadResult::Lost { to } => next = to.max(next + 1),
            ReadResult::Block(block) => {
                for (offset, record) in (block.header.first..).zip(block.records()) {
                    let is_ours = offset >= next
                        && record.origin == origin
                        && lane
                            .published(record.publication)
                            .is_some_and(|published| published.publication.stream_id() == stream);
                    if is_ours && let Ok(payload) = serde_json::from_slice(record.payload) {
                        see(&payload);
                    }
                }
                next = next.max(block.end());
            }
        }
    }
    Ok(())
}
