//! Known records that are not in an answer: Odoo keeps no trace of a deleted record, and says nothing of a hidden one.
//!
//! Promise: *not visible* is not *deleted*. A record counts as deleted only if Odoo says that it does not exist.

use super::super::known_records::{ChangeEvent, Standing};
use super::super::reader::{Absence, IDS_PER_SEARCH, PAGE_ROWS};
use super::{Capture, Reading, RoundError};
use crate::clock;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// Up to this many records may be absent at once without confirmation by a second check.
const UNCONFIRMED_MAX: usize = 20;

/// Records that are absent, with the reason in events: the account does not see the company, the account cannot see the
/// record, or the record does not belong to the contract any more.
type Reasons = Vec<(i64, Absence, &'static str)>;

impl Capture {
    /// Reads records by their ids, and reports those that are not there any more.
    pub(super) async fn read_ids(&mut self, wanted: &[i64], reading: Reading) -> Result<(), RoundError> {
        let page = self.reader.page(vec![json!(["id", "in", wanted])]).await?;
        let mut there: BTreeSet<i64> = page.rows.iter().map(|row| row.id).collect();
        there.extend(self.reader.faulty());
        self.process_rows(page.rows, reading).await?;
        let absent = wanted.iter().copied().filter(|id| !there.contains(id));
        // A hidden one may be deleted by now.
        let absent: Vec<i64> = absent.filter(|id| self.mirror.known().contains(*id)).collect();
        let newly = absent.iter().filter(|id| self.is_present(**id)).count();
        if newly > UNCONFIRMED_MAX && newly > wanted.len() / 2 {
            // The check of all records decides, and confirms it.
            self.next_deletion_check = clock::instant();
            return Ok(());
        }
        let reasons = self.reasons(&absent).await?;
        self.report_absent(reasons).await
    }

    fn is_present(&self, id: i64) -> bool {
        self.mirror.known().standing(id) == Some(Standing::Present)
    }

    /// Checks which known records are absent and which hidden ones are back; returns how long that took.
    pub(super) async fn check_absent(&mut self) -> Result<Duration, RoundError> {
        let began = clock::instant();
        let (mut absent, mut back, mut after) = (Vec::new(), Vec::new(), 0);
        loop {
            let ids = self.mirror.known().ids_after(after, IDS_PER_SEARCH);
            let Some(last) = ids.last() else { break };
            after = *last;
            let visible = self.reader.visible(&ids).await?;
            for id in ids {
                match (self.is_present(id), visible.contains(&id)) {
                    (true, false) => absent.push(id),
                    (false, true) => back.push(id),
                    _ => {}
                }
            }
        }
        for some in back.chunks(PAGE_ROWS) {
            let page = self.reader.page(vec![json!(["id", "in", some])]).await?;
            self.process_rows(page.rows, Reading::Reconciliation).await?;
        }
        let reasons = self.reasons(&absent).await?;
        let took = clock::instant().duration_since(began);
        let known = self.mirror.known().len();
        // An account that loses a company or a right for a moment, or a database that is put back, makes records vanish
        // without an error. So a second check has to confirm that many records are absent at once.
        let is_doubtful = reasons.len() > UNCONFIRMED_MAX && reasons.len() > known / 2;
        let is_confirmed = reasons.iter().all(|(id, ..)| self.unconfirmed.contains(id));
        if is_doubtful && !is_confirmed {
            tracing::warn!(
                source = %self.shared.config.name, stream = %self.stream, missing = reasons.len(), known,
                "most records are missing at once; if the next check confirms it, they are reported; check whether the account has lost access to a company, or whether a backup was restored"
            );
            self.unconfirmed = reasons.into_iter().map(|(id, ..)| id).collect();
            return Ok(took);
        }
        self.unconfirmed.clear();
        self.report_absent(reasons).await?;
        Ok(took)
    }

    /// Finds out why records are absent. Leaves out those that cannot be decided now.
    async fn reasons(&self, absent: &[i64]) -> Result<Reasons, RoundError> {
        let companies = self.reader.companies();
        let is_elsewhere = |id: &i64| {
            let company = self.mirror.known().company(*id);
            company.is_some_and(|company| !companies.is_empty() && !companies.contains(&company))
        };
        let (elsewhere, other): (Vec<i64>, Vec<i64>) = absent.iter().copied().partition(is_elsewhere);
        let mut reasons: Reasons = elsewhere.into_iter().map(|id| (id, Absence::Hidden, "company")).collect();
        for (id, absence) in self.reader.absences(&other).await? {
            let reason = if absence == Absence::Left { "contract" } else { "access" };
            reasons.push((id, absence, reason));
        }
        Ok(reasons)
    }

    async fn report_absent(&mut self, reasons: Reasons) -> Result<(), RoundError> {
        if reasons.is_empty() {
            return Ok(());
        }
        let events: Vec<ChangeEvent> = {
            let (context, scope, known) = (self.event_context(), self.id_scope(), self.mirror.known());
            let event = |(id, absence, reason): (i64, Absence, &str)| match absence {
                Absence::Deleted => known.deletion(id, &context, &scope),
                Absence::Hidden | Absence::Left => known.hiding(id, reason, &context, &scope),
            };
            reasons.into_iter().filter_map(event).collect()
        };
        self.hand_in(events).await
    }
}
