//! Access: who may read and write a file or a folder, and the command that mends it.

use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Entries that are looked at beneath a folder: a journal of some 600 GB.
const ENTRIES_MAX: usize = 10_000;
/// `data_dir/journal/{lane}/{file}`.
const FOLDERS_DEEP_MAX: usize = 3;

/// The user that the process runs as, such as `forebay`; his number where he has no name.
pub fn user() -> String {
    name_in("/etc/passwd", rustix::process::geteuid().as_raw())
}

/// The group that the process runs as.
pub fn group() -> String {
    name_in("/etc/group", rustix::process::getegid().as_raw())
}

/// The name of a number in a file of lines such as `name:x:998:…`; the number itself if it has none there.
fn name_in(file: &str, number: u32) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| number.to_string())
}

/// Owner and mode of a file, for people: `root:adm, mode 0640`.
fn owner_and_mode(found: &std::fs::Metadata) -> String {
    let (user, group) = (name_in("/etc/passwd", found.uid()), name_in("/etc/group", found.gid()));
    format!("{user}:{group}, mode {:04o}", found.permissions().mode() & 0o7777)
}

fn may(path: &Path, how: Access) -> bool {
    accessat(CWD, path, how, AtFlags::EACCESS).is_ok()
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The folder that a path is in; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Why a file cannot be read, and what mends it. `error` is what the system said.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let missing = |what: &Path| std::fs::metadata(what).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    match error.kind() {
        io::ErrorKind::NotFound if missing(folder_of(path)) => {
            format!("{error}; its folder {} is not there either", folder_of(path).display())
        }
        io::ErrorKind::PermissionDenied => {
            let (user, group) = (user(), group());
            let folders: Vec<&Path> = path.ancestors().skip(1).filter(|folder| *folder != Path::new("")).collect();
            let shut = folders.into_iter().rev().find(|folder| !may(folder, Access::EXEC_OK));
            let (what, found, mode) = match shut {
                Some(folder) => (folder, std::fs::metadata(folder), "g+x"),
                None => (path, std::fs::metadata(path), "g+r"),
            };
            let owner = found.map_or_else(|_| "unknown".into(), |found| owner_and_mode(&found));
            let what = quoted(what);
            format!(
                "{error}: {what} belongs to {owner}, and this process runs as {user}:{group}; mend it with: chgrp {group} {what} && chmod {mode} {what}"
            )
        }
        _ => error.to_string(),
    }
}

/// What is wrong with a file that holds a secret, and others than its owner and group can read or change;
/// `None` if nothing is.
pub fn exposed(path: &Path) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    let verb = match found.permissions().mode() & 0o006 {
        0 => return None,
        4 => "read",
        2 => "changed",
        _ => "read and changed",
    };
    Some(format!(
        "{} can be {verb} by everybody on this machine ({}); mend it with: chmod o-rwx {}",
        path.display(),
        owner_and_mode(&found),
        quoted(path)
    ))
}

/// Links that are followed on the way to a file, as the kernel follows them.
const LINKS_MAX: usize = 40;

/// What leads to a file, and can be changed by every user of the machine: the file or folder itself, and every folder on the
/// way, through links too. Each comes with owner, mode and the command that mends it.
///
/// A folder with the sticky bit (`/tmp`) lets nobody replace what belongs to others, so that it counts only where everything
/// in it is read (`is_read_whole`).
pub fn open_to_everybody(path: &Path, is_read_whole: bool) -> Vec<(PathBuf, String)> {
    let steps = steps_to(path);
    let last = steps.len().saturating_sub(1);
    let mut found = Vec::new();
    for (index, step) in steps.into_iter().enumerate() {
        let Ok(known) = std::fs::symlink_metadata(&step) else { continue };
        let mode = known.permissions().mode();
        let is_guarded = mode & STICKY != 0 && !(index == last && is_read_whole);
        if mode & 0o002 == 0 || (known.is_dir() && is_guarded) || !(known.is_dir() || known.is_file()) {
            continue;
        }
        let (shown, owner, command) = (step.display(), owner_and_mode(&known), quoted(&step));
        let effect = if index == last { String::new() } else { format!(", who can so replace {}", path.display()) };
        let message = format!(
            "{shown} can be changed by everybody on this machine ({owner}){effect}; mend it with: chmod o-w {command}"
        );
        found.push((step, message));
    }
    found
}

