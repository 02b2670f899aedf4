//! What the validation of one payload may cost.
//!
//! Promise: once a bound is reached, `spend` returns false for the rest of the validation.

use super::{pattern, regex};
use serde_json::{Number, Value};
use std::cell::Cell;
use std::ops::RangeInclusive;

/// How many steps one validation may take. A step is an access to the payload, or other work of up to 10 ns. An invalid
/// payload is validated twice: the second time says what is wrong.
/// The largest payload (8 MiB) has up to 4 million values; a plain schema takes 5 steps for each.
pub(super) const STEPS_MAX: u64 = 40_000_000;
/// How many errors the library may build for one payload: it collects those of every branch of an `anyOf`. An error
/// takes some 300 bytes.
const ERRORS_MAX: u32 = 1000;
/// How much stack the library may use: half of what a thread of tokio has (2 MiB). Each level of the payload takes
/// stack for all schemas that apply to it.
const STACK_BYTES_MAX: usize = 1 << 20;

/// What a number costs that is divided as a fraction of big integers: 5 to 9 µs for `1.7976931348623157e308`.
const DIVISION_STEPS: u64 = 1024;
/// Numbers of this size are divided with 128 bits, if the divisor is one of them too.
const DIVIDED_FAST: RangeInclusive<f64> = 1e-3..=1e9;

const TOO_LONG: &str = "takes too long to be checked with its schema";
const TOO_DEEP: &str = "is nested too deep for its schema";

/// What a schema makes of the cost of an access.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// What the patterns that apply to names of members may take per byte of a name.
    name_patterns: u64,
    /// Whether texts have a format, and whether that of a regular expression.
    has_format: bool,
    has_regex_format: bool,
    /// Whether numbers are divided by one that is no integer, and whether by one that makes all divisions slow.
    divides: bool,
    divides_slowly: bool,
}

impl Costs {
    pub(super) fn of(schema: &Value) -> Self {
        let mut costs = Self::default();
        costs.add(schema);
        costs
    }

    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(members) => {
                if let Some(patterns) = members.get("patternProperties").and_then(Value::as_object) {
                    self.name_patterns += patterns.keys().map(|pattern| regex::steps_per_byte(pattern)).sum::<u64>();
                }
                if let Some(format) = members.get("format").and_then(Value::as_str) {
                    self.has_format = true;
                    self.has_regex_format |= format == "regex";
                }
                if let Some(divisor) = members.get("multipleOf").and_then(Value::as_f64) {
                    self.divides |= divisor.fract() != 0.0;
                    self.divides_slowly |= divisor.fract() != 0.0 && !DIVIDED_FAST.contains(&divisor);
                }
                members.values().for_each(|member| self.add(member));
            }
            _ => {}
        }
    }
}

/// The budget of one validation.
pub(super) struct Budget {
    steps_left: Cell<u64>,
    errors_left: Cell<u32>,
    /// Whether the payload is known to be invalid, and only the message is looked for.
    explains: bool,
    /// Where the stack was when the validation began.
    stack_start: usize,
    costs: Costs,
    exhausted: Cell<Option<&'static str>>,
}

impl Budget {
    /// A budget to find out whether a payload is valid. The library builds no error for that.
    pub(super) fn new(costs: Costs) -> Self {
        Self {
            steps_left: Cell::new(STEPS_MAX),
            errors_left: Cell::new(0),
            explains: false,
            stack_start: stack_position(),
            costs,
            exhausted: Cell::new(None),
        }
    }

    /// A budget to find out what is wrong with an invalid payload.
    pub(super) fn to_explain(costs: Costs) -> Self {
        Self { errors_left: Cell::new(ERRORS_MAX), explains: true, ..Self::new(costs) }
    }

    /// Takes steps from the budget. Returns false if the validation has to end.
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

    /// Takes what the name of a member costs. It is compared with the names and patterns of the schema.
    #[inline]
    pub(super) fn spend_name(&self, name: &str) -> bool {
        self.spend((name.len() as u64).saturating_mul(self.costs.name_patterns).saturating_add(1))
    }

    /// Takes what a text may cost. The library may look at each of its bytes; a format takes up to 10 ns for each.
    #[inline]
    pub(super) fn spend_text(&self, text: &str) -> bool {
        let length = text.len() as u64;
        let steps = if self.costs.has_format { length } else { length / 4 };
        self.spend(if self.costs.has_regex_format { steps + pattern::steps_to_read(text) } else { steps })
    }

    /// Takes what a number may cost beyond the access.
    #[inline]
    pub(super) fn spend_number(&self, number: &Number) -> bool {
        if !self.costs.divides {
            return true;
        }
        let size = number.as_f64().unwrap_or_default().abs();
        let is_fast = !self.costs.divides_slowly && (size == 0.0 || DIVIDED_FAST.contains(&size));
        self.spend(if is_fast { 4 } else { DIVISION_STEPS })
    }

    /// Counts an error that the library builds.
    pub(super) fn count_error(&self) {
        match self.errors_left.get().checked_sub(1) {
            Some(left) => self.errors_left.set(left),
            None => self.exhaust(TOO_LONG),
        }
    }

    /// Ends the validation. The payload is refused for the first reason.
    #[cold]
    pub(super) fn exhaust(&self, reason: &'static str) {
        self.steps_left.set(0);
        // After so many errors only branches of an `anyOf` are left to explain: what the library reports is right.
        if !self.explains || self.errors_left.get() > 0 {
            self.exhausted.set(self.exhausted.get().or(Some(reason)));
        }
    }

    /// Why the validation ended early.
    pub(super) fn exhausted(&self) -> Option<&'static str> {
        self.exhausted.get()
    }
}

/// The library makes nodes for names with a budget of their own where it has none.
impl Default for Budget {
    fn default() -> Self {
        Self::new(Costs::default())
    }
}

/// The address of a local variable: a measure of how much stack is in use.
#[inline]
fn stack_position() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(&here).addr()
}
