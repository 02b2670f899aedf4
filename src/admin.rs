//! The admin socket: what the command line asks of a running gateway.
//!
//! HTTP over a Unix socket. The permissions of the file decide who may ask; `change` asks for a caller with a name.

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
pub use health::{Check, Health};
pub use letters::Letter;
pub use monitoring::{MonitoringState, monitor};
pub use reload::{Configured, ReloadAnswer, ReloadBy, ReloadOrder, Reloaded, Reloading, View};
pub use socket::listen;

use crate::clock;
use crate::contract::{Sender, SourceKind, Surroundings};
use crate::event::{Content, Record, Timestamp, push_path_segment};
use crate::forward;
use crate::forward::again::Replays;
use crate::http::{self, BodySender, ConnectionLimit, ConnectionSlot, Phase, Reply};
use crate::ingest::Ingest;
use crate::ingest::dead::fates::Fates;
use crate::journal::{BEGUN, Backlog, Condition, DONE, Follower, Found, Journal, JournalError, Lane, LaneStatus, Note};
use crate::ledger::{self, Balance};
use crate::memory::{self, Budget};
use crate::runtime::spawn_blocking;
use crate::security::{Cause, Report, Security};
use crate::setting::{self, check_socket_path, grouped};
use crate::shutdown::Shutdown;
use crate::sources;
use crate::sources::mqtt::Devices;
use crate::survival::{Outlook, Survival};
use crate::timekeeper::Timekeeper;
use arc_swap::ArcSwap;
use base64::Engine;
use caller::Caller;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// What the admin socket looks at.
#[derive(Debug)]
pub struct Handles {
    /// Where this gateway is.
    pub surroundings: Surroundings,
    /// When it was started.
    pub started: Instant,
    /// The journal.
    pub journal: Arc<Journal>,
    /// Ingest.
    pub ingest: Arc<Ingest>,
    /// How long the disk lasts.
    pub survival: Arc<Survival>,
    /// What has become of dead letters.
    pub fates: Arc<Fates>,
    /// The replays.
    pub replays: Arc<Replays>,
    /// What became of parts that failed.
    pub failures: Arc<Failures>,
    /// Gathers what matters to security.
    pub security: Arc<Security>,
    /// Asks for a reload.
    pub reloading: Reloading,
    /// What runs now.
    pub view: ArcSwap<View>,
    /// Who judges the clock.
    pub timekeeper: Arc<Timekeeper>,
    /// Whether metrics and health are served.
    pub monitoring: MonitoringState,
    /// What peers make the process hold.
    pub budget: Arc<Budget>,
}

/// A source.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    /// Its name.
    pub name: String,
    /// What kind of source it is.
    pub kind: SourceKind,
    /// Where it listens, or what it asks.
    pub address: String,
    /// What it counts.
    pub stats: Arc<sources::Stats>,
    /// Who has connected to it, where it is a listener.
    pub devices: Option<Arc<Devices>>,
}

/// A link.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    /// The lane.
    pub lane: Arc<Lane>,
    /// The destination.
    pub destination: String,
    /// What it counts.
    pub stats: Arc<forward::Stats>,
}

/// How the gateway stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// `test`, `production`, …
    pub environment: String,
    /// The plant.
    pub site: String,
    /// The gateway.
    pub name: String,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// Since when this configuration is in force, RFC 3339.
    #[serde(default)]
    pub configured: Option<String>,
    /// Everything that is not as it should be.
    pub problems: Vec<String>,
    /// What a person should know, though nothing is wrong.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The lanes.
    pub lanes: Vec<LaneStatus>,
    /// The links.
    pub links: Vec<LinkStatus>,
    /// The sources.
    pub sources: Vec<SourceStatus>,
    /// The dead letters.
    pub dead: DeadStatus,
    /// Repeats and how far back they are recognised.
    pub repeats: RepeatStatus,
    /// Damaged files that are set aside.
    pub set_aside: Vec<String>,
    /// The clock.
    #[serde(default)]
    pub clock: time::ClockStatus,
    /// How long each lane lasts, and how long its backlog takes.
    #[serde(default)]
    pub outlooks: Vec<Outlook>,
    /// Bytes written to the disk in a day, at the rate since the start; not in the first minute.
    #[serde(default)]
    pub flash_bytes_per_day: Option<u64>,
    /// The memory limit, and what clients make the gateway hold of it.
    #[serde(default)]
    pub memory: memory::Usage,
    /// Sparkplug nodes, if a contract decodes them.
    #[serde(default)]
    pub sparkplug: Option<SparkplugStatus>,
}

