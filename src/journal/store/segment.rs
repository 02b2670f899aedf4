//! A segment: one redb file of a lane's log.
//!
//! Promise: a segment gets its name only when it is complete and synced, and the name is synced too; until then the
//! file has a temporary name. A closed segment is read-only.
//!
//! One table: offset of a block's first event → block. Offset 0 holds the [`Summary`], the highest possible offsets hold
//! the fingerprints of a closed segment.

use super::block::{BadBlock, Block, Run, raise_sequence};
use super::cursor::{Cursor, SettledV1};
use super::disk::{Backend, Disk, Identity, Open};
use super::error::{JournalError, catch_panic};
use super::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use crate::event::{Timestamp, append_postcard};
use redb::{Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
const SUMMARY_AT: u64 = 0;
/// Rows from here to the end hold fingerprints; they are split so that no value has to be held in memory whole.
const FINGERPRINTS_FROM: u64 = u64::MAX - 0xFFFF;
/// Just below 60 KiB, as for blocks.
const FINGERPRINTS_IN_ROW: usize = 3800;
/// Format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 3;
/// Fingerprints of older formats were computed differently and are not read.
const FINGERPRINTS_FORMAT: u32 = 3;

/// Summary of a segment, stored in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub format: u32,
    /// Offset of its first event.
    pub first: u64,
    /// Time when it was created.
    pub begun: Timestamp,
    /// The next sequence of every stream when it was created: stream, sequence.
    pub sequences: Vec<(u32, u64)>,
    /// Cursors of all destinations when this was written.
    pub settled: Vec<Cursor>,
    /// How it ended; `None` until it is closed.
    pub closed: Option<Closed>,
}

/// A summary in format 1.
#[derive(Deserialize)]
struct SummaryV1 {
    format: u32,
    first: u64,
    begun: Timestamp,
    sequences: Vec<(u32, u64)>,
    settled: Vec<SettledV1>,
    closed: Option<Closed>,
}

impl From<SummaryV1> for Summary {
    fn from(old: SummaryV1) -> Self {
        Self {
            format: old.format,
            first: old.first,
            begun: old.begun,
            sequences: old.sequences,
            settled: old.settled.into_iter().map(Cursor::from).collect(),
            closed: old.closed,
        }
    }
}

impl Summary {
    /// The next sequence of every stream behind the segment.
    pub(crate) fn sequences_after(&self) -> Vec<(u32, u64)> {
        let mut next = self.sequences.clone();
        for part in self.closed.iter().flat_map(|closed| &closed.streams) {
            raise_sequence(&mut next, part.stream, part.first + part.count);
        }
        next
    }
}

/// End of a closed segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// Offset after its last event.
    pub end: u64,
    /// Time when it was closed.
    pub at: Timestamp,
    pub streams: Vec<StreamPart>,
}

/// Events of one stream in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamPart {
    /// Number of the stream in this journal.
    pub stream: u32,
    pub first: u64,
    pub count: u64,
    /// Times when the first and the last were recorded.
    pub recorded: (Timestamp, Timestamp),
}

impl StreamPart {
    /// Adds a run of a block to the content by stream.
    pub(crate) fn add(parts: &mut BTreeMap<u32, Self>, run: &Run, recorded: Timestamp) {
        let new = Self { stream: run.stream, first: run.first, count: 0, recorded: (recorded, recorded) };
        let part = parts.entry(run.stream).or_insert(new);
        part.count += u64::from(run.count);
        // A clock that is set back must hide no event from a search by time.
        part.recorded = (part.recorded.0.min(recorded), part.recorded.1.max(recorded));
    }
}

/// Proof that a commit has returned after its fsync.
#[derive(Debug)]
#[must_use = "receipts need the proof of the commit"]
pub(crate) struct Synced(());

#[derive(Debug)]
pub(crate) struct Segment {
    path: PathBuf,
    identity: Identity,
    database: Handle,
}

