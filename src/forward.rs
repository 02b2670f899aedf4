//! Forward: takes a lane's events to one destination, and settles what central acknowledged.
//!
//! Promise: an event is settled only on central's answer, or once it is a dead letter on the disk;
//! first deliveries of one key are in order; one event that central cannot stand blocks nobody.
//! Invariants:
//! - one forwarder and one connection for each lane and destination, so that none harms another;
//! - what is in flight is bounded by the window, and is read again from the journal after a loss.
//!
//! Not here: how bytes travel (`link`), where events are kept (`journal`).

pub mod again;
mod answers;
mod batch;
mod fill;
mod flight;
mod followed;
mod look_back;
mod pace;
mod probe;
mod reading;
mod renewal;
mod rivals;
pub mod status;

pub use batch::{BATCH, BATCH_ZSTD};
pub use pace::{Batch, CatchUp, Compression, Hours, Pressure, Rate, Sending};
pub use renewal::Renewal;

use crate::clock;
use crate::contract::Rendering;
use crate::event::Timestamp;
use crate::journal::{Found, Lane, Settled, Walk};
use crate::link::{self, LinkError, Output, Protocol, Session, Target, jitter, reconnect_wait};
use crate::setting::{Bytes, Span};
use crate::shutdown::Shutdown;
use crate::telemetry::{Counter, Histogram, Limiter};
use crate::tls::ClientFiles;
use batch::Gatherings;
use flight::Flight;
use followed::Followed;
use look_back::LookBack;
use pace::Pacer;
use parking_lot::Mutex;
use reading::Reading;
use rivals::Rivals;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a destination is forwarded to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the destination.
    pub name: String,
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS. Several are tried in order.
    pub url: Urls,
    /// Certificates.
    #[serde(default)]
    pub tls: ClientFiles,
    /// Version of MQTT.
    #[serde(default)]
    pub protocol: Protocol,
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// How long the line may be silent before it is probed.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    /// How long an event may stay unanswered while the line is alive.
    #[serde(default = "answer_wait_max")]
    pub answer_wait_max: Span,
    /// Publishes in flight at most; the broker may allow fewer.
    #[serde(default = "window")]
    pub window: u16,
    /// Streams to send; `*` at the end stands for any rest. All, if there is none.
    #[serde(default)]
    pub streams: Vec<String>,
    /// Whether an event that nobody has subscribed to is held and tried again.
    #[serde(default)]
    pub require_subscriber: bool,
    /// Where a new destination starts.
    #[serde(default)]
    pub from: crate::journal::Start,
    /// Bytes of each lane that it may hold back; what it needs beyond that is given up, for it alone.
    pub hold: Option<Bytes>,
    /// Topic level in front of what is sent again by `forebay replay`; none for MQTT 5 by default.
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
    /// The broker, if the URL leads to one.
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

    /// Whether a stream goes to this destination. The gateway's own always do: they say what is complete.
    pub fn takes(&self, stream: &str) -> bool {
        self.streams.is_empty()
            || stream.starts_with("gateway.")
            || self.streams.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => stream.starts_with(start),
                None => stream == pattern,
            })
    }
}

/// Bytes written at once.
const OUTPUT_BYTES: usize = 64 << 10;
/// Pauses after a refusal for now.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A connection that dies so often with the same lowest event is probed with that event alone.
const DEATHS_BEFORE_PROBE: u32 = 3;
/// Whether a part of the day has begun or ended is looked at that often.
const HOURS_LOOK: Duration = Duration::from_secs(5);
/// What is settled above a gap grows by a range each time that the live end is taken up anew; with more
/// ranges than this the backlog goes first.
const LIVE_RANGES_MAX: usize = 64;
/// So many windows behind for so long, `live-first` takes up the live end anew, though the session lasts.
const LIVE_LAG_WINDOWS: u64 = 4;
const LIVE_LAG: Duration = Duration::from_secs(2);

/// What a forwarder counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events that central acknowledged.
    pub delivered: Counter,
    /// Of those, how many nobody had subscribed to.
    pub unheard: Counter,
    /// Publishes sent, repeats included.
    pub sent: Counter,
    /// Events that central refused for now.
    pub refused_for_now: Counter,
    /// Events that became dead letters here.
    pub dead: Counter,
    /// Publishes whose answer was lost with the session, and that are sent again.
    pub repeated: Counter,
    /// Sessions that were opened.
    pub connects: Counter,
    /// Sessions that were lost, and attempts to open one that failed.
    pub failures: Counter,
    /// From sending to acknowledgement.
    pub answer: Histogram,
    /// From taking an event to its acknowledgement; of a batch, its oldest event.
    pub settle: Histogram,
    state: Mutex<State>,
}

