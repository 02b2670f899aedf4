//! The forwarder of one lane: the conversation on its link. It reads events, sends them, and settles them by central's
//! answers.
//!
//! Invariant: after a rejection nothing more is sent until everything in flight is answered; then the lane is read again
//! from its cursor, which keeps the order per key.

use super::config::Config;
use super::in_flight::Publish;
use super::lane_link::LaneLink;
use super::lane_sender::{LaneSender, Pass};
use super::outgoing::Outgoing;
use super::pace::{Allowance, Pressure, Sending};
use super::probe::{Probe, ProbeStep};
use super::reader::{EventReader, Next};
use super::sender::Answered;
use super::settler::Settler;
use super::stats::Stats;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Lane, Outcome};
use crate::link::{
    Client, Conflict, ConnectAs, Conversation, CredentialRotation, End, LineShare, LinkError, LostSession, Output,
    Rejection, Session, Start, Target, Traffic, Turn,
};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REFUSED_PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30), Jitter::UpToDouble);
/// Longest wait for outstanding acknowledgements at the shutdown, to avoid sending these events again.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(2);

/// The destination, settings and identity of a forwarder.
#[derive(Clone, Debug)]
pub struct ForwarderSpec {
    pub config: Arc<Config>,
    /// How the forwarder sends its lane.
    pub sending: Arc<Sending>,
    /// Backlogs of all lanes of the destination.
    pub pressure: Arc<Pressure>,
    pub client: String,
    /// Signals new certificates and passwords.
    pub rotation: CredentialRotation,
    pub traffic: Arc<Traffic>,
}

/// Sends one lane to one destination.
#[derive(Debug)]
pub struct Forwarder {
    target: Arc<Target>,
    client: String,
    rotation: CredentialRotation,
    link: LaneLink,
    reader: EventReader,
    allowance: Allowance,
    sender: LaneSender,
    share: LineShare,
    settler: Settler,
    probe: Probe,
    retry: Retry,
    /// Whether more events may be read.
    has_room: bool,
    /// Delivered events before the session began.
    delivered_before: u64,
}

impl Forwarder {
    /// Creates a forwarder for `lane`; events that central rejects for good go to the log `dead`.
    pub fn new(spec: ForwarderSpec, lane: &Arc<Lane>, dead: &Arc<Lane>, stats: Arc<Stats>) -> Result<Self, String> {
        let ForwarderSpec { config, sending, pressure, client, rotation, traffic } = spec;
        let target = Arc::new(config.target()?.counting(traffic).on(Arc::clone(pressure.line())));
        let share = pressure.line().share();
        let link = LaneLink { lane: Arc::clone(lane), to: config, stats };
        Ok(Self {
            target,
            client,
            rotation,
            reader: EventReader::new(link.clone(), Arc::clone(&sending)),
            allowance: Allowance::new(lane, Arc::clone(&sending), pressure),
            sender: LaneSender::new(link.clone(), sending),
            share,
            settler: Settler::new(link.clone(), dead),
            probe: Probe::default(),
            retry: Retry { is_due: false, paused_until: None, pauses: REFUSED_PAUSES },
            has_room: false,
            delivered_before: 0,
            link,
        })
    }

    /// Runs until shutdown, then waits up to 2 s for outstanding acknowledgements.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let (target, connect_as) = (Arc::clone(&self.target), ConnectAs::client(self.client.clone()));
        Client::new(target, connect_as, self.rotation.clone()).run(&mut self, &mut shutdown).await;
        self.link.stats.set_up(false, Some("the gateway is shutting down".into()));
    }
}

/// Whether events have to be sent again.
#[derive(Debug)]
struct Retry {
    /// Nothing more is sent until all publishes in flight are answered; then the lane is read again.
    is_due: bool,
    /// After a temporary rejection: the time until which the session stays silent.
    paused_until: Option<Instant>,
    pauses: Backoff,
}

impl Conversation for Forwarder {
    async fn prepare(&mut self, _connect_as: &mut ConnectAs) {
        self.rewind();
    }

