//! What became of parts of the gateway that failed and were started anew.

use crate::clock;
use crate::event::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often parts failed, and how.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<String, Failure>>);

/// The failures of one part since the start.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How often it was started anew.
    pub restarts: u64,
    /// What happened last.
    pub what: String,
    /// When that was.
    pub at: Timestamp,
    /// Whether it works again.
    pub is_over: bool,
    /// Whether it can only be ended with the process.
    pub is_lost: bool,
    seen: Instant,
}

/// So long a part that was started anew is shown as a problem.
const SHOWN: Duration = Duration::from_secs(3600);

impl Failures {
    fn change(&self, part: &str, change: impl FnOnce(&mut Failure)) {
        let mut all = self.0.lock();
        let at = Timestamp::from(clock::wall());
        let failure = all.entry(part.to_owned()).or_insert_with(|| Failure {
            restarts: 0,
            what: String::new(),
            at,
            is_over: false,
            is_lost: false,
            seen: clock::instant(),
        });
        change(failure);
    }

    /// Notes what happened to a part.
    pub fn note(&self, part: &str, what: String) {
        self.change(part, |failure| {
            failure.at = Timestamp::from(clock::wall());
            failure.seen = clock::instant();
            (failure.what, failure.is_over) = (what, false);
        });
    }

    /// Notes that a part works again.
    pub fn restarted(&self, part: &str) {
        self.change(part, |failure| {
            failure.restarts += 1;
            failure.is_over = true;
        });
    }

    /// Notes that a part can only be ended with the process.
    pub fn lost(&self, part: &str, what: String) {
        self.note(part, what);
        self.change(part, |failure| failure.is_lost = true);
    }

    /// Notes that a part that was lost has ended after all.
    pub fn found(&self, part: &str) {
        self.change(part, |failure| failure.is_lost = false);
    }

    /// Every part that failed since the start, by name.
    pub fn all(&self) -> BTreeMap<String, Failure> {
        self.0.lock().clone()
    }

    /// What a person should see: failures that are not over, and those of the last hour.
    pub fn problems(&self) -> Vec<String> {
        let now = clock::instant();
        let shown = |(part, failure): (String, Failure)| {
            let is_shown = !failure.is_over || now.duration_since(failure.seen) < SHOWN;
            let (what, at, restarts) = (&failure.what, failure.at, failure.restarts);
            is_shown.then(|| match failure.is_over {
                false => format!("{part} {what} ({at})"),
                true => format!("{part} {what} ({at}) and was started anew, {restarts} times since the start"),
            })
        };
        self.all().into_iter().filter_map(shown).collect()
    }

    /// The part that can only be ended with the process, if there is one.
    pub fn lost_part(&self) -> Option<String> {
        self.all()
            .into_iter()
            .find(|(_, failure)| failure.is_lost)
            .map(|(part, failure)| format!("{part} {}", failure.what))
    }
}
