//! Words that the code and the documents do not use.

use super::check;
use super::source::{Source, root};
use crate::documents::pages;
use std::collections::BTreeMap;

/// What was once written for a term of the field, or for a plainer word, and what is written now.
const BANNED: &[(&str, &str)] = &[
    ("beside", "next to, besides; say what the thing is"),
    ("anew", "again"),
    ("be it", "whether"),
    ("nicer", "low-priority"),
    ("make way", "reclaim"),
    ("makes way", "is reclaimed"),
    ("give way", "reclaim"),
    ("is told", "is informed, receives"),
    ("are told", "are informed, receive"),
    ("is said", "is reported"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("whoever", "the client, the caller, ..."),
    ("let in", "accept, admit"),
    ("lets in", "accepts, admits"),
    ("at hand", "available"),
    ("in hand", "available"),
    ("given up", "discarded, shed"),
    ("give up", "discard, shed"),
    ("gives up", "discards, sheds"),
    ("nobody's", "in no account"),
    ("put by", "stored"),
];

/// Parts of identifiers that are not used either, what is written now, and how many names still have them.
const BANNED_IDENTIFIERS: &[(&str, &str, usize)] = &[
    ("anew", "again", 3),
    ("beside", "metadata, next_to, ...", 0),
    ("bury", "dead_letter", 0),
    ("fates", "dead_letter_status", 1),
    ("guest", "session", 1),
    ("nicer", "low_priority", 0),
    ("shelf", "read_only", 1),
    ("tell", "report", 1),
    ("told", "reported", 12),
    ("vacate", "release", 0),
    ("wreck", "salvage", 0),
];

/// Pages, and `src` as a whole, with how often they have such words today; none may be added.
const NOT_YET: &[(&str, usize)] = &[("src", 4)];

/// Where a phrase stands in a text by itself, and not as a part of longer words.
fn occurrences(text: &str, phrase: &str) -> usize {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    text.match_indices(phrase)
        .filter(|(at, _)| {
            !is_part(text[..*at].chars().next_back()) && !is_part(text[at + phrase.len()..].chars().next())
        })
        .count()
}

/// The prose of a document on one line, in lower case.
fn flat(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| !matches!(*word, "//" | "///" | "//!"));
    words.collect::<Vec<_>>().join(" ").to_lowercase()
}

#[test]
fn the_old_dialect_does_not_come_back() {
    let code = Source::all().into_values().map(|source| (format!("src/{}", source.name), source.text));
    let documents = pages(&root()).into_iter().map(|(path, text)| (path.display().to_string(), text));
    let mut figures: BTreeMap<String, usize> = BTreeMap::new();
    for (name, text) in code.chain(documents) {
        let flat = flat(&text);
        for (phrase, better) in BANNED {
            let count = occurrences(&flat, phrase);
            if count > 0 {
                println!("{name}: \"{phrase}\" {count} times; write: {better}");
            }
            let name = if name.ends_with(".rs") { "src" } else { &name };
            *figures.entry(name.to_owned()).or_default() += count;
        }
    }
    check("words of the old dialect", &figures, 0, NOT_YET);
}

#[test]
fn identifiers_are_terms_of_the_field() {
    // Each name with a file that has it.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for source in Source::all().values() {
        names.extend(source.identifiers().into_iter().map(|name| (name, source.name.clone())));
    }
    let mut wrong = Vec::new();
    for (banned, better, allowed) in BANNED_IDENTIFIERS {
        let has_it = |name: &str| name.to_lowercase().split('_').any(|part| part == *banned);
        let found: Vec<_> = names.iter().filter(|(name, _)| has_it(name)).collect();
        found.iter().for_each(|(name, file)| println!("src/{file}: {name}; write: {better}"));
        if found.len() > *allowed {
            wrong.push(format!("\"{banned}\" is in {} names, and may be in {allowed}", found.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
