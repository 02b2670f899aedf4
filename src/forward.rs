//! Forward: takes a lane's events to one destination, and settles what central acknowledged.
//!
//! Promise: an event is settled only on central's answer, or once it is a dead letter on the disk;
//! first deliveries of one key are in order; one event that central cannot stand blocks nobody.
//! Invariants:
//! - one forwarder and one connection for each lane and destination, so that none harms another;
//! - what is in flight is bounded by the window, and is read again from the journal after a loss.
//!
//! Not here: how bytes travel (`link`), where events are kept (`journal`).

mod flight;
pub mod status;

use crate::clock;
use crate::contract::Rendering;
use crate::event::{Record, Timestamp};
use crate::ingest::dead::{DeadLetter, Stage};
use crate::journal::{Block, Follower, Found, Lane, Outcome, Published, Settled, Waiter};
use crate::link::{self, Answer, LinkError, Output, Protocol, Refusal, Session, Target};
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::telemetry::{Counter, Histogram, Limiter};
use crate::tls::ClientFiles;
use flight::Flight;
use serde::Deserialize;
use std::borrow::Cow;
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
/// Reconnects in the first minute are this far apart, at random.
const RECONNECT_EARLY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(750));
const RECONNECT_EARLY_FOR: Duration = Duration::from_secs(60);
const RECONNECT_MAX: Duration = Duration::from_secs(30);
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
    block: Option<Place>,
    flight: Flight,
    rendering: Rendering,
    published: Option<Arc<Published>>,
    deaths: Deaths,
    refused_pause: Duration,
    warnings: Limiter,
}

