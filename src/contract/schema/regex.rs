//! Regular expressions of JavaScript with a known maximum cost.
//!
//! Promise: the maximum cost of a match is charged to the budget before the match starts, whatever the text.
//!
//! Three engines, the fastest first. A pattern uses the first engine that can cost it:
//! - a table of states (DFA): one lookup per byte. Nearly all patterns have one;
//! - a simulation of states (NFA), for patterns whose DFA would be large, such as `a[ab]{40}c`. A byte may change every
//!   state;
//! - backtracking, for patterns with look-around or backreferences. Look-ahead at the start (`^(?=…)(?!…)…`) is split
//!   off: its parts become patterns of their own, without look-around.

use super::budget::{Budget, STEPS_MAX};
use fancy_regex::{Expr, RegexBuilder};
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::{Input, meta};
use regex_syntax::hir::{Class, Hir, HirKind};

/// Maximum size of a DFA. A mail address or a version number takes 10 kB; `^.{0,2000}$` takes 1 MB.
const DFA_BYTES_MAX: usize = 1 << 20;
/// Maximum size of an NFA: the default of the crate `regex`.
const NFA_BYTES_MAX: usize = 10 << 20;
/// Maximum cost of an active NFA state per byte: 10 to 15 ns.
const STATE_STEPS: u64 = 1;
/// Maximum cost of an instruction of the backtracking engine: one that runs a part of the pattern takes 100 ns.
const INSTRUCTION_STEPS: u64 = 10;
/// Maximum nesting of loops in a backtracking pattern: four take a second for 50 bytes.
const NESTED_LOOPS_MAX: usize = 4;
/// Backtracking limits of successive attempts: the first suffices for most texts, the last for non-matching
/// texts of some hundred characters.
const BACKTRACKS: [u64; 3] = [50, 2000, 20_000];
/// Maximum text length for the backtracking engine. It allocates up to 40 bytes for each byte of text.
const BACKTRACK_TEXT_BYTES_MAX: usize = 64 << 10;

/// A backtracking pattern is rejected at compile time if it cannot be matched with a text of this length.
const TEXT_BYTES_MIN: u64 = 32;
const TOO_LARGE: &str = "is too large for a pattern; shorten its repetitions, or write it without look-around";

/// The match may need more backtracking than is allowed.
pub(super) struct TooManyBacktracks;

/// A compiled pattern: engines that must match (`true`) or must not match (`false`).
pub(super) struct Regex(Vec<(bool, Engine)>);

enum Engine {
    Dfa(Box<dense::DFA<Vec<u32>>>),
    Nfa { regex: Box<meta::Regex>, steps_per_byte: u64 },
    Backtracking { regexes: Vec<fancy_regex::Regex>, cost: BacktrackCost },
}

