//! What a reviewer would miss: import rows and cycles, foreign names indoors, lengths, headers, words, commits.

mod commits;
mod imports;
mod source;
mod words;

use imports::{Imports, cycles};
use source::Source;
use std::collections::{BTreeMap, BTreeSet};

/// Lines of a file, without tests.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;
/// With `self`.
const PARAMETERS: usize = 5;

/// Files over a limit, with today's figure: they may shrink, not grow, and leave the list once they are within it.
const NOT_YET_LINES: &[(&str, usize)] = &[];
/// Files with functions over `FUNCTION_LINES`, and the lines of their longest.
const NOT_YET_FUNCTIONS: &[(&str, usize)] = &[];
/// Files with functions of more than `PARAMETERS`, and how many.
const NOT_YET_PARAMETERS: &[(&str, usize)] = &[];
/// Folders with children that use each other in a cycle, and how many children are in one.
const NOT_YET_CYCLES: &[(&str, usize)] = &[];
/// Files that use children by which they are used, and how many.
const NOT_YET_PARENTS: &[(&str, usize)] = &[];

/// Compares figures of files with a limit and a list of files that exceed it.
fn check(what: &str, figures: &BTreeMap<String, usize>, limit: usize, not_yet: &[(&str, usize)]) {
    let mut wrong = Vec::new();
    for (file, figure) in figures {
        let allowed = not_yet.iter().find(|(listed, _)| listed == file).map(|(_, figure)| *figure);
        if *figure > allowed.unwrap_or(limit) {
            wrong.push(format!("(\"{file}\", {figure}), is over {}", allowed.unwrap_or(limit)));
        } else if *figure <= limit && allowed.is_some() {
            wrong.push(format!("{file} is within the limit: remove its entry"));
        }
    }
    let gone = not_yet.iter().filter(|(file, _)| !figures.contains_key(*file));
    wrong.extend(gone.map(|(file, _)| format!("{file} is gone: remove its entry")));
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

/// The row of each module, as the table in `src/README.md` has them.
fn rows() -> BTreeMap<String, u32> {
    let map = std::fs::read_to_string(source::root().join("src/README.md")).expect("src/README.md");
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
    for source in Source::all().values().filter(|source| source.module() != "lib") {
        let own = source.module();
        for (line, content) in code(&source.text) {
            for piece in content.split("crate::").skip(1) {
                let used: String = piece.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if used == own || used.is_empty() {
                    continue;
                }
                let (above, below) = (row(own), row(&used));
                assert!(below < above, "{}:{line}: {own} (row {above}) uses {used} (row {below})", source.name);
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
        ("rcgen::", &["demo", "tls"]),
        ("x509_parser::", &["tls"]),
        ("anyhow", &["config", "admin", "gateway", "demo", "cli", "main"]),
        ("fancy_regex::", &["contract"]),
        ("regex_automata::", &["contract"]),
        ("regex_syntax::", &["contract"]),
        ("jsonschema::", &["contract"]),
        ("ratatui::", &["cli"]),
    ];
    for source in Source::all().values() {
        let own = source.module();
        for (line, content) in code(&source.text) {
            for (name, allowed) in rules {
                assert!(
                    !content.contains(name) || allowed.contains(&own),
                    "{}:{line}: {name} is for {allowed:?}",
                    source.name
                );
            }
        }
    }
}

#[test]
fn every_module_opens_with_what_it_is() {
    // Entry points promise what their modules do.
    let without_promise = ["lib.rs", "main.rs"];
    for source in Source::all().values() {
        let name = source.name.as_str();
        assert!(source.text.starts_with("//! "), "{name} has no header");
        assert!(!name.ends_with("/mod.rs"), "{name}: there is no mod.rs");
        let header: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let promises = ["//! Promise:", "//! Promises:", "//! Invariant:", "//! Invariants:"];
        let has_promise = header.iter().any(|line| promises.iter().any(|word| line.starts_with(word)));
        let is_top = !name.contains('/') && !without_promise.contains(&name);
        assert!(has_promise || !is_top, "{name} states neither a promise nor an invariant");
    }
}

#[test]
fn the_table_of_rows_names_the_modules_that_there_are() {
    let sources = Source::all();
    let modules = sources.values().map(Source::module).filter(|name| *name != "lib");
    let modules: BTreeSet<String> = modules.map(str::to_owned).collect();
    assert_eq!(rows().into_keys().collect::<BTreeSet<_>>(), modules, "src/README.md");
}

#[test]
fn children_of_a_module_use_each_other_in_one_direction() {
    let sources = Source::all();
    let imports = Imports::of(&sources);
    let edges = imports.edges();
    let mut figures = BTreeMap::new();
    for (folder, siblings) in imports::siblings(&edges) {
        let cycles = cycles(&siblings);
        for cycle in &cycles {
            for one in cycle {
                let used: Vec<&str> = siblings[one].iter().filter(|other| cycle.contains(*other)).copied().collect();
                println!("{folder}: {one} uses {}", used.join(", "));
            }
        }
        figures.insert(folder.to_owned(), cycles.iter().map(Vec::len).sum());
    }
    check("children in cycles", &figures, 0, NOT_YET_CYCLES);
}

#[test]
fn no_child_uses_a_parent_that_uses_it() {
    let sources = Source::all();
    let imports = Imports::of(&sources);
    let entangled = imports::entangled(&imports.edges());
    for (parent, children) in &entangled {
        println!("{parent}: {}", children.iter().copied().collect::<Vec<_>>().join(", "));
    }
    let figures = sources.keys().map(|file| (file.clone(), entangled.get(file.as_str()).map_or(0, BTreeSet::len)));
    check("children that use their parent and are used by it", &figures.collect(), 0, NOT_YET_PARENTS);
}

#[test]
fn files_functions_and_lists_of_parameters_are_short() {
    let sources = Source::all();
    let figures = |of: &dyn Fn(&Source) -> usize| {
        sources.iter().map(|(name, source)| (name.clone(), of(source))).collect::<BTreeMap<_, _>>()
    };
    for function in sources.values().flat_map(|source| source.functions.iter().map(move |one| (source, one))) {
        let (source, function) = function;
        if function.lines > FUNCTION_LINES || function.parameters > PARAMETERS {
            let (lines, parameters) = (function.lines, function.parameters);
            println!("{}:{}: {}: {lines} lines, {parameters} parameters", source.name, function.line, function.name);
        }
    }
    check("lines of a file", &figures(&|source| source.lines), FILE_LINES, NOT_YET_LINES);
    let longest = |source: &Source| source.functions.iter().map(|function| function.lines).max().unwrap_or(0);
    check("lines of a function", &figures(&longest), FUNCTION_LINES, NOT_YET_FUNCTIONS);
    let many = |source: &Source| source.functions.iter().filter(|function| function.parameters > PARAMETERS).count();
    check("functions with more than five parameters", &figures(&many), 0, NOT_YET_PARAMETERS);
}

#[test]
fn tests_say_in_one_place_that_they_are_not_run() {
    fn walk(folder: &std::path::Path) {
        for entry in std::fs::read_dir(folder).expect("tests") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("common/need.rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                let phrase = ["\"not", "run"].join(" ");
                assert!(!text.contains(&phrase), "{}: leave that to tests/common/need.rs", path.display());
            }
        }
    }
    walk(&source::root().join("tests"));
}

/// Scripts read versions and formats from sources. One named a file that had moved, and no package could be built.
#[test]
fn files_that_scripts_read_are_there() {
    let root = source::root();
    let mut scripts = vec![root.join("tests/run"), root.join(".ci/run")];
    for folder in ["cross", "tests/package", "tests/odoo", "systemd"] {
        let found = std::fs::read_dir(root.join(folder)).expect("a folder");
        scripts.extend(found.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()));
    }
    let (mut missing, mut count) = (Vec::new(), 0);
    for script in scripts {
        let text = std::fs::read_to_string(&script).unwrap_or_default();
        let words = text.split(|letter: char| letter.is_whitespace() || "'\"`();".contains(letter));
        for word in words.filter(|word| word.starts_with("src/") && word.ends_with(".rs")) {
            count += 1;
            if !root.join(word).is_file() {
                missing.push(format!("{}: {word}", script.display()));
            }
        }
    }
    assert!(count > 0, "no script names a source");
    assert!(missing.is_empty(), "{missing:#?}");
}