    fn begin(&mut self, session: &Session, start: Start, _output: &mut Output) {
        let LaneLink { lane, to, stats } = &self.link;
        stats.set(|state| state.peer = Some(session.peer()));
        match start {
            Start::Opened => {
                tracing::info!(lane = %lane.name, destination = %to.name, broker = %session.broker(), "link up");
                stats.connects.add(1);
                stats.set_up(true, None);
                self.delivered_before = stats.delivered.value();
            }
            Start::Replaced(why) => {
                stats.set(|state| state.note = None);
                tracing::info!(lane = %lane.name, destination = %to.name, broker = %session.broker(), "continuing on another session: {why}");
                self.rewind();
            }
        }
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        self.has_room = false;
        if self.reader.is_closed() {
            return Err(End::Shutdown);
        }
        if may_send && self.retry.is_due && self.sender.publishes.in_flight.is_empty() {
            self.rewind();
            self.retry.paused_until = Some(clock::instant() + self.retry.pauses.next());
        }
        if let Some(left) = self.retry.pause() {
            return Ok(Turn::in_time(left));
        }
        if self.probe.due().is_some() {
            return Ok(self.probe(session, output, may_send));
        }
        // The jump to the live end waits for the publishes in flight.
        let mut is_jumping = !self.retry.is_due && self.reader.is_live_lagging();
        if is_jumping && self.sender.publishes.in_flight.is_empty() {
            self.rewind();
            is_jumping = false;
        }
        let is_sending = may_send && !self.retry.is_due && !is_jumping;
        let window = self.link.to.window.min(session.limits().receive_maximum);
        let turn = self.send_owed(session, output, if is_sending { usize::from(window) } else { 0 }).await;
        let in_flight = &self.sender.publishes.in_flight;
        self.share.set(in_flight.bytes().saturating_sub(output.waiting() as u64));
        self.link.stats.set(|state| state.in_flight = in_flight.count());
        // The readers have already passed the events to send again, which still count as backlog.
        if !self.retry.is_due {
            self.report_progress();
        }
        Ok(turn)
    }

    async fn ready(&mut self) {
        match self.has_room {
            true => self.reader.load_next().await,
            false => std::future::pending().await,
        }
    }

    fn is_waiting(&self) -> bool {
        !self.sender.publishes.in_flight.is_empty()
    }

    fn unanswered(&self) -> u64 {
        self.sender.publishes.in_flight.bytes()
    }

    fn drain_wait_max(&self) -> Duration {
        DRAIN_WAIT_MAX
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        let (now, wall) = (clock::instant(), Timestamp::from(clock::wall()));
        let line = Arc::clone(self.share.line());
        let mut carried = line.answers(now);
        let mut answers = Answers { now, wall, settled: Vec::new(), poison: Vec::new() };
        let end = loop {
            match self.sender.publishes.next_answer(session) {
                Ok(Some(answered)) => {
                    carried.add(answered.bytes, answered.sent.sent_at);
                    self.take_answer(answered, &mut answers);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(End::Lost(error)),
            }
        };
        line.record(&carried);
        // What was answered before the connection broke counts.
        let Answers { settled, poison, .. } = answers;
        if !settled.is_empty() {
            self.settler.settle(&settled);
            self.sender.followed.end(&settled);
            self.link.stats.delivered.add(settled.len() as u64);
            self.retry.pauses.reset();
        }
        self.write_dead_letters(&poison).await;
        end
    }

    async fn lost(&mut self, error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        let lowest = self.sender.publishes.in_flight.lowest();
        match self.probe.guilty(error, lowest) {
            Some(offset) => {
                let reason = "central ends the connection whenever it is sent this event";
                self.write_dead_letters(&[(offset, reason.into())]).await;
                self.probe.clear();
                self.sender.publishes.in_flight.clear();
            }
            None => self.probe.record_disconnect(error, lowest),
        }
        if matches!(error, LinkError::Silent(_) | LinkError::Stuck(_)) {
            self.share.line().forget();
        }
        self.share.set(0);
        self.report_progress();
        let was_good = self.link.stats.delivered.value() > self.delivered_before;
        LostSession { was_good, was_idle: self.sender.publishes.in_flight.is_empty() }
    }

    fn down(&mut self, error: &LinkError, conflict: Option<Conflict>) {
        let LaneLink { lane, to, stats } = &self.link;
        stats.failures.add(1);
        let other_client = |how_sure: &str| {
            let client = &self.client;
            format!(
                "{how_sure}another client uses the client id \"{client}\": is there a second gateway of that name? ({error})"
            )
        };
        let reason = match conflict {
            None => error.to_string(),
            Some(Conflict::Suspected) => other_client("sessions end at once; perhaps "),
            Some(Conflict::Confirmed) => other_client(""),
        };
        if stats.set_up(false, Some(reason.clone())) {
            tracing::warn!(lane = %lane.name, destination = %to.name, error = %reason, "link down, will reconnect");
        }
    }

    fn keep_credentials(&mut self, why: &str) {
        let LaneLink { lane, to, stats } = &self.link;
        tracing::warn!(lane = %lane.name, destination = %to.name, error = %why, "cannot connect with the new certificates or password; continuing on the old session, will retry");
        stats.set(|state| {
            state.note = Some(format!(
                "cannot connect with the new certificates or password ({why}); continuing on the old session"
            ));
        });
    }
}

/// What the answers that arrived together decide.
#[derive(Debug)]
struct Answers {
    now: Instant,
    wall: Timestamp,
    settled: Vec<(u64, u32, Outcome)>,
    poison: Vec<(u64, String)>,
}

impl Forwarder {
    /// Begins again at the lowest unsettled event.
    fn rewind(&mut self) {
        self.link.stats.repeated.add(self.sender.publishes.in_flight.count() as u64);
        self.sender.clear();
        self.retry.is_due = false;
        self.retry.paused_until = None;
        self.probe.step = ProbeStep::Off;
        self.reader.rewind();
        self.report_progress();
    }

