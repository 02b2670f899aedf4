//! Detection of deletions. Odoo keeps no trace of a deleted record, so the capture asks for each known record.

use super::{Capture, RoundError};
use crate::clock;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Ids per search for missing records: a request of 6 kB.
const IDS_PER_SEARCH: usize = 1000;
/// Up to this many records may be missing at once without confirmation by a second check.
const UNCONFIRMED_MAX: usize = 20;

impl Capture {
    /// Reads the records that hints named.
    pub(super) async fn read_hinted(&mut self, ids: &[i64]) -> Result<(), RoundError> {
        let (rows, _) = self.read(vec![json!(["id", "in", ids])]).await?;
        let there: BTreeSet<i64> = rows.iter().map(|row| row.id).collect();
        self.process_rows(rows, false).await?;
        let absent = ids.iter().copied().filter(|id| !there.contains(id));
        let gone: Vec<i64> = absent.filter(|id| self.mirror.known().contains(*id)).collect();
        if !gone.is_empty() {
            let missing = self.missing(&gone).await?;
            self.delete(missing).await?;
        }
        Ok(())
    }

    /// Checks which known records no longer exist in Odoo; returns how long that took.
    pub(super) async fn check_deletions(&mut self) -> Result<Duration, RoundError> {
        let began = clock::instant();
        let ids = self.mirror.known().ids();
        let mut missing = Vec::new();
        for chunk in ids.chunks(IDS_PER_SEARCH) {
            missing.extend(self.missing(chunk).await?);
        }
        let took = clock::instant().duration_since(began);
        // Records vanish without an error when the account loses a company or a right. So a second check has to
        // confirm the deletion of many records at once.
        let is_doubtful = missing.len() > UNCONFIRMED_MAX && missing.len() > ids.len() / 2;
        let is_confirmed = missing.iter().all(|id| self.unconfirmed_missing.contains(id));
        if is_doubtful && !is_confirmed {
            tracing::warn!(
                source = %self.shared.config.name, stream = %self.stream, missing = missing.len(), known = ids.len(),
                "most records are missing at once; if the next check confirms it, they count as deleted; check whether the account has lost access to a company"
            );
            self.unconfirmed_missing = missing.into_iter().collect();
            return Ok(took);
        }
        self.unconfirmed_missing.clear();
        self.delete(missing).await?;
        Ok(took)
    }

    /// Returns the ids that do not exist in Odoo. Archived records exist; the contract's domain does not matter.
    async fn missing(&self, ids: &[i64]) -> Result<Vec<i64>, RoundError> {
        let arguments = json!({"domain": [["id", "in", ids]], "order": "id", "limit": ids.len()});
        let answer = self.call("search", arguments).await?;
        let there: BTreeSet<i64> = answer.value.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        Ok(ids.iter().copied().filter(|id| !there.contains(id)).collect())
    }

    async fn delete(&mut self, ids: Vec<i64>) -> Result<(), RoundError> {
        let events = {
            let known = self.mirror.known();
            ids.iter().filter_map(|id| known.deletion(*id, &self.event_context(), &self.id_scope())).collect()
        };
        self.hand_in(events).await
    }
}
