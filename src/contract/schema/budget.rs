//! Cost limits for the validation of one payload.
//!
//! Promise: once a limit is reached, `spend` returns false for the rest of the validation.

use serde_json::Number;
use std::cell::Cell;
use std::ops::RangeInclusive;

/// Maximum number of steps per validation. A step is one access to the payload, or other work of up to 10 ns. An
/// invalid payload is validated twice, the second time to produce the message. The largest payload (8 MiB) has up to 4
/// million values; a plain schema takes 5 steps for each.
pub(super) const STEPS_MAX: u64 = 40_000_000;
/// Maximum number of errors the crate may build per payload: it collects the errors of every branch of an `anyOf`. An
/// error takes about 300 bytes.
const ERRORS_MAX: u32 = 1000;
/// Maximum stack use: half the stack of a tokio thread (2 MiB). Each level of the payload takes stack for all
/// schemas that apply to it.
const STACK_BYTES_MAX: usize = 1 << 20;

/// Cost of a division with big integers: 5 to 9 µs for `1.7976931348623157e308`.
const DIVISION_STEPS: u64 = 1024;
/// Range of numbers that are divided with 128-bit integers, provided the divisor is in the range too.
pub(super) const DIVIDED_FAST: RangeInclusive<f64> = 1e-3..=1e9;

/// Maximum length of a regular expression in a payload. Parsing takes up to 15 ns per byte, and grows with the square
/// of the length for named groups: 0.3 ms.
pub(super) const REGEX_BYTES_MAX: usize = 4096;

const TOO_LONG: &str = "takes too long to be checked against its schema";
const TOO_DEEP: &str = "is nested too deep for its schema";

/// Cost factors that follow from a schema.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// Steps per byte of a member name, for the patterns of all `patternProperties`.
    pub(super) name_patterns: u64,
    /// Whether strings are checked against any `format`, and whether against `regex`.
    pub(super) has_format: bool,
    pub(super) has_regex_format: bool,
    /// Whether `multipleOf` has a divisor that is not an integer, and one that makes all divisions slow.
    pub(super) divides: bool,
    pub(super) divides_slowly: bool,
}

/// Remaining steps and errors of one validation.
pub(super) struct Budget {
    steps_left: Cell<u64>,
    errors_left: Cell<u32>,
    /// Whether the payload is known to be invalid and the validation only produces the message.
    is_explaining: bool,
    /// Stack address at the start of the validation.
    stack_start: usize,
    costs: Costs,
    exhausted: Cell<Option<&'static str>>,
}

impl Budget {
    /// Budget for a validity check, in which the crate builds no errors.
    pub(super) fn new(costs: Costs) -> Self {
        Self {
            steps_left: Cell::new(STEPS_MAX),
            errors_left: Cell::new(0),
            is_explaining: false,
            stack_start: stack_position(),
            costs,
            exhausted: Cell::new(None),
        }
    }

    /// Budget for a validation that produces the message for an invalid payload.
    pub(super) fn to_explain(costs: Costs) -> Self {
        Self { errors_left: Cell::new(ERRORS_MAX), is_explaining: true, ..Self::new(costs) }
    }

    /// Charges steps. Returns false if the validation must end.
    #[inline]
    pub(super) fn spend(&self, steps: u64) -> bool {
        let left = self.steps_left.get();
        let stack = self.stack_start.abs_diff(stack_position());
        if steps <= left && stack <= STACK_BYTES_MAX {
            self.steps_left.set(left - steps);
            return true;
        }
        self.exhaust(if stack > STACK_BYTES_MAX { TOO_DEEP } else { TOO_LONG });
        false
    }

    /// Charges a member name, which the crate compares with the names and patterns of the schema.
    #[inline]
    pub(super) fn spend_name(&self, name: &str) -> bool {
        self.spend((name.len() as u64).saturating_mul(self.costs.name_patterns).saturating_add(1))
    }

    /// Charges a string. The crate may read each of its bytes; a format takes up to 10 ns per byte.
    #[inline]
    pub(super) fn spend_text(&self, text: &str) -> bool {
        let length = text.len() as u64;
        let steps = if self.costs.has_format { length } else { length / 4 };
        self.spend(if self.costs.has_regex_format { steps + steps_to_read(text) } else { steps })
    }

    /// Charges the cost of a number beyond the access.
    #[inline]
    pub(super) fn spend_number(&self, number: &Number) -> bool {
        if !self.costs.divides {
            return true;
        }
        let size = number.as_f64().unwrap_or_default().abs();
        let is_fast = !self.costs.divides_slowly && (size == 0.0 || DIVIDED_FAST.contains(&size));
        self.spend(if is_fast { 4 } else { DIVISION_STEPS })
    }

    /// Counts an error that the crate builds.
    pub(super) fn count_error(&self) {
        match self.errors_left.get().checked_sub(1) {
            Some(left) => self.errors_left.set(left),
            None => self.exhaust(TOO_LONG),
        }
    }

    /// Ends the validation. The first reason given is the one reported.
    #[cold]
    pub(super) fn exhaust(&self, reason: &'static str) {
        self.steps_left.set(0);
        // Once the error limit is reached, only branches of an `anyOf` remain to be explained: the crate's report is
        // right.
        if !self.is_explaining || self.errors_left.get() > 0 {
            self.exhausted.set(self.exhausted.get().or(Some(reason)));
        }
    }

    /// Reason why the validation ended early, if it did.
    pub(super) fn exhausted(&self) -> Option<&'static str> {
        self.exhausted.get()
    }
}

/// The crate creates nodes for member names with this default where it has no budget.
impl Default for Budget {
    fn default() -> Self {
        Self::new(Costs::default())
    }
}

/// Address of a local variable, as a measure of stack use.
#[inline]
fn stack_position() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(&here).addr()
}

/// Maximum cost of the format `regex` in steps.
fn steps_to_read(text: &str) -> u64 {
    let length = text.len() as u64;
    if text.len() <= REGEX_BYTES_MAX { 2 * length + length * length / 256 } else { 0 }
}
