//! Reload: another configuration comes into force while the gateway runs.
//!
//! Promise: it is checked first and as a whole, and what is wrong leaves everything as it was; what is new stands
//! before the old goes; nothing that was acknowledged or is in flight is lost by it.

use super::outlets::{self, Change, Outlet};
use super::part::Part;
use super::sources::{self, Opened, Prepared, Source};
use super::{Ground, ended};
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

/// Lines of what was changed or refused that the audit and central get; the log has all.
const LINES_TOLD_MAX: usize = 20;
/// The files of the configuration are looked at that often; a change that still goes on is awaited.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Everything that runs, and the configuration that it runs by.
pub(super) struct Works {
    pub ground: Arc<Ground>,
    pub handles: Arc<Handles>,
    pub config: Config,
    /// The files as they were looked at last, whether they are in force or were refused.
    pub watched: Digests,
    pub contracts: Vec<Arc<Contract>>,
    pub configured: Configured,
    pub sources: Vec<Source>,
    pub outlets: Vec<Outlet>,
    pub watch: Option<(Part, Arc<Board>)>,
    pub ledger: Part,
    pub beside: Vec<Part>,
    pub side: Part,
}

/// What stands against the contracts of a configuration, seen from those in force.
pub(super) fn objections(journal: &Journal, config: &Config) -> Vec<Problem> {
    let in_force: Vec<_> = journal.publications().iter().map(|known| known.publication.clone()).collect();
    config.contracts.check_against(&in_force)
}

