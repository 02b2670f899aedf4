//! The admin socket: HTTP over a Unix socket, for the command line.
//!
//! Promise: the mode of the socket file decides who may connect; a request that changes something is refused unless the
//! audit can name its user; every change is audited.

mod caller;
pub(crate) mod certificates;
pub mod dead;
mod failures;
mod health;
pub mod journal;
mod letters;
mod metrics;
mod monitoring;
mod reload;
pub mod replay;
mod rows;
mod socket;
pub mod time;

pub use failures::{Failure, Failures};
pub use health::Health;
pub use letters::Letter;
pub use monitoring::{MonitoringState, monitor};
pub use reload::{Configured, ReloadBy, ReloadOrder, Reloaded, Reloading, View};
pub use socket::listen;

use crate::api::{
    Backlog, Balance, DeadLetterCounts, DedupeStatus, LaneStatus, LinkStatus, MemoryUsage, SourceStatus,
    SparkplugStatus, Status, TailEvent,
};
use crate::clock;
use crate::contract::{GatewayNames, Sender, SourceKind};
use crate::event::{Content, Record, Timestamp, push_path_segment};
use crate::forward;
use crate::forward::again::Replays;
use crate::http::{self, BodySender, ConnectionLimit, ConnectionSlot, Phase, Reply};
use crate::ingest::Ingest;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::{BEGUN, Condition, DONE, Follower, Journal, JournalError, Lane, Note, ReadResult};
use crate::ledger;
use crate::memory::Budget;
use crate::runtime::spawn_blocking;
use crate::security::{Cause, Report, Security};
use crate::setting::{self, check_socket_path, grouped};
use crate::shutdown::Shutdown;
use crate::sources;
use crate::sources::mqtt::Devices;
use crate::survival::Survival;
use crate::timekeeper::Timekeeper;
use arc_swap::ArcSwap;
use base64::Engine;
use caller::Caller;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// The services and the state that the admin socket reads and changes.
#[derive(Debug)]
pub struct Handles {
    /// Environment, site and name of this gateway.
    pub surroundings: GatewayNames,
    /// Start of the process.
    pub started: Instant,
    /// All lanes and dead letters.
    pub journal: Arc<Journal>,
    /// Takes in requeued and edited dead letters.
    pub ingest: Arc<Ingest>,
    /// Forecasts how long disk and lanes last.
    pub survival: Arc<Survival>,
    /// Status of every dead letter.
    pub fates: Arc<DeadLetterStatuses>,
    /// Running and finished replays.
    pub replays: Arc<Replays>,
    /// Parts that failed, and their restarts.
    pub failures: Arc<Failures>,
    /// Counts and reports security events.
    pub security: Arc<Security>,
    /// Requests reloads.
    pub reloading: Reloading,
    /// The running sources and links; a reload replaces it.
    pub view: ArcSwap<View>,
    /// Decides whether the clock is trusted.
    pub timekeeper: Arc<Timekeeper>,
    /// Whether the monitoring address could be bound.
    pub monitoring: MonitoringState,
    /// Memory that peers occupy.
    pub budget: Arc<Budget>,
}

/// A running source, as status and metrics show it.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    /// Name in the configuration.
    pub name: String,
    /// Kind of the source, such as MQTT or Modbus.
    pub kind: SourceKind,
    /// Address it listens on, or the server it reads.
    pub address: String,
    /// Counters of the source.
    pub stats: Arc<sources::Stats>,
    /// Devices that have connected, if it is an MQTT listener.
    pub devices: Option<Arc<Devices>>,
}

/// A link, as status and metrics show it.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    /// Lane that the link drains.
    pub lane: Arc<Lane>,
    /// Name of the destination.
    pub destination: String,
    /// Counters of the link.
    pub stats: Arc<forward::Stats>,
}

impl Handles {
    /// Returns the status. Computes the balances of the ledger.
    pub fn status(&self) -> Status {
        self.status_by(&ledger::balances(&self.journal, &self.fates))
    }