/// How Sparkplug nodes stand. All numbers but `nodes` and `bytes` are since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SparkplugStatus {
    /// Edge nodes that are known.
    pub nodes: usize,
    /// Bytes of memory that what their births declared takes.
    #[serde(default)]
    pub bytes: usize,
    /// How often what births of a node declared was forgotten for lack of room.
    #[serde(default)]
    pub forgotten: u64,
    /// Gaps in the numbers of messages: some were lost on their way to the gateway.
    pub gaps: u64,
    /// Messages that could not be understood, and so became dead letters.
    pub refused: u64,
    /// Rebirths that were asked for.
    pub rebirths_asked: u64,
}

/// How a link stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The lane.
    pub lane: String,
    /// The destination.
    pub destination: String,
    /// Whether there is a session.
    pub is_up: bool,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// What a person should know, though there is one.
    #[serde(default)]
    pub note: Option<String>,
    /// Publishes in flight.
    pub in_flight: usize,
    /// Publishes sent since the start, repeats included.
    pub sent: u64,
    /// Acknowledged since the start.
    pub delivered: u64,
    /// Acknowledged though nobody had subscribed, since the start.
    pub unheard: u64,
    /// Refused for now, since the start.
    pub refused_for_now: u64,
    /// Median and 99th percentile from sending to acknowledgement, in milliseconds.
    pub answer_ms: (f64, f64),
}

/// How a source stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// What kind of source it is.
    pub kind: SourceKind,
    /// Where it listens, or what it asks.
    pub address: String,
    /// What keeps it from working, if anything does.
    pub problem: Option<String>,
    /// Open connections.
    pub connections: u64,
    /// Publishes that arrived since the start.
    pub received: u64,
    /// Events of senders that await no answer, for which there was no room.
    pub dropped: u64,
    /// Redeliveries that were recognised without an id, and are no second event.
    pub redelivered: u64,
    /// Events that subscribers were not told, since they were too far behind.
    pub cut: u64,
    /// Connections refused or ended for a fault.
    pub refused: u64,
    /// Median and 99th percentile from arrival to acknowledgement, in milliseconds.
    pub ack_ms: (f64, f64),
}

/// How many dead letters there are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadStatus {
    /// Ever written.
    pub total: u64,
    /// Since the start: no contract matched.
    pub unmatched: u64,
    /// Since the start: they broke their contract.
    pub violations: u64,
}

/// How repeats are recognised.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepeatStatus {
    /// Recognised since the start.
    pub duplicates: u64,
    /// Same id, another payload, since the start.
    pub id_conflicts: u64,
    /// Ids in the window.
    pub ids: usize,
    /// Ids the window can hold.
    pub ids_max: usize,
    /// Since when it is complete; `None` while it has never been full.
    pub complete_since: Option<String>,
}

impl Handles {
    /// How the gateway stands.
    pub fn status(&self) -> Status {
        self.status_by(&ledger::balances(&self.journal, &self.fates))
    }

    /// The same, by balances that are at hand.
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
                "disk: {free} are left, and disk_reserve is {reserve}: delivered events leave ahead of their time, then those of lanes that may give up"
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
        certificates::judge(&view.certificates, &mut problems, &mut notes);
        certificates::judge_lists(&view.revocations, &mut problems, &mut notes);
        notes.extend(self.forgotten(&lanes));
        notes.extend(tight_memory(self.budget.usage()));
        let audit = self.journal.audit_usage();
        if audit.removed > 0 {
            notes.push(format!(
                "audit: it is full with {} entries, and the {} oldest have left since the start; take it out from time to time: `forebay audit --limit 10000 --json`",
                grouped(audit.held),
                grouped(audit.removed)
            ));
        }
        for source in &view.sources {
            notes.extend(source.stats.notes().iter().map(|note| format!("source {}: {note}", source.name)));
        }
        let clock = time::ClockStatus::now();
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
            dead: DeadStatus {
                total: dead.accepted,
                unmatched: self.ingest.stats.unmatched.value(),
                violations: self.ingest.stats.violations.value(),
            },
            repeats: RepeatStatus {
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

    /// Destinations that the configuration does not name any more, and that are still owed something.
    fn forgotten(&self, lanes: &[LaneStatus]) -> Vec<String> {
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
                "destination {name} is not in the configuration, and is owed {} events, which stay on the disk; `forebay destination drop {name}` gives them up",
                grouped(owed)
            )
        };
        let retired = lanes.iter().filter(|lane| lane.retired).filter_map(|lane| {
            let owed = lane.destinations.iter().map(|to| to.queued).max().filter(|owed| *owed > 0)?;
            let name = &lane.name;
            Some(format!(
                "lane {name} is not in the configuration: it takes no new events, and the {} that it holds are still sent",
                grouped(owed)
            ))
        });
        names.map(note).chain(retired).collect()
    }
}

