//! What is known of the records of a contract: each as central was last told of it.
//!
//! Invariants:
//! - what is known follows the receipts: it never holds what central may not learn;
//! - ids of events are made from the record alone, so that the same change has the same id after
//!   any crash; a value that comes back within one second has another id than the first time;
//! - it is bounded, over all contracts of a source: past the bound, records that have ended are forgotten first.

use super::meaning::{self, Occasion, Telling};
use super::shape::{Row, bare};
use crate::contract::odoo::Section;
use crate::journal::Note;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a record takes beside its fields and hashes: its place in the table, and what allocations round up.
const RECORD_BYTES: usize = 120;
/// Records of one note: a change rewrites its note, and thousands of records are not one note.
const RECORDS_A_NOTE: i64 = 32;
/// Values within one second that are told apart.
const SEEN_MAX: usize = 16;
/// The version of what is noted.
const FORMAT: u8 = 1;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Seconds since 1970.
    write_date: i64,
    /// Hashes of the values that were told with this `write_date`, the newest last.
    seen: Vec<u128>,
    record: Box<str>,
}

impl Entry {
    fn bytes(&self) -> usize {
        RECORD_BYTES + self.record.len() + self.seen.capacity() * size_of::<u128>()
    }
}

/// When records are old enough to be forgotten: all in seconds since 1970, of the last write.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// No poll reads again what was written before: whatever is younger would be told as new.
    pub settled: i64,
    /// Before this, those that have ended.
    pub ended: i64,
    /// Before this, all.
    pub stale: i64,
}

/// What the records of all contracts of a source take, in bytes.
pub type Pool = Arc<AtomicUsize>;

/// The records of one contract.
#[derive(Debug, Default)]
pub struct Known {
    records: HashMap<i64, Entry>,
    pool: Pool,
    /// Notes whose records changed since they were written.
    dirty: BTreeSet<i64>,
}

/// What to do with a row.
#[derive(Debug)]
pub enum Verdict {
    /// It is known as it is.
    Same,
    /// Nothing that central is told has changed.
    Quiet(Entry),
    /// Central is to be told.
    Tell(Box<Event>),
}

/// An event to hand in, and what is known once it has its receipt.
#[derive(Debug)]
pub struct Event {
    /// Id of the event.
    pub id: String,
    /// Number of the record.
    pub record_id: i64,
    /// When it was written: seconds since 1970.
    pub write_date: i64,
    /// What central is told.
    pub payload: Value,
    /// What is known then; `None` once the record is gone.
    pub then: Option<Entry>,
}

