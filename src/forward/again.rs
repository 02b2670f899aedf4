//! Again: sends to one destination what it has had or refused before: dead letters that somebody
//! requeued, and replays.
//!
//! Promise: it goes behind everything else: while a lane of the destination has a backlog, nothing leaves
//! here; what central acknowledges is noted before it counts, and a repeat does no harm.
//! Invariants:
//! - a session of its own, open only while there is something to send;
//! - at most [`WINDOW`] publishes in flight.

mod replays;

pub use replays::{Filter, Replay, ReplayState, Replays};

use super::fill::{mark, push_rendered};
use super::look_back::LookBack;
use super::pace::{Pacer, Pressure, Rate};
use super::{Config, Renewal};
use crate::clock;
use crate::contract::Rendering;
use crate::event::{Content, Id, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::ingest::dead::fates::{Fate, Fates, State};
use crate::journal::{Found, Journal, Lane, Settled, Step, Walk};
use crate::link::{Answer, LinkError, Output, Protocol, Refusal, Session, Target, jitter, reconnect_wait};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Publishes in flight: enough for any line, and little beside what is live.
const WINDOW: usize = 64;
/// How far a replay is, is noted this often.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// How soon to look again while other lanes have a backlog.
const YIELD_LOOK: Duration = Duration::from_millis(200);
/// New letters and replays are looked for this often.
const WORK_LOOK: Duration = Duration::from_millis(100);
/// A session with nothing to send is closed after so long.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// What central refuses for now is sent again after so long.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// What a worker needs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The destination.
    pub config: Arc<Config>,
    /// Its MQTT client id.
    pub client: String,
    /// The journal.
    pub journal: Arc<Journal>,
    /// What has become of dead letters.
    pub fates: Arc<Fates>,
    /// The replays.
    pub replays: Arc<Replays>,
    /// How far the lanes of the destination are behind.
    pub pressure: Arc<Pressure>,
    /// Hears of new certificates and passwords.
    pub renewal: Renewal,
}

/// Sends again, for one destination.
#[derive(Debug)]
pub struct Again {
    parts: Parts,
    target: Arc<Target>,
    letters: VecDeque<u64>,
    replay: Option<Reading>,
    in_flight: BTreeMap<u16, Sent>,
    next_id: u16,
    pacer: Pacer,
    rendering: Rendering,
    /// Letters that were refused for now, and when they may go again.
    resting: HashSet<u64>,
    rested_at: Option<Instant>,
    /// When letters and replays were looked for last.
    looked_at: Option<Instant>,
}

/// One publish in flight.
#[derive(Debug)]
enum Sent {
    Letter(u64, Box<DeadLetter<'static>>),
    /// Number of the replay, place in its list of lanes, and offset.
    Event(u64, usize, u64),
}

/// A replay under way.
#[derive(Debug)]
struct Reading {
    replay: Replay,
    lane: usize,
    next: u64,
    walk: Option<Walk>,
    settled: Settled,
    noted_at: Instant,
    /// Refused for now, by place of the lane and offset: these go again before anything else does.
    refused: BTreeSet<(usize, u64)>,
    /// When they may.
    refused_until: Instant,
}

enum End {
    Shutdown,
    Idle,
    Lost(LinkError),
}

impl Again {
    /// A worker for a destination.
    pub fn new(parts: Parts) -> Result<Self, String> {
        Ok(Self {
            target: Arc::new(parts.config.target()?),
            parts,
            letters: VecDeque::new(),
            replay: None,
            in_flight: BTreeMap::new(),
            next_id: 1,
            pacer: Pacer::new(),
            rendering: Rendering::default(),
            resting: HashSet::new(),
            rested_at: None,
            looked_at: None,
        })
    }