enum Handle {
    Active(Database),
    Closed(ReadOnlyDatabase),
}

/// Name of the file of the segment that starts at `first`.
pub(crate) fn file_name(first: u64) -> String {
    format!("{first:020}.redb")
}

/// First offset of a segment according to its file name.
pub(crate) fn offset_in_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".redb")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

impl Segment {
    /// Creates a segment, which survives a power cut when this returns.
    pub(crate) fn create(
        disk: &dyn Disk,
        folder: &Path,
        summary: &Summary,
        cache_bytes: usize,
    ) -> Result<Self, JournalError> {
        let path = folder.join(file_name(summary.first));
        let (segment, Synced(())) =
            Self::create_at(&path, disk, cache_bytes, |segment| segment.write(&[], Some(summary), &[]))?;
        Ok(segment)
    }

    /// Creates the file under a temporary name, lets `fill` make one commit, and renames it.
    fn create_at(
        path: &Path,
        disk: &dyn Disk,
        cache_bytes: usize,
        fill: impl FnOnce(&Self) -> Result<Synced, JournalError>,
    ) -> Result<(Self, Synced), JournalError> {
        let temporary = path.with_extension("tmp");
        let file = disk.open(&temporary, Open::New).map_err(|error| JournalError::io(&temporary, error))?;
        let identity = file.identity().map_err(|error| JournalError::io(&temporary, error))?;
        let database = catch_panic(path, || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            Ok(builder.create_with_backend(Backend::new(file))?)
        })?;
        let segment = Self { path: path.to_owned(), identity, database: Handle::Active(database) };
        let synced = fill(&segment)?;
        disk.rename(&temporary, path).map_err(|error| JournalError::io(path, error))?;
        if let Some(folder) = path.parent() {
            disk.sync_folder(folder).map_err(|error| JournalError::io(folder, error))?;
        }
        Ok((segment, synced))
    }

    /// Copies the segment into a new file under its name, after its own file was removed or replaced.
    pub(crate) fn recreate_file(&self, disk: &dyn Disk, cache_bytes: usize) -> Result<(Self, Synced), JournalError> {
        Self::create_at(&self.path, disk, cache_bytes, |segment| segment.copy_rows(&self.view()?))
    }

    /// Copies every row of another segment in one durable commit.
    fn copy_rows(&self, from: &View) -> Result<Synced, JournalError> {
        let Handle::Active(database) = &self.database else {
            return Err(JournalError::Damaged { file: self.path.clone(), reason: "it is closed".into() });
        };
        catch_panic(&self.path, || {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            {
                let mut copied = write.open_table(BLOCKS)?;
                for row in from.read.open_table(BLOCKS)?.iter()? {
                    let (at, value) = row?;
                    copied.insert(at.value(), value.value())?;
                }
            }
            write.commit()?;
            Ok(Synced(()))
        })
    }

    /// Opens a segment for writing; repairs it if the last run did not close it.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Self, JournalError> {
        let file = disk.open(path, Open::Existing).map_err(|error| JournalError::io(path, error))?;
        let identity = file.identity().map_err(|error| JournalError::io(path, error))?;
        // Everything read from now on must be durable: a killed process may have left pages that no fsync has covered.
        file.sync_and_reread().map_err(|error| JournalError::io(path, error))?;
        let database = catch_panic(path, || {
            if file.length()? == 0 {
                return Err(redb::Error::Corrupted("the file is empty".into()));
            }
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            Ok(builder.create_with_backend(Backend::new(file))?)
        })?;
        Ok(Self { path: path.to_owned(), identity, database: Handle::Active(database) })
    }

    /// Opens a segment read-only. Repairs it first if it was not closed cleanly.
    pub(crate) fn open_closed(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Self, JournalError> {
        let file = disk.open(path, Open::ReadOnly).map_err(|error| JournalError::io(path, error))?;
        let identity = file.identity().map_err(|error| JournalError::io(path, error))?;
        let opened = catch_panic(path, || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            Ok(builder.open_read_only_with_backend(Backend::new(file)))
        })?;
        match opened {
            Ok(database) => Ok(Self { path: path.to_owned(), identity, database: Handle::Closed(database) }),
            Err(redb::DatabaseError::RepairAborted) => Self::open(disk, path, cache_bytes),
            Err(error) => Err(JournalError::from_redb(path, error.into())),
        }
    }

    /// Opens a segment for inspection, in whatever state it is. Never changes the file: a repair stays in memory.
    pub(crate) fn open_without_repair(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Self, JournalError> {
        let open = || disk.open(path, Open::ReadOnly).map_err(|error| JournalError::io(path, error));
        let builder = || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            builder
        };
        let file = open()?;
        let identity = file.identity().map_err(|error| JournalError::io(path, error))?;
        match catch_panic(path, || Ok(builder().open_read_only_with_backend(Backend::new(file))))? {
            Ok(database) => return Ok(Self { path: path.to_owned(), identity, database: Handle::Closed(database) }),
            Err(redb::DatabaseError::RepairAborted) => {}
            Err(error) => return Err(JournalError::from_redb(path, error.into())),
        }
        let over = super::overlay::Overlay::new(open()?).map_err(|error| JournalError::io(path, error))?;
        let database = catch_panic(path, || Ok(builder().create_with_backend(Backend::new(Box::new(over)))?))?;
        Ok(Self { path: path.to_owned(), identity, database: Handle::Active(database) })
    }

    /// Whether its path still leads to its file: nobody has removed or replaced it.
    pub(crate) fn is_in_place(&self, disk: &dyn Disk) -> bool {
        disk.identity(&self.path).is_ok_and(|found| found == self.identity)
    }

    /// Whether the file is opened read-only.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.database, Handle::Closed(_))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes blocks, and a summary if given, in one durable commit.
    pub(crate) fn write(
        &self,
        blocks: &[(u64, &[u8])],
        summary: Option<&Summary>,
        fingerprints: &[Fingerprint],
    ) -> Result<Synced, JournalError> {
        let Handle::Active(database) = &self.database else {
            return Err(JournalError::Damaged { file: self.path.clone(), reason: "it is closed".into() });
        };
        catch_panic(&self.path, || {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            {
                let mut table = write.open_table(BLOCKS)?;
                for (first, value) in blocks {
                    table.insert(first, value)?;
                }
                if let Some(summary) = summary {
                    let mut value = Vec::new();
                    append_postcard(&mut value, summary);
                    table.insert(SUMMARY_AT, value.as_slice())?;
                }
                let mut value = Vec::new();
                for (row, fingerprints) in fingerprints.chunks(FINGERPRINTS_IN_ROW).enumerate() {
                    value.clear();
                    for fingerprint in fingerprints {
                        value.extend_from_slice(&fingerprint.id.to_le_bytes());
                        value.extend_from_slice(&fingerprint.content.to_le_bytes());
                    }
                    table.insert(FINGERPRINTS_FROM + row as u64, value.as_slice())?;
                }
            }
            write.commit()?;
            Ok(Synced(()))
        })
    }

    /// Begins a read transaction. Drop the view soon: it pins pages, and the file grows.
    pub(crate) fn view(&self) -> Result<View, JournalError> {
        let read = catch_panic(&self.path, || match &self.database {
            Handle::Active(database) => Ok(database.begin_read()?),
            Handle::Closed(database) => Ok(database.begin_read()?),
        })?;
        Ok(View { path: self.path.clone(), read })
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Active(_)) { "Active" } else { "Closed" })
    }
}

