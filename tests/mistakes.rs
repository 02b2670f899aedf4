//! Mistakes in a configuration: for each key values of another type, unit or form, and names that are misspelt.

use crate::common::random::Random;
use crate::documents::{HEAD, check, known_keys, tables};

/// Values that some key takes and most do not.
const VALUES: [&str; 14] = [
    "5",
    "-1",
    "1.5",
    "true",
    "\"no such value\"",
    "\"\"",
    "\"5 parsecs\"",
    "[]",
    "[1]",
    "[\"a\", \"a\"]",
    "{}",
    "{ x = 1 }",
    "2020-01-01",
    "99999999999999999999",
];
/// Values that are tried for each key.
const TRIES: u64 = 4;
/// Words of the language and the libraries of the program.
const FOREIGN: [&str; 22] = [
    "u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32", "f64", "bool", "struct",
    "enum", "untagged", "variant", "sequence", "map", "Vec", "newtype",
];

/// Words that say what is allowed.
const ALLOWED: [&str; 25] = [
    "expected",
    "allowed",
    "such as",
    "for example",
    "write ",
    "at most",
    "at least",
    "needed",
    "needs ",
    "set ",
    "put it in quotes",
    "remove it",
    "has 1 to",
    "is missing",
    "are missing",
    "lanes are",
    "cannot be",
    "does not exist",
    "is no folder",
    "is required",
    "only",
    "leave it out",
    "is taken by",
    "is for",
    "add a ",
];
/// Answers about several keys, or about one that is not there: the value of this key does not matter.
const OF_OTHER_KEYS: [&str; 12] = [
    "go together",
    "needs ",
    "has a meaning for",
    "is set, but",
    "is missing",
    "are missing",
    "missing field",
    "there is nothing to watch",
    "is taken by",
    "is for hours",
    "there are 0",
    "limits nothing",
];

/// Whether a message names a value: as it is written, as its kind, or a part of it.
fn names_value(message: &str, value: &str) -> bool {
    let bare = value.trim_matches('"');
    let is_list_or_table = value.starts_with(['[', '{']);
    let parts = value.split(|letter: char| !letter.is_alphanumeric()).filter(|part| !part.is_empty());
    let compact = |text: &str| text.replace(' ', "");
    match bare {
        "" => ["\"\"", "``", "empty", "is no ", "is not "].iter().any(|word| message.contains(word)),
        _ if is_list_or_table => {
            ["a list", "a table"].iter().any(|kind| message.contains(kind))
                || parts.clone().any(|part| message.contains(part))
                || compact(message).contains(&compact(value))
        }
        // Of a path, the part that is wrong.
        _ => message.contains(bare) || bare.split_once('/').is_some_and(|(parent, _)| message.contains(parent)),
    }
}

/// Whether a key holds the path of a secret. People write the secret itself there, so that an answer leaves it out.
fn may_be_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["password", "passphrase", "secret", "token", "key"].iter().any(|word| last.contains(word))
}

/// The file with one key set, and its line. A key that is set already is replaced.
fn with_key(before: &str, key: &str, value: &str) -> (String, usize) {
    let start = format!("{key} = ");
    let mut lines: Vec<String> = format!("{HEAD}{before}").lines().map(str::to_owned).collect();
    let own = if before.is_empty() { 0 } else { HEAD.lines().count() };
    let line = match lines[own..].iter().rposition(|line| line.starts_with(&start)) {
        Some(index) => own + index,
        None => {
            lines.push(String::new());
            lines.len() - 1
        }
    };
    lines[line] = format!("{start}{value}");
    (lines.join("\n") + "\n", line + 1)
}

/// The problems that `forebay check` finds.
fn problems(file: &str) -> Vec<serde_json::Value> {
    let said = check(file, &[]);
    let answer: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{file}"));
    answer["problems"].as_array().cloned().unwrap_or_default()
}

