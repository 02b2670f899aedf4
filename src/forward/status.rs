//! Status: a small connection of its own for each destination, on which central sees that this
//! gateway lives: a retained birth, a last will, a heartbeat.
//!
//! It is state, not an event: retained, never journaled, and in no account.

use super::look_back::LookBack;
use super::rivals::Rivals;
use super::{Config, Renewal};
use crate::clock;
use crate::contract::{STRUCTURED, Surroundings, push_json_string};
use crate::event::{Id, Timestamp, push_path_segment};
use crate::link::{self, Answer, Head, LinkError, Output, RECONNECT_EARLY, Session, Will, jitter, reconnect_wait};
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What a heartbeat says beside the state; JSON members without braces.
pub type Report = Arc<dyn Fn() -> String + Send + Sync>;

/// Tells one destination that the gateway lives, until the shutdown.
pub async fn run(
    config: Arc<Config>,
    client: String,
    around: Surroundings,
    report: Report,
    mut renewal: Renewal,
    mut shutdown: Shutdown,
) {
    let Ok(target) = config.target().map(Arc::new) else { return };
    let topic = topic(&around);
    let mut down_since = None;
    let mut rivals = Rivals::default();
    let mut attempt = 0;
    loop {
        renewal.done();
        let will = Will { topic: topic.clone(), payload: event(&around, "offline", "") };
        let connected = tokio::select! {
            () = shutdown.begun() => return,
            connected = target.connect(&client, Some(&will)) => connected,
        };
        match connected {
            Ok(session) => {
                (down_since, attempt) = (None, 0);
                let began = clock::instant();
                let look_back = LookBack::new(&target, &client, session.place(), Some(will));
                match beat(session, look_back, &topic, &around, &report, &mut renewal, &mut shutdown).await {
                    End::Shutdown => return,
                    End::Renewal => continue,
                    // The forwarders say it; here it is enough to step back.
                    End::Lost(error) => rivals.note(&error, clock::instant().duration_since(began), true),
                }
            }
            Err(error) => tracing::debug!(destination = %config.name, %error, "no status connection"),
        }
        let now = clock::instant();
        let wait = reconnect_wait(now.duration_since(*down_since.get_or_insert(now)), attempt)
            .max(jitter(RECONNECT_EARLY.1, RECONNECT_EARLY.1 * 2))
            .max(rivals.wait().unwrap_or_default());
        attempt += 1;
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Topic of the status: `{environment}/{site}/gateway.status/v1/{gateway}`.
pub fn topic(around: &Surroundings) -> String {
    format!("{}/{}/gateway.status/v1/{}", around.environment, around.site, around.gateway)
}

enum End {
    Shutdown,
    /// There are new certificates or passwords.
    Renewal,
    Lost(LinkError),
}

/// Sends heartbeats until the session ends, or an earlier broker is back: then over a session with that one.
async fn beat(
    mut session: Session,
    mut look_back: LookBack,
    topic: &str,
    around: &Surroundings,
    report: &Report,
    renewal: &mut Renewal,
    shutdown: &mut Shutdown,
) -> End {
    let mut output = Output::default();
    let mut next_beat = clock::instant();
    let mut id = 0u16;
    let mut in_flight = 0u32;
    loop {
        let now = clock::instant();
        if now >= next_beat && in_flight == 0 {
            next_beat = now + HEARTBEAT;
            id = id % u16::MAX + 1;
            push_status(&mut output, &session, topic, id, &event(around, "online", &report()));
            in_flight += 1;
        }
        let look_again = match session.watch(in_flight > 0, &mut output) {
            Ok(wait) => wait.min(next_beat.saturating_duration_since(now).max(Duration::from_millis(10))),
            Err(error) => return End::Lost(error),
        };
        tokio::select! {
            () = shutdown.begun() => {
                take_leave(session, output, topic, around, id).await;
                return End::Shutdown;
            }
            moved = session.exchange(&mut output) => if let Err(error) = moved {
                return End::Lost(error);
            },
            () = renewal.wait() => {
                // A goodbye: the will stays unsaid, and what is retained says that the gateway lives.
                session.close().await;
                return End::Renewal;
            }
            better = look_back.found() => {
                // What the later broker retains must not say for ever that the gateway lives. Where both are one
                // cluster, this comes before the birth.
                let left = std::mem::replace(&mut session, *better);
                take_leave(left, std::mem::take(&mut output), topic, around, id).await;
                look_back.settle_at(session.place());
                (next_beat, in_flight) = (now, 0);
            }
            () = tokio::time::sleep(look_again) => {}
        }
        loop {
            match session.answer() {
                Ok(None) => break,
                Ok(Some(Answer::Goodbye(reason) | Answer::NotConnected(reason))) => {
                    return End::Lost(LinkError::Ended(reason));
                }
                Ok(Some(Answer::Alive | Answer::Connected { .. })) => {}
                Ok(Some(Answer::Taken(_) | Answer::Unheard(_) | Answer::Refused(..))) => {
                    in_flight = in_flight.saturating_sub(1)
                }
                Err(error) => return End::Lost(error),
            }
        }
    }
}

fn push_status(output: &mut Output, session: &Session, topic: &str, packet_id: u16, payload: &[u8]) {
    let head = Head { packet_id, retain: session.limits().has_retain, ..Head::default() };
    link::push_publish(&mut output.bytes, session.protocol(), &head, topic.as_bytes(), STRUCTURED, &[], payload);
}

/// Says that the gateway is not there any more, and closes the session. `id` is the packet id used last.
async fn take_leave(mut session: Session, mut output: Output, topic: &str, around: &Surroundings, id: u16) {
    push_status(&mut output, &session, topic, id % u16::MAX + 1, &event(around, "offline", ""));
    // A short wait: whoever leaves cannot wait for a silent broker.
    let _ = tokio::time::timeout(Duration::from_secs(1), session.exchange(&mut output)).await;
    session.close().await;
}

/// A status event in structured mode.
fn event(around: &Surroundings, state: &str, report: &str) -> Vec<u8> {
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
