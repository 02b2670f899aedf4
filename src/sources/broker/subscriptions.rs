//! What is subscribed to, what the broker says to that, and what it still has from earlier.

use super::{Config, subscribe_again};
use crate::clock;
use crate::journal::Notes;
use crate::link::{self, Output, Protocol, Session, Subscription};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Packet ids of SUBSCRIBE and UNSUBSCRIBE; nothing else of ours has one.
const SUBSCRIBE_ID: u16 = 1;
const UNSUBSCRIBE_ID: u16 = 2;

/// What a broker has granted. The order of the fields is the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Granted {
    format: u8,
    url: String,
    client: String,
    filters: Vec<String>,
}

const FORMAT: u8 = 1;

/// The subscriptions of a source.
#[derive(Debug)]
pub(super) struct Subscriptions {
    source: String,
    wanted: Vec<Subscription>,
    granted: Granted,
    /// Places in `wanted` of those in the SUBSCRIBE that is unanswered.
    asked: Vec<usize>,
    /// Why a subscription does not work.
    refused: Vec<(usize, String)>,
    again: Option<(Instant, u32)>,
    notes: Notes,
}

impl Subscriptions {
    pub(super) fn new(config: &Config, client: &str, notes: Notes) -> Self {
        let filter = |topic: &String| match &config.share {
            Some(group) => format!("$share/{group}/{topic}"),
            None => topic.clone(),
        };
        let wanted = config.topics.iter().map(|topic| Subscription {
            filter: filter(topic),
            qos: config.qos,
            wants_retained: config.retained,
        });
        let mine = Granted { format: FORMAT, url: config.url.clone(), client: client.to_owned(), filters: vec![] };
        let stored = match notes.read(&config.name) {
            Ok(note) => note.and_then(|note| postcard::from_bytes::<Granted>(&note).ok()),
            Err(error) => {
                tracing::warn!(source = %config.name, %error, "what the broker had granted is not known; it is asked again");
                None
            }
        };
        let is_mine = |known: &Granted| Granted { filters: vec![], ..known.clone() } == mine;
        Self {
            source: config.name.clone(),
            wanted: wanted.collect(),
            granted: stored.filter(is_mine).unwrap_or(mine),
            asked: Vec::new(),
            refused: Vec::new(),
            again: None,
            notes,
        }
    }

    /// Begins a session: subscribes, and ends what an earlier configuration had subscribed to.
    pub(super) fn begin(&mut self, session: &Session, output: &mut Output) {
        if !session.is_resumed() {
            self.granted.filters.clear();
        }
        self.again = None;
        self.refused.clear();
        // MQTT 5 can be asked each time, retained messages or not. With 3.1.1 each SUBSCRIBE brings
        // them once more, so that a session that is there is left as it is.
        let trusts_session = session.protocol() == Protocol::V3;
        let has = |subscription: &Subscription| trusts_session && self.granted.filters.contains(&subscription.filter);
        let asked: Vec<usize> = (0..self.wanted.len()).filter(|index| !has(&self.wanted[*index])).collect();
        let is_wanted = |filter: &String| self.wanted.iter().any(|wanted| wanted.filter == *filter);
        let stale: Vec<String> = self.granted.filters.iter().filter(|filter| !is_wanted(filter)).cloned().collect();
        if !stale.is_empty() {
            tracing::info!(source = %self.source, filters = ?stale, "ending subscriptions that are no longer configured");
            link::push_unsubscribe(&mut output.bytes, session.protocol(), UNSUBSCRIBE_ID, &stale);
        }
        self.ask(asked, session.protocol(), output);
    }

    fn ask(&mut self, asked: Vec<usize>, protocol: Protocol, output: &mut Output) {
        if !asked.is_empty() {
            let subscriptions: Vec<_> = asked.iter().map(|index| self.wanted[*index].clone()).collect();
            link::push_subscribe(&mut output.bytes, protocol, SUBSCRIBE_ID, &subscriptions);
        }
        self.asked = asked;
    }

    /// Whether an answer is due.
    pub(super) fn are_awaited(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The broker's answer. The error is what it breaks.
    pub(super) fn answered(&mut self, codes: &[u8]) -> Result<(), String> {
        let asked = std::mem::take(&mut self.asked);
        if codes.len() != asked.len() {
            return Err(format!("SUBACK has {} codes for {} filters", codes.len(), asked.len()));
        }
        let attempt = self.again.map_or(0, |(_, attempt)| attempt);
        self.refused.retain(|(index, _)| !asked.contains(index));
        for (index, code) in asked.into_iter().zip(codes) {
            let Subscription { filter, qos, .. } = &self.wanted[index];
            match code {
                0x80.. => self
                    .refused
                    .push((index, format!("the broker refuses to subscribe to \"{filter}\": {}", named(*code)))),
                granted if granted < qos => {
                    self.refused.push((
                        index,
                        format!("the broker grants \"{filter}\" with QoS {granted} only, which promises nothing"),
                    ));
                }
                _ if !self.granted.filters.contains(filter) => self.granted.filters.push(filter.clone()),
                _ => {}
            }
        }
        self.again = None;
        if let Some(problem) = self.problem() {
            let wait = subscribe_again(attempt);
            tracing::warn!(source = %self.source, ?wait, "{problem}; will try again");
            self.again = Some((clock::instant() + wait, attempt + 1));
        }
        let is_refused = |filter: &String| self.refused.iter().any(|(index, _)| self.wanted[*index].filter == *filter);
        let kept: Vec<String> = self.granted.filters.iter().filter(|filter| !is_refused(filter)).cloned().collect();
        self.granted.filters = kept;
        self.remember();
        Ok(())
    }

    fn remember(&mut self) {
        self.granted.filters.retain(|filter| self.wanted.iter().any(|wanted| wanted.filter == *filter));
        let note = postcard::to_stdvec(&self.granted).unwrap_or_default();
        // Once for each session, on a thread that may wait for the disk.
        let written = tokio::task::block_in_place(|| {
            if self.notes.read(&self.source).is_ok_and(|known| known.as_deref() == Some(&note)) {
                return Ok(());
            }
            self.notes.write(vec![(self.source.clone(), Some(note))])
        });
        if let Err(error) = written {
            tracing::warn!(source = %self.source, %error, "what the broker has granted cannot be noted; it is asked again after a restart");
        }
    }

    /// Tries refused subscriptions again when it is time; says when to look again.
    pub(super) fn retry(&mut self, protocol: Protocol, output: &mut Output) -> Option<Instant> {
        let (at, _) = self.again?;
        if clock::instant() < at || self.are_awaited() {
            return Some(at);
        }
        let asked = self.refused.iter().map(|(index, _)| *index).collect();
        self.ask(asked, protocol, output);
        None
    }

    /// Which subscriptions do not work.
    pub(super) fn problem(&self) -> Option<String> {
        let reasons: Vec<&str> = self.refused.iter().map(|(_, reason)| reason.as_str()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// A code of SUBACK in words (MQTT 5, section 3.9.3; 3.1.1 knows 0x80 only).
fn named(code: u8) -> String {
    let name = match code {
        0x80 => "failure",
        0x83 => "implementation specific error",
        0x87 => "not authorized",
        0x8F => "topic filter invalid",
        0x91 => "packet identifier in use",
        0x97 => "quota exceeded",
        0x9E => "shared subscriptions not supported",
        0xA1 => "subscription identifiers not supported",
        0xA2 => "wildcard subscriptions not supported",
        _ => "unknown reason",
    };
    format!("0x{code:02X} {name}")
}
