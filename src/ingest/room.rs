//! Room: whether a lane accepts events of a sender, and when it may again.

use super::Ingest;
use super::route::{Route, Target};
use crate::journal::{Condition, Lane};

impl Ingest {
    /// Whether the lane of a route accepts events of its sender, with the reason if not.
    pub fn condition(&self, route: &Route) -> Condition {
        let Some(Target { placed, .. }) = &route.target else {
            let log = self.journal.dead();
            let has_share = self.shares.has_dead_share(log, route.party);
            let why = || self.shares.why(self.journal.lanes().len(), log, route.party, route.sender());
            return if has_share { log.condition() } else { Condition::Full(why()) };
        };
        let lane = self.lanes(placed.lane);
        match lane.condition() {
            Condition::Good if !self.shares.has_share(placed.lane, lane, route.party) => {
                Condition::Full(self.shares.why(placed.lane, lane, route.party, route.sender()))
            }
            condition => condition,
        }
    }

    /// Whether a lane accepts events, with the reason if not. It also counts as full if some parties
    /// have used up their share.
    pub fn condition_of(&self, lane: &Lane) -> Condition {
        let index = self.journal.lanes().iter().position(|known| known.name == lane.name);
        match lane.condition() {
            Condition::Good => {
                let why = self.shares.slowed(index.unwrap_or(self.journal.lanes().len()), lane);
                why.map_or(Condition::Good, Condition::Full)
            }
            condition => condition,
        }
    }

    pub(super) fn note_slowed(&self, index: usize, lane: &Lane, route: &Route) {
        if self.shares.note_slowed(index, route.party, route.sender()) {
            let why = self.shares.why(index, lane, route.party, route.sender());
            tracing::warn!(lane = %lane.name, "slowing down a sender: {why}");
        }
    }

    /// Waits until the lane of a route may have room for its sender. Cancel safe.
    pub async fn room(&self, route: &Route) {
        // There is no wake-up when central settles events or a share grows.
        const RECHECK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);
        if let Some(pace) = &route.pace {
            tokio::time::sleep(pace.wait(route.party)).await;
        }
        let dead = self.journal.dead();
        if !self.shares.has_dead_share(dead, route.party) {
            // The share grows slowly, and the waiting event may become no dead letter.
            tokio::time::sleep(RECHECK_INTERVAL).await;
        }
        let Some(target) = &route.target else { return dead.room().await };
        let lane = self.lanes(target.placed.lane);
        while !self.shares.has_share(target.placed.lane, lane, route.party) {
            // The last event may have met a lane without room, so the used-up share may not be noted yet.
            self.note_slowed(target.placed.lane, lane, route);
            tokio::time::sleep(RECHECK_INTERVAL).await;
        }
        lane.room().await;
    }
}