    /// Like [`Handles::status`], with balances that the caller already has.
    fn status_by(&self, balances: &[Balance]) -> Status {
        let mut problems = Vec::new();
        let mut lanes = Vec::new();
        for lane in self.journal.lanes() {
            let mut status = lane.status();
            for to in &mut status.destinations {
                to.oldest = oldest(lane, to).map(|at| at.to_string());
            }
            if let (None, Condition::Full(why)) = (&status.problem, self.ingest.condition_of(lane)) {
                status.problem = Some(why);
            }
            problems.extend(status.problem.iter().map(|why| format!("lane {}: {why}", lane.name)));
            lanes.push(status);
        }
        if let Ok(room) = self.journal.disk_room()
            && room.is_tight()
        {
            let (free, reserve) = (setting::Bytes(room.free), setting::Bytes(room.reserve));
            problems.push(format!(
                "disk: {free} are free, and disk_reserve is {reserve}: delivered events are deleted before their retention ends, then lanes with full = \"shed-oldest\" shed events"
            ));
        }
        let dead = self.journal.dead().status();
        let dead_full = match self.ingest.condition_of(self.journal.dead()) {
            Condition::Full(why) if dead.problem.is_none() => Some(why),
            _ => None,
        };
        problems.extend(dead.problem.iter().chain(&dead_full).map(|why| format!("dead letters: {why}")));
        let view = self.view.load_full();
        problems.extend(view.configured.as_ref().and_then(Configured::problem));
        problems.extend(self.failures.problems());
        let links: Vec<_> = view.links.iter().map(LinkHandle::status).collect();
        for link in links.iter().filter(|link| !link.is_up) {
            let reason = link.reason.as_deref().unwrap_or("not connected yet");
            problems.push(format!("link {}/{}: {reason}", link.destination, link.lane));
        }
        problems.extend(balances.iter().filter_map(Balance::imbalance).map(|text| format!("ledger: {text}")));
        let set_aside: Vec<_> = self.journal.set_aside().iter().map(|file| file.display().to_string()).collect();
        problems.extend(set_aside.iter().map(|file| format!("damaged file set aside: {file}")));
        for source in &view.sources {
            problems.extend(source.stats.problem().map(|why| format!("source {}: {why}", source.name)));
        }
        problems.extend(self.monitoring.problem());
        let mut notes = notes(&lanes, &links, dead.accepted);
        certificates::check_certificates(&view.certificates, &mut problems, &mut notes);
        certificates::check_revocations(&view.revocations, &mut problems, &mut notes);
        notes.extend(self.removed_with_backlog(&lanes));
        notes.extend(tight_memory(self.budget.usage()));
        let audit = self.journal.audit_usage();
        if audit.removed > 0 {
            notes.push(format!(
                "audit: it is full with {} entries, and the {} oldest were deleted since the start; export it regularly: `forebay audit --limit 10000 --json`",
                grouped(audit.held),
                grouped(audit.removed)
            ));
        }
        for source in &view.sources {
            notes.extend(source.stats.notes().iter().map(|note| format!("source {}: {note}", source.name)));
        }
        let clock = time::status();
        problems.extend(clock.problem());
        let (ids, ids_max, complete_since) = self.journal.window();
        let all = self.journal.lanes().iter();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            environment: self.surroundings.environment.clone(),
            site: self.surroundings.site.clone(),
            name: self.surroundings.gateway.clone(),
            uptime_seconds: clock::instant().duration_since(self.started).as_secs(),
            configured: view.configured.as_ref().map(|configured| configured.at.to_string()),
            problems,
            notes,
            lanes,
            links,
            sources: view.sources.iter().map(SourceHandle::status).collect(),
            dead: DeadLetterCounts {
                total: dead.accepted,
                unmatched: self.ingest.stats.unmatched.value(),
                violations: self.ingest.stats.violations.value(),
            },
            repeats: DedupeStatus {
                duplicates: all.clone().map(|lane| lane.stats.duplicates.value()).sum(),
                id_conflicts: all.map(|lane| lane.stats.id_conflicts.value()).sum(),
                ids,
                ids_max,
                complete_since: complete_since.map(|at| at.to_string()),
            },
            set_aside,
            clock,
            outlooks: self.survival.outlooks(),
            flash_bytes_per_day: self.survival.flash_bytes_per_day(),
            memory: self.budget.usage(),
            sparkplug: self.ingest.sparkplug().map(|sparkplug| SparkplugStatus {
                nodes: sparkplug.node_count(),
                bytes: sparkplug.bytes(),
                forgotten: sparkplug.stats.forgotten.value(),
                gaps: sparkplug.stats.gaps.value(),
                refused: sparkplug.stats.refused.value(),
                rebirths_asked: sparkplug.stats.asked.value(),
            }),
        }
    }

    /// Notes about removed destinations and lanes that still have undelivered events.
    fn removed_with_backlog(&self, lanes: &[LaneStatus]) -> Vec<String> {
        let view = self.view.load_full();
        let is_configured = |name: &str| view.links.iter().any(|link| link.destination == name);
        let names = self.journal.destinations().into_iter().filter(|name| !is_configured(name));
        let note = |name: String| {
            let owed: u64 = lanes
                .iter()
                .flat_map(|lane| &lane.destinations)
                .filter(|to| to.destination == name)
                .map(|to| to.queued)
                .sum();
            format!(
                "destination {name} is not in the configuration, and has {} undelivered events, which stay on the disk; `forebay destination drop {name}` discards them",
                grouped(owed)
            )
        };
        let retired = lanes.iter().filter(|lane| lane.retired).filter_map(|lane| {
            let owed = lane.destinations.iter().map(|to| to.queued).max().filter(|owed| *owed > 0)?;
            let name = &lane.name;
            Some(format!(
                "lane {name} is not in the configuration: it takes no new events, and its {} undelivered events are still sent",
                grouped(owed)
            ))
        });
        names.map(note).chain(retired).collect()
    }
}

