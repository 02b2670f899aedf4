//! The helpers: the parts of a gateway that neither read devices nor send events out.

use super::part::{PartFactory, PartSpec};
use super::services::Services;
use super::stop_order::StopOrder;
use crate::admin;
use crate::command::{self, Commands};
use crate::config::Config;
use crate::ledger::Ledger;
use crate::local::Local;
use crate::security::SecurityReporter;
use crate::shutdown::Shutdown;
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use crate::watch::{self, Board, Watch};
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, PartialEq)]
pub(super) enum Helper {
    Timekeeper,
    SurvivalClock,
    LastValues,
    Ledger(Duration),
    SecurityEvents,
    Watch(watch::Config),
    Commands(Box<command::Config>),
    Monitoring,
    CommandSocket(PathBuf),
}

impl Helper {
    /// The helpers of a configuration, in the order in which they start.
    pub(super) fn of(config: &Config) -> Vec<Self> {
        let always = [
            Self::Timekeeper,
            Self::SurvivalClock,
            Self::LastValues,
            Self::Ledger(config.ledger_period),
            Self::SecurityEvents,
        ];
        let watch = config.watch.clone().map(Self::Watch);
        let last = [Self::Monitoring, Self::CommandSocket(config.socket.clone())];
        always.into_iter().chain(watch).chain(commands_of(config)).chain(last).collect()
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Timekeeper => "timekeeper",
            Self::SurvivalClock => "survival clock",
            Self::LastValues => "last values",
            Self::Ledger(_) => "ledger",
            Self::SecurityEvents => "security events",
            Self::Watch(_) => "watch",
            Self::Commands(_) => "commands",
            Self::Monitoring => "monitoring",
            Self::CommandSocket(_) => "command socket",
        }
    }

    pub(super) fn stop_order(&self) -> StopOrder {
        match self {
            // They hand in events.
            Self::Watch(_) | Self::Commands(_) => StopOrder::Intake,
            Self::CommandSocket(_) => StopOrder::CommandSocket,
            _ => StopOrder::Helpers,
        }
    }

    /// Opens the helper. Also returns the board of the watch.
    pub(super) fn open(&self, services: &Services) -> anyhow::Result<(PartSpec, Option<Arc<Board>>)> {
        let handles = &services.handles;
        let mut board = None;
        let make = match self {
            Self::Timekeeper => shared(&handles.timekeeper, Timekeeper::run),
            Self::SurvivalClock => shared(&handles.survival, Survival::run),
            Self::LastValues => shared(&services.local, Local::run),
            Self::Ledger(period) => ledger(services, *period),
            Self::SecurityEvents => security_events(services),
            Self::Watch(config) => {
                let (make, shown) = watch(services, config.clone())?;
                board = Some(shown);
                make
            }
            Self::Commands(config) => commands(services, config.as_ref().clone()),
            Self::Monitoring => shared(handles, admin::monitor),
            Self::CommandSocket(path) => command_socket(services, path.clone()),
        };
        Ok((PartSpec::new(self.name().to_owned(), make), board))
    }
}

/// Runs a service that other parts use too.
fn shared<T, F>(service: &Arc<T>, run: impl Fn(Arc<T>, Shutdown) -> F + Send + Sync + 'static) -> PartFactory
where
    T: Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let service = Arc::clone(service);
    Box::new(move |shutdown| Ok(Box::pin(run(Arc::clone(&service), shutdown))))
}

fn ledger(services: &Services, period: Duration) -> PartFactory {
    let handles = Arc::clone(&services.handles);
    Box::new(move |shutdown| {
        let (journal, fates) = (Arc::clone(&handles.journal), Arc::clone(&handles.fates));
        let ledger = Ledger::open(journal, fates, handles.surroundings.clone(), period)?;
        Ok(Box::pin(ledger.run(shutdown)))
    })
}

fn security_events(services: &Services) -> PartFactory {
    let handles = Arc::clone(&services.handles);
    Box::new(move |shutdown| {
        let (security, journal) = (Arc::clone(&handles.security), Arc::clone(&handles.journal));
        let reporter = SecurityReporter::open(security, journal, &handles.surroundings)?;
        Ok(Box::pin(reporter.run(shutdown)))
    })
}

fn command_socket(services: &Services, path: PathBuf) -> PartFactory {
    let handles = Arc::clone(&services.handles);
    Box::new(move |shutdown| {
        let socket = admin::listen(&path).with_context(|| format!("the command socket {}", path.display()))?;
        Ok(Box::pin(admin::serve(socket, Arc::clone(&handles), shutdown)))
    })
}

/// The commands of the destination that sends some.
fn commands_of(config: &Config) -> Option<Helper> {
    let destination = config.destinations.iter().find(|to| to.commands)?;
    let files = [config.digests.of("contracts"), config.digests.of(&format!("destination {}", destination.name))];
    Some(Helper::Commands(Box::new(command::Config {
        destination: destination.clone(),
        contracts: config.contracts.commands().to_vec(),
        files,
    })))
}

fn commands(services: &Services, config: command::Config) -> PartFactory {
    let (handles, local) = (Arc::clone(&services.handles), Arc::clone(&services.local));
    Box::new(move |shutdown| {
        let (journal, around) = (&handles.journal, &handles.surroundings);
        let opened = Commands::open(&config, around, journal, &local, &handles.commands);
        let opened = opened.map_err(anyhow::Error::msg).context("commands")?;
        Ok(Box::pin(opened.run(shutdown)))
    })
}

/// Opens the watch. After a restart the new one publishes to the same board.
fn watch(services: &Services, config: watch::Config) -> anyhow::Result<(PartFactory, Arc<Board>)> {
    let (ingest, local) = (Arc::clone(&services.handles.ingest), Arc::clone(&services.local));
    let (notes, mirrors) = (services.handles.journal.notes("watch"), services.handles.mirrors.clone());
    let open =
        move || Watch::open(config.clone(), mirrors.clone(), Arc::clone(&ingest), Arc::clone(&local), notes.clone());
    let first = open()?;
    let board = first.board();
    let shown = Arc::clone(&board);
    let mut first = Some(first);
    let make: PartFactory = Box::new(move |shutdown| {
        let watch = first.take().map_or_else(|| open().map(|watch| watch.shown_on(Arc::clone(&shown))), Ok)?;
        Ok(Box::pin(watch.run(shutdown)))
    });
    Ok((make, board))
}
