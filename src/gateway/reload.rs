//! Reload: puts another configuration in force while the gateway runs.
//!
//! Promise: a reload checks the whole configuration before it changes anything; a configuration with an error changes
//! nothing. Files are read and ports of new sources are bound before any part stops. A reload loses no event that was
//! acknowledged or is in flight.

use super::destinations::{Destination, DestinationChange, DestinationSpec};
use super::part::Part;
use super::sources::{OpenedSource, PreparedSettings, Source, SourceDigest, SourceSpec};
use super::{Services, stop_part};
use crate::admin::{Configured, Handles, ReloadBy, ReloadOrder, Reloaded, View};
use crate::clock;
use crate::config::{Config, Digests};
use crate::contract::{Contract, Sender};
use crate::event::Timestamp;
use crate::journal::{DONE, Journal};
use crate::runtime::spawn_blocking;
use crate::security::{Cause, Report};
use crate::setting::Problem;
use crate::watch::Board;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Lines about changes or errors that audit and central get at most; the log has all.
const REPORTED_LINES_MAX: usize = 20;
/// Interval at which configuration files are polled. A reload starts once two polls in a row see the same state.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// All running parts and the configuration in force. It reloads them and stops them in order.
pub(super) struct Supervisor {
    pub services: Arc<Services>,
    pub handles: Arc<Handles>,
    pub config: Config,
    /// Digests of the configuration that was read last, in force or refused: its files are polled.
    pub watched: Digests,
    pub contracts: Vec<Arc<Contract>>,
    pub configured: Configured,
    pub sources: Vec<Source>,
    pub destinations: Vec<Destination>,
    pub watch: Option<(Part, Arc<Board>)>,
    pub ledger: Part,
    pub helpers: Vec<Part>,
    pub command_socket: Part,
}

/// Problems of the contracts of a configuration with the versions in force.
pub(super) fn contract_problems(journal: &Journal, config: &Config) -> Vec<Problem> {
    let in_force: Vec<_> = journal.publications().iter().map(|known| known.publication.clone()).collect();
    config.contracts.check_against(&in_force)
}