    fn report_progress(&self) {
        self.allowance.report(self.reader.reached(self.sender.publishes.in_flight.count()));
    }

    /// Sends what window, output buffer, hours and rate limits allow.
    async fn send_owed(&mut self, session: &Session, output: &mut Output, window: usize) -> Turn {
        let wait = self.allowance.wait();
        if !wait.is_zero() {
            return self.turn(Some(wait));
        }
        let mut allowed = self.allowance.events();
        let written = output.bytes.len();
        let mut pass = Pass::new(session, output);
        let mut not_owed = Vec::new();
        self.sender.close_aged_batches(pass.now);
        while self.sender.has_room(window, pass.output) {
            if self.sender.send_ready_batch(&mut pass) {
                continue;
            }
            if allowed == 0 {
                break;
            }
            // The backlog may use three quarters of the window.
            let may_backfill = self.sender.has_room(window - window / 4, pass.output);
            let Self { reader, sender, .. } = self;
            match reader.next(may_backfill, |event: Outgoing<'_>| sender.send(&event, &mut pass)) {
                Next::Nothing => break,
                Next::Skipped => {}
                Next::Event => allowed -= 1,
                Next::NotOwed(offset, stream) => not_owed.push((offset, stream, Outcome::NotOwed)),
                Next::Unreadable(offset) => {
                    pass.poison.push((offset, "the contract of this event is lost".to_owned()));
                }
            }
        }
        let Pass { now, events, sent, poison, output, .. } = pass;
        self.link.stats.sent.add(sent);
        self.allowance.spend(events, output.bytes.len().saturating_sub(written));
        if !not_owed.is_empty() {
            self.settler.settle(&not_owed);
        }
        self.has_room = allowed > 0 && self.sender.has_room(window, output);
        let batch_due = self.sender.batch_due(window, now);
        self.write_dead_letters(&poison).await;
        let wait = (allowed == 0).then(|| self.allowance.wait());
        self.turn(wait.into_iter().chain(batch_due).min())
    }

    /// The next turn comes after `wake_in` at the latest, or at once if the lane has to be read again.
    fn turn(&self, wake_in: Option<Duration>) -> Turn {
        let is_at_once = self.retry.is_due && self.sender.publishes.in_flight.is_empty();
        Turn::in_time(if is_at_once { Duration::ZERO } else { wake_in.unwrap_or(Duration::MAX) })
    }

