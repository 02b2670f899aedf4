//! What a capture remembers over a restart: notes, and behind them the journal itself.

use super::super::known::{Known, Place};
use super::super::place::Position;
use super::{Capture, NOTE_AFTER};
use crate::clock;
use crate::journal::{Found, JournalError, Lane};
use crate::runtime::spawn_blocking;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Known records that changed are noted so often: the journal holds what is behind, and each note is a commit.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Where nothing changed, only the position is noted, and so much later: after a crash a longer window is read.
const NOTE_IDLE: Duration = Duration::from_secs(600);

impl Capture {
    /// What the notes of this contract begin with.
    fn prefix(&self) -> String {
        format!("{}/{}/", self.shared.config.name, self.contract.publication.stream_id())
    }

    /// Notes what is known, if it is time.
    pub(super) async fn note_if_due(&mut self) {
        let now = clock::instant();
        let changed = self.mirror.known().dirty_count();
        let is_due = changed > 0 && now >= self.next_note || now >= self.next_note + NOTE_IDLE;
        if is_due || changed >= NOTE_AFTER {
            self.note().await;
        }
    }

    /// Notes what is known and where the capture is.
    pub(super) async fn note(&mut self) {
        self.next_note = clock::instant() + NOTE_EVERY;
        let records = format!("{}known/", self.prefix());
        let mut notes = self.mirror.known().take_notes(&records);
        let position = Position { offset: self.followed, ..self.position.clone() };
        notes.push((format!("{}position", self.prefix()), position.encode()));
        let (ours, written) = (self.notes.clone(), notes.clone());
        let result = spawn_blocking(move || ours.write(written)).await;
        if let Ok(Err(error)) = result {
            self.mirror.known().put_back(&records, &notes);
            tracing::warn!(stream = %self.stream, %error, "what is known of Odoo cannot be noted; the journal holds it meanwhile");
        }
    }

    /// Reads what was noted, and what the journal took since then.
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
        let reading = spawn_blocking(move || -> Result<Option<(Position, Known)>, JournalError> {
            let position = notes.read(&format!("{prefix}position"))?.and_then(|bytes| Position::decode(&bytes));
            let Some(position) = position else { return Ok(None) };
            let mut known = Known::restore(notes.all(&format!("{prefix}known/"))?, pool);
            let place = Place { database: &database, model: &model, stream: &name };
            follow(&lane, position.offset, &stream, &origin, |payload| known.follow(payload, &place))?;
            Ok(Some((position, known)))
        });
        // A panic there is as good as nothing noted.
        let Ok(read) = reading.await else { return Ok(()) };
        if let Some((position, known)) = read? {
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, records = known.len(), "goes on where it was");
            self.position = position;
            *self.mirror.known() = known;
            if self.position.load_after.is_none() {
                self.mirror.complete();
            }
            self.followed = self.lane.end();
        } else {
            // From here on a crash finds what the journal took, also before the first notes of records.
            self.followed = self.lane.end();
            self.note().await;
        }
        Ok(())
    }
}

/// Shows every event of a stream from an offset on. Blocks the thread.
fn follow(lane: &Lane, from: u64, stream: &str, origin: &str, mut see: impl FnMut(&Value)) -> Result<(), JournalError> {
    let mut next = from.max(1);
    let end = lane.end();
    while next < end {
        match lane.look(next)? {
            Found::Lost { to } => next = to.max(next + 1),
            Found::Block(block) => {
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
