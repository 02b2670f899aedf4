//! The folder on the disk: which files are complete, and where they are moved. Every call blocks the thread.
//!
//! Promise: a file is moved into `.forebay` before it is read, so a program that writes another file of its name changes
//! nothing that is being read. It is moved on to `done` or `failed` together with a report.

use super::config::{Complete, Config, Names};
use crate::clock;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// Files that are looked at in one pass; the others wait.
const FILES_MAX: usize = 10_000;
/// Folder of the files that are being read, each in a folder of its source.
const CLAIMED: &str = ".forebay";
/// Bytes of a file that are hashed at once.
const HASH_BYTES: usize = 64 << 10;

/// Where a file goes when it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Failed,
}

impl Fate {
    fn folder(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// What the gateway has done with a file.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) file: String,
    pub(super) read: String,
    /// Rows in the file.
    pub(super) rows: u64,
    pub(super) events: u64,
    /// Rows that broke their contract and are dead letters.
    pub(super) dead_letters: u64,
    /// Part of the id of every event.
    pub(super) content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<String>,
}

/// Size and times of a file, to notice that it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    size: u64,
    modified: (i64, i64),
    inode: u64,
}

impl Shape {
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { size: metadata.len(), modified, inode: metadata.ino() }
    }

    /// Seconds since 1970 of the last change of the content.
    pub(super) fn modified_seconds(&self) -> i64 {
        self.modified.0
    }
}

/// A folder that programs drop files into.
#[derive(Debug)]
pub(super) struct Place {
    config: Config,
    names: Names,
    /// Files that may still be written, and since when each is unchanged.
    seen: HashMap<String, (Shape, Instant)>,
}

impl Place {
    pub(super) fn new(config: Config) -> std::result::Result<Self, String> {
        Ok(Self { names: config.names()?, config, seen: HashMap::new() })
    }

    /// Creates the folders that files are moved to.
    pub(super) fn prepare(&self) -> Result<()> {
        // A folder that is not mounted must not be created.
        fs::metadata(&self.config.path)?;
        let folders = [self.claimed_folder(), self.folder(Fate::Done), self.folder(Fate::Failed)];
        folders.iter().try_for_each(fs::create_dir_all)
    }

    /// The file that was claimed and not yet moved on.
    pub(super) fn claimed(&self) -> Result<Option<String>> {
        for entry in fs::read_dir(self.claimed_folder())? {
            if let Ok(name) = entry?.file_name().into_string() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The oldest complete file, if there is one.
    pub(super) fn next_complete(&mut self) -> Result<Option<String>> {
        let now = clock::instant();
        let mut present = HashMap::new();
        let mut complete: Vec<((i64, i64), String)> = Vec::new();
        for entry in fs::read_dir(&self.config.path)? {
            let entry = entry?;
            if present.len() == FILES_MAX {
                break;
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !self.names.take(&name) {
                continue;
            }
            let metadata = match fs::symlink_metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => metadata,
                // Gone since the folder was read, or no file.
                _ => continue,
            };
            let shape = Shape::of(&metadata);
            let since = self.seen.get(&name).filter(|(known, _)| *known == shape).map_or(now, |(_, since)| *since);
            let is_complete = match self.config.complete {
                Complete::Settled => now.saturating_duration_since(since) >= self.config.settle.0,
                Complete::Renamed => true,
                Complete::Marker => self.marker(&name).is_some_and(|marker| marker.exists()),
            };
            if is_complete {
                complete.push((shape.modified, name.clone()));
            }
            present.insert(name, (shape, since));
        }
        self.seen = present;
        Ok(complete.into_iter().min().map(|(_, name)| name))
    }

    fn marker(&self, file: &str) -> Option<PathBuf> {
        self.config.marker_of(file).map(|marker| self.config.path.join(marker))
    }

    /// Moves a file to where nobody else changes it.
    pub(super) fn claim(&self, name: &str) -> Result<()> {
        fs::rename(self.config.path.join(name), self.path(name))?;
        sync(&self.claimed_folder())?;
        self.remove_marker(name)
    }

    /// Removes the marker of a claimed file, unless it is newer: then it belongs to the next file of that name.
    pub(super) fn remove_marker(&self, name: &str) -> Result<()> {
        let Some(marker) = self.marker(name) else { return Ok(()) };
        let claimed = fs::metadata(self.path(name))?;
        match fs::metadata(&marker) {
            Ok(found) if (found.mtime(), found.mtime_nsec()) <= (claimed.ctime(), claimed.ctime_nsec()) => {
                fs::remove_file(marker)
            }
            _ => Ok(()),
        }
    }

    /// Path of a claimed file.
    fn path(&self, name: &str) -> PathBuf {
        self.claimed_folder().join(name)
    }

    fn claimed_folder(&self) -> PathBuf {
        self.config.path.join(CLAIMED).join(&self.config.name)
    }

    fn folder(&self, fate: Fate) -> PathBuf {
        self.config.path.join(fate.folder())
    }

    /// Opens a claimed file.
    pub(super) fn open(&self, name: &str) -> Result<File> {
        File::open(self.path(name))
    }

    /// Size and times of a claimed file.
    pub(super) fn shape(&self, name: &str) -> Result<Shape> {
        Ok(Shape::of(&fs::metadata(self.path(name))?))
    }

    /// Digest of the content of a claimed file, in 16 hexadecimal digits.
    pub(super) fn digest(&self, name: &str) -> Result<String> {
        let (mut file, mut hash, mut chunk) = (self.open(name)?, Sha256::new(), vec![0; HASH_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                length => hash.update(&chunk[..length]),
            }
        }
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Moves a claimed file on, with its report. An earlier file of that name is kept: this one gets the time in its
    /// name.
    pub(super) fn finish(&self, name: &str, fate: Fate, report: &Report) -> Result<()> {
        let folder = self.folder(fate);
        let free = free_name(&folder, name);
        let text = serde_json::to_vec_pretty(report).map_err(Error::other)?;
        let written = folder.join(format!(".{free}.report"));
        fs::write(&written, text)?;
        File::open(&written)?.sync_all()?;
        fs::rename(&written, folder.join(format!("{free}.report.json")))?;
        fs::rename(self.path(name), folder.join(&free))?;
        sync(&folder)?;
        sync(&self.claimed_folder())
    }
}

/// A name that is not taken in a folder.
fn free_name(folder: &Path, name: &str) -> String {
    if !folder.join(name).exists() {
        return name.to_owned();
    }
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (stem, ending) = match name.rsplit_once('.') {
        Some((stem, ending)) => (stem, format!(".{ending}")),
        None => (name, String::new()),
    };
    format!("{stem}-{}{ending}", now.as_millis())
}

/// Makes renames in a folder durable. File systems that cannot sync a folder, as some network shares, make them so by
/// themselves.
fn sync(folder: &Path) -> Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::INVAL.raw_os_error()) => {
            Ok(())
        }
        other => other,
    }
}