enum Edge {
    First,
    Last,
}

/// A segment at one moment (read transaction).
#[derive(Debug)]
pub(crate) struct View {
    path: PathBuf,
    read: ReadTransaction,
}

impl View {
    pub(crate) fn summary(&self) -> Result<Summary, JournalError> {
        let value = self.value(SUMMARY_AT)?.ok_or_else(|| self.damaged("it has no summary"))?;
        // The format comes first: a newer format is not mistaken for damage.
        let Ok((format, _)) = postcard::take_from_bytes::<u32>(&value) else {
            return Err(self.damaged("its summary does not decode"));
        };
        if format > FORMAT {
            return Err(JournalError::Newer { file: self.path.clone(), format: format.into(), newest: FORMAT.into() });
        }
        let read = match format {
            1 => postcard::from_bytes::<SummaryV1>(&value).map(Summary::from),
            _ => postcard::from_bytes(&value),
        };
        read.map_err(|_| self.damaged("its summary does not decode"))
    }

    /// The fingerprints of a closed segment; empty if its version computed them differently.
    pub(crate) fn fingerprints(&self) -> Result<Vec<Fingerprint>, JournalError> {
        if self.summary()?.format < FINGERPRINTS_FORMAT {
            return Ok(Vec::new());
        }
        let half = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
        catch_panic(&self.path, || {
            let table = self.read.open_table(BLOCKS)?;
            let mut fingerprints = Vec::new();
            for row in table.range(FINGERPRINTS_FROM..)? {
                let (_, value) = row?;
                let pairs = value.value().as_chunks::<FINGERPRINT_BYTES>().0;
                fingerprints.extend(
                    pairs.iter().map(|pair| Fingerprint { id: half(&pair[..8]).max(1), content: half(&pair[8..]) }),
                );
            }
            Ok(fingerprints)
        })
    }