/// The bit that keeps users from removing each other's files in a folder.
const STICKY: u32 = 0o1000;

/// Every folder that the kernel passes on the way to a path, and what the path leads to at the end. Links are followed
/// and do not count themselves: whoever may change the folder that they are in may replace them.
fn steps_to(path: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parts =
        |path: &Path| -> Vec<OsString> { path.components().rev().map(|part| part.as_os_str().to_owned()).collect() };
    let mut left = parts(&absolute);
    let (mut now, mut steps, mut links) = (PathBuf::from("/"), vec![PathBuf::from("/")], 0);
    while let Some(part) = left.pop() {
        if part == "/" || part == ".." {
            now = if part == "/" { "/".into() } else { folder_of(&now).to_owned() };
            continue;
        }
        let next = now.join(&part);
        match std::fs::read_link(&next) {
            Ok(target) if links < LINKS_MAX => {
                links += 1;
                left.extend(parts(&target));
            }
            _ => {
                now = next;
                steps.push(now.clone());
            }
        }
    }
    // A path may come back to a folder: the way to it counts once, the end stays the end.
    let end = steps.pop();
    let mut seen = std::collections::BTreeSet::new();
    steps.retain(|step| Some(step) != end.as_ref() && seen.insert(step.clone()));
    steps.extend(end);
    steps
}

