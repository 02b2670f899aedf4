//! Configuration: one TOML file that joins the settings of all parts and is checked as a whole.
//!
//! Promise: the gateway can start with a configuration that loads. Any other is refused with all its problems at once;
//! each names file, line, key, the offending value and what is allowed.
//!
//! Each part owns its settings and their checks. Here the file is read, joined, and its parts are checked against each
//! other.

mod disk;
mod file;
mod files;
mod lanes;
mod parts;
mod seal;
mod writable;

pub use file::{journal_of, logging_of, names_of, socket_of};
pub use files::Digests;

use crate::contract::{Contracts, GatewayNames};
use crate::forward;
use crate::journal;
use crate::memory;
use crate::secret::Secret;
use crate::setting::{Bytes, Document, Findings, Problem, check_socket_path, check_word};
use crate::sources::SourceConfig;
use crate::tls::{CertificateFile, RevocationFile};
use crate::watch;
use file::File;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The complete configuration after all checks.
#[derive(Debug)]
pub struct Config {
    /// Path of the configuration file.
    pub file: PathBuf,
    /// Environment, site, gateway and namespace: part of every event.
    pub surroundings: GatewayNames,
    /// Settings of the journal: folder, lanes, budgets.
    pub journal: journal::Config,
    /// The contracts of the `contracts` folder, checked against each other.
    pub contracts: Contracts,
    /// Key that masked fields are hashed with; empty if none is set.
    pub mask_key: Secret,
    /// Memory for the last values of all keys, in bytes.
    pub last_values: usize,
    /// Memory limit of the gateway in bytes. Clients may occupy a share of it.
    pub memory: u64,
    pub sources: Vec<SourceConfig>,
    /// Rules of the watch for business exceptions, if it is on.
    pub watch: Option<watch::Config>,
    /// The central systems that events are forwarded to.
    pub destinations: Vec<forward::Config>,
    /// How each lane is sent (batches, rates, hours), by lane name.
    pub sending: BTreeMap<String, forward::Sending>,
    /// Interval at which the ledger is published.
    pub ledger_period: Duration,
    /// Path of the command socket.
    pub socket: PathBuf,
    /// Settings that are allowed but probably not intended.
    pub warnings: Vec<Problem>,
    /// Address that serves metrics and health, if monitoring is on.
    pub monitoring: Option<SocketAddr>,
    /// Host names under which this gateway answers requests for metrics and health.
    pub monitoring_hosts: Vec<String>,
    /// The certificate files in use.
    pub certificates: Vec<CertificateFile>,
    /// The revocation lists in use.
    pub revocations: Vec<RevocationFile>,
    /// The configuration file with its key positions.
    pub document: Document,
    /// Digests of all parts, to find what a later configuration changes.
    pub digests: Digests,
}

impl Config {
    /// Reads and checks a configuration, its contracts and all files that it names. Returns every problem.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let document = Document::read(file).map_err(|problem| vec![problem])?;
        let mut raw: File = document.parse_all().map_err(|problems| -> Vec<_> {
            problems.into_iter().map(|problem| explained(problem, &document)).collect()
        })?;
        let resolve = file::path_resolver(file);
        let socket = raw.socket_path(&resolve);
        let mut found = Findings::new(&document, raw.environment == seal::PRODUCTION);
        seal::check_inline(&mut raw, &mut found);
        files::resolve(&mut raw, &resolve);
        seal::seal_certificates(&mut raw);
        // Before the files are read, so that a change during the reading shows at the next poll.
        let digests = Digests::take(file, &mut raw);
        seal::check_exposure(&mut raw, &mut found);
        writable::check(&mut raw, &socket, &mut found);
        let names = check_names(&raw, &mut found);
        disk::check(&raw, &mut found);
        check_memory(&raw, &mut found);
        let (lanes, mut sending) = lanes::check(&raw, &mut found);
        parts::check_sources(&mut raw, &mut found);
        parts::check_destinations(&raw, (&lanes, &sending), &names, &mut found);
        check_monitoring(&raw, &mut found);
        let mask_key = seal::mask_key(&raw, &mut found);
        if let Err(message) = check_socket_path(&socket) {
            found.problem(if raw.socket.is_some() { "socket" } else { "data_dir" }, message);
        }
        seal::check_journal(&raw, &mut found);
        seal::check_folders(&raw, &socket, &mut found);
        let lane_names: Vec<_> = lanes.iter().map(|lane| lane.name.clone()).collect();
        let has_mask_key = !mask_key.bytes().is_empty();
        let (contracts, contract_warnings) = load_contracts(&raw, &names, &lane_names, has_mask_key, &mut found);
        parts::check_watch(&raw, &contracts, &mut found);
        parts::check_commands(&raw, &contracts, &mut found);
        parts::check_enabled(&raw, &contracts, &mut found);
        lanes::check_order(&mut sending, &contracts, &mut found);
        if found.is_acceptable() {
            parts::warn_of_gaps(&raw, &contracts, &mut found);
            lanes::warn_of_unused(&raw, &contracts, &mut found);
            lanes::warn_of_space(&raw, &lanes, &mut found);
        }
        let (problems, mut warnings) = found.into_lists();
        if !problems.is_empty() {
            return Err(problems);
        }
        warnings.splice(0..0, contract_warnings);
        Ok(Self {
            file: file.to_owned(),
            monitoring: raw.monitoring.as_ref().map(|monitoring| monitoring.listen),
            monitoring_hosts: raw.monitoring.as_ref().map(|monitoring| monitoring.hosts.clone()).unwrap_or_default(),
            certificates: files::certificates(&mut raw),
            revocations: files::revocations(&mut raw),
            surroundings: names,
            journal: journal_config(&raw, lanes),
            contracts,
            mask_key,
            last_values: usize::try_from(raw.last_values.0).unwrap_or(usize::MAX),
            memory: raw.memory.map_or_else(memory::default_limit, |memory| memory.0),
            sources: raw.source.0.into_iter().map(|(_, source)| source).collect(),
            watch: raw.watch,
            destinations: raw.destination,
            sending,
            ledger_period: raw.ledger_period.0,
            socket,
            warnings,
            document,
            digests,
        })
    }
}

