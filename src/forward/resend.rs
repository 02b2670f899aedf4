//! Resending: sends requeued dead letters and replays to one destination.
//!
//! Promise: it has the lowest priority: it sends nothing while a lane of the destination has a backlog. The outcome of
//! a dead letter is saved before the ledger counts it. A repeat does no harm.
//! Invariants:
//! - it uses a separate session, which is open only while there is something to send;
//! - at most [`WINDOW`] publishes are in flight.

mod letters;
mod replay;

use super::config::Config;
use super::outgoing::{Mark, Outgoing};
use super::pace::{Pacer, Pressure, Rate};
use super::replays::Replays;
use super::sender::Sender;
use super::stats::Stats;
use crate::clock;
use crate::ingest::dead::DeadLetter;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::Journal;
use crate::link::{
    Client, Conflict, ConnectAs, Conversation, CredentialRotation, End, Leave, LineShare, LinkError, LostSession,
    Output, SEGMENT_BYTES, Session, Start, Target, Traffic, Turn,
};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use letters::{LetterReader, REFUSED_PAUSE};
use replay::ReplayReader;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest number of publishes in flight: enough for any line, and small compared with the window of live events.
const WINDOW: usize = 64;
/// Every lane goes first on the line.
const RANK: usize = 3;
/// Interval between checks while other lanes have a backlog.
const YIELD_POLL: Duration = Duration::from_millis(200);
/// Interval between checks for new dead letters and replays.
const WORK_POLL: Duration = Duration::from_millis(100);
/// Time after which a session with nothing to send is closed.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The destination, identity and services of a resender.
#[derive(Clone, Debug)]
pub struct ResenderSpec {
    pub config: Arc<Config>,
    pub client: String,
    /// The journal to read from.
    pub journal: Arc<Journal>,
    /// Status of each dead letter.
    pub fates: Arc<DeadLetterStatuses>,
    pub replays: Arc<Replays>,
    /// Backlogs of all lanes of the destination.
    pub pressure: Arc<Pressure>,
    /// Signals new certificates and passwords.
    pub rotation: CredentialRotation,
    pub traffic: Arc<Traffic>,
    pub stats: Arc<Stats>,
}

/// Sends requeued dead letters and replays to one destination.
#[derive(Debug)]
pub struct Resender {
    spec: ResenderSpec,
    target: Arc<Target>,
    letters: LetterReader,
    replay: Option<ReplayReader>,
    sender: Sender<Resent>,
    share: LineShare,
    pacer: Pacer,
    /// Time of the last check for dead letters and replays.
    checked_at: Option<Instant>,
    idle_since: Instant,
}

impl Resender {
    /// Creates a resender for a destination.
    pub fn new(spec: ResenderSpec) -> Result<Self, String> {
        Ok(Self {
            target: Arc::new(
                spec.config.target()?.counting(Arc::clone(&spec.traffic)).on(Arc::clone(spec.pressure.line())),
            ),
            letters: LetterReader::new(Arc::clone(&spec.journal), Arc::clone(&spec.fates)),
            replay: None,
            sender: Sender::new(&spec.config),
            share: spec.pressure.line().share(RANK),
            pacer: Pacer::new(),
            checked_at: None,
            idle_since: clock::instant(),
            spec,
        })
    }

    pub async fn run(mut self, mut shutdown: Shutdown) {
        let (target, connect_as) = (Arc::clone(&self.target), ConnectAs::client(self.spec.client.clone()));
        let client = Client::new(target, connect_as, self.spec.rotation.clone()).with_wait_min(YIELD_POLL);
        client.run(&mut self, &mut shutdown).await;
    }
}

#[derive(Debug)]
enum Resent {
    Letter(u64, Arc<DeadLetter<'static>>),
    /// Number of the replay, index in its list of lanes, and offset.
    Event(u64, usize, u64),
}

impl Conversation for Resender {
    async fn prepare(&mut self, _connect_as: &mut ConnectAs) {
        loop {
            self.load_work().await;
            if self.has_work() {
                return;
            }
            tokio::select! {
                () = self.spec.fates.changed() => {}
                () = self.spec.replays.changed() => {}
                () = tokio::time::sleep(REFUSED_PAUSE) => {}
            }
        }
    }

    fn begin(&mut self, _session: &Session, _start: Start, _output: &mut Output) {
        self.spec.stats.set_up(true, None);
        self.idle_since = clock::instant();
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        self.load_work().await;
        let wait = if may_send { self.send_due(session, output).await } else { IDLE_MAX };
        self.save_progress_when_due().await;
        let now = clock::instant();
        if self.has_work() {
            self.idle_since = now;
        } else if now.duration_since(self.idle_since) > IDLE_MAX {
            return Err(End::Idle);
        }
        Ok(Turn::in_time(wait))
    }

    fn is_waiting(&self) -> bool {
        !self.sender.in_flight.is_empty()
    }

    fn unanswered(&self) -> u64 {
        self.sender.in_flight.bytes()
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        let mut decided = Vec::new();
        let end = loop {
            let answered = match self.sender.next_answer(session) {
                Ok(Some(answered)) => answered,
                Ok(None) => break Ok(()),
                Err(error) => break Err(End::Lost(error)),
            };
            match answered.sent {
                Resent::Letter(id, letter) => {
                    let status = self.letters.decide(id, &letter, answered.rejection);
                    decided.extend(status.map(|status| (id, letter, status)));
                }
                Resent::Event(replay, lane_index, offset) => {
                    // Answers for a replay that has ended meanwhile are ignored.
                    if let Some(reader) = self.replay.as_mut().filter(|reader| reader.id() == replay) {
                        reader.take_answer(lane_index, offset, answered.rejection);
                    }
                }
            }
        };
        self.letters.save(decided).await;
        end
    }

