//! The losses of a journal that wait for their announcement, and destinations that are dropped with all they are owed.
//!
//! Promise: a loss is reported until it is announced, and only if it took place.

use super::dropped;
use super::journal::Journal;
use super::loss::{EventFilter, Loss, PREFIX};
use crate::journal::store::cursor::Outcome;
use crate::journal::store::error::JournalError;
use std::sync::mpsc;
use std::time::Duration;

/// How long dropping a destination waits until the writers have removed its cursor from the log.
const FORGET_WAIT_MAX: Duration = Duration::from_secs(5);

impl Journal {
    /// Losses that wait for their announcement. Deletes notes of losses that a crash prevented. Blocks the thread.
    pub fn losses(&self) -> Result<Vec<Loss>, JournalError> {
        let _guard = self.core().discard_lock.lock();
        let noted = self.core().state.notes(PREFIX)?;
        let read = |(name, text): (String, Vec<u8>)| {
            let loss: Option<Loss> = serde_json::from_slice(&text).ok();
            if loss.is_none() {
                tracing::warn!(name, "could not read the note of a loss; its events are counted in the accounts");
            }
            loss
        };
        let (lost, kept): (Vec<Loss>, Vec<Loss>) =
            noted.into_iter().filter_map(read).partition(|loss| self.is_lost(loss));
        kept.iter().try_for_each(|loss| self.forget_loss(loss))?;
        Ok(lost)
    }

    /// Whether a loss took place: after a crash between note and account the events are still unsettled.
    fn is_lost(&self, loss: &Loss) -> bool {
        if loss.destination.is_empty() {
            return true;
        }
        let Some(lane) = self.lane(&loss.lane) else { return false };
        match lane.settled(&loss.destination) {
            Some(settled) => settled.contains(loss.offsets.0) && settled.contains(loss.offsets.1.saturating_sub(1)),
            None => true,
        }
    }

    /// Deletes the note of an announced loss. Blocks the thread.
    pub fn forget_loss(&self, loss: &Loss) -> Result<(), JournalError> {
        self.core().state.write_notes(&[(format!("{PREFIX}{}", loss.name()), None)])
    }

    /// Waits until there may be a new loss. Cancel-safe.
    pub async fn lost(&self) {
        self.core().losses.notified().await;
    }

    /// Discards everything that a destination is still owed, and removes its cursors; returns the number of events. Waits
    /// a moment until the log has no cursor of it; on a failed or full disk the writer removes it later. Blocks the thread.
    pub fn drop_destination(&self, destination: &str) -> Result<u64, JournalError> {
        let (count, forgotten) = self.discard_and_forget(destination)?;
        // Each writer drops its sender when its log has no cursor left.
        let _ = forgotten.recv_timeout(FORGET_WAIT_MAX);
        Ok(count)
    }

    /// Like [`Journal::drop_destination`], without waiting for the writers.
    #[cfg(test)]
    pub(crate) fn begin_drop(&self, destination: &str) -> Result<u64, JournalError> {
        self.discard_and_forget(destination).map(|(count, _)| count)
    }

    /// Discards what a destination is owed, and asks the writers to remove its cursors; the receiver ends when they have.
    fn discard_and_forget(&self, destination: &str) -> Result<(u64, mpsc::Receiver<()>), JournalError> {
        let (done, forgotten) = mpsc::channel();
        let mut count = 0;
        for lane in self.lanes() {
            // Segment by segment: the events of one are held in memory until they are settled.
            for offsets in lane.extents() {
                let whole_segment = EventFilter { offsets, takes: &|_, _| true };
                count += lane.discard_unsettled(destination, &whole_segment, Outcome::Discarded)?;
            }
            // From now on a start ignores the cursor in the log. The writer deletes the note.
            let noted = self.core().state.write_notes(&[(dropped::note(&lane.name, destination), Some(Vec::new()))]);
            // After an error too: the note may be durable all the same, and must not outlive the cursor that it is for.
            lane.forget_destination(destination, done.clone());
            noted?;
        }
        Ok((count, forgotten))
    }

    /// Names of all destinations with a cursor, configured or not.
    pub fn destinations(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lanes().iter().flat_map(|lane| lane.destinations()).collect();
        names.sort();
        names.dedup();
        names
    }
}