impl Regex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// The problem, phrased to follow the pattern.
    pub(super) fn compile(pattern: &str) -> Result<Self, &'static str> {
        if !jsonschema_regex::is_valid_ecma_regex(pattern) {
            return Err("is no regular expression of JavaScript (ECMA-262)");
        }
        let mut parts = Vec::new();
        for (has_to_match, part) in split_look_ahead(pattern) {
            match parse(&part) {
                Some(part) => parts.push((has_to_match, Engine::linear(&part).ok_or(TOO_LARGE)?)),
                None => return Ok(Self(vec![(true, Engine::backtracking(pattern).ok_or(TOO_LARGE)?)])),
            }
        }
        Ok(Self(parts))
    }

    /// Whether the text matches. Charges the cost first; once the budget is spent, nothing matches.
    ///
    /// # Errors
    /// The text needs too much backtracking.
    pub(super) fn is_match(&self, text: &str, budget: &Budget) -> Result<bool, TooManyBacktracks> {
        for (has_to_match, engine) in &self.0 {
            if engine.is_match(text, budget)? != *has_to_match {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Engine {
    /// `None` if the pattern is too large.
    fn linear(pattern: &Hir) -> Option<Self> {
        let nfa = nfa(pattern, false)?;
        if let Some(dfa) = dfa(&nfa, StartKind::Unanchored) {
            return Some(Self::Dfa(Box::new(dfa)));
        }
        let config = meta::Config::new().nfa_size_limit(Some(NFA_BYTES_MAX)).which_captures(WhichCaptures::None);
        let regex = Box::new(meta::Builder::new().configure(config).build_from_hir(pattern).ok()?);
        Some(Self::Nfa { regex, steps_per_byte: active_states(pattern) * STATE_STEPS })
    }

    /// `None` if the pattern is too large.
    fn backtracking(pattern: &str) -> Option<Self> {
        let pattern = jsonschema_regex::to_rust_regex(pattern).ok()?;
        let cost = BacktrackCost::of(&Expr::parse_tree(&pattern).ok()?.expr);
        if cost.steps(TEXT_BYTES_MIN).saturating_mul(BACKTRACKS[0]) > STEPS_MAX {
            return None;
        }
        let build = |limit: u64| RegexBuilder::new(&pattern).backtrack_limit(limit as usize).build().ok();
        Some(Self::Backtracking { regexes: BACKTRACKS.into_iter().map(build).collect::<Option<_>>()?, cost })
    }

    fn is_match(&self, text: &str, budget: &Budget) -> Result<bool, TooManyBacktracks> {
        let length = text.len() as u64;
        match self {
            Self::Dfa(dfa) => {
                let input = Input::new(text).earliest(true);
                // The DFA has no quit bytes, so it always gives an answer.
                Ok(budget.spend(length / 8) && dfa.try_search_fwd(&input).is_ok_and(|found| found.is_some()))
            }
            Self::Nfa { regex, steps_per_byte } => {
                Ok(budget.spend(length.saturating_mul(*steps_per_byte)) && regex.is_match(text))
            }
            Self::Backtracking { .. } if text.len() > BACKTRACK_TEXT_BYTES_MAX => Err(TooManyBacktracks),
            Self::Backtracking { regexes, cost } => {
                for (regex, backtracks) in regexes.iter().zip(BACKTRACKS) {
                    if !budget.spend(cost.steps(length).saturating_mul(backtracks)) {
                        return Ok(false);
                    }
                    if let Ok(is_match) = regex.is_match(text) {
                        return Ok(is_match);
                    }
                }
                Err(TooManyBacktracks)
            }
        }
    }
}

/// Maximum cost between two backtracks, as a polynomial of the text length: each loop may scan the whole text, so a
/// nested loop squares the cost.
#[derive(Clone, Copy, Default)]
struct BacktrackCost([u64; 1 + NESTED_LOOPS_MAX]);

impl BacktrackCost {
    fn of(expression: &Expr) -> Self {
        let mut cost = Self::default();
        // Parts without look-around and backreferences cost on the other engines.
        let is_backtracking =
            |part: &Expr| matches!(part, Expr::LookAround(..) | Expr::Backref { .. } | Expr::AstNode(..));
        cost.0[0] = if expression.has_descendant_or_self(is_backtracking) { INSTRUCTION_STEPS } else { STATE_STEPS };
        for inner in expression.children_iter().map(Self::of) {
            cost.0.iter_mut().zip(inner.0).for_each(|(steps, more)| *steps = steps.saturating_add(more));
        }
        match expression {
            Expr::Repeat { hi: usize::MAX, .. } => cost.wrap_in_loop(),
            Expr::Repeat { hi, .. } => {
                cost.0.iter_mut().for_each(|steps| *steps = steps.saturating_mul((*hi).max(1) as u64));
            }
            Expr::Backref { .. } | Expr::AstNode(..) => cost.wrap_in_loop(),
            Expr::Literal { val, .. } => cost.0[0] += val.len() as u64,
            _ => {}
        }
        cost
    }

    fn wrap_in_loop(&mut self) {
        let outermost = self.0[NESTED_LOOPS_MAX];
        self.0.rotate_right(1);
        self.0[0] = 0;
        if outermost > 0 {
            self.0[NESTED_LOOPS_MAX] = u64::MAX;
        }
    }

    fn steps(self, length: u64) -> u64 {
        self.0.iter().rev().fold(0, |steps, more| (length + 1).saturating_mul(steps).saturating_add(*more))
    }
}

/// Maximum cost per byte, in steps, of matching a member name with the crate `regex`. It searches from both ends.
pub(super) fn steps_per_byte(pattern: &str) -> u64 {
    let Some(pattern) = parse(pattern) else { return 1 };
    let has_dfa = |reverse, start| nfa(&pattern, reverse).is_some_and(|nfa| dfa(&nfa, start).is_some());
    match has_dfa(false, StartKind::Unanchored) && has_dfa(true, StartKind::Anchored) {
        true => 1,
        false => active_states(&pattern) * STATE_STEPS,
    }
}

/// Maximum number of NFA states that are active at one byte. A character class counts once: its UTF-8 bytes are in one
/// state at a time. A class with many ranges is compared with up to 64 of them.
fn active_states(pattern: &Hir) -> u64 {
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) => 1 + class.ranges().len().min(64) as u64 / 8,
        HirKind::Class(Class::Bytes(_)) => 1,
        HirKind::Repetition(repeated) => {
            let times = u64::from(repeated.max.unwrap_or(repeated.min).max(1));
            (1 + active_states(&repeated.sub)).saturating_mul(times)
        }
        HirKind::Capture(group) => active_states(&group.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(active_states).fold(parts.len() as u64, u64::saturating_add)
        }
    }
}

/// Parses a pattern for the crate `regex`; `None` if it has look-around or backreferences.
fn parse(pattern: &str) -> Option<Hir> {
    regex_syntax::parse(&jsonschema_regex::to_rust_regex(pattern).ok()?).ok()
}

fn nfa(pattern: &Hir, reverse: bool) -> Option<NFA> {
    let config = thompson::Config::new()
        .which_captures(WhichCaptures::None)
        .nfa_size_limit(Some(NFA_BYTES_MAX))
        .reverse(reverse);
    thompson::Compiler::new().configure(config).build_from_hir(pattern).ok()
}

fn dfa(nfa: &NFA, start: StartKind) -> Option<dense::DFA<Vec<u32>>> {
    let config = dense::Config::new()
        .start_kind(start)
        .dfa_size_limit(Some(DFA_BYTES_MAX))
        .determinize_size_limit(Some(2 * DFA_BYTES_MAX));
    dense::Builder::new().configure(config).build_from_nfa(nfa).ok()
}

/// Splits `^(?=A)(?!B)C` into `^(?:A)`, `^(?:B)` and `^(?:C)`, each with whether it must
/// match. Returns other patterns unchanged.
fn split_look_ahead(pattern: &str) -> Vec<(bool, String)> {
    let whole = || vec![(true, pattern.to_owned())];
    let Some(mut rest) = pattern.strip_prefix('^') else { return whole() };
    let mut parts = Vec::new();
    while let Some(sign) = ["(?=", "(?!"].into_iter().find(|sign| rest.starts_with(sign)) {
        let inner = &rest[sign.len()..];
        let Some(end) = find_outside(inner, ')') else { return whole() };
        parts.push((sign == "(?=", format!("^(?:{})", &inner[..end])));
        rest = &inner[end + 1..];
    }
    if parts.is_empty() || rest.starts_with(['*', '+', '?', '{']) || find_outside(rest, '|').is_some() {
        return whole();
    }
    parts.push((true, format!("^(?:{rest})")));
    parts
}

/// Index of the first `wanted` outside of groups, classes and escapes.
fn find_outside(pattern: &str, wanted: char) -> Option<usize> {
    let (mut depth, mut is_class) = (0_u32, false);
    let mut characters = pattern.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => _ = characters.next(),
            '[' => is_class = true,
            ']' => is_class = false,
            _ if is_class => {}
            _ if character == wanted && depth == 0 => return Some(index),
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}
