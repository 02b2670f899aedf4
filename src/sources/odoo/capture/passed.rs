//! Hints, and the states that records passed unseen.

use super::super::hints::Hinted;
use super::super::model_fields::Row;
use super::super::outbox::{self, OutboxRow};
use super::super::reader::PAGE_ROWS;
use super::{Capture, PAUSE_FACTOR, Reading, RoundError};
use crate::clock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Longest pause after hinted records were read: hints are there to be quick.
const HINTED_PAUSE_MAX: Duration = Duration::from_secs(2);

impl Capture {
    /// Reads the records that hints named.
    pub(super) async fn read_hinted(&mut self, hinted: Hinted) -> Result<(), RoundError> {
        let mut ids: BTreeSet<i64> = hinted.ids.into_iter().collect();
        if hinted.has_outbox {
            self.reader.expect_outbox().await?;
            let feed = Arc::clone(&self.shared.feed);
            feed.distribute(async |after| self.reader.new_outbox_rows(after).await).await?;
            ids.extend(self.hints.take(PAGE_ROWS).ids);
        }
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = ids.into_iter().collect();
        let began = clock::instant();
        for some in ids.chunks(PAGE_ROWS) {
            self.read_ids(some, Reading::Poll).await?;
        }
        let done = clock::instant();
        self.next_hinted = done + (done.duration_since(began) * PAUSE_FACTOR).min(HINTED_PAUSE_MAX);
        Ok(())
    }

    /// Reports the states that these records passed between the known one and the present one.
    pub(super) async fn report_passed(&mut self, rows: &[Row], created_after: i64) -> Result<(), RoundError> {
        let Some(field) = self.section.state.clone().filter(|_| !self.section.hints.is_empty()) else { return Ok(()) };
        let changed: Vec<i64> = {
            let known = self.mirror.known();
            let has_changed = |row: &&Row| match known.state(row.id, &field) {
                Some((state, _)) => row.record.get(&field).and_then(|value| value.as_str()) != Some(&state),
                None => row.create_date >= created_after && !known.contains(row.id),
            };
            rows.iter().filter(has_changed).map(|row| row.id).collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        let mut noted: BTreeMap<i64, Vec<OutboxRow>> = BTreeMap::new();
        for row in self.reader.outbox_rows_of(&changed).await? {
            noted.entry(row.record).or_default().push(row);
        }
        let mut events = Vec::new();
        {
            let (context, scope) = (self.event_context(), self.id_scope());
            let mut known = self.mirror.known();
            for row in rows {
                let Some(noted) = noted.get(&row.id) else { continue };
                let present = row.record.get(&field).and_then(|value| value.as_str()).unwrap_or_default();
                let before = known.state(row.id, &field);
                let before = before.as_ref().map(|(state, at)| (state.as_str(), *at));
                let passed = outbox::passed(noted, before, present);
                events.extend(known.passes(row, &passed, &context, &scope));
            }
        }
        self.hand_in(events).await
    }
}
