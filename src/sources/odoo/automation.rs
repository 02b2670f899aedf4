//! Setting up Odoo so that it hints at changes: an automation for each model that posts to the hook.
//!
//! Promise: setting up twice is the same as once, and removing takes away nothing but what was set up.
//! It takes an administrator's key, once; the gateway never keeps it.

use super::{Config, sections};
use crate::contract::Contracts;
use crate::odoo::{Client, OdooError};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// One model to be hinted at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The model.
    pub model: String,
    /// What action and automation are called in Odoo.
    pub name: String,
    /// Where Odoo posts to, with the token.
    pub url: String,
    trigger: &'static str,
}

/// What is to be set up for a source. `gateway` tells several gateways apart.
pub fn plans(config: &Config, contracts: &Contracts, gateway: &str) -> Result<Vec<Plan>, String> {
    let hook = config
        .hook
        .as_ref()
        .ok_or_else(|| format!("source \"{}\" has no hook; set hook.listen and hook.token_file", config.name))?;
    let base = hook
        .url
        .as_ref()
        .ok_or("how Odoo reaches the hook is not known; set hook.url, such as \"https://gw-01.plant:8444\"")?;
    let url = format!("{}/odoo/hook/{}", base.trim_end_matches('/'), hook.token()?.as_str());
    let models: BTreeSet<&str> = sections(contracts, &config.name).map(|(_, section)| section.model.as_str()).collect();
    let mut plans = Vec::new();
    for model in models {
        for (trigger, word) in [("on_create_or_write", "changed"), ("on_unlink", "deleted")] {
            plans.push(Plan {
                model: model.to_owned(),
                name: format!("Forebay {gateway}: {model} {word}"),
                url: url.clone(),
                trigger,
            });
        }
    }
    Ok(plans)
}

/// What a person does in Odoo to set the same up by hand.
pub fn steps(plans: &[Plan]) -> String {
    let mut out = String::from(
        "In Odoo, as an administrator with developer mode on, under Settings > Technical > Automation Rules,\nmake one rule for each line (module base_automation):\n\n",
    );
    for plan in plans {
        let trigger = if plan.trigger == "on_unlink" { "On deletion" } else { "On create and edit" };
        out.push_str(&format!("  {}\n    model {}, trigger \"{trigger}\"\n", plan.name, plan.model));
    }
    if let Some(plan) = plans.first() {
        out.push_str(&format!(
            "\nand add to each the action \"Send Webhook Notification\" with the URL below and no fields:\n\n  {}\n\nThe last part of the URL is a secret. Hints only make the gateway look sooner; without them it polls.\n",
            plan.url
        ));
    }
    out
}

/// Sets up what is planned, in place of what was set up under the same names.
pub async fn install(client: &Client, plans: &[Plan]) -> Result<usize, OdooError> {
    remove(client, plans).await?;
    for plan in plans {
        let model =
            call(client, "ir.model", "search", None, json!({"domain": [["model", "=", plan.model]], "limit": 1}))
                .await?;
        let Some(model) = model[0].as_i64() else {
            return Err(OdooError::NotOdoo(format!("there is no model {}; is its module installed?", plan.model)));
        };
        let action = json!({
            "name": plan.name, "model_id": model, "state": "webhook", "webhook_url": plan.url, "usage": "base_automation",
        });
        let action = call(client, "ir.actions.server", "create", None, json!({"vals_list": [action]})).await?;
        let rule = json!({
            "name": plan.name, "model_id": model, "trigger": plan.trigger,
            "action_server_ids": [[6, 0, [action[0]]]],
        });
        call(client, "base.automation", "create", None, json!({"vals_list": [rule]})).await?;
    }
    Ok(plans.len())
}

/// Removes what was set up under these names; returns how many rules there were.
pub async fn remove(client: &Client, plans: &[Plan]) -> Result<usize, OdooError> {
    let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
    let mut removed = 0;
    // Rules first: an action that a rule still has cannot go.
    for model in ["base.automation", "ir.actions.server"] {
        let found = json!({"domain": [["name", "in", names]], "context": {"active_test": false}});
        let found = call(client, model, "search", None, found).await?;
        let ids: Vec<i64> = found.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        if !ids.is_empty() {
            call(client, model, "unlink", Some(&ids), json!({})).await?;
        }
        if model == "base.automation" {
            removed = ids.len();
        }
    }
    Ok(removed)
}

async fn call(
    client: &Client,
    model: &str,
    method: &str,
    ids: Option<&[i64]>,
    arguments: Value,
) -> Result<Value, OdooError> {
    let arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
    Ok(client.call(model, method, ids, arguments).await?.value)
}
