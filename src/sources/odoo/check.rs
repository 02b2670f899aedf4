//! The self-check: what the account can and cannot read, and what of the contracts this Odoo has.

use super::shape::Shape;
use super::{ADMINISTRATOR, Config, sections};
use crate::contract::Contracts;
use crate::odoo::{Client, OdooError, Session};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What was found of one contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stream.
    pub stream: String,
    /// The model.
    pub model: String,
    /// Why it cannot be read; `None` if it can.
    pub problem: Option<String>,
    /// Fields that are not there, or not for this account.
    pub missing: Vec<String>,
    /// Fields that are computed at each reading, and so are not read.
    pub not_stored: Vec<String>,
    /// Whether the account may also write: more than is needed.
    pub may_write: bool,
}

/// Asks an Odoo about everything that the contracts want of it. The error is one that concerns all of them.
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
                let shape = Shape::fit(section, &described);
                let arguments = json!({"domain": section.domain, "fields": shape.wanted(), "limit": 1});
                (finding.missing, finding.not_stored) = (shape.missing, shape.not_stored);
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

/// Whether the account may write a model. 18 renamed the question.
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
