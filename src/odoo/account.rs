//! The gateway's account in Odoo: its language, its companies, and how long its key is valid.
//!
//! Promise: an account that may not read one of these gets the others.

use super::{Client, OdooError, Refusal, read_time};
use crate::event::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// What Odoo says about the account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Language of the account, such as `de_DE`; `None` if it has none.
    pub language: Option<String>,
    /// Languages that are active in Odoo, by code. Empty if the account may not read them.
    pub languages: BTreeSet<String>,
    /// Ids of the companies whose records the account may see.
    pub companies: BTreeSet<i64>,
    /// End of the validity of the key in use, as far as Odoo reveals it.
    pub key_expires: Option<Timestamp>,
}

/// Longest list of keys that is read: a person makes one from time to time.
const KEYS_MAX: usize = 50;

impl Client {
    /// Reads what Odoo says about the account: four calls.
    pub async fn account(&self) -> Result<Account, OdooError> {
        let session = self.session().await?;
        let context = self.ask("res.users", "context_get", None, json!({})).await?;
        let language = context.get("lang").and_then(Value::as_str).map(str::to_owned);
        let own = [session.user_id];
        let read = self.ask("res.users", "read", Some(&own), json!({"fields": ["company_ids"]})).await?;
        let companies = read[0]["company_ids"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        let installed = self.ask("res.lang", "get_installed", None, json!({})).await?;
        let codes = installed.as_array().into_iter().flatten().filter_map(|pair| pair[0].as_str());
        let languages = codes.map(str::to_owned).collect();
        let arguments = json!({
            "domain": [["user_id", "=", session.user_id]], "fields": ["create_date", "expiration_date"],
            "order": "create_date desc", "limit": KEYS_MAX,
        });
        let keys = self.ask("res.users.apikeys", "search_read", None, arguments).await?;
        let key_expires = key_in_use(&keys, self.key_written()).and_then(|key| time(key, "expiration_date"));
        Ok(Account { language, languages, companies, key_expires })
    }

    /// Calls a method; `null` if Odoo refuses the call.
    async fn ask(&self, model: &str, method: &str, ids: Option<&[i64]>, arguments: Value) -> Result<Value, OdooError> {
        let arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
        match self.call(model, method, ids, arguments).await {
            Ok(answer) => Ok(answer.value),
            Err(OdooError::Refused { why: Refusal::Access | Refusal::UnknownModel, .. }) => Ok(Value::Null),
            // Before 18 keys have no end of their validity.
            Err(OdooError::Refused { .. }) if model == "res.users.apikeys" => Ok(Value::Null),
            Err(error) => Err(error),
        }
    }

    /// Time of the last change of the key file, in microseconds since 1970; `None` for a secret that is no file.
    fn key_written(&self) -> Option<Timestamp> {
        let changed: SystemTime = std::fs::metadata(&self.config.key_file).ok()?.modified().ok()?;
        Some(Timestamp(i64::try_from(changed.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()?))
    }
}

/// The key in use, of keys whose newest comes first. Odoo does not say which one it is: a key is written into its file
/// after it was made, so it is the newest one that is older than the file.
fn key_in_use(keys: &Value, written: Option<Timestamp>) -> Option<&Value> {
    let keys = keys.as_array()?;
    let is_older = |key: &&Value| match (time(key, "create_date"), written) {
        (Some(made), Some(written)) => made.0 <= written.0,
        _ => true,
    };
    keys.iter().find(is_older).or(keys.last())
}

fn time(record: &Value, field: &str) -> Option<Timestamp> {
    record.get(field).and_then(Value::as_str).and_then(read_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_in_use_is_the_newest_that_is_older_than_its_file() {
        let keys = json!([
            {"create_date": "2026-11-20 10:00:00", "expiration_date": "2027-02-18 10:00:00"},
            {"create_date": "2026-09-01 10:00:00", "expiration_date": "2026-11-30 10:00:00"},
        ]);
        let check = |written: Option<&str>, expires: &str| {
            let written = written.and_then(read_time);
            let found = key_in_use(&keys, written).and_then(|key| time(key, "expiration_date"));
            assert_eq!(found, read_time(expires), "{written:?}");
        };
        check(Some("2026-11-20 10:05:00"), "2027-02-18 10:00:00");
        check(Some("2026-11-20 09:00:00"), "2026-11-30 10:00:00");
        check(Some("2020-01-01 00:00:00"), "2026-11-30 10:00:00");
        check(None, "2027-02-18 10:00:00");
        assert_eq!(key_in_use(&json!([]), None), None);
        assert_eq!(key_in_use(&Value::Null, None), None);
        // A key without an end: before 18, or a key of an administrator.
        assert_eq!(time(&json!({"expiration_date": false}), "expiration_date"), None);
    }
}
