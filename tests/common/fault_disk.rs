//! A disk in memory whose power can be cut at any operation, and which then keeps only what a
//! real one has to: what was synced, and of the rest whatever chance leaves, torn and reordered.

use forebay::journal::disk::{Disk, DiskFile, Open};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What becomes of operations that were not synced when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// None reaches the disk.
    Dropped,
    /// All of them do.
    Kept,
    /// Each write does or does not, in any order, torn at 512 bytes; names in the order they were changed.
    Random(u64),
}

#[derive(Clone, Debug, Default)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    /// Names as programs see them, and as the disk has them.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since their folder was synced.
    renames: Vec<(PathBuf, Option<u64>)>,
    next: u64,
    operations: u64,
    cut_at: Option<(u64, Unsynced)>,
    fault: Option<Fault>,
    /// Only files of this name have it; empty for all.
    fault_at: String,
    is_off: bool,
    forgets_syncs: bool,
    /// What its files may take in all; 0 for as much as there is.
    capacity: u64,
}

/// A disk that goes on, and fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every sync fails.
    Sync,
    /// Every write finds the disk full.
    Full,
    /// Nothing is left for ordinary users.
    NoFreeBytes,
}

#[derive(Clone, Debug, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn off() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl FaultDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    /// Cuts the power at that operation, counted from now.
    pub fn cut_at(&self, operation: u64, unsynced: Unsynced) {
        let mut state = self.lock();
        state.cut_at = Some((state.operations + operation, unsynced));
    }

    /// Cuts the power now.
    pub fn cut(&self, unsynced: Unsynced) {
        self.lock().cut(unsynced);
    }

    pub fn is_off(&self) -> bool {
        self.lock().is_off
    }

    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn fail(&self, fault: Option<Fault>) {
        self.fail_at("", fault);
    }

    /// As [`FaultDisk::fail`], for files of one name.
    pub fn fail_at(&self, name: &str, fault: Option<Fault>) {
        let mut state = self.lock();
        state.fault = fault;
        state.fault_at = name.to_owned();
    }

    /// Leaves so many bytes to all files together, as the free bytes say; writes beyond that pass.
    pub fn hold(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// What its files take.
    pub fn taken(&self) -> u64 {
        self.lock().taken()
    }

    /// Power on again: what is left of the disk. Those who still have files of the old one keep failing.
    pub fn restart(&self) -> FaultDisk {
        let state = self.lock();
        let files = state
            .files
            .iter()
            .map(|(id, content)| {
                let durable = content.durable.clone();
                (*id, Content { current: durable.clone(), durable, pending: Vec::new() })
            })
            .collect();
        let names = state.durable_names.clone();
        FaultDisk {
            state: Arc::new(Mutex::new(State {
                files,
                durable_names: names.clone(),
                names,
                next: state.next,
                ..State::default()
            })),
        }
    }

    /// Changes bytes of a file behind everybody's back.
    pub fn damage(&self, name_ends_with: &str, at: impl Fn(&mut Vec<u8>)) -> PathBuf {
        let mut state = self.lock();
        let (path, id) = state
            .names
            .iter()
            .filter(|(path, _)| path.to_string_lossy().ends_with(name_ends_with))
            .map(|(path, id)| (path.clone(), *id))
            .next()
            .expect("a file of that name");
        let content = state.files.get_mut(&id).expect("content");
        at(&mut content.durable);
        content.current = content.durable.clone();
        path
    }

    /// From now on a sync does nothing and says that it did.
    pub fn forget_syncs(&self) {
        self.lock().forgets_syncs = true;
    }

    pub fn names(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }
}

impl State {
    fn taken(&self) -> u64 {
        self.names.values().map(|id| self.files[id].current.len() as u64).sum()
    }

    /// Whether a file has a fault.
    fn has(&self, fault: Fault, id: u64) -> bool {
        let is_meant = || self.names.iter().any(|(path, known)| *known == id && path.ends_with(&self.fault_at));
        self.fault == Some(fault) && (self.fault_at.is_empty() || is_meant())
    }

    /// Counts an operation; an error if the power is off, or goes off with it.
    fn operate(&mut self) -> io::Result<()> {
        if self.is_off {
            return Err(off());
        }
        self.operations += 1;
        if let Some((at, unsynced)) = self.cut_at
            && self.operations >= at
        {
            self.cut(unsynced);
            return Err(off());
        }
        Ok(())
    }

