//! The known records of a contract: each record as the last durable event reported it.
//!
//! Invariants:
//! - a record changes here only after the receipt of its event, so that no change can miss central;
//! - the id of an event depends on the record alone: the same change has the same id after any crash. A value that
//!   returns within one second has another id than the first time;
//! - the memory is bounded over all contracts of a source: past the bound, records that have ended are forgotten first.

use super::change_event::{self, EventContext, Occasion};
use super::model_fields::{Row, bare};
use crate::contract::odoo::Section;
use crate::ingest::Note;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory of a record in addition to its fields and hashes: its table slot and the rounding of allocations.
const RECORD_BYTES: usize = 120;
/// Records per note: small, because each change of a record rewrites its whole note.
const RECORDS_PER_NOTE: i64 = 32;
/// Number of values within one second that are told apart.
const HASHES_MAX: usize = 16;
/// Format version of the notes.
const FORMAT: u8 = 1;

/// The last reported state of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRecord {
    /// Seconds since 1970.
    write_date: i64,
    /// Hashes of the values that were reported with this `write_date`, the newest last.
    hashes: Vec<u128>,
    record: Box<str>,
}

impl KnownRecord {
    fn bytes(&self) -> usize {
        RECORD_BYTES + self.record.len() + self.hashes.capacity() * size_of::<u128>()
    }
}

/// The age limits for forgetting records: bounds on the last write, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct ForgetLimits {
    /// No poll reads records written before this again. A poll would report a younger record as new.
    pub settled: i64,
    /// Records that have ended are forgotten if written before this.
    pub ended: i64,
    /// All records are forgotten if written before this.
    pub stale: i64,
}

/// Memory used by the known records of all contracts of a source, in bytes.
pub type Pool = Arc<AtomicUsize>;

/// The known records of one contract.
#[derive(Debug, Default)]
pub struct KnownRecords {
    records: HashMap<i64, KnownRecord>,
    pool: Pool,
    /// Numbers of the notes whose records changed since the last save.
    dirty: BTreeSet<i64>,
}

/// The result of comparing a row with the known record.
#[derive(Debug)]
pub enum Comparison {
    /// The row equals the known record.
    Unchanged,
    /// The record was written, but no reported field has changed.
    Unreported(KnownRecord),
    /// A reported field has changed.
    Changed(Box<ChangeEvent>),
}

/// An event to hand in, and the state of the record once the event has its receipt.
#[derive(Debug)]
pub struct ChangeEvent {
    pub id: String,
    /// Id of the record in Odoo.
    pub record_id: i64,
    /// Time of the last write: seconds since 1970.
    pub write_date: i64,
    pub payload: Value,
    /// The state after the event; `None` for a deleted record.
    pub after: Option<KnownRecord>,
}