impl Supervisor {
    /// Reloads on request and when files change, until `stopped` fires; then stops everything.
    pub async fn run(mut self, mut requests: mpsc::Receiver<ReloadOrder>, mut stopped: oneshot::Receiver<()>) {
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_force = self.stamp().await;
        let mut last = in_force;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                Some((by, answer)) = requests.recv() => {
                    in_force = self.stamp().await;
                    last = in_force;
                    // The requester may have disconnected.
                    let _ = answer.send(self.reload(by).await);
                }
                _ = poll.tick() => {
                    let stamp = self.stamp().await;
                    let is_quiet = std::mem::replace(&mut last, stamp) == stamp;
                    if stamp != in_force && is_quiet {
                        tracing::debug!("configuration files have changed; reloading");
                        in_force = stamp;
                        // The result is in log and status.
                        let _ = self.reload(ReloadBy::Files).await;
                    }
                }
            }
        }
        self.stop().await;
    }

    async fn stamp(&self) -> u64 {
        let digests = self.watched.clone();
        spawn_blocking(move || digests.stamp()).await.unwrap_or_default()
    }

    /// Reads the configuration and puts it in force. Returns the changes, or the problems of the new configuration.
    async fn reload(&mut self, by: ReloadBy) -> Reloaded {
        let file = self.config.file.clone();
        let loaded = spawn_blocking(move || Config::load(&file)).await;
        let reloaded = match loaded {
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

    /// Writes changes or problems, with the user, to the audit and the security events. A file whose content did not
    /// change is not reported.
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
            self.services.security.report(&Report {
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
        let (journal, user) = (Arc::clone(&self.services.journal), by.user());
        let audited = spawn_blocking(move || journal.audit("reload", user, &detail, result)).await;
        if let Ok(Err(error)) = audited {
            tracing::error!(%error, result, "could not write the audit entry of this reload");
        }
    }

    async fn apply(&mut self, mut config: Config) -> Reloaded {
        let mut problems = self.immutable_changes(&config);
        problems.extend(contract_problems(&self.services.journal, &config));
        if !problems.is_empty() {
            return Err(problems);
        }
        let wanted: Vec<_> =
            SourceSpec::take(&mut config).into_iter().map(|wanted| (wanted.digest(&config), wanted)).collect();
        let contracts: Vec<_> = config.contracts.iter().cloned().collect();
        // First the steps that may fail: reading files, binding ports. Nothing changes until all of them succeed.
        let (mut prepared, mut opened) = (BTreeMap::new(), Vec::new());
        let mut steps = Vec::new();
        for (digest, wanted) in wanted.into_iter() {
            let name = wanted.name().to_owned();
            let known =
                self.sources.iter().find(|source| source.handle.name == name && source.handle.kind == wanted.kind());
            let step = match known {
                Some(known) if known.digest == digest => {
                    steps.push((name, SourceChange::Keep));
                    continue;
                }
                Some(known) => known.prepare(&wanted).map(|ready| match ready {
                    Some(ready) => {
                        prepared.insert(name.clone(), (ready, digest));
                        SourceChange::Keep
                    }
                    None => SourceChange::Replace(Box::new(wanted), digest),
                }),
                None => self.services.open_source(wanted, digest, &contracts).map(|source| {
                    opened.push(source);
                    SourceChange::New
                }),
            };
            match step {
                Ok(step) => steps.push((name, step)),
                Err(error) => problems.push(config.document.problem(format!("source {name}"), format!("{error:#}"))),
            }
        }
        if !problems.is_empty() {
            for (name, _) in steps.iter().filter(|(_, step)| matches!(step, SourceChange::New)) {
                self.services.mirrors.remove(name);
            }
            return Err(problems);
        }
        let changes = self.changes(&config, &contracts);
        if let Err(problem) = self.put_contracts_in_force(&mut config).await {
            return Err(vec![problem]);
        }
        self.services.budget.set_limit(config.memory);
        let mut failures = self.change_destinations(&config).await;
        failures.extend(self.change_sources(steps, prepared, opened, &contracts).await);
        failures.extend(self.change_helpers(&config).await);
        self.contracts = contracts;
        self.config = config;
        // A part that passed the checks but does not start is reported; all other changes are in force.
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        Ok(changes.into_iter().chain(failures).collect())
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
    fn changes(&self, new: &Config, contracts: &[Arc<Contract>]) -> Vec<String> {
        let mut changes = self.config.document.differences(&new.document);
        let versions = |contracts: &[Arc<Contract>]| -> BTreeMap<String, String> {
            contracts.iter().map(|one| (one.publication.stream_id(), one.publication.version.clone())).collect()
        };
        let (before, now) = (versions(&self.contracts), versions(contracts));
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

    async fn put_contracts_in_force(&mut self, config: &mut Config) -> Result<(), Problem> {
        let (journal, ingest) = (Arc::clone(&self.services.journal), Arc::clone(&self.services.ingest));
        let (contracts, key) = (std::mem::take(&mut config.contracts), std::mem::take(&mut config.mask_key));
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

    /// Applies another configuration to the destinations. Returns one line per failure.
    async fn change_destinations(&mut self, config: &Config) -> Vec<String> {
        let mut wanted: BTreeMap<String, DestinationSpec> =
            DestinationSpec::of(config).into_iter().map(|wanted| (wanted.config.name.clone(), wanted)).collect();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for mut destination in self.destinations.drain(..) {
            match wanted.remove(destination.name()) {
                Some(same) if destination.change(&same) == DestinationChange::Unchanged => kept.push(destination),
                Some(new) if destination.change(&new) == DestinationChange::NewCredentials => {
                    destination.rotate_credentials(new);
                    kept.push(destination);
                }
                Some(new) => {
                    wanted.insert(destination.name().to_owned(), new);
                    gone.push(destination);
                }
                None => gone.push(destination),
            }
        }
        gone.iter().for_each(Destination::begin_stop);
        for destination in gone {
            destination.stop().await;
        }
        self.destinations = kept;
        let mut failures = Vec::new();
        for wanted in wanted.into_values() {
            let name = wanted.config.name.clone();
            match self.services.start_destination(wanted) {
                Ok(destination) => self.destinations.push(destination),
                Err(error) => failures.push(format!("destination {name} does not start: {error:#}")),
            }
        }
        failures
    }

    /// Changes, adds and removes sources. Returns one line per failure.
    async fn change_sources(
        &mut self,
        steps: Vec<(String, SourceChange)>,
        mut prepared: BTreeMap<String, (PreparedSettings, SourceDigest)>,
        opened: Vec<OpenedSource>,
        contracts: &[Arc<Contract>],
    ) -> Vec<String> {
        let (mut kept, mut gone, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
        let mut steps: BTreeMap<String, SourceChange> = steps.into_iter().collect();
        for mut source in self.sources.drain(..) {
            match steps.remove(&source.handle.name) {
                Some(SourceChange::Keep) => {
                    match prepared.remove(&source.handle.name) {
                        Some((ready, digest)) => source.apply(ready, digest),
                        // Rights depend on the contracts too.
                        None => source.judge_again(),
                    }
                    kept.push(source);
                }
                Some(SourceChange::Replace(wanted, digest)) => {
                    replaced.push((*wanted, digest));
                    gone.push(source);
                }
                Some(SourceChange::New) | None => gone.push(source),
            }
        }
        gone.iter().for_each(Source::begin_stop);
        for source in gone {
            self.services.mirrors.remove(&source.handle.name);
            source.stop().await;
        }
        self.sources = kept;
        let mut failures = Vec::new();
        let reopened = replaced.into_iter().map(|(wanted, digest)| {
            let name = wanted.name().to_owned();
            (name, self.services.open_source(wanted, digest, contracts))
        });
        let all: Vec<_> = opened.into_iter().map(|opened| (String::new(), Ok(opened))).chain(reopened).collect();
        for (name, opened) in all {
            match opened.and_then(|opened| self.services.start_source(opened)) {
                Ok(source) => self.sources.push(source),
                Err(error) => failures.push(format!("source {name} does not start: {error:#}")),
            }
        }
        failures
    }

    /// Restarts watch and ledger where their settings differ. Returns one line per failure.
    async fn change_helpers(&mut self, new: &Config) -> Vec<String> {
        let mut failures = Vec::new();
        if format!("{:?}", self.config.watch) != format!("{:?}", new.watch) {
            if let Some((part, _)) = self.watch.take() {
                stop_part("watch", part).await;
            }
            match new.watch.clone().map(|watch| self.services.start_watch(watch)).transpose() {
                Ok(watch) => self.watch = watch,
                Err(error) => failures.push(format!("the watch does not start: {error:#}")),
            }
        }
        if self.config.ledger_period != new.ledger_period {
            match self.services.start_ledger(new.ledger_period) {
                Ok(ledger) => stop_part("ledger", std::mem::replace(&mut self.ledger, ledger)).await,
                Err(error) => failures.push(format!("the ledger does not start: {error:#}")),
            }
        }
        failures
    }

    /// Publishes the running parts to the admin socket.
    pub fn publish_view(&self) {
        self.handles.view.store(Arc::new(View {
            sources: self.sources.iter().map(|source| source.handle.clone()).collect(),
            links: self.destinations.iter().flat_map(|destination| destination.links.clone()).collect(),
            board: self.watch.as_ref().map(|(_, board)| Arc::clone(board)),
            monitoring: self.config.monitoring,
            monitoring_hosts: self.config.monitoring_hosts.clone(),
            certificates: self.config.certificates.clone(),
            revocations: self.config.revocations.clone(),
            configured: Some(self.configured.clone()),
        }));
    }

    /// Stops everything: sources first.
    async fn stop(self) {
        self.sources.iter().for_each(Source::begin_stop);
        if let Some((part, _)) = &self.watch {
            part.begin_stop();
        }
        for source in self.sources {
            source.stop().await;
        }
        if let Some((part, _)) = self.watch {
            stop_part("watch", part).await;
        }
        self.ledger.begin_stop();
        self.helpers.iter().for_each(Part::begin_stop);
        for part in self.helpers.into_iter().chain([self.ledger]) {
            stop_part("part", part).await;
        }
        self.destinations.iter().for_each(Destination::begin_stop);
        for destination in self.destinations {
            destination.stop().await;
        }
        stop_part("command socket", self.command_socket).await;
    }
}

/// How a reload affects a source.
enum SourceChange {
    /// The source keeps running, perhaps with other settings.
    Keep,
    /// The source is stopped, then started with other settings.
    Replace(Box<SourceSpec>, SourceDigest),
    /// The source is opened already. It starts once its name is free.
    New,
}