impl Drop for Known {
    fn drop(&mut self) {
        let bytes: usize = self.records.values().map(Entry::bytes).sum();
        self.pool.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Known {
    /// Nothing is known; what will be takes room in the pool.
    pub fn new(pool: Pool) -> Self {
        Self { records: HashMap::new(), pool, dirty: BTreeSet::new() }
    }

    /// The pool that it takes room in.
    pub fn pool(&self) -> Pool {
        Arc::clone(&self.pool)
    }

    fn hold(&mut self, id: i64, then: Option<Entry>) {
        let more = then.as_ref().map_or(0, Entry::bytes);
        let before = match then {
            Some(entry) => self.records.insert(id, entry),
            None => self.records.remove(&id),
        };
        self.pool.fetch_add(more, Ordering::Relaxed);
        self.pool.fetch_sub(before.as_ref().map_or(0, Entry::bytes), Ordering::Relaxed);
    }

    /// Compares a row with what is known. `place` is what ids are unique in: database and stream.
    pub fn judge(&self, row: &Row, occasion: Occasion, telling: &Telling<'_>, place: &Place<'_>) -> Verdict {
        let text = Value::Object(row.record.clone()).to_string();
        let known = self.records.get(&row.id);
        if let Some(known) = known
            && known.write_date == row.write_date
            && *known.record == *text
        {
            return Verdict::Same;
        }
        let old: Option<Map<String, Value>> = known.and_then(|known| serde_json::from_str(&known.record).ok());
        let changed = old.as_ref().map(|old| meaning::changes(old, &row.record)).unwrap_or_default();
        let hash = hash(place.stream, &row.record);
        let mut seen = match known {
            Some(known) if known.write_date == row.write_date => known.seen.clone(),
            _ => Vec::new(),
        };
        if let Some(known) = known
            && changed.is_empty()
        {
            // Written without a change, by a name of another record, or read with other fields.
            if known.write_date != row.write_date || seen.last() != Some(&hash) {
                seen.push(hash);
            }
            return Verdict::Quiet(Entry { write_date: row.write_date, seen, record: text.into() });
        }
        let again = seen.iter().filter(|earlier| **earlier == hash).count();
        seen.push(hash);
        seen.drain(..seen.len().saturating_sub(SEEN_MAX));
        // A first load that goes on after a crash meets records that are known.
        let occasion = if old.is_some() { Occasion::Written } else { occasion };
        let names = meaning::names(telling.section, occasion, old.as_ref(), &row.record);
        let mut name = format!("{}/{}/{}/{hash:032x}", place.model, row.id, row.write_date);
        if again > 0 {
            name.push_str(&format!("/{again}"));
        }
        Verdict::Tell(Box::new(Event {
            id: place.id(&name),
            record_id: row.id,
            write_date: row.write_date,
            payload: telling.written(row, &names, &changed),
            then: Some(Entry { write_date: row.write_date, seen, record: text.into() }),
        }))
    }

    /// The event for a record that is gone, if it was known.
    pub fn deletion(&self, id: i64, telling: &Telling<'_>, place: &Place<'_>) -> Option<Event> {
        let known = self.records.get(&id)?;
        let record: Map<String, Value> = serde_json::from_str(&known.record).unwrap_or_default();
        let hash = hash(place.stream, &record);
        let name = format!("{}/{id}/{}/{hash:032x}/deleted", place.model, known.write_date);
        Some(Event {
            id: place.id(&name),
            record_id: id,
            write_date: known.write_date,
            payload: telling.deleted(id, known.write_date, &record),
            then: None,
        })
    }

    /// Takes over what an event or a quiet change says.
    pub fn put(&mut self, id: i64, then: Option<Entry>) {
        self.dirty.insert(id.div_euclid(RECORDS_A_NOTE));
        self.hold(id, then);
    }

    /// Takes over an event that is found in the journal.
    pub fn follow(&mut self, payload: &Value, place: &Place<'_>) {
        let Some(id) = payload.get("id").and_then(Value::as_i64) else { return };
        if payload.get("event").and_then(Value::as_str) == Some("deleted") {
            self.put(id, None);
            return;
        }
        let time = payload.get("write_date").and_then(Value::as_str).and_then(crate::event::Timestamp::parse);
        let (Some(time), Some(record)) = (time, payload.get("record").and_then(Value::as_object)) else { return };
        let write_date = time.0.div_euclid(1_000_000);
        let mut seen = match self.records.get(&id) {
            Some(known) if known.write_date == write_date => known.seen.clone(),
            _ => Vec::new(),
        };
        seen.push(hash(place.stream, record));
        self.put(id, Some(Entry { write_date, seen, record: Value::Object(record.clone()).to_string().into() }));
    }

    /// Numbers of all records, rising.
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.records.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// How many records are known.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether a record is known.
    pub fn contains(&self, id: i64) -> bool {
        self.records.contains_key(&id)
    }

    /// Every record: its number, when it was written, and its fields.
    pub fn each(&self, mut see: impl FnMut(i64, i64, Map<String, Value>)) {
        for (id, entry) in &self.records {
            if let Ok(record) = serde_json::from_str(&entry.record) {
                see(*id, entry.write_date, record);
            }
        }
    }

    /// Forgets what is old enough; where the pool takes more than `bytes_max`, also younger records that have ended,
    /// the oldest first. Returns how many.
    pub fn forget(&mut self, section: &Section, ages: &Ages, bytes_max: usize) -> usize {
        let mut due = Vec::new();
        let mut ended = Vec::new();
        for (id, entry) in self.records.iter().filter(|(_, entry)| entry.write_date < ages.settled) {
            match has_ended(section, entry) {
                true if entry.write_date >= ages.ended => ended.push((entry.write_date, *id)),
                false if entry.write_date >= ages.stale => {}
                _ => due.push(*id),
            }
        }
        let mut forgotten = due.len();
        due.into_iter().for_each(|id| self.put(id, None));
        ended.sort();
        for (_, id) in ended {
            if !self.is_full(bytes_max) {
                break;
            }
            self.put(id, None);
            forgotten += 1;
        }
        forgotten
    }

    /// Whether no more records are taken in.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.pool.load(Ordering::Relaxed) >= bytes_max
    }

    /// Notes that wait to be written.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// What changed since the last call, as notes under `prefix`.
    pub fn take_notes(&mut self, prefix: &str) -> Vec<Note> {
        let dirty = std::mem::take(&mut self.dirty);
        let content = |number: i64| {
            let range = number * RECORDS_A_NOTE..(number + 1) * RECORDS_A_NOTE;
            let held: Vec<(i64, i64, &[u128], &str)> = range
                .filter_map(|id| {
                    self.records.get(&id).map(|entry| (id, entry.write_date, entry.seen.as_slice(), &*entry.record))
                })
                .collect();
            if held.is_empty() {
                return None;
            }
            let bytes = postcard::to_stdvec(&(FORMAT, held)).ok()?;
            zstd::bulk::compress(&bytes, 1).ok()
        };
        dirty.into_iter().map(|number| (format!("{prefix}{number:012}"), content(number))).collect()
    }

    /// Takes back what could not be written.
    pub fn put_back(&mut self, prefix: &str, notes: &[Note]) {
        let numbers = notes.iter().filter_map(|(name, _)| name.strip_prefix(prefix)?.parse::<i64>().ok());
        self.dirty.extend(numbers);
    }

    /// Reads notes. What a newer version wrote, or nobody can read, counts as not known.
    pub fn restore(notes: Vec<(String, Vec<u8>)>, pool: Pool) -> Self {
        let mut known = Self::new(pool);
        for (name, bytes) in notes {
            let read = || -> Option<Vec<Noted>> {
                let bytes = zstd::bulk::decompress(&bytes, NOTE_BYTES_MAX).ok()?;
                let (format, held) = postcard::from_bytes::<(u8, _)>(&bytes).ok()?;
                (format == FORMAT).then_some(held)
            };
            let Some(held) = read() else {
                tracing::warn!(note = %name, "a note of Odoo's records cannot be read; they are read anew");
                continue;
            };
            for (id, write_date, seen, record) in held {
                known.hold(id, Some(Entry { write_date, seen, record: record.into() }));
            }
        }
        known
    }
}

/// Whether a record is one that seldom changes any more.
fn has_ended(section: &Section, entry: &Entry) -> bool {
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

/// A record as it is noted: number, when it was written, hashes, fields.
type Noted = (i64, i64, Vec<u128>, String);

/// The largest note that is read: records of a hundred fields are far below.
const NOTE_BYTES_MAX: usize = 16 << 20;

/// What ids are unique in.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The database.
    pub database: &'a str,
    /// The model.
    pub model: &'a str,
    /// The stream.
    pub stream: &'a str,
}

impl Place<'_> {
    fn id(&self, name: &str) -> String {
        let name = format!("odoo://{}/{name}", self.database);
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).hyphenated().to_string()
    }
}

