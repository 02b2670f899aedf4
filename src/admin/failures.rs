//! Failures and restarts of the gateway's parts, for status, metrics and health.

use crate::clock;
use crate::event::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The last failure and the number of restarts of each part.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<String, Failure>>);

/// The failures of one part since the start.
#[derive(Clone, Debug)]
pub struct Failure {
    pub restarts: u64,
    /// Description of the last failure.
    pub what: String,
    /// Time of the last failure.
    pub at: Timestamp,
    /// Whether the part has been restarted since.
    pub is_over: bool,
    /// Whether the part is hung: it cannot be aborted without ending the process.
    pub is_hung: bool,
    last: Instant,
}

/// How long status shows the failure of a restarted part as a problem.
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
            is_hung: false,
            last: clock::instant(),
        });
        change(failure);
    }

    /// Records a failure of a part.
    pub fn note(&self, part: &str, what: String) {
        self.change(part, |failure| {
            failure.at = Timestamp::from(clock::wall());
            failure.last = clock::instant();
            (failure.what, failure.is_over) = (what, false);
        });
    }

    /// Records that a part was restarted.
    pub fn restarted(&self, part: &str) {
        self.change(part, |failure| {
            failure.restarts += 1;
            failure.is_over = true;
        });
    }

    /// Records that a part cannot be aborted without ending the process.
    pub fn mark_hung(&self, part: &str, what: String) {
        self.note(part, what);
        self.change(part, |failure| failure.is_hung = true);
    }

    /// Records that a hung part has ended after all.
    pub fn mark_recovered(&self, part: &str) {
        self.change(part, |failure| failure.is_hung = false);
    }

    /// Returns every part that failed since the start, by name.
    pub fn all(&self) -> BTreeMap<String, Failure> {
        self.0.lock().clone()
    }

    /// Returns the failures of parts that do not run, and those of the last hour.
    pub fn problems(&self) -> Vec<String> {
        let now = clock::instant();
        let shown = |(part, failure): (String, Failure)| {
            let is_shown = !failure.is_over || now.duration_since(failure.last) < SHOWN;
            let (what, at, restarts) = (&failure.what, failure.at, failure.restarts);
            is_shown.then(|| match failure.is_over {
                false => format!("{part} {what} ({at})"),
                true => format!("{part} {what} ({at}) and was restarted; restarts since the start: {restarts}"),
            })
        };
        self.all().into_iter().filter_map(shown).collect()
    }

    /// Returns a hung part with its failure, if there is one.
    pub fn hung_part(&self) -> Option<String> {
        self.all()
            .into_iter()
            .find(|(_, failure)| failure.is_hung)
            .map(|(part, failure)| format!("{part} {}", failure.what))
    }
}
