//! The transitions of exceptions: opened, updated, closed.
//!
//! Invariant: the event of a transition is fixed when the transition is saved, so a repeat is identical.

use super::config::STREAMS;
use super::rules::{Condition, Key};
use crate::api::{Exception, ExceptionKind};
use crate::event::Timestamp;
use crate::journal::Note;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TrackedException {
    format: u8,
    exception: Exception,
    updates: u32,
    due: Option<PendingTransition>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PendingTransition {
    stream: String,
    event_id: String,
    time: i64,
    payload: String,
    is_end: bool,
}

/// Format version of the notes.
const FORMAT: u8 = 1;

/// A transition whose event has no receipt yet.
#[derive(Clone, Debug)]
pub(super) struct Transition {
    pub(super) key: Key,
    pub(super) exception: String,
    pub(super) kind: ExceptionKind,
    pub(super) reference: String,
    pub(super) source: String,
    pub(super) stream: String,
    pub(super) event_id: String,
    pub(super) time: Timestamp,
    pub(super) payload: String,
}

/// All open exceptions with their pending transitions.
#[derive(Debug, Default)]
pub(super) struct TrackedExceptions {
    entries: BTreeMap<Key, TrackedException>,
}

fn uuid(name: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).hyphenated().to_string()
}

impl TrackedException {
    fn plan(&mut self, index: usize, event_id: String, now: Timestamp, closed: Option<&str>) {
        let Ok(mut payload) = serde_json::to_value(&self.exception) else { return };
        payload["step"] = json!(STREAMS[index].rsplit('.').next());
        if let Some(why) = closed {
            payload["closed"] = now.to_string().into();
            payload["why"] = why.into();
        }
        self.due = Some(PendingTransition {
            stream: STREAMS[index].to_owned(),
            event_id,
            time: now.0,
            payload: payload.to_string(),
            is_end: closed.is_some(),
        });
    }
}

impl TrackedExceptions {
    pub(super) fn restore(notes: Vec<(String, Vec<u8>)>) -> Self {
        let mut tracked = Self::default();
        for (name, bytes) in notes {
            match serde_json::from_slice::<TrackedException>(&bytes) {
                Ok(entry) if entry.format == FORMAT => {
                    let about = &entry.exception;
                    tracked.entries.insert((about.kind, about.source.clone(), about.subject.clone()), entry);
                }
                _ => {
                    tracing::warn!(note = %name, "could not read a saved exception; it may open again under another id")
                }
            }
        }
        tracked
    }

    /// Plans the transitions that follow from the current conditions. Closes only exceptions whose source
    /// and kind are in `decidable`.
    pub(super) fn compare(
        &mut self,
        conditions: Vec<Condition>,
        decidable: &BTreeSet<(String, ExceptionKind)>,
        now: Timestamp,
    ) {
        let mut holds = BTreeSet::new();
        for condition in conditions {
            let key = condition.key();
            holds.insert(key.clone());
            match self.entries.get_mut(&key) {
                Some(entry) => entry.update(condition, now),
                None => drop(self.entries.insert(key, TrackedException::open(condition, now))),
            }
        }
        for (key, entry) in &mut self.entries {
            let is_decidable = || decidable.contains(&(key.1.clone(), key.0));
            if !holds.contains(key) && entry.due.is_none() && is_decidable() {
                let id = uuid(&format!("{}/closed", entry.exception.id));
                entry.plan(2, id, now, Some("the condition no longer holds"));
            }
        }
    }

    /// The transitions whose events have to be handed in.
    pub(super) fn due(&self) -> Vec<Transition> {
        let due = self.entries.iter().filter_map(|(key, entry)| Some((key, entry, entry.due.as_ref()?)));
        due.map(|(key, entry, due)| Transition {
            key: key.clone(),
            exception: entry.exception.id.clone(),
            kind: entry.exception.kind,
            reference: entry.exception.reference.clone(),
            source: entry.exception.source.clone(),
            stream: due.stream.clone(),
            event_id: due.event_id.clone(),
            time: Timestamp(due.time),
            payload: due.payload.clone(),
        })
        .collect()
    }

    /// The notes of the exceptions of these transitions.
    pub(super) fn notes(&self, steps: &[Transition]) -> Vec<Note> {
        let note = |step: &Transition| {
            let content = self.entries.get(&step.key).and_then(|entry| serde_json::to_vec(entry).ok());
            (format!("open/{}", step.exception), content)
        };
        steps.iter().map(note).collect()
    }

    /// Marks transitions as done; returns the notes to save.
    pub(super) fn done(&mut self, steps: &[Transition]) -> Vec<Note> {
        for step in steps {
            let Some(entry) = self.entries.get_mut(&step.key) else { continue };
            if entry.due.take().is_some_and(|due| due.is_end) {
                self.entries.remove(&step.key);
            }
        }
        self.notes(steps)
    }