    /// The block that holds `offset`, or the first one after it; `None` at the end.
    pub(crate) fn block_from(&self, offset: u64) -> Result<Option<Block>, JournalError> {
        let offset = offset.clamp(SUMMARY_AT + 1, FINGERPRINTS_FROM - 1);
        let before = self.edge(SUMMARY_AT + 1, offset, Edge::Last)?;
        if let Some(block) = before.map(|value| self.decode(&value)).transpose()?
            && block.end() > offset
        {
            return Ok(Some(block));
        }
        // A block starts at or after the end of the one before it: this one is the next.
        let next = self.edge(offset, FINGERPRINTS_FROM - 1, Edge::First)?;
        next.map(|value| self.decode(&value)).transpose()
    }

    /// The last block, if any.
    pub(crate) fn last_block(&self) -> Result<Option<Block>, JournalError> {
        let last = self.edge(SUMMARY_AT + 1, FINGERPRINTS_FROM - 1, Edge::Last)?;
        last.map(|value| self.decode(&value)).transpose()
    }

    fn edge(&self, from: u64, to: u64, edge: Edge) -> Result<Option<Vec<u8>>, JournalError> {
        catch_panic(&self.path, || {
            let table = self.read.open_table(BLOCKS)?;
            let mut range = table.range(from..=to)?;
            let entry = match edge {
                Edge::First => range.next(),
                Edge::Last => range.next_back(),
            };
            Ok(entry.transpose()?.map(|(_, value)| value.value().to_vec()))
        })
    }

    fn decode(&self, value: &[u8]) -> Result<Block, JournalError> {
        Block::decode(value).map_err(|error| match error {
            BadBlock::Newer(format) => JournalError::Newer {
                file: self.path.clone(),
                format: format.into(),
                newest: super::block::FORMAT.into(),
            },
            BadBlock::Damaged(why) => self.damaged(why),
        })
    }

    fn value(&self, at: u64) -> Result<Option<Vec<u8>>, JournalError> {
        catch_panic(&self.path, || {
            let table = self.read.open_table(BLOCKS)?;
            Ok(table.get(at)?.map(|value| value.value().to_vec()))
        })
    }

    fn damaged(&self, reason: &str) -> JournalError {
        JournalError::Damaged { file: self.path.clone(), reason: reason.to_owned() }
    }
}
