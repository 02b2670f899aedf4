//! The calls of a capture: they only read.

use super::super::model_fields::Row;
use super::{Capture, PAGE_ROWS, RoundError};
use crate::event::Timestamp;
use crate::odoo::{Answer, OdooError, write_time};
use serde_json::{Value, json};

impl Capture {
    pub(super) async fn count(&self) -> Result<u64, RoundError> {
        let domain = [self.domain(), self.load_conditions()].concat();
        let answer = self.call("search_count", json!({"domain": domain})).await?;
        Ok(answer.value.as_u64().unwrap_or(0))
    }

    /// The conditions of the first load, besides the domain.
    pub(super) fn load_conditions(&self) -> Vec<Value> {
        let recent =
            self.recent_after().map(|after| json!(["write_date", ">=", write_time(Timestamp(after * 1_000_000))]));
        self.section.load.iter().cloned().chain(recent).collect()
    }

    /// Reads a page of rows.
    pub(super) async fn read(&self, condition: Vec<Value>) -> Result<(Vec<Row>, Answer), RoundError> {
        let model_fields = self.model_fields.as_ref();
        let Some(model_fields) = model_fields else { unreachable!("a round reads the fields of the model first") };
        let domain = [self.domain(), condition].concat();
        let mut arguments = json!({
            "domain": domain, "fields": model_fields.names(), "order": "id", "limit": PAGE_ROWS,
        });
        // Without `load: null` Odoo also reads the name behind every link. Versions before 15 do not know it.
        if !model_fields.has_names && self.major >= 15 {
            arguments["load"] = Value::Null;
        }
        let answer = self.call("search_read", arguments).await?;
        let rows = answer.value.as_array().into_iter().flatten().filter_map(|given| model_fields.row(given)).collect();
        Ok((rows, answer))
    }

    fn domain(&self) -> Vec<Value> {
        let mut domain = self.section.domain.clone();
        // A record without a company belongs to every company.
        domain.extend(self.section.company.map(|company| json!(["company_id", "in", [company, false]])));
        domain
    }

    pub(super) async fn call(&self, method: &str, arguments: Value) -> Result<Answer, OdooError> {
        let Value::Object(mut arguments) = arguments else { unreachable!("arguments are passed by name") };
        // Include archived records; get messages in one language.
        let mut context = json!({"active_test": false, "lang": "en_US"});
        if let Some(company) = self.section.company {
            context["allowed_company_ids"] = json!([company]);
        }
        arguments.insert("context".into(), context);
        self.shared.client.call(&self.section.model, method, None, arguments).await
    }
}
