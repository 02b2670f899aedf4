//! Notes: what a part of the gateway has to remember over a restart and is no event, in `state.redb`.
//!
//! Promise: notes written together are there together, and on the disk when the write returns.

use super::Core;
use super::{Change, Journal, JournalError, Note, StateRecount};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

/// The notes of one part of the gateway. Every call blocks the thread.
#[derive(Clone, Debug)]
pub struct Notes {
    core: Arc<Core>,
    /// `{part}/`.
    prefix: String,
}

impl Journal {
    /// Reads every note of every part, and says what there is. Blocks the thread.
    pub fn recount_state(&self) -> StateRecount {
        self.core.state.recount()
    }

    /// The notes of a part.
    pub fn notes(&self, part: &str) -> Notes {
        Notes { core: Arc::clone(&self.core), prefix: format!("{part}/") }
    }
}

impl Notes {
    /// Every note whose name begins with `start`: name and content, in the order of the names.
    pub fn all(&self, start: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let found = self.core.state.notes(&format!("{}{start}", self.prefix))?;
        Ok(found.into_iter().map(|(name, content)| (name[self.prefix.len()..].to_owned(), content)).collect())
    }

    /// Hands every note whose name begins with `start` to `each`, in the order of the names. Never more than one is in memory.
    pub fn each(&self, start: &str, mut each: impl FnMut(&str, &[u8])) -> Result<(), JournalError> {
        let (own, prefix) = (self.prefix.len(), format!("{}{start}", self.prefix));
        self.core.state.each_note(&prefix, Bound::Included(&prefix), |name, content| {
            each(&name[own..], content);
            ControlFlow::Continue(())
        })
    }

    /// A note, if there is one.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.core.state.read_note(&format!("{}{name}", self.prefix))
    }

    /// Writes notes, all or none; `None` removes one.
    pub fn write(&self, notes: Vec<Note>) -> Result<(), JournalError> {
        self.write_audited(notes, Vec::new())
    }

    /// Makes changes in their order, all or none.
    pub fn change(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let with_part = |name: String| format!("{}{name}", self.prefix);
        let changes = changes.into_iter().map(|change| match change {
            Change::Put(name, content) => Change::Put(with_part(name), content),
            Change::Remove(name) => Change::Remove(with_part(name)),
            Change::RemoveAll(start) => Change::RemoveAll(with_part(start)),
        });
        self.core.state.change(&changes.collect::<Vec<_>>())
    }

    /// Makes the file of the notes of all parts small again, if it is worth it.
    pub fn compact(&self) -> Result<(), JournalError> {
        self.core.state.compact()
    }

    /// The same together with entries of the audit that tell of them ([`Journal::audit_note`]).
    pub fn write_audited(&self, notes: Vec<Note>, entries: Vec<Note>) -> Result<(), JournalError> {
        let with_part = |(name, content): Note| (format!("{}{name}", self.prefix), content);
        let is_audited = !entries.is_empty();
        self.core.state.write_notes(&notes.into_iter().map(with_part).chain(entries).collect::<Vec<_>>())?;
        if is_audited { self.core.trim_audit() } else { Ok(()) }
    }
}
