//! Forward: sends the events of a lane to one destination and settles those that central acknowledged.
//!
//! Promise: an event is settled only when central has acknowledged it, or when it is a durable dead letter;
//! first deliveries of one key are in order; one event that makes central disconnect does not block the others.
//! Invariants:
//! - each pair of lane and destination has its own forwarder and connection, to isolate failures;
//! - the window bounds the events in flight; after a disconnect they are read again from the journal.
//!
//! Not here: the MQTT session (`link`), the storage of events (`journal`).

pub mod again;
mod batch;
mod fill;
mod followed;
mod in_flight;
mod lane_reader;
mod pace;
mod probe;
mod replies;
mod rotation;
mod settings;
pub mod status;

pub use batch::{BATCH, BATCH_ZSTD};
pub use pace::{Batch, CatchUp, Compression, Hours, Pressure, Rate, Sending};

use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::contract::Rendering;
use crate::event::Timestamp;
use crate::journal::{BlockReader, Cursor, Lane, ReadResult};
use crate::link::{
    self, ClientIdConflict, ConnectAs, CredentialRotation, Failback, LinkError, Output, Protocol, Reconnect, Session,
    Target,
};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::telemetry::{Counter, Histogram, Limiter};
use crate::tls::ClientFiles;
use batch::Batcher;
use followed::Followed;
use in_flight::InFlight;
use lane_reader::LaneReader;
use pace::Pacer;
use parking_lot::Mutex;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The settings of one destination.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the destination.
    pub name: String,
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS. The gateway tries several in their order.
    pub url: Urls,
    /// Files for TLS: authorities, client certificate and key.
    #[serde(default)]
    pub tls: ClientFiles,
    /// MQTT version.
    #[serde(default)]
    pub protocol: Protocol,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Time without traffic after which the gateway sends a PINGREQ.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    /// Longest wait for an acknowledgement while the connection is alive.
    #[serde(default = "answer_wait_max")]
    pub answer_wait_max: Span,
    /// Largest number of publishes in flight; the broker may allow fewer.
    #[serde(default = "window")]
    pub window: u16,
    /// Streams to send; a pattern may end in `*`. An empty list means all.
    #[serde(default)]
    pub streams: Vec<String>,
    /// Whether the gateway retries an event until its topic has a subscriber.
    #[serde(default)]
    pub require_subscriber: bool,
    /// Position in each lane at which a new destination starts.
    #[serde(default)]
    pub from: crate::journal::Start,
    /// Bytes of each lane that this destination may hold back; beyond it, the oldest events are discarded for it.
    pub hold: Option<Bytes>,
    /// Topic level that `forebay replay` puts in front of the topic; none for MQTT 5 by default.
    pub replay_topic: Option<String>,
}

/// One URL, or several in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct Urls(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Urls {
    fn from(urls: OneOrMany) -> Self {
        match urls {
            OneOrMany::One(url) => Self(vec![url]),
            OneOrMany::Many(urls) => Self(urls),
        }
    }
}

fn window() -> u16 {
    1000
}

fn keep_alive() -> Span {
    Span(Duration::from_secs(30))
}

fn answer_wait_max() -> Span {
    Span(Duration::from_secs(60))
}

impl Config {
    /// Returns the brokers of this destination, or what is wrong with their URLs.
    pub fn target(&self) -> Result<Target, String> {
        Target::new(link::Config {
            urls: self.url.0.clone(),
            tls: self.tls.clone(),
            protocol: self.protocol,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive.0,
            answer_wait_max: self.answer_wait_max.0,
        })
    }

    /// Whether a stream goes to this destination. The gateway's own streams always do: they report losses.
    pub fn takes(&self, stream: &str) -> bool {
        self.streams.is_empty()
            || stream.starts_with("gateway.")
            || self.streams.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => stream.starts_with(start),
                None => stream == pattern,
            })
    }
}

/// Output buffer size at which `fill` stops, in bytes.
const OUTPUT_BYTES: usize = 64 << 10;
/// Pauses after temporary rejections.
const REFUSED_PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30), Jitter::UpToDouble);
/// After this number of disconnects with the same lowest event in flight, the forwarder sends that event alone.
const DISCONNECTS_BEFORE_PROBE: u32 = 3;
/// Interval at which the forwarder checks whether the sending hours have begun or ended.
const HOURS_POLL: Duration = Duration::from_secs(5);
/// Each jump to the live end adds a range to the set of settled offsets; with more ranges than this, the forwarder
/// sends the backlog first.
const LIVE_RANGES_MAX: usize = 64;
/// `live-first` jumps to the live end within a session when the lag exceeds this number of windows for [`LIVE_LAG`].
const LIVE_LAG_WINDOWS: u64 = 4;
const LIVE_LAG: Duration = Duration::from_secs(2);