    async fn leave(&mut self, session: Session, _output: Output, why: Leave) {
        session.close().await;
        if why != Leave::Replaced {
            self.spec.stats.set_up(false, None);
            self.end_session().await;
        }
    }

    async fn lost(&mut self, _error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        self.end_session().await;
        LostSession { was_good: true, was_idle: false }
    }

    fn down(&mut self, error: &LinkError, _conflict: Option<Conflict>) {
        if self.spec.stats.set_down(error, error.to_string()) {
            tracing::warn!(destination = %self.spec.config.name, %error, "link for resending down, will reconnect");
        }
    }
}

impl Resender {
    fn has_work(&self) -> bool {
        !self.letters.is_empty() || self.replay.is_some() || self.is_waiting()
    }

    /// Loads the requeued dead letters and the running replay.
    async fn load_work(&mut self) {
        let now = clock::instant();
        self.letters.end_pause(now);
        if self.checked_at.is_some_and(|at| now.duration_since(at) < WORK_POLL) {
            return;
        }
        self.checked_at = Some(now);
        let in_flight = self.sender.in_flight.iter();
        let sending = in_flight.filter_map(|sent| if let Resent::Letter(id, _) = sent { Some(*id) } else { None });
        self.letters.load(&self.spec.config.name, sending);
        let current = self.spec.replays.running(&self.spec.config.name);
        match (&self.replay, current) {
            (Some(reader), Some(current)) if reader.id() == current.id => {}
            (Some(_), _) => {
                // The replay was paused or has ended.
                self.save_progress().await;
                self.replay = None;
            }
            (None, Some(replay)) => self.replay = Some(ReplayReader::new(replay, &self.spec.journal)),
            (None, None) => {}
        }
    }

    /// Sends what may be sent now; returns the time until the next check.
    async fn send_due(&mut self, session: &Session, output: &mut Output) -> Duration {
        let window = WINDOW.min(usize::from(session.limits().receive_maximum));
        // Not more per call, as events that the broker cannot take fill no window.
        for _ in 0..window {
            if !self.sender.in_flight.has_room(window) {
                return IDLE_MAX;
            }
            if self.share.room(self.sender.in_flight.bytes(), clock::instant()) < SEGMENT_BYTES {
                return self.share.line().look_again();
            }
            if self.spec.pressure.has_any_backlog() || self.spec.pressure.is_out_of_budget("again") {
                return YIELD_POLL;
            }
            if !self.letters.is_empty() {
                self.send_letter(session, output).await;
                continue;
            }
            let Some(reader) = &self.replay else { return IDLE_MAX };
            let wait = self.pacer.wait(Rate { events: reader.rate(), bytes: None }).max(reader.pause());
            if !wait.is_zero() {
                return wait;
            }
            if !self.send_replayed(session, output).await {
                return if self.sender.in_flight.is_empty() { WORK_POLL } else { IDLE_MAX };
            }
        }
        if self.sender.in_flight.has_room(window) { Duration::ZERO } else { IDLE_MAX }
    }

    async fn send_letter(&mut self, session: &Session, output: &mut Output) {
        let Some(letter) = self.letters.next().await else { return };
        let Some(event) = letter.outgoing() else { return self.letters.back_off(letter.id) };
        let kept = Resent::Letter(letter.id, Arc::clone(&letter.content));
        if let Err(reason) = self.sender.publish(&event, kept, session, output) {
            self.letters.hold(letter.id, Arc::clone(&letter.content), reason).await;
        }
    }

    /// Sends the next event of the replay; returns `false` if there is none left or it cannot be read now.
    async fn send_replayed(&mut self, session: &Session, output: &mut Output) -> bool {
        let Self { replay: Some(reader), sender, pacer, spec, .. } = self else { return false };
        let topic_level = spec.config.replay_topic.as_deref();
        let replay = reader.id();
        let mut is_too_large = false;
        let has_next = reader
            .next(&spec.journal, |lane_index, event| {
                let mark = Some(Mark { property: "replay", topic_level });
                let event = Outgoing { mark, ..event };
                pacer.spend(1, 0);
                let kept = Resent::Event(replay, lane_index, event.offset);
                is_too_large = sender.publish(&event, kept, session, output).is_err();
            })
            .await;
        if is_too_large {
            reader.fail();
        }
        has_next
    }

    async fn end_session(&mut self) {
        self.save_progress().await;
        self.sender.in_flight.clear();
        self.share.room(0, clock::instant());
        self.replay = None;
        self.checked_at = None;
    }

    async fn save_progress_when_due(&mut self) {
        let is_idle = self.sender.in_flight.is_empty();
        if self.replay.as_ref().is_some_and(|reader| reader.is_save_due(is_idle)) {
            self.save_progress().await;
        }
    }

    /// Saves the progress of the replay: all events below the saved offsets are answered for good.
    async fn save_progress(&mut self) {
        let Some(reader) = &mut self.replay else { return };
        let number = reader.id();
        let in_flight = self.sender.in_flight.iter().filter_map(|sent| match sent {
            Resent::Event(id, lane_index, offset) if *id == number => Some((*lane_index, *offset)),
            _ => None,
        });
        let (replay, is_done) = reader.progress(in_flight, self.sender.in_flight.is_empty());
        let replays = Arc::clone(&self.spec.replays);
        let saved = spawn_blocking(move || replays.save_progress(&replay)).await;
        if let Ok(Err(error)) = &saved {
            tracing::warn!(%error, "cannot save the progress of a replay; after a restart, some of its events are sent again");
        }
        if is_done || matches!(saved, Ok(Ok(false))) {
            self.replay = None;
        }
    }
}
