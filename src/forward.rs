//! Forward: takes a lane's events to one destination, and settles what central acknowledged.
//!
//! Promise: an event is settled only on central's answer, or once it is a dead letter on the disk;
//! first deliveries of one key are in order; one event that central cannot stand blocks nobody.
//! Invariants:
//! - one forwarder and one connection for each lane and destination, so that none harms another;
//! - what is in flight is bounded by the window, and is read again from the journal after a loss.
//!
//! Not here: how bytes travel (`link`), where events are kept (`journal`).

mod answers;
mod flight;
mod rivals;
pub mod status;

use crate::clock;
use crate::contract::Rendering;
use crate::event::Timestamp;
use crate::journal::{Follower, Found, Lane, Outcome, Settled, Step, Walk};
use crate::link::{self, Head, LinkError, Output, Protocol, Session, Target, jitter, reconnect_wait};
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::telemetry::{Counter, Histogram, Limiter};
use crate::tls::ClientFiles;
use flight::Flight;
use rivals::Rivals;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How a destination is forwarded to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the destination.
    pub name: String,
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS.
    pub url: String,
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
            url: self.url.clone(),
            tls: self.tls.clone(),
            protocol: self.protocol,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive.0,
            answer_wait_max: self.answer_wait_max.0,
        })
    }

    /// Whether a stream goes to this destination.
    pub fn takes(&self, stream: &str) -> bool {
        self.streams.is_empty()
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
    /// Sessions that were opened.
    pub connects: Counter,
    /// From sending to acknowledgement.
    pub answer: Histogram,
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
}

impl Stats {
    /// How the connection stands.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Takes one lane to one destination.
#[derive(Debug)]
pub struct Forwarder {
    config: Arc<Config>,
    target: Target,
    client: String,
    lane: Arc<Lane>,
    dead: Arc<Lane>,
    stats: Arc<Stats>,
    follower: Follower,
    /// The event to send next.
    next: u64,
    /// What is settled above the lowest that is not.
    skip: Settled,
    block: Option<Walk>,
    flight: Flight,
    rendering: Rendering,
    deaths: Deaths,
    refused_pause: Duration,
    warnings: Limiter,
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
}

impl Forwarder {
    /// A forwarder for a lane. `client` is its MQTT client id.
    pub fn new(
        config: Arc<Config>,
        client: String,
        lane: &Arc<Lane>,
        dead: &Arc<Lane>,
        stats: Arc<Stats>,
    ) -> Result<Self, String> {
        let target = config.target()?;
        Ok(Self {
            target,
            client,
            follower: Follower::new(lane),
            lane: Arc::clone(lane),
            dead: Arc::clone(dead),
            stats,
            next: 0,
            skip: Settled::default(),
            block: None,
            flight: Flight::default(),
            rendering: Rendering::default(),
            deaths: Deaths::default(),
            refused_pause: REFUSED_PAUSE.0,
            warnings: Limiter::new(Duration::from_secs(60)),
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
            let connected = tokio::select! {
                () = shutdown.begun() => break,
                connected = self.target.connect(&self.client, None) => connected,
            };
            let error = match connected {
                Ok(session) => {
                    tracing::info!(lane = %self.lane.name, destination = %self.config.name, broker = %self.target.name(), "link up");
                    self.stats.connects.add(1);
                    self.set_state(true, None);
                    let delivered = self.stats.delivered.value();
                    let began = clock::instant();
                    let end = self.serve(session, &mut shutdown).await;
                    if self.stats.delivered.value() > delivered {
                        (down_since, attempt) = (None, 0);
                    }
                    match end {
                        End::Shutdown => break,
                        End::Pause => unreachable!("a pause does not end a session"),
                        End::Lost(error) => {
                            rivals.note(&error, clock::instant().duration_since(began), self.flight.is_empty());
                            error
                        }
                    }
                }
                Err(error) => error,
            };
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
        });
        is_news
    }