    /// Takes the probe a step further.
    fn probe(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Turn {
        match self.probe.step {
            ProbeStep::Off if may_send => {
                self.rewind();
                session.ping(output);
                self.probe.step = ProbeStep::Pinged;
            }
            ProbeStep::Pinged if may_send && !session.is_ping_pending() => {
                if self.send_suspect(session, output) {
                    self.probe.step = ProbeStep::Sent;
                } else {
                    // The event is settled or cannot be read now: there is nothing to probe.
                    self.end_probe();
                    return Turn::in_time(Duration::ZERO);
                }
            }
            ProbeStep::Sent if self.sender.publishes.in_flight.is_empty() && !self.retry.is_due => {
                // Central acknowledged the event: the disconnects have another reason.
                self.end_probe();
                return Turn::in_time(Duration::ZERO);
            }
            _ => {}
        }
        self.turn(None)
    }

    fn end_probe(&mut self) {
        self.probe.clear();
        self.rewind();
    }

    /// Sends the suspect alone, regardless of batches, rate limits and hours; returns `false` if it must not be sent.
    fn send_suspect(&mut self, session: &Session, output: &mut Output) -> bool {
        let Some(offset) = self.probe.due().filter(|offset| !self.reader.is_settled(*offset)) else { return false };
        let lane = &self.link.lane;
        let mut walk = match lane.walk_at(offset) {
            Ok(Some(walk)) => walk,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(lane = %lane.name, %error, "cannot read the event to probe from the journal");
                return false;
            }
        };
        let recorded = walk.recorded();
        let Some(step) = walk.step_to(lane, offset) else { return false };
        let Some((published, sequence)) = step.numbered else { return false };
        let event = Outgoing { offset, record: step.record, published, sequence, recorded, mark: None };
        let is_sent = self.sender.publish(&event, &mut Pass::new(session, output)).is_ok();
        self.link.stats.sent.add(u64::from(is_sent));
        is_sent
    }

    fn take_answer(&mut self, answered: Answered<Publish>, answers: &mut Answers) {
        let LaneLink { lane, to, stats } = &self.link;
        let Answered { sent, rejection, is_unheard, .. } = answered;
        let Answers { now, wall, .. } = *answers;
        if is_unheard {
            stats.unheard.add(1);
            if let Some(held_back) = self.settler.warnings.allow(now) {
                tracing::warn!(lane = %lane.name, destination = %to.name, held_back, "central acknowledged an event whose topic has no subscriber there");
            }
        }
        match rejection {
            None => {
                stats.answer.record(now.duration_since(sent.sent_at), 1);
                stats.settle.record(wall.since(sent.recorded), 1);
                answers.settled.extend(sent.offsets().map(|offset| (offset, sent.stream, Outcome::Delivered)));
                self.sender.batcher.double_size();
            }
            Some(Rejection::Permanent(code, why)) if sent.count() > 1 => {
                tracing::debug!(lane = %lane.name, destination = %to.name, events = sent.count(), "central rejected a batch: 0x{code:02x} {why}; will retry with batches of half the size");
                self.sender.batcher.halve_size(sent.count());
                self.retry.is_due = true;
            }
            Some(Rejection::Permanent(code, why)) => {
                answers.poison.push((sent.offset, format!("central refuses it: 0x{code:02x} {why}")));
            }
            Some(Rejection::Temporary(code, why)) => {
                stats.refused_for_now.add(1);
                if let Some(held_back) = self.settler.warnings.allow(now) {
                    tracing::warn!(lane = %lane.name, destination = %to.name, held_back, "central rejected an event temporarily: 0x{code:02x} {why}; will retry");
                }
                self.retry.is_due = true;
            }
        }
    }

    /// Turns events into dead letters; those that could not become one are read again.
    async fn write_dead_letters(&mut self, events: &[(u64, String)]) {
        let durable = self.settler.write_dead_letters(events).await;
        self.sender.followed.end(&durable);
        self.retry.is_due |= durable.len() < events.len();
    }
}

impl Retry {
    /// Remaining pause after a temporary rejection.
    fn pause(&mut self) -> Option<Duration> {
        let left = self.paused_until?.saturating_duration_since(clock::instant());
        if left.is_zero() {
            self.paused_until = None;
        }
        (!left.is_zero()).then_some(left)
    }
}
