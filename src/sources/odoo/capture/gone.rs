//! Records that are gone: deletions leave no trace in Odoo, so that known records are looked for.

use super::{Capture, Stop};
use crate::clock;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Ids of one look for deletions: 6 kB of question.
const IDS_A_LOOK: usize = 1000;
/// Fewer records than these may vanish at once without a second look.
const VANISHED_DOUBTFUL: usize = 20;

impl Capture {
    /// Reads records that something hinted at.
    pub(super) async fn look_at(&mut self, ids: &[i64]) -> Result<(), Stop> {
        let (rows, _) = self.read(vec![json!(["id", "in", ids])]).await?;
        let there: BTreeSet<i64> = rows.iter().map(|row| row.id).collect();
        self.take(rows, false).await?;
        let absent = ids.iter().copied().filter(|id| !there.contains(id));
        let gone: Vec<i64> = absent.filter(|id| self.mirror.known().contains(*id)).collect();
        if !gone.is_empty() {
            let missing = self.missing(&gone).await?;
            self.delete(missing).await?;
        }
        Ok(())
    }

    /// Looks which known records are gone.
    pub(super) async fn look_for_deletions(&mut self) -> Result<Duration, Stop> {
        let began = clock::instant();
        let ids = self.mirror.known().ids();
        let mut missing = Vec::new();
        for chunk in ids.chunks(IDS_A_LOOK) {
            missing.extend(self.missing(chunk).await?);
        }
        let took = clock::instant().duration_since(began);
        // Records of a company that the account may no longer see vanish silently, and so does everything at
        // a lost right: many at once are believed at the second look.
        let is_doubtful = missing.len() > VANISHED_DOUBTFUL && missing.len() > ids.len() / 2;
        let is_confirmed = missing.iter().all(|id| self.doubted.contains(id));
        if is_doubtful && !is_confirmed {
            tracing::warn!(
                source = %self.shared.config.name, stream = %self.stream, missing = missing.len(), known = ids.len(),
                "most records are gone at once; if they are at the next look too, they count as deleted. Has the account lost a company?"
            );
            self.doubted = missing.into_iter().collect();
            return Ok(took);
        }
        self.doubted.clear();
        self.delete(missing).await?;
        Ok(took)
    }

    /// Which of these are not there, archived or not, whatever the domain.
    async fn missing(&self, ids: &[i64]) -> Result<Vec<i64>, Stop> {
        let arguments = json!({"domain": [["id", "in", ids]], "order": "id", "limit": ids.len()});
        let answer = self.call("search", arguments).await?;
        let there: BTreeSet<i64> = answer.value.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        Ok(ids.iter().copied().filter(|id| !there.contains(id)).collect())
    }

    async fn delete(&mut self, ids: Vec<i64>) -> Result<(), Stop> {
        let events = {
            let known = self.mirror.known();
            ids.iter().filter_map(|id| known.deletion(*id, &self.telling(), &self.place())).collect()
        };
        self.hand_in(events).await
    }
}
