//! The last value of each key: what a new subscriber is told at once.
//!
//! Invariant: never more than the bytes it was given; what has not changed for longest goes first.

use crate::event::{Record, Timestamp};
use crate::journal::{Note, Published};
use crate::ordered::sort;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The newest event of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastValue {
    /// Its sequence.
    pub sequence: u64,
    /// When it was recorded.
    pub recorded: Timestamp,
    /// The record, encoded.
    pub record: Vec<u8>,
}

/// Bytes that an entry takes beside its record and twice its topic, about.
const BYTES_BESIDE: usize = 160;
/// What the notes of last values begin with.
pub(super) const PREFIX: &str = "last/";

/// Last values by topic.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    by_topic: HashMap<Arc<str>, (u64, Arc<LastValue>)>,
    /// Oldest change first.
    by_age: BTreeMap<u64, Arc<str>>,
    /// Changed since the notes were written; what is gone from `by_topic` is to be removed there.
    changed: BTreeSet<Arc<str>>,
    ticks: u64,
    bytes: usize,
    bytes_max: usize,
}

fn cost(topic: &str, value: &LastValue) -> usize {
    topic.len() * 2 + value.record.len() + BYTES_BESIDE
}

impl LastValues {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Reads what the notes hold.
    pub(super) fn restore(&mut self, notes: Vec<(String, Vec<u8>)>) {
        for (name, bytes) in notes {
            if let (Some(topic), Ok(value)) = (name.strip_prefix(PREFIX), postcard::from_bytes(&bytes)) {
                self.put(topic, value);
            }
        }
        self.changed.clear();
    }

    pub(super) fn note(&mut self, topic: &str, record: &Record<'_>, sequence: u64, recorded: Timestamp) {
        let mut bytes = Vec::with_capacity(record.payload.len() + record.key.len() + record.origin.len() + 64);
        record.encode(&mut bytes);
        self.put(topic, LastValue { sequence, recorded, record: bytes });
    }

    fn put(&mut self, topic: &str, value: LastValue) {
        self.ticks += 1;
        self.bytes += cost(topic, &value);
        let topic = match self.by_topic.get_key_value(topic) {
            Some((known, (tick, old))) => {
                self.bytes -= cost(topic, old);
                self.by_age.remove(tick);
                Arc::clone(known)
            }
            None => Arc::from(topic),
        };
        self.by_age.insert(self.ticks, Arc::clone(&topic));
        self.changed.insert(Arc::clone(&topic));
        self.by_topic.insert(topic, (self.ticks, Arc::new(value)));
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some((_, value)) = self.by_topic.remove(&oldest) {
                self.bytes -= cost(&oldest, &value);
            }
            self.changed.insert(oldest);
        }
    }

    /// Last values whose topic `wanted` takes, in the order of their topics.
    pub(super) fn matching(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Arc<LastValue>)> {
        let mut found: Vec<_> = self
            .by_topic
            .iter()
            .filter(|(topic, _)| wanted(topic))
            .map(|(topic, (_, value))| (Arc::clone(topic), Arc::clone(value)))
            .collect();
        sort(&mut found, |a, b| a.0.cmp(&b.0));
        found
    }

    /// What changed since the last call, as notes.
    pub(super) fn take_changes(&mut self) -> Vec<Note> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|topic| {
                let value = self.by_topic.get(&topic).and_then(|(_, value)| postcard::to_stdvec(&**value).ok());
                (format!("{PREFIX}{topic}"), value)
            })
            .collect()
    }
}

impl LastValue {
    /// The event as it was recorded; `None` if a newer version wrote it.
    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(&self.record).ok()
    }

    /// The publication that renders it.
    pub fn published(&self, journal: &crate::journal::Journal) -> Option<Arc<Published>> {
        journal.published(self.record()?.publication)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Content, Id};

    fn note(values: &mut LastValues, topic: &str, payload: &[u8]) {
        let record = Record {
            publication: 1,
            id: Id::Uuid([0; 16]),
            time: Timestamp(0),
            origin: "s/d",
            key: "k",
            content: Content::Json,
            attributes: Vec::new(),
            payload,
        };
        values.note(topic, &record, 1, Timestamp(0));
    }

    #[test]
    fn the_longest_unchanged_goes_first_and_the_notes_follow() {
        let mut values = LastValues::new(1200);
        for topic in ["a", "b", "c", "d"] {
            note(&mut values, topic, b"{}");
        }
        assert!(values.bytes <= 1200);
        values.take_changes();
        note(&mut values, "a", b"{\"new\":1}");
        note(&mut values, "e", &[b'x'; 500]);
        assert!(values.bytes <= 1200, "{}", values.bytes);
        let kept: Vec<_> = values.matching(|_| true).iter().map(|(topic, _)| topic.to_string()).collect();
        assert!(kept.contains(&"a".into()) && kept.contains(&"e".into()) && !kept.contains(&"b".into()), "{kept:?}");
        let notes = values.take_changes();
        assert!(notes.iter().any(|(name, value)| name == "last/b" && value.is_none()), "{notes:?}");
        let mut restored = LastValues::new(1200);
        restored.restore(notes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect());
        assert_eq!(restored.matching(|topic| topic == "a"), values.matching(|topic| topic == "a"));
    }
}
