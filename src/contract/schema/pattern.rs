//! The keyword `pattern`, and the format `regex`.
//!
//! Promise: a regular expression spends from the budget what it may take, and an expression that takes longer ends the
//! validation. The library has a limit for backtracking alone: how long one step back takes depends on the text.

use super::budget::Budget;
use super::node::{Payload, PayloadNode};
use jsonschema::json::Node;
use jsonschema::{Keyword, ValidationError};

/// How many steps back one match may take. Each may look at all of the text.
const BACKTRACKS_MAX: usize = 10_000;
/// The longest regular expression that a payload may hold: to read it takes the square of its length.
const REGEX_BYTES_MAX: usize = 4096;
const TOO_LONG: &str = "takes too long to be matched with a pattern of its schema";

/// A regular expression of a schema.
pub(super) struct Pattern {
    written: String,
    regex: fancy_regex::Regex,
    /// Whether it looks around or refers back: only then the engine goes back in the text.
    backtracks: bool,
}

impl Pattern {
    /// Compiles a regular expression in the dialect of JavaScript.
    ///
    /// # Errors
    /// The text is no regular expression.
    pub(super) fn compile(written: &str) -> Result<Self, String> {
        let regex = jsonschema_regex::is_valid_ecma_regex(written)
            .then(|| jsonschema_regex::to_rust_regex(written).ok())
            .flatten()
            .and_then(|rust| fancy_regex::RegexBuilder::new(&rust).backtrack_limit(BACKTRACKS_MAX).build().ok())
            .ok_or_else(|| format!("\"{written}\" is no regular expression of JavaScript (ECMA-262)"))?;
        let refers_back = |pair: &[u8]| pair[0] == b'\\' && (pair[1] == b'k' || (b'1'..=b'9').contains(&pair[1]));
        let backtracks = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|sign| written.contains(sign))
            || written.as_bytes().windows(2).any(refers_back);
        Ok(Self { written: written.to_owned(), regex, backtracks })
    }

    fn is_match(&self, text: &str, budget: &Budget) -> bool {
        let length = text.len() as u64;
        // The time grows with the text, and with its square where the engine goes back.
        let steps = if self.backtracks { 2_000 + length * length / 4 } else { length };
        if !budget.spend(steps) {
            return false;
        }
        self.regex.is_match(text).unwrap_or_else(|_| {
            budget.exhaust(TOO_LONG);
            false
        })
    }
}

impl<'i> Keyword<'i, Payload> for Pattern {
    fn validate(&self, node: PayloadNode<'i>) -> Result<(), ValidationError<'i>> {
        match Keyword::<Payload>::is_valid(self, node) {
            true => Ok(()),
            false => Err(ValidationError::custom(format!("does not match \"{}\"", self.written))),
        }
    }

    fn is_valid(&self, node: PayloadNode<'i>) -> bool {
        node.as_string().is_none_or(|text| self.is_match(&text, node.budget))
    }
}

/// Whether a payload's text is a regular expression.
pub(super) fn is_regex(text: &str) -> bool {
    text.len() <= REGEX_BYTES_MAX && jsonschema_regex::is_valid_ecma_regex(text)
}
