//! The files of a lane.

use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{file_name, offset_in_name};
use crate::journal::store::segment_cache::SegmentCache;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File of one segment and its size.
#[derive(Clone, Debug)]
pub(in crate::journal) struct SegmentFile {
    pub path: PathBuf,
    pub bytes: u64,
}

/// The segments of a lane by first offset, and whether the folder has quarantined ones too; these are listed in the cache.
/// Calls `on_unfinished` for segments whose creation did not end.
pub(in crate::journal) fn list_segments(
    cache: &SegmentCache,
    folder: &Path,
    mut on_unfinished: impl FnMut(&Path) -> Result<(), JournalError>,
) -> Result<(BTreeMap<u64, SegmentFile>, bool), JournalError> {
    let mut segments = BTreeMap::new();
    let mut has_damaged = false;
    for (name, _) in cache.disk().list(folder).map_err(|error| JournalError::io(folder, error))? {
        let path = folder.join(&name);
        if name.ends_with(".tmp") {
            on_unfinished(&path)?;
        } else if let Some(first) = offset_in_name(&name) {
            debug_assert_eq!(file_name(first), name);
            let bytes = cache.disk().allocated_bytes(&path).map_err(|error| JournalError::io(&path, error))?;
            segments.insert(first, SegmentFile { path, bytes });
        } else if name.ends_with(".damaged") {
            cache.add_quarantined(path);
            has_damaged = true;
        }
    }
    Ok((segments, has_damaged))
}

/// First offset of a segment according to its file name, quarantined or not.
pub(in crate::journal) fn damaged_first(file: &Path) -> Option<u64> {
    let name = file.file_name()?.to_str()?;
    offset_in_name(name.trim_end_matches(".damaged"))
}
