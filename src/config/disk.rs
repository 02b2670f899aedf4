//! Checks of the data folder and its disk.

use super::file::File;
use crate::setting::{Bytes, Findings};
use std::path::Path;

pub(super) fn check(raw: &File, found: &mut Findings<'_>) {
    if found.document().value("data_dir").is_some_and(|value| value == "\"\"") {
        return found.problem("data_dir", "\"\" is no folder; expected one such as \"/var/lib/forebay\"");
    }
    // The start creates the folder itself.
    let Some(nearest) = raw.data_dir.ancestors().find(|folder| folder.exists() || *folder == Path::new("")) else {
        return;
    };
    let nearest = if nearest == Path::new("") { Path::new(".") } else { nearest };
    if !nearest.is_dir() {
        let message = format!("\"{}\" cannot be a folder: {} is a file", raw.data_dir.display(), nearest.display());
        return found.problem("data_dir", message);
    }
    let Some(size) = disk_bytes(&raw.data_dir) else { return };
    if size == 0 {
        let message = format!("\"{}\" is on a file system that stores nothing", raw.data_dir.display());
        return found.problem("data_dir", message);
    }
    if raw.disk_reserve.0 >= size {
        let message = format!(
            "{} can never be free: the file system of {} has {} in all",
            raw.disk_reserve,
            raw.data_dir.display(),
            Bytes(size)
        );
        found.problem("disk_reserve", message);
    }
}

/// Size in bytes of the file system on which a folder is or will be created.
pub(super) fn disk_bytes(folder: &Path) -> Option<u64> {
    disk(folder).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Bytes of that file system that are free for an unprivileged user.
pub(super) fn disk_free(folder: &Path) -> Option<u64> {
    disk(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn disk(folder: &Path) -> Option<rustix::fs::StatVfs> {
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(nearest).ok()
}
