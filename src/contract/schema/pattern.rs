//! The keyword `pattern` and the format `regex`.
//!
//! Promise: the maximum cost of a match is charged to the budget before the match starts.

use super::budget::{Budget, REGEX_BYTES_MAX};
use super::node::{Payload, PayloadNode};
use super::regex::{Regex, TooManyBacktracks};
use jsonschema::json::Node;
use jsonschema::{Keyword, ValidationError};

const TOO_LONG: &str = "takes too long to be matched against a pattern of its schema";

/// A compiled `pattern` of a schema.
pub(super) struct Pattern {
    source: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles a regular expression of JavaScript (ECMA-262).
    ///
    /// # Errors
    /// The text is not a regular expression, or one that is too large.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        match Regex::compile(source) {
            Ok(regex) => Ok(Self { source: source.to_owned(), regex }),
            Err(reason) => Err(format!("\"{source}\" {reason}")),
        }
    }

    fn is_match(&self, text: &str, budget: &Budget) -> bool {
        self.regex.is_match(text, budget).unwrap_or_else(|TooManyBacktracks| {
            budget.exhaust(TOO_LONG);
            false
        })
    }
}

impl<'i> Keyword<'i, Payload> for Pattern {
    fn validate(&self, node: PayloadNode<'i>) -> Result<(), ValidationError<'i>> {
        match Keyword::<Payload>::is_valid(self, node) {
            true => Ok(()),
            false => Err(ValidationError::custom(format!("does not match \"{}\"", self.source))),
        }
    }

    fn is_valid(&self, node: PayloadNode<'i>) -> bool {
        node.as_string().is_none_or(|text| self.is_match(&text, node.budget))
    }
}

/// Whether a string of the payload is a regular expression.
pub(super) fn is_regex(text: &str) -> bool {
    text.len() <= REGEX_BYTES_MAX && jsonschema_regex::is_valid_ecma_regex(text)
}