    /// Every open exception, the oldest first.
    pub(super) fn open(&self) -> Vec<Exception> {
        let mut open: Vec<_> = self.entries.values().map(|entry| entry.exception.clone()).collect();
        open.sort_by(|a, b| a.opened.cmp(&b.opened).then_with(|| a.id.cmp(&b.id)));
        open
    }
}

impl TrackedException {
    fn open(condition: Condition, now: Timestamp) -> Self {
        let since = condition.since.to_string();
        // The same condition, after its exception has closed, opens another exception.
        let id = uuid(&format!("exception/{}/{}/{}/{now}", condition.source, condition.kind, condition.subject));
        let mut entry = Self {
            format: FORMAT,
            exception: Exception {
                id: id.clone(),
                kind: condition.kind,
                severity: condition.severity,
                reference: condition.reference,
                since,
                opened: now.to_string(),
                reason: condition.reason,
                source: condition.source,
                subject: condition.subject,
                details: condition.details,
            },
            updates: 0,
            due: None,
        };
        entry.plan(0, uuid(&format!("{id}/opened")), now, None);
        entry
    }

    fn update(&mut self, condition: Condition, now: Timestamp) {
        let known = &self.exception;
        let since = if condition.is_since_known { condition.since.to_string() } else { known.since.clone() };
        let is_same = (known.severity, &known.since, &known.reason, &known.reference, &known.details)
            == (condition.severity, &since, &condition.reason, &condition.reference, &condition.details);
        if is_same || self.due.is_some() {
            return;
        }
        self.exception.severity = condition.severity;
        self.exception.since = since;
        self.exception.reason = condition.reason;
        self.exception.reference = condition.reference;
        self.exception.details = condition.details;
        self.updates += 1;
        let id = uuid(&format!("{}/updated/{}", self.exception.id, self.updates));
        self.plan(1, id, now, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(subject: &str, reason: &str) -> Condition {
        Condition {
            kind: ExceptionKind::OrderLate,
            severity: crate::api::Severity::Critical,
            source: "erp".into(),
            subject: subject.into(),
            reference: "WH/MO/1".into(),
            since: Timestamp(1_764_000_000_000_000),
            is_since_known: true,
            reason: reason.into(),
            details: json!({}),
        }
    }

    fn streams(steps: &TrackedExceptions) -> Vec<String> {
        steps.due().into_iter().map(|step| step.stream).collect()
    }

    #[test]
    fn an_exception_opens_once_updates_and_closes_once_under_one_id() {
        let decidable = BTreeSet::from([("erp".to_owned(), ExceptionKind::OrderLate)]);
        let now = Timestamp(1_764_000_100_000_000);
        let mut steps = TrackedExceptions::default();
        steps.compare(vec![condition("mrp.production/1", "a")], &decidable, now);
        let opened = steps.due();
        assert_eq!(streams(&steps), ["exception.opened"]);
        // A crash before the receipt: the same step, byte for byte.
        let noted = steps.notes(&opened).into_iter().map(|(name, content)| (name, content.expect("a note"))).collect();
        let mut steps = TrackedExceptions::restore(noted);
        assert_eq!((&steps.due()[0].event_id, &steps.due()[0].payload), (&opened[0].event_id, &opened[0].payload));
        steps.done(&opened);
        steps.compare(vec![condition("mrp.production/1", "a")], &decidable, now);
        assert!(steps.due().is_empty(), "nothing is new");
        steps.compare(vec![condition("mrp.production/1", "b")], &decidable, now);
        let updated = steps.due();
        assert_eq!((updated.len(), &*updated[0].stream), (1, "exception.updated"));
        assert_eq!(updated[0].exception, opened[0].exception);
        steps.done(&updated);
        steps.compare(vec![], &BTreeSet::new(), now);
        assert!(steps.due().is_empty(), "what cannot be decidable stays open");
        steps.compare(vec![], &decidable, now);
        let closed = steps.due();
        assert_eq!((&*closed[0].stream, &closed[0].exception), ("exception.closed", &opened[0].exception));
        assert_eq!(steps.done(&closed), [(format!("open/{}", opened[0].exception), None)]);
        assert!(steps.open().is_empty());
    }

    #[test]
    fn the_same_record_of_two_sources_is_two_exceptions_and_each_ends_with_its_own() {
        let now = Timestamp(1_764_000_100_000_000);
        let of = |source: &str| Condition { source: source.into(), ..condition("mrp.production/1", "a") };
        let decidable = BTreeSet::from([("erp".to_owned(), ExceptionKind::OrderLate)]);
        let mut steps = TrackedExceptions::default();
        steps.compare(vec![of("erp"), of("other")], &decidable, now);
        let opened = steps.due();
        assert_eq!(streams(&steps), ["exception.opened", "exception.opened"]);
        assert_ne!(opened[0].exception, opened[1].exception);
        steps.done(&opened);
        steps.compare(vec![], &decidable, now);
        assert_eq!(streams(&steps), ["exception.closed"], "nothing is known of the other source");
        assert_eq!(steps.due()[0].source, "erp");
    }
}
