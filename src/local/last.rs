//! The last value of each topic, which a new subscriber receives at once.
//!
//! Invariant: the values never exceed their byte limit; the value that has been unchanged for longest is removed first.
//! Unsaved changes concern only topics in memory or on the disk, which bounds them too.

use super::feed::{EventRef, JournalPosition};
use crate::event::{Record, Timestamp};
use crate::journal::Note;
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The newest event of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastValue {
    /// Sequence of the event in its stream.
    pub sequence: u64,
    /// Time at which the gateway accepted it.
    pub recorded: Timestamp,
    pub record: Vec<u8>,
    /// Index of its lane; `None` for a lane that no longer exists. Two fields take eight bytes
    /// less than an optional [`JournalPosition`].
    lane: Option<u32>,
    offset: u64,
}

/// The stored format of a last value; the order of the fields is part of it.
#[derive(Serialize, Deserialize)]
struct StoredValue<'a> {
    sequence: u64,
    recorded: Timestamp,
    /// Name of its lane, because the index may change at a restart. Empty if the lane no longer exists.
    lane: &'a str,
    offset: u64,
    record: &'a [u8],
}

/// Approximate bytes of an entry, without its record and twice its topic: 72 for the value with its position and the
/// counts of its `Arc`, 16 for those of the topic, 50 in the table by topic and 38 in the one by age at their usual load.
const OVERHEAD_BYTES: usize = 176;
/// Prefix of the note names of last values.
pub(super) const PREFIX: &str = "last/";

#[derive(Debug, Default)]
pub(super) struct LastValues {
    /// Names of the lanes, by index.
    lanes: Vec<String>,
    by_topic: HashMap<Arc<str>, (u64, Arc<LastValue>)>,
    /// Oldest change first.
    by_age: BTreeMap<u64, Arc<str>>,
    /// Topics that changed since [`LastValues::take_changes`], and whether the disk may hold a note of them. The notes of
    /// topics that are no longer in `by_topic` are deleted.
    changed: BTreeMap<Arc<str>, bool>,
    /// Topics whose notes are being written.
    being_saved: Vec<Arc<str>>,
    ticks: u64,
    bytes: usize,
    bytes_max: usize,
}

fn cost(topic: &str, value: &LastValue) -> usize {
    topic.len() * 2 + value.record.len() + OVERHEAD_BYTES
}

impl LastValues {
    /// Creates an empty set for lanes with these names.
    pub(super) fn new(bytes_max: usize, lanes: Vec<String>) -> Self {
        Self { bytes_max, lanes, ..Self::default() }
    }

    /// Restores the values from their notes; `ends` are the ends of the lanes. Unreadable notes are ignored.
    pub(super) fn restore(&mut self, notes: Vec<(String, Vec<u8>)>, ends: &[u64]) {
        for (name, bytes) in notes {
            let (Some(topic), Ok(saved)) = (name.strip_prefix(PREFIX), postcard::from_bytes::<StoredValue<'_>>(&bytes))
            else {
                continue;
            };
            // A lane that was removed and created again holds other events at the same offsets.
            let is_in_lane = |lane: &usize| ends.get(*lane).is_some_and(|end| saved.offset < *end);
            let lane = self.lanes.iter().position(|known| known == saved.lane).filter(is_in_lane);
            let value = LastValue {
                sequence: saved.sequence,
                recorded: saved.recorded,
                record: saved.record.to_vec(),
                lane: lane.and_then(|lane| u32::try_from(lane).ok()),
                offset: saved.offset,
            };
            self.changed.insert(topic.into(), true);
            self.put(topic, value);
        }
        // The notes of values that did not fit into memory are deleted from the disk.
        self.changed.retain(|topic, _| !self.by_topic.contains_key(topic));
    }

    /// Stores an event as the last value of its topic.
    pub(super) fn update(&mut self, topic: &str, event: &EventRef<'_>) {
        let EventRef { place, record, sequence, recorded, .. } = event;
        let mut bytes = Vec::with_capacity(record.payload.len() + record.key.len() + record.origin.len() + 64);
        record.encode(&mut bytes);
        let lane = u32::try_from(place.lane).ok();
        let (sequence, recorded) = (*sequence, *recorded);
        self.put(topic, LastValue { sequence, recorded, record: bytes, lane, offset: place.offset });
    }

    fn put(&mut self, topic: &str, value: LastValue) {
        self.ticks += 1;
        self.bytes += cost(topic, &value);
        let (topic, is_known) = match self.by_topic.get_key_value(topic) {
            Some((known, (tick, old))) => {
                self.bytes -= cost(topic, old);
                self.by_age.remove(tick);
                (Arc::clone(known), true)
            }
            None => (Arc::from(topic), false),
        };
        self.by_age.insert(self.ticks, Arc::clone(&topic));
        // A topic that is in memory and unchanged since the last save has a note on the disk.
        self.changed.entry(Arc::clone(&topic)).or_insert(is_known);
        self.by_topic.insert(topic, (self.ticks, Arc::new(value)));
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some((_, value)) = self.by_topic.remove(&oldest) {
                self.bytes -= cost(&oldest, &value);
            }
            match self.changed.entry(oldest) {
                Entry::Occupied(entry) if !entry.get() => drop(entry.remove_entry()),
                Entry::Occupied(_) => {}
                Entry::Vacant(entry) => drop(entry.insert(true)),
            }
        }
    }

