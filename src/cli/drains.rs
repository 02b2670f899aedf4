//! The backlogs that drain while a screen is open: how much of each is gone, and the time that is left.

use super::table::{bar, shortened_cell};
use crate::api::Status;
use crate::setting::{grouped as number, rough};
use std::collections::BTreeMap;
use std::time::Duration;

/// A smaller backlog is on its way: it has no bar.
const QUEUED_MIN: u64 = 100;
/// Backlogs that are shown.
const SHOWN_MAX: usize = 3;
/// Width of a name in characters: with it, a line fits 80 columns.
const NAME_WIDTH: usize = 12;
/// Width of a full bar in characters.
const BAR_WIDTH: usize = 10;

/// The largest backlog of each lane and destination since it was empty, as far as this screen has seen it.
#[derive(Debug, Default)]
pub(super) struct Drains(BTreeMap<(String, String), u64>);

impl Drains {
    /// Returns a line for each of the largest backlogs that drain.
    pub(super) fn lines(&mut self, status: &Status) -> Vec<String> {
        let mut found = Vec::new();
        for lane in &status.outlooks {
            for drain in &lane.drains {
                let key = (lane.lane.clone(), drain.destination.clone());
                if drain.queued < QUEUED_MIN {
                    self.0.remove(&key);
                    continue;
                }
                let most = self.0.entry(key).or_default();
                *most = drain.queued.max(*most);
                let Some(left) = drain.drained_in_seconds else { continue };
                let share = 1.0 - drain.queued as f64 / *most as f64;
                let line = format!(
                    "{} to {}  {} {:>3.0} %  {} queued, {} left",
                    shortened_cell(&lane.lane, NAME_WIDTH),
                    shortened_cell(&drain.destination, NAME_WIDTH),
                    bar(share, BAR_WIDTH),
                    share * 100.0,
                    number(drain.queued),
                    rough(Duration::from_secs(left)),
                );
                found.push((std::cmp::Reverse(drain.queued), line));
            }
        }
        found.sort();
        found.truncate(SHOWN_MAX);
        found.into_iter().map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(queued: u64, left: Option<u64>) -> Status {
        let mut status: Status =
            serde_json::from_str(&include_str!("../../tests/screens/status.json").replace("@ago", ""))
                .expect("a status");
        status.outlooks.truncate(1);
        status.outlooks[0].drains.truncate(1);
        let drain = &mut status.outlooks[0].drains[0];
        (drain.queued, drain.drained_in_seconds) = (queued, left);
        status
    }

    #[test]
    fn a_bar_shows_the_part_of_a_backlog_that_is_delivered_and_the_time_left() {
        let mut drains = Drains::default();
        assert!(drains.lines(&status(99, Some(1))).is_empty(), "live events are no backlog");
        assert!(drains.lines(&status(4000, None)).is_empty(), "the backlog grows");
        let lines = drains.lines(&status(1000, Some(75)));
        assert_eq!(lines, ["critical to centra…egion  ███████░░░  75 %  1,000 queued, 1m 15s left"]);
        drains.lines(&status(0, Some(0)));
        let lines = drains.lines(&status(1000, Some(80)));
        assert!(lines[0].contains("░░░░░░░░░░   0 %"), "the next backlog begins at 0: {lines:?}");
        let widest = drains.lines(&status(1_234_567_890, Some(3000)));
        assert!(widest[0].chars().count() <= 80, "{widest:?}");
    }
}
