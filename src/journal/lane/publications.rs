//! The publications that stored events refer to: a file each, by number.
//!
//! Promise: the number of a publication is durable before an event refers to it.

use crate::contract::{Publication, Renderer};
use crate::journal::store::disk::{Disk, RealDisk, make_folder, read_whole, write_json};
use crate::journal::store::error::JournalError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Name of the folder of publications.
pub const PUBLICATIONS: &str = "publications";

/// A publication and its numbers in this journal.
#[derive(Debug)]
pub struct Published {
    /// Number of the publication, as stored in records.
    pub number: u32,
    /// Number of its stream; all versions with the same major version share it.
    pub stream: u32,
    /// Publication as central sees it.
    pub publication: Publication,
    pub renderer: Renderer,
}

impl Published {
    /// Whether `wanted` names its stream, with or without version; a `*` at the end matches any rest.
    pub fn is_named(&self, wanted: &str) -> bool {
        let names = [self.publication.stream.as_str(), self.renderer.stream_id()];
        match wanted.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => names.contains(&wanted),
        }
    }
}

/// Publications by number, and the unreadable files among them.
#[derive(Clone, Debug, Default)]
pub struct Publications {
    list: Vec<Option<Arc<Published>>>,
    /// Unreadable files with the reason.
    pub damaged: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct PublicationFile {
    number: u32,
    stream: u32,
    publication: Publication,
}

impl Publications {
    /// Reads the publications of a journal's folder; records unreadable files in `damaged`.
    pub fn load(journal: &Path) -> Self {
        let mut found = Self::default();
        let folder = journal.join(PUBLICATIONS);
        for (name, _) in RealDisk.list(&folder).unwrap_or_default() {
            match found.read(&RealDisk, &folder, &name) {
                Ok(()) => {}
                Err(JournalError::Damaged { file, reason }) => {
                    found.damaged.push(format!("{}: {reason}", file.display()));
                }
                Err(error) => found.damaged.push(error.to_string()),
            }
        }
        found
    }

    /// Reads the publications of a journal that is being opened; creates their folder if it is missing.
    pub(super) fn open(disk: &dyn Disk, journal: &Path) -> Result<Self, JournalError> {
        let folder = journal.join(PUBLICATIONS);
        make_folder(disk, &folder).map_err(|error| JournalError::io(&folder, error))?;
        let mut found = Self::default();
        for (name, _) in disk.list(&folder).map_err(|error| JournalError::io(&folder, error))? {
            found.read(disk, &folder, &name)?;
        }
        Ok(found)
    }

    fn read(&mut self, disk: &dyn Disk, folder: &Path, name: &str) -> Result<(), JournalError> {
        if !name.ends_with(".json") {
            return Ok(());
        }
        let path = folder.join(name);
        let bytes = read_whole(disk, &path).map_err(|error| JournalError::io(&path, error))?;
        let file = serde_json::from_slice(&bytes)
            .map_err(|error| JournalError::Damaged { file: path, reason: error.to_string() })?;
        self.put(file);
        Ok(())
    }

    fn put(&mut self, file: PublicationFile) {
        let PublicationFile { number, stream, publication } = file;
        let index = number as usize;
        if self.list.len() <= index {
            self.list.resize(index + 1, None);
        }
        let renderer = Renderer::new(&publication);
        self.list[index] = Some(Arc::new(Published { number, stream, publication, renderer }));
    }

    /// Returns the number of a publication; stores a new one durably.
    pub(super) fn add(
        &mut self,
        publication: &Publication,
        disk: &dyn Disk,
        journal: &Path,
    ) -> Result<u32, JournalError> {
        if let Some(known) = self.all().find(|known| known.publication == *publication) {
            return Ok(known.number);
        }
        let stream_id = publication.stream_id();
        let same_stream = self.all().find(|known| known.renderer.stream_id() == stream_id);
        let next_stream = || self.all().map(|known| known.stream).max().unwrap_or(0) + 1;
        let stream = same_stream.map_or_else(next_stream, |known| known.stream);
        let number = self.list.len().max(1) as u32;
        let file = PublicationFile { number, stream, publication: publication.clone() };
        let path = journal.join(PUBLICATIONS).join(format!("{number}.json"));
        write_json(disk, &path, &file).map_err(|error| JournalError::io(&path, error))?;
        self.put(file);
        Ok(number)
    }

    /// The publication with this number.
    pub fn of(&self, number: u32) -> Option<Arc<Published>> {
        self.list.get(number as usize)?.clone()
    }

    /// All publications in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Published>> {
        self.list.iter().flatten()
    }

    fn of_lane(&self, lane: &str) -> impl Iterator<Item = &Arc<Published>> {
        self.all().filter(move |known| known.publication.lane == lane)
    }

    /// Number of the stream of a publication; 0 for records without a publication.
    pub(in crate::journal) fn stream_of(&self, number: u32) -> u32 {
        self.list.get(number as usize).and_then(Option::as_ref).map_or(0, |published| published.stream)
    }

    /// Name of a stream by its number; "unmatched" for records without a stream.
    pub(in crate::journal) fn stream_name(&self, stream: u32) -> String {
        let found = self.all().find(|published| published.stream == stream);
        found.map_or_else(|| "unmatched".to_owned(), |published| published.renderer.stream_id().to_owned())
    }

    /// Numbers of all streams, and 0 for records without one.
    pub(super) fn streams(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.all().map(|published| published.stream).chain([0]).collect();
        numbers.sort();
        numbers.dedup();
        numbers
    }

    /// Whether any version of a stream uses a lane.
    pub(super) fn is_of_lane(&self, stream: u32, lane: &str) -> bool {
        self.of_lane(lane).any(|known| known.stream == stream)
    }

    /// Longest retention of settled events among the streams of a lane, in seconds.
    pub(super) fn retention_settled(&self, lane: &str) -> u64 {
        self.of_lane(lane).map(|published| published.publication.retention_settled).max().unwrap_or(0)
    }

    /// Limits on the age of unsettled events of a lane, in seconds, each with the publications that it applies to.
    /// If every stream of the plant has a limit, the largest one applies to the gateway's own events too: otherwise
    /// they would keep whole segments whose other events have expired.
    pub(super) fn age_limits(&self, lane: &str) -> Vec<(u64, Vec<u32>)> {
        // The newest version of each stream is in force.
        let newest: BTreeMap<u32, Option<u64>> = self
            .of_lane(lane)
            .filter(|known| !known.publication.is_own())
            .map(|known| (known.stream, known.publication.retention_unsettled))
            .collect();
        let own = newest.into_values().collect::<Option<Vec<u64>>>().and_then(|limits| limits.into_iter().max());
        let mut limits: Vec<(u64, Vec<u32>)> = Vec::new();
        for known in self.of_lane(lane) {
            let limit = if known.publication.is_own() { own } else { known.publication.retention_unsettled };
            let Some(limit) = limit else { continue };
            match limits.iter_mut().find(|(other, _)| *other == limit) {
                Some((_, publications)) => publications.push(known.number),
                None => limits.push((limit, vec![known.number])),
            }
        }
        limits
    }
}

/// The publications of a journal, in the order of their numbers. Only reads files: the gateway may be running.
pub fn publications_in(folder: &Path) -> Result<Vec<Publication>, JournalError> {
    let publications = folder.join(PUBLICATIONS);
    match std::fs::metadata(&publications) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io(&publications, error)),
    }
    let found = Publications::open(&RealDisk, folder)?;
    Ok(found.all().map(|known| known.publication.clone()).collect())
}
