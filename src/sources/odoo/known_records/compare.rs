//! Compares what Odoo has now with what is known, and makes the events of the difference.

use super::super::change_event::{self, Difference, EventContext, Occasion};
use super::super::model_fields::{Row, bare};
use super::super::outbox::OutboxRow;
use super::{EventId, KnownRecord, KnownRecords, Standing};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The result of comparing a row with the known record.
#[derive(Debug)]
pub(crate) enum Comparison {
    /// The row equals the known record.
    Unchanged,
    /// The record was written, but no reported field has changed.
    Unreported(KnownRecord),
    /// A reported field has changed. Two events if another record has the number of the known one.
    Changed(Vec<ChangeEvent>),
}

/// An event to hand in, and the state of the record once the event has its receipt.
#[derive(Debug)]
pub(crate) struct ChangeEvent {
    /// Id of the event.
    pub id: String,
    /// Id of the record in Odoo.
    pub record_id: i64,
    /// Time of the event: seconds since 1970; `None` for the time of arrival.
    pub time: Option<i64>,
    /// Payload of the event.
    pub payload: Value,
    /// Why the contract refuses the event, starting with the field: it becomes a dead letter.
    pub refusal: Option<String>,
    /// What is known of the record after the event.
    pub after: KnownRecord,
}

/// The scope within which the ids of events are unique.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdScope<'a> {
    /// Name of the database.
    pub database: &'a str,
    /// Name of the model in events.
    pub model: &'a str,
    /// Stream of the contract.
    pub stream: &'a str,
    /// Number of the first load, counted up by each `forebay odoo load --again`.
    pub epoch: u32,
}

impl IdScope<'_> {
    fn event_id(&self, name: &str) -> EventId {
        let name = format!("odoo://{}/{}/{name}", self.database, self.model);
        *uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).as_bytes()
    }

    /// The id of an event that has this record. `before` tells apart events with the same record.
    fn written_id(&self, row: &Row, before: &str) -> EventId {
        let hash = hash(self.stream, &row.record);
        self.event_id(&format!("{}/{}/{hash:032x}/{before}", row.id, row.write_date))
    }

    /// What stands for the event before the first one of a record.
    fn load(&self) -> String {
        format!("load {}", self.epoch)
    }
}

fn text(event: EventId) -> String {
    uuid::Uuid::from_bytes(event).hyphenated().to_string()
}

/// The hash of a record's fields, without what links say of linked records.
fn hash(stream: &str, record: &Map<String, Value>) -> u128 {
    let bare: BTreeMap<&String, Value> = record.iter().map(|(field, value)| (field, bare(value))).collect();
    let text = serde_json::to_string(&(stream, bare)).unwrap_or_default();
    xxhash_rust::xxh3::xxh3_128(text.as_bytes())
}

impl KnownRecords {
    /// Compares a row with the known record.
    pub(crate) fn compare(
        &mut self,
        row: &Row,
        occasion: Occasion,
        context: &EventContext<'_>,
        scope: &IdScope<'_>,
    ) -> Comparison {
        let Some(known) = self.records.get(&row.id).cloned() else {
            let id = scope.written_id(row, &scope.load());
            return Comparison::Changed(vec![self.written(row, id, &Difference::unknown(occasion), context)]);
        };
        let is_other = known.create_date > 0 && row.create_date > 0 && i64::from(known.create_date) != row.create_date;
        if known.standing == Standing::Deleted || is_other {
            return self.compare_returned((row, &known, is_other), occasion, context, scope);
        }
        let old = self.unpacked(&known);
        let changed = change_event::changes(&old, &row.record);
        let learned = learned(&old, &row.record);
        let carried = carried(&old, row, context);
        if occasion == Occasion::Again {
            let id = scope.written_id(row, &scope.load());
            if known.event != id {
                let difference = Difference { occasion, old: Some(&old), changed, learned };
                let mut event = self.written(row, id, &difference, context);
                event.after = self.of_row(&carried, id);
                return Comparison::Changed(vec![event]);
            }
        }
        let is_visible_again = known.standing == Standing::Hidden;
        if changed.is_empty() && learned.is_empty() && !is_visible_again {
            // Nothing, or a write without a change, a renamed linked record, or other fields that were read.
            let after = self.of_row(&carried, known.event);
            return if after == known { Comparison::Unchanged } else { Comparison::Unreported(after) };
        }
        // A first load that continues after a crash reads known records again.
        let occasion = if is_visible_again { Occasion::Visible } else { Occasion::Written };
        let id = scope.written_id(row, &text(known.event));
        let is_rewound = row.write_date < known.write_date;
        let difference = Difference { occasion, old: Some(&old), changed, learned };
        let mut event = self.written(row, id, &difference, context);
        event.after = self.of_row(&carried, id);
        if is_rewound {
            event.payload["rewound"] = true.into();
        }
        Comparison::Changed(vec![event])
    }