/// Counters and state of one forwarder.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events that central acknowledged.
    pub delivered: Counter,
    /// Acknowledged publishes whose topic had no subscriber.
    pub unheard: Counter,
    /// Publishes sent, repeats included.
    pub sent: Counter,
    /// Publishes that central rejected temporarily.
    pub refused_for_now: Counter,
    /// Events that this forwarder turned into dead letters.
    pub dead: Counter,
    /// Publishes that were unacknowledged when the session ended, and that are sent again.
    pub repeated: Counter,
    /// Opened sessions.
    pub connects: Counter,
    /// Lost sessions and failed connection attempts.
    pub failures: Counter,
    /// Time from sending to acknowledgement.
    pub answer: Histogram,
    /// Time from accepting an event to its acknowledgement; for a batch, of its oldest event.
    pub settle: Histogram,
    state: Mutex<LinkState>,
}

/// State of the connection.
#[derive(Clone, Debug, Default)]
pub struct LinkState {
    /// Whether there is a session.
    pub is_up: bool,
    /// Time of the last change of `is_up`.
    pub since: Option<Timestamp>,
    /// Why there is no session.
    pub reason: Option<String>,
    /// Publishes in flight.
    pub in_flight: usize,
    /// A warning for the operator while the session continues.
    pub note: Option<String>,
}

impl Stats {
    /// Returns the state of the connection.
    pub fn state(&self) -> LinkState {
        self.state.lock().clone()
    }

    fn set(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.state.lock());
    }
}

/// Sends one lane to one destination.
#[derive(Debug)]
pub struct Forwarder {
    config: Arc<Config>,
    sending: Arc<Sending>,
    pressure: Arc<Pressure>,
    target: Arc<Target>,
    client: String,
    lane: Arc<Lane>,
    dead: Arc<Lane>,
    stats: Arc<Stats>,
    /// Reads the events to send first.
    primary: LaneReader,
    /// Reads the backlog while `primary` reads live events (`live-first`).
    backfill: LaneReader,
    batcher: Batcher,
    pacer: Pacer,
    /// The offsets that were settled when the readers were last rewound.
    settled: Cursor,
    flight: InFlight,
    followed: Followed,
    rendering: Rendering,
    suspect: Suspect,
    refused_pauses: Backoff,
    warnings: Limiter,
    /// `live-first`: the end of the lane, and the time, when the primary reader began to lag far behind.
    lagging: Option<(u64, Instant)>,
    /// Time until the next open batch reaches its age limit.
    batch_due: Option<Duration>,
    rotation: CredentialRotation,
}

/// The lowest offset in flight at repeated disconnects, and their number.
#[derive(Debug, Default)]
struct Suspect {
    offset: u64,
    disconnects: u32,
}

/// Why the forwarder stops using a session, or stops sending on it.
enum SessionEnd {
    Shutdown,
    Lost(LinkError),
    /// Central rejected an event temporarily: the forwarder continues on the same session after a pause.
    Pause,
    /// A new session replaces this one; the text says why.
    Replaced(Box<Session>, &'static str),
}

/// The destination, settings and identity of a forwarder.
#[derive(Clone, Debug)]
pub struct ForwarderSpec {
    /// Settings of the destination.
    pub config: Arc<Config>,
    /// How the forwarder sends its lane.
    pub sending: Arc<Sending>,
    /// Backlogs of all lanes of the destination.
    pub pressure: Arc<Pressure>,
    /// MQTT client id.
    pub client: String,
    /// Signals new certificates and passwords.
    pub rotation: CredentialRotation,
}

impl Forwarder {
    /// Creates a forwarder for `lane`; events that central rejects for good go to the log `dead`.
    pub fn new(spec: ForwarderSpec, lane: &Arc<Lane>, dead: &Arc<Lane>, stats: Arc<Stats>) -> Result<Self, String> {
        let ForwarderSpec { config, sending, pressure, client, rotation } = spec;
        let target = Arc::new(config.target()?);
        Ok(Self {
            sending,
            pressure,
            target,
            client,
            primary: LaneReader::new(lane, 1, u64::MAX),
            backfill: LaneReader::new(lane, 1, 1),
            batcher: Batcher::default(),
            pacer: Pacer::new(),
            lane: Arc::clone(lane),
            dead: Arc::clone(dead),
            stats,
            settled: Cursor::default(),
            flight: InFlight::default(),
            followed: Followed::default(),
            rendering: Rendering::default(),
            suspect: Suspect::default(),
            refused_pauses: REFUSED_PAUSES,
            warnings: Limiter::new(Duration::from_secs(60)),
            lagging: None,
            batch_due: None,
            rotation,
            config,
        })
    }