    fn cut(&mut self, unsynced: Unsynced) {
        self.is_off = true;
        let mut random = match unsynced {
            Unsynced::Random(seed) => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            _ => 0,
        };
        let mut chance = |of: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % of
        };
        for content in self.files.values_mut() {
            let mut pending = std::mem::take(&mut content.pending);
            match unsynced {
                Unsynced::Dropped => pending.clear(),
                Unsynced::Kept => {}
                Unsynced::Random(_) => {
                    for at in (1..pending.len()).rev() {
                        pending.swap(at, chance(at as u64 + 1) as usize);
                    }
                    pending.retain(|_| chance(2) == 0);
                }
            }
            for operation in pending {
                match operation {
                    Pending::Length(length) => content.durable.resize(length as usize, 0),
                    Pending::Write(offset, data) => {
                        let sectors = data.chunks(512).enumerate();
                        for (index, sector) in sectors {
                            let is_torn = matches!(unsynced, Unsynced::Random(_)) && chance(8) == 0;
                            if !is_torn {
                                put(&mut content.durable, offset as usize + index * 512, sector);
                            }
                        }
                    }
                }
            }
        }
        let renames = std::mem::take(&mut self.renames);
        let kept = match unsynced {
            Unsynced::Dropped => 0,
            Unsynced::Kept => renames.len(),
            Unsynced::Random(_) => chance(renames.len() as u64 + 1) as usize,
        };
        for (path, id) in renames.into_iter().take(kept) {
            apply(&mut self.durable_names, path, id);
        }
    }

    fn name(&mut self, path: &Path, id: Option<u64>) {
        apply(&mut self.names, path.to_owned(), id);
        self.renames.push((path.to_owned(), id));
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, path: PathBuf, id: Option<u64>) {
    match id {
        Some(id) => {
            names.insert(path, id);
        }
        None => {
            names.remove(&path);
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

#[derive(Debug)]
struct File {
    disk: FaultDisk,
    id: u64,
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        if state.is_off {
            return Err(off());
        }
        Ok(state.files[&self.id].current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        if state.is_off {
            return Err(off());
        }
        let content = &state.files[&self.id].current;
        let from = offset as usize;
        match content.get(from..from + out.len()) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        // The write that the power goes with may be on the disk in part.
        let is_alive = !state.is_off;
        if is_alive {
            if state.has(Fault::Full, self.id) {
                return Err(io::Error::from_raw_os_error(28));
            }
            let content = state.files.get_mut(&self.id).expect("an open file");
            put(&mut content.current, offset as usize, data);
            content.pending.push(Pending::Write(offset, data.to_vec()));
        }
        state.operate()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.operate()?;
        if state.has(Fault::Full, self.id) {
            return Err(io::Error::from_raw_os_error(28));
        }
        let content = state.files.get_mut(&self.id).expect("an open file");
        content.current.resize(length as usize, 0);
        content.pending.push(Pending::Length(length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.operate()?;
        if state.has(Fault::Sync, self.id) {
            return Err(off());
        }
        if state.forgets_syncs {
            return Ok(());
        }
        let content = state.files.get_mut(&self.id).expect("an open file");
        content.pending.clear();
        content.durable = content.current.clone();
        Ok(())
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        let id = match how {
            Open::New => {
                state.operate()?;
                let id = state.next;
                state.next += 1;
                state.files.insert(id, Content::default());
                state.name(path, Some(id));
                id
            }
            _ if state.is_off => return Err(off()),
            _ => *state.names.get(path).ok_or(io::ErrorKind::NotFound)?,
        };
        Ok(Box::new(File { disk: self.clone(), id }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let state = self.lock();
        let inside = state.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        Ok(inside
            .map(|(path, id)| {
                (
                    path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    state.files[id].current.len() as u64,
                )
            })
            .collect())
    }

    fn make_folder(&self, _folder: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        // One change for a power cut: a rename is whole or not at all.
        apply(&mut state.names, from.to_owned(), None);
        apply(&mut state.names, to.to_owned(), Some(id));
        state.renames.push((to.to_owned(), Some(id)));
        state.renames.push((from.to_owned(), None));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        state.name(path, None);
        Ok(())
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        for (path, id) in std::mem::take(&mut state.renames) {
            apply(&mut state.durable_names, path, id);
        }
        Ok(())
    }

    fn free_bytes(&self, _folder: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(match state.capacity {
            _ if state.fault == Some(Fault::NoFreeBytes) => 0,
            0 => 1 << 40,
            capacity => capacity.saturating_sub(state.taken()),
        })
    }

    fn allocated_bytes(&self, path: &Path) -> io::Result<u64> {
        let state = self.lock();
        let id = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[id].current.len() as u64)
    }

    fn lock(&self, _path: &Path) -> io::Result<Result<Box<dyn DiskFile>, String>> {
        Ok(Ok(Box::new(File { disk: self.clone(), id: u64::MAX })))
    }
}
