//! Regular expressions of JavaScript whose matching has a known cost.
//!
//! Promise: a match takes from the budget what it may cost at most, whatever the text, before it begins.
//!
//! Three engines, from the fastest. A pattern gets the first that can run it:
//! - a table of states (DFA): one lookup per byte. Nearly all patterns have one;
//! - a simulation (NFA) for patterns whose table would be large, such as `a[ab]{40}c`. A byte may change every state;
//! - backtracking for patterns that look around or refer back. Look-ahead at the start (`^(?=…)(?!…)…`) is split off:
//!   its parts are patterns of their own, which do not look around.

use super::budget::{Budget, STEPS_MAX};
use fancy_regex::{Expr, RegexBuilder};
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::{Input, meta};
use regex_syntax::hir::{Class, Hir, HirKind};

/// The largest table of a pattern. An address of mail or a version number takes 10 kB; `^.{0,2000}$` takes 1 MB.
const TABLE_BYTES_MAX: usize = 1 << 20;
/// The largest NFA of a pattern: what the crate `regex` allows by default.
const NFA_BYTES_MAX: usize = 10 << 20;
/// What a state of the simulation may cost per byte: 10 to 15 ns.
const THREAD_STEPS: u64 = 1;
/// What an instruction of the engine that steps back may cost: one that runs a part of the pattern takes 100 ns.
const INSTRUCTION_STEPS: u64 = 10;
/// How many loops may stand inside each other in a pattern that steps back: four take a second for 50 bytes.
const LOOPS_MAX: usize = 4;
/// How often the engine may step back in each attempt: the first is enough for most texts, and the last for texts of some
/// hundred characters that do not match.
const BACKTRACKS: [u64; 3] = [50, 2000, 20_000];
/// The longest text for the engine that steps back. It keeps up to 40 bytes of memory for each of them.
const BACKTRACKING_BYTES_MAX: usize = 64 << 10;

/// A pattern is refused that cannot be matched with a text of this length.
const USABLE_BYTES: u64 = 32;
const TOO_LARGE: &str = "is too large for a pattern; shorten its repetitions, or write it without look-around";

/// The text may need more steps back than are allowed.
pub(super) struct TooLong;

/// A compiled pattern. The text matches if each part matches, or does not, as it should.
pub(super) struct Regex(Vec<(bool, Engine)>);

enum Engine {
    Table(Box<dense::DFA<Vec<u32>>>),
    Simulation { regex: Box<meta::Regex>, steps_per_byte: u64 },
    Backtracking { regexes: Vec<fancy_regex::Regex>, run: Run },
}

impl Regex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with the pattern, to be read after it.
    pub(super) fn compile(pattern: &str) -> Result<Self, &'static str> {
        if !jsonschema_regex::is_valid_ecma_regex(pattern) {
            return Err("is no regular expression of JavaScript (ECMA-262)");
        }
        let mut parts = Vec::new();
        for (has_to_match, part) in split_look_ahead(pattern) {
            match parse(&part) {
                Some(part) => parts.push((has_to_match, Engine::plain(&part).ok_or(TOO_LARGE)?)),
                None => return Ok(Self(vec![(true, Engine::backtracking(pattern).ok_or(TOO_LARGE)?)])),
            }
        }
        Ok(Self(parts))
    }

    /// Whether the text matches. Takes the cost from the budget first; when that is spent, nothing matches.
    ///
    /// # Errors
    /// The text needs too many steps back.
    pub(super) fn is_match(&self, text: &str, budget: &Budget) -> Result<bool, TooLong> {
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
    fn plain(pattern: &Hir) -> Option<Self> {
        let nfa = nfa(pattern, false)?;
        if let Some(table) = table(&nfa, StartKind::Unanchored) {
            return Some(Self::Table(Box::new(table)));
        }
        let config = meta::Config::new().nfa_size_limit(Some(NFA_BYTES_MAX)).which_captures(WhichCaptures::None);
        let regex = Box::new(meta::Builder::new().configure(config).build_from_hir(pattern).ok()?);
        Some(Self::Simulation { regex, steps_per_byte: threads(pattern) * THREAD_STEPS })
    }

    /// `None` if the pattern is too large.
    fn backtracking(pattern: &str) -> Option<Self> {
        let pattern = jsonschema_regex::to_rust_regex(pattern).ok()?;
        let run = Run::of(&Expr::parse_tree(&pattern).ok()?.expr);
        if run.steps(USABLE_BYTES).saturating_mul(BACKTRACKS[0]) > STEPS_MAX {
            return None;
        }
        let build = |limit: u64| RegexBuilder::new(&pattern).backtrack_limit(limit as usize).build().ok();
        Some(Self::Backtracking { regexes: BACKTRACKS.into_iter().map(build).collect::<Option<_>>()?, run })
    }

    fn is_match(&self, text: &str, budget: &Budget) -> Result<bool, TooLong> {
        let length = text.len() as u64;
        match self {
            Self::Table(table) => {
                let input = Input::new(text).earliest(true);
                // The table has no bytes at which it gives up, so that it always answers.
                Ok(budget.spend(length / 8) && table.try_search_fwd(&input).is_ok_and(|found| found.is_some()))
            }
            Self::Simulation { regex, steps_per_byte } => {
                Ok(budget.spend(length.saturating_mul(*steps_per_byte)) && regex.is_match(text))
            }
            Self::Backtracking { .. } if text.len() > BACKTRACKING_BYTES_MAX => Err(TooLong),
            Self::Backtracking { regexes, run } => {
                for (regex, backtracks) in regexes.iter().zip(BACKTRACKS) {
                    if !budget.spend(run.steps(length).saturating_mul(backtracks)) {
                        return Ok(false);
                    }
                    if let Ok(is_match) = regex.is_match(text) {
                        return Ok(is_match);
                    }
                }
                Err(TooLong)
            }
        }
    }
}