    /// Returns the last values of all topics for which `wanted` returns `true`, in order of the topics.
    pub(super) fn matching(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Arc<LastValue>)> {
        let mut found: Vec<_> = self
            .by_topic
            .iter()
            .filter(|(topic, _)| wanted(topic))
            .map(|(topic, (_, value))| (Arc::clone(topic), Arc::clone(value)))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Returns the changes since the last call as notes to write; the caller
    /// reports the result to [`LastValues::written`].
    pub(super) fn take_changes(&mut self) -> Vec<Note> {
        self.being_saved = std::mem::take(&mut self.changed).into_keys().collect();
        self.being_saved
            .iter()
            .map(|topic| {
                let value = self.by_topic.get(topic).and_then(|(_, value)| self.encode(value));
                (format!("{PREFIX}{topic}"), value)
            })
            .collect()
    }

    /// Records whether the notes of the last [`LastValues::take_changes`] were written; if not, they are taken again.
    pub(super) fn written(&mut self, is_written: bool) {
        let taken = std::mem::take(&mut self.being_saved);
        if !is_written {
            self.changed.extend(taken.into_iter().map(|topic| (topic, true)));
        }
    }

    fn encode(&self, value: &LastValue) -> Option<Vec<u8>> {
        let LastValue { sequence, recorded, record, offset, .. } = value;
        let lane = value.place().and_then(|place| self.lanes.get(place.lane)).map_or("", String::as_str);
        let saved = StoredValue { sequence: *sequence, recorded: *recorded, lane, offset: *offset, record };
        postcard::to_stdvec(&saved).ok()
    }
}

impl LastValue {
    /// Position of the event in the journal, also after retention has removed it; `None` if its lane no longer exists:
    /// the event is then older than all stored ones.
    pub fn place(&self) -> Option<JournalPosition> {
        Some(JournalPosition { lane: usize::try_from(self.lane?).ok()?, offset: self.offset })
    }

    /// Decodes the stored event; returns `None` if a newer version of the gateway wrote it.
    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(&self.record).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Content, Id};

