//! The machine of the gateway: clock, disk, folders.

use super::finding::Part;
use crate::clock;
use crate::config::Config;
use crate::event::Timestamp;
use crate::setting::Bytes;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Writes that are timed: enough to see a slow one among quick ones.
const WRITES: usize = 20;
/// A commit of the journal on a disk of this kind takes longer than devices wait.
const FSYNC_SLOW: Duration = Duration::from_millis(100);

pub(super) fn check_clock(part: &mut Part<'_>) {
    let now = Timestamp::from(clock::wall());
    match clock::wall() < clock::built() {
        true => part.fault(format!("the clock shows {now}, which is before this program was built; set it")),
        false => part.good(format!("the clock shows {now}")),
    }
}

pub(super) fn check_disk(config: &Config, part: &mut Part<'_>) {
    let journal = &config.journal.folder;
    let Some(folder) = journal.ancestors().skip(1).find(|folder| folder.is_dir()) else {
        return part.warning("the folder of the journal does not exist yet");
    };
    match time_writes(folder) {
        Ok(mut times) => {
            times.sort();
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let text = format!(
                "a write to {} is durable after {:.1} ms (median of {WRITES}; the slowest {:.1} ms)",
                folder.display(),
                median.as_secs_f64() * 1e3,
                worst.as_secs_f64() * 1e3
            );
            if median >= FSYNC_SLOW {
                part.warning(format!("{text}: too slow for many devices"))
            } else {
                part.good(text)
            }
        }
        Err(error) => part.fault(format!("{} cannot be written: {error}", folder.display())),
    }
    let budgets: u64 = config.journal.lanes.iter().map(|lane| lane.budget).sum::<u64>() + config.journal.dead.budget;
    let Ok(disk) = rustix::fs::statvfs(folder) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let used = used(journal);
    let missing = (budgets + config.journal.reserve_bytes).saturating_sub(used + free);
    let text = format!("{} are free; all lanes together may take {}", Bytes(free), Bytes(budgets));
    match missing {
        0 => part.good(text),
        missing => part.warning(format!("{text}: {} are missing; lower the budgets of the lanes", Bytes(missing))),
    }
}

fn time_writes(folder: &Path) -> std::io::Result<Vec<Duration>> {
    let file = folder.join(format!(".forebay-check-{}", std::process::id()));
    let timed = || -> std::io::Result<Vec<Duration>> {
        let mut out = std::fs::File::options().write(true).create_new(true).open(&file)?;
        let mut times = Vec::with_capacity(WRITES);
        for _ in 0..WRITES {
            let began: Instant = clock::instant();
            out.write_all(&[0; 4096])?;
            out.sync_data()?;
            times.push(clock::instant().duration_since(began));
        }
        Ok(times)
    };
    let times = timed();
    // It has the name of this process and is of no use to anybody.
    let _ = std::fs::remove_file(&file);
    times
}

/// Bytes of the journal's segments.
fn used(journal: &Path) -> u64 {
    let within = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = within(journal).flat_map(|lane| within(&lane.path()).collect::<Vec<_>>());
    files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
}

pub(super) fn check_folder(folder: &Path, part: &mut Part<'_>) {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let shown = folder.display();
    match accessat(CWD, folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => part.good(format!("{shown} can be read, and files can be moved in it")),
        Err(error) => part.fault(format!("{shown}: {error}; the gateway reads files there and moves them")),
    }
}
