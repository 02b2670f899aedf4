//! Status: one separate connection per destination that publishes a retained birth message, a heartbeat and a last
//! will. They show central whether this gateway is online.
//!
//! The status is not an event: it is retained, never journaled, and not in the ledger.

use super::client_conflict::ClientIdConflict;
use super::failback::Failback;
use super::{Config, CredentialRotation};
use crate::backoff::random_between;
use crate::clock;
use crate::contract::{GatewayNames, STRUCTURED, push_json_string};
use crate::event::{Id, Timestamp, push_path_segment};
use crate::link::{self, Head, LinkError, Output, Reconnect, Reply, Session, Will};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Least wait between two sessions: the status is worth less than the events.
const RECONNECT_MIN: Duration = Duration::from_millis(750);

/// Returns further JSON members of a heartbeat, without braces.
pub type Report = Arc<dyn Fn() -> String + Send + Sync>;

/// Publishes the status to one destination until shutdown.
pub async fn run(
    config: Arc<Config>,
    client: String,
    around: GatewayNames,
    report: Report,
    mut rotation: CredentialRotation,
    mut shutdown: Shutdown,
) {
    let Ok(target) = config.target().map(Arc::new) else { return };
    let topic = topic(&around);
    let mut reconnect = Reconnect::default();
    let mut conflict = ClientIdConflict::default();
    loop {
        rotation.mark_used();
        let will = Will { topic: topic.clone(), payload: event(&around, "offline", "") };
        let connected = tokio::select! {
            () = shutdown.begun() => return,
            connected = target.connect(&client, Some(&will)) => connected,
        };
        match connected {
            Ok(session) => {
                reconnect.reset();
                let began = clock::instant();
                let failback = Failback::new(&target, &client, session.broker_index(), Some(will));
                match serve(session, failback, &topic, &around, &report, &mut rotation, &mut shutdown).await {
                    SessionEnd::Shutdown => return,
                    SessionEnd::NewCredentials => continue,
                    // The forwarders report a conflict of client ids; here the longer pause is enough.
                    SessionEnd::Lost(error) => {
                        conflict.record_end(&error, clock::instant().duration_since(began), true)
                    }
                }
            }
            Err(error) => tracing::debug!(destination = %config.name, %error, "no status connection"),
        }
        let wait = reconnect
            .wait()
            .max(random_between(RECONNECT_MIN, RECONNECT_MIN * 2))
            .max(conflict.pause().unwrap_or_default());
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Returns the topic of the status: `{environment}/{site}/gateway.status/v1/{gateway}`.
pub fn topic(around: &GatewayNames) -> String {
    format!("{}/{}/gateway.status/v1/{}", around.environment, around.site, around.gateway)
}

enum SessionEnd {
    Shutdown,
    /// New certificates or a new password: the next session uses them.
    NewCredentials,
    Lost(LinkError),
}

/// Sends heartbeats until the session ends. If an earlier broker is reachable again, continues on a session with it.
async fn serve(
    mut session: Session,
    mut failback: Failback,
    topic: &str,
    around: &GatewayNames,
    report: &Report,
    rotation: &mut CredentialRotation,
    shutdown: &mut Shutdown,
) -> SessionEnd {
    let mut output = Output::default();
    let mut next_heartbeat = clock::instant();
    let mut id = 0u16;
    let mut in_flight = 0u32;
    loop {
        let now = clock::instant();
        if now >= next_heartbeat && in_flight == 0 {
            next_heartbeat = now + HEARTBEAT;
            id = id % u16::MAX + 1;
            push_status(&mut output, &session, topic, id, &event(around, "online", &report()));
            in_flight += 1;
        }
        let next_check = match session.check(in_flight > 0, &mut output) {
            Ok(wait) => wait.min(next_heartbeat.saturating_duration_since(now).max(Duration::from_millis(10))),
            Err(error) => return SessionEnd::Lost(error),
        };
        tokio::select! {
            () = shutdown.begun() => {
                go_offline(session, output, topic, around, id).await;
                return SessionEnd::Shutdown;
            }
            result = session.exchange(&mut output) => if let Err(error) = result {
                return SessionEnd::Lost(error);
            },
            () = rotation.changed() => {
                // After a DISCONNECT the broker does not publish the will: the retained status stays "online".
                session.close().await;
                return SessionEnd::NewCredentials;
            }
            better = failback.reconnected() => {
                // The later broker must not retain "online" for ever. If both brokers belong to one cluster, "offline"
                // must come before the birth message.
                let left = std::mem::replace(&mut session, *better);
                go_offline(left, std::mem::take(&mut output), topic, around, id).await;
                failback.set_broker(session.broker_index());
                (next_heartbeat, in_flight) = (now, 0);
            }
            () = tokio::time::sleep(next_check) => {}
        }
        loop {
            match session.next_reply() {
                Ok(None) => break,
                Ok(Some(Reply::Disconnected(reason) | Reply::ConnectRejected(reason))) => {
                    return SessionEnd::Lost(LinkError::Ended(reason));
                }
                Ok(Some(Reply::PingResponse | Reply::Connected { .. })) => {}
                Ok(Some(Reply::Acknowledged(_) | Reply::NoSubscribers(_) | Reply::Rejected(..))) => {
                    in_flight = in_flight.saturating_sub(1)
                }
                Err(error) => return SessionEnd::Lost(error),
            }
        }
    }
}

fn push_status(output: &mut Output, session: &Session, topic: &str, packet_id: u16, payload: &[u8]) {
    let head =
        Head { packet_id, retain: session.limits().has_retain, content_type: Some(STRUCTURED), ..Head::default() };
    link::push_publish(&mut output.bytes, session.protocol(), &head, topic.as_bytes(), payload);
}

/// Publishes "offline" and closes the session. `id` is the last used packet id.
async fn go_offline(mut session: Session, mut output: Output, topic: &str, around: &GatewayNames, id: u16) {
    push_status(&mut output, &session, topic, id % u16::MAX + 1, &event(around, "offline", ""));
    // The wait is short: a silent broker must not delay the shutdown.
    let _ = tokio::time::timeout(Duration::from_secs(1), session.exchange(&mut output)).await;
    session.close().await;
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
