//! The settings of a destination, with their checks.

use super::client_id::{ClientIdSettings, ClientIds};
use super::meter::ByteBudget;
use crate::contract::{Publication, RECEIPTS};
use crate::journal::Start;
use crate::link::{self, Address, Protocol, Proxy, Target};
use crate::secret::Secret;
use crate::setting::{Bytes, Findings, Span};
use crate::tls::{self, ClientFiles, NamedFile};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of one destination.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub name: String,
    /// URLs as [`Address::parse`] reads them. The gateway tries several in their order.
    pub url: Urls,
    /// The proxy through which every connection goes.
    pub proxy: Option<Proxy>,
    /// The client ids of all connections, instead of the one that names gateway and destination.
    pub client_id: Option<ClientIds>,
    /// Start of the client ids: the lane or the purpose of the connection follows after a hyphen.
    pub client_id_prefix: Option<String>,
    /// Files for TLS: authorities, client certificate and key.
    #[serde(default)]
    pub tls: ClientFiles,
    #[serde(default)]
    pub protocol: Protocol,
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Time without traffic after which the gateway sends a PINGREQ.
    pub keep_alive: Option<Span>,
    /// Bytes on the line per day and month.
    pub budget: Option<ByteBudget>,
    /// Longest wait for an acknowledgement while the connection is alive.
    #[serde(default = "answer_wait_max")]
    pub answer_wait_max: Span,
    /// Largest number of publishes in flight; the broker may allow fewer.
    #[serde(default = "window")]
    pub window: u16,
    /// Streams to send; a pattern may end in `*`. An empty list means all.
    #[serde(default)]
    pub streams: Vec<String>,
    /// How the attributes of events are sent.
    #[serde(default)]
    pub envelope: Envelope,
    /// Whether the gateway retries an event until its topic has a subscriber.
    #[serde(default)]
    pub require_subscriber: bool,
    /// Position in each lane at which a new destination starts.
    #[serde(default)]
    pub from: Start,
    /// Bytes of each lane that this destination may hold back; beyond it, the oldest events are discarded for it.
    pub hold: Option<Bytes>,
    /// Whether the gateway takes commands from this destination.
    #[serde(default)]
    pub commands: bool,
    /// Topic level that `forebay replay` puts in front of the topic; none for MQTT 5 by default.
    pub replay_topic: Option<String>,
}

/// How the attributes of events are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Envelope {
    /// As the `mode` of the contract says.
    #[default]
    Contract,
    /// As short user properties.
    Compact,
}

/// One URL, or several in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct Urls(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a URL in quotes, or a list of URLs")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Urls {
    fn from(urls: OneOrMany) -> Self {
        match urls {
            OneOrMany::One(url) => Self(vec![url]),
            OneOrMany::Many(urls) => Self(urls),
        }
    }
}

/// Smallest `hold`: less could not contain the events in flight of normal operation.
const HOLD_MIN: u64 = 8 << 20;

fn window() -> u16 {
    1000
}

fn answer_wait_max() -> Span {
    Span(Duration::from_secs(60))
}

impl Config {
    /// Returns the brokers of this destination, or what is wrong with their URLs.
    pub fn target(&self) -> Result<Target, String> {
        Target::new(link::Config {
            urls: self.url.0.clone(),
            proxy: self.proxy.clone(),
            tls: self.tls.clone(),
            protocol: self.protocol,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive(),
            answer_wait_max: self.answer_wait_max.0,
        })
    }

    /// The settings of the client ids.
    pub fn client_ids(&self) -> ClientIdSettings<'_> {
        let (client_id, prefix) = (self.client_id.as_ref(), self.client_id_prefix.as_deref());
        ClientIdSettings { destination: &self.name, client_id, prefix }
    }

    /// Time without traffic after which the gateway sends a PINGREQ: longer on a line with a budget.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive.map_or_else(|| self.idle_interval(), |span| span.0)
    }

    /// Interval of keep-alive and heartbeat of a destination. At 30 s an idle destination carries 4 MB a day, at five
    /// minutes 0.4 MB; address translators of mobile networks forget connections after five minutes and more.
    pub fn idle_interval(&self) -> Duration {
        Duration::from_secs(if self.budget.is_some() { 300 } else { 30 })
    }

    /// Whether a stream goes to this destination. The gateway's own streams always do: they report losses. Receipts go to
    /// those that send commands, and commands to devices go nowhere else.
    pub fn takes(&self, published: &Publication) -> bool {
        let stream = &published.stream;
        if published.is_to_devices() {
            return false;
        }
        self.streams.is_empty()
            || stream.starts_with("gateway.")
            || (self.commands && stream == RECEIPTS)
            || self.streams.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => stream.starts_with(start),
                None => *stream == *pattern,
            })
    }

    /// Lists the files that the settings name.
    pub fn files(&mut self) -> Vec<NamedFile<'_>> {
        let password = self.password_file.as_mut().map(|file| NamedFile::Secret("password_file", file));
        let proxy = self.proxy.as_mut().and_then(Proxy::file);
        password.into_iter().chain(proxy).chain([NamedFile::Client("tls", &mut self.tls)]).collect()
    }

    /// Checks the settings, and reads the files that they name.
    pub fn check(&self, found: &mut Findings<'_>) {
        if self.window == 0 {
            found.problem("window", "0 is not allowed; 1 to 65535 are");
        }
        if self.url.0.is_empty() {
            found.problem("url", "is empty; expected \"mqtts://host:8883\", or a list of URLs");
        }
        self.url.0.iter().for_each(|url| self.check_url(url, found));
        if let Some(proxy) = &self.proxy {
            proxy.check(found);
        }
        if self.envelope == Envelope::Compact && self.protocol == Protocol::V3 {
            found.problem(
                "envelope",
                "\"compact\" needs user properties, which MQTT 3.1.1 does not have; \"contract\" is allowed with it",
            );
        }
        if let Some(hold) = self.hold.filter(|hold| hold.0 < HOLD_MIN) {
            found.problem("hold", format!("{hold} is too little; at least {} are needed", Bytes(HOLD_MIN)));
        }
        if self.user.is_some() != self.password_file.is_some() {
            found.problem("user", "user and password_file go together; one of them is missing");
        }
        if let Some(Err(error)) = self.password_file.as_deref().map(Secret::read) {
            found.problem("password_file", error.to_string());
        }
    }

    fn check_url(&self, url: &str, found: &mut Findings<'_>) {
        match Address::parse(url) {
            Err(message) => found.problem("url", message),
            Ok(address) if address.is_tls => {
                if let Err(error) = tls::client(&self.tls) {
                    found.problem("tls", error.to_string());
                }
            }
            Ok(_) if self.tls.is_set() => found.problem(
                "tls",
                format!(
                    "is set, but \"{url}\" speaks no TLS and would send everything in plain text; use mqtts:// or wss://, or remove tls"
                ),
            ),
            Ok(_) if found.is_production() => found.problem(
                "url",
                format!("\"{url}\" is without TLS, which is not allowed in environment \"production\"; use mqtts:// or wss://"),
            ),
            Ok(_) => {}
        }
    }
}