/// Where in a block the next event is.
#[derive(Debug)]
struct Place {
    block: Arc<Block>,
    at: usize,
    offset: u64,
    /// Next sequence of each run of the block.
    sequences: Vec<(u32, u64)>,
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
            published: None,
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
                    let end = self.serve(session, &mut shutdown).await;
                    if self.stats.delivered.value() > delivered {
                        (down_since, attempt) = (None, 0);
                    }
                    match end {
                        End::Shutdown => break,
                        End::Pause => unreachable!("a pause does not end a session"),
                        End::Lost(error) => error,
                    }
                }
                Err(error) => error,
            };
            let now = clock::instant();
            let down_for = now.duration_since(*down_since.get_or_insert(now));
            let wait = reconnect_wait(down_for, attempt);
            attempt += 1;
            if self.set_state(false, Some(error.to_string())) {
                tracing::warn!(lane = %self.lane.name, destination = %self.config.name, %error, "link down, will reconnect");
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
        let mut refused = None;
        loop {
            let probing = self.deaths.count >= DEATHS_BEFORE_PROBE;
            if probing {
                match self.probe(session, output, shutdown).await {
                    Some(end) => return end,
                    None => continue,
                }
            }
            let window =
                if refused.is_some() { 0 } else { usize::from(self.config.window.min(limits.receive_maximum)) };
            if let Err(end) = self.fill(session, output, window).await {
                return end;
            }
            self.stats.set(|state| state.in_flight = self.flight.count());
            if refused.is_some() && self.flight.is_empty() {
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
                Ok(None) => {}
                Ok(Some(lowest)) => refused = Some(refused.map_or(lowest, |before: u64| before.min(lowest))),
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
                if let Err(end) = self.fill(session, output, 1).await {
                    return Some(end);
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
                Ok(()) => self.settle_answers(session).await.map(|_| ()),
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
                let sequences = block.header.runs.iter().map(|run| (run.stream, run.first)).collect();
                self.block = Some(Place { at: block.start(), offset: block.header.first, sequences, block });
            }
            Found::Lost { to } => {
                tracing::error!(lane = %self.lane.name, from = self.next, to, "events are in a file that is set aside; going on behind it");
                self.lane.pass_over(&self.config.name, to);
                self.next = to;
            }
        }
    }

    /// Renders events into `output` as far as window and buffer allow.
    async fn fill(&mut self, session: &Session, output: &mut Output, window: usize) -> Result<(), End> {
        let limits = session.limits();
        let mut poison = Vec::new();
        let mut not_owed = Vec::new();
        let now = clock::instant();
        let mut sent = 0;
        while self.flight.has_room(window) && output.waiting() < OUTPUT_BYTES {
            let Some(place) = &mut self.block else { break };
            let Some((record, after)) = place.block.record_at(place.at) else {
                self.next = place.block.end();
                self.block = None;
                break;
            };
            let offset = place.offset;
            place.at = after;
            place.offset += 1;
            let stream_and_sequence = number(&self.lane, &mut self.published, &mut place.sequences, &record);
            if offset < self.next || self.skip.contains(offset) {
                continue;
            }
            self.next = offset + 1;
            let Some((published, sequence)) = stream_and_sequence else {
                poison.push((offset, "the contract of this event is lost".to_owned()));
                continue;
            };
            if !self.config.takes(&published.publication.stream) {
                not_owed.push((offset, published.stream, Outcome::NotOwed));
                continue;
            }
            let recorded = place.block.header.recorded;
            let is_v5 = session.protocol() == Protocol::V5;
            published.renderer.render(&record, sequence, recorded, is_v5, &mut self.rendering);
            let start = output.bytes.len();
            let id = self.flight.next_id();
            let out = &self.rendering;
            let content_type = out.content_type_own.as_deref().unwrap_or(out.content_type);
            link::push_publish(
                &mut output.bytes,
                session.protocol(),
                id,
                false,
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
        if !poison.is_empty() {
            self.bury(&poison).await;
        }
        Ok(())
    }

    /// Settles what central has answered. `Some` is the lowest event it refuses for now.
    async fn settle_answers(&mut self, session: &mut Session) -> Result<Option<u64>, End> {
        let mut settled: Vec<(u64, u32, Outcome)> = Vec::new();
        let mut poison = Vec::new();
        let mut refused: Option<u64> = None;
        let mut end = Ok(());
        let now = clock::instant();
        loop {
            let (id, refusal) = match session.answer() {
                Ok(None) => break,
                Ok(Some(Answer::Alive | Answer::Connected { .. })) => continue,
                Ok(Some(Answer::Taken(id))) => (id, None),
                Ok(Some(Answer::Unheard(id))) => {
                    self.stats.unheard.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central acknowledged an event that nobody there has subscribed to");
                    }
                    let holds = self.config.require_subscriber;
                    (id, holds.then_some(Refusal::ForNow(0x10, "no matching subscribers")))
                }
                Ok(Some(Answer::Refused(id, refusal))) => (id, Some(refusal)),
                Ok(Some(Answer::NotConnected(reason) | Answer::Goodbye(reason))) => {
                    end = Err(End::Lost(LinkError::Ended(reason)));
                    break;
                }
                Err(error) => {
                    end = Err(End::Lost(error));
                    break;
                }
            };
            let Some(sent) = self.flight.answered(id) else {
                end = Err(End::Lost(LinkError::Protocol(format!(
                    "an acknowledgement of packet {id}, which is not in flight"
                ))));
                break;
            };
            match refusal {
                None => {
                    self.stats.answer.record(now.duration_since(sent.at), 1);
                    settled.push((sent.offset, sent.stream, Outcome::Delivered));
                }
                Some(Refusal::ForEver(code, why)) => {
                    poison.push((sent.offset, format!("central refuses it: 0x{code:02x} {why}")))
                }
                Some(Refusal::ForNow(code, why)) => {
                    self.stats.refused_for_now.add(1);
                    if let Some(held_back) = self.warnings.allow(now) {
                        tracing::warn!(lane = %self.lane.name, destination = %self.config.name, held_back, "central refuses for now: 0x{code:02x} {why}");
                    }
                    refused = Some(refused.map_or(sent.offset, |before| before.min(sent.offset)));
                }
            }
        }
        if !settled.is_empty() {
            self.lane.settle(&self.config.name, &settled);
            self.stats.delivered.add(settled.len() as u64);
            self.refused_pause = REFUSED_PAUSE.0;
        }
        if !poison.is_empty() {
            self.bury(&poison).await;
        }
        end.map(|()| refused)
    }

    /// Makes dead letters of events, and settles them once those are on the disk.
    async fn bury(&mut self, events: &[(u64, String)]) {
        let now = Timestamp::from(clock::wall());
        let mut waiter = Waiter::default();
        let mut settled = Vec::new();
        for (offset, reason) in events {
            let lane = Arc::clone(&self.lane);
            let at = *offset;
            let Ok(Ok(Found::Block(block))) = tokio::task::spawn_blocking(move || lane.look(at)).await else {
                continue;
            };
            let mut sequences: Vec<_> = block.header.runs.iter().map(|run| (run.stream, run.first)).collect();
            let mut place = block.start();
            let mut current = block.header.first;
            while let Some((record, after)) = block.record_at(place) {
                let numbered = number(&self.lane, &mut self.published, &mut sequences, &record);
                if current == *offset {
                    let (stream, publication) = (numbered.as_ref().map_or(0, |(p, _)| p.stream), record.publication);
                    let letter = self.letter(&record, numbered, reason, block.header.recorded, now);
                    let ticket = loop {
                        match letter.submit(&self.dead, publication, &mut waiter) {
                            Ok(ticket) => break Some(ticket),
                            Err(crate::journal::NotTaken::NoRoom) => self.dead.room().await,
                            Err(crate::journal::NotTaken::Closed) => break None,
                        }
                    };
                    if let Some(ticket) = ticket {
                        settled.push((*offset, stream, ticket));
                    }
                    break;
                }
                (place, current) = (after, current + 1);
            }
        }
        let mut done = Vec::new();
        for (offset, stream, ticket) in settled {
            // A dead letter first, then the cursor: dying in between only repeats the event.
            if self.dead.await_receipt(ticket, &waiter).await.is_ok() {
                done.push((offset, stream, Outcome::Dead));
            }
        }
        self.stats.dead.add(done.len() as u64);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(lane = %self.lane.name, destination = %self.config.name, count = done.len(), held_back, "events became dead letters; see `forebay dead list`");
        }
        self.lane.settle(&self.config.name, &done);
    }

    fn letter<'a>(
        &'a self,
        record: &'a Record<'a>,
        numbered: Option<(Arc<Published>, u64)>,
        reason: &'a str,
        recorded: Timestamp,
        now: Timestamp,
    ) -> DeadLetter<'a> {
        let (stream, version, sequence, topic) = match numbered {
            Some((published, sequence)) => {
                let mut rendering = Rendering::default();
                published.renderer.render(record, sequence, recorded, false, &mut rendering);
                let topic = String::from_utf8_lossy(&rendering.topic).into_owned();
                (published.publication.stream.clone(), published.publication.version.clone(), sequence, topic)
            }
            None => (String::new(), String::new(), 0, String::new()),
        };
        DeadLetter {
            stage: Stage::Central,
            reason: Cow::Borrowed(reason),
            stream: Cow::Owned(stream),
            version: Cow::Owned(version),
            topic: Cow::Owned(topic),
            origin: Cow::Borrowed(record.origin),
            event_id: record.id.to_string(),
            key: Cow::Borrowed(record.key),
            sequence,
            time: record.time,
            first_attempt: now,
            last_attempt: now,
            attempts: 1,
            destination: Cow::Borrowed(&self.config.name),
            payload: Cow::Borrowed(record.payload),
        }
    }
}

