//! The file system behind two traits, so that a test can replace it and inject every kind of fault.
//!
//! Promise: what this module reports as durable survives a power cut.

use serde::Serialize;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open file of the journal.
pub trait DiskFile: Debug + Send + Sync {
    fn length(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; fails if the file is shorter.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`; durable only after [`DiskFile::sync`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Sets the length in bytes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns when everything written so far is durable.
    fn sync(&self) -> io::Result<()>;
    /// Like [`DiskFile::sync`]; later reads come from the disk, not from the page cache. After a failed fsync the page
    /// cache may hold pages that are not on disk, and a restarted process would trust them.
    fn sync_and_reread(&self) -> io::Result<()>;
    /// Identity of the file, independent of its name.
    fn identity(&self) -> io::Result<Identity>;
}

/// Identity of a file or folder within its file system: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(pub u64, pub u64);

/// Lock on a journal: no other process opens it as long as this lives.
#[derive(Debug)]
pub struct FolderLock {
    /// Identity of the locked folder.
    pub folder: Identity,
    _files: Vec<Box<dyn DiskFile>>,
}

impl FolderLock {
    /// A lock on a folder, held by the open `files`.
    pub fn new(folder: Identity, files: Vec<Box<dyn DiskFile>>) -> Self {
        Self { folder, _files: files }
    }
}

/// Mode in which a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Existing file, to read and write.
    Existing,
    /// Existing file, to read only.
    ReadOnly,
    /// New file; an existing one of that name is emptied.
    New,
}

/// A file system that holds the journal.
pub trait Disk: Debug + Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// Names and lengths of the files of a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Names of the folders in a folder.
    fn folders(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Creates one folder; durable only after [`Disk::sync_folder`] of the folder that it is in.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// Identity of the file or folder that a path leads to now.
    fn identity(&self, path: &Path) -> io::Result<Identity>;
    /// Renames a file within its folder; durable only after [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when the names in a folder are durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged user may still write.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
    /// Bytes that a file occupies on disk.
    fn allocated_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Locks the journal in a folder; the inner `Err` has the process number of the holder if another process holds it.
    fn lock(&self, folder: &Path) -> io::Result<Result<FolderLock, String>>;
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn sync_and_reread(&self) -> io::Result<()> {
        self.sync_data()?;
        match rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed) {
            // A file system without a page cache has nothing to drop.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity_of(&self.metadata()?))
    }
}

fn identity_of(metadata: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    Identity(metadata.dev(), metadata.ino())
}

/// Locks an open file; returns `false` if another process holds the lock.
fn try_flock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        // Events may be personal data: only the service user may read them.
        options.read(true).mode(0o600);
        match how {
            Open::Existing => options.write(true),
            Open::ReadOnly => &mut options,
            Open::New => options.write(true).create(true).truncate(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                found.push((entry.file_name().to_string_lossy().into_owned(), metadata.len()));
            }
        }
        Ok(found)
    }

    fn folders(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(folder)
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        Ok(identity_of(&fs::metadata(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn allocated_bytes(&self, path: &Path) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(path)?.blocks() * 512)
    }

    fn lock(&self, folder: &Path) -> io::Result<Result<FolderLock, String>> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(folder.join(LOCK))?;
        let directory = File::open(folder)?;
        // Lock both: the file names the holder but may be deleted by hand; the folder may not.
        let is_ours = try_flock(&file)? && try_flock(&directory).or_else(ignore_unsupported)?;
        if !is_ours {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            return Ok(Err(if holder.is_empty() { "unknown".into() } else { holder }));
        }
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        let identity = DiskFile::identity(&directory)?;
        Ok(Ok(FolderLock::new(identity, vec![Box::new(file), Box::new(directory)])))
    }
}

/// Name of the lock file, which has the process number of the holder.
pub const LOCK: &str = "LOCK";

/// Network file systems support locks on files, but not all of them on folders.
fn ignore_unsupported(error: io::Error) -> io::Result<bool> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    const EBADF: i32 = 9;
    let is_unsupported = matches!(error.kind(), InvalidInput | Unsupported) || error.raw_os_error() == Some(EBADF);
    if is_unsupported { Ok(true) } else { Err(error) }
}

/// The folder of a path; for a bare name the current folder.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Creates a folder and its missing parents; each survives a power cut when this returns.
pub fn make_folder(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let is_missing = |above: &&Path| *above != Path::new("") && disk.identity(above).is_err();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    for new in missing.into_iter().rev() {
        match disk.create_folder(new) {
            // Another process may have created it meanwhile.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        disk.sync_folder(parent_of(new))?;
    }
    Ok(())
}

/// Replaces a small file atomically: at any moment the old or the new one is complete.
pub fn write_whole(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = parent_of(path);
    let temporary = path.with_extension("tmp");
    let file = disk.open(&temporary, Open::New)?;
    file.write(0, content)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_folder(folder)
}

/// Replaces a small file with indented JSON, like [`write_whole`].
pub fn write_json(disk: &dyn Disk, path: &Path, content: &impl Serialize) -> io::Result<()> {
    write_whole(disk, path, &serde_json::to_vec_pretty(content)?)
}

/// Reads a whole small file.
pub fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::ReadOnly)?;
    let length = file.length()?;
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read(0, &mut content)?;
    Ok(content)
}

/// A redb storage backend on a [`DiskFile`].
#[derive(Debug)]
pub(super) struct Backend {
    file: Box<dyn DiskFile>,
    /// Whether an fsync has failed: data written since the fsync before may be lost, even if the next fsync succeeds.
    sync_failed: Arc<AtomicBool>,
}

impl Backend {
    /// Creates a backend on a file.
    pub(super) fn new(file: Box<dyn DiskFile>) -> Self {
        Self { file, sync_failed: Arc::default() }
    }

    /// Flag that becomes true once an fsync of the file has failed.
    pub(super) fn sync_failed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.sync_failed)
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync().inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}
