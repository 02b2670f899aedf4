//! Reads the outbox of this gateway, if automation rules in Odoo fill one.

use super::super::outbox::{self, FIELDS, OutboxRow, ROWS_MAX, TRANSACTION};
use super::ModelReader;
use crate::odoo::OdooError;
use serde_json::json;

/// Records per read: each has some rows.
const RECORDS_MAX: usize = 50;
/// Rows of the records of a page, some 100 bytes each. An order has some dozens in the days that they are kept.
const ALL_ROWS_MAX: usize = 20_000;

impl ModelReader {
    /// Learns whether there is an outbox. Without one, polls see the last state of a record only.
    pub(super) async fn learn_outbox(&mut self) -> Result<(), OdooError> {
        let Some(model) = self.outbox_model.clone() else { return Ok(()) };
        let wanted: Vec<&'static str> = FIELDS.into_iter().chain([TRANSACTION]).collect();
        let arguments = json!({"allfields": wanted, "attributes": ["type"]});
        self.outbox_fields = match self.call_of(&model, "fields_get", None, arguments).await {
            Ok(answer) => {
                let mut fields = wanted;
                fields.retain(|field| answer.value.get(field).is_some());
                if fields.starts_with(&FIELDS) { fields } else { Vec::new() }
            }
            Err(OdooError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Odoo has said that the outbox has new rows, so there is one.
    pub(in super::super) async fn expect_outbox(&mut self) -> Result<(), OdooError> {
        match self.outbox_fields.is_empty() {
            true => self.learn_outbox().await,
            false => Ok(()),
        }
    }

    /// The newest rows behind `after` of all models, in ascending order.
    pub(in super::super) async fn new_outbox_rows(&mut self, after: i64) -> Result<Vec<OutboxRow>, OdooError> {
        let mut rows = self.outbox_rows(None, after, "id desc").await?;
        rows.reverse();
        Ok(rows)
    }

    /// The rows of these records, in ascending order.
    pub(in super::super) async fn outbox_rows_of(&mut self, records: &[i64]) -> Result<Vec<OutboxRow>, OdooError> {
        let mut rows = Vec::new();
        for some in records.chunks(RECORDS_MAX) {
            let mut after = 0;
            loop {
                let page = self.outbox_rows(Some(some), after, "id").await?;
                after = page.last().map_or(after, |row| row.id);
                let is_end = page.len() < outbox::ROWS_MAX;
                rows.extend(page);
                if is_end || rows.len() >= ALL_ROWS_MAX {
                    break;
                }
            }
        }
        Ok(rows)
    }

    async fn outbox_rows(
        &mut self,
        records: Option<&[i64]>,
        after: i64,
        order: &str,
    ) -> Result<Vec<OutboxRow>, OdooError> {
        let Some(model) = self.outbox_model.clone().filter(|_| !self.outbox_fields.is_empty()) else {
            return Ok(Vec::new());
        };
        let domain = outbox::domain(records.map(|records| (self.model(), records)), after);
        let fields: Vec<&str> = self.outbox_fields.iter().copied().chain(["create_date"]).collect();
        let arguments = json!({"domain": domain, "fields": fields, "order": order, "limit": ROWS_MAX});
        match self.call_of(&model, "search_read", None, arguments).await {
            Ok(answer) => Ok(outbox::rows(&answer.value)),
            // It was removed, or the account has no right to it: it is looked for again when the reader learns.
            Err(OdooError::Refused { .. }) => {
                self.outbox_fields.clear();
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}
