//! A disk in memory whose power can be cut at any operation, and which then keeps only what a
//! real one has to: what was synced, and of the rest whatever chance leaves, torn and reordered.

use forebay::journal::disk::{Disk, DiskFile, FolderLock, Identity, Open};
use std::collections::{BTreeMap, BTreeSet};
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
    renames: Vec<(PathBuf, Change)>,
    /// Folders as programs see them, and as the disk has them.
    folders: BTreeSet<PathBuf>,
    durable_folders: BTreeSet<PathBuf>,
    next: u64,
    operations: u64,
    cut_at: Option<(u64, Unsynced)>,
    fault: Option<Fault>,
    /// Only files of this name have it; empty for all.
    fault_at: String,
    /// The one sync of files of this name that fails, counted from now.
    failing_sync: Option<(String, u64)>,
    is_off: bool,
    forgets_syncs: bool,
    /// What its files may take in all; 0 for as much as there is.
    capacity: u64,
}

/// A disk that goes on, and fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every sync fails, and the kernel forgets what it was for: programs still read it, the disk never gets it.
    Sync,
    /// Every write finds the disk full.
    Full,
    /// Nothing is left for ordinary users.
    NoFreeBytes,
    /// Every sync of a folder fails: its names may be lost with the power.
    SyncFolder,
}

/// What became of a name.
#[derive(Clone, Copy, Debug)]
enum Change {
    File(u64),
    Removed,
    Folder,
}

#[derive(Clone, Debug, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Whether a sync has failed: what programs read is ahead of what the disk will ever have.
    is_ahead: bool,
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

    /// One sync of the files of a name fails as with [`Fault::Sync`]: the `number`th from now on.
    pub fn fail_sync(&self, name: &str, number: u64) {
        self.lock().failing_sync = Some((name.to_owned(), number));
    }

    /// Whether the sync that was to fail has failed.
    pub fn has_failed(&self) -> bool {
        self.lock().failing_sync.is_none()
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
                (*id, Content { current: durable.clone(), durable, ..Content::default() })
            })
            .collect();
        // A file is found only through its folders.
        let has_folders = |path: &Path| above(path).all(|folder| state.durable_folders.contains(folder));
        let folders: BTreeSet<PathBuf> =
            state.durable_folders.iter().filter(|folder| has_folders(folder)).cloned().collect();
        let names: BTreeMap<PathBuf, u64> = state
            .durable_names
            .iter()
            .filter(|(path, _)| has_folders(path))
            .map(|(path, id)| (path.clone(), *id))
            .collect();
        FaultDisk {
            state: Arc::new(Mutex::new(State {
                files,
                durable_names: names.clone(),
                names,
                durable_folders: folders.clone(),
                folders,
                next: state.next,
                ..State::default()
            })),
        }
    }

    /// Kills the process: every file as programs see it, synced or not. Those who still have files of the old disk fail.
    pub fn kill(&self) -> FaultDisk {
        let mut state = self.lock();
        let left = State {
            files: state.files.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            renames: state.renames.clone(),
            folders: state.folders.clone(),
            durable_folders: state.durable_folders.clone(),
            next: state.next,
            fault: state.fault,
            fault_at: state.fault_at.clone(),
            capacity: state.capacity,
            ..State::default()
        };
        state.is_off = true;
        FaultDisk { state: Arc::new(Mutex::new(left)) }
    }

    /// Writes every file as programs see it below a real folder.
    pub fn write_to(&self, folder: &Path) {
        let state = self.lock();
        for path in &state.folders {
            std::fs::create_dir_all(folder.join(path.strip_prefix("/").expect("absolute"))).expect("a folder");
        }
        for (path, id) in &state.names {
            std::fs::write(folder.join(path.strip_prefix("/").expect("absolute")), &state.files[id].current)
                .expect("written");
        }
    }

    /// A disk with everything that is below a real folder, all of it durable.
    pub fn read_from(folder: &Path) -> FaultDisk {
        fn add(state: &mut State, from: &Path, at: &Path) {
            for entry in std::fs::read_dir(from).expect("a folder") {
                let entry = entry.expect("an entry");
                let (path, at) = (entry.path(), at.join(entry.file_name()));
                if path.is_dir() {
                    state.folders.insert(at.clone());
                    add(state, &path, &at);
                } else {
                    let current = std::fs::read(&path).expect("read");
                    state.names.insert(at, state.next);
                    state.files.insert(state.next, Content { durable: current.clone(), current, ..Content::default() });
                    state.next += 1;
                }
            }
        }
        let mut state = State::default();
        add(&mut state, folder, Path::new("/"));
        state.durable_names = state.names.clone();
        state.durable_folders = state.folders.clone();
        FaultDisk { state: Arc::new(Mutex::new(state)) }
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
        content.is_ahead = false;
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
        self.fault == Some(fault) && (self.fault_at.is_empty() || self.is_called(id, &self.fault_at))
    }

    /// Whether a file, or a folder that it is in, has this name.
    fn is_called(&self, id: u64, name: &str) -> bool {
        let is_at = |path: &Path| path.ends_with(name) || path.iter().any(|part| *part == *name);
        self.names.iter().any(|(path, known)| *known == id && is_at(path))
    }

    /// Whether this is the one sync that fails.
    fn fails_once(&mut self, id: u64) -> bool {
        let Some((name, left)) = self.failing_sync.take() else { return false };
        if !self.is_called(id, &name) {
            self.failing_sync = Some((name, left));
            return false;
        }
        self.failing_sync = (left > 1).then(|| (name, left - 1));
        left == 1
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
        for (path, change) in renames.into_iter().take(kept) {
            apply(&mut self.durable_names, &mut self.durable_folders, path, change);
        }
    }

    fn name(&mut self, path: &Path, change: Change) {
        apply(&mut self.names, &mut self.folders, path.to_owned(), change);
        self.renames.push((path.to_owned(), change));
    }

    fn has_folder(&self, folder: &Path) -> bool {
        folder == Path::new("/") || self.folders.contains(folder)
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, folders: &mut BTreeSet<PathBuf>, path: PathBuf, change: Change) {
    match change {
        Change::File(id) => drop(names.insert(path, id)),
        Change::Removed => drop(names.remove(&path)),
        Change::Folder => drop(folders.insert(path)),
    }
}

