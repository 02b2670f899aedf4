//! What waits to become an event: a row for each cause and origin.
//!
//! Promise: at most [`ROWS_MAX`] rows and one of the rest for each cause, each of some hundred bytes; at most
//! [`EVENTS_AT_ONCE`] events at once and [`EVENTS_PER_MINUTE`] from then on. Nothing is left out of a count.

use super::Cause;
use crate::contract::Sender;
use crate::event::{AuthType, Timestamp};
use crate::origin::Origin;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Rows: a plant's devices that all come back with an old password, at a kilobyte each.
pub(super) const ROWS_MAX: usize = 256;
/// A row becomes an event once in this time.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// What comes right behind the first is in the same event.
const GATHER: Duration = Duration::from_secs(2);
/// Events after a quiet time.
const EVENTS_AT_ONCE: f64 = 60.0;
/// Events a minute under an attack that goes on: at half a kilobyte each, 3 MB a day in the journal.
const EVENTS_PER_MINUTE: f64 = 4.0;
/// Bytes of a text that somebody else chose.
const TEXT_BYTES_MAX: usize = 128;

/// Something that happened, as its witness reports it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// What happened.
    pub cause: Cause,
    /// Name of the source, or `command` and `configuration`.
    pub source: &'a str,
    /// Where it came from; `None` for what has no address.
    pub address: Option<IpAddr>,
    /// Who it was, as far as that is known by then.
    pub sender: Sender<'a>,
    /// What it was about: a topic, a filter, a part of the configuration, a command; may be empty.
    pub what: &'a str,
    /// Why it was refused, or what was changed: words of the gateway.
    pub reason: &'a str,
}

impl Report<'_> {
    /// What those alike have in common. Of whoever has proven no name, all that is known for certain is the address: a
    /// client could claim another name each time.
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

/// The beginning of a text that somebody else chose.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What an event says.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Told {
    cause: &'static str,
    source: String,
    /// Of the first; others of the same origin may have had other names.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    client: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    /// How the user was proven; without it the name is a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    authtype: Option<AuthType>,
    #[serde(skip_serializing_if = "String::is_empty")]
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Whether this counts many origins that had no room of their own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    others: bool,
    count: u64,
    first: String,
    last: String,
}

#[derive(Debug)]
struct Row {
    told: Told,
    first: Timestamp,
    last: Timestamp,
    tell_at: Instant,
}

/// The rows, and how many events may still be made.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<(Cause, String, String), Row>,
    /// When all events so far would have been made at the rate that lasts; a bucket of tokens.
    paid: Option<(Instant, f64)>,
}

impl Table {
    pub fn add(&mut self, report: &Report<'_>, at: Timestamp, now: Instant) {
        let origin = report.origin();
        let mut key = (report.cause, cut(report.source).to_owned(), origin);
        let is_rest = !self.rows.contains_key(&key) && self.rows.len() >= ROWS_MAX;
        if is_rest {
            key = (report.cause, String::new(), "\u{0}rest".to_owned());
        }
        let row = self.rows.entry(key).or_insert_with(|| Row {
            told: Told::of(report, is_rest),
            first: at,
            last: at,
            tell_at: now + GATHER,
        });
        if row.told.count == 0 && !is_rest {
            row.told = Told::of(report, false);
        }
        if row.told.count == 0 {
            row.first = at;
        }
        row.told.count += 1;
        row.last = at;
    }

    /// Whether nothing waits, nor is remembered as told.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What is to become events now, what waits longest first.
    pub fn take_due(&mut self, now: Instant) -> Vec<Told> {
        self.rows.retain(|_, row| row.told.count > 0 || row.tell_at > now);
        let left = self.tokens(now);
        self.take(now, left as usize, |row| row.tell_at <= now)
    }

    /// The same at the end, for which nothing waits.
    pub fn take_all(&mut self, now: Instant) -> Vec<Told> {
        let left = self.tokens(now);
        self.take(now, left as usize, |_| true)
    }

    fn take(&mut self, now: Instant, count_max: usize, is_due: impl Fn(&Row) -> bool) -> Vec<Told> {
        let mut due: Vec<&mut Row> = self.rows.values_mut().filter(|row| row.told.count > 0 && is_due(row)).collect();
        due.sort_by(|a, b| a.tell_at.cmp(&b.tell_at).then(a.first.cmp(&b.first)));
        due.truncate(count_max);
        let told: Vec<Told> = due
            .into_iter()
            .map(|row| {
                row.tell_at = now + PERIOD;
                let (first, last) = (row.first.to_string(), row.last.to_string());
                let told = Told { first, last, ..row.told.clone() };
                row.told.count = 0;
                told
            })
            .collect();
        if let Some((_, tokens)) = &mut self.paid {
            *tokens -= told.len() as f64;
        }
        told
    }

    /// How many events may be made now.
    fn tokens(&mut self, now: Instant) -> f64 {
        let (at, before) = self.paid.unwrap_or((now, EVENTS_AT_ONCE));
        let grown = now.saturating_duration_since(at).as_secs_f64() * EVENTS_PER_MINUTE / 60.0;
        let tokens = (before + grown).min(EVENTS_AT_ONCE);
        self.paid = Some((now, tokens));
        tokens
    }
}

impl Told {
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

    /// Of a client that has proven its name.
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
            // An attacker claims another name each time.
            table.add(&report(Cause::Login, [10, 0, 0, 7], &format!("client-{number}")), at(number), start);
        }
        table.add(&proven(Cause::Publish, "press-4"), at(1), start);
        table.add(&proven(Cause::Publish, "press-5"), at(1), start);
        // Clients that have proven nothing could be called anything.
        for number in 0..1000 {
            table.add(&report(Cause::Subscribe, [10, 0, 0, 7], &format!("client-{number}")), at(1), start);
        }
        assert!(table.take_due(after(1)).is_empty(), "the first gathers what comes right behind it");
        let told = table.take_due(after(2));
        let counts: Vec<_> = told.iter().map(|one| (one.cause, one.client.as_str(), one.count)).collect();
        assert!(
            counts.contains(&("login", "client-0", 1000)) && counts.contains(&("publish", "press-4", 1)),
            "{told:?}"
        );
        assert!(counts.contains(&("subscribe", "client-0", 1000)), "{told:?}");
        assert_eq!(told.len(), 4);
        let login = told.iter().find(|one| one.cause == "login").expect("told");
        assert_eq!((login.first.as_str(), login.last.as_str()), (&*at(0).to_string(), &*at(999).to_string()));
        table.add(&report(Cause::Login, [10, 0, 0, 7], "again"), at(2000), after(3));
        assert!(table.take_due(after(30)).is_empty());
        assert_eq!(table.take_due(after(62)).iter().map(|one| one.count).collect::<Vec<_>>(), [1]);
        assert!(table.take_due(after(200)).is_empty() && table.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn a_flood_from_everywhere_is_counted_whole_in_few_events_and_little_memory() {
        let (mut table, start) = (Table::default(), Instant::now());
        let (mut sent, mut told) = (0, Vec::new());
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
            told.extend(table.take_due(now));
            assert!(table.rows.len() <= ROWS_MAX + Cause::ALL.len());
        }
        assert!(told.len() <= 60 + 4 * 60 + 1, "{} events in an hour", told.len());
        assert!(told.iter().any(|one| one.others), "those without a row of their own are counted together");
        assert!(told.iter().all(|one| serde_json::to_vec(one).expect("JSON").len() < 1000));
        let waiting: u64 = table.rows.values().map(|row| row.told.count).sum();
        let counted: u64 = told.iter().map(|one| one.count).sum();
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