/// When the oldest event was recorded that a destination still needs of a lane.
fn oldest(lane: &Lane, to: &Backlog) -> Option<Timestamp> {
    let low = lane.settled(&to.destination).map_or(0, |settled| settled.low);
    if to.queued > 0 { lane.recorded_at(low) } else { None }
}

/// What a person should know, though nothing is wrong.
fn notes(lanes: &[LaneStatus], links: &[LinkStatus], dead: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if links.is_empty() {
        notes.push("no destination is configured: events are kept, and nothing leaves".to_owned());
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

/// What to say where clients hold nine tenths of what they may.
fn tight_memory(usage: memory::Usage) -> Option<String> {
    let is_tight = usage.permits >= usage.permits_max / 10 * 9;
    is_tight.then(|| {
        format!(
            "memory: clients hold {} of the {} that they may; more is refused or slowed down, see the setting memory ({})",
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
            kind: self.kind,
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

/// Answers until the shutdown.
pub async fn serve(socket: UnixListener, handles: Arc<Handles>, mut shutdown: Shutdown) {
    let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let app = App { handles, shutdown: shutdown.clone() };
    let mut connections = JoinSet::new();
    let crowd = ConnectionLimit::new(CONNECTIONS_MAX);
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            // The ended are taken out, so that the set does not grow.
            Some(_) = connections.join_next() => {}
            () = crowd.changed(), if !crowd.has_room() => {}
            accepted = socket.accept(), if crowd.has_room() => match accepted {
                Ok((stream, _)) => {
                    let caller = Caller::of(&stream);
                    connections.spawn(connection(stream, caller, crowd.acquire(caller), app.clone()));
                }
                // Out of descriptors, mostly: a pause lets some connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    // Whoever asks now is told that nobody answers.
    drop(socket);
    // Answers that stream end with the shutdown too.
    while connections.join_next().await.is_some() {}
    if let Some(path) = path.filter(|path| check_socket_path(path).is_ok()) {
        // It is made anew at the next start anyway.
        let _ = std::fs::remove_file(path);
    }
}

/// Serves one connection; returns when it has ended.
async fn connection(stream: UnixStream, caller: Caller, seat: ConnectionSlot<Caller>, app: App) {
    let (mut stream, mut shutdown) =
        (http::with_write_timeout(Box::new(stream), UNREAD_WAIT_MAX), app.shutdown.clone());
    let answer = |request| {
        // Each command has a connection of its own: what is asked once is answered to the end.
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
    // Whoever speaks no HTTP gets no answer.
    http::served(connection, end).await;
}

/// Connections at once; each command has one.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long whoever asks may take nothing of an answer: a pager that waits for a key for longer than this has to ask
/// again, and nobody keeps an export, a backup or a place on the socket for good.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a body may take.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the requests in hand may take once the shutdown has begun.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// The largest body: an edited payload, or the numbers of letters.
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
    let answered = match head.method {
        Method::GET | Method::HEAD => look(app, &path, query).await,
        Method::POST | Method::DELETE => change(app, &head.method, &path, body).await,
        _ => None,
    };
    match answered {
        Some(answered) => answered.unwrap_or_else(Into::into),
        None => http::text(StatusCode::NOT_FOUND, format!("{} {} is not answered here", head.method, head.uri.path())),
    }
}

/// What only looks; `None` if there is no such thing.
async fn look(app: App, path: &[&str], query: Query<'_>) -> Option<Answered> {
    Some(match path {
        ["status"] => off_thread(move || app.handles.status()).await.map(json),
        ["dead"] => letters::list(app, query).await,
        ["dead", id] => letters::show(app, id.parse().ok()?).await,
        ["devices"] => devices(app),
        ["replay"] => Ok(json(app.handles.replays.list())),
        ["replay", id] => replay::show(&app, id.parse().ok()?),
        ["ledger"] => ledger(app).await,
        ["clock"] => Ok(json(time::ClockStatus::now())),
        ["audit"] => audit(app, query).await,
        ["exceptions"] => exceptions(app),
        ["tail"] => tail(app, query),
        ["log"] => Ok(http::text(StatusCode::OK, crate::telemetry::recent_lines().join("\n"))),
        [name @ ("metrics" | "healthz" | "readyz")] => monitoring::answer(app.handles, name).await,
        _ => return None,
    })
}

/// What does something; `None` if there is no such thing. Export and verify are here too: the one takes events out, the
/// other sets damaged files aside.
async fn change(app: App, method: &Method, path: &[&str], body: Incoming) -> Option<Answered> {
    let security = Arc::clone(&app.handles.security);
    let answered = match caller().unnamed() {
        Some(why) => Err(refuse(StatusCode::FORBIDDEN, why)),
        None => changed(app, method, path, body).await?,
    };
    if let Err(refused) = &answered {
        let user = caller().0.map_or_else(String::new, |uid| uid.to_string());
        let (what, reason) = (format!("{method} /{}", path.join("/")), refused.why.as_str());
        let (cause, source) = (Cause::Command, "command");
        let sender = Sender { user: &user, ..Sender::default() };
        security.report(&Report { cause, source, address: None, sender, what: &what, reason });
    }
    Some(answered)
}

async fn changed(app: App, method: &Method, path: &[&str], body: Incoming) -> Option<Answered> {
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

/// What a request came to.
type Answered = Result<Reply, Refused>;

/// Why nothing is done.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    why: String,
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Self {
        http::text(refused.status, refused.why)
    }
}

/// What stands behind the `?` of a request.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    fn text(self, name: &str) -> Option<String> {
        let (_, value) = self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    fn number(self, name: &str) -> Result<Option<u64>, Refused> {
        let wrong = |text| refuse(StatusCode::BAD_REQUEST, format!("{name} is \"{text}\"; expected a number"));
        self.text(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }
}

/// The JSON that a request brings.
async fn given<T: DeserializeOwned>(body: Incoming) -> Result<T, Refused> {
    let read = tokio::time::timeout(BODY_WAIT_MAX, http::read(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"))?;
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

fn refuse(status: StatusCode, why: impl Into<String>) -> Refused {
    Refused { status, why: why.into() }
}

#[derive(Clone)]
struct App {
    handles: Arc<Handles>,
    shutdown: Shutdown,
}

tokio::task_local! {
    /// Who asks for what is done now.
    static CALLER: Caller;
}

/// Who asks for what is done now.
fn caller() -> Caller {
    CALLER.try_with(|caller| *caller).unwrap_or(Caller(None))
}

impl Handles {
    /// Audits what is done for whoever asks over the socket. Blocks the thread.
    fn audit(&self, action: &str, detail: &impl Serialize) -> Result<(), JournalError> {
        self.journal.audit(action, caller().0, detail, DONE)
    }

    /// Audits what takes its time: before it begins, and what came of it. Blocks the thread.
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

    /// An entry of the audit for whoever asks, to be written together with what it tells of.
    fn audit_note(&self, action: &str, detail: &impl Serialize) -> Note {
        self.journal.audit_note(action, caller().0, detail, DONE)
    }
}

/// Runs what may read from the disk off the threads that serve.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    let caller = caller();
    let done = spawn_blocking(move || CALLER.sync_scope(caller, work)).await;
    done.map_err(|error| match error.is_panic() {
        true => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed at this; its log says where"),
        false => refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
    })
}

/// The same for what may fail.
async fn tried<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, Refused> {
    off_thread(work).await?.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Dead letters shown at once, where nobody says how many.
const LETTERS_SHOWN: u64 = 100;
/// Dead letters and audit entries shown at most.
const LETTERS_SHOWN_MAX: u64 = 10_000;

fn limit(query: Query<'_>) -> Result<usize, Refused> {
    Ok(query.number("limit")?.unwrap_or(LETTERS_SHOWN).min(LETTERS_SHOWN_MAX) as usize)
}

async fn ledger(app: App) -> Answered {
    let handles = Arc::clone(&app.handles);
    let balances = off_thread(move || ledger::balances(&handles.journal, &handles.fates)).await?;
    rows::array(app, "ledger", Box::new(balances.into_iter().map(|balance| rows::item(&balance))))
}

async fn audit(app: App, query: Query<'_>) -> Answered {
    let (handles, limit) = (Arc::clone(&app.handles), limit(query)?);
    let entries = tried(move || handles.journal.audited(limit)).await?;
    rows::array(app, "audit", Box::new(entries.map(|entry| entry.map_err(rows::text))))
}

/// Gives up what a destination is owed that the configuration does not name any more.
async fn drop_destination(app: App, name: String) -> Answered {
    let known = app.handles.journal.destinations();
    if !known.contains(&name) {
        let text = format!("there is no destination \"{name}\"; the journal knows {}", known.join(", "));
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    if app.handles.view.load().links.iter().any(|link| link.destination == name) {
        let text = format!("\"{name}\" is in the configuration; remove it there first");
        return Err(refuse(StatusCode::CONFLICT, text));
    }
    let dropped = tried(move || {
        let what = |count: Option<u64>| serde_json::json!({"destination": name, "discarded": count});
        app.handles.audited("destination drop", &what(None), || {
            let count = app.handles.journal.drop_destination(&name)?;
            Ok((count, what(Some(count))))
        })
    });
    dropped.await.map(json)
}

/// Audits that somebody collects what helps to understand this gateway.
async fn bundle(app: App) -> Answered {
    tried(move || app.handles.audit("bundle", &serde_json::Value::Null)).await.map(json)
}

fn exceptions(app: App) -> Answered {
    let none = "this gateway has no watch; [watch] in the configuration switches it on";
    let board = app.handles.view.load().board.clone().ok_or_else(|| refuse(StatusCode::NOT_FOUND, none))?;
    rows::array(app, "exceptions", Box::new(board.exceptions().into_iter().map(|one| rows::item(&one))))
}

fn devices(app: App) -> Answered {
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

/// `{source}/{device}`, as records have it.
fn origin(source: &str, device: &str) -> String {
    let mut origin = String::new();
    push_path_segment(&mut origin, source);
    origin.push('/');
    push_path_segment(&mut origin, device);
    origin
}

/// An event as `tail` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The lane.
    pub lane: String,
    /// The stream.
    pub stream: String,
    /// Offset in the lane.
    pub offset: u64,
    /// When it was recorded, RFC 3339.
    pub recorded: String,
    /// When it happened, RFC 3339.
    pub time: String,
    /// `{source}/{device}`.
    pub origin: String,
    /// The key.
    pub key: String,
    /// The id.
    pub id: String,
    /// The payload, where it is JSON.
    pub data: Option<serde_json::Value>,
    /// The payload in base64, where it is not.
    pub data_base64: Option<String>,
}

fn tail(app: App, query: Query<'_>) -> Answered {
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

/// Writes a lane's events as they come, one JSON object a line, until nobody reads them.
async fn follow(lane: Arc<Lane>, stream: Option<String>, sender: Arc<Mutex<BodySender>>, mut shutdown: Shutdown) {
    let mut reader = sender.lock().await.reader();
    let mut follower = Follower::new(&lane);
    let mut next = follower.end();
    loop {
        let found = tokio::select! {
            () = shutdown.begun() => return,
            // On a quiet gateway the next event may be days away.
            () = reader.gone() => return,
            found = follower.find(next) => found,
        };
        match found {
            None => return,
            Some(Found::Lost { to }) => next = to.max(next + 1),
            Some(Found::Block(block)) => {
                let mut lines = Vec::new();
                for (offset, record) in (block.header.first..).zip(block.records()) {
                    if offset >= next {
                        push_seen(&lane, offset, block.header.recorded, &record, stream.as_deref(), &mut lines);
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

fn push_seen(
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
    let seen = Seen {
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
    if let Ok(line) = serde_json::to_vec(&seen) {
        lines.extend_from_slice(&line);
        lines.push(b'\n');
    }
}
