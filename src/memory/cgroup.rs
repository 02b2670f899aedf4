//! The memory limit of the process's control group, version 1 or 2.
//!
//! The module reads `/proc/self` and the mounted hierarchy. The packaged unit allows both: `ProcSubset=pid` keeps
//! `/proc/self`, and `ProtectControlGroups=yes` makes the hierarchy read-only, not invisible.

use std::path::{Path, PathBuf};

/// Version 1 writes "no limit" as the largest multiple of a page, far above any real memory.
const NO_LIMIT: u64 = 1 << 60;

/// Returns the smallest limit of the process's own control group and its parents, in bytes; `None` without a limit.
pub fn limit() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let own = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    smallest(&own, &mounts, read)
}

/// One mounted hierarchy that can limit memory.
struct Hierarchy<'a> {
    /// The control group at the mount point.
    root: &'a str,
    mount_point: PathBuf,
    is_v2: bool,
}

fn smallest(own: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut found: Option<u64> = None;
    for hierarchy in mounts.lines().filter_map(hierarchy) {
        let Some(path) = own.lines().find_map(|line| own_path(line, hierarchy.is_v2)) else { continue };
        let file = if hierarchy.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        // A namespace may show a path outside of the mount: then only the mount point itself is known.
        let inside = Path::new(path).strip_prefix(hierarchy.root).ok();
        let inside = inside.filter(|inside| inside.components().all(|part| part.as_os_str() != ".."));
        for group in inside.unwrap_or(Path::new("")).ancestors() {
            let text = read(&hierarchy.mount_point.join(group).join(file));
            let limit = text.and_then(|text| text.trim().parse::<u64>().ok()).filter(|limit| *limit < NO_LIMIT);
            found = limit.into_iter().chain(found).min();
        }
    }
    found
}

/// Parses a line of `/proc/self/mountinfo` (proc(5)): ids, root, mount point, options, "-", type, source,
/// options of the file system.
fn hierarchy(line: &str) -> Option<Hierarchy<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mount_point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let is_v2 = match right.next()? {
        "cgroup2" => true,
        "cgroup" if right.nth(1)?.split(',').any(|option| option == "memory") => false,
        _ => return None,
    };
    // The kernel writes blanks in a path as octal numbers.
    Some(Hierarchy { root, mount_point: PathBuf::from(mount_point.replace("\\040", " ")), is_v2 })
}

/// Parses a line of `/proc/self/cgroup` (cgroups(7)): number, controllers, path. Version 2 has
/// number 0 and no controllers.
fn own_path(line: &str, is_v2: bool) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = match is_v2 {
        true => number == "0" && controllers.is_empty(),
        false => controllers.split(',').any(|controller| controller == "memory"),
    };
    fits.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
35 31 0:32 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw";

    fn found(own: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        smallest(own, mounts, |path| {
            let (_, text) = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(format!("{text}\n"))
        })
    }

    #[test]
    fn the_smallest_limit_of_the_own_group_and_its_parents_counts() {
        let own = "0::/system.slice/forebay.service";
        let unit = ("/sys/fs/cgroup/system.slice/forebay.service/memory.max", "268435456");
        assert_eq!(found(own, V2, &[unit]), Some(268_435_456));
        let slice = ("/sys/fs/cgroup/system.slice/memory.max", "100000000");
        assert_eq!(found(own, V2, &[unit, slice]), Some(100_000_000));
        let unlimited = ("/sys/fs/cgroup/system.slice/forebay.service/memory.max", "max");
        assert_eq!(found(own, V2, &[unlimited]), None);
        assert_eq!(found(own, V2, &[unlimited, slice]), Some(100_000_000));
        assert_eq!(found("0::/", V2, &[]), None, "the root has no such file");
    }

    #[test]
    fn version_1_and_mixed_hierarchies_are_read() {
        let own = "9:name=systemd:/\n4:cpu,memory:/small-7\n0::/";
        let none = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
        let limit = ("/sys/fs/cgroup/memory/small-7/memory.limit_in_bytes", "67108864");
        assert_eq!(found(own, V1, &[none, limit]), Some(67_108_864));
        assert_eq!(found(own, V1, &[none]), None);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount_point() {
        let file = ("/sys/fs/cgroup/memory.max", "50000000");
        assert_eq!(found("0::/", V2, &[file]), Some(50_000_000));
        assert_eq!(found("0::/../../other", V2, &[file]), Some(50_000_000));
        let mounts = "29 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw";
        assert_eq!(found("0::/docker/abc", mounts, &[file]), Some(50_000_000));
        let inner = ("/sys/fs/cgroup/inner/memory.max", "1000000");
        assert_eq!(found("0::/docker/abc/inner", mounts, &[file, inner]), Some(1_000_000));
    }

    #[test]
    fn what_is_not_understood_is_no_limit() {
        for (own, mounts) in [("", ""), ("0::", "x"), ("nonsense", V2), ("0::/", "1 2 3 - cgroup2"), ("4:memory", V1)] {
            assert_eq!(found(own, mounts, &[("/sys/fs/cgroup/memory.max", "many")]), None, "{own} {mounts}");
        }
    }
}