    /// A record is there whose number belonged to a deleted record, or to another one. A restored database does both.
    fn compare_returned(
        &mut self,
        (row, known, is_other): (&Row, &KnownRecord, bool),
        occasion: Occasion,
        context: &EventContext<'_>,
        scope: &IdScope<'_>,
    ) -> Comparison {
        let mut events = Vec::new();
        let mut before = known.event;
        if known.standing != Standing::Deleted {
            let deletion = self.deleted(row.id, known, context, scope);
            before = deletion.after.event;
            events.push(deletion);
        }
        let occasion = match occasion {
            Occasion::Again | Occasion::FirstLoad => occasion,
            _ if is_other => Occasion::New,
            _ => Occasion::Visible,
        };
        let id = scope.written_id(row, &text(before));
        events.push(self.written(row, id, &Difference::unknown(occasion), context));
        Comparison::Changed(events)
    }

    /// The events for states that a record passed between two reads. Its other fields are as they were reported before;
    /// of a record that was not known there is only the reference.
    pub(crate) fn passes(
        &mut self,
        row: &Row,
        passed: &[OutboxRow],
        context: &EventContext<'_>,
        scope: &IdScope<'_>,
    ) -> Vec<ChangeEvent> {
        let Some(field) = context.section.state.as_ref() else { return Vec::new() };
        let mut events: Vec<ChangeEvent> = Vec::new();
        let mut known = self.records.get(&row.id).filter(|known| known.standing == Standing::Present).cloned();
        for noted in passed {
            let old = known.as_ref().map(|known| self.unpacked(known));
            let reference = context.section.reference.as_ref();
            let new = || {
                reference.and_then(|field| Some((field.clone(), row.record.get(field)?.clone()))).into_iter().collect()
            };
            let mut record: Map<String, Value> = old.clone().unwrap_or_else(new);
            record.insert(field.clone(), noted.state.clone().into());
            let step = Row { id: row.id, write_date: noted.at, create_date: row.create_date, record, ..Row::default() };
            let before = known.as_ref().map_or_else(|| scope.load(), |known| text(known.event));
            let id = scope.event_id(&format!("{}/passed/{}/{before}", row.id, noted.id));
            let changed = old.as_ref().map(|old| change_event::changes(old, &step.record)).unwrap_or_default();
            let occasion = if old.is_some() { Occasion::Written } else { Occasion::New };
            let difference = Difference { occasion, old: old.as_ref(), changed, learned: Vec::new() };
            let mut event = self.written(&step, id, &difference, context);
            event.payload["passed"] = true.into();
            known = Some(event.after.clone());
            events.push(event);
        }
        events
    }

    fn written(
        &mut self,
        row: &Row,
        id: EventId,
        difference: &Difference<'_>,
        context: &EventContext<'_>,
    ) -> ChangeEvent {
        ChangeEvent {
            id: text(id),
            record_id: row.id,
            time: (row.write_date > 0).then_some(row.write_date),
            payload: context.written(row, difference),
            refusal: context.refusal(row),
            after: self.of_row(row, id),
        }
    }

    /// The event for a deleted record; `None` if the record was not known.
    pub(crate) fn deletion(&self, id: i64, context: &EventContext<'_>, scope: &IdScope<'_>) -> Option<ChangeEvent> {
        let known = self.records.get(&id).filter(|known| known.standing != Standing::Deleted)?;
        Some(self.deleted(id, known, context, scope))
    }

