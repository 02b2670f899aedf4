//! What a reviewer would miss: import rows, foreign names indoors, module headers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The row of each module, as the table in `src/README.md` has them.
fn rows() -> BTreeMap<String, u32> {
    let map = std::fs::read_to_string(src().join("README.md")).expect("src/README.md");
    let mut rows = BTreeMap::new();
    for line in map.lines() {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let Some(row) = cells.next().and_then(|cell| cell.parse().ok()) else { continue };
        for name in cells.next().unwrap_or_default().split('`').skip(1).step_by(2) {
            assert_eq!(rows.insert(name.to_owned(), row), None, "{name} is in two rows");
        }
    }
    rows
}

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(folder).expect("src") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&src(), &mut found);
    found
}

/// The module a file belongs to: `journal` for `src/journal/block.rs`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(src()).expect("inside src");
    let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file, without its tests and comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    code.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_point_down() {
    let rows = rows();
    let row = |module: &str| *rows.get(module).unwrap_or_else(|| panic!("module {module} is in no row"));
    for (path, text) in sources() {
        let own = module(&path);
        if own == "lib" {
            continue;
        }
        for (line, content) in code(&text) {
            for piece in content.split("crate::").skip(1) {
                let used: String = piece.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if used == own || used.is_empty() {
                    continue;
                }
                assert!(
                    row(&used) < row(&own),
                    "{}:{line}: {own} (row {}) uses {used} (row {})",
                    path.display(),
                    row(&own),
                    row(&used)
                );
            }
        }
    }
}

#[test]
fn foreign_names_stay_indoors() {
    let rules: [(&str, &[&str]); 11] = [
        ("redb::", &["journal"]),
        ("rumqttc::", &["mqtt"]),
        ("tokio_modbus::", &["sources", "demo"]),
        ("rcgen::", &["demo"]),
        ("x509_parser::", &["tls"]),
        ("anyhow", &["config", "admin", "gateway", "demo", "cli", "main"]),
        ("fancy_regex::", &["contract"]),
        ("regex_automata::", &["contract"]),
        ("regex_syntax::", &["contract"]),
        ("jsonschema::", &["contract"]),
        ("std::process::exit", &[]),
    ];
    for (path, text) in sources() {
        let own = module(&path);
        for (line, content) in code(&text) {
            for (name, allowed) in rules {
                assert!(
                    !content.contains(name) || allowed.contains(&own.as_str()),
                    "{}:{line}: {name} is for {allowed:?}",
                    path.display()
                );
            }
            for clock in ["Instant::now()", "SystemTime::now()"] {
                assert!(
                    !content.contains(clock) || own == "clock",
                    "{}:{line}: only clock asks the time",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_module_opens_with_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{} has no header", path.display());
        assert_ne!(path.file_name().and_then(|name| name.to_str()), Some("mod.rs"), "there is no mod.rs");
    }
}

#[test]
fn the_table_of_rows_names_the_modules_that_there_are() {
    let modules: BTreeSet<String> = sources().keys().map(|path| module(path)).filter(|name| name != "lib").collect();
    assert_eq!(rows().into_keys().collect::<BTreeSet<_>>(), modules, "src/README.md");
}