/// Returns when the oldest event was recorded that a destination has not settled.
fn oldest(lane: &Lane, to: &Backlog) -> Option<Timestamp> {
    let low = lane.settled(&to.destination).map_or(0, |settled| settled.low);
    if to.queued > 0 { lane.recorded_at(low) } else { None }
}

/// Returns information that is worth knowing but is no problem.
fn notes(lanes: &[LaneStatus], links: &[LinkStatus], dead: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if links.is_empty() {
        notes.push("no destination is configured: events are kept, and nothing leaves the gateway".to_owned());
    }
    if dead > 0 {
        notes.push(format!("dead letters: {}; see `forebay dead list`", grouped(dead)));
    }
    for link in links {
        notes.extend(link.note.iter().map(|note| format!("link {}/{}: {note}", link.destination, link.lane)));
    }
    for link in links.iter().filter(|link| link.unheard > 0) {
        let (unheard, to, lane) = (grouped(link.unheard), &link.destination, &link.lane);
        notes.push(format!("{unheard} events of lane {lane} were delivered to {to}, where nobody had subscribed"));
    }
    for lane in lanes {
        for to in lane.destinations.iter().filter(|to| to.set_aside > 0) {
            let (count, name) = (grouped(to.set_aside), &to.destination);
            notes.push(format!("{count} events of lane {} for {name} were in files that are set aside", lane.name));
        }
    }
    notes
}

/// Returns a note when clients occupy nine tenths of their memory budget.
fn tight_memory(usage: MemoryUsage) -> Option<String> {
    let is_tight = usage.permits >= usage.permits_max / 10 * 9;
    is_tight.then(|| {
        format!(
            "memory: clients occupy {} of at most {}; the gateway refuses or slows further requests, see the setting memory ({})",
            setting::Bytes(usage.permits as u64),
            setting::Bytes(usage.permits_max as u64),
            setting::Bytes(usage.limit)
        )
    })
}

impl LinkHandle {
    fn status(&self) -> LinkStatus {
        let state = self.stats.state();
        let answer = self.stats.answer.snapshot();
        LinkStatus {
            lane: self.lane.name.clone(),
            destination: self.destination.clone(),
            is_up: state.is_up,
            since: state.since.map(|at| at.to_string()),
            reason: state.reason,
            note: state.note,
            in_flight: state.in_flight,
            sent: self.stats.sent.value(),
            delivered: self.stats.delivered.value(),
            unheard: self.stats.unheard.value(),
            refused_for_now: self.stats.refused_for_now.value(),
            answer_ms: (answer.quantile(0.5).as_secs_f64() * 1e3, answer.quantile(0.99).as_secs_f64() * 1e3),
        }
    }
}

