//! The problems and warnings of a configuration, collected part by part.

use super::{Document, Problem};

/// Collects problems, which refuse a configuration, and warnings, which do not.
#[derive(Debug)]
pub struct Findings<'d> {
    document: &'d Document,
    is_production: bool,
    /// Key of the part that is being checked; empty for the whole file.
    part: String,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'d> Findings<'d> {
    /// No findings yet. In `production`, more settings are refused.
    pub fn new(document: &'d Document, is_production: bool) -> Self {
        Self { document, is_production, part: String::new(), problems: Vec::new(), warnings: Vec::new() }
    }

    pub fn document(&self) -> &'d Document {
        self.document
    }

    /// Whether the configuration is for `production`.
    pub fn is_production(&self) -> bool {
        self.is_production
    }

    /// Whether nothing refuses the configuration so far.
    pub fn is_acceptable(&self) -> bool {
        self.problems.is_empty()
    }

    /// Checks a part: while `check` runs, keys are relative to `part`.
    pub fn within(&mut self, part: impl Into<String>, check: impl FnOnce(&mut Self)) {
        let around = std::mem::replace(&mut self.part, part.into());
        check(self);
        self.part = around;
    }

    /// Adds a problem with the value of `key`.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        let problem = self.at(key, message);
        self.add(problem);
    }

    /// Adds a problem, unless it is known: several parts may name the same file.
    pub fn add(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Adds a warning about the value of `key`.
    pub fn warning(&mut self, key: &str, message: impl Into<String>) {
        let warning = self.at(key, message);
        self.warnings.push(warning);
    }

    /// Adds what `production` refuses, and what is only a warning elsewhere.
    pub fn risk(&mut self, key: &str, message: impl Into<String>) {
        if self.is_production { self.problem(key, message) } else { self.warning(key, message) }
    }

    /// Adds the key and the reason of a failed check.
    pub fn note<K: AsRef<str>>(&mut self, checked: Result<(), (K, String)>) {
        if let Err((key, message)) = checked {
            self.problem(key.as_ref(), message);
        }
    }

    /// Returns the problems and the warnings.
    pub fn into_lists(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.problems, self.warnings)
    }

    fn at(&self, key: &str, message: impl Into<String>) -> Problem {
        let key = match (self.part.as_str(), key) {
            (part, "") => part.to_owned(),
            ("", key) => key.to_owned(),
            (part, key) => format!("{part}.{key}"),
        };
        self.document.problem(key, message)
    }
}
