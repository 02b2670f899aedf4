//! The client of a link: keeps one session with a broker open and runs a conversation on it.
//!
//! Promise: after a lost session or a failed attempt it connects again, soon at first, then with back-off. It returns to
//! an earlier broker of the list as soon as that one is reachable, and changes to new credentials; for both, the old
//! session continues until the new one is open and nothing is in flight.
//! Invariant: wherever the client waits for a broker, it also awaits the shutdown.
//!
//! Not here: what is sent, and what an answer means (`forward`, `sources/broker`).

use super::client_conflict::{ClientIdConflict, Conflict};
use super::error::LinkError;
use super::failback::Failback;
use super::reconnect::Reconnect;
use super::rotation::{CONNECT_WAIT_MAX, CredentialRotation};
use super::session::{ConnectAs, Output, Session};
use super::target::Target;
use crate::backoff::random_between;
use crate::clock;
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// What a user of a link sends and receives. The client calls `prepare`; then for each session `begin`, then `fill`,
/// `ready` and `receive` in turn, at last `leave` or `lost`. It calls `down` when there is no session.
pub(crate) trait Conversation {
    /// Prepares the next session, and returns once one is needed. Safe to drop half-way.
    async fn prepare(&mut self, _connect_as: &mut ConnectAs) {}

    /// Begins a session. Nothing is in flight on it.
    fn begin(&mut self, session: &Session, start: Start, output: &mut Output);

    /// Appends what is to be sent now to `output`. With `may_send` false, it begins nothing new: the session is replaced
    /// once nothing is in flight.
    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End>;

    /// Waits until `fill` has something to do that neither an exchange nor [`Turn::wake_in`]
    /// announces. Safe to drop half-way.
    async fn ready(&mut self) {
        std::future::pending().await
    }

    /// Whether an answer of the broker is outstanding.
    fn is_waiting(&self) -> bool;

    /// Bytes of the packets whose answers are outstanding; not zero if there are any.
    fn unanswered(&self) -> u64 {
        u64::from(self.is_waiting())
    }

    /// Longest wait for outstanding answers at the shutdown.
    fn drain_wait_max(&self) -> Duration {
        Duration::ZERO
    }

    /// Handles the packets that have arrived.
    async fn receive(&mut self, session: &mut Session) -> Result<(), End>;

    /// Ends a session in an orderly way.
    async fn leave(&mut self, session: Session, _output: Output, _why: Leave) {
        session.close().await;
    }

    /// Records that the session was lost after `lasted`; `output` holds what was not yet written.
    async fn lost(&mut self, error: &LinkError, lasted: Duration, output: &Output) -> LostSession;

    /// Records that there is no session, and that the client will connect again.
    fn down(&mut self, _error: &LinkError, _conflict: Option<Conflict>) {}

    /// Records that no session could be opened with new credentials: the old one continues.
    fn keep_credentials(&mut self, _why: &str) {}
}

/// How a session came to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// There was no session before.
    Opened,
    /// It replaces another session; the text says why.
    Replaced(&'static str),
}

/// What a conversation needs next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Whether packets may be read; if not, the broker is slowed down.
    pub(crate) may_read: bool,
    /// Longest time until the next `fill`.
    pub(crate) wake_in: Duration,
}

impl Turn {
    /// Reads on, and fills again after `wake_in` at the latest.
    pub(crate) fn in_time(wake_in: Duration) -> Self {
        Self { may_read: true, wake_in }
    }
}

/// Why a conversation ends a session.
#[derive(Debug)]
pub(crate) enum End {
    /// The connection is lost, or the broker broke the protocol.
    Lost(LinkError),
    /// A session is not needed now, or the next one has to be opened first of all.
    Idle,
    Shutdown,
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

/// Why a session is left in an orderly way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Shutdown,
    /// Another session of this client takes its place.
    Replaced,
    /// A session is opened again when one is needed.
    Idle,
}

/// What a lost session says about the link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LostSession {
    /// Whether the session worked, so that the back-off starts again.
    pub(crate) was_good: bool,
    /// Whether nothing that was sent can be the reason for the loss.
    pub(crate) was_idle: bool,
}

/// Keeps one link to a target.
#[derive(Debug)]
pub(crate) struct Client {
    target: Arc<Target>,
    connect_as: ConnectAs,
    rotation: CredentialRotation,
    reconnect: Reconnect,
    conflict: ClientIdConflict,
    /// Least wait before the client connects again.
    wait_min: Duration,
}

impl Client {
    pub(crate) fn new(target: Arc<Target>, connect_as: ConnectAs, rotation: CredentialRotation) -> Self {
        let (reconnect, conflict) = (Reconnect::default(), ClientIdConflict::default());
        Self { target, connect_as, rotation, reconnect, conflict, wait_min: Duration::ZERO }
    }

    /// Connects again after `wait_min` to twice `wait_min` at the earliest, so that more urgent links go first.
    pub(crate) fn with_wait_min(self, wait_min: Duration) -> Self {
        Self { wait_min, ..self }
    }

