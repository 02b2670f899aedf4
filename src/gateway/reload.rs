//! Reload: puts another configuration in force while the gateway runs.
//!
//! Promise: a reload checks the whole configuration before it changes anything; a configuration with an error changes
//! nothing. Files are read and ports of new sources are bound before any part stops. A reload loses no event that was
//! acknowledged or is in flight.

use super::component::{Component, ComponentSpec, table};
use super::services::contract_problems;
use super::stop_order::StopOrder;
use super::supervisor::{Supervisor, stop_all};
use crate::admin::{ReloadBy, Reloaded};
use crate::clock;
use crate::config::Config;
use crate::contract::{Contracts, Sender};
use crate::event::Timestamp;
use crate::journal::DONE;
use crate::runtime::{has_spare_descriptors, spawn_blocking};
use crate::security::{Cause, Report};
use crate::setting::Problem;
use crate::sources::Change;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Lines about changes or errors that audit and central get at most; the log has all.
const REPORTED_LINES_MAX: usize = 20;

/// What a reload does with the components. It is complete before anything changes.
#[derive(Default)]
struct Plan {
    /// Components that keep running, each with what puts other settings in force.
    kept: Vec<(ComponentSpec, Option<Change>)>,
    /// Components that are stopped, then opened and started with other settings.
    replaced: Vec<ComponentSpec>,
    /// New components, already open. They start once their names are free.
    added: Vec<Component>,
}

