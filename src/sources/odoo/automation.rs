//! Automation rules in Odoo that notify the gateway of changes: installs and removes them.
//!
//! Promise: installing twice has the effect of installing once, and removing deletes only what was installed here. Nothing
//! in a user's request waits for the gateway: a rule notes the change in the outbox and triggers a scheduled action. That
//! action runs in a thread of its own and posts once for all changes so far.
//! The caller supplies an administrator's key; the gateway never stores it.

use super::config::Config;
use super::outbox;
use super::sections::sections;
use crate::contract::Contracts;
use crate::contract::odoo::{Names, Section};
use crate::odoo::{Client, OdooError, Refusal};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The first version with actions that post, and with scheduled actions that can be triggered.
const VERSION_MIN: u32 = 17;
/// The first version in which a scheduled action has no number of calls.
const VERSION_CRON_UNLIMITED: u32 = 18;
/// The first version in which the users of a group are `user_ids`.
const VERSION_GROUP_USER_IDS: u32 = 19;
/// Odoo's own user: a scheduled action of a person ends when that person leaves.
const ROOT_USER: i64 = 1;
/// Days that the outbox keeps a row: the gateway reads it within seconds, or after it was down.
const OUTBOX_DAYS: u32 = 3;

/// A scheduled action that posts to a gateway that hangs takes a second or two; meanwhile Odoo does not remove it.
const CRON_ATTEMPTS: u32 = 10;
const CRON_PAUSE: Duration = Duration::from_secs(1);

/// While users save one after the other, the scheduled action runs a few times a second, not once for each save: each run
/// takes some 20 ms of Odoo's time.
const GATHER_SECONDS: f32 = 0.2;

/// One rule for changes and one for deletions.
const RULES_PER_MODEL: usize = 2;

/// The rules to install for a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// URL that Odoo posts to, including the token.
    pub url: String,
    /// The models whose changes are noted.
    pub models: Vec<HintedModel>,
    /// What the names of everything that is installed begin with; contains the gateway, so that several can share an Odoo.
    prefix: String,
    outbox: String,
}

/// A model whose changes are noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HintedModel {
    names: Names,
    /// Fields whose change is noted.
    fields: Vec<Names>,
    /// Field with the state.
    state: Option<Names>,
}

/// Returns the rules that a source needs.
pub fn plan(config: &Config, contracts: &Contracts, gateway: &str) -> Result<Plan, String> {
    let hook = config
        .hook
        .as_ref()
        .ok_or_else(|| format!("source \"{}\" has no hook; set hook.listen and hook.token_file", config.name))?;
    let base = hook
        .url
        .as_ref()
        .ok_or("how Odoo reaches the hook is not known; set hook.url, such as \"https://gw-01.plant:8444\"")?;
    let url = format!("{}/odoo/hook/{}", base.trim_end_matches('/'), hook.token()?.as_str());
    let mut models: Vec<HintedModel> = Vec::new();
    for (_, section) in sections(contracts, &config.name).filter(|(_, section)| !section.hints.is_empty()) {
        let of = |field: &String| section.fields.iter().find(|names| names.first() == field).cloned();
        let fields: Vec<Names> = section.hints.iter().filter_map(of).collect();
        match models.iter_mut().find(|other| other.names == section.model) {
            Some(other) => other.fields.extend(fields),
            None => models.push(HintedModel { names: section.model.clone(), fields, state: state_of(section) }),
        }
    }
    if models.is_empty() {
        return Err("no contract has odoo.hints, the fields whose change Odoo is to report at once".into());
    }
    Ok(Plan { url, models, prefix: format!("Forebay {gateway}: "), outbox: outbox::model_of(gateway) })
}

fn state_of(section: &Section) -> Option<Names> {
    let state = section.state.as_ref()?;
    section.fields.iter().find(|names| names.first() == state).cloned()
}

impl Plan {
    fn group(&self) -> String {
        format!("{}changes", self.prefix)
    }

    fn cron(&self) -> String {
        format!("{}notify", self.prefix)
    }

    /// Code of a rule. It runs for each changed record; the first of them notes all, and the first rule of a transaction
    /// triggers the scheduled action.
    fn rule_code(&self, state: Option<&str>, cron: i64) -> String {
        let state = state.map_or("False".to_owned(), |field| format!("one.{field}"));
        let (outbox, transaction) = (&self.outbox, outbox::TRANSACTION);
        format!(
            "if record and record.id == records.ids[0]:\n    \
                 env['{outbox}'].sudo().create([{{'x_model': one._name, 'x_record': one.id, 'x_state': {state}, '{transaction}': str(env.cr.now())}} for one in records])\n    \
                 pending = env.cr.postcommit.data\n    \
                 if '{outbox}' not in pending:\n        \
                     pending['{outbox}'] = True\n        \
                     env['ir.cron'].sudo().browse({cron})._trigger()\n"
        )
    }

