//! Reports that wait to become events: a row for each cause and origin.
//!
//! Promise: at most [`ROWS_MAX`] rows, plus one row per cause for the rest, each of some hundred bytes; at most
//! [`EVENTS_AT_ONCE`] events at once and [`EVENTS_PER_MINUTE`] from then on. Counts are complete.

use super::cause::Cause;
use crate::contract::Sender;
use crate::event::{AuthType, Timestamp, text};
use crate::origin::Origin;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Maximum number of rows: all devices of a plant that reconnect with an old password, at a kilobyte each.
pub(super) const ROWS_MAX: usize = 256;
/// Minimum interval between two events of a row.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// Delay of the first event of a row, in which further reports are included.
const GATHER: Duration = Duration::from_secs(2);
/// Burst of events after a quiet time.
const EVENTS_AT_ONCE: f64 = 60.0;
/// Events per minute under a continuous attack: at half a kilobyte each, 3 MB per day in the journal.
const EVENTS_PER_MINUTE: f64 = 4.0;
/// Maximum length of a text that a peer chose, in bytes.
const TEXT_BYTES_MAX: usize = 128;

/// Report of a refusal or a change, by the part that made it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    pub cause: Cause,
    /// Name of the source, `command` or `configuration`.
    pub source: &'a str,
    /// Address of the peer; `None` without a network connection.
    pub address: Option<IpAddr>,
    /// The client, as far as it is known at that point.
    pub sender: Sender<'a>,
    /// Object of the report: a topic, a filter, a part of the configuration, a command; may be empty.
    pub what: &'a str,
    /// Reason of the refusal or content of the change, in words of the gateway.
    pub reason: &'a str,
}

impl Report<'_> {
    /// Key by which reports are grouped. For anonymous clients it is the address, the only certain fact: they could
    /// claim another name each time.
    fn origin(&self) -> String {
        let Sender { client, user, proven_by } = self.sender;
        match self.cause {
            Cause::Change => cut(self.what).to_owned(),
            Cause::Command => format!("{} {}", cut(user), cut(self.what)),
            _ if proven_by.is_some() => format!("{} {}", cut(user), cut(client)),
            _ => self.address.map_or_else(String::new, |address| Origin::of(address).to_string()),
        }
    }
}

/// Truncates a text that a peer chose.
fn cut(text: &str) -> &str {
    text::start(text, TEXT_BYTES_MAX)
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct SecurityEvent {
    cause: &'static str,
    source: String,
    /// Address of the first report; others of the same origin may have other names.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    client: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    /// How the user was authenticated; without it the name is a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    authtype: Option<AuthType>,
    #[serde(skip_serializing_if = "String::is_empty")]
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Whether the event counts several origins that got no row of their own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    others: bool,
    count: u64,
    first: String,
    last: String,
}

#[derive(Debug)]
struct Row {
    event: SecurityEvent,
    first: Timestamp,
    last: Timestamp,
    due_at: Instant,
}

/// The rows, and the token bucket for events.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<(Cause, String, String), Row>,
    /// Time of the last update, and the tokens left then.
    bucket: Option<(Instant, f64)>,
}

impl Table {
    pub(super) fn add(&mut self, report: &Report<'_>, at: Timestamp, now: Instant) {
        let origin = report.origin();
        let mut key = (report.cause, cut(report.source).to_owned(), origin);
        let is_rest = !self.rows.contains_key(&key) && self.rows.len() >= ROWS_MAX;
        if is_rest {
            key = (report.cause, String::new(), "\u{0}rest".to_owned());
        }
        let row = self.rows.entry(key).or_insert_with(|| Row {
            event: SecurityEvent::of(report, is_rest),
            first: at,
            last: at,
            due_at: now + GATHER,
        });
        if row.event.count == 0 && !is_rest {
            row.event = SecurityEvent::of(report, false);
        }
        if row.event.count == 0 {
            row.first = at;
        }
        row.event.count += 1;
        row.last = at;
    }

    /// Whether there are no rows, neither waiting nor recently published.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes the events that are due, the longest waiting first.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SecurityEvent> {
        self.rows.retain(|_, row| row.event.count > 0 || row.due_at > now);
        let left = self.tokens(now);
        self.take(now, left as usize, |row| row.due_at <= now)
    }

    /// Takes all events at shutdown, due or not.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<SecurityEvent> {
        let left = self.tokens(now);
        self.take(now, left as usize, |_| true)
    }

    fn take(&mut self, now: Instant, count_max: usize, is_due: impl Fn(&Row) -> bool) -> Vec<SecurityEvent> {
        let mut due: Vec<&mut Row> = self.rows.values_mut().filter(|row| row.event.count > 0 && is_due(row)).collect();
        due.sort_by(|a, b| a.due_at.cmp(&b.due_at).then(a.first.cmp(&b.first)));
        due.truncate(count_max);
        let events: Vec<SecurityEvent> = due
            .into_iter()
            .map(|row| {
                row.due_at = now + PERIOD;
                let (first, last) = (row.first.to_string(), row.last.to_string());
                let event = SecurityEvent { first, last, ..row.event.clone() };
                row.event.count = 0;
                event
            })
            .collect();
        if let Some((_, tokens)) = &mut self.bucket {
            *tokens -= events.len() as f64;
        }
        events
    }

    /// Number of events that may be published now.
    fn tokens(&mut self, now: Instant) -> f64 {
        let (at, before) = self.bucket.unwrap_or((now, EVENTS_AT_ONCE));
        let grown = now.saturating_duration_since(at).as_secs_f64() * EVENTS_PER_MINUTE / 60.0;
        let tokens = (before + grown).min(EVENTS_AT_ONCE);
        self.bucket = Some((now, tokens));
        tokens
    }
}