/// redb cache of an open segment: a writer needs only the newest pages.
const CACHE_BYTES: usize = 1 << 20;
/// Newest events of a lane kept in memory, for forwarders that keep up.
const TAIL_BYTES: usize = 2 << 20;

fn journal_config(raw: &File, lanes: Vec<journal::LaneConfig>) -> journal::Config {
    journal::Config {
        folder: raw.data_dir.join("journal"),
        lanes,
        dead: raw.dead.lane(disk::disk_bytes(&raw.data_dir)),
        dead_retention: raw.dead.retention.0,
        dedupe_bytes: usize::try_from(raw.dedupe_memory.0).unwrap_or(usize::MAX),
        reserve_bytes: raw.disk_reserve.0,
        cache_bytes: CACHE_BYTES,
        tail_bytes: TAIL_BYTES,
        destinations: raw.destination.iter().map(|to| (to.name.clone(), to.from)).collect(),
    }
}

/// Loads the contracts, and reports their problems. Returns them with their warnings.
fn load_contracts(
    raw: &File,
    names: &GatewayNames,
    lane_names: &[String],
    has_mask_key: bool,
    found: &mut Findings<'_>,
) -> (Contracts, Vec<Problem>) {
    let folder = &raw.contracts;
    if !folder.is_dir() {
        let what = match folder.exists() {
            true => "is no folder",
            false if folder.as_os_str().is_empty() => "\"\" does not exist",
            false => "does not exist",
        };
        let message = format!(
            "{} {what}; it has one file for each stream, and `forebay init` writes a first set",
            folder.display()
        );
        found.problem("contracts", message);
        return Default::default();
    }
    Contracts::load(folder, names, lane_names, has_mask_key, &raw.enable).unwrap_or_else(|problems| {
        problems.into_iter().for_each(|problem| found.add(problem));
        Default::default()
    })
}

/// Extends a parse problem of a `listen` key with the value and the expected form.
fn explained(problem: Problem, document: &Document) -> Problem {
    let problem = seal::explained(problem);
    if !problem.key.ends_with(".listen")
        || ["missing field", "is a date or time"].iter().any(|known| problem.message.contains(known))
    {
        return problem;
    }
    let value = document.value(&problem.key).unwrap_or_else(|| "the value".to_owned());
    let message = format!(
        "{value} is no address to listen on; expected \"address:port\", such as \"0.0.0.0:1883\" or \"[::]:8883\"; a host name is not allowed"
    );
    Problem { message, ..problem }
}

/// Checks the names of the gateway, which are part of every event.
fn check_names(raw: &File, found: &mut Findings<'_>) -> GatewayNames {
    let gateway = seal::gateway_name(raw, found);
    for (key, value) in [("environment", &raw.environment), ("site", &raw.site), ("name", &gateway)] {
        if let Err(message) = check_word(value) {
            found.problem(key, message);
        }
    }
    let (environment, site, namespace) = (raw.environment.clone(), raw.site.clone(), raw.namespace.clone());
    GatewayNames { environment, site, gateway, namespace }
}

fn check_monitoring(raw: &File, found: &mut Findings<'_>) {
    found.note(raw.log.check().map_err(|(key, message)| (format!("log.{key}"), message)));
    let listen = raw.monitoring.as_ref().map(|monitoring| monitoring.listen);
    let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else { return };
    let mut message =
        format!("{listen} is not loopback: anyone who can reach it reads names, counters and states, without TLS");
    if found.is_production() {
        message.push_str("; in environment \"production\" it must be loopback, such as \"127.0.0.1:9110\", behind a proxy or a Prometheus agent");
    }
    found.risk("monitoring.listen", message);
}

fn check_memory(raw: &File, found: &mut Findings<'_>) {
    let Some(memory) = raw.memory else { return };
    let least = Bytes(memory::LIMIT_MIN);
    if memory < least {
        found.problem("memory", format!("{memory} is too little; {least} and more are allowed"));
    }
    if let Some(limit) = memory::cgroup_limit().filter(|limit| *limit < memory.0) {
        let limit = Bytes(limit);
        let message = format!(
            "{memory} is above the {limit} that the control group of this process allows (MemoryMax= of a unit): the kernel may kill the gateway; set memory to {limit} or less"
        );
        found.warning("memory", message);
    }
}