impl Supervisor {
    /// Reads the configuration and puts it in force. Returns the changes, or the problems of the new configuration.
    pub(super) async fn reload(&mut self, by: ReloadBy) -> Reloaded {
        let file = self.config.file.clone();
        let loaded = spawn_blocking(move || has_spare_descriptors().then(|| Config::load(&file))).await;
        let reloaded = match loaded.map(|loaded| loaded.unwrap_or_else(|| Err(vec![self.lacks_descriptors()]))) {
            Ok(Ok(config)) => {
                self.watched = config.digests.clone();
                self.apply(config).await
            }
            Ok(Err(problems)) => Err(problems),
            Err(error) => Err(vec![self.config.document.problem("", format!("cannot be read: {error}"))]),
        };
        match &reloaded {
            Ok(changes) if changes.is_empty() => tracing::debug!("configuration read again; nothing has changed"),
            Ok(changes) => {
                self.configured.at = Timestamp::from(clock::wall());
                tracing::info!(changes = changes.len(), "configuration reloaded and in force");
                changes.iter().for_each(|change| tracing::info!("changed: {change}"));
            }
            Err(problems) => {
                tracing::error!(
                    problems = problems.len(),
                    "the new configuration is refused; the one before stays in force; fix the problems below"
                );
                problems.iter().for_each(|problem| tracing::error!("{problem}"));
            }
        }
        self.configured.refused = reloaded.as_ref().err().map(|problems| {
            let first = problems.first().map(ToString::to_string).unwrap_or_default();
            let more = match problems.len() {
                0 | 1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            (Timestamp::from(clock::wall()), format!("{first}{more}"))
        });
        self.publish_view();
        self.report(by, &reloaded).await;
        reloaded
    }

    fn lacks_descriptors(&self) -> Problem {
        let why = "cannot be read: the file descriptors of the process are used up; close connections, or raise LimitNOFILE= of the unit";
        self.config.document.problem("", why)
    }

    /// Writes changes or problems, with the user, to the audit and the security events. A file whose content did
    /// not change is not reported.
    async fn report(&self, by: ReloadBy, reloaded: &Reloaded) {
        let (lines, result) = match reloaded {
            Ok(changes) if changes.is_empty() && by == ReloadBy::Files => return,
            Ok(changes) => (changes.clone(), DONE),
            Err(problems) => (problems.iter().map(ToString::to_string).collect(), "refused"),
        };
        let user = by.user().map_or_else(String::new, |uid| uid.to_string());
        for line in lines.iter().take(REPORTED_LINES_MAX) {
            let part = line.split(": ").next().unwrap_or_default();
            let reason = if result == DONE { line.clone() } else { format!("refused: {line}") };
            self.services.handles.security.report(&Report {
                cause: Cause::Change,
                source: "configuration",
                address: None,
                sender: Sender { user: &user, ..Sender::default() },
                what: part,
                reason: &reason,
            });
        }
        let reported: Vec<_> = lines.iter().take(REPORTED_LINES_MAX).collect();
        let detail = serde_json::json!({"how": by.name(), "lines": reported, "more": lines.len() - reported.len()});
        let (journal, user) = (Arc::clone(&self.services.handles.journal), by.user());
        let audited = spawn_blocking(move || journal.audit("reload", user, &detail, result)).await;
        if let Ok(Err(error)) = audited {
            tracing::error!(%error, result, "could not write the audit entry of this reload");
        }
    }

    async fn apply(&mut self, mut config: Config) -> Reloaded {
        let mut problems = self.immutable_changes(&config);
        problems.extend(contract_problems(&self.services.handles.journal, &config));
        if !problems.is_empty() {
            return Err(problems);
        }
        // First the steps that may fail: reading files, binding ports. Nothing changes until all of them succeed.
        let mut plan = self.plan(&config)?;
        let changes = self.changes(&config);
        if let Err(problem) = self.put_contracts_in_force(&mut config).await {
            plan.added.iter().for_each(Component::close);
            return Err(vec![problem]);
        }
        self.services.handles.budget.set_limit(config.memory);
        let mut failures = Vec::new();
        for order in [StopOrder::Links, StopOrder::Intake, StopOrder::Helpers] {
            failures.extend(self.change_components(order, &mut plan, &config).await);
        }
        self.config = config;
        // A part that passed the checks but does not start is reported; all other changes are in force.
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        Ok(changes.into_iter().chain(failures).collect())
    }

    /// Compares the components of a configuration with the running ones, and opens and checks what is new.
    fn plan(&self, config: &Config) -> Result<Plan, Vec<Problem>> {
        let (mut plan, mut problems) = (Plan::default(), Vec::new());
        for spec in table(config) {
            let title = spec.to_string();
            let planned = match self.components.iter().find(|component| component.spec.is_same(&spec)) {
                Some(known) if known.spec == spec => {
                    plan.kept.push((spec, None));
                    Ok(())
                }
                Some(known) => known.prepare(&spec).map(|change| match change {
                    Some(change) => plan.kept.push((spec, Some(change))),
                    None => plan.replaced.push(spec),
                }),
                None => spec.open(&self.services, config).map(|component| plan.added.push(component)),
            };
            if let Err(error) = planned {
                problems.push(config.document.problem(title, format!("{error:#}")));
            }
        }
        if problems.is_empty() {
            return Ok(plan);
        }
        plan.added.iter().for_each(Component::close);
        Err(problems)
    }

    /// Changes, removes and adds the components of one stop order. Returns one line per failure.
    async fn change_components(&mut self, order: StopOrder, plan: &mut Plan, config: &Config) -> Vec<String> {
        let (due, mut kept): (Vec<_>, Vec<_>) =
            self.components.drain(..).partition(|component| component.spec.stop_order() == order);
        let mut gone = Vec::new();
        for mut component in due {
            match plan.kept.iter().position(|(spec, _)| spec.is_same(&component.spec)) {
                Some(index) => {
                    let (spec, change) = plan.kept.swap_remove(index);
                    component.apply(spec, change);
                    kept.push(component);
                }
                None => gone.push(component),
            }
        }
        stop_all(gone).await;
        self.components = kept;
        let added = plan.added.extract_if(.., |component| component.spec.stop_order() == order);
        let added: Vec<_> = added.map(|component| (component.spec.to_string(), Ok(component))).collect();
        let replaced = plan.replaced.extract_if(.., |spec| spec.stop_order() == order);
        let reopened: Vec<_> = replaced.map(|spec| (spec.to_string(), spec.open(&self.services, config))).collect();
        let mut failures = Vec::new();
        for (title, opened) in added.into_iter().chain(reopened) {
            match opened.and_then(|component| component.start(&self.services)) {
                Ok(component) => self.components.push(component),
                Err(error) => failures.push(format!("{title} does not start: {error:#}")),
            }
        }
        failures
    }

    /// Problems for changed settings that need a restart of the gateway.
    fn immutable_changes(&self, new: &Config) -> Vec<Problem> {
        let lanes =
            |config: &Config| config.journal.lanes.iter().map(|lane| lane.name.clone()).collect::<Vec<_>>().join(", ");
        let old = &self.config;
        let (before, now) = (&old.surroundings, &new.surroundings);
        let pairs = [
            ("environment", before.environment.clone(), now.environment.clone()),
            ("site", before.site.clone(), now.site.clone()),
            ("name", before.gateway.clone(), now.gateway.clone()),
            ("namespace", before.namespace.clone(), now.namespace.clone()),
            ("data_dir", old.journal.folder.display().to_string(), new.journal.folder.display().to_string()),
            ("socket", old.socket.display().to_string(), new.socket.display().to_string()),
            ("dedupe_memory", old.journal.dedupe_bytes.to_string(), new.journal.dedupe_bytes.to_string()),
            ("last_values", old.last_values.to_string(), new.last_values.to_string()),
            ("lane", lanes(old), lanes(new)),
        ];
        let differs = |(key, old, new): (&str, String, String)| {
            (old != new).then(|| (key.to_owned(), format!("cannot change from \"{old}\" to \"{new}\" while the gateway runs; undo it, or restart the gateway")))
        };
        let found = pairs.into_iter().filter_map(differs);
        found.map(|(key, message)| new.document.problem(key, message)).collect()
    }

    /// Describes the differences from the configuration in force, one line each.
    fn changes(&self, new: &Config) -> Vec<String> {
        let mut changes = self.config.document.differences(&new.document);
        let versions = |contracts: &Contracts| -> BTreeMap<String, String> {
            contracts.iter().map(|one| (one.publication.stream_id(), one.publication.version.clone())).collect()
        };
        let (before, now) = (versions(&self.config.contracts), versions(&new.contracts));
        for stream in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
            match (before.get(stream), now.get(stream)) {
                (Some(old), Some(new)) if old == new => {}
                (Some(old), Some(new)) => changes.push(format!("contract {stream}: {old} → {new}")),
                (Some(_), None) => changes.push(format!("contract {stream}: removed")),
                (None, new) => changes.push(format!("contract {stream}: {}", new.map_or("", String::as_str))),
            }
        }
        for (part, words) in new.digests.changed_files(&self.config.digests) {
            changes.push(format!("{part}: {words}"));
        }
        changes
    }

    async fn put_contracts_in_force(&self, config: &mut Config) -> Result<(), Problem> {
        let (journal, ingest) = (Arc::clone(&self.services.handles.journal), Arc::clone(&self.services.handles.ingest));
        let (contracts, key) = (config.contracts.clone(), std::mem::take(&mut config.mask_key));
        let settings = config.journal.clone();
        let done = spawn_blocking(move || {
            ingest.apply(contracts, key)?;
            journal.change(&settings);
            Ok::<_, crate::journal::JournalError>(())
        });
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                Err(config.document.problem("contracts", format!("cannot be saved in the journal: {error}")))
            }
            Err(error) => Err(config.document.problem("contracts", format!("cannot be put in force: {error}"))),
        }
    }
}