/// Why an answer does not help, if so.
fn fault(problem: &serde_json::Value, key: &str, value: &str) -> Option<String> {
    let message = problem["message"].as_str().expect("a message");
    let is_foreign = |word: &str| FOREIGN.contains(&word);
    // Quotes enclose values of the file, or allowed ones.
    let own = message.split(['"', '`']).step_by(2).collect::<String>();
    if let Some(word) = own.split(|letter: char| !letter.is_alphanumeric()).find(|word| is_foreign(word)) {
        return Some(format!("it says \"{word}\""));
    }
    if own.contains("::") || own.contains("private") {
        return Some("it names a type".to_owned());
    }
    let is_exempt = OF_OTHER_KEYS.iter().any(|words| message.contains(words)) || may_be_secret(key);
    if !is_exempt && !names_value(message, value) {
        return Some("it does not name the value".to_owned());
    }
    if !ALLOWED.iter().any(|words| message.contains(words)) {
        return Some("it does not say what is allowed".to_owned());
    }
    let named = problem["key"].as_str().expect("a key");
    (!named.contains(key) && !message.contains(key)).then(|| "it does not name the key".to_owned())
}

#[test]
fn each_wrong_value_is_answered_with_line_and_key_and_in_words_of_people() {
    let mut random = Random::seeded();
    let (mut tried, mut refused, mut bad) = (0, 0, Vec::new());
    for (_, before) in tables() {
        for key in known_keys(&check(&format!("{HEAD}{before}unknown_key = 1\n"), &[])) {
            for _ in 0..TRIES {
                let value = VALUES[random.below(VALUES.len() as u64) as usize];
                let (file, line) = with_key(&before, &key, value);
                tried += 1;
                let found = problems(&file);
                let here = |problem: &&serde_json::Value| problem["line"] == line;
                refused += usize::from(found.iter().any(|problem| here(&problem)));
                for problem in found.iter().filter(here) {
                    if let Some(fault) = fault(problem, &key, value) {
                        bad.push(format!("{key} = {value}: {fault}: {problem}"));
                    }
                }
            }
        }
    }
    println!("{tried} values were tried, {refused} refused at their line");
    assert!(refused * 3 > tried, "only {refused} of {tried} are refused");
    assert!(bad.is_empty(), "{bad:#?}");
}

/// A path that does not exist, and one where a folder, a file or nothing readable is.
#[test]
fn each_wrong_path_is_answered_with_the_path_and_what_should_be_there() {
    let files = [("plain", "x"), ("folder/inside", "x")];
    let (mut refused, mut bad) = (0, Vec::new());
    for (_, before) in tables() {
        for key in known_keys(&check(&format!("{HEAD}{before}unknown_key = 1\n"), &[])) {
            for value in ["\"nowhere\"", "\"folder\"", "\"plain\"", "\"plain/inside\""] {
                let (file, line) = with_key(&before, &key, value);
                let said = check(&file, &files);
                let answer: serde_json::Value =
                    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{file}"));
                for problem in answer["problems"].as_array().into_iter().flatten() {
                    if problem["line"] != line {
                        continue;
                    }
                    refused += 1;
                    if let Some(fault) = fault(problem, &key, value) {
                        bad.push(format!("{key} = {value}: {fault}: {problem}"));
                    }
                }
            }
        }
    }
    println!("{refused} answers about paths");
    assert!(refused > 100, "only {refused}");
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_allowed_ones() {
    let mut random = Random::seeded();
    for (_, before) in tables() {
        let keys: Vec<String> =
            known_keys(&check(&format!("{HEAD}{before}unknown_key = 1\n"), &[])).into_iter().collect();
        let key = &keys[random.below(keys.len() as u64) as usize];
        let at = random.below(key.len() as u64) as usize;
        let misspelt = format!("{}q{}", &key[..at], &key[at + 1..]);
        let file = format!("{HEAD}{before}{misspelt} = 1\n");
        let found = problems(&file);
        let line = file.lines().count();
        let is_named = found.iter().any(|problem| {
            let message = problem["message"].as_str().expect("a message");
            problem["line"] == line && message.contains(&misspelt) && message.contains(&format!("`{key}`"))
        });
        assert!(is_named, "{file}\n{found:#?}");
    }
}
