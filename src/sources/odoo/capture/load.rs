//! The first load of a contract: reads the records that are there, page by page.

use super::{Capture, NOTE_AFTER, Reading, RoundError};
use crate::clock;
use serde_json::json;
use std::time::Duration;

impl Capture {
    /// Starts another load, because the operator asked for it. The position is saved first: after a crash the load
    /// continues, and its events have the ids of this load.
    pub(super) async fn begin_again(&mut self) {
        self.position.load_again();
        self.reconciliation.hurry();
        self.note().await;
        tracing::info!(source = %self.shared.config.name, stream = %self.stream, "loading all records again, as requested");
    }

    /// Does the first load, page by page; continues at the saved position after a restart.
    pub(super) async fn load(&mut self) -> Result<(), RoundError> {
        if self.position.mark == 0 {
            // The mark is taken before the first page: the first poll finds every change made during the load.
            self.position.mark = self.reader.server_seconds().await?;
            self.position.load_mark = self.position.mark;
        }
        let reading = if self.position.epoch == 0 { Reading::FirstLoad } else { Reading::Again };
        let total = self.reader.count(self.reader.load_conditions(self.recent_after())).await?;
        // After a restart the records below the saved position are loaded already.
        let mut loaded = self.position.load_after.map_or(0, |after| self.mirror.known().count_up_to(after));
        while let Some(after) = self.position.load_after {
            self.applied_offset = self.log.end();
            let mut condition = self.reader.load_conditions(self.recent_after());
            condition.push(json!(["id", ">", after]));
            let page = self.reader.page(condition).await?;
            loaded += page.rows.len();
            self.process_rows(page.rows, reading).await?;
            self.position.load_after = page.last.filter(|_| !page.is_end);
            self.shared.health.loads(&self.stream, (!page.is_end).then_some((loaded, total)));
            if self.mirror.known().dirty_count() >= NOTE_AFTER {
                self.applied_offset = self.log.end();
                self.note().await;
            }
        }
        // Every earlier record is loaded now, or the first load excludes it.
        self.position.swept = self.position.mark;
        let records = self.mirror.known().len();
        tracing::info!(source = %self.shared.config.name, stream = %self.stream, records, "first load is complete");
        if reading == Reading::FirstLoad {
            // Nothing can differ yet.
            self.reconciliation.end(clock::instant(), self.shared.config.reconcile.0, Duration::ZERO);
        }
        self.next_deletion_check = clock::instant() + self.shared.config.deletions.0;
        self.applied_offset = self.log.end();
        self.note().await;
        Ok(())
    }
}
