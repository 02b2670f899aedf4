//! Automation rules in Odoo that post to the hook: installs one rule per model and trigger, and removes them.
//!
//! Promise: installing twice has the effect of installing once, and removing deletes only rules that were installed here.
//! The caller supplies an administrator's key; the gateway never stores it.

use super::{Config, sections};
use crate::contract::Contracts;
use crate::odoo::{Client, OdooError};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// One automation rule to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Model whose changes trigger the rule.
    pub model: String,
    /// Name of the action and of the rule in Odoo.
    pub name: String,
    /// URL that Odoo posts to, including the token.
    pub url: String,
    trigger: &'static str,
}

/// Returns the rules that a source needs. `gateway` is part of their names, so that several gateways can share an Odoo.
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

/// Returns instructions to install the same rules by hand.
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
            "\nand add to each the action \"Send Webhook Notification\" with the URL below and no fields:\n\n  {}\n\nThe last part of the URL is a secret. Hints only make the gateway read a record earlier; without them it polls.\n",
            plan.url
        ));
    }
    out
}

/// Installs the rules; replaces earlier ones of the same names. Returns their number.
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

/// Removes the rules and actions with these names; returns the number of rules removed.
pub async fn remove(client: &Client, plans: &[Plan]) -> Result<usize, OdooError> {
    let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
    let mut removed = 0;
    // Rules first: Odoo does not delete an action that a rule uses.
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