/// What the engine may do between two steps back, as a polynomial of the text's length: each loop may go through the
/// whole text, so that one inside another takes its square.
#[derive(Clone, Copy, Default)]
struct Run([u64; 1 + LOOPS_MAX]);

impl Run {
    fn of(expression: &Expr) -> Self {
        let mut run = Self::default();
        // Parts that neither look around nor refer back run on the other engines.
        let looks_around =
            |part: &Expr| matches!(part, Expr::LookAround(..) | Expr::Backref { .. } | Expr::AstNode(..));
        run.0[0] = if expression.has_descendant_or_self(looks_around) { INSTRUCTION_STEPS } else { THREAD_STEPS };
        for inner in expression.children_iter().map(Self::of) {
            run.0.iter_mut().zip(inner.0).for_each(|(steps, more)| *steps = steps.saturating_add(more));
        }
        match expression {
            Expr::Repeat { hi: usize::MAX, .. } => run.put_into_loop(),
            Expr::Repeat { hi, .. } => {
                run.0.iter_mut().for_each(|steps| *steps = steps.saturating_mul((*hi).max(1) as u64));
            }
            Expr::Backref { .. } | Expr::AstNode(..) => run.put_into_loop(),
            Expr::Literal { val, .. } => run.0[0] += val.len() as u64,
            _ => {}
        }
        run
    }

    fn put_into_loop(&mut self) {
        let outermost = self.0[LOOPS_MAX];
        self.0.rotate_right(1);
        self.0[0] = 0;
        if outermost > 0 {
            self.0[LOOPS_MAX] = u64::MAX;
        }
    }

    fn steps(self, length: u64) -> u64 {
        self.0.iter().rev().fold(0, |steps, more| (length + 1).saturating_mul(steps).saturating_add(*more))
    }
}

/// What the crate `regex` may take per byte of a name, in steps, to match it with a pattern. It searches from both ends.
pub(super) fn steps_per_byte(pattern: &str) -> u64 {
    let Some(pattern) = parse(pattern) else { return 1 };
    let has_table = |reverse, start| nfa(&pattern, reverse).is_some_and(|nfa| table(&nfa, start).is_some());
    match has_table(false, StartKind::Unanchored) && has_table(true, StartKind::Anchored) {
        true => 1,
        false => threads(&pattern) * THREAD_STEPS,
    }
}

/// How many states of the simulation may be alive at one byte. A class is one: its UTF-8 bytes are in one state at a
/// time. One of many ranges is compared with up to 64 of them.
fn threads(pattern: &Hir) -> u64 {
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) => 1 + class.ranges().len().min(64) as u64 / 8,
        HirKind::Class(Class::Bytes(_)) => 1,
        HirKind::Repetition(repeated) => {
            let times = u64::from(repeated.max.unwrap_or(repeated.min).max(1));
            (1 + threads(&repeated.sub)).saturating_mul(times)
        }
        HirKind::Capture(group) => threads(&group.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(threads).fold(parts.len() as u64, u64::saturating_add)
        }
    }
}

/// The pattern as the crate `regex` reads it; `None` if it looks around or refers back.
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

fn table(nfa: &NFA, start: StartKind) -> Option<dense::DFA<Vec<u32>>> {
    let config = dense::Config::new()
        .start_kind(start)
        .dfa_size_limit(Some(TABLE_BYTES_MAX))
        .determinize_size_limit(Some(2 * TABLE_BYTES_MAX));
    dense::Builder::new().configure(config).build_from_nfa(nfa).ok()
}

/// `^(?=A)(?!B)C` as `^(?:A)`, `^(?:B)` and `^(?:C)`, each with whether it has to match. Other patterns as they are.
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

/// Where a character stands outside of groups, classes and escapes.
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
