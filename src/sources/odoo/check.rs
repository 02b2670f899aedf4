//! The self-check: which models and fields of the contracts exist in this Odoo and are readable for the account.

use super::config::{ADMINISTRATOR, Config};
use super::model_fields::ModelFields;
use super::sections;
use crate::contract::Contracts;
use crate::odoo::{Client, OdooError, Session};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The result of the check for one contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub stream: String,
    /// Odoo model of the contract.
    pub model: String,
    /// Why the model cannot be read; `None` if it can.
    pub problem: Option<String>,
    /// Fields that do not exist or are not readable for this account.
    pub missing: Vec<String>,
    /// Fields that Odoo computes at each read. The gateway does not read them.
    pub not_stored: Vec<String>,
    /// Whether the account may also write the model: a right that the gateway does not need.
    pub may_write: bool,
}

/// Checks everything that the contracts read from an Odoo. Returns an error only for a fault that concerns all contracts.
pub async fn check(config: &Config, contracts: &Contracts) -> Result<(Session, Vec<Finding>), OdooError> {
    let client = config.client().map_err(OdooError::NotOdoo)?;
    let session = client.session().await?;
    if session.is_administrator && !config.administrator {
        return Err(OdooError::Denied(ADMINISTRATOR.into()));
    }
    let mut findings = Vec::new();
    for (contract, section) in sections(contracts, &config.name) {
        let mut finding = Finding {
            stream: contract.stream().to_owned(),
            model: section.model.clone(),
            problem: None,
            missing: Vec::new(),
            not_stored: Vec::new(),
            may_write: false,
        };
        let arguments = json!({"allfields": section.fields, "attributes": ["type", "store"]});
        let described = call(&client, &section.model, "fields_get", arguments).await;
        let read = match described {
            Ok(described) => {
                let fields = ModelFields::resolve(section, &described);
                let arguments = json!({"domain": section.domain, "fields": fields.names(), "limit": 1});
                (finding.missing, finding.not_stored) = (fields.missing, fields.not_stored);
                call(&client, &section.model, "search_read", arguments).await
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(_) => finding.may_write = may_write(&client, &section.model, session.version).await?,
            Err(error @ OdooError::Refused { .. }) => finding.problem = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        findings.push(finding);
    }
    Ok((session, findings))
}

/// Whether the account may write a model. Odoo 18 renamed the method.
async fn may_write(client: &Client, model: &str, version: u32) -> Result<bool, OdooError> {
    let (method, arguments) = if version >= 18 {
        ("has_access", json!({"operation": "write"}))
    } else {
        ("check_access_rights", json!({"operation": "write", "raise_exception": false}))
    };
    match call(client, model, method, arguments).await {
        Ok(answer) => Ok(answer == Value::Bool(true)),
        Err(OdooError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn call(client: &Client, model: &str, method: &str, arguments: Value) -> Result<Value, OdooError> {
    let mut arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
    if method == "search_read" {
        arguments.insert("context".into(), json!({"active_test": false, "lang": "en_US"}));
    }
    Ok(client.call(model, method, None, arguments).await?.value)
}