impl Drop for KnownRecords {
    fn drop(&mut self) {
        let bytes: usize = self.records.values().map(KnownRecord::bytes).sum();
        self.pool.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl KnownRecords {
    /// An empty set of records, whose memory counts in `pool`.
    pub fn new(pool: Pool) -> Self {
        Self { records: HashMap::new(), pool, dirty: BTreeSet::new() }
    }

    /// The counter of memory that this set belongs to.
    pub fn pool(&self) -> Pool {
        Arc::clone(&self.pool)
    }

    fn replace(&mut self, id: i64, after: Option<KnownRecord>) {
        let added = after.as_ref().map_or(0, KnownRecord::bytes);
        let before = match after {
            Some(record) => self.records.insert(id, record),
            None => self.records.remove(&id),
        };
        self.pool.fetch_add(added, Ordering::Relaxed);
        self.pool.fetch_sub(before.as_ref().map_or(0, KnownRecord::bytes), Ordering::Relaxed);
    }

    /// Compares a row with the known record. The ids of events are unique within `scope`.
    pub fn compare(
        &self,
        row: &Row,
        occasion: Occasion,
        context: &EventContext<'_>,
        scope: &IdScope<'_>,
    ) -> Comparison {
        let text = Value::Object(row.record.clone()).to_string();
        let known = self.records.get(&row.id);
        if let Some(known) = known
            && known.write_date == row.write_date
            && *known.record == *text
        {
            return Comparison::Unchanged;
        }
        let old: Option<Map<String, Value>> = known.and_then(|known| serde_json::from_str(&known.record).ok());
        let changed = old.as_ref().map(|old| change_event::changes(old, &row.record)).unwrap_or_default();
        let hash = hash(scope.stream, &row.record);
        let mut hashes = match known {
            Some(known) if known.write_date == row.write_date => known.hashes.clone(),
            _ => Vec::new(),
        };
        if let Some(known) = known
            && changed.is_empty()
        {
            // The record was written without a change, a linked record was renamed, or other fields were read.
            if known.write_date != row.write_date || hashes.last() != Some(&hash) {
                hashes.push(hash);
            }
            return Comparison::Unreported(KnownRecord { write_date: row.write_date, hashes, record: text.into() });
        }
        let repeats = hashes.iter().filter(|earlier| **earlier == hash).count();
        hashes.push(hash);
        hashes.drain(..hashes.len().saturating_sub(HASHES_MAX));
        // A first load that continues after a crash reads known records again.
        let occasion = if old.is_some() { Occasion::Written } else { occasion };
        let names = change_event::names(context.section, occasion, old.as_ref(), &row.record);
        let mut name = format!("{}/{}/{}/{hash:032x}", scope.model, row.id, row.write_date);
        if repeats > 0 {
            name.push_str(&format!("/{repeats}"));
        }
        Comparison::Changed(Box::new(ChangeEvent {
            id: scope.event_id(&name),
            record_id: row.id,
            write_date: row.write_date,
            payload: context.written(row, &names, &changed),
            after: Some(KnownRecord { write_date: row.write_date, hashes, record: text.into() }),
        }))
    }

    /// The event for a deleted record; `None` if the record was not known.
    pub fn deletion(&self, id: i64, context: &EventContext<'_>, scope: &IdScope<'_>) -> Option<ChangeEvent> {
        let known = self.records.get(&id)?;
        let record: Map<String, Value> = serde_json::from_str(&known.record).unwrap_or_default();
        let hash = hash(scope.stream, &record);
        let name = format!("{}/{id}/{}/{hash:032x}/deleted", scope.model, known.write_date);
        Some(ChangeEvent {
            id: scope.event_id(&name),
            record_id: id,
            write_date: known.write_date,
            payload: context.deleted(id, known.write_date, &record),
            after: None,
        })
    }

    /// Replaces the state of a record after an event or an unreported change; `None` removes the record.
    pub fn update(&mut self, id: i64, after: Option<KnownRecord>) {
        self.dirty.insert(id.div_euclid(RECORDS_PER_NOTE));
        self.replace(id, after);
    }

    /// Applies an event that was read from the journal.
    pub fn apply(&mut self, payload: &Value, scope: &IdScope<'_>) {
        let Some(id) = payload.get("id").and_then(Value::as_i64) else { return };
        if payload.get("event").and_then(Value::as_str) == Some("deleted") {
            self.update(id, None);
            return;
        }
        let time = payload.get("write_date").and_then(Value::as_str).and_then(crate::event::Timestamp::parse);
        let (Some(time), Some(record)) = (time, payload.get("record").and_then(Value::as_object)) else { return };
        let write_date = time.0.div_euclid(1_000_000);
        let mut hashes = match self.records.get(&id) {
            Some(known) if known.write_date == write_date => known.hashes.clone(),
            _ => Vec::new(),
        };
        hashes.push(hash(scope.stream, record));
        self.update(
            id,
            Some(KnownRecord { write_date, hashes, record: Value::Object(record.clone()).to_string().into() }),
        );
    }

    /// Ids of all records, in ascending order.
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.records.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether a record is known.
    pub fn contains(&self, id: i64) -> bool {
        self.records.contains_key(&id)
    }

    /// Calls `see` for every record with its id, the time of its last write (seconds since 1970) and its fields.
    pub fn each(&self, mut see: impl FnMut(i64, i64, Map<String, Value>)) {
        for (id, entry) in &self.records {
            if let Ok(record) = serde_json::from_str(&entry.record) {
                see(*id, entry.write_date, record);
            }
        }
    }

    /// Forgets the records that are past their age limit. While the pool uses more than `bytes_max`, also forgets younger
    /// records that have ended, the oldest first. Returns the number of records forgotten.
    pub fn forget(&mut self, section: &Section, limits: &ForgetLimits, bytes_max: usize) -> usize {
        let mut due = Vec::new();
        let mut ended = Vec::new();
        for (id, entry) in self.records.iter().filter(|(_, entry)| entry.write_date < limits.settled) {
            match has_ended(section, entry) {
                true if entry.write_date >= limits.ended => ended.push((entry.write_date, *id)),
                false if entry.write_date >= limits.stale => {}
                _ => due.push(*id),
            }
        }
        let mut forgotten = due.len();
        due.into_iter().for_each(|id| self.update(id, None));
        ended.sort();
        for (_, id) in ended {
            if !self.is_full(bytes_max) {
                break;
            }
            self.update(id, None);
            forgotten += 1;
        }
        forgotten
    }

    /// Whether the memory for records is used up.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.pool.load(Ordering::Relaxed) >= bytes_max
    }

    /// Number of notes that wait to be saved.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Returns the records that changed since the last call, as notes with names under `prefix`.
    pub fn take_notes(&mut self, prefix: &str) -> Vec<Note> {
        let dirty = std::mem::take(&mut self.dirty);
        let content = |number: i64| {
            let range = number * RECORDS_PER_NOTE..(number + 1) * RECORDS_PER_NOTE;
            let records: Vec<(i64, i64, &[u128], &str)> = range
                .filter_map(|id| {
                    self.records.get(&id).map(|entry| (id, entry.write_date, entry.hashes.as_slice(), &*entry.record))
                })
                .collect();
            if records.is_empty() {
                return None;
            }
            let bytes = postcard::to_stdvec(&(FORMAT, records)).ok()?;
            zstd::bulk::compress(&bytes, 1).ok()
        };
        dirty.into_iter().map(|number| (format!("{prefix}{number:012}"), content(number))).collect()
    }

    /// Marks the records of these notes as changed again, because the notes could not be saved.
    pub fn mark_dirty(&mut self, prefix: &str, notes: &[Note]) {
        let numbers = notes.iter().filter_map(|(name, _)| name.strip_prefix(prefix)?.parse::<i64>().ok());
        self.dirty.extend(numbers);
    }

    /// Restores the records from notes. Skips notes that cannot be read or that a newer version wrote.
    pub fn restore(notes: Vec<(String, Vec<u8>)>, pool: Pool) -> Self {
        let mut known = Self::new(pool);
        for (name, bytes) in notes {
            let read = || -> Option<Vec<StoredRecord>> {
                let bytes = zstd::bulk::decompress(&bytes, NOTE_BYTES_MAX).ok()?;
                let (format, records) = postcard::from_bytes::<(u8, _)>(&bytes).ok()?;
                (format == FORMAT).then_some(records)
            };
            let Some(records) = read() else {
                tracing::warn!(note = %name, "could not read a saved note of Odoo records; will read them from Odoo again");
                continue;
            };
            for (id, write_date, hashes, record) in records {
                known.replace(id, Some(KnownRecord { write_date, hashes, record: record.into() }));
            }
        }
        known
    }
}

/// Whether a record is in a final state, so that further changes are rare.
fn has_ended(section: &Section, entry: &KnownRecord) -> bool {
    if section.last_states.is_empty() && section.ended_by.is_none() && section.ended_when.is_empty() {
        return false;
    }
    let record: Map<String, Value> = serde_json::from_str(&entry.record).unwrap_or_default();
    let is_one_of = |field: &str, words: &[String]| {
        let value = record.get(field).and_then(Value::as_str);
        value.is_some_and(|value| words.iter().any(|word| word == value))
    };
    section.state.as_ref().is_some_and(|field| is_one_of(field, &section.last_states))
        || section.ended_by.as_ref().and_then(|field| record.get(field)).is_some_and(|value| !value.is_null())
        || section.ended_when.iter().any(|(field, words)| is_one_of(field, words))
}

/// A record as stored in a note: id, time of the last write, hashes, fields as JSON.
type StoredRecord = (i64, i64, Vec<u128>, String);

/// The largest note that is read. Notes of records with a hundred fields are far smaller.
const NOTE_BYTES_MAX: usize = 16 << 20;

/// The scope within which the ids of events are unique.
#[derive(Clone, Copy, Debug)]
pub struct IdScope<'a> {
    pub database: &'a str,
    pub model: &'a str,
    pub stream: &'a str,
}

