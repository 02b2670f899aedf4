//! Resending: sends requeued dead letters and replays to one destination.
//!
//! Promise: it has the lowest priority: it sends nothing while a lane of the destination has a backlog. The outcome of
//! a dead letter is saved before the ledger counts it. A repeat does no harm.
//! Invariants:
//! - it uses a separate session, which is open only while there is something to send;
//! - at most [`WINDOW`] publishes are in flight.

mod replays;

pub use replays::Replays;

use super::Config;
use super::fill::{mark, push_rendered};
use super::pace::{Pacer, Pressure, Rate};
use crate::api::{DeadLetterState, DeadLetterStatus, Replay, ReplayState};
use crate::backoff::random_between;
use crate::clock;
use crate::contract::Rendering;
use crate::event::{Content, Id, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::{BlockReader, Cursor, Journal, Lane, ReadResult, Step};
use crate::link::{
    ConnectAs, CredentialRotation, Failback, LinkError, Output, Protocol, Reconnect, Rejection, Reply, Session, Target,
};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest number of publishes in flight: enough for any line, and small compared with the window of live events.
const WINDOW: usize = 64;
/// Interval at which the progress of a replay is saved.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Interval between checks while other lanes have a backlog.
const YIELD_POLL: Duration = Duration::from_millis(200);
/// Interval between checks for new dead letters and replays.
const WORK_POLL: Duration = Duration::from_millis(100);
/// Time after which a session with nothing to send is closed.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Pause before a temporarily rejected event is sent again.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The destination, identity and services of a resender.
#[derive(Clone, Debug)]
pub struct ResenderSpec {
    /// Settings of the destination.
    pub config: Arc<Config>,
    /// MQTT client id.
    pub client: String,
    /// The journal to read from.
    pub journal: Arc<Journal>,
    /// Status of each dead letter.
    pub fates: Arc<DeadLetterStatuses>,
    /// All replays.
    pub replays: Arc<Replays>,
    /// Backlogs of all lanes of the destination.
    pub pressure: Arc<Pressure>,
    /// Signals new certificates and passwords.
    pub rotation: CredentialRotation,
}

/// Sends requeued dead letters and replays to one destination.
#[derive(Debug)]
pub struct Resender {
    spec: ResenderSpec,
    target: Arc<Target>,
    letters: VecDeque<u64>,
    replay: Option<ReplayRun>,
    in_flight: BTreeMap<u16, Resent>,
    next_id: u16,
    pacer: Pacer,
    rendering: Rendering,
    /// Dead letters to send again only after `backoff_until`: central rejected them temporarily, or they could not be
    /// read.
    backed_off: HashSet<u64>,
    backoff_until: Option<Instant>,
    /// Time of the last check for dead letters and replays.
    checked_at: Option<Instant>,
}

/// One publish in flight.
#[derive(Debug)]
enum Resent {
    Letter(u64, Box<DeadLetter<'static>>),
    /// Number of the replay, index in its list of lanes, and offset.
    Event(u64, usize, u64),
}

/// A running replay.
#[derive(Debug)]
struct ReplayRun {
    replay: Replay,
    lane: usize,
    next: u64,
    walk: Option<BlockReader>,
    settled: Cursor,
    saved_at: Instant,
    /// Temporarily rejected events, by index of the lane and offset; they are sent before any further event.
    refused: BTreeSet<(usize, u64)>,
    /// Time before which none of them is sent again.
    refused_until: Instant,
}

enum SessionEnd {
    Shutdown,
    Idle,
    Lost(LinkError),
}

impl Resender {
    /// Creates a resender for a destination.
    pub fn new(spec: ResenderSpec) -> Result<Self, String> {
        Ok(Self {
            target: Arc::new(spec.config.target()?),
            spec,
            letters: VecDeque::new(),
            replay: None,
            in_flight: BTreeMap::new(),
            next_id: 1,
            pacer: Pacer::new(),
            rendering: Rendering::default(),
            backed_off: HashSet::new(),
            backoff_until: None,
            checked_at: None,
        })
    }

    /// Runs until shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut reconnect = Reconnect::default();
        let connect_as = ConnectAs::client(self.spec.client.clone());
        loop {
            self.load_work().await;
            if !self.has_work() {
                let (fates, replays) = (Arc::clone(&self.spec.fates), Arc::clone(&self.spec.replays));
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = fates.changed() => {}
                    () = replays.changed() => {}
                    () = tokio::time::sleep(REFUSED_PAUSE) => {}
                }
                continue;
            }
            self.spec.rotation.mark_used();
            let connected = tokio::select! {
                () = shutdown.begun() => return,
                connected = self.target.connect(&connect_as) => connected,
            };
            let end = match connected {
                Ok(session) => {
                    reconnect.reset();
                    self.serve(session, &mut shutdown).await
                }
                Err(error) => SessionEnd::Lost(error),
            };
            self.save_progress().await;
            self.in_flight.clear();
            self.replay = None;
            self.checked_at = None;
            match end {
                SessionEnd::Shutdown => return,
                SessionEnd::Idle => {}
                SessionEnd::Lost(error) => {
                    tracing::debug!(destination = %self.spec.config.name, %error, "link for resending down, will reconnect");
                    let wait = reconnect.wait().max(random_between(YIELD_POLL, YIELD_POLL * 2));
                    tokio::select! {
                        () = shutdown.begun() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.letters.is_empty() || self.replay.is_some() || !self.in_flight.is_empty()
    }

    /// Loads the requeued dead letters and the running replay.
    async fn load_work(&mut self) {
        if self.backoff_until.is_some_and(|at| clock::instant() >= at) {
            self.backed_off.clear();
            self.backoff_until = None;
        }
        let now = clock::instant();
        if self.checked_at.is_some_and(|at| now.duration_since(at) < WORK_POLL) {
            return;
        }
        self.checked_at = Some(now);
        if self.letters.is_empty() {
            let sending: HashSet<u64> = self
                .in_flight
                .values()
                .filter_map(|sent| if let Resent::Letter(id, _) = sent { Some(*id) } else { None })
                .collect();
            let requeued = self.spec.fates.requeued(&self.spec.config.name);
            self.letters =
                requeued.into_iter().filter(|id| !sending.contains(id) && !self.backed_off.contains(id)).collect();
        }
        let current = self.spec.replays.running(&self.spec.config.name);
        match (&self.replay, current) {
            (Some(run), Some(current)) if run.replay.id == current.id => {}
            (Some(_), _) => {
                // The replay was paused or has ended.
                self.save_progress().await;
                self.replay = None;
            }
            (None, Some(replay)) => {
                self.replay = Some(ReplayRun::new(replay, &self.spec));
            }
            (None, None) => {}
        }
    }

    async fn serve(&mut self, mut session: Session, shutdown: &mut Shutdown) -> SessionEnd {
        let mut output = Output::default();
        let mut idle_since = clock::instant();
        let connect_as = ConnectAs::client(self.spec.client.clone());
        let mut failback = Failback::new(&self.target, &connect_as, session.broker_index());
        loop {
            self.load_work().await;
            let wait = self.fill(&session, &mut output).await;
            self.save_progress_when_due().await;
            let now = clock::instant();
            if self.has_work() {
                idle_since = now;
            } else if now.duration_since(idle_since) > IDLE_MAX {
                session.close().await;
                return SessionEnd::Idle;
            }
            let next_check = match session.check(!self.in_flight.is_empty(), &mut output) {
                Ok(next_check) => next_check.min(wait),
                Err(error) => return SessionEnd::Lost(error),
            };
            // Every arm is safe to drop half-way.
            tokio::select! {
                biased;
                () = shutdown.begun() => {
                    session.close().await;
                    return SessionEnd::Shutdown;
                }
                result = session.exchange(&mut output) => if let Err(error) = result {
                    return SessionEnd::Lost(error);
                },
                () = self.spec.rotation.changed() => {
                    session.close().await;
                    return SessionEnd::Idle;
                }
                // Reconnects to the earlier broker; publishes in flight are sent again there.
                earlier = failback.reconnected() => {
                    earlier.close().await;
                    session.close().await;
                    return SessionEnd::Idle;
                }
                () = tokio::time::sleep(next_check) => {}
            }
            if let Err(error) = self.settle(&mut session).await {
                return SessionEnd::Lost(error);
            }
        }
    }

    /// Writes the publishes that may be sent now; returns the time until the next check.
    async fn fill(&mut self, session: &Session, output: &mut Output) -> Duration {
        let rate = Rate { events: self.replay.as_ref().and_then(|run| run.replay.rate), bytes: None };
        while self.in_flight.len() < WINDOW {
            if self.spec.pressure.has_any_backlog() {
                return YIELD_POLL;
            }
            if let Some(letter) = self.letters.pop_front() {
                self.push_letter(letter, session, output).await;
                continue;
            }
            let Some(run) = &self.replay else { return IDLE_MAX };
            let wait = self.pacer.wait(rate).max(run.pause());
            if !wait.is_zero() {
                return wait;
            }
            if !run.refused.is_empty() {
                self.push_refused(session, output).await;
                continue;
            }
            if !self.push_event(session, output).await {
                return if self.in_flight.is_empty() { WORK_POLL } else { IDLE_MAX };
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
        let dead = Arc::clone(self.spec.journal.dead());
        let read = spawn_blocking(move || {
            let mut walk = dead.walk_at(id).ok()??;
            let step = walk.step_to(&dead, id)?;
            let letter = DeadLetter::read(&step.record)?;
            let mut record = Vec::new();
            step.record.encode(&mut record);
            Some((letter, record))
        });
        let Ok(Some((letter, record))) = read.await else {
            // The dead letter has been removed, or the disk fails.
            self.back_off(id);
            return;
        };
        let record = Record::decode(&record).ok();
        let known = record.and_then(|record| Some((self.spec.journal.published(record.publication)?, record)));
        let Some((published, record)) = known else {
            // The publication of the dead letter is lost.
            self.back_off(id);
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
        self.in_flight.insert(packet_id, Resent::Letter(id, Box::new(letter)));
    }

    /// Sends the next event of the replay; returns `false` if there is none left or it cannot be read now.
    async fn push_event(&mut self, session: &Session, output: &mut Output) -> bool {
        let Some(run) = &mut self.replay else { return false };
        loop {
            let Some((name, _, end)) = run.replay.lanes.get(run.lane) else { return false };
            let (end, lane) = (*end, self.spec.journal.lane(name).cloned());
            let Some(lane) = lane.filter(|_| run.next < end) else {
                run.start_lane(&self.spec, run.lane + 1);
                continue;
            };
            if run.walk.is_none() && !run.read(&lane).await {
                return false;
            }
            let Some(walk) = &mut run.walk else { continue };
            let (recorded, block_end) = (walk.recorded(), walk.end());
            let Some(step) = walk.step(&lane) else {
                run.next = block_end.max(run.next);
                run.walk = None;
                continue;
            };
            if step.offset < run.next || step.offset >= end || !run.settled.contains(step.offset) {
                continue;
            }
            let Some((published, sequence)) = step.numbered else { continue };
            if !run.replay.filter.takes(published, step.record.key, recorded) {
                continue;
            }
            run.next = step.offset + 1;
            let is_v5 = session.protocol() == Protocol::V5;
            published.renderer.render(&step.record, sequence, recorded, is_v5, &mut self.rendering);
            let sent = Resent::Event(run.replay.id, run.lane, step.offset);
            self.push_rendered_event(sent, session, output);
            return true;
        }
    }

    fn push_rendered_event(&mut self, sent: Resent, session: &Session, output: &mut Output) {
        let is_v5 = session.protocol() == Protocol::V5;
        mark(&mut self.rendering, "replay", self.spec.config.replay_topic.as_deref(), is_v5);
        self.pacer.spend(1, 0);
        let packet_id = self.take_id();
        push_rendered(output, session, packet_id, &self.rendering);
        self.in_flight.insert(packet_id, sent);
    }

    /// Resends the lowest event that central rejected temporarily. An event that has been removed from the journal
    /// meanwhile counts as failed.
    async fn push_refused(&mut self, session: &Session, output: &mut Output) {
        let Some(run) = &mut self.replay else { return };
        let Some((lane_index, offset)) = run.refused.pop_first() else { return };
        let named = run.replay.lanes.get(lane_index);
        let Some(lane) = named.and_then(|(name, ..)| self.spec.journal.lane(name)).cloned() else {
            run.replay.failed += 1;
            return;
        };
        let ours = Arc::clone(&lane);
        let mut walk = match spawn_blocking(move || ours.walk_at(offset)).await {
            Ok(Ok(walk)) => walk,
            Ok(Err(_)) | Err(_) => return run.refuse(lane_index, offset),
        };
        let step = walk.as_mut().and_then(|walk| Some((walk.recorded(), walk.step_to(&lane, offset)?)));
        let Some((recorded, Step { record, numbered: Some((published, sequence)), .. })) = step else {
            run.replay.failed += 1;
            return;
        };
        let is_v5 = session.protocol() == Protocol::V5;
        published.renderer.render(&record, sequence, recorded, is_v5, &mut self.rendering);
        let sent = Resent::Event(run.replay.id, lane_index, offset);
        self.push_rendered_event(sent, session, output);
    }

    /// Handles all replies of central that have arrived.
    async fn settle(&mut self, session: &mut Session) -> Result<(), LinkError> {
        let mut decided = Vec::new();
        let mut end = Ok(());
        loop {
            let (id, rejection) = match session.next_reply() {
                Ok(None) => break,
                Ok(Some(Reply::PingResponse | Reply::Connected { .. })) => continue,
                Ok(Some(Reply::Acknowledged(id))) => (id, None),
                Ok(Some(Reply::NoSubscribers(id))) => {
                    let holds = self.spec.config.require_subscriber;
                    (id, holds.then_some(Rejection::NO_SUBSCRIBERS))
                }
                Ok(Some(Reply::Rejected(id, rejection))) => (id, Some(rejection)),
                Ok(Some(Reply::ConnectRejected(reason) | Reply::Disconnected(reason))) => {
                    end = Err(LinkError::Ended(reason));
                    break;
                }
                Err(error) => {
                    end = Err(error);
                    break;
                }
            };
            match (self.in_flight.remove(&id), rejection) {
                (Some(Resent::Letter(letter, content)), rejection) => {
                    decided.extend(self.decide(letter, &content, rejection).map(|fate| (letter, content, fate)));
                }
                (Some(Resent::Event(id, lane_index, offset)), rejection) => {
                    // Replies for a replay that has ended meanwhile are ignored.
                    if let Some(run) = self.replay.as_mut().filter(|run| run.replay.id == id) {
                        match rejection {
                            None => run.replay.sent += 1,
                            // Central has settled this event before: no dead letter is written.
                            Some(Rejection::Permanent(..)) => run.replay.failed += 1,
                            Some(Rejection::Temporary(code, why)) => {
                                tracing::debug!(
                                    replay = run.replay.id,
                                    code,
                                    why,
                                    "central rejected an event of a replay temporarily, will retry"
                                );
                                run.refuse(lane_index, offset);
                            }
                        }
                    }
                }
                (None, _) => {}
            }
        }
        if !decided.is_empty() {
            let fates = Arc::clone(&self.spec.fates);
            let put = spawn_blocking(move || {
                let list: Vec<_> = decided.iter().map(|(id, letter, fate)| (*id, &**letter, fate.clone())).collect();
                fates.put(&list)
            });
            if let Ok(Err(error)) = put.await {
                // The letters are still requeued.
                tracing::warn!(%error, "cannot save the outcome of requeued dead letters; will send them again");
            }
        }
        end
    }

    /// Defers a dead letter until the end of the current pause.
    fn back_off(&mut self, letter: u64) {
        self.backed_off.insert(letter);
        self.backoff_until.get_or_insert(clock::instant() + REFUSED_PAUSE);
    }

    fn decide(
        &mut self,
        letter: u64,
        content: &DeadLetter<'_>,
        rejection: Option<Rejection>,
    ) -> Option<DeadLetterStatus> {
        let attempts = self.spec.fates.of(letter).attempts + 1;
        let at = Timestamp::from(clock::wall());
        match rejection {
            None => Some(DeadLetterStatus {
                state: DeadLetterState::Delivered,
                at,
                attempts,
                ..DeadLetterStatus::default()
            }),
            Some(Rejection::Permanent(code, why)) => {
                let reason = format!("central refuses it again: 0x{code:02x} {why}");
                tracing::warn!(letter, destination = %content.destination, %reason, "central rejected a requeued dead letter; it is held again");
                Some(DeadLetterStatus {
                    state: DeadLetterState::Held,
                    at,
                    attempts,
                    reason,
                    ..DeadLetterStatus::default()
                })
            }
            Some(Rejection::Temporary(..)) => {
                self.back_off(letter);
                None
            }
        }
    }

    async fn save_progress_when_due(&mut self) {
        let Some(run) = &self.replay else { return };
        if (run.is_complete() && self.in_flight.is_empty())
            || clock::instant().duration_since(run.saved_at) >= SAVE_EVERY
        {
            self.save_progress().await;
        }
    }

    /// Saves the progress of the replay: all events below the saved offsets are answered for good.
    async fn save_progress(&mut self) {
        let Some(run) = &mut self.replay else { return };
        run.saved_at = clock::instant();
        let mut replay = run.replay.clone();
        let in_flight = self.in_flight.values().filter_map(|sent| match sent {
            Resent::Event(id, lane_index, offset) if *id == replay.id => Some((*lane_index, *offset)),
            _ => None,
        });
        let mut lowest: BTreeMap<usize, u64> = BTreeMap::new();
        for (lane_index, offset) in in_flight.chain(run.refused.iter().copied()) {
            let known = lowest.entry(lane_index).or_insert(offset);
            *known = (*known).min(offset);
        }
        for (lane_index, (_, next, end)) in replay.lanes.iter_mut().enumerate() {
            let reached = if lane_index < run.lane {
                *end
            } else if lane_index == run.lane {
                run.next
            } else {
                *next
            };
            *next = lowest.get(&lane_index).copied().unwrap_or(reached);
        }
        if run.is_complete() && self.in_flight.is_empty() {
            replay.state = ReplayState::Done;
            tracing::info!(replay = replay.id, destination = %replay.destination, sent = replay.sent, failed = replay.failed, "replay completed");
        }
        let replays = Arc::clone(&self.spec.replays);
        let is_done = replay.state == ReplayState::Done;
        let saved = spawn_blocking(move || replays.save_progress(&replay)).await;
        if let Ok(Err(error)) = &saved {
            tracing::warn!(%error, "cannot save the progress of a replay; after a restart, some of its events are sent again");
        }
        if is_done || matches!(saved, Ok(Ok(false))) {
            self.replay = None;
        }
    }
}

impl ReplayRun {
    fn new(replay: Replay, spec: &ResenderSpec) -> Self {
        let now = clock::instant();
        let mut run = Self {
            replay,
            lane: 0,
            next: 0,
            walk: None,
            settled: Cursor::default(),
            saved_at: now,
            refused: BTreeSet::new(),
            refused_until: now,
        };
        run.start_lane(spec, 0);
        run
    }

    /// Whether every event was sent and none has to be sent again.
    fn is_complete(&self) -> bool {
        self.lane >= self.replay.lanes.len() && self.refused.is_empty()
    }

    fn refuse(&mut self, lane_index: usize, offset: u64) {
        self.refused.insert((lane_index, offset));
        self.refused_until = clock::instant() + REFUSED_PAUSE;
    }

    /// Remaining pause after a temporary rejection.
    fn pause(&self) -> Duration {
        match self.refused.is_empty() {
            true => Duration::ZERO,
            false => self.refused_until.saturating_duration_since(clock::instant()),
        }
    }

    fn start_lane(&mut self, spec: &ResenderSpec, lane: usize) {
        self.lane = lane;
        self.walk = None;
        let Some((name, next, _)) = self.replay.lanes.get(lane) else { return };
        self.next = *next;
        let known = spec.journal.lane(name).and_then(|lane| lane.settled(&self.replay.destination));
        self.settled = known.unwrap_or_default();
    }

    /// Reads the block at `next`; returns `false` if the disk fails.
    async fn read(&mut self, lane: &Arc<Lane>) -> bool {
        let (ours, next) = (Arc::clone(lane), self.next);
        match spawn_blocking(move || ours.read_at(next)).await {
            Ok(Ok(ReadResult::Block(block))) => self.walk = Some(BlockReader::new(block)),
            Ok(Ok(ReadResult::Lost { to })) => self.next = to.max(next + 1),
            Ok(Err(error)) => {
                tracing::warn!(lane = %lane.name, %error, "cannot read events of a replay from the journal, will retry");
                return false;
            }
            Err(_) => return false,
        }
        true
    }
}
