//! The parts of the running gateway that the command socket and monitoring read and change.

use super::failures::Failures;
use super::reload::Reloading;
use crate::command;
use crate::contract::{GatewayNames, SourceKind};
use crate::event::Timestamp;
use crate::forward;
use crate::forward::meter::Meters;
use crate::forward::replays::Replays;
use crate::ingest::Ingest;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::{BadSelection, Journal, Lane};
use crate::link::Line;
use crate::memory::Budget;
use crate::security::Security;
use crate::sources;
use crate::sources::mqtt::Devices;
use crate::sources::odoo::Mirrors;
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use crate::tls::{CertificateFile, RevocationFile};
use crate::watch::Board;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The services and the state that the admin socket reads and changes.
#[derive(Debug)]
pub struct Handles {
    /// Environment, site and name of this gateway.
    pub surroundings: GatewayNames,
    pub started: Instant,
    pub journal: Arc<Journal>,
    /// Takes in requeued and edited dead letters.
    pub ingest: Arc<Ingest>,
    pub survival: Arc<Survival>,
    /// Status of every dead letter.
    pub fates: Arc<DeadLetterStatuses>,
    pub replays: Arc<Replays>,
    /// Bytes that the destinations have carried.
    pub meters: Arc<Meters>,
    /// Parts that failed, and their restarts.
    pub failures: Arc<Failures>,
    pub security: Arc<Security>,
    pub reloading: Reloading,
    /// The running sources and links; a reload replaces it.
    pub view: ArcSwap<View>,
    pub timekeeper: Arc<Timekeeper>,
    pub monitoring: MonitoringState,
    pub budget: Arc<Budget>,
    /// The known records of the Odoo sources.
    pub mirrors: Mirrors,
    /// Problems of the commands of central.
    pub commands: Arc<command::Board>,
}

/// A running source, as status and metrics show it.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    pub name: String,
    pub kind: SourceKind,
    /// Address it listens on, or the server it reads.
    pub address: String,
    pub stats: Arc<sources::Stats>,
    /// Devices that have connected, if it is an MQTT listener.
    pub devices: Option<Arc<Devices>>,
}

/// A link, as status and metrics show it.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    /// Lane that the link drains.
    pub lane: Arc<Lane>,
    pub destination: String,
    pub stats: Arc<forward::Stats>,
    /// Hours in which the lane is sent; `None` for always.
    pub hours: Option<forward::Hours>,
    /// The line of the destination, which all its links share.
    pub line: Arc<Line>,
    /// The other connections to the destination, with their names; the same for each of its links.
    pub others: [(&'static str, Arc<forward::Stats>); 2],
}

/// The running parts. A reload replaces the whole value.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub sources: Vec<SourceHandle>,
    /// All links: one per lane and destination.
    pub links: Vec<LinkHandle>,
    /// Open business exceptions, if the watch is on.
    pub board: Option<Arc<Board>>,
    /// Address for metrics and health, if monitoring is on.
    pub monitoring: Option<SocketAddr>,
    /// Accepted host names of monitoring requests, in addition to addresses and names without dots.
    pub monitoring_hosts: Vec<String>,
    /// The certificate files in use.
    pub certificates: Vec<CertificateFile>,
    /// The revocation lists in use.
    pub revocations: Vec<RevocationFile>,
    /// Age and refusals of the configuration; `None` while the gateway starts.
    pub configured: Option<Configured>,
}

/// Time of the configuration in force, and of a newer one that was refused.
#[derive(Clone, Debug)]
pub struct Configured {
    /// Time at which it came into force.
    pub at: Timestamp,
    /// Time and reason of the last refusal, if a newer one was refused.
    pub refused: Option<(Timestamp, String)>,
}

impl Configured {
    /// Returns the problem if a newer configuration was refused.
    pub fn problem(&self) -> Option<String> {
        let (when, why) = self.refused.as_ref()?;
        Some(format!("configuration of {when} is refused, that of {} stays in force: {why}", self.at))
    }
}

/// The reason why the monitoring address is not served, if it should be.
#[derive(Debug, Default)]
pub struct MonitoringState(Mutex<Option<String>>);

impl MonitoringState {
    /// Returns why metrics and health are not served, although they are configured.
    pub fn problem(&self) -> Option<String> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, problem: Option<String>) {
        let mut known = self.0.lock();
        if *known != problem {
            problem.iter().for_each(|problem| tracing::error!("{problem}"));
            *known = problem;
        }
    }
}

impl Handles {
    /// Returns an error text with the known destinations if `wanted` is not one of them.
    pub(super) fn unknown_destination(&self, wanted: &str) -> Option<String> {
        let mut names: Vec<_> = self.view.load().links.iter().map(|link| link.destination.clone()).collect();
        names.dedup();
        (!names.iter().any(|name| name == wanted)).then(|| match names.as_slice() {
            [] => format!("there is no destination \"{wanted}\"; none is configured"),
            names => format!("there is no destination \"{wanted}\"; there are {}", names.join(", ")),
        })
    }

    /// Returns an error text with the known streams if `wanted`, with or without version, is not one of them.
    pub(super) fn unknown_stream(&self, wanted: &str) -> Option<String> {
        BadSelection::no_stream(wanted, &self.journal.publications()).map(|bad| bad.to_string())
    }
}
