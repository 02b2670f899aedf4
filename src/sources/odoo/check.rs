//! The self-check: which models and fields of the contracts exist in this Odoo and are readable for the account.
//!
//! Promise: the check makes every kind of call that the gateway makes, through the same code: what it finds readable, the
//! gateway can read.

use super::config::{ADMINISTRATOR, Config};
use super::reader::{ModelReader, written_since};
use super::sections::sections;
use crate::contract::Contracts;
use crate::contract::odoo::Section;
use crate::odoo::{Account, Client, OdooError, Session};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The result of the check for one contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stream of the contract.
    pub stream: String,
    /// Model of the contract, as this Odoo calls it.
    pub model: String,
    /// Why the model cannot be read; `None` if it can.
    pub problem: Option<String>,
    /// Fields that do not exist or are not readable for this account.
    pub missing: Vec<String>,
    /// Fields that Odoo computes at each read. The gateway does not read them.
    pub not_stored: Vec<String>,
    /// What else is not read, or read otherwise than the contract says.
    pub remarks: Vec<String>,
    /// Whether the account may also write the model: a right that the gateway does not need.
    pub may_write: bool,
}

/// The result of the check for one Odoo.
#[derive(Clone, Debug)]
pub struct Report {
    /// Version, protocol and account.
    pub session: Session,
    /// Language, companies and key of the account.
    pub account: Account,
    /// One finding for each contract.
    pub findings: Vec<Finding>,
}

/// Checks everything that the contracts read from an Odoo. Returns an error only for a fault that concerns all contracts.
pub async fn check(config: &Config, contracts: &Contracts) -> Result<Report, OdooError> {
    let client = Arc::new(config.client().map_err(OdooError::NotOdoo)?);
    let session = client.session().await?;
    if session.is_administrator && !config.administrator {
        return Err(OdooError::Denied(ADMINISTRATOR.into()));
    }
    let account = client.account().await?;
    let mut findings = Vec::new();
    for (contract, section) in sections(contracts, &config.name) {
        let mut reader = ModelReader::new(
            Arc::clone(&client),
            section.clone(),
            config.language.clone(),
            &contract.publication.surroundings.gateway,
        );
        let problem = match try_all(&mut reader, &account, section).await {
            Ok(()) => None,
            Err(error @ OdooError::Refused { .. }) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let may_write = problem.is_none() && may_write(&client, reader.model(), session.version).await?;
        let fields = reader.fields().cloned().unwrap_or_default();
        findings.push(Finding {
            stream: contract.stream().to_owned(),
            model: reader.model().to_owned(),
            problem,
            missing: fields.missing,
            not_stored: fields.not_stored,
            remarks: reader.faults(),
            may_write,
        });
    }
    Ok(Report { session, account, findings })
}

/// Makes every call that a capture makes, for few records.
async fn try_all(reader: &mut ModelReader, account: &Account, section: &Section) -> Result<(), OdooError> {
    reader.learn(account).await?;
    let now = reader.server_seconds().await?;
    let recent = section.recent.map(|recent| now - i64::try_from(recent.0.as_secs()).unwrap_or(i64::MAX));
    let load = reader.load_conditions(recent);
    reader.count(load.clone()).await?;
    let found = reader.search(load, 1).await?;
    // A page of a poll, with the newest records, and one record of the first load.
    reader.page(vec![written_since(now), json!(["id", ">", 0])]).await?;
    let mut rows = reader.page(vec![json!(["id", "in", found])]).await?.rows;
    reader.add_linked(&mut rows).await?;
    // Neither exists.
    reader.absences(&[i64::from(i32::MAX) - 1, i64::from(i32::MAX)]).await?;
    Ok(())
}

/// Whether the account may write a model. Odoo 18 renamed the method.
async fn may_write(client: &Client, model: &str, version: u32) -> Result<bool, OdooError> {
    let (method, ids, arguments) = if version >= 18 {
        ("has_access", Some(&[][..]), json!({"operation": "write"}))
    } else {
        ("check_access_rights", None, json!({"operation": "write", "raise_exception": false}))
    };
    let arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
    match client.call(model, method, ids, arguments).await {
        Ok(answer) => Ok(answer.value == Value::Bool(true)),
        Err(OdooError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