/// How the connection stands.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whether there is a session.
    pub is_up: bool,
    /// Since when it is as it is.
    pub since: Option<Timestamp>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Publishes in flight.
    pub in_flight: usize,
    /// What a person should know, though the session lasts.
    pub note: Option<String>,
}

impl Stats {
    /// How the connection stands.
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
    }
}

/// Takes one lane to one destination.
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
    /// What goes out first.
    front: Reading,
    /// The backlog behind it (`live-first`).
    behind: Reading,
    gatherings: Gatherings,
    pacer: Pacer,
    /// What is settled above the lowest that is not.
    skip: Settled,
    flight: Flight,
    followed: Followed,
    rendering: Rendering,
    deaths: Deaths,
    refused_pause: Duration,
    warnings: Limiter,
    /// `live-first`: the end as it was, and when, since the front lags far behind it.
    lagging: Option<(u64, Instant)>,
    /// How long until a batch that gathers has waited long enough.
    batch_due: Option<Duration>,
    renewal: Renewal,
}

#[derive(Debug, Default)]
struct Deaths {
    lowest: u64,
    count: u32,
}

/// Why a session is over.
enum End {
    Shutdown,
    Lost(LinkError),
    /// Central refused for now: the same session goes on after a pause.
    Pause,
    /// Another session takes its place, and why.
    Better(Box<Session>, &'static str),
}

/// Where a forwarder belongs.
#[derive(Clone, Debug)]
pub struct Place {
    /// The destination.
    pub config: Arc<Config>,
    /// How its lane is sent.
    pub sending: Arc<Sending>,
    /// How far the lanes of the destination are behind.
    pub pressure: Arc<Pressure>,
    /// Its MQTT client id.
    pub client: String,
    /// Hears of new certificates and passwords.
    pub renewal: Renewal,
}

impl Forwarder {
    /// A forwarder for a lane.
    pub fn new(place: Place, lane: &Arc<Lane>, dead: &Arc<Lane>, stats: Arc<Stats>) -> Result<Self, String> {
        let Place { config, sending, pressure, client, renewal } = place;
        let target = Arc::new(config.target()?);
        Ok(Self {
            sending,
            pressure,
            target,
            client,
            front: Reading::new(lane, 1, u64::MAX),
            behind: Reading::new(lane, 1, 1),
            gatherings: Gatherings::default(),
            pacer: Pacer::new(),
            lane: Arc::clone(lane),
            dead: Arc::clone(dead),
            stats,
            skip: Settled::default(),
            flight: Flight::default(),
            followed: Followed::default(),
            rendering: Rendering::default(),
            deaths: Deaths::default(),
            refused_pause: REFUSED_PAUSE.0,
            warnings: Limiter::new(Duration::from_secs(60)),
            lagging: None,
            batch_due: None,
            renewal,
            config,
        })
    }

