//! A broker of the plant as a source: the gateway subscribes, and takes what the broker keeps for it.
//!
//! Promise: a PUBACK leaves only with a receipt, in the order of the messages, so that the broker
//! keeps in its session whatever the gateway does not hold. What does not work shows as a problem
//! in the status: a lost connection, and each subscription that the broker refuses.
//! Invariants:
//! - memory is bounded: over a limit nothing is read, and the broker is slowed down;
//! - no message ends the session: one that is too large is a dead letter;
//! - a redelivery is taken for one only if its PUBACK certainly never left; in doubt it is an event.
//!
//! The session is the link's own driver on rumqttc's codec, not rumqttc's client. That client flushes
//! once a packet, stops on messages above its limit again and again, drops queued PUBACKs without
//! saying which had left, and cannot be slowed down without ending its keep-alive; its TLS links a
//! second, outdated certificate verifier. The driver has connecting, TLS and watchdogs already.
//!
//! Not here: what an event means (`ingest`, `contract`), how bytes travel (`link`).

mod owed;
mod session;
mod subscriptions;

use crate::clock;
use crate::contract::Pattern;
use crate::ingest::{Ingest, Route};
use crate::journal::{Notes, Waiter};
use crate::link::{self, Inbox, LinkError, Protocol, Target, jitter, reconnect_wait};
use crate::local::Filter;
use crate::setting::Span;
use crate::shutdown::Shutdown;
use crate::sources::{PAYLOAD_BYTES_MAX, Refusal, Stats};
use crate::tls::ClientFiles;
use owed::{Owed, Pending};
use serde::Deserialize;
use session::{Blocked, End};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subscriptions::Subscriptions;

/// A broker as the configuration says it.
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
    /// User name.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Client id; by default one that is unique to gateway and source.
    pub client: Option<String>,
    /// 1, or 0 for messages that may be lost.
    #[serde(default = "qos")]
    pub qos: u8,
    /// Group of a shared subscription: of all gateways in the group, one gets each message.
    pub share: Option<String>,
    /// Whether messages that the broker retains are events when a subscription is new.
    #[serde(default)]
    pub retained: bool,
    /// Whether Sparkplug nodes are asked for a rebirth, which publishes to the broker.
    #[serde(default)]
    pub rebirth: bool,
    /// How long the line may be silent before it is probed.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    /// How long the broker keeps messages while the gateway is away (MQTT 5).
    #[serde(default = "session_expiry")]
    pub session_expiry: Span,
    /// Messages that may be unacknowledged.
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
}

fn qos() -> u8 {
    1
}
fn keep_alive() -> Span {
    Span(Duration::from_secs(30))
}
/// A gateway that is gone for good must not fill the plant's broker for ever.
fn session_expiry() -> Span {
    Span(Duration::from_secs(7 * 86_400))
}
fn receive_maximum() -> u16 {
    256
}

/// A gateway is restarted within this.
const SESSION_EXPIRY_MIN: Duration = Duration::from_secs(60);
/// How long a SUBSCRIBE may stay unanswered while the line is alive.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// A session that lasted so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

impl Config {
    /// Checks values: key, and what is wrong with it.
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
                format!("{} is not allowed; 0 and 1 are. The broker delivers what came with QoS 2 with 1", self.qos),
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

    /// Topic filters some messages match twice, for which the broker may send two copies.
    pub fn overlap(&self) -> Option<(&str, &str)> {
        let parsed: Vec<_> = self.topics.iter().filter_map(|text| Some((text, Pattern::parse(text).ok()?))).collect();
        parsed.iter().enumerate().find_map(|(index, (text, pattern))| {
            let (other, _) = parsed[..index].iter().find(|(_, other)| other.overlaps(pattern))?;
            Some((text.as_str(), other.as_str()))
        })
    }

    /// The broker, if the URL leads to one.
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

/// One broker that is subscribed to.
pub struct Source {
    config: Config,
    target: Target,
    client: String,
    ingest: Arc<Ingest>,
    stats: Arc<Stats>,
    subscriptions: Subscriptions,
    waiter: Waiter,
    routes: HashMap<String, Arc<Route>>,
    /// Taken in and not yet acknowledged, in order of arrival.
    unacknowledged: VecDeque<Pending>,
    /// Acknowledged in the output, with the place of the PUBACK there.
    leaving: Vec<(usize, Pending)>,
    /// What earlier connections left without a PUBACK.
    owed: Owed,
    /// A message that found no room.
    blocked: Option<Blocked>,
    next_ask: Instant,
}

impl Source {
    /// A source that connects once it runs. `client` is its client id where the configuration
    /// names none; `notes` are what sources remember over a restart.
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
            ingest,
            stats,
            waiter: Waiter::default(),
            routes: HashMap::new(),
            unacknowledged: VecDeque::new(),
            leaving: Vec::new(),
            owed: Owed::default(),
            blocked: None,
            next_ask: clock::instant(),
            config,
        })
    }

    /// Host and port of the broker.
    pub fn address(&self) -> String {
        self.target.name()
    }

    /// Works until the shutdown; then acknowledges what is on its way to the disk.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let inbox = Inbox {
            expiry: self.config.session_expiry.0,
            receive_maximum: self.config.receive_maximum,
            payload_bytes_max: PAYLOAD_BYTES_MAX as usize,
        };
        let mut down_since: Option<Instant> = None;
        let mut attempt = 0;
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
                        End::Shutdown => break,
                        End::Lost(error) => error,
                    }
                }
                Err(error) => error,
            };
            let now = clock::instant();
            if now.duration_since(began) >= GOOD_AFTER {
                (down_since, attempt) = (None, 0);
            }
            self.note_loss(&error);
            let wait = reconnect_wait(now.duration_since(*down_since.get_or_insert(now)), attempt);
            attempt += 1;
            tokio::select! {
                () = shutdown.begun() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.stats.set_problem(Some("the gateway is shutting down".into()));
    }

    /// Counts and shows a connection that is lost or was not had; logs it if it is news.
    fn note_loss(&self, error: &LinkError) {
        self.stats.refuse(Refusal::Connection);
        let problem = Some(error.to_string());
        if self.stats.problem() != problem {
            tracing::warn!(source = %self.config.name, broker = %self.target.name(), %error, "no connection to the broker, will reconnect");
            self.stats.set_problem(problem);
        }
    }
}

/// How long until a refused subscription is tried again.
fn subscribe_again(attempt: u32) -> Duration {
    let from = Duration::from_secs(5) * 2u32.pow(attempt.min(3));
    jitter(from, from * 2)
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
