//! Reads the outbox of this gateway, if automation rules in Odoo fill one.

use super::super::outbox::{self, FIELDS, OutboxRow, ROWS_MAX};
use super::ModelReader;
use crate::odoo::OdooError;
use serde_json::json;

/// Records per read: each has some rows.
const RECORDS_MAX: usize = 50;

impl ModelReader {
    /// Learns whether there is an outbox. Without one, polls see the last state of a record only.
    pub(super) async fn learn_outbox(&mut self) -> Result<(), OdooError> {
        let Some(model) = self.outbox_model.clone() else { return Ok(()) };
        self.has_outbox = match self
            .call_of(&model, "fields_get", None, json!({"allfields": FIELDS, "attributes": ["type"]}))
            .await
        {
            Ok(answer) => FIELDS.iter().all(|field| answer.value.get(field).is_some()),
            Err(OdooError::Refused { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// The newest rows behind `after`, in ascending order. Odoo has said that there are some, so there is an outbox.
    pub(in super::super) async fn new_outbox_rows(&mut self, after: i64) -> Result<Vec<OutboxRow>, OdooError> {
        self.has_outbox = true;
        let mut rows = self.outbox_rows(None, after, "id desc").await?;
        rows.reverse();
        Ok(rows)
    }

    /// The rows of these records, in ascending order.
    pub(in super::super) async fn outbox_rows_of(&mut self, records: &[i64]) -> Result<Vec<OutboxRow>, OdooError> {
        let mut rows = Vec::new();
        for some in records.chunks(RECORDS_MAX) {
            rows.extend(self.outbox_rows(Some(some), 0, "id").await?);
        }
        Ok(rows)
    }

    async fn outbox_rows(
        &mut self,
        records: Option<&[i64]>,
        after: i64,
        order: &str,
    ) -> Result<Vec<OutboxRow>, OdooError> {
        let Some(model) = self.outbox_model.clone().filter(|_| self.has_outbox) else { return Ok(Vec::new()) };
        let domain = outbox::domain(self.model(), records, after);
        let fields: Vec<&str> = FIELDS.into_iter().chain(["create_date"]).collect();
        let arguments = json!({"domain": domain, "fields": fields, "order": order, "limit": ROWS_MAX});
        match self.call_of(&model, "search_read", None, arguments).await {
            Ok(answer) => Ok(outbox::rows(&answer.value)),
            // It was removed, or the account has no right to it: it is looked for again when the reader learns.
            Err(OdooError::Refused { .. }) => {
                self.has_outbox = false;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}