/// The folders that a path is in, but for the root, which is always there.
fn above(path: &Path) -> impl Iterator<Item = &Path> {
    path.ancestors().skip(1).filter(|folder| *folder != Path::new("/") && *folder != Path::new(""))
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
        let has_failed = state.has(Fault::Sync, self.id) || state.fails_once(self.id);
        if state.forgets_syncs && !has_failed {
            return Ok(());
        }
        let content = state.files.get_mut(&self.id).expect("an open file");
        let pending = std::mem::take(&mut content.pending);
        if has_failed {
            content.is_ahead = true;
            return Err(off());
        }
        if content.is_ahead {
            // What was written before a sync that failed is in none of these.
            for operation in pending {
                match operation {
                    Pending::Length(length) => content.durable.resize(length as usize, 0),
                    Pending::Write(offset, data) => put(&mut content.durable, offset as usize, &data),
                }
            }
        } else {
            content.durable = content.current.clone();
        }
        Ok(())
    }

    fn sync_and_reread(&self) -> io::Result<()> {
        self.sync()?;
        let mut state = self.disk.lock();
        if !state.forgets_syncs {
            let content = state.files.get_mut(&self.id).expect("an open file");
            content.current = content.durable.clone();
            content.is_ahead = false;
        }
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity(0, self.id))
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        let id = match how {
            Open::New => {
                state.operate()?;
                if !path.parent().is_some_and(|folder| state.has_folder(folder)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let id = state.next;
                state.next += 1;
                state.files.insert(id, Content::default());
                state.name(path, Change::File(id));
                id
            }
            _ if state.is_off => return Err(off()),
            _ => *state.names.get(path).ok_or(io::ErrorKind::NotFound)?,
        };
        Ok(Box::new(File { disk: self.clone(), id }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let state = self.lock();
        if !state.has_folder(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
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

    fn folders(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let inside = state.folders.iter().filter(|path| path.parent() == Some(folder));
        Ok(inside.map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect())
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        if !folder.parent().is_some_and(|above| state.has_folder(above)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.has_folder(folder) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.name(folder, Change::Folder);
        Ok(())
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        let state = self.lock();
        match state.names.get(path) {
            Some(id) => Ok(Identity(0, *id)),
            None if state.has_folder(path) => Ok(Identity(1, 0)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        // The new name first: a power cut between the two leaves both, and never neither.
        state.name(to, Change::File(id));
        state.name(from, Change::Removed);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name(path, Change::Removed);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operate()?;
        if state.fault == Some(Fault::SyncFolder) {
            return Err(off());
        }
        let changes = std::mem::take(&mut state.renames).into_iter();
        let (synced, kept): (Vec<_>, Vec<_>) = changes.partition(|(path, _)| path.parent() == Some(folder));
        state.renames = kept;
        for (path, change) in synced {
            let State { durable_names, durable_folders, .. } = &mut *state;
            apply(durable_names, durable_folders, path, change);
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

    fn lock(&self, folder: &Path) -> io::Result<Result<FolderLock, String>> {
        Ok(Ok(FolderLock::new(Disk::identity(self, folder)?, Vec::new())))
    }
}
