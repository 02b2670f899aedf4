//! The broker source: the gateway subscribes to a broker of the plant with a persistent session.
//!
//! Promise: the gateway sends a PUBACK only with a receipt, in the order of the messages, so the broker's session keeps
//! every message that the gateway has not stored. The status shows a lost connection and each subscription that the
//! broker refuses.
//! Invariants:
//! - memory is bounded: at a limit the gateway reads nothing more, which slows the broker down;
//! - no message ends the session: a message that is too large becomes a dead letter;
//! - a message counts as a redelivery only if its PUBACK certainly never left; in doubt it is a new event.
//!
//! The session uses the link's own driver on rumqttc's codec, not rumqttc's client. That client flushes after every
//! packet, fails again and again on messages above its limit, drops queued PUBACKs without reporting which had left, and
//! cannot be slowed down without ending its keep-alive; its TLS links a second, outdated certificate verifier. The driver
//! already has connecting, TLS and watchdogs.
//!
//! Not here: the meaning of an event (`ingest`, `contract`), the transport of bytes (`link`).

mod redelivery;
mod session;
mod subscriptions;

use crate::clock;
use crate::ingest::{Ingest, Notes, Producer};
use crate::link::{self, Inbox, LinkError, Protocol, Reconnect, Target};
use crate::mqtt::Filter;
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::sources::{PAYLOAD_BYTES_MAX, Refusal, Stats};
use crate::tls::ClientFiles;
use redelivery::{AwaitedRedeliveries, PendingAck};
use serde::Deserialize;
use session::{Blocked, SessionEnd};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subscriptions::Subscriptions;

/// The configuration of a broker source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS.
    pub url: String,
    /// Topic filters to subscribe to.
    pub topics: Vec<String>,
    /// Certificates.
    #[serde(default)]
    pub tls: ClientFiles,
    /// Version of MQTT.
    #[serde(default)]
    pub protocol: Protocol,
    /// User name at the broker.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Client id; by default one that is unique to gateway and source.
    pub client: Option<String>,
    /// QoS of the subscriptions: 1, or 0 for messages that may be lost.
    #[serde(default = "qos")]
    pub qos: u8,
    /// Group of a shared subscription: the broker sends each message to one gateway of the group.
    pub share: Option<String>,
    /// Whether the retained messages of a new subscription become events.
    #[serde(default)]
    pub retained: bool,
    /// Whether the gateway requests rebirths of Sparkplug nodes, which publishes to the broker.
    #[serde(default)]
    pub rebirth: bool,
    /// Keep-alive interval of the connection.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    /// How long the broker keeps messages while the gateway is not connected (MQTT 5).
    #[serde(default = "session_expiry")]
    pub session_expiry: Span,
    /// Limit of unacknowledged messages.
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
}

fn qos() -> u8 {
    1
}
fn keep_alive() -> Span {
    Span(Duration::from_secs(30))
}
/// A gateway that was removed must not fill the plant's broker without end.
fn session_expiry() -> Span {
    Span(Duration::from_secs(7 * 86_400))
}
fn receive_maximum() -> u16 {
    256
}

/// A restart of the gateway takes less.
const SESSION_EXPIRY_MIN: Duration = Duration::from_secs(60);
/// Time limit for the SUBACK while the connection is alive.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// A session that lasted this long resets the reconnect backoff.
const GOOD_AFTER: Duration = Duration::from_secs(10);

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.topics.is_empty() {
            return Err(("topics", "[] is no list of topic filters; expected one or more such as \"plant/#\"".into()));
        }
        for filter in &self.topics {
            check_filter(filter).map_err(|message| ("topics", message))?;
        }
        if self.qos > 1 {
            return Err((
                "qos",
                format!("{} is not allowed; 0 and 1 are. The broker delivers QoS 2 messages with QoS 1", self.qos),
            ));
        }
        if let Some(group) = &self.share
            && (group.is_empty() || group.contains(['/', '+', '#']))
        {
            return Err(("share", format!("\"{group}\" is no group; \"/\", \"+\" and \"#\" are not allowed in it")));
        }
        if self.client.as_ref().is_some_and(String::is_empty) {
            return Err(("client", "\"\" is no client id; leave it out for one that is unique".into()));
        }
        if self.receive_maximum == 0 {
            return Err(("receive_maximum", "0 is not allowed; 1 to 65535 are".into()));
        }
        if self.session_expiry.0 < SESSION_EXPIRY_MIN {
            return Err((
                "session_expiry",
                format!(
                    "{} is too short: the broker would forget messages at each restart; at least {} are needed",
                    self.session_expiry,
                    Span(SESSION_EXPIRY_MIN)
                ),
            ));
        }
        let allowed = Duration::from_secs(5)..=Duration::from_secs(3600);
        if !allowed.contains(&self.keep_alive.0) {
            return Err(("keep_alive", format!("{} is out of bounds; 5s to 1h are allowed", self.keep_alive)));
        }
        Ok(())
    }

    /// Two topic filters that overlap: the broker may send two copies of a message that matches both.
    pub fn overlap(&self) -> Option<(&str, &str)> {
        let parsed: Vec<_> = self.topics.iter().filter_map(|text| Some((text, Filter::parse(text)?))).collect();
        parsed.iter().enumerate().find_map(|(index, (text, filter))| {
            let (other, _) = parsed[..index].iter().find(|(_, other)| other.overlaps(filter))?;
            Some((text.as_str(), other.as_str()))
        })
    }

    /// The connection settings; the error says what is wrong with the URL or the files.
    pub fn target(&self) -> Result<Target, String> {
        Target::new(link::Config {
            urls: vec![self.url.clone()],
            tls: self.tls.clone(),
            protocol: self.protocol,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive.0,
            answer_wait_max: ANSWER_WAIT_MAX,
        })
    }
}

