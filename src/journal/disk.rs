//! The disk as the journal sees it, so that a test can take its place and fail in every way a
//! disk can.

use crate::telemetry::indented;
use serde::Serialize;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file of the journal.
pub trait DiskFile: Debug + Send + Sync {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`; durable only after [`DiskFile::sync`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Changes the length.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Returns when everything written so far is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// Whether a file has to be there or has to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// An existing file, to read and write.
    Existing,
    /// An existing file, to read.
    ReadOnly,
    /// A new file; one of that name is emptied first.
    New,
}

/// A file system that holds the journal.
pub trait Disk: Debug + Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// Names and lengths of the files of a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Makes a folder and those above it.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// Renames a file within its folder; durable only after [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when the names in a folder are on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that an ordinary user may still write.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
    /// Bytes that a file really occupies.
    fn allocated_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Keeps others away from a journal as long as the returned file lives; `Err` with the holder's
    /// process number if another has it.
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn DiskFile>, String>>;
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
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        // Events may be personal: only the service user reads them.
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

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
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

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn DiskFile>, String>> {
        use rustix::fs::{FlockOperation, flock};
        let mut file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(std::process::id().to_string().as_bytes())?;
                Ok(Ok(Box::new(file)))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                Ok(Err(holder))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Replaces a small file so that at any moment the old or the new one is whole.
pub fn write_whole(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    // A bare name has the empty path as its parent.
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let temporary = path.with_extension("tmp");
    let file = disk.open(&temporary, Open::New)?;
    file.write(0, content)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_folder(folder)
}

/// The same with JSON that people can read.
pub fn write_json(disk: &dyn Disk, path: &Path, content: &impl Serialize) -> io::Result<()> {
    write_whole(disk, path, indented(&serde_json::to_string(content)?).as_bytes())
}

/// Reads a small file.
pub fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::ReadOnly)?;
    let length = file.length()?;
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read(0, &mut content)?;
    Ok(content)
}

/// Lets redb work on a [`DiskFile`].
#[derive(Debug)]
pub(super) struct Backend(pub Box<dyn DiskFile>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