    /// Works until the shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut down_since = None;
        let mut attempt = 0;
        loop {
            self.find_work().await;
            if !self.has_work() {
                let (fates, replays) = (Arc::clone(&self.parts.fates), Arc::clone(&self.parts.replays));
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = fates.changed() => {}
                    () = replays.changed() => {}
                    () = tokio::time::sleep(REFUSED_PAUSE) => {}
                }
                continue;
            }
            self.parts.renewal.done();
            let connected = tokio::select! {
                () = shutdown.begun() => return,
                connected = self.target.connect(&self.parts.client, None) => connected,
            };
            let end = match connected {
                Ok(session) => {
                    (down_since, attempt) = (None, 0);
                    self.serve(session, &mut shutdown).await
                }
                Err(error) => End::Lost(error),
            };
            self.note_replay().await;
            self.in_flight.clear();
            self.replay = None;
            self.looked_at = None;
            match end {
                End::Shutdown => return,
                End::Idle => {}
                End::Lost(error) => {
                    tracing::debug!(destination = %self.parts.config.name, %error, "what is to be sent again waits for the link");
                    let now = clock::instant();
                    let down_for = now.duration_since(*down_since.get_or_insert(now));
                    attempt += 1;
                    tokio::select! {
                        () = shutdown.begun() => return,
                        () = tokio::time::sleep(reconnect_wait(down_for, attempt).max(jitter(YIELD_LOOK, YIELD_LOOK * 2))) => {}
                    }
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.letters.is_empty() || self.replay.is_some() || !self.in_flight.is_empty()
    }

    /// Looks for letters and replays that are to be sent.
    async fn find_work(&mut self) {
        if self.rested_at.is_some_and(|at| clock::instant() >= at) {
            self.resting.clear();
            self.rested_at = None;
        }
        let now = clock::instant();
        if self.looked_at.is_some_and(|at| now.duration_since(at) < WORK_LOOK) {
            return;
        }
        self.looked_at = Some(now);
        if self.letters.is_empty() {
            let sending: HashSet<u64> = self
                .in_flight
                .values()
                .filter_map(|sent| if let Sent::Letter(id, _) = sent { Some(*id) } else { None })
                .collect();
            let requeued = self.parts.fates.requeued(&self.parts.config.name);
            self.letters =
                requeued.into_iter().filter(|id| !sending.contains(id) && !self.resting.contains(id)).collect();
        }
        let running = self.parts.replays.running(&self.parts.config.name);
        match (&self.replay, running) {
            (Some(reading), Some(running)) if reading.replay.id == running.id => {}
            (Some(_), _) => {
                // It was paused, or is over.
                self.note_replay().await;
                self.replay = None;
            }
            (None, Some(replay)) => {
                self.replay = Some(Reading::new(replay, &self.parts));
            }
            (None, None) => {}
        }
    }

    async fn serve(&mut self, mut session: Session, shutdown: &mut Shutdown) -> End {
        let mut output = Output::default();
        let mut idle_since = clock::instant();
        let mut look_back = LookBack::new(&self.target, &self.parts.client, session.place(), None);
        loop {
            self.find_work().await;
            let wait = self.fill(&session, &mut output).await;
            self.note_when_due().await;
            let now = clock::instant();
            if self.has_work() {
                idle_since = now;
            } else if now.duration_since(idle_since) > IDLE_MAX {
                session.close().await;
                return End::Idle;
            }
            let look_again = match session.watch(!self.in_flight.is_empty(), &mut output) {
                Ok(look_again) => look_again.min(wait),
                Err(error) => return End::Lost(error),
            };
            // Every arm is safe to drop half-way.
            tokio::select! {
                biased;
                () = shutdown.begun() => {
                    session.close().await;
                    return End::Shutdown;
                }
                moved = session.exchange(&mut output) => if let Err(error) = moved {
                    return End::Lost(error);
                },
                () = self.parts.renewal.wait() => {
                    session.close().await;
                    return End::Idle;
                }
                // An earlier broker is back: what is in flight goes once more, to that one.
                better = look_back.found() => {
                    better.close().await;
                    session.close().await;
                    return End::Idle;
                }
                () = tokio::time::sleep(look_again) => {}
            }
            if let Err(error) = self.settle(&mut session).await {
                return End::Lost(error);
            }
        }
    }

    /// Sends what may be sent now; says how soon to look again.
    async fn fill(&mut self, session: &Session, output: &mut Output) -> Duration {
        let rate = Rate { events: self.replay.as_ref().and_then(|reading| reading.replay.rate), bytes: None };
        while self.in_flight.len() < WINDOW {
            if self.parts.pressure.is_on_at_all() {
                return YIELD_LOOK;
            }
            if let Some(letter) = self.letters.pop_front() {
                self.push_letter(letter, session, output).await;
                continue;
            }
            let Some(reading) = &self.replay else { return IDLE_MAX };
            let wait = self.pacer.wait(rate).max(reading.rest());
            if !wait.is_zero() {
                return wait;
            }
            if !reading.refused.is_empty() {
                self.push_refused(session, output).await;
                continue;
            }
            if !self.push_event(session, output).await {
                return if self.in_flight.is_empty() { WORK_LOOK } else { IDLE_MAX };
            }
        }
        IDLE_MAX
    }

    fn take_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = if id == u16::MAX { 1 } else { id + 1 };
        id
    }

