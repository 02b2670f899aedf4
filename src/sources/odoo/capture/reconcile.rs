//! Reconciliation: compares everything that is known with Odoo, existence and values.
//!
//! Promise: within the time of one reconciliation, what no poll can see is found: a restored backup, values written by SQL
//! without `write_date`, links that PostgreSQL emptied, records that were hidden or that moved between contracts, records
//! that the account was allowed to see later.
//! Invariant: it is spread over its time, in single pages. If that is not enough time, it takes longer, and the status
//! says so.

use super::super::known_records::ChangeEvent;
use super::super::reader::PAGE_ROWS;
use super::super::reconciliation::Stage;
use super::{Capture, PAUSE_FACTOR, Reading, RoundError};
use crate::clock;
use crate::setting::Span;
use serde_json::json;
use std::time::{Duration, Instant};

/// Ids per search for records that are not known.
const IDS_PER_PAGE: usize = 1000;

impl Capture {
    /// Does the next part of the reconciliation, if it is due.
    pub(super) async fn reconcile(&mut self) -> Result<(), RoundError> {
        let alarms = self.shared.pace.alarms();
        if self.reconciliation.alarms != alarms {
            self.reconciliation.alarms = alarms;
            self.reconciliation.hurry();
        }
        let now = clock::instant();
        if now < self.reconciliation.next {
            return Ok(());
        }
        if let Err(later) = self.shared.pace.take(now, self.reconciliation.is_hurried) {
            self.reconciliation.next = later;
            return Ok(());
        }
        let next = match self.reconciliation.stage {
            Stage::Known(after) => self.compare_known(after).await?,
            Stage::Unknown(after) => self.search_unknown(after).await?,
        };
        let done = clock::instant();
        let pause = (done.duration_since(now) * PAUSE_FACTOR).max(self.spread());
        self.reconciliation.next = done + pause;
        match next {
            Some(stage) => self.reconciliation.stage = stage,
            None => self.end_reconciliation(done),
        }
        Ok(())
    }

    /// The pause that spreads a reconciliation over its time.
    fn spread(&self) -> Duration {
        if self.reconciliation.is_hurried {
            return Duration::ZERO;
        }
        let known = self.mirror.known().len();
        let parts = known / PAGE_ROWS + known / IDS_PER_PAGE + 3;
        self.shared.config.reconcile.0 / u32::try_from(parts).unwrap_or(u32::MAX)
    }

    async fn compare_known(&mut self, after: i64) -> Result<Option<Stage>, RoundError> {
        let ids = self.mirror.known().ids_after(after, PAGE_ROWS);
        let Some(last) = ids.last().copied() else { return Ok(Some(Stage::Unknown(0))) };
        self.read_ids(&ids, Reading::Reconciliation).await?;
        Ok(Some(Stage::Known(last)))
    }

    async fn search_unknown(&mut self, after: i64) -> Result<Option<Stage>, RoundError> {
        // Records that do not fit into the memory are not known either; polls report their changes.
        if self.mirror.known().is_full(self.bytes_max()) {
            return Ok(None);
        }
        let mut condition = self.reader.load_conditions(self.recent_after());
        condition.push(json!(["id", ">", after]));
        let ids = self.reader.search(condition, IDS_PER_PAGE).await?;
        let unknown: Vec<i64> = {
            let known = self.mirror.known();
            ids.iter().copied().filter(|id| !known.contains(*id)).collect()
        };
        for some in unknown.chunks(PAGE_ROWS) {
            self.read_ids(some, Reading::Reconciliation).await?;
        }
        Ok(ids.last().filter(|_| ids.len() >= IDS_PER_PAGE).map(|last| Stage::Unknown(*last)))
    }

    fn end_reconciliation(&mut self, now: Instant) {
        let took = now.duration_since(self.reconciliation.began);
        let round = self.shared.config.reconcile.0;
        self.shared.health.reconciled(&self.stream, (took > round * 3 / 2).then_some(Span(took)));
        if self.reconciliation.found > 0 {
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, found = self.reconciliation.found, "reconciliation is complete; it found what no poll could see");
        }
        let pause = self.spread();
        self.reconciliation.end(now, round, pause);
    }

    /// Counts what was found. Records that went back in time alarm the reconciliations of all contracts.
    pub(super) fn reconciliation_found(&mut self, events: &[ChangeEvent]) {
        self.reconciliation.found += events.len();
        let rewound = events.iter().filter(|event| event.payload.get("rewound").is_some()).count();
        if rewound > 0 && !self.reconciliation.is_hurried {
            tracing::warn!(source = %self.shared.config.name, stream = %self.stream, rewound, "records have an older write_date than before: a backup of Odoo was restored, or somebody wrote into its database; all contracts compare their records now");
            self.shared.pace.alarm();
        }
    }
}