    /// Runs until the shutdown, or until the conversation ends.
    pub(crate) async fn run(mut self, talk: &mut impl Conversation, shutdown: &mut Shutdown) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = talk.prepare(&mut self.connect_as) => {}
            }
            self.rotation.mark_used();
            let connected = tokio::select! {
                () = shutdown.begun() => return,
                connected = self.target.connect(&self.connect_as) => connected,
            };
            let error = match connected {
                Ok(session) => match self.serve(session, talk, shutdown).await {
                    End::Shutdown => return,
                    End::Idle => {
                        self.reconnect.reset();
                        continue;
                    }
                    End::Lost(error) => error,
                },
                Err(error) => error,
            };
            talk.down(&error, self.conflict.evidence());
            let reconnect = self.reconnect.wait().max(random_between(self.wait_min, self.wait_min * 2));
            let wait = self.conflict.pause().unwrap_or(reconnect);
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Runs the conversation on a session, and on those that replace it.
    async fn serve(&mut self, mut session: Session, talk: &mut impl Conversation, shutdown: &mut Shutdown) -> End {
        let mut output = Output::default();
        let began = clock::instant();
        talk.begin(&session, Start::Opened, &mut output);
        let end = self.converse(&mut session, &mut output, talk, shutdown).await;
        match &end {
            End::Shutdown => {
                drain(&mut session, &mut output, talk).await;
                talk.leave(session, output, Leave::Shutdown).await;
            }
            End::Idle => talk.leave(session, output, Leave::Idle).await,
            End::Lost(error) => {
                let lasted = clock::instant().duration_since(began);
                let lost = talk.lost(error, lasted, &output).await;
                if lost.was_good {
                    self.reconnect.reset();
                }
                self.conflict.record_end(error, lasted, lost.was_idle);
            }
        }
        end
    }

    async fn converse(
        &mut self,
        session: &mut Session,
        output: &mut Output,
        talk: &mut impl Conversation,
        shutdown: &mut Shutdown,
    ) -> End {
        let mut failback = Failback::new(&self.target, &self.connect_as, session.broker_index());
        let mut earlier: Option<Box<Session>> = None;
        loop {
            let is_rotating = earlier.is_none() && self.rotation.is_due();
            let turn = match talk.fill(session, output, earlier.is_none() && !is_rotating).await {
                Ok(turn) => turn,
                Err(end) => return end,
            };
            if !talk.is_waiting() {
                let new = match earlier.take() {
                    Some(new) => Some((*new, "a broker earlier in the list is reachable again")),
                    None if !is_rotating => None,
                    None => match self.open_with_new_credentials(talk, shutdown).await {
                        Ok(Some(new)) => Some((new, "new certificates and passwords are in force")),
                        Ok(None) => continue,
                        Err(end) => return end,
                    },
                };
                if let Some((new, why)) = new {
                    let old = std::mem::replace(session, new);
                    talk.leave(old, std::mem::take(output), Leave::Replaced).await;
                    failback = Failback::new(&self.target, &self.connect_as, session.broker_index());
                    talk.begin(session, Start::Replaced(why), output);
                    continue;
                }
            }
            let check = match turn.may_read {
                true => session.check(talk.unanswered(), output),
                false => Ok(session.keep_alive_unread(output)),
            };
            let wait = match check {
                Ok(wait) => wait.min(turn.wake_in),
                Err(error) => return End::Lost(error),
            };
            // Every arm is safe to drop half-way.
            tokio::select! {
                biased;
                () = shutdown.begun() => return End::Shutdown,
                result = exchange(session, output, turn.may_read) => if let Err(error) = result {
                    return End::Lost(error);
                },
                () = talk.ready() => {}
                new = failback.reconnected(), if earlier.is_none() => earlier = Some(new),
                () = self.rotation.changed(), if !is_rotating => {}
                () = tokio::time::sleep(wait) => {}
            }
            if let Err(end) = talk.receive(session).await {
                return end;
            }
        }
    }

    /// Opens a session with the new credentials while the old one is open and nothing is in flight. Returns `None` if
    /// that fails: the old session continues.
    async fn open_with_new_credentials(
        &mut self,
        talk: &mut impl Conversation,
        shutdown: &mut Shutdown,
    ) -> Result<Option<Session>, End> {
        if self.connect_as.will.is_some() {
            // The new session would take over the old one, and the broker would publish the will.
            return Err(End::Idle);
        }
        let attempt = tokio::time::timeout(CONNECT_WAIT_MAX, self.target.connect(&self.connect_as));
        let connected = tokio::select! {
            () = shutdown.begun() => return Err(End::Shutdown),
            connected = attempt => connected,
        };
        let why = match connected {
            Ok(Ok(session)) => {
                self.rotation.mark_used();
                return Ok(Some(session));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no session within {} s", CONNECT_WAIT_MAX.as_secs()),
        };
        self.rotation.schedule_retry();
        talk.keep_credentials(&why);
        Ok(None)
    }
}

/// Reads and writes, or only writes if nothing may be read.
async fn exchange(session: &mut Session, output: &mut Output, may_read: bool) -> Result<(), LinkError> {
    match may_read {
        true => session.exchange(output).await,
        false if output.waiting() > 0 => session.write(output).await,
        false => std::future::pending().await,
    }
}

/// Waits for outstanding answers, so that what they answer is not sent again.
async fn drain(session: &mut Session, output: &mut Output, talk: &mut impl Conversation) {
    let deadline = tokio::time::sleep(talk.drain_wait_max());
    tokio::pin!(deadline);
    while talk.is_waiting() {
        tokio::select! {
            biased;
            () = &mut deadline => return,
            result = session.exchange(output) => if result.is_err() {
                return;
            },
        }
        if talk.receive(session).await.is_err() {
            return;
        }
    }
}
