//! The state, in `state.redb`: high-water marks, and notes of the parts (sessions, positions, last values).
//!
//! Promise: a number below a mark that [`State::raise`] stored is not assigned again after any crash, even if the segment
//! that used it is lost. Notes that are written together are stored together or not at all.
//! Invariant: after a failed fsync the file is never written again; its content is copied to a new file. The kernel may
//! have dropped the pages of the failed fsync, and the next fsync succeeds without them.

use super::disk::{Backend, Disk, Identity, Open};
use super::error::{JournalError, catch_panic};
use crate::api::StateRecount;
use parking_lot::{Mutex, MutexGuard};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

mod compact;

const MARKS: TableDefinition<'_, &str, u64> = TableDefinition::new("marks");
const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");
/// Name and content of a note; `None` removes it.
pub type Note = (String, Option<Vec<u8>>);
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(String, Vec<u8>),
    /// Removes a note if it exists.
    Remove(String),
    /// Removes every note whose name begins with this prefix.
    RemoveAll(String),
}

/// Most of `state.redb` is read once, at the start; a larger cache would hardly be used.
const CACHE_BYTES: usize = 256 << 10;
/// How far ahead numbers are reserved: one small commit for this many events.
pub(crate) const RESERVE: u64 = 1 << 20;

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// The open state of a journal.
#[derive(Debug)]
pub(crate) struct State {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    database: Mutex<Slot>,
}

#[derive(Debug)]
struct OpenFile {
    database: Database,
    identity: Identity,
    /// Whether an fsync of the file has failed.
    sync_failed: Arc<AtomicBool>,
}

/// The open file, or why none is open.
#[derive(Debug, Default)]
enum Slot {
    Open(OpenFile),
    /// Closed, or an operation failed: the next write opens the file again.
    #[default]
    Closed,
    /// An fsync failed: the next write goes to a new file.
    SyncFailed,
}

impl State {
    /// Opens or creates the state. Quarantines a damaged file and returns its new path as the second value.
    pub(crate) fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<(Self, Option<PathBuf>), JournalError> {
        let path = folder.join("state.redb");
        let state = Self { disk, path, database: Mutex::default() };
        let found = state.disk.list(folder).map_err(|error| JournalError::io(folder, error))?;
        let mut quarantined = None;
        if !found.iter().any(|(name, _)| name == "state.redb") {
            *state.lock() = Slot::Open(state.write_new(None)?);
            return Ok((state, quarantined));
        }
        match state.open_database() {
            Ok(handle) => {
                *state.lock() = Slot::Open(handle);
                // The state can be used even if compaction fails.
                if let Err(error) = state.compact() {
                    tracing::warn!(%error, "could not compact the state; it stays as large as it is");
                }
            }
            Err(error @ JournalError::Damaged { .. }) => {
                tracing::error!(%error, "the high-water marks are lost with this file; setting it aside as state.redb.damaged, the lanes resume behind every number that they may have assigned");
                quarantined = Some(super::error::quarantine(&*state.disk, &state.path)?);
                *state.lock() = Slot::Open(state.write_new(None)?);
            }
            Err(error) => return Err(error),
        }
        Ok((state, quarantined))
    }

    /// Creates the file with the content of another. It has a temporary name until it is complete, in case of a power cut.
    fn write_new(&self, content: Option<&Database>) -> Result<OpenFile, JournalError> {
        let temporary = self.path.with_extension("tmp");
        self.write_new_at(&temporary, content).inspect_err(|_| {
            // On a full disk it would occupy the room of the next attempt. It may not exist.
            let _ = self.disk.remove(&temporary);
        })
    }

