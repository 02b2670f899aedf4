//! The subscriptions of a session: SUBSCRIBE, the broker's answers, and the removal of outdated subscriptions.

use super::Config;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::ingest::Notes;
use crate::link::{self, Output, Protocol, Session, Subscription};
use crate::mqtt::ReasonCode;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Packet ids of SUBSCRIBE and UNSUBSCRIBE; the source sends no other packet with an id.
const SUBSCRIBE_ID: u16 = 1;
const UNSUBSCRIBE_ID: u16 = 2;
/// Pauses before refused subscriptions are tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(40), Jitter::UpToDouble);

/// The subscriptions that a broker has granted. The order of the fields is the stored format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct GrantedFilters {
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
    configured: Vec<Subscription>,
    granted: GrantedFilters,
    /// Indexes in `configured` of the filters in the unanswered SUBSCRIBE.
    requested: Vec<usize>,
    /// Index and reason of each subscription that does not work.
    refused: Vec<(usize, String)>,
    /// Time of the next attempt.
    retry_at: Option<Instant>,
    retries: Backoff,
    notes: Notes,
}

impl Subscriptions {
    pub(super) fn new(config: &Config, client: &str, notes: Notes) -> Self {
        let filter = |topic: &String| match &config.share {
            Some(group) => format!("$share/{group}/{topic}"),
            None => topic.clone(),
        };
        let configured = config.topics.iter().map(|topic| Subscription {
            filter: filter(topic),
            qos: config.qos,
            wants_retained: config.retained,
        });
        let mine =
            GrantedFilters { format: FORMAT, url: config.url.clone(), client: client.to_owned(), filters: vec![] };
        let stored = match notes.read(&config.name) {
            Ok(note) => note.and_then(|note| postcard::from_bytes::<GrantedFilters>(&note).ok()),
            Err(error) => {
                tracing::warn!(source = %config.name, %error, "could not read the granted subscriptions; will subscribe again");
                None
            }
        };
        let is_mine = |known: &GrantedFilters| GrantedFilters { filters: vec![], ..known.clone() } == mine;
        Self {
            source: config.name.clone(),
            configured: configured.collect(),
            granted: stored.filter(is_mine).unwrap_or(mine),
            requested: Vec::new(),
            refused: Vec::new(),
            retry_at: None,
            retries: RETRIES,
            notes,
        }
    }

    /// Starts a session: subscribes, and unsubscribes from filters that are no longer configured.
    pub(super) fn begin(&mut self, session: &Session, output: &mut Output) {
        if !session.is_resumed() {
            self.granted.filters.clear();
        }
        self.retry_at = None;
        self.retries.reset();
        self.refused.clear();
        // In MQTT 5 a repeated SUBSCRIBE can suppress retained messages. In 3.1.1 it delivers them again, so the
        // subscriptions of an existing session stay unchanged.
        let trusts_session = session.protocol() == Protocol::V3;
        let has = |subscription: &Subscription| trusts_session && self.granted.filters.contains(&subscription.filter);
        let requested: Vec<usize> = (0..self.configured.len()).filter(|index| !has(&self.configured[*index])).collect();
        let is_configured = |filter: &String| self.configured.iter().any(|configured| configured.filter == *filter);
        let stale: Vec<String> = self.granted.filters.iter().filter(|filter| !is_configured(filter)).cloned().collect();
        if !stale.is_empty() {
            tracing::info!(source = %self.source, filters = ?stale, "unsubscribing from filters that are no longer configured");
            link::push_unsubscribe(&mut output.bytes, session.protocol(), UNSUBSCRIBE_ID, &stale);
        }
        self.subscribe(requested, session.protocol(), output);
    }

    fn subscribe(&mut self, requested: Vec<usize>, protocol: Protocol, output: &mut Output) {
        if !requested.is_empty() {
            let subscriptions: Vec<_> = requested.iter().map(|index| self.configured[*index].clone()).collect();
            link::push_subscribe(&mut output.bytes, protocol, SUBSCRIBE_ID, &subscriptions);
        }
        self.requested = requested;
    }

    /// Whether a SUBACK is outstanding.
    pub(super) fn are_awaited(&self) -> bool {
        !self.requested.is_empty()
    }

    /// Processes a SUBACK. The error says how it violates the protocol.
    pub(super) fn answered(&mut self, codes: &[u8]) -> Result<(), String> {
        let requested = std::mem::take(&mut self.requested);
        if codes.len() != requested.len() {
            return Err(format!("SUBACK has {} codes for {} filters", codes.len(), requested.len()));
        }
        self.refused.retain(|(index, _)| !requested.contains(index));
        for (index, code) in requested.into_iter().zip(codes) {
            let Subscription { filter, qos, .. } = &self.configured[index];
            match code {
                0x80.. => self
                    .refused
                    .push((index, format!("the broker refuses to subscribe to \"{filter}\": {}", reason_name(*code)))),
                granted if granted < qos => {
                    self.refused.push((
                        index,
                        format!("the broker grants \"{filter}\" only with QoS {granted}; messages may be lost"),
                    ));
                }
                _ if !self.granted.filters.contains(filter) => self.granted.filters.push(filter.clone()),
                _ => {}
            }
        }
        self.retry_at = None;
        match self.problem() {
            None => self.retries.reset(),
            Some(problem) => {
                let wait = self.retries.next();
                tracing::warn!(source = %self.source, ?wait, "{problem}; will try again");
                self.retry_at = Some(clock::instant() + wait);
            }
        }
        let is_refused =
            |filter: &String| self.refused.iter().any(|(index, _)| self.configured[*index].filter == *filter);
        let kept: Vec<String> = self.granted.filters.iter().filter(|filter| !is_refused(filter)).cloned().collect();
        self.granted.filters = kept;
        self.save_granted();
        Ok(())
    }

    fn save_granted(&mut self) {
        self.granted.filters.retain(|filter| self.configured.iter().any(|configured| configured.filter == *filter));
        let note = postcard::to_stdvec(&self.granted).unwrap_or_default();
        // Once per session; `block_in_place`, because this waits for the disk.
        let written = tokio::task::block_in_place(|| {
            if self.notes.read(&self.source).is_ok_and(|known| known.as_deref() == Some(&note)) {
                return Ok(());
            }
            self.notes.write(vec![(self.source.clone(), Some(note))])
        });
        if let Err(error) = written {
            tracing::warn!(source = %self.source, %error, "could not save the granted subscriptions; will subscribe again after a restart");
        }
    }

    /// Tries refused subscriptions again when that is due; returns when to check again.
    pub(super) fn retry(&mut self, protocol: Protocol, output: &mut Output) -> Option<Instant> {
        let at = self.retry_at?;
        if clock::instant() < at || self.are_awaited() {
            return Some(at);
        }
        let requested = self.refused.iter().map(|(index, _)| *index).collect();
        self.subscribe(requested, protocol, output);
        None
    }

    /// The reasons of the subscriptions that do not work.
    pub(super) fn problem(&self) -> Option<String> {
        let reasons: Vec<&str> = self.refused.iter().map(|(_, reason)| reason.as_str()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Name of a reason code of SUBACK.
fn reason_name(code: u8) -> String {
    let name = match ReasonCode::of_refusal(code) {
        // The only code of MQTT 3.1.1, and its name there.
        Some(ReasonCode::UnspecifiedError) => "failure",
        Some(code) => code.name(),
        None => "unknown reason",
    };
    format!("0x{code:02X} {name}")
}