impl SourceHandle {
    fn status(&self) -> SourceStatus {
        let ack = self.stats.ack.snapshot();
        SourceStatus {
            name: self.name.clone(),
            kind: self.kind.to_string(),
            address: self.address.clone(),
            problem: self.stats.problem(),
            connections: self.stats.connections.value(),
            received: self.stats.received.value(),
            dropped: self.stats.dropped.value(),
            redelivered: self.stats.redelivered.value(),
            cut: self.stats.cut.value(),
            refused: self.stats.refused.value(),
            ack_ms: (ack.quantile(0.5).as_secs_f64() * 1e3, ack.quantile(0.99).as_secs_f64() * 1e3),
        }
    }
}

/// Serves the command socket until the shutdown.
pub async fn serve(socket: UnixListener, handles: Arc<Handles>, mut shutdown: Shutdown) {
    let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let app = App { handles, shutdown: shutdown.clone() };
    let mut connections = JoinSet::new();
    let crowd = ConnectionLimit::new(CONNECTIONS_MAX);
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            // Removes finished connections, which would otherwise accumulate.
            Some(_) = connections.join_next() => {}
            () = crowd.changed(), if !crowd.has_room() => {}
            accepted = socket.accept(), if crowd.has_room() => match accepted {
                Ok((stream, _)) => {
                    let caller = Caller::of(&stream);
                    connections.spawn(connection(stream, caller, crowd.acquire(caller), app.clone()));
                }
                // Mostly out of file descriptors: wait for connections to close.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    // New connections fail from now on.
    drop(socket);
    // Streaming responses end with the shutdown too.
    while connections.join_next().await.is_some() {}
    if let Some(path) = path.filter(|path| check_socket_path(path).is_ok()) {
        // On failure, the next start replaces the file.
        let _ = std::fs::remove_file(path);
    }
}

/// Serves one connection; returns when it has ended.
async fn connection(stream: UnixStream, caller: Caller, seat: ConnectionSlot<Caller>, app: App) {
    let (mut stream, mut shutdown) =
        (http::with_write_timeout(Box::new(stream), UNREAD_WAIT_MAX), app.shutdown.clone());
    let answer = |request| {
        // Each command has its own connection: once a request has arrived, the connection is not evicted.
        seat.enter(Phase::Answering);
        CALLER.scope(caller, answer(app.clone(), request))
    };
    let connection = http::connection(&mut stream, SILENCE_MAX, answer);
    let end = async {
        tokio::select! {
            () = shutdown.begun() => DRAIN_WAIT_MAX,
            () = seat.cut() => http::CUT_WAIT_MAX,
        }
    };
    // A peer that does not speak HTTP gets no response.
    http::served(connection, end).await;
}

/// Most simultaneous connections; each command uses one.
const CONNECTIONS_MAX: usize = 256;
/// Longest time a connection may be idle.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Longest time a client may read nothing of a response: nobody can block an export, a backup or a connection for
/// good. Output behind a pager that waits longer has to be requested again.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a request body.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait for running requests after the shutdown has begun.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Largest request body: an edited payload, or a list of letter ids.
const BODY_BYTES_MAX: usize = 2 << 20;

/// Answers one request.
async fn answer(app: App, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let mut path = Vec::new();
    for part in head.uri.path().split('/').skip(1) {
        path.push(percent_decode_str(part).decode_utf8_lossy());
    }
    let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
    let query = Query(head.uri.query().unwrap_or_default());
    let result = match head.method {
        Method::GET | Method::HEAD => read(app, &path, query).await,
        Method::POST | Method::DELETE => change(app, &head.method, &path, body).await,
        _ => None,
    };
    match result {
        Some(result) => result.unwrap_or_else(Into::into),
        None => http::text(StatusCode::NOT_FOUND, format!("{} {} is not answered here", head.method, head.uri.path())),
    }
}

/// Handles requests that only read; `None` if the path does not exist.
async fn read(app: App, path: &[&str], query: Query<'_>) -> Option<ApiResult> {
    Some(match path {
        ["status"] => blocking(move || app.handles.status()).await.map(json),
        ["dead"] => letters::list(app, query).await,
        ["dead", id] => letters::show(app, id.parse().ok()?).await,
        ["devices"] => devices(app),
        ["replay"] => Ok(json(app.handles.replays.list())),
        ["replay", id] => replay::show(&app, id.parse().ok()?),
        ["ledger"] => ledger(app).await,
        ["clock"] => Ok(json(time::status())),
        ["audit"] => audit(app, query).await,
        ["exceptions"] => exceptions(app),
        ["tail"] => tail(app, query),
        ["log"] => Ok(http::text(StatusCode::OK, crate::telemetry::recent_lines().join("\n"))),
        [name @ ("metrics" | "healthz" | "readyz")] => monitoring::answer(app.handles, name).await,
        _ => return None,
    })
}

/// Handles requests that change something, and reports refused ones; `None` if the path does not exist. Includes
/// export, which takes events out, and verify, which sets damaged files aside.
async fn change(app: App, method: &Method, path: &[&str], body: Incoming) -> Option<ApiResult> {
    let security = Arc::clone(&app.handles.security);
    let result = match caller().unnamed() {
        Some(why) => Err(refuse(StatusCode::FORBIDDEN, why)),
        None => dispatch_change(app, method, path, body).await?,
    };
    if let Err(refused) = &result {
        let user = caller().0.map_or_else(String::new, |uid| uid.to_string());
        let (what, reason) = (format!("{method} /{}", path.join("/")), refused.why.as_str());
        let (cause, source) = (Cause::Command, "command");
        let sender = Sender { user: &user, ..Sender::default() };
        security.report(&Report { cause, source, address: None, sender, what: &what, reason });
    }
    Some(result)
}

async fn dispatch_change(app: App, method: &Method, path: &[&str], body: Incoming) -> Option<ApiResult> {
    Some(match (method.as_str(), path) {
        ("POST", ["dead", "requeue"]) => dead::decide_all(app, body, dead::Action::Requeue).await,
        ("POST", ["dead", "discard"]) => dead::decide_all(app, body, dead::Action::Discard).await,
        ("POST", ["dead", id, "edit"]) => dead::edit(app, id.parse().ok()?, body).await,
        ("POST", ["replay"]) => replay::begin(app, body).await,
        ("POST", ["replay", id, word]) => replay::set_state(app, id.parse().ok()?, (*word).to_owned()).await,
        ("POST", ["clock", "trust"]) => time::trust(app).await,
        ("POST", ["reload"]) => reload::reload(app).await,
        ("POST", ["journal", "export"]) => journal::export(app, body).await,
        ("POST", ["journal", "verify"]) => journal::verify(app).await,
        ("POST", ["journal", "backup"]) => journal::backup(app, body).await,
        ("POST", ["bundle"]) => bundle(app).await,
        ("DELETE", ["destination", name]) => drop_destination(app, (*name).to_owned()).await,
        _ => return None,
    })
}

/// Result of a request handler.
type ApiResult = Result<Reply, ApiError>;

/// Error response: status code and message.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    why: String,
}