/// Whether files can be made and read in a folder, which may be yet to be made; what mends it if not.
pub fn check_folder(folder: &Path) -> Result<(), String> {
    let (user, group) = (user(), group());
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    match std::fs::metadata(folder) {
        Ok(found) if !found.is_dir() => Err(format!("{} is a file, and a folder is wanted", folder.display())),
        Ok(_) if may(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) => Ok(()),
        Ok(found) => Err(format!(
            "{} belongs to {}, and this process, {user}:{group}, cannot write there; ask as the user that the gateway runs as, or mend it with: chown -R {user}:{group} {}",
            folder.display(),
            owner_and_mode(&found),
            quoted(folder)
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = folder.ancestors().skip(1).find(|above| above.exists() || *above == Path::new(""));
            let above = above.filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
            if above.is_dir() && may(above, Access::WRITE_OK | Access::EXEC_OK) {
                return Ok(());
            }
            Err(format!(
                "{} is not there, and this process, {user}:{group}, cannot make it; mend it with: {}",
                folder.display(),
                making(folder)
            ))
        }
        Err(error) => Err(format!("{}: {}", folder.display(), unreadable(folder, &error))),
    }
}

/// The command that makes a folder for the process.
pub fn making(folder: &Path) -> String {
    format!("install -d -o {} -g {} -m 0750 {}", user(), group(), quoted(folder))
}

/// The first file or folder beneath `folder` that the process cannot read and write, and what mends it.
pub fn foreign_within(folder: &Path) -> Option<String> {
    let mut waiting = vec![(folder.to_owned(), 0)];
    let mut seen = 0;
    while let Some((folder_now, deep)) = waiting.pop() {
        let inside: Vec<PathBuf> =
            std::fs::read_dir(&folder_now).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        for path in inside {
            seen += 1;
            let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
            let wanted = match (found.is_dir(), found.is_file()) {
                (true, _) => Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
                (_, true) => Access::READ_OK | Access::WRITE_OK,
                _ => continue,
            };
            if !may(&path, wanted) {
                let (user, group) = (user(), group());
                return Some(format!(
                    "{} belongs to {}, and this process, {user}:{group}, cannot write it; ask as the user that the gateway runs as, or mend it with: chown -R {user}:{group} {}",
                    path.display(),
                    owner_and_mode(&found),
                    quoted(folder)
                ));
            }
            if found.is_dir() && deep < FOLDERS_DEEP_MAX {
                waiting.push((path, deep + 1));
            }
            if seen >= ENTRIES_MAX {
                return None;
            }
        }
    }
    None
}

/// The user that a folder belongs to, where the process is root and he is not: what root makes there, he cannot write.
pub fn owner_beside_root(folder: &Path) -> Option<String> {
    let found = std::fs::metadata(folder).ok()?;
    (rustix::process::geteuid().is_root() && found.uid() != 0).then(|| name_in("/etc/passwd", found.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names_where_the_system_knows_them() {
        assert_eq!(name_in("/etc/passwd", 0), "root");
        assert_eq!(name_in("/etc/passwd", 3_999_999_999), "3999999999");
        assert_eq!(name_in("/nowhere", 7), "7");
    }

    #[test]
    fn a_command_survives_a_shell() {
        assert_eq!(quoted(Path::new("/etc/forebay/gw.key")), "/etc/forebay/gw.key");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn a_file_is_exposed_to_everybody_and_not_to_its_group() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("key");
        std::fs::write(&file, "x").expect("writes");
        let with = |mode: u32| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode");
            exposed(&file)
        };
        assert_eq!(with(0o600), None);
        assert_eq!(with(0o640), None);
        let text = with(0o644).expect("exposed");
        assert!(text.contains("can be read by everybody") && text.contains("mode 0644"), "{text}");
        assert!(text.contains(&format!("chmod o-rwx {}", file.display())), "{text}");
        assert!(with(0o602).is_some_and(|text| text.contains("changed by everybody")));
        assert_eq!(exposed(&folder.path().join("none")), None);
    }

    #[test]
    fn everything_on_the_way_to_a_file_that_everybody_can_change_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().canonicalize().expect("a path");
        let (config, real) = (root.join("config"), root.join("real"));
        for made in [&config, &real] {
            std::fs::create_dir(made).expect("made");
        }
        let file = real.join("forebay.toml");
        std::fs::write(&file, "x").expect("written");
        std::os::unix::fs::symlink("../real/forebay.toml", config.join("forebay.toml")).expect("linked");
        let set = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
        };
        let found = |is_read_whole| -> Vec<PathBuf> {
            let all = open_to_everybody(&config.join("forebay.toml"), is_read_whole);
            all.into_iter().map(|(path, _)| path).filter(|path| path.starts_with(&root)).collect()
        };
        set(&file, 0o664);
        assert_eq!(found(false), [] as [PathBuf; 0], "its group is no everybody");
        set(&file, 0o606);
        assert_eq!(found(false), [file.as_path()]);
        set(&file, 0o600);
        set(&config, 0o777);
        assert_eq!(found(false), [config.as_path()], "the folder of the link");
        set(&config, 0o1777);
        set(&real, 0o757);
        assert_eq!(found(false), [real.as_path()], "the folder that the link leads to; the other one is guarded");
        let message = &open_to_everybody(&file, false)[0].1;
        for part in ["mode 0757", "who can so replace", &format!("chmod o-w {}", real.display())] {
            assert!(message.contains(part), "{part}: {message}");
        }
        set(&real, 0o1777);
        assert_eq!(open_to_everybody(&real, true).last().map(|(path, _)| path.clone()), Some(real.clone()));
        assert!(
            !open_to_everybody(&real, false).iter().any(|(path, _)| *path == real),
            "nothing in it can be replaced"
        );
        std::fs::remove_file(config.join("forebay.toml")).expect("removed");
        std::os::unix::fs::symlink("forebay.toml", config.join("forebay.toml")).expect("linked");
        assert!(steps_to(&config.join("forebay.toml")).len() < 100, "a link to itself ends");
    }
}