fn check_filter(filter: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("\"{filter}\" is no topic filter: {why}"));
    if filter.is_empty() || filter.len() > 1024 || filter.contains(['\0', '{', '}']) {
        return wrong("it has 1 to 1,024 bytes, without \"{\", \"}\" and zero bytes");
    }
    if filter.starts_with("$share/") {
        return wrong("set share to the name of the group instead");
    }
    if Filter::parse(filter).is_none() {
        return wrong("\"+\" stands alone in its level, and \"#\" alone in the last one");
    }
    Ok(())
}

/// A source that subscribes to one broker.
pub struct Source {
    config: Config,
    target: Target,
    client: String,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    subscriptions: Subscriptions,
    producer: Producer,
    /// Messages that were handed in and not yet acknowledged, in order of arrival.
    unacknowledged: VecDeque<PendingAck>,
    /// Messages whose PUBACK is in the output buffer, with its offset there.
    pubacks_in_output: Vec<(usize, PendingAck)>,
    /// Messages of earlier connections without a PUBACK.
    redeliveries: AwaitedRedeliveries,
    /// A message for which the journal has no room.
    blocked: Option<Blocked>,
    next_rebirth_request: Instant,
}

impl Source {
    /// Creates a source; it connects once it runs. `client` is the client id if the configuration names none. `notes`
    /// stores the granted subscriptions across restarts.
    pub fn new(
        config: Config,
        client: String,
        ingest: Arc<Ingest>,
        notes: Notes,
        stats: Arc<Stats>,
    ) -> Result<Self, String> {
        let target = config.target()?;
        let client = config.client.clone().unwrap_or(client);
        stats.set_problem(Some("not connected yet".into()));
        Ok(Self {
            subscriptions: Subscriptions::new(&config, &client, notes),
            target,
            client,
            producer: Producer::with_cache(Arc::clone(&ingest), session::ROUTES_MAX),
            ingest,
            stats,
            unacknowledged: VecDeque::new(),
            pubacks_in_output: Vec::new(),
            redeliveries: AwaitedRedeliveries::default(),
            blocked: None,
            next_rebirth_request: clock::instant(),
            config,
        })
    }

    /// Host and port of the broker.
    pub fn address(&self) -> String {
        self.target.name()
    }

    /// Receives until the shutdown; then acknowledges the messages that become durable within a short time.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let inbox = Inbox {
            expiry: self.config.session_expiry.0,
            receive_maximum: self.config.receive_maximum,
            payload_bytes_max: PAYLOAD_BYTES_MAX as usize,
        };
        let mut reconnect = Reconnect::default();
        loop {
            let connected = tokio::select! {
                () = shutdown.begun() => break,
                connected = self.target.connect_inbox(&self.client, &inbox) => connected,
            };
            let began = clock::instant();
            let error = match connected {
                Ok(session) => {
                    self.stats.connects.add(1);
                    self.stats.connections.set(1);
                    tracing::info!(
                        source = %self.config.name, broker = %self.target.name(), resumed = session.is_resumed(),
                        "connected to the broker"
                    );
                    let end = self.serve(session, &mut shutdown).await;
                    self.stats.connections.set(0);
                    match end {
                        SessionEnd::Shutdown => break,
                        SessionEnd::Lost(error) => error,
                    }
                }
                Err(error) => error,
            };
            if clock::instant().duration_since(began) >= GOOD_AFTER {
                reconnect.reset();
            }
            self.note_loss(&error);
            let wait = reconnect.wait();
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.stats.set_problem(Some("the gateway is shutting down".into()));
    }

    /// Counts a connection that was lost or could not be made; logs it and sets the problem if the reason is new.
    fn note_loss(&self, error: &LinkError) {
        self.stats.refuse(Refusal::Connection);
        let problem = Some(error.to_string());
        if self.stats.problem() != problem {
            tracing::warn!(source = %self.config.name, broker = %self.target.name(), %error, "no connection to the broker, will reconnect");
            self.stats.set_problem(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_those_of_mqtt() {
        for good in ["#", "+", "a/+/b", "a/#", "/a", "$SYS/#", "spBv1.0/+/NDATA/#"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for wrong in ["", "a/#/b", "a#", "a/b+", "$share/g/a", "plant/{line}", "a\0b"] {
            let message = check_filter(wrong).expect_err(wrong);
            assert!(message.contains("is no topic filter"), "{message}");
        }
    }
}