impl IdScope<'_> {
    fn event_id(&self, name: &str) -> String {
        let name = format!("odoo://{}/{name}", self.database);
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).hyphenated().to_string()
    }
}

/// The hash of a record's fields, without the names of linked records.
fn hash(stream: &str, record: &Map<String, Value>) -> u128 {
    let bare: BTreeMap<&String, Value> = record.iter().map(|(field, value)| (field, bare(value))).collect();
    let text = serde_json::to_string(&(stream, bare)).unwrap_or_default();
    xxhash_rust::xxh3::xxh3_128(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SCOPE: IdScope<'_> = IdScope { database: "plant", model: "mrp.production", stream: "production.order" };

    fn section() -> Section {
        toml::from_str("model = \"mrp.production\"\nfields = [\"state\"]\nstate = \"state\"\nlast_states = [\"done\"]")
            .expect("a section")
    }

    fn row(state: &str, write_date: i64) -> Row {
        let record = json!({"state": state}).as_object().cloned().expect("an object");
        Row { id: 7, write_date, create_date: 0, write_uid: 2, record }
    }

    /// The event that a row makes, applied as if it had its receipt.
    fn tell(known: &mut KnownRecords, state: &str, write_date: i64) -> Option<ChangeEvent> {
        let section = section();
        let context = EventContext { system_of_record: "odoo", section: &section, own_id: 5 };
        match known.compare(&row(state, write_date), Occasion::Written, &context, &SCOPE) {
            Comparison::Unchanged => None,
            Comparison::Unreported(entry) => {
                known.update(7, Some(entry));
                None
            }
            Comparison::Changed(event) => {
                known.update(7, event.after.clone());
                Some(*event)
            }
        }
    }

    #[test]
    fn a_value_that_comes_back_within_a_second_has_another_id_and_a_crash_makes_none_anew() {
        let mut known = KnownRecords::default();
        let events: Vec<_> = ["draft", "confirmed", "draft"]
            .iter()
            .map(|state| tell(&mut known, state, 10).expect("an event"))
            .collect();
        let ids: BTreeSet<_> = events.iter().map(|event| event.id.clone()).collect();
        assert_eq!(ids.len(), 3);
        assert!(tell(&mut known, "draft", 10).is_none(), "it is known");
        assert!(tell(&mut known, "draft", 11).is_none(), "a write that changes nothing is nothing");
        let noted = known.take_notes("p/").into_iter().map(|(name, note)| (name, note.expect("a note"))).collect();
        assert!(tell(&mut KnownRecords::restore(noted, Pool::default()), "draft", 11).is_none(), "the notes hold it");
        let mut followed = KnownRecords::default();
        events.iter().for_each(|event| followed.apply(&event.payload, &SCOPE));
        assert!(tell(&mut followed, "draft", 10).is_none(), "the journal holds it");
        assert_eq!(tell(&mut KnownRecords::default(), "draft", 10).map(|event| event.id), Some(events[0].id.clone()));
    }

    #[test]
    fn what_is_gone_is_told_once_and_what_has_ended_is_forgotten() {
        let section = section();
        let context = EventContext { system_of_record: "odoo", section: &section, own_id: 5 };
        let mut known = KnownRecords::default();
        let told = tell(&mut known, "done", 10).expect("an event");
        let gone = known.deletion(7, &context, &SCOPE).expect("a deletion");
        assert_ne!(gone.id, told.id);
        assert_eq!((&gone.payload["event"], &gone.payload["record"]["state"]), (&json!("deleted"), &json!("done")));
        let mut forget = |settled, ended| known.forget(&section, &ForgetLimits { settled, ended, stale: 0 }, 1000);
        assert_eq!((forget(20, 10), forget(10, 11), forget(20, 11)), (0, 0, 1));
        assert_eq!(known.len(), 0);
        assert!(known.deletion(7, &context, &SCOPE).is_none());
        assert_eq!(known.take_notes("p/"), [("p/000000000000".to_owned(), None)]);
    }

    #[test]
    fn records_of_all_contracts_share_one_bound_and_what_has_ended_makes_room() {
        let section: Section = toml::from_str(
            "model = \"account.move\"\nfields = [\"state\", \"payment\"]\nended_when = { payment = [\"paid\"] }",
        )
        .expect("a section");
        let entry = |payment: &str| KnownRecord {
            write_date: 10,
            hashes: vec![1],
            record: json!({"state": "posted", "payment": payment}).to_string().into(),
        };
        let pool = Pool::default();
        let (mut invoices, mut orders) = (KnownRecords::new(Arc::clone(&pool)), KnownRecords::new(Arc::clone(&pool)));
        for id in 0..10 {
            invoices.update(id, Some(entry(if id < 4 { "paid" } else { "open" })));
            orders.update(id, Some(entry("open")));
        }
        let all = pool.load(Ordering::Relaxed);
        assert_eq!(all, 20 * entry("paid").bytes());
        invoices.update(9, Some(entry("open")));
        assert_eq!(pool.load(Ordering::Relaxed), all, "the same record takes no more");
        let room_for_18 = 18 * entry("paid").bytes() + 1;
        assert!(invoices.is_full(room_for_18) && orders.is_full(room_for_18));
        let limits = |settled, ended, stale| ForgetLimits { settled, ended, stale };
        assert_eq!(orders.forget(&section, &limits(11, 0, 0), room_for_18), 0, "none of them has ended");
        assert_eq!(invoices.forget(&section, &limits(10, 0, 0), room_for_18), 0, "the next poll would find them new");
        assert_eq!(invoices.forget(&section, &limits(11, 0, 0), room_for_18), 2, "no more than has to");
        assert!(!orders.is_full(room_for_18));
        assert_eq!(invoices.forget(&section, &limits(11, 11, 0), usize::MAX), 2, "the others that were paid long ago");
        assert_eq!(
            invoices.forget(&section, &limits(11, 0, 11), usize::MAX),
            6,
            "nobody has written them for too long"
        );
        drop(orders);
        assert_eq!(pool.load(Ordering::Relaxed), 0);
    }
}