    fn deleted(&self, id: i64, known: &KnownRecord, context: &EventContext<'_>, scope: &IdScope<'_>) -> ChangeEvent {
        let event = scope.event_id(&format!("{id}/deleted/{}", text(known.event)));
        ChangeEvent {
            id: text(event),
            record_id: id,
            time: None,
            payload: context.gone(id, known.write_date, &self.unpacked(known), "deleted"),
            refusal: None,
            after: KnownRecord { event, standing: Standing::Deleted, values: Box::default(), ..known.clone() },
        }
    }

    /// The event for a record that the account cannot see any more, or that left the contract; `None` if that is known.
    /// `reason` goes into the event.
    pub(crate) fn hiding(
        &self,
        id: i64,
        reason: &str,
        context: &EventContext<'_>,
        scope: &IdScope<'_>,
    ) -> Option<ChangeEvent> {
        let known = self.records.get(&id).filter(|known| known.standing == Standing::Present)?;
        let event = scope.event_id(&format!("{id}/hidden/{}", text(known.event)));
        let mut payload = context.gone(id, known.write_date, &self.unpacked(known), "hidden");
        payload["reason"] = reason.into();
        let after = KnownRecord { event, standing: Standing::Hidden, ..known.clone() };
        Some(ChangeEvent { id: text(event), record_id: id, time: None, payload, refusal: None, after })
    }

    /// Applies an event that was read from the journal. `event` is its id.
    pub(crate) fn apply(&mut self, event: &str, payload: &Value) {
        let Some(id) = payload.get("id").and_then(Value::as_i64) else { return };
        let known = self.records.get(&id).cloned();
        // The id of a conflicting event was replaced; any other id distinguishes events.
        let event = uuid::Uuid::parse_str(event).unwrap_or_default();
        let event = *event.as_bytes();
        match (payload.get("event").and_then(Value::as_str), known) {
            (Some("deleted"), Some(known)) => {
                let after = KnownRecord { event, standing: Standing::Deleted, values: Box::default(), ..known };
                self.update(id, Some(after));
            }
            (Some("hidden"), Some(known)) => {
                self.update(id, Some(KnownRecord { event, standing: Standing::Hidden, ..known }));
            }
            (Some("deleted" | "hidden"), None) => {}
            (_, known) => {
                let time = payload.get("write_date").and_then(Value::as_str).and_then(crate::event::Timestamp::parse);
                let Some(record) = payload.get("record").and_then(Value::as_object) else { return };
                let earlier = known.as_ref().map(|known| self.unpacked(known)).unwrap_or_default();
                let row = Row {
                    id,
                    write_date: time.map_or(0, |time| time.0.div_euclid(1_000_000)),
                    create_date: known.map_or(0, |known| i64::from(known.create_date)),
                    record: earlier.into_iter().chain(record.clone()).collect(),
                    ..Row::default()
                };
                let after = self.of_row(&row, event);
                self.update(id, Some(after));
            }
        }
    }
}

/// The fields that have a value and were never reported: they are new in the contract, or a right was given.
fn learned(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<String> {
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let new = new.iter().filter(|(field, value)| !old.contains_key(*field) && !is_empty(value));
    new.map(|(field, _)| field.clone()).collect()
}

/// A row with what is known in addition: the values of fields that cannot be read now, so that they are compared once they can
/// be read again, and the fields of linked records, which are read for a change alone.
fn carried(old: &Map<String, Value>, row: &Row, context: &EventContext<'_>) -> Row {
    let is_read = |field: &String| {
        let name = field.split('@').next().unwrap_or(field);
        context.section.fields.iter().any(|names| names.first() == name)
    };
    let mut carried = row.clone();
    for (field, value) in &mut carried.record {
        let Some(Value::Object(linked)) = old.get(field).filter(|old| bare(old) == bare(value)) else { continue };
        match value {
            Value::Object(members) => {
                for (member, value) in linked {
                    members.entry(member.clone()).or_insert_with(|| value.clone());
                }
            }
            number => *number = Value::Object(linked.clone()),
        }
    }
    for (field, value) in old {
        if !carried.record.contains_key(field) && is_read(field) {
            carried.record.insert(field.clone(), value.clone());
        }
    }
    carried
}
