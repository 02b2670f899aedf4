//! Health: whether the gateway lives, and whether it takes events.
//!
//! Promise: an answer that is bad says why, one line a check; a link that is down is not bad health, since collecting
//! goes on.

use super::Handles;
use crate::contract::SourceKind;
use crate::journal::Condition;
use crate::ledger::{self, Balance};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A writer that is at one piece of work for longer is stuck.
const WORK_MAX: Duration = Duration::from_secs(60);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, such as `ledger` or `lane critical`.
    pub check: String,
    /// Whether it is as it should be.
    pub good: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The checks of one question.
#[derive(Clone, Debug, Default)]
pub struct Health(pub Vec<Check>);

impl Health {
    fn look(&mut self, check: impl Into<String>, reason: Option<String>) {
        self.0.push(Check { check: check.into(), good: reason.is_none(), reason });
    }

    /// Whether every check is good.
    pub fn is_good(&self) -> bool {
        self.0.iter().all(|check| check.good)
    }

    /// One JSON object a line.
    pub fn lines(&self) -> String {
        let line = |check: &Check| serde_json::to_string(check).unwrap_or_default() + "\n";
        self.0.iter().map(line).collect()
    }
}

impl Handles {
    /// Whether the gateway lives: its writers work, no part has to be ended with the process, the ledger balances.
    pub fn health(&self) -> Health {
        self.health_by(&ledger::balances(&self.journal, &self.fates))
    }

    /// The same, by balances that are at hand.
    pub(super) fn health_by(&self, balances: &[Balance]) -> Health {
        let mut health = Health::default();
        health.look("writers", self.journal.check(WORK_MAX).err().map(|lifeless| lifeless.to_string()));
        health.look("parts", self.failures.lost_part());
        let uneven = balances.iter().find_map(Balance::imbalance);
        let uneven = uneven.map(|text| format!("{text}; see `forebay status --ledger`"));
        health.look("ledger", uneven);
        health
    }

    /// Whether the gateway takes events: it lives, every listener is open, and no lane is full or fails.
    pub fn readiness(&self) -> Health {
        self.readiness_by(self.health())
    }

    /// The same, by whether it lives.
    pub(super) fn readiness_by(&self, mut health: Health) -> Health {
        let view = self.view.load();
        health.look("started", view.configured.is_none().then(|| "the gateway is still starting".into()));
        for lane in self.journal.lanes() {
            let reason = match self.ingest.condition_of(lane) {
                _ if lane.is_closed() => Some("the journal is closed".into()),
                Condition::Good => None,
                Condition::Full(why) | Condition::Failed(why) => Some(why),
            };
            health.look(format!("lane {}", lane.name), reason);
        }
        // What a source asks may be away: that is a problem of its own, and takes nothing from the others.
        let listens = |kind| matches!(kind, SourceKind::Mqtt | SourceKind::Http);
        for source in view.sources.iter().filter(|source| listens(source.kind)) {
            health.look(format!("source {}", source.name), source.stats.problem());
        }
        health
    }
}
