//! Status: one separate connection per destination that publishes a retained birth message, a heartbeat and a last
//! will. They show central whether this gateway is online.
//!
//! The status is not an event: it is retained, never journaled, and not in the ledger.

use super::config::Config;
use super::stats::Stats;
use crate::clock;
use crate::contract::{GatewayNames, STRUCTURED, push_json_string};
use crate::event::{Id, Timestamp, push_path_segment};
use crate::link::{
    self, Client, Conflict, ConnectAs, Conversation, CredentialRotation, End, Head, Leave, LinkError, LostSession,
    Output, Session, Start, Traffic, Turn, Will,
};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Least wait between two sessions: the status is worth less than the events.
const RECONNECT_MIN: Duration = Duration::from_millis(750);

/// Returns further JSON members of a heartbeat, without braces.
pub type Report = Arc<dyn Fn() -> String + Send + Sync>;

/// The destination of a status, and what it says.
#[derive(Clone)]
pub struct StatusSpec {
    pub config: Arc<Config>,
    pub client: String,
    pub around: GatewayNames,
    pub report: Report,
    pub rotation: CredentialRotation,
    pub traffic: Arc<Traffic>,
    pub stats: Arc<Stats>,
}

/// Publishes the status to one destination until shutdown.
pub async fn run(spec: StatusSpec, mut shutdown: Shutdown) {
    let StatusSpec { config, client, around, report, rotation, traffic, stats } = spec;
    let Ok(target) = config.target().map(|target| Arc::new(target.counting(traffic))) else { return };
    let link = Client::new(target, ConnectAs::client(client), rotation).with_wait_min(RECONNECT_MIN);
    let mut publisher = Publisher {
        destination: config.name.clone(),
        stats,
        topic: topic(&around),
        around,
        report,
        heartbeat: config.idle_interval(),
        last_id: 0,
        is_unretained: false,
        is_waiting: false,
        next_heartbeat: clock::instant(),
    };
    link.run(&mut publisher, &mut shutdown).await;
}

/// Returns the topic of the status: `{environment}/{site}/gateway.status/v1/{gateway}`.
pub fn topic(around: &GatewayNames) -> String {
    format!("{}/{}/gateway.status/v1/{}", around.environment, around.site, around.gateway)
}

/// Publishes the status on a session.
struct Publisher {
    destination: String,
    stats: Arc<Stats>,
    topic: String,
    around: GatewayNames,
    report: Report,
    heartbeat: Duration,
    last_id: u16,
    /// The broker refuses to retain messages, the will among them.
    is_unretained: bool,
    /// Whether the last heartbeat is unanswered.
    is_waiting: bool,
    next_heartbeat: Instant,
}

impl Conversation for Publisher {
    async fn prepare(&mut self, connect_as: &mut ConnectAs) {
        let payload = event(&self.around, "offline", "");
        connect_as.will = Some(Will { topic: self.topic.clone(), payload, retain: !self.is_unretained });
    }

    fn begin(&mut self, session: &Session, _start: Start, _output: &mut Output) {
        self.stats.set_up(true, None);
        if !session.limits().has_retain {
            let note =
                "central retains no messages: a consumer that comes later does not see whether this gateway is online";
            self.stats.set(|state| state.note = Some(note.to_owned()));
        }
        self.next_heartbeat = clock::instant();
        self.is_waiting = false;
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        let now = clock::instant();
        if now >= self.next_heartbeat && !self.is_waiting && may_send {
            self.next_heartbeat = now + self.heartbeat;
            self.push(session, output, &event(&self.around, "online", &(self.report)()));
            self.is_waiting = true;
        }
        let wake_in = self.next_heartbeat.saturating_duration_since(now).max(Duration::from_millis(10));
        Ok(Turn { may_read: true, wake_in })
    }

    fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        while session.next_answer()?.is_some() {
            self.is_waiting = false;
        }
        Ok(())
    }

    /// Publishes "offline", because after a DISCONNECT the broker does not publish the will. A later broker must not
    /// retain "online" for ever; if both brokers belong to one cluster, "offline" comes before the birth message.
    async fn leave(&mut self, mut session: Session, mut output: Output, why: Leave) {
        if why != Leave::Idle {
            self.push(&session, &mut output, &event(&self.around, "offline", ""));
            // The wait is short: a silent broker must not delay the shutdown.
            let _ = tokio::time::timeout(Duration::from_secs(1), session.exchange(&mut output)).await;
        }
        session.close().await;
    }

    async fn lost(&mut self, _error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        LostSession { was_good: true, was_idle: true }
    }

    // The forwarders report a conflict of client ids; here the longer pause is enough.
    fn down(&mut self, error: &LinkError, _conflict: Option<Conflict>) {
        if error.is_about_retain() {
            self.is_unretained = true;
        }
        if self.stats.set_down(error, error.to_string()) {
            tracing::warn!(destination = %self.destination, %error, "no status connection, will reconnect");
        }
    }
}

impl Publisher {
    fn push(&mut self, session: &Session, output: &mut Output, payload: &[u8]) {
        self.last_id = self.last_id % u16::MAX + 1;
        let (packet_id, retain) = (self.last_id, session.limits().has_retain);
        let head = Head { packet_id, retain, content_type: Some(STRUCTURED), ..Head::default() };
        link::push_publish(&mut output.bytes, session.protocol(), &head, self.topic.as_bytes(), payload);
    }
}

/// Renders a status message as a CloudEvent in structured mode.
fn event(around: &GatewayNames, state: &str, report: &str) -> Vec<u8> {
    let mut source = String::from("/");
    push_path_segment(&mut source, &around.site);
    source.push('/');
    push_path_segment(&mut source, &around.gateway);
    let mut out = br#"{"specversion":"1.0","type":"#.to_vec();
    push_json_string(&mut out, &format!("{}.gateway.status.v1", around.namespace));
    out.extend_from_slice(br#","source":"#);
    push_json_string(&mut out, &source);
    out.extend_from_slice(
        format!(r#","id":"{}","time":"{}","subject":"#, Id::mint(), Timestamp::from(clock::wall())).as_bytes(),
    );
    push_json_string(&mut out, &around.gateway);
    out.extend_from_slice(br#","datacontenttype":"application/json","data":{"state":"#);
    push_json_string(&mut out, state);
    out.extend_from_slice(format!(r#","version":"{}""#, env!("CARGO_PKG_VERSION")).as_bytes());
    if !report.is_empty() {
        out.push(b',');
        out.extend_from_slice(report.as_bytes());
    }
    out.extend_from_slice(b"}}");
    out
}
