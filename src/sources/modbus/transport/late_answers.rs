//! Late answers: which answers of a unit may still arrive, on a line whose frames have no transaction number.
//!
//! A serial frame names the unit, the function and the length, but not the request. So the answer to a request that
//! timed out may arrive late and fit the next request. A device answers in order: once it has answered a request whose
//! answer has another shape, no older answer can arrive. Until then the gateway trusts none of its answers.

use super::ask::{Ask, ResponseShape};
use std::time::{Duration, Instant};

/// How far the length of a probe may differ from that of a normal request, in both directions.
const LENGTHS_MAX: i32 = 8;

/// Number of shapes that are remembered. With more, no probe is tried until the answers have expired.
const LOST_MAX: usize = 8;

/// The answers of one unit that may still arrive.
#[derive(Clone, Debug, Default)]
pub struct LateAnswers {
    lost: Vec<ResponseShape>,
    since: Option<Instant>,
}

impl LateAnswers {
    /// Records a request without an answer.
    pub fn add(&mut self, ask: &Ask, now: Instant) {
        let shape = ask.response_shape();
        if !self.lost.contains(&shape) && self.lost.len() < LOST_MAX {
            self.lost.push(shape);
        }
        self.since = Some(now);
    }

    /// Whether the next answer of the unit may belong to an older request. After `late_max` late answers are ruled out.
    pub fn are_possible(&mut self, now: Instant, late_max: Duration) -> bool {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) > late_max) {
            self.clear();
        }
        self.since.is_some()
    }

    /// Returns a request whose answer differs from every late one: one of `others`, or one of them with another length.
    pub fn probe(&self, others: &[Ask]) -> Option<Ask> {
        let is_apart = |ask: &Ask| !self.lost.contains(&ask.response_shape());
        if self.lost.len() >= LOST_MAX {
            return None;
        }
        let stretched = |by: i32| {
            others.iter().filter_map(move |ask| match ask {
                Ask::Read(table, address, count) => {
                    let (step, most) = if table.is_bits() { (8, 2000) } else { (1, 125) };
                    let count = i32::from(*count) + by * step;
                    let is_there = (1..=most).contains(&count) && i32::from(*address) + count <= 65_536;
                    is_there.then_some(Ask::Read(*table, *address, count as u16))
                }
                _ => None,
            })
        };
        // Shorter before longer: the registers behind the range may not exist.
        let lengths = (1..=LENGTHS_MAX).map(|by| -by).chain(1..=LENGTHS_MAX).flat_map(stretched);
        others.iter().cloned().chain(lengths).find(is_apart)
    }

    /// Whether the refusal of this probe rules out late answers. A refusal has no length, so it does only if no request
    /// without an answer had the same function.
    pub fn refusal_rules_out(&self, probe: &Ask) -> bool {
        self.lost.iter().all(|shape| shape.function != probe.response_shape().function)
    }

    /// Records that no late answer can arrive any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::value::Table::{Coil, Holding, Input};
    use super::*;
    use crate::clock;
    use std::slice::from_ref;

    #[test]
    fn a_probe_looks_like_nothing_that_is_lost() {
        let now = clock::instant();
        let probe = |lost: &[Ask], others: &[Ask]| {
            let mut late = LateAnswers::default();
            lost.iter().for_each(|ask| late.add(ask, now));
            late.probe(others)
        };
        let (ten, one) = (Ask::Read(Holding, 0, 10), Ask::Read(Holding, 5, 1));
        assert_eq!(probe(from_ref(&ten), &[ten.clone(), one.clone()]), Some(one.clone()));
        assert_eq!(probe(from_ref(&ten), from_ref(&ten)), Some(Ask::Read(Holding, 0, 9)));
        assert_eq!(probe(from_ref(&one), from_ref(&one)), Some(Ask::Read(Holding, 5, 2)));
        let lost = [one.clone(), Ask::Read(Holding, 5, 2)];
        assert_eq!(probe(&lost, from_ref(&one)), Some(Ask::Read(Holding, 5, 3)), "a probe may be lost too");
        assert_eq!(probe(from_ref(&one), &[one.clone(), Ask::Read(Input, 5, 1)]), Some(Ask::Read(Input, 5, 1)));
        let bits = Ask::Read(Coil, 0, 16);
        assert_eq!(probe(from_ref(&bits), &[bits.clone(), Ask::Read(Coil, 0, 12)]), Some(Ask::Read(Coil, 0, 8)));
        assert_eq!(probe(&[Ask::Read(Holding, 65_535, 1)], &[Ask::Read(Holding, 65_535, 1)]), None);
    }

    #[test]
    fn a_refusal_settles_only_what_it_cannot_be_mistaken_for() {
        let mut late = LateAnswers::default();
        late.add(&Ask::Read(Holding, 0, 1), clock::instant());
        assert!(!late.refusal_rules_out(&Ask::Read(Holding, 0, 2)) && late.refusal_rules_out(&Ask::Read(Input, 0, 1)));
        assert!(late.are_possible(clock::instant(), Duration::from_secs(5)));
        assert!(!late.are_possible(clock::instant() + Duration::from_secs(6), Duration::from_secs(5)));
    }
}
