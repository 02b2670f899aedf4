//! File access: checks who can read and write files and folders, and suggests the command that mends them.

use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most entries that are checked in a folder: a journal of about 600 GB.
const ENTRIES_MAX: usize = 10_000;
/// Depth of `data_dir/journal/{lane}/{file}`.
const FOLDER_DEPTH_MAX: usize = 3;

/// Returns the user of the process, such as `forebay`; the uid if it has no name.
pub fn user() -> String {
    name_in("/etc/passwd", rustix::process::geteuid().as_raw())
}

/// Returns the name of a user; the number if it has no name.
pub fn user_name(uid: u32) -> String {
    name_in("/etc/passwd", uid)
}

/// Returns the group of the process; the gid if it has no name.
pub fn group() -> String {
    name_in("/etc/group", rustix::process::getegid().as_raw())
}

/// Looks up a uid or gid in a file with lines such as `name:x:998:…`. Returns the number if it has no name there.
fn name_in(file: &str, number: u32) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| number.to_string())
}

/// Formats owner and mode of a file: `root:adm, mode 0640`.
fn owner_and_mode(found: &std::fs::Metadata) -> String {
    let (user, group) = (name_in("/etc/passwd", found.uid()), name_in("/etc/group", found.gid()));
    format!("{user}:{group}, mode {:04o}", found.permissions().mode() & 0o7777)
}

fn may(path: &Path, how: Access) -> bool {
    accessat(CWD, path, how, AtFlags::EACCESS).is_ok()
}

/// Whether the file system is mounted read-only, whatever the rights are.
fn is_read_only(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) == Err(rustix::io::Errno::ROFS)
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Returns the parent folder of a path; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Returns why a file cannot be read, and the command that mends it. `error` is the error of the system.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let missing = |what: &Path| std::fs::metadata(what).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    match error.kind() {
        io::ErrorKind::NotFound if missing(folder_of(path)) => {
            format!("{error}; its folder {} does not exist either", folder_of(path).display())
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

/// Returns a message if users other than owner and group can read or change a secret file.
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

/// Most symbolic links that are followed on a path, as in the kernel.
const LINKS_MAX: usize = 40;

/// Returns every component of a path that any user can change: the file or folder itself, and every folder on the path,
/// with links resolved. Each has a message with owner, mode and the command that mends it.
///
/// In a folder with the sticky bit (`/tmp`) users cannot replace files of others. Such a folder counts only if the gateway
/// reads every file in it (`is_read_whole`).
pub fn open_to_everybody(path: &Path, is_read_whole: bool) -> Vec<(PathBuf, String)> {
    let steps = components_of(path);
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
        let effect =
            if index == last { String::new() } else { format!(", who can thereby replace {}", path.display()) };
        let message = format!(
            "{shown} can be changed by everybody on this machine ({owner}){effect}; mend it with: chmod o-w {command}"
        );
        found.push((step, message));
    }
    found
}

/// The sticky bit: users cannot remove each other's files in such a folder.
const STICKY: u32 = 0o1000;

/// Returns every folder that the kernel traverses for a path, and the target at the end. Links are resolved and not listed
/// themselves: write access to their folder is what allows to replace them.
fn components_of(path: &Path) -> Vec<PathBuf> {
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
    // A path may traverse a folder twice: list it once, and keep the target last.
    let end = steps.pop();
    let mut seen = std::collections::BTreeSet::new();
    steps.retain(|step| Some(step) != end.as_ref() && seen.insert(step.clone()));
    steps.extend(end);
    steps
}

/// Checks that the process can create and read files in a folder, or can create the folder. The error names
/// the command that mends it.
pub fn check_folder(folder: &Path) -> Result<(), String> {
    let (user, group) = (user(), group());
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    match std::fs::metadata(folder) {
        Ok(found) if !found.is_dir() => Err(format!("{} is a file; expected a folder", folder.display())),
        Ok(_) if may(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) => Ok(()),
        Ok(_) if is_read_only(folder) => Err(format!(
            "{} is on a file system that is read-only for this process; mount it for writing, or, if systemd makes it so, add ReadWritePaths={} to the unit",
            folder.display(),
            folder.display()
        )),
        Ok(found) => Err(format!(
            "{} belongs to {}, and this process, {user}:{group}, cannot write there; run this as the user of the gateway, or mend it with: chown -R {user}:{group} {}",
            folder.display(),
            owner_and_mode(&found),
            quoted(folder)
        )),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let file = folder.ancestors().skip(1).find(|above| above.is_file()).unwrap_or(folder);
            Err(format!("{} cannot be a folder: {} is a file", folder.display(), file.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = folder.ancestors().skip(1).find(|above| above.exists() || *above == Path::new(""));
            let above = above.filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
            if above.is_dir() && may(above, Access::WRITE_OK | Access::EXEC_OK) {
                return Ok(());
            }
            Err(format!(
                "{} does not exist, and this process, {user}:{group}, cannot create it; mend it with: {}",
                folder.display(),
                create_command(folder)
            ))
        }
        Err(error) => Err(format!("{}: {}", folder.display(), unreadable(folder, &error))),
    }
}

/// Returns the command that creates a folder for the process.
pub fn create_command(folder: &Path) -> String {
    format!("install -d -o {} -g {} -m 0750 {}", user(), group(), quoted(folder))
}

/// Returns a message for the first file or folder in `folder` that the process cannot read and write.
pub fn foreign_within(folder: &Path) -> Option<String> {
    let mut pending = vec![(folder.to_owned(), 0)];
    let mut seen = 0;
    while let Some((current, depth)) = pending.pop() {
        let inside: Vec<PathBuf> =
            std::fs::read_dir(&current).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
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
                    "{} belongs to {}, and this process, {user}:{group}, cannot write it; run this as the user of the gateway, or mend it with: chown -R {user}:{group} {}",
                    path.display(),
                    owner_and_mode(&found),
                    quoted(folder)
                ));
            }
            if found.is_dir() && depth < FOLDER_DEPTH_MAX {
                pending.push((path, depth + 1));
            }
            if seen >= ENTRIES_MAX {
                return None;
            }
        }
    }
    None
}

/// Returns the owner of a folder if the process is root and the owner is not: the owner cannot write
/// files that root creates there.
pub fn other_owner_for_root(folder: &Path) -> Option<String> {
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
        assert_eq!(found(false), [] as [PathBuf; 0], "group rights do not count");
        set(&file, 0o606);
        assert_eq!(found(false), [file.as_path()]);
        set(&file, 0o600);
        set(&config, 0o777);
        assert_eq!(found(false), [config.as_path()], "the folder of the link");
        set(&config, 0o1777);
        set(&real, 0o757);
        assert_eq!(found(false), [real.as_path()], "the folder that the link leads to; the other one is guarded");
        let message = &open_to_everybody(&file, false)[0].1;
        for part in ["mode 0757", "who can thereby replace", &format!("chmod o-w {}", real.display())] {
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
        assert!(components_of(&config.join("forebay.toml")).len() < 100, "a link to itself ends");
    }
}