    /// Works until the shutdown; then waits a moment for what is in flight.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut down_since: Option<Instant> = None;
        let mut attempt = 0u32;
        let mut rivals = Rivals::default();
        loop {
            self.resume();
            self.renewal.done();
            let connected = tokio::select! {
                () = shutdown.begun() => break,
                connected = self.target.connect(&self.client, None) => connected,
            };
            let error = match connected {
                Ok(session) => {
                    tracing::info!(lane = %self.lane.name, destination = %self.config.name, broker = %session.broker(), "link up");
                    self.stats.connects.add(1);
                    self.set_state(true, None);
                    let delivered = self.stats.delivered.value();
                    let began = clock::instant();
                    let end = self.serve(session, &mut shutdown).await;
                    self.note_behind();
                    if self.stats.delivered.value() > delivered {
                        (down_since, attempt) = (None, 0);
                    }
                    match end {
                        End::Shutdown => break,
                        End::Pause | End::Better(..) => unreachable!("serve goes on after these"),
                        End::Lost(error) => {
                            rivals.note(&error, clock::instant().duration_since(began), self.flight.is_empty());
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            self.stats.failures.add(1);
            let reason = match rivals.wait() {
                None => error.to_string(),
                Some(_) => {
                    let how_sure = if rivals.is_certain() { "" } else { "sessions end at once; perhaps " };
                    let client = &self.client;
                    format!(
                        "{how_sure}another client uses the client id \"{client}\": is there a second gateway of that name? ({error})"
                    )
                }
            };
            let now = clock::instant();
            let down_for = now.duration_since(*down_since.get_or_insert(now));
            let wait = rivals.wait().unwrap_or_else(|| reconnect_wait(down_for, attempt));
            attempt += 1;
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

    /// Notes how the connection stands; `true` if that is news.
    fn set_state(&self, is_up: bool, reason: Option<String>) -> bool {
        let mut is_news = false;
        self.stats.set(|state| {
            is_news = state.is_up != is_up || state.since.is_none() || state.reason != reason;
            if state.is_up != is_up || state.since.is_none() {
                state.since = Some(Timestamp::from(clock::wall()));
            }
            state.is_up = is_up;
            state.reason = reason;
            state.in_flight = 0;
            state.note = None;
        });
        is_news
    }

    /// Starts again from the lowest event that is not settled; `live-first`, from the end, with the backlog behind.
    fn resume(&mut self) {
        self.stats.repeated.add(self.flight.count() as u64);
        self.flight.clear();
        self.followed.clear();
        self.gatherings.clear();
        let settled = self.lane.settled(&self.config.name).unwrap_or_default();
        let (low, end) = (settled.low.max(1), self.front.end());
        let is_live_first = self.sending.catch_up == CatchUp::LiveFirst
            && end.saturating_sub(low) > u64::from(self.config.window)
            && settled.ranges.len() <= LIVE_RANGES_MAX;
        if is_live_first {
            self.front.restart(end, u64::MAX);
            self.behind.restart(low, end);
        } else {
            self.front.restart(low, u64::MAX);
            self.behind.restart(low, low);
        }
        self.skip = settled;
        self.note_behind();
    }

    /// Whether what comes now would wait behind what came while hours, a ceiling or the line held it back.
    fn is_live_far_ahead(&mut self) -> bool {
        if self.sending.catch_up != CatchUp::LiveFirst {
            return false;
        }
        let (end, now) = (self.front.end(), clock::instant());
        let events = self.sending.batch.as_ref().map_or(1, |batch| batch.events as u64);
        let lag_max = LIVE_LAG_WINDOWS * u64::from(self.config.window) * events;
        // A large commit is no lag: it has to last.
        let (seen, since) = match self.lagging {
            Some((seen, since)) if self.front.next < seen => (seen, since),
            _ => (end, now),
        };
        self.lagging = (end.saturating_sub(self.front.next) > lag_max).then_some((seen, since));
        self.lagging.is_some()
            && now.duration_since(since) >= LIVE_LAG
            && self.lane.settled(&self.config.name).is_some_and(|settled| settled.ranges.len() <= LIVE_RANGES_MAX)
    }

    /// Says how far this lane is behind.
    fn note_behind(&self) {
        let end = self.front.end();
        let unread = end.saturating_sub(self.front.next) + self.behind.until.saturating_sub(self.behind.next);
        self.pressure.note(&self.lane.name, end.saturating_sub(unread + self.flight.count() as u64));
    }

    async fn serve(&mut self, mut session: Session, shutdown: &mut Shutdown) -> End {
        let mut output = Output::default();
        loop {
            let end = self.pump(&mut session, &mut output, shutdown).await;
            match end {
                End::Pause => {
                    self.resume();
                    let wait = jitter(self.refused_pause, self.refused_pause * 2);
                    self.refused_pause = (self.refused_pause * 2).min(REFUSED_PAUSE.1);
                    if let Some(end) = self.idle(&mut session, &mut output, shutdown, wait).await {
                        return self.note_death(end);
                    }
                }
                End::Better(better, why) => {
                    std::mem::replace(&mut session, *better).close().await;
                    output = Output::default();
                    tracing::info!(lane = %self.lane.name, destination = %self.config.name, broker = %session.broker(), "another session goes on: {why}");
                    self.resume();
                }
                End::Shutdown => {
                    self.drain(&mut session, &mut output).await;
                    session.close().await;
                    return End::Shutdown;
                }
                End::Lost(_) => return self.note_death(end),
            }
        }
    }

    /// Remembers a connection that the peer ended while events were in flight.
    fn note_death(&mut self, end: End) -> End {
        if let (End::Lost(error), Some(lowest)) = (&end, self.flight.lowest()) {
            if !error.is_by_peer() || self.deaths.lowest != lowest {
                self.deaths = Deaths { lowest, count: 0 };
            }
            if error.is_by_peer() {
                self.deaths.count += 1;
            }
        }
        end
    }

    /// Sends and settles until something ends that.
    async fn pump(&mut self, session: &mut Session, output: &mut Output, shutdown: &mut Shutdown) -> End {
        let limits = session.limits();
        // Something has to be sent again: what is in flight is awaited, and nothing else is sent.
        let mut must_resume = false;
        let mut look_back = LookBack::new(&self.target, &self.client, session.place(), None);
        let mut better = None;
        loop {
            if self.deaths.count >= DEATHS_BEFORE_PROBE {
                match self.probe(session, output, shutdown).await {
                    Some(end) => return end,
                    None => continue,
                }
            }
            let is_renewing = better.is_none() && self.renewal.is_due();
            // What is in flight is awaited first.
            let mut is_turning = !must_resume && self.is_live_far_ahead();
            if is_turning && self.flight.is_empty() {
                self.resume();
                is_turning = false;
            }
            let is_sending = !must_resume && !is_turning && better.is_none() && !is_renewing;
            let window = if is_sending { usize::from(self.config.window.min(limits.receive_maximum)) } else { 0 };
            let (is_good, may_send_in) = self.fill(session, output, window).await;
            must_resume |= !is_good;
            self.stats.set(|state| state.in_flight = self.flight.count());
            // What is to be sent again is behind, although the reading has passed it.
            if !must_resume {
                self.note_behind();
            }
            if self.flight.is_empty() {
                match better.take() {
                    Some(session) => return End::Better(session, "an earlier broker is back"),
                    None if must_resume => return End::Pause,
                    None if is_renewing => match self.renew(shutdown).await {
                        Some(end) => return end,
                        None => continue,
                    },
                    None => {}
                }
            }
            let mut look_again = match session.watch(!self.flight.is_empty(), output) {
                Ok(wait) => wait.min(self.batch_due.unwrap_or(Duration::MAX)),
                Err(error) => return End::Lost(error),
            };
            if !may_send_in.is_zero() {
                look_again = look_again.min(may_send_in);
            }
            let has_room = may_send_in.is_zero() && self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES;
            let has_front = self.front.block.is_some();
            let (wants_front, wants_behind) = (
                has_room && !has_front,
                has_room && !has_front && self.behind.block.is_none() && !self.behind.is_over(),
            );
            let Self { front, behind, renewal, .. } = self;
            // Every arm is safe to drop half-way.
            let found = tokio::select! {
                biased;
                () = shutdown.begun() => return End::Shutdown,
                moved = session.exchange(output) => match moved {
                    Ok(()) => None,
                    Err(error) => return End::Lost(error),
                },
                found = front.find(), if wants_front => Some((found, Which::Front)),
                found = behind.find(), if wants_behind => Some((found, Which::Behind)),
                session = look_back.found(), if better.is_none() => {
                    better = Some(session);
                    None
                },
                () = renewal.wait(), if !is_renewing => None,
                () = tokio::time::sleep(look_again) => None,
            };
            match found {
                Some((Some(found), which)) => self.enter(found, which),
                Some((None, _)) => return End::Shutdown,
                None => {}
            }
            match self.settle_answers(session).await {
                Ok(is_all_settled) => must_resume |= !is_all_settled,
                Err(end) => return end,
            }
        }
    }

    /// Keeps the session alive without sending anything.
    async fn idle(
        &mut self,
        session: &mut Session,
        output: &mut Output,
        shutdown: &mut Shutdown,
        wait: Duration,
    ) -> Option<End> {
        let pause = tokio::time::sleep(wait);
        tokio::pin!(pause);
        loop {
            let look_again = match session.watch(false, output) {
                Ok(wait) => wait,
                Err(error) => return Some(End::Lost(error)),
            };
            tokio::select! {
                () = shutdown.begun() => return Some(End::Shutdown),
                () = &mut pause => return None,
                moved = session.exchange(output) => if let Err(error) = moved {
                    return Some(End::Lost(error));
                },
                () = tokio::time::sleep(look_again) => {}
            }
            if let Err(end) = self.settle_answers(session).await {
                return Some(end);
            }
        }
    }

    /// A last moment for what is in flight, so that it need not be sent again.
    async fn drain(&mut self, session: &mut Session, output: &mut Output) {
        let deadline = tokio::time::sleep(Duration::from_secs(2));
        tokio::pin!(deadline);
        while !self.flight.is_empty() {
            tokio::select! {
                () = &mut deadline => return,
                moved = session.exchange(output) => if moved.is_err() {
                    return;
                },
            }
            if self.settle_answers(session).await.is_err() {
                return;
            }
        }
    }

    fn enter(&mut self, found: Found, which: Which) {
        let reading = match which {
            Which::Front => &mut self.front,
            Which::Behind => &mut self.behind,
        };
        match found {
            Found::Block(block) => {
                reading.next = reading.next.max(block.header.first);
                reading.block = Some(Walk::new(block));
            }
            Found::Lost { to } => {
                tracing::error!(lane = %self.lane.name, from = reading.next, to, "events are in a file that is set aside; going on behind it");
                self.lane.mark_lost(&self.config.name, reading.next, to);
                reading.next = to;
            }
        }
    }
}

/// Which of a forwarder's two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Front,
    Behind,
}