    /// Code of the scheduled action: waits for the changes that come at once, posts once, and forgets old rows.
    fn cron_code(&self, webhook: i64) -> String {
        format!(
            "time.sleep({GATHER_SECONDS})\n\
             newest = model.search([], order='id desc', limit=1)\n\
             if newest:\n    \
                 env['ir.actions.server'].browse({webhook}).with_context(active_model=model._name, active_id=newest.id, active_ids=newest.ids).run()\n\
             model.search([('create_date', '<', datetime.datetime.now() - datetime.timedelta(days={OUTBOX_DAYS}))], limit=10000).unlink()\n"
        )
    }
}

/// Describes what is installed, for an administrator who wants to know before.
pub fn steps(plan: &Plan) -> String {
    let mut out = format!(
        "`forebay odoo webhook --install` makes these in Odoo {VERSION_MIN} or later (module base_automation), and `--remove` deletes them:\n\n  \
           model {}: a table with the changes, kept for {OUTBOX_DAYS} days; only group \"{}\" may read it\n  \
           scheduled action \"{}\": posts once to the URL below, in a thread of its own\n",
        plan.outbox,
        plan.group(),
        plan.cron()
    );
    for model in &plan.models {
        let fields: Vec<&str> = model.fields.iter().map(Names::first).collect();
        out.push_str(&format!(
            "  automation rules for {}: on create and edit of {}, and on deletion; each adds a row to the table and triggers the scheduled action\n",
            model.names.first(),
            fields.join(", ")
        ));
    }
    out.push_str(&format!(
        "\n  {}\n\nThe last part of the URL is a secret. No user waits for the gateway: without it, only the scheduled action fails.\nHints make the gateway read a record earlier; without them it polls.\n",
        plan.url
    ));
    out
}

/// Installs the rules; replaces earlier ones. `reader` is the user id of the gateway's account. Returns the number of rules.
pub async fn install(client: &Client, plan: &Plan, reader: i64) -> Result<usize, OdooError> {
    let admin = Admin { client };
    let version = client.session().await?.version;
    if version < VERSION_MIN {
        return Err(OdooError::NotOdoo(format!(
            "Odoo {version} has no actions that post; hints need {VERSION_MIN} or later, and without them the gateway polls"
        )));
    }
    remove(client, plan).await?;
    let outbox = admin.make_outbox(plan, version, reader).await?;
    let webhook = json!({
        "name": format!("{}post", plan.prefix), "model_id": outbox, "state": "webhook", "webhook_url": plan.url,
    });
    let webhook = admin.create("ir.actions.server", webhook).await?;
    let mut cron = json!({
        "name": plan.cron(), "model_id": outbox, "state": "code", "code": plan.cron_code(webhook), "user_id": ROOT_USER,
        "interval_number": 1, "interval_type": "days", "active": true,
    });
    if version < VERSION_CRON_UNLIMITED {
        cron["numbercall"] = (-1).into();
    }
    let cron = admin.create("ir.cron", cron).await?;
    let mut rules = 0;
    for model in &plan.models {
        rules += admin.make_rules(plan, model, cron).await?;
    }
    Ok(rules)
}

/// Removes everything that was installed; returns the number of rules removed.
pub async fn remove(client: &Client, plan: &Plan) -> Result<usize, OdooError> {
    let admin = Admin { client };
    let mut rules = 0;
    // Rules first: Odoo does not delete an action that a rule uses.
    for model in ["base.automation", "ir.cron", "ir.actions.server"] {
        let removed = admin.remove_unused(model, &plan.prefix).await?;
        if model == "base.automation" {
            rules = removed;
        }
    }
    let outbox = admin.search("ir.model", json!([["model", "=", plan.outbox]])).await?;
    if !outbox.is_empty() {
        admin.call("ir.model", "unlink", Some(&outbox), json!({})).await?;
    }
    // By its whole name: the group of the account's rights begins with the same words.
    admin.remove_named("res.groups", &plan.group()).await?;
    Ok(rules)
}

/// Calls with an administrator's key.
struct Admin<'a> {
    client: &'a Client,
}