    async fn push_letter(&mut self, id: u64, session: &Session, output: &mut Output) {
        let dead = Arc::clone(self.parts.journal.dead());
        let read = spawn_blocking(move || {
            let mut walk = dead.walk_at(id).ok()??;
            let step = walk.step_to(&dead, id)?;
            let letter = DeadLetter::read(&step.record)?;
            let mut record = Vec::new();
            step.record.encode(&mut record);
            Some((letter, record))
        });
        let Ok(Some((letter, record))) = read.await else {
            // It has left, or the disk fails now.
            self.rest(id);
            return;
        };
        let record = Record::decode(&record).ok();
        let known = record.and_then(|record| Some((self.parts.journal.published(record.publication)?, record)));
        let Some((published, record)) = known else {
            // Its contract is lost.
            self.rest(id);
            return;
        };
        let event = Record {
            publication: record.publication,
            id: Id::Text(&letter.event_id),
            time: letter.time,
            origin: &letter.origin,
            key: &letter.key,
            content: if letter.is_opaque { Content::Bytes } else { Content::Json },
            attributes: record.attributes.clone(),
            payload: &letter.payload,
        };
        let recorded = letter.taken.unwrap_or(letter.time);
        let is_v5 = session.protocol() == Protocol::V5;
        published.renderer.render(&event, letter.sequence, recorded, is_v5, &mut self.rendering);
        let packet_id = self.take_id();
        push_rendered(output, session, packet_id, &self.rendering);
        self.in_flight.insert(packet_id, Sent::Letter(id, Box::new(letter)));
    }

    /// Sends the next event of the replay; `false` if there is none left, or it cannot be read now.
    async fn push_event(&mut self, session: &Session, output: &mut Output) -> bool {
        let Some(reading) = &mut self.replay else { return false };
        loop {
            let Some((name, _, end)) = reading.replay.lanes.get(reading.lane) else { return false };
            let (end, lane) = (*end, self.parts.journal.lane(name).cloned());
            let Some(lane) = lane.filter(|_| reading.next < end) else {
                reading.enter_lane(&self.parts, reading.lane + 1);
                continue;
            };
            if reading.walk.is_none() && !reading.read(&lane).await {
                return false;
            }
            let Some(walk) = &mut reading.walk else { continue };
            let (recorded, block_end) = (walk.recorded(), walk.end());
            let Some(step) = walk.step(&lane) else {
                reading.next = block_end.max(reading.next);
                reading.walk = None;
                continue;
            };
            if step.offset < reading.next || step.offset >= end || !reading.settled.contains(step.offset) {
                continue;
            }
            let Some((published, sequence)) = step.numbered else { continue };
            if !reading.replay.filter.takes(published, step.record.key, recorded) {
                continue;
            }
            reading.next = step.offset + 1;
            let is_v5 = session.protocol() == Protocol::V5;
            published.renderer.render(&step.record, sequence, recorded, is_v5, &mut self.rendering);
            let sent = Sent::Event(reading.replay.id, reading.lane, step.offset);
            self.push_rendered_event(sent, session, output);
            return true;
        }
    }

    fn push_rendered_event(&mut self, sent: Sent, session: &Session, output: &mut Output) {
        let is_v5 = session.protocol() == Protocol::V5;
        mark(&mut self.rendering, "replay", self.parts.config.replay_topic.as_deref(), is_v5);
        self.pacer.spend(1, 0);
        let packet_id = self.take_id();
        push_rendered(output, session, packet_id, &self.rendering);
        self.in_flight.insert(packet_id, sent);
    }

