//! Liveness and readiness of the gateway.
//!
//! Promise: a failed check states its reason, one line per check. A link that is down does not fail a check: the gateway
//! still collects events. One that central refuses is named with the reason.

use super::handles::Handles;
use crate::api::{Balance, HealthCheck};
use crate::contract::SourceKind;
use crate::journal::Condition;
use crate::ledger;
use std::time::Duration;

/// A writer thread that needs longer for one operation is stuck.
const WORK_MAX: Duration = Duration::from_secs(60);

/// Results of all checks of liveness or readiness.
#[derive(Clone, Debug, Default)]
pub struct Health(pub Vec<HealthCheck>);

impl Health {
    fn add(&mut self, check: impl Into<String>, reason: Option<String>) {
        self.0.push(HealthCheck { check: check.into(), good: reason.is_none(), reason });
    }

    pub fn is_good(&self) -> bool {
        self.0.iter().all(|check| check.good)
    }

    /// Returns the checks as one JSON object per line.
    pub fn lines(&self) -> String {
        let line = |check: &HealthCheck| serde_json::to_string(check).unwrap_or_default() + "\n";
        self.0.iter().map(line).collect()
    }
}

impl Handles {
    /// Checks liveness: the writer threads make progress, no part is hung, the ledger balances.
    pub fn health(&self) -> Health {
        self.health_by(&ledger::balances(&self.journal, &self.fates))
    }

    /// Like [`Handles::health`], with balances that the caller already has.
    pub(super) fn health_by(&self, balances: &[Balance]) -> Health {
        let mut health = Health::default();
        health.add("writers", self.journal.check(WORK_MAX).err().map(|lifeless| lifeless.to_string()));
        health.add("parts", self.failures.hung_part());
        let uneven = balances.iter().find_map(Balance::imbalance);
        let uneven = uneven.map(|text| format!("{text}; see `forebay status --ledger`"));
        health.add("ledger", uneven);
        health
    }

    /// Checks readiness: the gateway is live, every listener is open, and no lane is full or failed.
    pub fn readiness(&self) -> Health {
        self.readiness_by(self.health())
    }

    /// Like [`Handles::readiness`], with liveness checks that the caller already has.
    pub(super) fn readiness_by(&self, mut health: Health) -> Health {
        let view = self.view.load();
        health.add("started", view.configured.is_none().then(|| "the gateway is still starting".into()));
        for lane in self.journal.lanes() {
            let reason = match self.ingest.condition_of(lane) {
                _ if lane.is_closed() => Some("the journal is closed".into()),
                Condition::Good => None,
                Condition::Full(why) | Condition::Failed(why) => Some(why),
            };
            health.add(format!("lane {}", lane.name), reason);
        }
        // A server that a source reads may be down: status shows that, and the other sources still work.
        let listens = |kind| matches!(kind, SourceKind::Mqtt | SourceKind::Http);
        for source in view.sources.iter().filter(|source| listens(source.kind)) {
            health.add(format!("source {}", source.name), source.stats.problem());
        }
        // A refusal at central fails no check either: events are kept. It is named, since a person has to act.
        for (index, link) in view.links.iter().enumerate() {
            let is_first = view.links[..index].iter().all(|other| other.destination != link.destination);
            let others = link.others.iter().filter(|_| is_first).map(|(name, stats)| (*name, stats));
            for (name, stats) in others.chain([(link.lane.name.as_str(), &link.stats)]) {
                let state = stats.state();
                if let (true, Some(reason), Some(since)) = (state.is_refused, state.reason, state.since) {
                    let (check, reason) =
                        (format!("link {}/{name}", link.destination), Some(format!("{reason} (since {since})")));
                    health.0.push(HealthCheck { check, good: true, reason });
                }
            }
        }
        health
    }
}