impl Admin<'_> {
    /// Makes the table with the changes, which only the gateway's account may read. Returns its number.
    async fn make_outbox(&self, plan: &Plan, version: u32, reader: i64) -> Result<i64, OdooError> {
        let field = |name: &str, label: &str, kind: &str| json!([0, 0, {"name": name, "field_description": label, "ttype": kind}]);
        let fields = [
            field("x_model", "Model", "char"),
            field("x_record", "Record", "integer"),
            field("x_state", "State", "char"),
            field(outbox::TRANSACTION, "Transaction", "char"),
        ];
        let model = json!({"name": plan.group(), "model": plan.outbox, "field_id": fields});
        let model = self.create("ir.model", model).await?;
        let users = if version >= VERSION_GROUP_USER_IDS { "user_ids" } else { "users" };
        let group = self.create("res.groups", json!({"name": plan.group(), users: [[6, 0, [reader]]]})).await?;
        let access = json!({
            "name": plan.group(), "model_id": model, "group_id": group, "perm_read": true, "perm_write": false,
            "perm_create": false, "perm_unlink": false,
        });
        self.create("ir.model.access", access).await?;
        Ok(model)
    }

    /// Makes the rules of a model that this Odoo has; returns their number.
    async fn make_rules(&self, plan: &Plan, model: &HintedModel, cron: i64) -> Result<usize, OdooError> {
        for name in model.names.all() {
            let Some(number) = self.search("ir.model", json!([["model", "=", name]])).await?.first().copied() else {
                continue;
            };
            let wanted: Vec<&str> = model.fields.iter().chain(&model.state).flat_map(Names::all).collect();
            let described =
                self.call(name, "fields_get", None, json!({"allfields": wanted, "attributes": ["type"]})).await?;
            let has = |field: &str| described.get(field).is_some();
            let state = model.state.as_ref().and_then(|state| state.resolve(has));
            let fields: Vec<&str> = model.fields.iter().filter_map(|field| field.resolve(has)).collect();
            let fields = self.search("ir.model.fields", json!([["model", "=", name], ["name", "in", fields]])).await?;
            let rules = [("on_create_or_write", "changed", state), ("on_unlink", "deleted", None)];
            for (trigger, word, state) in rules {
                let title = format!("{}{name} {word}", plan.prefix);
                let action = json!({
                    "name": title, "model_id": number, "state": "code", "usage": "base_automation",
                    "code": plan.rule_code(state, cron),
                });
                let action = self.create("ir.actions.server", action).await?;
                let mut rule = json!({
                    "name": title, "model_id": number, "trigger": trigger, "action_server_ids": [[6, 0, [action]]],
                });
                if trigger != "on_unlink" {
                    rule["trigger_field_ids"] = json!([[6, 0, fields]]);
                }
                self.create("base.automation", rule).await?;
            }
            return Ok(RULES_PER_MODEL);
        }
        let first = model.names.first();
        match model.names.is_optional {
            true => Ok(0),
            false => Err(OdooError::NotOdoo(format!("there is no model {first}; is its module installed?"))),
        }
    }

    /// The same as `remove_named`; waits for a scheduled action that runs at the moment.
    async fn remove_unused(&self, model: &str, prefix: &str) -> Result<usize, OdooError> {
        let mut attempts = 1;
        loop {
            match self.remove_named(model, prefix).await {
                Err(OdooError::Busy { .. } | OdooError::Refused { why: Refusal::Other, .. })
                    if attempts < CRON_ATTEMPTS =>
                {
                    attempts += 1;
                    tokio::time::sleep(CRON_PAUSE).await;
                }
                removed => return removed,
            }
        }
    }

    async fn remove_named(&self, model: &str, prefix: &str) -> Result<usize, OdooError> {
        let wanted = json!({
            "domain": [["name", "ilike", prefix.trim_end()]], "fields": ["name"], "context": {"active_test": false},
        });
        let found = self.call(model, "search_read", None, wanted).await?;
        let is_ours = |row: &&Value| row["name"].as_str().is_some_and(|name| name.starts_with(prefix));
        let ids: Vec<i64> =
            found.as_array().into_iter().flatten().filter(is_ours).filter_map(|row| row["id"].as_i64()).collect();
        if !ids.is_empty() {
            self.call(model, "unlink", Some(&ids), json!({})).await?;
        }
        Ok(ids.len())
    }

    async fn search(&self, model: &str, domain: Value) -> Result<Vec<i64>, OdooError> {
        let found =
            self.call(model, "search", None, json!({"domain": domain, "context": {"active_test": false}})).await?;
        Ok(found.as_array().into_iter().flatten().filter_map(Value::as_i64).collect())
    }

    async fn create(&self, model: &str, values: Value) -> Result<i64, OdooError> {
        let made = self.call(model, "create", None, json!({"vals_list": [values]})).await?;
        let made = made.get(0).unwrap_or(&made).as_i64();
        made.ok_or_else(|| OdooError::NotOdoo(format!("{model}/create: Odoo returned no number")))
    }

    async fn call(&self, model: &str, method: &str, ids: Option<&[i64]>, arguments: Value) -> Result<Value, OdooError> {
        let arguments: Map<String, Value> = arguments.as_object().cloned().unwrap_or_default();
        Ok(self.client.call(model, method, ids, arguments).await?.value)
    }
}