impl SecurityEvent {
    fn of(report: &Report<'_>, is_rest: bool) -> Self {
        let text = |text: &str| if is_rest { String::new() } else { cut(text).to_owned() };
        Self {
            cause: report.cause.name(),
            source: text(report.source),
            address: report.address.filter(|_| !is_rest).map(|address| address.to_canonical().to_string()),
            client: text(report.sender.client),
            user: text(report.sender.user),
            authtype: report.sender.proven_by.filter(|_| !is_rest),
            what: text(report.what),
            reason: text(report.reason),
            others: is_rest,
            count: 0,
            first: String::new(),
            last: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report<'a>(cause: Cause, address: [u8; 4], client: &'a str) -> Report<'a> {
        let (address, sender) = (Some(IpAddr::from(address)), Sender { client, ..Sender::default() });
        Report { cause, source: "devices", address, sender, what: "", reason: "wrong" }
    }

    /// Report of an authenticated client.
    fn proven<'a>(cause: Cause, client: &'a str) -> Report<'a> {
        let sender = Sender { client, user: client, proven_by: Some(AuthType::User) };
        Report { sender, ..report(cause, [10, 0, 0, 7], client) }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds as i64 * 1_000_000)
    }

    #[test]
    fn those_alike_are_one_event_a_period() {
        let (mut table, start) = (Table::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for number in 0..1000 {
            // An attacker claims a different name each time.
            table.add(&report(Cause::Login, [10, 0, 0, 7], &format!("client-{number}")), at(number), start);
        }
        table.add(&proven(Cause::Publish, "press-4"), at(1), start);
        table.add(&proven(Cause::Publish, "press-5"), at(1), start);
        // Anonymous clients could claim any name.
        for number in 0..1000 {
            table.add(&report(Cause::Subscribe, [10, 0, 0, 7], &format!("client-{number}")), at(1), start);
        }
        assert!(table.take_due(after(1)).is_empty(), "the first gathers what comes right behind it");
        let events = table.take_due(after(2));
        let counts: Vec<_> = events.iter().map(|one| (one.cause, one.client.as_str(), one.count)).collect();
        assert!(
            counts.contains(&("login", "client-0", 1000)) && counts.contains(&("publish", "press-4", 1)),
            "{events:?}"
        );
        assert!(counts.contains(&("subscribe", "client-0", 1000)), "{events:?}");
        assert_eq!(events.len(), 4);
        let login = events.iter().find(|one| one.cause == "login").expect("an event");
        assert_eq!((login.first.as_str(), login.last.as_str()), (&*at(0).to_string(), &*at(999).to_string()));
        table.add(&report(Cause::Login, [10, 0, 0, 7], "again"), at(2000), after(3));
        assert!(table.take_due(after(30)).is_empty());
        assert_eq!(table.take_due(after(62)).iter().map(|one| one.count).collect::<Vec<_>>(), [1]);
        assert!(table.take_due(after(200)).is_empty() && table.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn a_flood_from_everywhere_is_counted_whole_in_few_events_and_little_memory() {
        let (mut table, start) = (Table::default(), Instant::now());
        let (mut sent, mut events) = (0, Vec::new());
        let long = "x".repeat(60_000);
        for second in 0..3600u64 {
            let now = start + Duration::from_secs(second);
            for number in 0..100u64 {
                let [.., a, b, c] = (second * 100 + number).to_be_bytes();
                let sender = Sender { client: &long, user: &long, proven_by: None };
                table.add(&Report { sender, ..report(Cause::Login, [10, a, b, c], "") }, at(second), now);
                table.add(&proven(Cause::Session, &format!("{second}-{number}")), at(second), now);
                sent += 2;
            }
            events.extend(table.take_due(now));
            assert!(table.rows.len() <= ROWS_MAX + Cause::ALL.len());
        }
        assert!(events.len() <= 60 + 4 * 60 + 1, "{} events in an hour", events.len());
        assert!(events.iter().any(|one| one.others), "those without a row of their own are counted together");
        assert!(events.iter().all(|one| serde_json::to_vec(one).expect("JSON").len() < 1000));
        let waiting: u64 = table.rows.values().map(|row| row.event.count).sum();
        let counted: u64 = events.iter().map(|one| one.count).sum();
        assert_eq!(counted + waiting, sent, "none is left out");
    }

    #[test]
    fn a_text_is_cut_between_letters_and_an_address_stands_for_its_network() {
        assert_eq!(cut(&"ä".repeat(100)).len(), 128);
        assert_eq!(cut(&format!("a{}", "ä".repeat(100))).len(), 127);
        let origin = |address: &str| {
            let address = Some(address.parse().expect("an address"));
            Report { address, ..report(Cause::Tls, [0; 4], "") }.origin()
        };
        assert_eq!(origin("2001:db8:1:2:3:4:5:6"), origin("2001:db8:1:2:ffff::1"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_eq!(origin("::ffff:10.0.0.7"), "10.0.0.7");
    }
}
