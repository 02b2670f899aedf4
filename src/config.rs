//! Configuration: one TOML file that joins the settings of all parts and is checked as a whole.
//!
//! Promise: the gateway can start with a configuration that loads. Any other is refused with all its problems at once;
//! each names file, line, key, the offending value and what is allowed.

mod destinations;
mod files;
mod lanes;
mod odoo_checks;
mod rights;
mod seal;
mod writable;

pub use files::{Digest, Digests};

use crate::contract::{Contracts, GatewayNames, Sender, SourceKind};
use crate::forward;
use crate::journal;
use crate::link::Address;
use crate::memory;
use crate::mqtt::Filter;
use crate::secret::{self, Secret};
use crate::setting::{Bytes, Document, Problem, Span, check_socket_path};
use crate::sources::{broker, http, modbus, mqtt, odoo};
use crate::telemetry::Logging;
use crate::tls::{self, CertificateFile, RevocationFile};
use crate::watch;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    environment: String,
    site: String,
    name: Option<String>,
    #[serde(default = "namespace")]
    namespace: String,
    #[serde(default = "data_dir")]
    data_dir: PathBuf,
    #[serde(default = "contracts")]
    contracts: PathBuf,
    socket: Option<PathBuf>,
    mask_key: Option<PathBuf>,
    #[serde(default)]
    sealed_certificates: bool,
    #[serde(default = "disk_reserve")]
    disk_reserve: Bytes,
    #[serde(default = "dedupe_memory")]
    dedupe_memory: Bytes,
    #[serde(default = "last_values")]
    last_values: Bytes,
    memory: Option<Bytes>,
    #[serde(default)]
    source: Sources,
    #[serde(default)]
    destination: Vec<forward::Config>,
    #[serde(default)]
    lane: BTreeMap<String, lanes::Lane>,
    #[serde(default)]
    dead: lanes::Dead,
    #[serde(default = "ledger_period")]
    ledger_period: Span,
    watch: Option<watch::Config>,
    monitoring: Option<Monitoring>,
    #[serde(default)]
    log: Logging,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sources {
    #[serde(default)]
    mqtt: Vec<mqtt::Config>,
    #[serde(default)]
    http: Vec<http::Config>,
    #[serde(default)]
    broker: Vec<broker::Config>,
    #[serde(default)]
    modbus: Vec<modbus::Config>,
    #[serde(default)]
    odoo: Vec<odoo::Config>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitoring {
    #[serde(default = "monitoring_listen")]
    listen: SocketAddr,
    #[serde(default)]
    hosts: Vec<String>,
}

fn monitoring_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9110))
}
fn namespace() -> String {
    "com.example".into()
}
fn data_dir() -> PathBuf {
    "/var/lib/forebay".into()
}
fn contracts() -> PathBuf {
    "contracts".into()
}
fn ledger_period() -> Span {
    Span(Duration::from_secs(300))
}
fn disk_reserve() -> Bytes {
    Bytes(64 << 20)
}
/// 8 MiB hold about 390,000 ids.
fn dedupe_memory() -> Bytes {
    Bytes(8 << 20)
}

/// 8 MiB hold the small events of about 15,000 keys.
fn last_values() -> Bytes {
    Bytes(8 << 20)
}

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
    /// The MQTT listeners.
    pub listeners: Vec<mqtt::Config>,
    /// The HTTP sources.
    pub servers: Vec<http::Config>,
    /// The plant brokers that the gateway subscribes to.
    pub brokers: Vec<broker::Config>,
    /// The Modbus buses, with their device tables.
    pub buses: Vec<(modbus::Config, modbus::Ready)>,
    /// The Odoo servers that the gateway reads.
    pub odoos: Vec<odoo::Config>,
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

/// Returns the socket path of a configuration without checking the rest: the gateway may run with an earlier, valid
/// version of it.
pub fn socket_of(file: &Path) -> Result<PathBuf, Problem> {
    let document = Document::read(file)?;
    match document.parse::<File>() {
        Ok(raw) => Ok(socket_path(&raw, &path_resolver(file))),
        Err(problem) => {
            let resolve = path_resolver(file);
            let named = document.value_without_parsing("socket").map(|socket| resolve(Path::new(&socket)));
            let default =
                || Some(resolve(Path::new(&document.value_without_parsing("data_dir")?)).join("forebay.sock"));
            named.or_else(default).ok_or(problem)
        }
    }
}

