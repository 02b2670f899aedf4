//! A control group with a memory limit, version 1 or 2, for one process.

use super::need::Need;
use std::path::{Path, PathBuf};

/// A control group of its own; it is removed when its processes have ended.
pub struct Cgroup {
    folder: PathBuf,
    is_v2: bool,
}

const TOP: &str = "/sys/fs/cgroup";

impl Cgroup {
    /// A group that may take `bytes` of memory; `None` where the test cannot run, which is then reported.
    pub fn with_memory(bytes: u64) -> Option<Self> {
        let group = Self::try_with_memory(bytes);
        let error = group.as_ref().err().map(ToString::to_string).unwrap_or_default();
        Need::Cgroup.is_met(group.is_ok(), &format!("a memory limit needs root and a control group: {error}"));
        group.ok()
    }

    fn try_with_memory(bytes: u64) -> std::io::Result<Self> {
        let name = format!("forebay-{}", uuid::Uuid::new_v4().simple());
        let controllers = std::fs::read_to_string(Path::new(TOP).join("cgroup.controllers")).unwrap_or_default();
        let is_v2 = controllers.split_whitespace().any(|controller| controller == "memory");
        let parent = if is_v2 { PathBuf::from(TOP) } else { Path::new(TOP).join("memory") };
        if is_v2 {
            std::fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
        let folder = parent.join(name);
        std::fs::create_dir(&folder)?;
        let group = Self { folder, is_v2 };
        let limit = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::write(group.folder.join(limit), bytes.to_string())?;
        // Version 1 without swap accounting has no such file, and this machine may have no swap.
        let _ = std::fs::write(group.folder.join("memory.swap.max"), "0");
        Ok(group)
    }

    /// What starts a program in the group, with its arguments behind it.
    pub fn through(&self) -> Vec<String> {
        let procs = self.folder.join("cgroup.procs");
        let words = ["sh", "-c", "echo $$ >\"$0\" && exec \"$@\"", &procs.to_string_lossy()];
        words.map(str::to_owned).to_vec()
    }

    /// How often the kernel has killed a process of the group for memory.
    pub fn kills(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed a moment ago may still be there.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.folder).is_ok() || !self.folder.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
