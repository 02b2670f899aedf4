//! Counter rollover: how far a counter has advanced, across rollovers and resets.
//!
//! A counter that falls has either rolled over at its end or was reset. If the way over its end is at most a quarter of
//! its range, it counts as a rollover, otherwise as a reset to 0.

/// Progress of a counter since the last event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterProgress {
    /// Unscaled number by which the counter has advanced.
    pub step: i128,
    pub resets: u32,
    last: Option<i128>,
}

impl CounterProgress {
    /// Advances to the unscaled number `now` of a counter that rolls over at `rolls_at`. After a reset the
    /// counter has counted from 0.
    pub(super) fn advance(&mut self, now: i128, rolls_at: i128) {
        let Some(last) = self.last.replace(now) else { return };
        if now >= last {
            self.step += now - last;
            return;
        }
        let over_the_end = rolls_at - last + now;
        if over_the_end <= rolls_at / 4 {
            self.step += over_the_end;
        } else {
            self.step += now;
            self.resets += 1;
        }
    }

    /// Starts again at 0 after an event.
    pub(super) fn mark_reported(&mut self) {
        (self.step, self.resets) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_falls_has_rolled_over_near_its_end_and_was_reset_elsewhere() {
        let mut counter = CounterProgress::default();
        [990, 999, 1].into_iter().for_each(|now| counter.advance(now, 1000));
        assert_eq!((counter.step, counter.resets), (11, 0), "9, and 2 over the end");
        counter.mark_reported();
        [500, 3].into_iter().for_each(|now| counter.advance(now, 1000));
        assert_eq!((counter.step, counter.resets), (502, 1), "499, and 3 since the reset");
    }
}