    /// Sends the lowest event once more that central had refused for now. One that has left the journal meanwhile
    /// has failed.
    async fn push_refused(&mut self, session: &Session, output: &mut Output) {
        let Some(reading) = &mut self.replay else { return };
        let Some((place, offset)) = reading.refused.pop_first() else { return };
        let named = reading.replay.lanes.get(place);
        let Some(lane) = named.and_then(|(name, ..)| self.parts.journal.lane(name)).cloned() else {
            reading.replay.failed += 1;
            return;
        };
        let ours = Arc::clone(&lane);
        let mut walk = match spawn_blocking(move || ours.walk_at(offset)).await {
            Ok(Ok(walk)) => walk,
            Ok(Err(_)) | Err(_) => return reading.refuse(place, offset),
        };
        let step = walk.as_mut().and_then(|walk| Some((walk.recorded(), walk.step_to(&lane, offset)?)));
        let Some((recorded, Step { record, numbered: Some((published, sequence)), .. })) = step else {
            reading.replay.failed += 1;
            return;
        };
        let is_v5 = session.protocol() == Protocol::V5;
        published.renderer.render(&record, sequence, recorded, is_v5, &mut self.rendering);
        let sent = Sent::Event(reading.replay.id, place, offset);
        self.push_rendered_event(sent, session, output);
    }

    /// What central has answered.
    async fn settle(&mut self, session: &mut Session) -> Result<(), LinkError> {
        let mut decided = Vec::new();
        let mut end = Ok(());
        loop {
            let (id, refusal) = match session.answer() {
                Ok(None) => break,
                Ok(Some(Answer::Alive | Answer::Connected { .. })) => continue,
                Ok(Some(Answer::Taken(id))) => (id, None),
                Ok(Some(Answer::Unheard(id))) => {
                    let holds = self.parts.config.require_subscriber;
                    (id, holds.then_some(Refusal::ForNow(0x10, "no matching subscribers")))
                }
                Ok(Some(Answer::Refused(id, refusal))) => (id, Some(refusal)),
                Ok(Some(Answer::NotConnected(reason) | Answer::Goodbye(reason))) => {
                    end = Err(LinkError::Ended(reason));
                    break;
                }
                Err(error) => {
                    end = Err(error);
                    break;
                }
            };
            match (self.in_flight.remove(&id), refusal) {
                (Some(Sent::Letter(letter, content)), refusal) => {
                    decided.extend(self.decide(letter, &content, refusal).map(|fate| (letter, content, fate)));
                }
                (Some(Sent::Event(id, place, offset)), refusal) => {
                    // One that is over is not told what was still on its way.
                    if let Some(reading) = self.replay.as_mut().filter(|reading| reading.replay.id == id) {
                        match refusal {
                            None => reading.replay.sent += 1,
                            // Central has had it before, or refused it before: there is no letter to write.
                            Some(Refusal::ForEver(..)) => reading.replay.failed += 1,
                            Some(Refusal::ForNow(code, why)) => {
                                tracing::debug!(
                                    replay = reading.replay.id,
                                    code,
                                    why,
                                    "a replay waits: central refuses for now"
                                );
                                reading.refuse(place, offset);
                            }
                        }
                    }
                }
                (None, _) => {}
            }
        }
        if !decided.is_empty() {
            let fates = Arc::clone(&self.parts.fates);
            let put = spawn_blocking(move || {
                let list: Vec<_> = decided.iter().map(|(id, letter, fate)| (*id, &**letter, fate.clone())).collect();
                fates.put(&list)
            });
            if let Ok(Err(error)) = put.await {
                // They are requeued still, and go again.
                tracing::warn!(%error, "what became of dead letters cannot be noted; they are sent once more");
            }
        }
        end
    }

    /// Leaves a letter alone for a while.
    fn rest(&mut self, letter: u64) {
        self.resting.insert(letter);
        self.rested_at.get_or_insert(clock::instant() + REFUSED_PAUSE);
    }

    fn decide(&mut self, letter: u64, content: &DeadLetter<'_>, refusal: Option<Refusal>) -> Option<Fate> {
        let attempts = self.parts.fates.of(letter).attempts + 1;
        let at = Timestamp::from(clock::wall());
        match refusal {
            None => Some(Fate { state: State::Delivered, at, attempts, ..Fate::default() }),
            Some(Refusal::ForEver(code, why)) => {
                let reason = format!("central refuses it again: 0x{code:02x} {why}");
                tracing::warn!(letter, destination = %content.destination, %reason, "a requeued dead letter is held again");
                Some(Fate { state: State::Held, at, attempts, reason, ..Fate::default() })
            }
            Some(Refusal::ForNow(..)) => {
                self.rest(letter);
                None
            }
        }
    }

