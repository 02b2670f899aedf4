//! Notes: small values that a part of the gateway saves over a restart, in `state.redb`.
//!
//! Promise: notes that are written together are stored together or not at all, and are durable when the write returns.

use super::core::Core;
use super::journal::Journal;
use crate::api::StateRecount;
use crate::journal::store::error::JournalError;
use crate::journal::store::state::{Change, Note};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

/// The notes of one part of the gateway. Every call blocks the thread.
#[derive(Clone, Debug)]
pub struct Notes {
    core: Arc<Core>,
    /// Prefix of its names: `{part}/`.
    prefix: String,
}

impl Journal {
    /// Counts the notes of all parts, reading every one. Blocks the thread.
    pub fn recount_state(&self) -> StateRecount {
        self.core().state.recount()
    }

    /// The notes of a part.
    pub fn notes(&self, part: &str) -> Notes {
        Notes { core: Arc::clone(self.core()), prefix: format!("{part}/") }
    }
}

impl Notes {
    /// Name and content of every note whose name begins with `start`, in the order of names.
    pub fn all(&self, start: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let found = self.core.state.notes(&format!("{}{start}", self.prefix))?;
        Ok(found.into_iter().map(|(name, content)| (name[self.prefix.len()..].to_owned(), content)).collect())
    }

    /// Calls `each` for every note whose name begins with `start`, in the order of names. Holds one note
    /// in memory at a time.
    pub fn each(&self, start: &str, mut each: impl FnMut(&str, &[u8])) -> Result<(), JournalError> {
        let (own, prefix) = (self.prefix.len(), format!("{}{start}", self.prefix));
        self.core.state.each_note(&prefix, Bound::Included(&prefix), |name, content| {
            each(&name[own..], content);
            ControlFlow::Continue(())
        })
    }

    /// Content of a note, if it exists.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.core.state.read_note(&format!("{}{name}", self.prefix))
    }

    /// Writes notes, all or none; `None` removes one.
    pub fn write(&self, notes: Vec<Note>) -> Result<(), JournalError> {
        self.write_audited(notes, Vec::new())
    }

    /// Makes changes in order, all or none.
    pub fn change(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let with_part = |name: String| format!("{}{name}", self.prefix);
        let changes = changes.into_iter().map(|change| match change {
            Change::Put(name, content) => Change::Put(with_part(name), content),
            Change::Remove(name) => Change::Remove(with_part(name)),
            Change::RemoveAll(start) => Change::RemoveAll(with_part(start)),
        });
        self.core.state.change(&changes.collect::<Vec<_>>())
    }

    /// Compacts `state.redb`, which holds the notes of all parts, if most of the file is free.
    pub fn compact(&self) -> Result<(), JournalError> {
        self.core.state.compact()
    }

    /// Writes notes together with audit entries about them ([`Journal::audit_note`]).
    pub fn write_audited(&self, notes: Vec<Note>, entries: Vec<Note>) -> Result<(), JournalError> {
        let with_part = |(name, content): Note| (format!("{}{name}", self.prefix), content);
        let is_audited = !entries.is_empty();
        self.core.state.write_notes(&notes.into_iter().map(with_part).chain(entries).collect::<Vec<_>>())?;
        if is_audited { self.core.audit.trim() } else { Ok(()) }
    }
}