/// Returns the log settings of a configuration without checking the rest. Returns the default if they cannot be read;
/// [`Config::load`] reports that problem.
pub fn logging_of(file: &Path) -> Logging {
    let raw = Document::read(file).and_then(|document| document.parse::<File>());
    raw.map(|raw| raw.log).ok().filter(|log| log.check().is_ok()).unwrap_or_default()
}

/// Returns the journal folder of a configuration without checking the rest.
pub fn journal_of(file: &Path) -> Result<PathBuf, Problem> {
    let document = Document::read(file)?;
    let raw: File = document.parse()?;
    Ok(path_resolver(file)(&raw.data_dir).join("journal"))
}

fn socket_path(raw: &File, resolve: &impl Fn(&Path) -> PathBuf) -> PathBuf {
    raw.socket.as_deref().map_or_else(|| resolve(&raw.data_dir).join("forebay.sock"), resolve)
}

/// Returns a function that resolves paths relative to the configuration file, and names of credentials.
fn path_resolver(file: &Path) -> impl Fn(&Path) -> PathBuf + use<> {
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_owned);
    move |path: &Path| secret::place(&folder, path)
}

impl Config {
    /// Reads and checks a configuration, its contracts and all files that it names. Returns every problem.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let document = Document::read(file).map_err(|problem| vec![problem])?;
        let mut raw: File = document.parse_all().map_err(|problems| -> Vec<_> {
            problems.into_iter().map(|problem| explained(problem, &document)).collect()
        })?;
        let resolve = path_resolver(file);
        let socket = socket_path(&raw, &resolve);
        let (mut problems, mut own_warnings) = (Vec::new(), Vec::new());
        seal::check_inline(&mut raw, &document, &mut problems);
        files::resolve(&mut raw, &resolve);
        seal::seal_certificates(&mut raw);
        let digests = Digests::take(file, &mut raw);
        seal::check_exposure(&mut raw, &document, &mut problems, &mut own_warnings);
        writable::check(&mut raw, &socket, &document, &mut problems, &mut own_warnings);
        let host = rustix::system::uname();
        let name = raw.name.clone().unwrap_or_else(|| host.nodename().to_string_lossy().into_owned());
        for (key, value) in [("environment", &raw.environment), ("site", &raw.site), ("name", &name)] {
            if let Err(message) = check_word(value) {
                problems.push(document.problem(key, message));
            }
        }
        check_disk(&raw, &document, &mut problems);
        check_memory(&raw, &document, &mut problems, &mut own_warnings);
        let (lanes, sending) = lanes::check(&raw, &document, &mut problems);
        check_sources(&raw, &document, &mut problems);
        check_brokers(&raw, &document, &mut problems, &mut own_warnings);
        destinations::check(&raw, &document, &mut problems);
        let buses = check_buses(&raw, &document, &mut problems);
        odoo_checks::check_odoos(&raw, &document, &mut problems, &mut own_warnings);
        check_monitoring(&raw, &document, &mut problems, &mut own_warnings);
        let mask_key = seal::mask_key(&raw, &document, &mut problems);
        if let Err(message) = check_socket_path(&socket) {
            let key = if raw.socket.is_some() { "socket" } else { "data_dir" };
            problems.push(document.problem(key, message));
        }
        seal::check_journal(&raw, &document, &mut problems);
        seal::check_folders(&raw, &socket, &document, &mut problems, &mut own_warnings);
        let surroundings = GatewayNames {
            environment: raw.environment.clone(),
            site: raw.site.clone(),
            gateway: name,
            namespace: raw.namespace.clone(),
        };
        let lane_names: Vec<_> = lanes.iter().map(|lane| lane.name.clone()).collect();
        let loaded = Contracts::load(&raw.contracts, &surroundings, &lane_names, !mask_key.bytes().is_empty());
        let (contracts, mut warnings) = loaded.unwrap_or_else(|found| {
            problems.extend(found);
            Default::default()
        });
        odoo_checks::check_watch(&raw, &document, &contracts, &mut problems, &mut own_warnings);
        warnings.extend(own_warnings);
        lanes::check_order(&sending, &contracts, &document, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        warnings.extend(doubts(&raw, &document, &contracts));
        warnings.extend(rights::doubts(&raw, &document, &contracts));
        lanes::doubt_room(&raw, &lanes, &document, &mut warnings);
        warnings.extend(unmatched_groups(&buses, &document, &contracts));
        Ok(Self {
            file: file.to_owned(),
            monitoring: raw.monitoring.as_ref().map(|monitoring| monitoring.listen),
            monitoring_hosts: raw.monitoring.as_ref().map(|monitoring| monitoring.hosts.clone()).unwrap_or_default(),
            certificates: files::certificates(&mut raw),
            revocations: files::revocations(&raw),
            surroundings,
            journal: journal::Config {
                folder: raw.data_dir.join("journal"),
                lanes,
                dead: raw.dead.lane(disk_bytes(&raw.data_dir)),
                dead_retention: raw.dead.retention.0,
                dedupe_bytes: usize::try_from(raw.dedupe_memory.0).unwrap_or(usize::MAX),
                reserve_bytes: raw.disk_reserve.0,
                cache_bytes: CACHE_BYTES,
                tail_bytes: TAIL_BYTES,
                destinations: raw.destination.iter().map(|to| (to.name.clone(), to.from)).collect(),
            },
            contracts,
            mask_key,
            last_values: usize::try_from(raw.last_values.0).unwrap_or(usize::MAX),
            memory: raw.memory.map_or_else(memory::default_limit, |memory| memory.0),
            listeners: raw.source.mqtt,
            servers: raw.source.http,
            brokers: raw.source.broker,
            buses,
            odoos: raw.source.odoo,
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

/// Extends a parse problem of a `listen` key with the value and the expected form.
fn explained(problem: Problem, document: &Document) -> Problem {
    let problem = seal::explained(problem);
    if !problem.key.ends_with(".listen") || problem.message.contains("missing field") {
        return problem;
    }
    let value = document.value(&problem.key).unwrap_or_default();
    let message = format!(
        "{value} is no address to listen on; expected \"address:port\", such as \"0.0.0.0:1883\" or \"[::]:8883\"; a host name is not allowed"
    );
    Problem { message, ..problem }
}

fn check_monitoring(raw: &File, document: &Document, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    if let Err((key, message)) = raw.log.check() {
        problems.push(document.problem(format!("log.{key}"), message));
    }
    let Some(monitoring) = &raw.monitoring else { return };
    if monitoring.listen.ip().is_loopback() {
        return;
    }
    let listen = monitoring.listen;
    let message =
        format!("{listen} is not loopback: anyone who can reach it reads names, counters and states, without TLS");
    match raw.environment == "production" {
        true => problems.push(document.problem(
            "monitoring.listen",
            format!("{message}; in environment \"production\" it must be loopback, such as \"127.0.0.1:9110\", behind a proxy or a Prometheus agent"),
        )),
        false => warnings.push(document.problem("monitoring.listen", message)),
    }
}

fn check_disk(raw: &File, document: &Document, problems: &mut Vec<Problem>) {
    if document.value("data_dir").is_some_and(|value| value == "\"\"") {
        problems.push(document.problem("data_dir", "\"\" is no folder; expected one such as \"/var/lib/forebay\""));
        return;
    }
    // The start creates the folder itself.
    let Some(nearest) = raw.data_dir.ancestors().find(|folder| folder.exists() || *folder == Path::new("")) else {
        return;
    };
    let nearest = if nearest == Path::new("") { Path::new(".") } else { nearest };
    if !nearest.is_dir() {
        problems.push(document.problem(
            "data_dir",
            format!("\"{}\" cannot be a folder: {} is a file", raw.data_dir.display(), nearest.display()),
        ));
        return;
    }
    let Some(size) = disk_bytes(&raw.data_dir) else { return };
    if raw.disk_reserve.0 >= size {
        problems.push(document.problem(
            "disk_reserve",
            format!(
                "{} can never be free: the file system of {} has {} in all",
                raw.disk_reserve,
                raw.data_dir.display(),
                Bytes(size)
            ),
        ));
    }
}

fn check_memory(raw: &File, document: &Document, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    let Some(memory) = raw.memory else { return };
    let least = Bytes(memory::LIMIT_MIN);
    if memory < least {
        problems.push(document.problem("memory", format!("{memory} is too little; {least} and more are allowed")));
    }
    if let Some(limit) = memory::cgroup_limit().filter(|limit| *limit < memory.0) {
        let limit = Bytes(limit);
        let message = format!(
            "{memory} is above the {limit} that the control group of this process allows (MemoryMax= of a unit): the kernel may kill the gateway; set memory to {limit} or less"
        );
        warnings.push(document.problem("memory", message));
    }
}

/// Size in bytes of the file system on which a folder is or will be created.
fn disk_bytes(folder: &Path) -> Option<u64> {
    disk(folder).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Bytes of that file system that are free for an unprivileged user.
fn disk_free(folder: &Path) -> Option<u64> {
    disk(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn disk(folder: &Path) -> Option<rustix::fs::StatVfs> {
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(nearest).ok()
}

/// Warnings about settings that are allowed but probably not intended.
fn doubts(raw: &File, document: &Document, contracts: &Contracts) -> Vec<Problem> {
    let mut found = Vec::new();
    if raw.source.names().is_empty() {
        found.push(document.problem("source", "there is none: nothing can come in"));
    }
    if raw.destination.is_empty() {
        found.push(document.problem("destination", "there is none: events are kept, and nothing leaves the gateway"));
    }
    if contracts.iter().next().is_none() {
        let message = format!("{} contains no contract: every event becomes a dead letter", raw.contracts.display());
        found.push(document.problem("contracts", message));
    }
    for name in raw.lane.keys().filter(|name| !lanes::is_built_in(name)) {
        if !contracts.iter().any(|contract| contract.publication.lane == *name) {
            let message = "is an additional lane that no contract names; critical, standard and bulk always exist";
            found.push(document.problem(format!("lane.{name}"), message));
        }
    }
    for (index, source) in raw.source.mqtt.iter().enumerate() {
        let is_readable = source.tls.is_none() && source.passwords.is_some() && !source.listen.ip().is_loopback();
        if is_readable && raw.environment == "production" {
            found.push(document.problem(
                format!("source.mqtt[{index}].passwords"),
                format!(
                    "are sent in plain text to {}: without TLS anyone on the network can read them; set tls",
                    source.listen
                ),
            ));
        }
    }
    found
}

/// Checks a name that becomes part of topics, URIs, client ids and file names.
fn check_word(word: &str) -> Result<(), String> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !word.is_empty() && word.len() <= 64 && word.bytes().all(is_good) {
        Ok(())
    } else {
        Err(format!("\"{word}\" is no name; 1 to 64 letters, digits, \"-\", \"_\" and \".\" are allowed"))
    }
}

impl Sources {
    /// Returns the name of every source with its configuration key.
    fn names(&self) -> Vec<(String, &str)> {
        let keyed = |kind: &'static str| move |(index, name)| (format!("source.{kind}[{index}].name"), name);
        let mqtt = self.mqtt.iter().map(|source| source.name.as_str()).enumerate().map(keyed("mqtt"));
        let http = self.http.iter().map(|source| source.name.as_str()).enumerate().map(keyed("http"));
        let broker = self.broker.iter().map(|source| source.name.as_str()).enumerate().map(keyed("broker"));
        let modbus = self.modbus.iter().map(|source| source.name.as_str()).enumerate().map(keyed("modbus"));
        let odoo = self.odoo.iter().map(|source| source.name.as_str()).enumerate().map(keyed("odoo"));
        mqtt.chain(http).chain(broker).chain(modbus).chain(odoo).collect()
    }
}

fn check_sources(raw: &File, document: &Document, problems: &mut Vec<Problem>) {
    let names = raw.source.names();
    for (index, (key, name)) in names.iter().enumerate() {
        if let Err(message) = check_word(name) {
            problems.push(document.problem(key, message));
        }
        if names[..index].iter().any(|(_, other)| other == name) {
            problems.push(document.problem(key, format!("\"{name}\" is taken by another source; names are unique")));
        }
    }
    check_servers(raw, document, problems);
    for (index, source) in raw.source.mqtt.iter().enumerate() {
        let key = |part: &str| format!("source.mqtt[{index}].{part}");
        let before = &raw.source.mqtt[..index];
        if source.listen.port() != 0 && before.iter().any(|other| other.listen == source.listen) {
            problems.push(document.problem(key("listen"), format!("{} is taken by a source above", source.listen)));
        }
        if let Err((part, message)) = source.check() {
            problems.push(document.problem(key(part), message));
        }
        for (rule, acl) in source.acl.iter().enumerate() {
            if let Err((part, message)) = acl.check() {
                problems.push(document.problem(key(&format!("acl[{rule}].{part}")), message));
            }
        }
        if source.anonymous == Some(true) && !source.listen.ip().is_loopback() && raw.environment == "production" {
            problems.push(document.problem(
                key("anonymous"),
                "true off loopback is not allowed in environment \"production\"; set passwords or tls.client_ca",
            ));
        }
        if source.lets_in_nobody() {
            problems.push(document.problem(
                key("listen"),
                format!(
                    "{} is not loopback and nobody could log in; set passwords, tls.client_ca, or anonymous = true",
                    source.listen
                ),
            ));
        }
        if let Some(files) = &source.tls
            && let Err(error) = tls::server(files)
        {
            problems.push(document.problem(key("tls"), error.to_string()));
        }
        if let Some(file) = &source.passwords
            && let Err(error) = mqtt::Users::load(file)
        {
            problems.push(document.problem(key("passwords"), error.to_string()));
        }
    }
}

fn check_servers(raw: &File, document: &Document, problems: &mut Vec<Problem>) {
    for (index, source) in raw.source.http.iter().enumerate() {
        let key = |part: &str| format!("source.http[{index}].{part}");
        let before = raw.source.http[..index].iter().map(|other| other.listen);
        let mut others = before.chain(raw.source.mqtt.iter().map(|other| other.listen));
        if source.listen.port() != 0 && others.any(|other| other == source.listen) {
            problems.push(document.problem(key("listen"), format!("{} is taken by another source", source.listen)));
        }
        if let Err((part, message)) = source.check() {
            problems.push(document.problem(key(part), message));
        }
        let is_exposed = !source.listen.ip().is_loopback() && raw.environment == "production";
        if is_exposed && source.anonymous == Some(true) {
            problems.push(document.problem(
                key("anonymous"),
                "true off loopback is not allowed in environment \"production\"; set tokens or tls.client_ca",
            ));
        }
        if is_exposed && source.tokens.is_some() && source.tls.is_none() {
            problems.push(document.problem(
                key("tokens"),
                "bearer tokens without TLS are not allowed off loopback in environment \"production\"; set tls",
            ));
        }
        if source.lets_in_nobody() {
            problems.push(document.problem(
                key("listen"),
                format!("{} lets nobody in; set tokens, tls.client_ca, or anonymous = true", source.listen),
            ));
        }
        if let Err(error) = source.server() {
            problems.push(document.problem(key("tls"), error.to_string()));
        }
        if let Some(file) = &source.tokens
            && let Err(error) = http::Tokens::load(file)
        {
            problems.push(document.problem(key("tokens"), error.to_string()));
        }
    }
}

fn check_brokers(raw: &File, document: &Document, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    for (index, source) in raw.source.broker.iter().enumerate() {
        let key = |part: &str| format!("source.broker[{index}].{part}");
        if let Err((part, message)) = source.check() {
            problems.push(document.problem(key(part), message));
        }
        if let Some((filter, other)) = source.overlap() {
            warnings.push(document.problem(
                key("topics"),
                format!("\"{filter}\" and \"{other}\" overlap: the broker may send messages that match both twice"),
            ));
        }
        let address = Address::parse(&source.url);
        match &address {
            Err(message) => problems.push(document.problem(key("url"), message)),
            Ok(address) if address.is_tls => {
                if let Err(error) = tls::client(&source.tls) {
                    problems.push(document.problem(key("tls"), error.to_string()));
                }
            }
            // A warning only: the operator often cannot change the plant broker.
            Ok(address) if raw.environment == "production" && !is_local(&address.host) => {
                warnings.push(document.problem(
                    key("url"),
                    format!(
                        "\"{}\" is without TLS: anyone on the network path can read everything, including the password",
                        source.url
                    ),
                ));
            }
            Ok(_) => {}
        }
        if source.user.is_some() != source.password_file.is_some() {
            problems.push(document.problem(key("user"), "user and password_file go together; one of them is missing"));
        }
        if let Some(file) = &source.password_file
            && let Err(error) = Secret::read(file)
        {
            problems.push(document.problem(key("password_file"), error.to_string()));
        }
        if let Some(filter) = feeds_itself(raw, source) {
            problems.push(document.problem(
                key("topics"),
                format!(
                    "\"{filter}\" matches what the gateway itself publishes there ({}/{}/…), so every event would return as a new one; subscribe to narrower topics",
                    raw.environment, raw.site
                ),
            ));
        }
        if let Some(client) = &source.client
            && raw.source.broker[..index]
                .iter()
                .any(|other| other.client.as_ref() == Some(client) && other.url == source.url)
        {
            problems.push(document.problem(
                key("client"),
                format!("\"{client}\" is taken by a source above at the same broker; each would disconnect the other"),
            ));
        }
    }
}

/// Checks the Modbus buses and their device tables. Returns the valid ones.
fn check_buses(raw: &File, document: &Document, problems: &mut Vec<Problem>) -> Vec<(modbus::Config, modbus::Ready)> {
    let mut ready = Vec::new();
    for (index, source) in raw.source.modbus.iter().enumerate() {
        let before = raw.source.modbus[..index].iter();
        if before.map(|other| &other.url).any(|url| *url == source.url && url.starts_with("rtu:")) {
            problems.push(document.problem(
                format!("source.modbus[{index}].url"),
                format!("\"{}\" is taken by a source above; a serial port has one owner", source.url),
            ));
        }
        match source.ready(|key, message| document.problem(format!("source.modbus[{index}].{key}"), message)) {
            Ok(loaded) => ready.push((source.clone(), loaded)),
            // Several buses may share a table: report its problems once.
            Err(found) => found.into_iter().for_each(|problem| {
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }),
        }
    }
    ready
}

/// Warns about register groups whose events match no contract: one warning per bus.
fn unmatched_groups(
    buses: &[(modbus::Config, modbus::Ready)],
    document: &Document,
    contracts: &Contracts,
) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, (bus, ready)) in buses.iter().enumerate() {
        let topics = bus.units.iter().zip(&ready.devices).flat_map(|(unit, device)| {
            device.groups.iter().map(move |group| (format!("{}/{}", unit.name, group.name), unit, device))
        });
        let mut unmatched = topics.filter(|(topic, unit, device)| {
            let is_lost = |topic: &str| {
                contracts
                    .find(SourceKind::Modbus, &bus.name, topic, Sender { client: &unit.name, ..Sender::default() })
                    .is_none()
            };
            // Single points may have their own contracts.
            is_lost(topic) && device.points.iter().all(|point| is_lost(&format!("{topic}/{}", point.name)))
        });
        if let Some((topic, ..)) = unmatched.next() {
            let more = match unmatched.count() {
                0 => String::new(),
                more => format!(", nor {more} more groups"),
            };
            found.push(document.problem(
                format!("source.modbus[{index}]"),
                format!("no contract matches \"{topic}\"{more}: the events become dead letters"),
            ));
        }
    }
    found
}

/// Returns the filter of a source that would receive events which a destination publishes at the same broker.
fn feeds_itself<'a>(raw: &File, source: &'a broker::Config) -> Option<&'a String> {
    let address = Address::parse(&source.url).ok()?;
    let leads_there = |to: &forward::Config| to.url.0.iter().any(|url| Address::parse(url).as_ref() == Ok(&address));
    if !raw.destination.iter().any(leads_there) {
        return None;
    }
    let own = Filter::parse(&format!("{}/{}/#", raw.environment, raw.site))?;
    source.topics.iter().find(|filter| Filter::parse(filter).is_some_and(|filter| own.overlaps(&filter)))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