    async fn note_when_due(&mut self) {
        let Some(reading) = &self.replay else { return };
        if (reading.is_at_its_end() && self.in_flight.is_empty())
            || clock::instant().duration_since(reading.noted_at) >= NOTE_EVERY
        {
            self.note_replay().await;
        }
    }

    /// Notes how far the replay is: everything below is acknowledged.
    async fn note_replay(&mut self) {
        let Some(reading) = &mut self.replay else { return };
        reading.noted_at = clock::instant();
        let mut replay = reading.replay.clone();
        let in_flight = self.in_flight.values().filter_map(|sent| match sent {
            Sent::Event(id, place, offset) if *id == replay.id => Some((*place, *offset)),
            _ => None,
        });
        let mut lowest: BTreeMap<usize, u64> = BTreeMap::new();
        for (place, offset) in in_flight.chain(reading.refused.iter().copied()) {
            let known = lowest.entry(place).or_insert(offset);
            *known = (*known).min(offset);
        }
        for (place, (_, next, end)) in replay.lanes.iter_mut().enumerate() {
            let reached = if place < reading.lane {
                *end
            } else if place == reading.lane {
                reading.next
            } else {
                *next
            };
            *next = lowest.get(&place).copied().unwrap_or(reached);
        }
        if reading.is_at_its_end() && self.in_flight.is_empty() {
            replay.state = ReplayState::Done;
            tracing::info!(replay = replay.id, destination = %replay.destination, sent = replay.sent, failed = replay.failed, "a replay is done");
        }
        let replays = Arc::clone(&self.parts.replays);
        let is_done = replay.state == ReplayState::Done;
        let noted = spawn_blocking(move || replays.advance(&replay)).await;
        if let Ok(Err(error)) = &noted {
            tracing::warn!(%error, "how far a replay is cannot be noted; after a restart some of it is sent once more");
        }
        if is_done || matches!(noted, Ok(Ok(false))) {
            self.replay = None;
        }
    }
}

impl Reading {
    fn new(replay: Replay, parts: &Parts) -> Self {
        let now = clock::instant();
        let mut reading = Self {
            replay,
            lane: 0,
            next: 0,
            walk: None,
            settled: Settled::default(),
            noted_at: now,
            refused: BTreeSet::new(),
            refused_until: now,
        };
        reading.enter_lane(parts, 0);
        reading
    }

    /// Whether everything was sent, and nothing has to go again.
    fn is_at_its_end(&self) -> bool {
        self.lane >= self.replay.lanes.len() && self.refused.is_empty()
    }

    fn refuse(&mut self, place: usize, offset: u64) {
        self.refused.insert((place, offset));
        self.refused_until = clock::instant() + REFUSED_PAUSE;
    }

    /// How long nothing is sent, since central refuses for now.
    fn rest(&self) -> Duration {
        match self.refused.is_empty() {
            true => Duration::ZERO,
            false => self.refused_until.saturating_duration_since(clock::instant()),
        }
    }

    fn enter_lane(&mut self, parts: &Parts, lane: usize) {
        self.lane = lane;
        self.walk = None;
        let Some((name, next, _)) = self.replay.lanes.get(lane) else { return };
        self.next = *next;
        let known = parts.journal.lane(name).and_then(|lane| lane.settled(&self.replay.destination));
        self.settled = known.unwrap_or_default();
    }

    /// Reads the block at `next`; `false` if the disk fails now.
    async fn read(&mut self, lane: &Arc<Lane>) -> bool {
        let (ours, next) = (Arc::clone(lane), self.next);
        match spawn_blocking(move || ours.look(next)).await {
            Ok(Ok(Found::Block(block))) => self.walk = Some(Walk::new(block)),
            Ok(Ok(Found::Lost { to })) => self.next = to.max(next + 1),
            Ok(Err(error)) => {
                tracing::warn!(lane = %lane.name, %error, "a replay cannot read from the journal now");
                return false;
            }
            Err(_) => return false,
        }
        true
    }
}
