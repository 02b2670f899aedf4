//! The keyword `pattern`, and the format `regex`.
//!
//! Promise: a match takes from the budget what it may cost, before it begins.

use super::budget::Budget;
use super::node::{Payload, PayloadNode};
use super::regex::{Regex, TooLong};
use jsonschema::json::Node;
use jsonschema::{Keyword, ValidationError};

/// The longest regular expression that a payload may hold. To read it takes up to 15 ns per byte, and the square of the
/// length where it names groups: 0.3 ms.
const REGEX_BYTES_MAX: usize = 4096;
const TOO_LONG: &str = "takes too long to be matched with a pattern of its schema";

/// A regular expression of a schema.
pub(super) struct Pattern {
    written: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles a regular expression in the dialect of JavaScript.
    ///
    /// # Errors
    /// The text is no regular expression, or one that is too large.
    pub(super) fn compile(written: &str) -> Result<Self, String> {
        match Regex::compile(written) {
            Ok(regex) => Ok(Self { written: written.to_owned(), regex }),
            Err(reason) => Err(format!("\"{written}\" {reason}")),
        }
    }

    fn is_match(&self, text: &str, budget: &Budget) -> bool {
        self.regex.is_match(text, budget).unwrap_or_else(|TooLong| {
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

/// What [`is_regex`] may cost.
pub(super) fn steps_to_read(text: &str) -> u64 {
    let length = text.len() as u64;
    if text.len() <= REGEX_BYTES_MAX { 2 * length + length * length / 256 } else { 0 }
}