    fn record(payload: &[u8]) -> Record<'_> {
        let (origin, key, attributes) = ("s/d", "k", Vec::new());
        let (id, time, content) = (Id::Uuid([0; 16]), Timestamp(0), Content::Json);
        Record { publication: 1, id, time, origin, key, content, attributes, payload }
    }

    fn value(payload: &[u8], lane: Option<u32>, offset: u64) -> LastValue {
        let mut bytes = Vec::new();
        record(payload).encode(&mut bytes);
        LastValue { sequence: 1, recorded: Timestamp(0), record: bytes, lane, offset }
    }

    fn lanes(names: &[&str]) -> LastValues {
        LastValues::new(1200, names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn written(values: &mut LastValues) -> Vec<(String, Vec<u8>)> {
        values.take_changes().into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    #[test]
    fn the_longest_unchanged_goes_first_and_the_notes_follow() {
        let mut values = lanes(&["bulk"]);
        for topic in ["a", "b", "c", "d"] {
            values.put(topic, value(b"{}", Some(0), 1));
        }
        assert!(values.bytes <= 1200);
        values.take_changes();
        values.put("a", value(b"{\"new\":1}", Some(0), 2));
        values.put("e", value(&[b'x'; 500], Some(0), 3));
        assert!(values.bytes <= 1200, "{}", values.bytes);
        let kept: Vec<_> = values.matching(|_| true).iter().map(|(topic, _)| topic.to_string()).collect();
        assert!(kept.contains(&"a".into()) && kept.contains(&"e".into()) && !kept.contains(&"b".into()), "{kept:?}");
        let notes = values.take_changes();
        assert!(notes.iter().any(|(name, value)| name == "last/b" && value.is_none()), "{notes:?}");
        let mut restored = lanes(&["bulk"]);
        restored.restore(notes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(), &[9]);
        assert_eq!(restored.matching(|topic| topic == "a"), values.matching(|topic| topic == "a"));
    }

    #[test]
    fn what_waits_to_be_noted_is_bounded_however_many_topics_come_and_go() {
        let mut values = lanes(&["bulk"]);
        values.put("kept", value(b"{}", Some(0), 1));
        let kept = values.take_changes().len();
        values.written(true);
        for number in 0..10_000 {
            values.put(&format!("{number}"), value(b"{}", Some(0), 2));
        }
        // The values in memory, and the one whose note must be deleted.
        assert_eq!((kept, values.changed.len()), (1, values.by_topic.len() + 1));
        let notes = values.take_changes();
        assert_eq!(notes.iter().filter(|(_, value)| value.is_none()).count(), 1, "{notes:?}");
    }

    #[test]
    fn notes_that_were_not_written_are_taken_once_more() {
        let mut values = lanes(&["bulk"]);
        values.put("a", value(b"{}", Some(0), 1));
        values.take_changes();
        // While they are written, another value displaces this one.
        values.put("b", value(&[b'x'; 900], Some(0), 2));
        assert!(!values.by_topic.contains_key("a"));
        values.written(false);
        let notes = values.take_changes();
        assert!(notes.iter().any(|(name, value)| name == "last/a" && value.is_none()), "{notes:?}");
        assert!(notes.iter().any(|(name, value)| name == "last/b" && value.is_some()), "{notes:?}");
        values.written(true);
        assert!(values.take_changes().is_empty());
    }

    #[test]
    fn notes_that_find_no_room_after_a_start_go_from_the_disk() {
        let mut before = LastValues::new(1 << 20, vec!["bulk".into()]);
        (0..50).for_each(|number| before.put(&format!("{number}"), value(&[b'x'; 100], Some(0), 1)));
        let mut after = lanes(&["bulk"]);
        after.restore(written(&mut before), &[9]);
        let removed = after.take_changes();
        assert!(removed.iter().all(|(_, value)| value.is_none()), "{removed:?}");
        assert_eq!(removed.len(), 50 - after.by_topic.len());
    }

    #[test]
    fn a_place_is_noted_by_the_name_of_its_lane() {
        let mut values = lanes(&["bulk", "critical", "gone"]);
        for (topic, lane) in [("a", 0), ("b", 1), ("c", 2), ("d", 1)] {
            values.put(topic, value(b"{}", Some(lane), if topic == "d" { 70 } else { 7 }));
        }
        let mut notes = written(&mut values);
        let places = |values: &LastValues| -> Vec<_> {
            values.matching(|_| true).iter().map(|(_, value)| value.place().map(|at| (at.lane, at.offset))).collect()
        };
        // The order of the lanes has changed, one no longer exists, and one is shorter than before.
        let mut restored = lanes(&["critical", "new", "bulk"]);
        restored.restore(notes.clone(), &[50, 50, 50]);
        assert_eq!(places(&restored), [Some((2, 7)), Some((0, 7)), None, None]);
        assert!(restored.take_changes().is_empty());
        // A second round: a value without a lane stays without one.
        restored.changed = restored.by_topic.keys().map(|topic| (Arc::clone(topic), true)).collect();
        let again = written(&mut restored);
        let mut last = lanes(&["critical", "new", "bulk", "gone"]);
        last.restore(again, &[50; 4]);
        assert_eq!(places(&last), [Some((2, 7)), Some((0, 7)), None, None]);
        // Unreadable notes are ignored.
        notes[0].1.truncate(3);
        notes[1].1 = vec![0xFF; 40];
        let mut rest = lanes(&["bulk", "critical", "gone"]);
        rest.restore(notes, &[50, 100, 50]);
        assert_eq!(places(&rest), [Some((2, 7)), Some((1, 70))]);
    }
}