    /// Runs until shutdown, then waits up to 2 s for outstanding acknowledgements.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut reconnect = Reconnect::default();
        let mut conflict = ClientIdConflict::default();
        let connect_as = ConnectAs::client(self.client.clone());
        loop {
            self.rewind();
            self.rotation.mark_used();
            let connected = tokio::select! {
                () = shutdown.begun() => break,
                connected = self.target.connect(&connect_as) => connected,
            };
            let error = match connected {
                Ok(session) => {
                    tracing::info!(lane = %self.lane.name, destination = %self.config.name, broker = %session.broker(), "link up");
                    self.stats.connects.add(1);
                    self.set_state(true, None);
                    let delivered = self.stats.delivered.value();
                    let began = clock::instant();
                    let end = self.serve(session, &mut shutdown).await;
                    self.report_progress();
                    if self.stats.delivered.value() > delivered {
                        reconnect.reset();
                    }
                    match end {
                        SessionEnd::Shutdown => break,
                        SessionEnd::Pause | SessionEnd::Replaced(..) => unreachable!("serve handles these itself"),
                        SessionEnd::Lost(error) => {
                            conflict.record_end(&error, clock::instant().duration_since(began), self.flight.is_empty());
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            self.stats.failures.add(1);
            let reason = match conflict.pause() {
                None => error.to_string(),
                Some(_) => {
                    let how_sure = if conflict.evidence() == Some(link::Conflict::Confirmed) {
                        ""
                    } else {
                        "sessions end at once; perhaps "
                    };
                    let client = &self.client;
                    format!(
                        "{how_sure}another client uses the client id \"{client}\": is there a second gateway of that name? ({error})"
                    )
                }
            };
            let reconnect_wait = reconnect.wait();
            let wait = conflict.pause().unwrap_or(reconnect_wait);
            if self.set_state(false, Some(reason.clone())) {
                tracing::warn!(lane = %self.lane.name, destination = %self.config.name, error = %reason, "link down, will reconnect");
            }
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.set_state(false, Some("the gateway is shutting down".into()));
    }

    /// Records the state of the connection; returns `true` if it changed.
    fn set_state(&self, is_up: bool, reason: Option<String>) -> bool {
        let mut is_changed = false;
        self.stats.set(|state| {
            is_changed = state.is_up != is_up || state.since.is_none() || state.reason != reason;
            if state.is_up != is_up || state.since.is_none() {
                state.since = Some(Timestamp::from(clock::wall()));
            }
            state.is_up = is_up;
            state.reason = reason;
            state.in_flight = 0;
            state.note = None;
        });
        is_changed
    }

    /// Moves the reader back to the lowest unsettled event; with `live-first`, to the end, and the second reader back.
    fn rewind(&mut self) {
        self.stats.repeated.add(self.flight.count() as u64);
        self.flight.clear();
        self.followed.clear();
        self.batcher.clear();
        let settled = self.lane.settled(&self.config.name).unwrap_or_default();
        let (low, end) = (settled.low.max(1), self.primary.end());
        let is_live_first = self.sending.catch_up == CatchUp::LiveFirst
            && end.saturating_sub(low) > u64::from(self.config.window)
            && settled.ranges.len() <= LIVE_RANGES_MAX;
        if is_live_first {
            self.primary.restart(end, u64::MAX);
            self.backfill.restart(low, end);
        } else {
            self.primary.restart(low, u64::MAX);
            self.backfill.restart(low, low);
        }
        self.settled = settled;
        self.report_progress();
    }

    /// Whether new events wait behind a backlog from sending hours, rate limits or a slow line in this session.
    fn is_live_lagging(&mut self) -> bool {
        if self.sending.catch_up != CatchUp::LiveFirst {
            return false;
        }
        let (end, now) = (self.primary.end(), clock::instant());
        let events = self.sending.batch.as_ref().map_or(1, |batch| batch.events as u64);
        let lag_max = LIVE_LAG_WINDOWS * u64::from(self.config.window) * events;
        // One large commit is not a lag: the lag must last.
        let (seen, since) = match self.lagging {
            Some((seen, since)) if self.primary.next < seen => (seen, since),
            _ => (end, now),
        };
        self.lagging = (end.saturating_sub(self.primary.next) > lag_max).then_some((seen, since));
        self.lagging.is_some()
            && now.duration_since(since) >= LIVE_LAG
            && self.lane.settled(&self.config.name).is_some_and(|settled| settled.ranges.len() <= LIVE_RANGES_MAX)
    }

    /// Reports the progress of this lane to the other forwarders of the destination.
    fn report_progress(&self) {
        let end = self.primary.end();
        let unread = end.saturating_sub(self.primary.next) + self.backfill.until.saturating_sub(self.backfill.next);
        self.pressure.note(&self.lane.name, end.saturating_sub(unread + self.flight.count() as u64));
    }

    async fn serve(&mut self, mut session: Session, shutdown: &mut Shutdown) -> SessionEnd {
        let mut output = Output::default();
        loop {
            let end = self.transfer(&mut session, &mut output, shutdown).await;
            match end {
                SessionEnd::Pause => {
                    self.rewind();
                    let wait = self.refused_pauses.next();
                    if let Some(end) = self.wait_connected(&mut session, &mut output, shutdown, wait).await {
                        return self.record_disconnect(end);
                    }
                }
                SessionEnd::Replaced(replacement, why) => {
                    std::mem::replace(&mut session, *replacement).close().await;
                    output = Output::default();
                    tracing::info!(lane = %self.lane.name, destination = %self.config.name, broker = %session.broker(), "continuing on another session: {why}");
                    self.rewind();
                }
                SessionEnd::Shutdown => {
                    self.drain(&mut session, &mut output).await;
                    session.close().await;
                    return SessionEnd::Shutdown;
                }
                SessionEnd::Lost(_) => return self.record_disconnect(end),
            }
        }
    }

    /// Counts the disconnects by the peer while the same event was the lowest in flight.
    fn record_disconnect(&mut self, end: SessionEnd) -> SessionEnd {
        if let (SessionEnd::Lost(error), Some(lowest)) = (&end, self.flight.lowest()) {
            if !error.is_by_peer() || self.suspect.offset != lowest {
                self.suspect = Suspect { offset: lowest, disconnects: 0 };
            }
            if error.is_by_peer() {
                self.suspect.disconnects += 1;
            }
        }
        end
    }

    /// Sends and settles events until the session ends or has to pause.
    async fn transfer(&mut self, session: &mut Session, output: &mut Output, shutdown: &mut Shutdown) -> SessionEnd {
        let limits = session.limits();
        // Events have to be sent again: nothing more is sent until all publishes in flight are answered.
        let mut must_rewind = false;
        let connect_as = ConnectAs::client(self.client.clone());
        let mut failback = Failback::new(&self.target, &connect_as, session.broker_index());
        let mut replacement = None;
        loop {
            if self.suspect.disconnects >= DISCONNECTS_BEFORE_PROBE {
                match self.probe(session, output, shutdown).await {
                    Some(end) => return end,
                    None => continue,
                }
            }
            let is_rotating = replacement.is_none() && self.rotation.is_due();
            // The jump to the live end waits for the publishes in flight.
            let mut is_jumping = !must_rewind && self.is_live_lagging();
            if is_jumping && self.flight.is_empty() {
                self.rewind();
                is_jumping = false;
            }
            let is_sending = !must_rewind && !is_jumping && replacement.is_none() && !is_rotating;
            let window = if is_sending { usize::from(self.config.window.min(limits.receive_maximum)) } else { 0 };
            let (is_complete, may_send_in) = self.fill(session, output, window).await;
            must_rewind |= !is_complete;
            self.stats.set(|state| state.in_flight = self.flight.count());
            // The readers have already passed the events to send again, which still count as backlog.
            if !must_rewind {
                self.report_progress();
            }
            if self.flight.is_empty() {
                match replacement.take() {
                    Some(session) => {
                        return SessionEnd::Replaced(session, "a broker earlier in the list is reachable again");
                    }
                    None if must_rewind => return SessionEnd::Pause,
                    None if is_rotating => match self.rotate_credentials(shutdown).await {
                        Some(end) => return end,
                        None => continue,
                    },
                    None => {}
                }
            }
            let mut next_check = match session.check(!self.flight.is_empty(), output) {
                Ok(wait) => wait.min(self.batch_due.unwrap_or(Duration::MAX)),
                Err(error) => return SessionEnd::Lost(error),
            };
            if !may_send_in.is_zero() {
                next_check = next_check.min(may_send_in);
            }
            let has_room = may_send_in.is_zero() && self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES;
            let has_primary_block = self.primary.block.is_some();
            let (wants_primary, wants_backfill) = (
                has_room && !has_primary_block,
                has_room && !has_primary_block && self.backfill.block.is_none() && !self.backfill.is_over(),
            );
            let Self { primary, backfill, rotation, .. } = self;
            // Every arm is safe to drop half-way.
            let found = tokio::select! {
                biased;
                () = shutdown.begun() => return SessionEnd::Shutdown,
                result = session.exchange(output) => match result {
                    Ok(()) => None,
                    Err(error) => return SessionEnd::Lost(error),
                },
                found = primary.find(), if wants_primary => Some((found, ReaderKind::Primary)),
                found = backfill.find(), if wants_backfill => Some((found, ReaderKind::Backfill)),
                session = failback.reconnected(), if replacement.is_none() => {
                    replacement = Some(session);
                    None
                },
                () = rotation.changed(), if !is_rotating => None,
                () = tokio::time::sleep(next_check) => None,
            };
            match found {
                Some((Some(found), kind)) => self.load(found, kind),
                Some((None, _)) => return SessionEnd::Shutdown,
                None => {}
            }
            match self.handle_replies(session).await {
                Ok(is_all_settled) => must_rewind |= !is_all_settled,
                Err(end) => return end,
            }
        }
    }

    /// Keeps the session alive for `wait` without sending events.
    async fn wait_connected(
        &mut self,
        session: &mut Session,
        output: &mut Output,
        shutdown: &mut Shutdown,
        wait: Duration,
    ) -> Option<SessionEnd> {
        let pause = tokio::time::sleep(wait);
        tokio::pin!(pause);
        loop {
            let next_check = match session.check(false, output) {
                Ok(wait) => wait,
                Err(error) => return Some(SessionEnd::Lost(error)),
            };
            tokio::select! {
                () = shutdown.begun() => return Some(SessionEnd::Shutdown),
                () = &mut pause => return None,
                result = session.exchange(output) => if let Err(error) = result {
                    return Some(SessionEnd::Lost(error));
                },
                () = tokio::time::sleep(next_check) => {}
            }
            if let Err(end) = self.handle_replies(session).await {
                return Some(end);
            }
        }
    }

    /// Waits up to 2 s for outstanding acknowledgements, to avoid sending these events again.
    async fn drain(&mut self, session: &mut Session, output: &mut Output) {
        let deadline = tokio::time::sleep(Duration::from_secs(2));
        tokio::pin!(deadline);
        while !self.flight.is_empty() {
            tokio::select! {
                () = &mut deadline => return,
                result = session.exchange(output) => if result.is_err() {
                    return;
                },
            }
            if self.handle_replies(session).await.is_err() {
                return;
            }
        }
    }

    fn load(&mut self, found: ReadResult, kind: ReaderKind) {
        let reader = match kind {
            ReaderKind::Primary => &mut self.primary,
            ReaderKind::Backfill => &mut self.backfill,
        };
        match found {
            ReadResult::Block(block) => {
                reader.next = reader.next.max(block.header.first);
                reader.block = Some(BlockReader::new(block));
            }
            ReadResult::Lost { to } => {
                tracing::error!(lane = %self.lane.name, from = reader.next, to, "events are lost: their segment is damaged and quarantined; continuing after it");
                self.lane.mark_lost(&self.config.name, reader.next, to);
                reader.next = to;
            }
        }
    }
}

/// One of the two readers of a forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderKind {
    Primary,
    Backfill,
}