impl Works {
    /// Reloads when that is asked for or files change, until the order to stop; then stops everything.
    pub async fn run(mut self, mut asked: mpsc::Receiver<ReloadOrder>, mut stopped: oneshot::Receiver<()>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_force = self.stamp().await;
        let mut last = in_force;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                Some((by, answer)) = asked.recv() => {
                    in_force = self.stamp().await;
                    last = in_force;
                    // Whoever asked may be gone.
                    let _ = answer.send(self.reload(by).await);
                }
                _ = look.tick() => {
                    let stamp = self.stamp().await;
                    let is_quiet = std::mem::replace(&mut last, stamp) == stamp;
                    if stamp != in_force && is_quiet {
                        tracing::debug!("files of the configuration have changed");
                        in_force = stamp;
                        // It is told in log and status.
                        let _ = self.reload(ReloadBy::Files).await;
                    }
                }
            }
        }
        self.stop().await;
    }

    async fn stamp(&self) -> u64 {
        let prints = self.watched.clone();
        spawn_blocking(move || prints.stamp()).await.unwrap_or_default()
    }

    /// Reads the configuration anew and puts it in force; says what has changed, or what is wrong with it.
    async fn reload(&mut self, by: ReloadBy) -> Reloaded {
        let file = self.config.file.clone();
        let loaded = spawn_blocking(move || Config::load(&file)).await;
        let reloaded = match loaded {
            Ok(Ok(config)) => {
                self.watched = config.digests.clone();
                self.take_up(config).await
            }
            Ok(Err(problems)) => Err(problems),
            Err(error) => Err(vec![self.config.document.problem("", format!("cannot be read: {error}"))]),
        };
        match &reloaded {
            Ok(changes) if changes.is_empty() => tracing::debug!("the configuration is read anew; nothing has changed"),
            Ok(changes) => {
                self.configured.at = Timestamp::from(clock::wall());
                tracing::info!(changes = changes.len(), "the configuration is in force anew");
                changes.iter().for_each(|change| tracing::info!("changed: {change}"));
            }
            Err(problems) => {
                tracing::error!(
                    problems = problems.len(),
                    "the new configuration is refused; the one before stays in force"
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
        self.show();
        self.write_down(by, &reloaded).await;
        reloaded
    }

    /// Audits and reports what was changed or refused, and by whom. A file that was touched alone is nothing to tell.
    async fn write_down(&self, by: ReloadBy, reloaded: &Reloaded) {
        let (lines, result) = match reloaded {
            Ok(changes) if changes.is_empty() && by == ReloadBy::Files => return,
            Ok(changes) => (changes.clone(), DONE),
            Err(problems) => (problems.iter().map(ToString::to_string).collect(), "refused"),
        };
        let user = by.user().map_or_else(String::new, |uid| uid.to_string());
        for line in lines.iter().take(LINES_TOLD_MAX) {
            let part = line.split(": ").next().unwrap_or_default();
            let reason = if result == DONE { line.clone() } else { format!("refused: {line}") };
            self.ground.security.report(&Report {
                cause: Cause::Change,
                source: "configuration",
                address: None,
                sender: Sender { user: &user, ..Sender::default() },
                what: part,
                reason: &reason,
            });
        }
        let told: Vec<_> = lines.iter().take(LINES_TOLD_MAX).collect();
        let detail = serde_json::json!({"how": by.name(), "lines": told, "more": lines.len() - told.len()});
        let (journal, user) = (Arc::clone(&self.ground.journal), by.user());
        let audited = spawn_blocking(move || journal.audit("reload", user, &detail, result)).await;
        if let Ok(Err(error)) = audited {
            tracing::error!(%error, result, "this reload cannot be audited");
        }
    }

    async fn take_up(&mut self, mut config: Config) -> Reloaded {
        let mut problems = self.fixed(&config);
        problems.extend(objections(&self.ground.journal, &config));
        if !problems.is_empty() {
            return Err(problems);
        }
        let wanted: Vec<_> =
            sources::Wanted::take(&mut config).into_iter().map(|wanted| (wanted.print(&config), wanted)).collect();
        let contracts: Vec<_> = config.contracts.iter().cloned().collect();
        // First what may fail: files are read, ports are taken. Until all of it is there, nothing changes.
        let (mut prepared, mut opened) = (BTreeMap::new(), Vec::new());
        let mut steps = Vec::new();
        for (print, wanted) in wanted.into_iter() {
            let name = wanted.name().to_owned();
            let known =
                self.sources.iter().find(|source| source.handle.name == name && source.handle.kind == wanted.kind());
            let step = match known {
                Some(known) if known.print == print => {
                    steps.push((name, Step::Keep));
                    continue;
                }
                Some(known) => known.prepare(&wanted).map(|ready| match ready {
                    Some(ready) => {
                        prepared.insert(name.clone(), (ready, print));
                        Step::Keep
                    }
                    None => Step::Replace(Box::new(wanted), print),
                }),
                None => self.ground.open_source(wanted, print, &contracts).map(|source| {
                    opened.push(source);
                    Step::New
                }),
            };
            match step {
                Ok(step) => steps.push((name, step)),
                Err(error) => problems.push(config.document.problem(format!("source {name}"), format!("{error:#}"))),
            }
        }
        if !problems.is_empty() {
            for (name, _) in steps.iter().filter(|(_, step)| matches!(step, Step::New)) {
                self.ground.mirrors.remove(name);
            }
            return Err(problems);
        }
        let changes = self.changes(&config, &contracts);
        if let Err(problem) = self.put_contracts_in_force(&mut config).await {
            return Err(vec![problem]);
        }
        self.ground.budget.set_limit(config.memory);
        let mut failures = self.change_outlets(&config).await;
        failures.extend(self.change_sources(steps, prepared, opened, &contracts).await);
        failures.extend(self.change_beside(&config).await);
        self.contracts = contracts;
        self.config = config;
        // What was checked and does not start all the same is told; what else has changed is in force.
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        Ok(changes.into_iter().chain(failures).collect())
    }

    /// What cannot change while the gateway runs.
    fn fixed(&self, new: &Config) -> Vec<Problem> {
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

    /// What is otherwise than before, in words.
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
        let (journal, ingest) = (Arc::clone(&self.ground.journal), Arc::clone(&self.ground.ingest));
        let (contracts, key) = (std::mem::take(&mut config.contracts), std::mem::take(&mut config.mask_key));
        let settings = config.journal.clone();
        let done = spawn_blocking(move || {
            ingest.put_in_force(contracts, key)?;
            journal.change(&settings);
            Ok::<_, crate::journal::JournalError>(())
        });
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(config.document.problem("contracts", format!("cannot be written down: {error}"))),
            Err(error) => Err(config.document.problem("contracts", format!("cannot be put in force: {error}"))),
        }
    }

    /// Serves the destinations as another configuration says; returns what failed.
    async fn change_outlets(&mut self, config: &Config) -> Vec<String> {
        let mut wanted: BTreeMap<String, outlets::Wanted> =
            outlets::Wanted::of(config).into_iter().map(|wanted| (wanted.config.name.clone(), wanted)).collect();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for mut outlet in self.outlets.drain(..) {
            match wanted.remove(outlet.name()) {
                Some(same) if outlet.change(&same) == Change::Nothing => kept.push(outlet),
                Some(new) if outlet.change(&new) == Change::Renew => {
                    outlet.renew(new);
                    kept.push(outlet);
                }
                Some(new) => {
                    wanted.insert(outlet.name().to_owned(), new);
                    gone.push(outlet);
                }
                None => gone.push(outlet),
            }
        }
        gone.iter().for_each(Outlet::begin_stop);
        for outlet in gone {
            outlet.ended().await;
        }
        self.outlets = kept;
        let mut failures = Vec::new();
        for wanted in wanted.into_values() {
            let name = wanted.config.name.clone();
            match self.ground.start_outlet(wanted) {
                Ok(outlet) => self.outlets.push(outlet),
                Err(error) => failures.push(format!("destination {name} does not start: {error:#}")),
            }
        }
        failures
    }

    /// Changes, adds and removes sources; returns what failed.
    async fn change_sources(
        &mut self,
        steps: Vec<(String, Step)>,
        mut prepared: BTreeMap<String, (Prepared, sources::Print)>,
        opened: Vec<Opened>,
        contracts: &[Arc<Contract>],
    ) -> Vec<String> {
        let (mut kept, mut gone, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
        let mut steps: BTreeMap<String, Step> = steps.into_iter().collect();
        for mut source in self.sources.drain(..) {
            match steps.remove(&source.handle.name) {
                Some(Step::Keep) => {
                    match prepared.remove(&source.handle.name) {
                        Some((ready, print)) => source.put_in_force(ready, print),
                        // Rights follow from the contracts too.
                        None => source.judge_again(),
                    }
                    kept.push(source);
                }
                Some(Step::Replace(wanted, print)) => {
                    replaced.push((*wanted, print));
                    gone.push(source);
                }
                Some(Step::New) | None => gone.push(source),
            }
        }
        gone.iter().for_each(Source::begin_stop);
        for source in gone {
            self.ground.mirrors.remove(&source.handle.name);
            source.ended().await;
        }
        self.sources = kept;
        let mut failures = Vec::new();
        let reopened = replaced.into_iter().map(|(wanted, print)| {
            let name = wanted.name().to_owned();
            (name, self.ground.open_source(wanted, print, contracts))
        });
        let all: Vec<_> = opened.into_iter().map(|opened| (String::new(), Ok(opened))).chain(reopened).collect();
        for (name, opened) in all {
            match opened.and_then(|opened| self.ground.start_source(opened)) {
                Ok(source) => self.sources.push(source),
                Err(error) => failures.push(format!("source {name} does not start: {error:#}")),
            }
        }
        failures
    }

    /// Changes the watch and the ledger; returns what failed.
    async fn change_beside(&mut self, new: &Config) -> Vec<String> {
        let mut failures = Vec::new();
        if format!("{:?}", self.config.watch) != format!("{:?}", new.watch) {
            if let Some((part, _)) = self.watch.take() {
                ended("watch", part).await;
            }
            match new.watch.clone().map(|watch| self.ground.start_watch(watch)).transpose() {
                Ok(watch) => self.watch = watch,
                Err(error) => failures.push(format!("the watch does not start: {error:#}")),
            }
        }
        if self.config.ledger_period != new.ledger_period {
            match self.ground.start_ledger(new.ledger_period) {
                Ok(ledger) => ended("ledger", std::mem::replace(&mut self.ledger, ledger)).await,
                Err(error) => failures.push(format!("the ledger does not start: {error:#}")),
            }
        }
        failures
    }

    /// Shows what runs now.
    pub fn show(&self) {
        self.handles.view.store(Arc::new(View {
            sources: self.sources.iter().map(|source| source.handle.clone()).collect(),
            links: self.outlets.iter().flat_map(|outlet| outlet.links.clone()).collect(),
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
            source.ended().await;
        }
        if let Some((part, _)) = self.watch {
            ended("watch", part).await;
        }
        self.ledger.begin_stop();
        self.beside.iter().for_each(Part::begin_stop);
        for part in self.beside.into_iter().chain([self.ledger]) {
            ended("part", part).await;
        }
        self.outlets.iter().for_each(Outlet::begin_stop);
        for outlet in self.outlets {
            outlet.ended().await;
        }
        ended("command socket", self.side).await;
    }
}

/// What becomes of a source.
enum Step {
    /// It stays, perhaps with other settings.
    Keep,
    /// It is stopped, and started with other settings.
    Replace(Box<sources::Wanted>, sources::Print),
    /// It is there already, under a name that is free or gets free.
    New,
}
