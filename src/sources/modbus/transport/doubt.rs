//! Doubt: which answers may still be on their way, on a line whose answers carry no number.
//!
//! A serial frame says which unit answers and with what function and length, not to which request.
//! So after a request without an answer, its answer may come late and fit the next one. A device
//! answers in order: once it has answered a request whose answer looks different, nothing older is
//! on its way. Until then none of its answers is believed.

use super::Ask;
use std::time::{Duration, Instant};

/// What tells answers of one unit apart: function and number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Function code.
    pub function: u8,
    /// Bytes of data.
    pub bytes: u16,
}

/// Lengths that a probe tries on either side of those that are asked for.
const LENGTHS_MAX: i32 = 8;

/// Shapes that are remembered; more are as good as all of them.
const LOST_MAX: usize = 8;

/// Answers of one unit that may still come.
#[derive(Clone, Debug, Default)]
pub struct Doubt {
    lost: Vec<Shape>,
    since: Option<Instant>,
}

impl Doubt {
    /// A request was left without an answer.
    pub fn add(&mut self, ask: &Ask, now: Instant) {
        let shape = ask.shape();
        if !self.lost.contains(&shape) && self.lost.len() < LOST_MAX {
            self.lost.push(shape);
        }
        self.since = Some(now);
    }

    /// Whether an answer of the unit may be one to an older request. After `late_max` nothing is
    /// expected any more.
    pub fn is_there(&mut self, now: Instant, late_max: Duration) -> bool {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) > late_max) {
            self.clear();
        }
        self.since.is_some()
    }

    /// A request whose answer cannot be mistaken for a lost one: one of `others`, or one of them with
    /// another length.
    pub fn probe(&self, others: &[Ask]) -> Option<Ask> {
        let is_apart = |ask: &Ask| !self.lost.contains(&ask.shape());
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
        // Shorter before longer: what lies behind may not be there.
        let lengths = (1..=LENGTHS_MAX).map(|by| -by).chain(1..=LENGTHS_MAX).flat_map(stretched);
        others.iter().cloned().chain(lengths).find(is_apart)
    }

    /// The unit has refused this probe. A refusal carries no length, so that it settles the doubt only
    /// if no lost request had its function; whether it does.
    pub fn settles(&self, probe: &Ask) -> bool {
        self.lost.iter().all(|shape| shape.function != probe.shape().function)
    }

    /// Nothing older is on its way.
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
            let mut doubt = Doubt::default();
            lost.iter().for_each(|ask| doubt.add(ask, now));
            doubt.probe(others)
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
        let mut doubt = Doubt::default();
        doubt.add(&Ask::Read(Holding, 0, 1), clock::instant());
        assert!(!doubt.settles(&Ask::Read(Holding, 0, 2)) && doubt.settles(&Ask::Read(Input, 0, 1)));
        assert!(doubt.is_there(clock::instant(), Duration::from_secs(5)));
        assert!(!doubt.is_there(clock::instant() + Duration::from_secs(6), Duration::from_secs(5)));
    }
}
