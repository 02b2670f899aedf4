//! The last value of each key: what a new subscriber is told at once.
//!
//! Invariant: never more than the bytes it was given; what has not changed for longest goes first. Each topic that
//! waits to be saved has a value in memory or a note on the disk, and both are bounded.

use super::feed::{Passing, Place};
use crate::event::{Record, Timestamp};
use crate::journal::{Note, Published};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The newest event of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastValue {
    /// Its sequence.
    pub sequence: u64,
    /// When it was recorded.
    pub recorded: Timestamp,
    /// The record, encoded.
    pub record: Vec<u8>,
    /// Number of its lane; `None` for a lane that no longer exists. Two fields take eight bytes less than an optional
    /// [`Place`].
    lane: Option<u32>,
    offset: u64,
}

/// A last value as it is noted. The order of the fields is part of the stored format.
#[derive(Serialize, Deserialize)]
struct Noted<'a> {
    sequence: u64,
    recorded: Timestamp,
    /// Name of its lane: lanes may have other numbers after a start. Empty if the lane is no longer there.
    lane: &'a str,
    offset: u64,
    record: &'a [u8],
}

/// Bytes of an entry without its record and twice its topic, approximately: 72 for the value with its place and the counts
/// of its `Arc`, 16 for those of the topic, 50 in the table by topic and 38 in the one by age, as full as they are.
const BYTES_BESIDE: usize = 176;
/// What the notes of last values begin with.
pub(super) const PREFIX: &str = "last/";

/// Last values by topic.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    /// Names of the lanes, by their numbers.
    lanes: Vec<String>,
    by_topic: HashMap<Arc<str>, (u64, Arc<LastValue>)>,
    /// Oldest change first.
    by_age: BTreeMap<u64, Arc<str>>,
    /// Topics that changed since the notes were last taken, and whether the disk may have a note of them. The note of a
    /// topic that `by_topic` lacks is to be removed.
    changed: BTreeMap<Arc<str>, bool>,
    /// Topics whose notes were taken and are being written.
    in_writing: Vec<Arc<str>>,
    ticks: u64,
    bytes: usize,
    bytes_max: usize,
}

fn cost(topic: &str, value: &LastValue) -> usize {
    topic.len() * 2 + value.record.len() + BYTES_BESIDE
}

impl LastValues {
    /// None yet, of lanes of these names.
    pub(super) fn new(bytes_max: usize, lanes: Vec<String>) -> Self {
        Self { bytes_max, lanes, ..Self::default() }
    }

    /// Reads what the notes hold; `ends` are the ends of the lanes. A note that cannot be read says nothing.
    pub(super) fn restore(&mut self, notes: Vec<(String, Vec<u8>)>, ends: &[u64]) {
        for (name, bytes) in notes {
            let (Some(topic), Ok(noted)) = (name.strip_prefix(PREFIX), postcard::from_bytes::<Noted<'_>>(&bytes))
            else {
                continue;
            };
            // A lane that was removed and created again has other events at the same offsets.
            let is_there = |lane: &usize| ends.get(*lane).is_some_and(|end| noted.offset < *end);
            let lane = self.lanes.iter().position(|known| known == noted.lane).filter(is_there);
            let value = LastValue {
                sequence: noted.sequence,
                recorded: noted.recorded,
                record: noted.record.to_vec(),
                lane: lane.and_then(|lane| u32::try_from(lane).ok()),
                offset: noted.offset,
            };
            self.changed.insert(topic.into(), true);
            self.put(topic, value);
        }
        // The notes of values that found no room here are removed from the disk.
        self.changed.retain(|topic, _| !self.by_topic.contains_key(topic));
    }

    /// Takes an event as the newest of its topic.
    pub(super) fn note(&mut self, topic: &str, passing: &Passing<'_>) {
        let Passing { place, record, sequence, recorded, .. } = passing;
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
        // A known topic that has not changed since the notes were taken has a note.
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

    /// Last values whose topic `wanted` takes, in the order of their topics.
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

    /// Takes the changes since the last call, as notes to write. The caller reports the outcome to [`LastValues::written`].
    pub(super) fn take_changes(&mut self) -> Vec<Note> {
        self.in_writing = std::mem::take(&mut self.changed).into_keys().collect();
        self.in_writing
            .iter()
            .map(|topic| {
                let value = self.by_topic.get(topic).and_then(|(_, value)| self.noted(value));
                (format!("{PREFIX}{topic}"), value)
            })
            .collect()
    }

    /// Ends the write of the notes that were taken last. If it failed, they are taken once more.
    pub(super) fn written(&mut self, is_written: bool) {
        let taken = std::mem::take(&mut self.in_writing);
        if !is_written {
            self.changed.extend(taken.into_iter().map(|topic| (topic, true)));
        }
    }

    fn noted(&self, value: &LastValue) -> Option<Vec<u8>> {
        let LastValue { sequence, recorded, record, offset, .. } = value;
        let lane = value.place().and_then(|place| self.lanes.get(place.lane)).map_or("", String::as_str);
        let noted = Noted { sequence: *sequence, recorded: *recorded, lane, offset: *offset, record };
        postcard::to_stdvec(&noted).ok()
    }
}

impl LastValue {
    /// The event's place in the journal, also after retention removed it; `None` if its lane no longer exists, so that the
    /// event is older than all that are left.
    pub fn place(&self) -> Option<Place> {
        Some(Place { lane: usize::try_from(self.lane?).ok()?, offset: self.offset })
    }

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
        // Those in memory, and the one that has to go from the disk.
        assert_eq!((kept, values.changed.len()), (1, values.by_topic.len() + 1));
        let notes = values.take_changes();
        assert_eq!(notes.iter().filter(|(_, value)| value.is_none()).count(), 1, "{notes:?}");
    }

    #[test]
    fn notes_that_were_not_written_are_taken_once_more() {
        let mut values = lanes(&["bulk"]);
        values.put("a", value(b"{}", Some(0), 1));
        values.take_changes();
        // While they are written, another takes the room.
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
        // The order of the lanes has changed, one is gone, and one of them is shorter than it was.
        let mut restored = lanes(&["critical", "new", "bulk"]);
        restored.restore(notes.clone(), &[50, 50, 50]);
        assert_eq!(places(&restored), [Some((2, 7)), Some((0, 7)), None, None]);
        assert!(restored.take_changes().is_empty());
        // And once more: what is nowhere stays nowhere.
        restored.changed = restored.by_topic.keys().map(|topic| (Arc::clone(topic), true)).collect();
        let again = written(&mut restored);
        let mut last = lanes(&["critical", "new", "bulk", "gone"]);
        last.restore(again, &[50; 4]);
        assert_eq!(places(&last), [Some((2, 7)), Some((0, 7)), None, None]);
        // Notes that cannot be read are left out.
        notes[0].1.truncate(3);
        notes[1].1 = vec![0xFF; 40];
        let mut rest = lanes(&["bulk", "critical", "gone"]);
        rest.restore(notes, &[50, 100, 50]);
        assert_eq!(places(&rest), [Some((2, 7)), Some((1, 70))]);
    }
}