    fn write_new_at(&self, temporary: &Path, content: Option<&Database>) -> Result<OpenFile, JournalError> {
        let failed = |error| JournalError::io(temporary, error);
        let file = self.disk.open(temporary, Open::New).map_err(failed)?;
        let identity = file.identity().map_err(failed)?;
        let backend = Backend::new(file);
        let sync_failed = backend.sync_failed();
        let database = catch_panic(&self.path, || {
            let database = builder().create_with_backend(backend)?;
            let mut write = database.begin_write()?;
            write.set_quick_repair(true);
            write.open_table(MARKS)?;
            if let Some(content) = content {
                copy(content, &write)?;
            }
            write.commit()?;
            Ok(database)
        })?;
        self.disk.rename(temporary, &self.path).map_err(|error| JournalError::io(&self.path, error))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        self.disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))?;
        Ok(OpenFile { database, identity, sync_failed })
    }

    /// Whether the path still leads to the open file.
    fn is_in_place(&self, identity: Identity) -> bool {
        self.disk.identity(&self.path).is_ok_and(|found| found == identity)
    }

    fn open_database(&self) -> Result<OpenFile, JournalError> {
        let failed = |error| JournalError::io(&self.path, error);
        let file = self.disk.open(&self.path, Open::Existing).map_err(failed)?;
        let identity = file.identity().map_err(failed)?;
        file.sync_and_reread().map_err(failed)?;
        let is_empty = file.length().map_err(failed)? == 0;
        let backend = Backend::new(file);
        let sync_failed = backend.sync_failed();
        let database = catch_panic(&self.path, || {
            if is_empty {
                return Err(redb::Error::Corrupted("the file is empty".into()));
            }
            let mut database = builder().create_with_backend(backend)?;
            // Checks every page against its checksum: damage shows now rather than in operation, or never, as a wrong
            // number. The file is small.
            if !database.check_integrity()? {
                return Err(redb::Error::Corrupted("a page does not fit its checksum".into()));
            }
            database.begin_read()?.open_table(MARKS)?;
            Ok(database)
        })?;
        Ok(OpenFile { database, identity, sync_failed })
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.database.lock()
    }

    /// The mark of a name; 0 if there is none.
    pub(crate) fn mark(&self, name: &str) -> Result<u64, JournalError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(MARKS)?;
            Ok(table.get(name)?.map_or(0, |mark| mark.value()))
        })
    }

    /// All marks with their names.
    pub(crate) fn marks(&self) -> Result<Vec<(String, u64)>, JournalError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(MARKS)?;
            let mut marks = Vec::new();
            for entry in table.iter()? {
                let (name, mark) = entry?;
                marks.push((name.value().to_owned(), mark.value()));
            }
            Ok(marks)
        })
    }

    /// Opens the state of a stopped journal for inspection; the file is never changed.
    pub(crate) fn open_without_repair(disk: Arc<dyn Disk>, folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join("state.redb");
        let database = open_without_repair(&*disk, &path)?;
        Self::from_database(disk, path, database)
    }

    fn from_database(disk: Arc<dyn Disk>, path: PathBuf, database: Database) -> Result<Self, JournalError> {
        let identity = disk.identity(&path).map_err(|error| JournalError::io(&path, error))?;
        let handle = OpenFile { database, identity, sync_failed: Arc::default() };
        Ok(Self { disk, path, database: Mutex::new(Slot::Open(handle)) })
    }

    /// Raises marks, never lowers one; returns when they are durable.
    pub(crate) fn raise(&self, marks: &[(String, u64)]) -> Result<(), JournalError> {
        self.write(|write| {
            let mut table = write.open_table(MARKS)?;
            for (name, mark) in marks {
                let current = table.get(name.as_str())?.map_or(0, |mark| mark.value());
                table.insert(name.as_str(), current.max(*mark))?;
            }
            Ok(())
        })
    }

    /// Every note whose name begins with `prefix`, in the order of names.
    pub(crate) fn notes(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let mut found = Vec::new();
        self.each_note(prefix, Bound::Included(prefix), |name, value| {
            found.push((name.to_owned(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Notes behind `after` whose name begins with `prefix`, in the order of names, up to about `bytes_max`; at least
    /// one if there is one.
    pub(crate) fn notes_after(
        &self,
        prefix: &str,
        after: &str,
        bytes_max: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        self.each_note(prefix, Bound::Excluded(after), |name, value| {
            found.push((name.to_owned(), value.to_vec()));
            bytes += name.len() + value.len();
            if bytes >= bytes_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Counts all notes, page by page: writers do not wait for the whole count.
    pub(crate) fn recount(&self) -> StateRecount {
        const STEP_BYTES: usize = 1 << 20;
        let mut count = StateRecount::default();
        let mut after = String::new();
        loop {
            match self.notes_after("", &after, STEP_BYTES) {
                Ok(mut notes) => {
                    count.notes += notes.len() as u64;
                    count.bytes += notes.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>();
                    let Some((last, _)) = notes.pop() else { return count };
                    after = last;
                }
                Err(error) => return StateRecount { fault: Some(error.to_string()), ..count },
            }
        }
    }

    /// Counts the notes of a stopped journal, and checks every page against its checksum.
    pub(crate) fn recount_without_repair(disk: Arc<dyn Disk>, folder: &Path) -> StateRecount {
        let path = folder.join("state.redb");
        let checked =
            open_checked_without_repair(&*disk, &path).and_then(|database| Self::from_database(disk, path, database));
        checked
            .map(|state| state.recount())
            .unwrap_or_else(|error| StateRecount { fault: Some(error.to_string()), ..StateRecount::default() })
    }

    /// Name and size of every note whose name begins with `prefix`.
    pub(crate) fn note_sizes(&self, prefix: &str) -> Result<Vec<(String, usize)>, JournalError> {
        let mut found = Vec::new();
        self.each_note(prefix, Bound::Included(prefix), |name, value| {
            found.push((name.to_owned(), name.len() + value.len()));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Calls `see` for the notes from `from` on whose name begins with `prefix`, in the order of names, until it breaks.
    /// Holds one note in memory at a time.
    pub(crate) fn each_note(
        &self,
        prefix: &str,
        from: Bound<&str>,
        mut see: impl FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), JournalError> {
        self.read(|database| {
            let table = match database.begin_read()?.open_table(NOTES) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for entry in table.range::<&str>((from, Bound::Unbounded))? {
                let (name, value) = entry?;
                if !name.value().starts_with(prefix) || see(name.value(), value.value()).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The note with this name.
    pub(crate) fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|database| match database.begin_read()?.open_table(NOTES) {
            Ok(table) => Ok(table.get(name)?.map(|value| value.value().to_vec())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// Writes notes, all or none; returns when they are durable.
    pub(crate) fn write_notes(&self, notes: &[Note]) -> Result<(), JournalError> {
        self.write(|write| {
            let mut table = write.open_table(NOTES)?;
            for (name, value) in notes {
                match value {
                    Some(value) => table.insert(name.as_str(), value.as_slice())?,
                    None => table.remove(name.as_str())?,
                };
            }
            Ok(())
        })
    }

    /// Makes changes in order, all or none; returns when they are durable.
    pub(crate) fn change(&self, changes: &[Change]) -> Result<(), JournalError> {
        self.write(|write| {
            let mut table = write.open_table(NOTES)?;
            for change in changes {
                match change {
                    Change::Put(name, value) => drop(table.insert(name.as_str(), value.as_slice())?),
                    Change::Remove(name) => drop(table.remove(name.as_str())?),
                    Change::RemoveAll(prefix) => remove_all(&mut table, prefix)?,
                }
            }
            Ok(())
        })
    }

    /// Reads the file. If an error closed it, reads it without changes: the next write opens it again.
    fn read<T>(&self, look: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, JournalError> {
        let guard = self.lock();
        if let Slot::Open(OpenFile { database, .. }) = &*guard {
            return catch_panic(&self.path, || look(database));
        }
        let content = open_checked_without_repair(&*self.disk, &self.path)?;
        catch_panic(&self.path, || look(&content))
    }

    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), JournalError> {
        let mut guard = self.lock();
        let handle = match std::mem::take(&mut *guard) {
            Slot::Open(handle) => handle,
            Slot::Closed => self.open_database()?,
            Slot::SyncFailed => {
                let content = open_checked_without_repair(&*self.disk, &self.path);
                let created = content.and_then(|content| self.write_new(Some(&content)));
                created.inspect_err(|_| *guard = Slot::SyncFailed)?
            }
        };
        let written = catch_panic(&self.path, || {
            let mut write = handle.database.begin_write()?;
            write.set_quick_repair(true);
            change(&write)?;
            write.commit()?;
            Ok(())
        });
        *guard = match &written {
            Err(_) if handle.sync_failed.load(Ordering::Acquire) => Slot::SyncFailed,
            Err(_) => Slot::Closed,
            Ok(()) if self.is_in_place(handle.identity) => Slot::Open(handle),
            Ok(()) => {
                tracing::error!(file = %self.path.display(), "the file was removed or replaced while it was in use; writing it again");
                match self.write_new(Some(&handle.database)) {
                    Ok(created) => Slot::Open(created),
                    // The new file may have the name already, but not durably: the open one stays valid, and the next
                    // write tries again.
                    Err(error) => {
                        *guard = Slot::Open(handle);
                        return Err(error);
                    }
                }
            }
        };
        written
    }

    pub(crate) fn close(&self) {
        *self.lock() = Slot::Closed;
    }
}

/// Removes every note whose name begins with `prefix`.
fn remove_all(table: &mut redb::Table<'_, &str, &[u8]>, prefix: &str) -> Result<(), redb::Error> {
    let mut names = Vec::new();
    for entry in table.range(prefix..)? {
        let (name, _) = entry?;
        if !name.value().starts_with(prefix) {
            break;
        }
        names.push(name.value().to_owned());
    }
    for name in names {
        table.remove(name.as_str())?;
    }
    Ok(())
}

fn open_without_repair(disk: &dyn Disk, path: &Path) -> Result<Database, JournalError> {
    let file = disk.open(path, Open::ReadOnly).map_err(|error| JournalError::io(path, error))?;
    let over = super::overlay::Overlay::new(file).map_err(|error| JournalError::io(path, error))?;
    catch_panic(path, || {
        let database = builder().create_with_backend(Backend::new(Box::new(over)))?;
        database.begin_read()?.open_table(MARKS)?;
        Ok(database)
    })
}

/// Opens the file on disk read-only and verifies its checksums.
fn open_checked_without_repair(disk: &dyn Disk, path: &Path) -> Result<Database, JournalError> {
    let mut database = open_without_repair(disk, path)?;
    catch_panic(path, || match database.check_integrity()? {
        true => Ok(()),
        false => Err(redb::Error::Corrupted("a page does not fit its checksum".into())),
    })?;
    Ok(database)
}

/// Copies all marks and notes.
fn copy(from: &Database, to: &redb::WriteTransaction) -> Result<(), redb::Error> {
    let read = from.begin_read()?;
    let mut marks = to.open_table(MARKS)?;
    for entry in read.open_table(MARKS)?.iter()? {
        let (name, mark) = entry?;
        marks.insert(name.value(), mark.value())?;
    }
    let notes = match read.open_table(NOTES) {
        Ok(notes) => notes,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut copied = to.open_table(NOTES)?;
    for entry in notes.iter()? {
        let (name, note) = entry?;
        copied.insert(name.value(), note.value())?;
    }
    Ok(())
}