impl From<ApiError> for Reply {
    fn from(refused: ApiError) -> Self {
        http::text(refused.status, refused.why)
    }
}

/// The query string of a request.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    fn text(self, name: &str) -> Option<String> {
        let (_, value) = self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    fn number(self, name: &str) -> Result<Option<u64>, ApiError> {
        let wrong = |text| refuse(StatusCode::BAD_REQUEST, format!("{name} is \"{text}\"; expected a number"));
        self.text(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }
}

/// Reads the JSON body of a request.
async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    let read = tokio::time::timeout(BODY_WAIT_MAX, http::read(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?;
    let bytes = read.map_err(|unread| match http::is_too_large(&unread) {
        true => refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is too large; at most {BODY_BYTES_MAX} bytes are taken"),
        ),
        false => refuse(StatusCode::BAD_REQUEST, format!("the body: {unread}")),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

fn json(value: impl Serialize) -> Reply {
    match serde_json::to_vec(&value) {
        Ok(text) => http::reply(StatusCode::OK, "application/json", text),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into(),
    }
}

fn refuse(status: StatusCode, why: impl Into<String>) -> ApiError {
    ApiError { status, why: why.into() }
}

#[derive(Clone)]
struct App {
    handles: Arc<Handles>,
    shutdown: Shutdown,
}

tokio::task_local! {
    /// User of the current request.
    static CALLER: Caller;
}

/// Returns the user of the current request.
fn caller() -> Caller {
    CALLER.try_with(|caller| *caller).unwrap_or(Caller(None))
}

impl Handles {
    /// Writes an audit entry for the current request. Blocks the thread.
    fn audit(&self, action: &str, detail: &impl Serialize) -> Result<(), JournalError> {
        self.journal.audit(action, caller().0, detail, DONE)
    }

    /// Audits a long operation twice: before it begins, and with its result. Blocks the thread.
    fn audited<T>(
        &self,
        action: &str,
        detail: &impl Serialize,
        work: impl FnOnce() -> Result<(T, serde_json::Value), JournalError>,
    ) -> Result<T, JournalError> {
        let by = caller().0;
        self.journal.audit(action, by, detail, BEGUN)?;
        match work() {
            Ok((value, done)) => self.journal.audit(action, by, &done, DONE).map(|()| value),
            Err(error) => {
                self.journal.audit(action, by, detail, &format!("failed: {error}"))?;
                Err(error)
            }
        }
    }

    /// Returns an audit entry for the current request, to be committed together with the change that it describes.
    fn audit_note(&self, action: &str, detail: &impl Serialize) -> Note {
        self.journal.audit_note(action, caller().0, detail, DONE)
    }
}

/// Runs `work` on the blocking pool, as the user of the current request.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let caller = caller();
    let done = spawn_blocking(move || CALLER.sync_scope(caller, work)).await;
    done.map_err(|error| match error.is_panic() {
        true => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request failed in the gateway; see its log"),
        false => refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
    })
}

/// Like [`blocking`], for work that can fail.
async fn try_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, ApiError> {
    blocking(work).await?.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Default number of dead letters and audit entries in a response.
const LETTERS_SHOWN: u64 = 100;
/// Largest number of dead letters and audit entries in a response.
const LETTERS_SHOWN_MAX: u64 = 10_000;

fn limit(query: Query<'_>) -> Result<usize, ApiError> {
    Ok(query.number("limit")?.unwrap_or(LETTERS_SHOWN).min(LETTERS_SHOWN_MAX) as usize)
}

async fn ledger(app: App) -> ApiResult {
    let handles = Arc::clone(&app.handles);
    let balances = blocking(move || ledger::balances(&handles.journal, &handles.fates)).await?;
    rows::array(app, "ledger", Box::new(balances.into_iter().map(|balance| rows::item(&balance))))
}

async fn audit(app: App, query: Query<'_>) -> ApiResult {
    let (handles, limit) = (Arc::clone(&app.handles), limit(query)?);
    let entries = try_blocking(move || handles.journal.audited(limit)).await?;
    rows::array(app, "audit", Box::new(entries.map(|entry| entry.map_err(rows::text))))
}

/// Discards the undelivered events of a destination that was removed from the configuration.
async fn drop_destination(app: App, name: String) -> ApiResult {
    let known = app.handles.journal.destinations();
    if !known.contains(&name) {
        let text = format!("there is no destination \"{name}\"; the journal knows {}", known.join(", "));
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    if app.handles.view.load().links.iter().any(|link| link.destination == name) {
        let text = format!("\"{name}\" is in the configuration; remove it there first");
        return Err(refuse(StatusCode::CONFLICT, text));
    }
    let dropped = try_blocking(move || {
        let what = |count: Option<u64>| serde_json::json!({"destination": name, "discarded": count});
        app.handles.audited("destination drop", &what(None), || {
            let count = app.handles.journal.drop_destination(&name)?;
            Ok((count, what(Some(count))))
        })
    });
    dropped.await.map(json)
}

/// Audits the creation of a support bundle.
async fn bundle(app: App) -> ApiResult {
    try_blocking(move || app.handles.audit("bundle", &serde_json::Value::Null)).await.map(json)
}

fn exceptions(app: App) -> ApiResult {
    let none = "this gateway has no watch; add [watch] to the configuration to enable it";
    let board = app.handles.view.load().board.clone().ok_or_else(|| refuse(StatusCode::NOT_FOUND, none))?;
    rows::array(app, "exceptions", Box::new(board.exceptions().into_iter().map(|one| rows::item(&one))))
}

fn devices(app: App) -> ApiResult {
    let mut all: rows::Items = Box::new(std::iter::empty());
    for source in &app.handles.view.load().sources {
        let Some(devices) = &source.devices else { continue };
        let (name, journal) = (source.name.clone(), Arc::clone(&app.handles.journal));
        let of_source = devices.all().into_iter().map(move |device| {
            let repeats = |client: &str| journal.repeats_of(&origin(&name, client));
            rows::item(&device.status(&name, &repeats))
        });
        all = Box::new(all.chain(of_source));
    }
    rows::array(app, "devices", all)
}

/// Returns `{source}/{device}` in the form of `Record::origin`.
fn origin(source: &str, device: &str) -> String {
    let mut origin = String::new();
    push_path_segment(&mut origin, source);
    origin.push('/');
    push_path_segment(&mut origin, device);
    origin
}

fn tail(app: App, query: Query<'_>) -> ApiResult {
    let stream = query.text("stream");
    if let Some(text) = stream.as_ref().and_then(|stream| app.handles.unknown_stream(stream)) {
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    let (sender, reply) = http::streaming(16);
    let sender = Arc::new(Mutex::new(sender));
    for lane in app.handles.journal.lanes() {
        let (lane, sender, shutdown) = (Arc::clone(lane), Arc::clone(&sender), app.shutdown.clone());
        tokio::spawn(follow(lane, stream.clone(), sender, shutdown));
    }
    Ok(reply)
}

/// Writes new events of a lane, one JSON object per line, until the reader disconnects.
async fn follow(lane: Arc<Lane>, stream: Option<String>, sender: Arc<Mutex<BodySender>>, mut shutdown: Shutdown) {
    let mut reader = sender.lock().await.reader();
    let mut follower = Follower::new(&lane);
    let mut next = follower.end();
    loop {
        let found = tokio::select! {
            () = shutdown.begun() => return,
            // Needed on an idle lane, whose next event may be days away.
            () = reader.gone() => return,
            found = follower.find(next) => found,
        };
        match found {
            None => return,
            Some(ReadResult::Lost { to }) => next = to.max(next + 1),
            Some(ReadResult::Block(block)) => {
                let mut lines = Vec::new();
                for (offset, record) in (block.header.first..).zip(block.records()) {
                    if offset >= next {
                        push_tail_event(&lane, offset, block.header.recorded, &record, stream.as_deref(), &mut lines);
                    }
                }
                next = next.max(block.end());
                if !lines.is_empty() && !sender.lock().await.send(lines).await {
                    return;
                }
            }
        }
    }
}

fn push_tail_event(
    lane: &Lane,
    offset: u64,
    recorded: Timestamp,
    record: &Record<'_>,
    wanted: Option<&str>,
    lines: &mut Vec<u8>,
) {
    let published = lane.published(record.publication);
    let publication = published.as_ref().map(|published| &published.publication);
    if wanted.is_some_and(|wanted| !published.as_ref().is_some_and(|one| one.is_named(wanted))) {
        return;
    }
    let stream = publication.map_or_else(String::new, |publication| publication.stream.clone());
    let is_json = record.content == Content::Json;
    let event = TailEvent {
        lane: lane.name.clone(),
        stream,
        offset,
        recorded: recorded.to_string(),
        time: record.time.to_string(),
        origin: record.origin.to_owned(),
        key: record.key.to_owned(),
        id: record.id.to_string(),
        data: is_json.then(|| serde_json::from_slice(record.payload).unwrap_or_default()),
        data_base64: (!is_json).then(|| base64::engine::general_purpose::STANDARD.encode(record.payload)),
    };
    if let Ok(line) = serde_json::to_vec(&event) {
        lines.extend_from_slice(&line);
        lines.push(b'\n');
    }
}