/// The hash of what is read of a record, without the names of others.
fn hash(stream: &str, record: &Map<String, Value>) -> u128 {
    let bare: BTreeMap<&String, Value> = record.iter().map(|(field, value)| (field, bare(value))).collect();
    let text = serde_json::to_string(&(stream, bare)).unwrap_or_default();
    xxhash_rust::xxh3::xxh3_128(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLACE: Place<'_> = Place { database: "plant", model: "mrp.production", stream: "production.order" };

    fn section() -> Section {
        toml::from_str("model = \"mrp.production\"\nfields = [\"state\"]\nstate = \"state\"\nlast_states = [\"done\"]")
            .expect("a section")
    }

    fn row(state: &str, write_date: i64) -> Row {
        let record = json!({"state": state}).as_object().cloned().expect("an object");
        Row { id: 7, write_date, create_date: 0, write_uid: 2, record }
    }

    /// The event that a row makes, taken over as if it had its receipt.
    fn tell(known: &mut Known, state: &str, write_date: i64) -> Option<Event> {
        let section = section();
        let telling = Telling { system_of_record: "odoo", section: &section, own_id: 5 };
        match known.judge(&row(state, write_date), Occasion::Written, &telling, &PLACE) {
            Verdict::Same => None,
            Verdict::Quiet(entry) => {
                known.put(7, Some(entry));
                None
            }
            Verdict::Tell(event) => {
                known.put(7, event.then.clone());
                Some(*event)
            }
        }
    }

    #[test]
    fn a_value_that_comes_back_within_a_second_has_another_id_and_a_crash_makes_none_anew() {
        let mut known = Known::default();
        let events: Vec<_> = ["draft", "confirmed", "draft"]
            .iter()
            .map(|state| tell(&mut known, state, 10).expect("an event"))
            .collect();
        let ids: BTreeSet<_> = events.iter().map(|event| event.id.clone()).collect();
        assert_eq!(ids.len(), 3);
        assert!(tell(&mut known, "draft", 10).is_none(), "it is known");
        assert!(tell(&mut known, "draft", 11).is_none(), "a write that changes nothing is nothing");
        let noted = known.take_notes("p/").into_iter().map(|(name, note)| (name, note.expect("a note"))).collect();
        assert!(tell(&mut Known::restore(noted, Pool::default()), "draft", 11).is_none(), "the notes hold it");
        let mut followed = Known::default();
        events.iter().for_each(|event| followed.follow(&event.payload, &PLACE));
        assert!(tell(&mut followed, "draft", 10).is_none(), "the journal holds it");
        assert_eq!(tell(&mut Known::default(), "draft", 10).map(|event| event.id), Some(events[0].id.clone()));
    }

    #[test]
    fn what_is_gone_is_told_once_and_what_has_ended_is_forgotten() {
        let section = section();
        let telling = Telling { system_of_record: "odoo", section: &section, own_id: 5 };
        let mut known = Known::default();
        let told = tell(&mut known, "done", 10).expect("an event");
        let gone = known.deletion(7, &telling, &PLACE).expect("a deletion");
        assert_ne!(gone.id, told.id);
        assert_eq!((&gone.payload["event"], &gone.payload["record"]["state"]), (&json!("deleted"), &json!("done")));
        let mut forget = |settled, ended| known.forget(&section, &Ages { settled, ended, stale: 0 }, 1000);
        assert_eq!((forget(20, 10), forget(10, 11), forget(20, 11)), (0, 0, 1));
        assert_eq!(known.len(), 0);
        assert!(known.deletion(7, &telling, &PLACE).is_none());
        assert_eq!(known.take_notes("p/"), [("p/000000000000".to_owned(), None)]);
    }

    #[test]
    fn records_of_all_contracts_share_one_bound_and_what_has_ended_makes_room() {
        let section: Section = toml::from_str(
            "model = \"account.move\"\nfields = [\"state\", \"payment\"]\nended_when = { payment = [\"paid\"] }",
        )
        .expect("a section");
        let entry = |payment: &str| Entry {
            write_date: 10,
            seen: vec![1],
            record: json!({"state": "posted", "payment": payment}).to_string().into(),
        };
        let pool = Pool::default();
        let (mut invoices, mut orders) = (Known::new(Arc::clone(&pool)), Known::new(Arc::clone(&pool)));
        for id in 0..10 {
            invoices.put(id, Some(entry(if id < 4 { "paid" } else { "open" })));
            orders.put(id, Some(entry("open")));
        }
        let all = pool.load(Ordering::Relaxed);
        assert_eq!(all, 20 * entry("paid").bytes());
        invoices.put(9, Some(entry("open")));
        assert_eq!(pool.load(Ordering::Relaxed), all, "the same record takes no more");
        let room_for_18 = 18 * entry("paid").bytes() + 1;
        assert!(invoices.is_full(room_for_18) && orders.is_full(room_for_18));
        let ages = |settled, ended, stale| Ages { settled, ended, stale };
        assert_eq!(orders.forget(&section, &ages(11, 0, 0), room_for_18), 0, "none of them has ended");
        assert_eq!(invoices.forget(&section, &ages(10, 0, 0), room_for_18), 0, "the next poll would find them new");
        assert_eq!(invoices.forget(&section, &ages(11, 0, 0), room_for_18), 2, "no more than has to");
        assert!(!orders.is_full(room_for_18));
        assert_eq!(invoices.forget(&section, &ages(11, 11, 0), usize::MAX), 2, "the others that were paid long ago");
        assert_eq!(invoices.forget(&section, &ages(11, 0, 11), usize::MAX), 6, "nobody has written them for too long");
        drop(orders);
        assert_eq!(pool.load(Ordering::Relaxed), 0);
    }
}