    /// Starts again from the lowest event that is not settled.
    fn resume(&mut self) {
        self.flight.clear();
        self.block = None;
        let settled = self.lane.settled(&self.config.name).unwrap_or_default();
        self.next = settled.low.max(1);
        self.skip = settled;
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
        loop {
            let probing = self.deaths.count >= DEATHS_BEFORE_PROBE;
            if probing {
                match self.probe(session, output, shutdown).await {
                    Some(end) => return end,
                    None => continue,
                }
            }
            let window = if must_resume { 0 } else { usize::from(self.config.window.min(limits.receive_maximum)) };
            must_resume |= !self.fill(session, output, window).await;
            self.stats.set(|state| state.in_flight = self.flight.count());
            if must_resume && self.flight.is_empty() {
                return End::Pause;
            }
            let look_again = match session.watch(!self.flight.is_empty(), output) {
                Ok(wait) => wait,
                Err(error) => return End::Lost(error),
            };
            let wants_more = self.block.is_none() && self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES;
            let Self { follower, next, .. } = self;
            // Every arm is safe to drop half-way.
            let found = tokio::select! {
                biased;
                () = shutdown.begun() => return End::Shutdown,
                moved = session.exchange(output) => match moved {
                    Ok(()) => None,
                    Err(error) => return End::Lost(error),
                },
                found = follower.find(*next), if wants_more => match found {
                    Some(found) => Some(found),
                    None => return End::Shutdown,
                },
                () = tokio::time::sleep(look_again) => None,
            };
            if let Some(found) = found {
                self.enter(found);
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

    /// Sends the lowest event alone, over a session that has just shown that it is alive. If that
    /// kills it, the event is what kills it.
    async fn probe(&mut self, session: &mut Session, output: &mut Output, shutdown: &mut Shutdown) -> Option<End> {
        let suspect = self.deaths.lowest;
        self.resume();
        session.ask(output);
        let mut is_sent = false;
        loop {
            if !session.is_asked() && !is_sent {
                if self.block.is_none() {
                    let found = self.follower.find(self.next).await;
                    match found {
                        Some(found) => self.enter(found),
                        None => return Some(End::Shutdown),
                    }
                }
                if !self.fill(session, output, 1).await {
                    return Some(End::Pause);
                }
                is_sent = true;
            }
            if is_sent && self.flight.is_empty() {
                // It was taken: the connection died of something else.
                self.deaths = Deaths::default();
                return None;
            }
            let look_again = match session.watch(!self.flight.is_empty(), output) {
                Ok(wait) => wait,
                Err(error) => return Some(End::Lost(error)),
            };
            let moved = tokio::select! {
                () = shutdown.begun() => return Some(End::Shutdown),
                moved = session.exchange(output) => moved,
                () = tokio::time::sleep(look_again) => Ok(()),
            };
            let answers = match moved {
                Ok(()) => match self.settle_answers(session).await {
                    Ok(true) => Ok(()),
                    Ok(false) => return Some(End::Pause),
                    Err(end) => Err(end),
                },
                Err(error) => Err(End::Lost(error)),
            };
            if let Err(end) = answers {
                if is_sent
                    && self.flight.lowest() == Some(suspect)
                    && matches!(&end, End::Lost(error) if error.is_by_peer())
                {
                    let reason = "central ends the connection whenever it is sent this event";
                    self.bury(&[(suspect, reason.into())]).await;
                    self.deaths = Deaths::default();
                    self.flight.clear();
                }
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

    fn enter(&mut self, found: Found) {
        match found {
            Found::Block(block) => {
                self.next = self.next.max(block.header.first);
                self.block = Some(Walk::new(block));
            }
            Found::Lost { to } => {
                tracing::error!(lane = %self.lane.name, from = self.next, to, "events are in a file that is set aside; going on behind it");
                self.lane.pass_over(&self.config.name, self.next, to);
                self.next = to;
            }
        }
    }

    /// Renders events into `output` as far as window and buffer allow. `false`: one of them has to
    /// be looked at again.
    async fn fill(&mut self, session: &Session, output: &mut Output, window: usize) -> bool {
        let limits = session.limits();
        let mut poison = Vec::new();
        let mut not_owed = Vec::new();
        let now = clock::instant();
        let mut sent = 0;
        while self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES {
            let Some(walk) = &mut self.block else { break };
            let recorded = walk.recorded();
            let end = walk.end();
            let Some(Step { offset, record, numbered }) = walk.step(&self.lane) else {
                self.next = end;
                self.block = None;
                break;
            };
            if offset < self.next || self.skip.contains(offset) {
                continue;
            }
            self.next = offset + 1;
            let Some((published, sequence)) = numbered else {
                poison.push((offset, "the contract of this event is lost".to_owned()));
                continue;
            };
            if !self.config.takes(&published.publication.stream) {
                not_owed.push((offset, published.stream, Outcome::NotOwed));
                continue;
            }
            let is_v5 = session.protocol() == Protocol::V5;
            published.renderer.render(&record, sequence, recorded, is_v5, &mut self.rendering);
            let start = output.bytes.len();
            let id = self.flight.next_id();
            let out = &self.rendering;
            let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
            link::push_publish(
                &mut output.bytes,
                session.protocol(),
                &Head::qos1(id),
                &out.topic,
                content_type,
                &out.properties,
                &out.payload,
            );
            let bytes = output.bytes.len() - start;
            if bytes > limits.packet_bytes_max {
                output.bytes.truncate(start);
                poison.push((
                    offset,
                    format!("packet of {bytes} bytes: the broker takes {} at most", limits.packet_bytes_max),
                ));
                continue;
            }
            self.flight.push(offset, published.stream, now);
            sent += 1;
        }
        self.stats.sent.add(sent);
        if !not_owed.is_empty() {
            self.lane.settle(&self.config.name, &not_owed);
        }
        self.bury(&poison).await
    }
}