/// The publication of a record and its sequence; counts the record in its run.
fn number(
    lane: &Lane,
    last: &mut Option<Arc<Published>>,
    sequences: &mut [(u32, u64)],
    record: &Record<'_>,
) -> Option<(Arc<Published>, u64)> {
    if last.as_ref().is_none_or(|published| published.number != record.publication) {
        *last = lane.published(record.publication);
    }
    let published = last.clone()?;
    let run = sequences.iter_mut().find(|(stream, _)| *stream == published.stream)?;
    let sequence = run.1;
    run.1 += 1;
    Some((published, sequence))
}

/// 250 to 750 ms in the first minute; then doubling to 30 s, with full jitter.
fn reconnect_wait(down_for: Duration, attempt: u32) -> Duration {
    if down_for < RECONNECT_EARLY_FOR {
        return jitter(RECONNECT_EARLY.0, RECONNECT_EARLY.1);
    }
    let doublings = (down_for.as_secs() / RECONNECT_EARLY_FOR.as_secs()).min(u64::from(attempt)).min(6);
    jitter(RECONNECT_EARLY.0, (Duration::from_secs(1) * 2u32.pow(doublings as u32)).min(RECONNECT_MAX))
}

/// A random time between two.
fn jitter(from: Duration, to: Duration) -> Duration {
    // UUIDv4 is random in all of these bits.
    let random = (uuid::Uuid::new_v4().as_u128() >> 96) as u32;
    from + to.saturating_sub(from).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_come_soon_at_first_and_never_rarer_than_twice_a_minute() {
        for attempt in 0..200 {
            let early = reconnect_wait(Duration::from_secs(59), attempt);
            assert!((RECONNECT_EARLY.0..=RECONNECT_EARLY.1).contains(&early));
            assert!(reconnect_wait(Duration::from_secs(86_400), attempt) <= RECONNECT_MAX);
        }
    }
}
