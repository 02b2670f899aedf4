//! The known records of a contract: each record as the last durable event reported it.
//!
//! Invariants:
//! - a record changes here only after the receipt of its event, so that no change can miss central;
//! - the id of an event depends on the record and on the event before it: the same change has the same id after any
//!   crash, and a state that returns has another id than the first time;
//! - the memory is bounded over all contracts of a source: past the bound, records that have ended are forgotten first.

mod compare;
mod notes;
mod shape;

pub(crate) use compare::{ChangeEvent, Comparison, IdScope};

use super::model_fields::{Row, bare};
use crate::contract::odoo::Section;
use serde_json::{Map, Value};
use shape::Shape;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory of a record in addition to its values: its entry in the tree, whose nodes are two thirds full, and the
/// rounding of the allocation.
const RECORD_BYTES: usize = 104;

/// Records per note: small, because each change of a record rewrites its whole note.
const RECORDS_PER_NOTE: i64 = 32;

/// The id of an event, as bytes.
type EventId = [u8; 16];

/// What is known of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownRecord {
    /// Seconds since 1970.
    write_date: i64,
    /// Seconds since 1970; 0 if it is not known. A restored database uses the same number for another record.
    create_date: u32,
    /// The last event of the record.
    event: EventId,
    /// Number of its list of fields.
    shape: u16,
    standing: Standing,
    /// The values in the order of the fields, packed; empty for a deleted record.
    values: Box<[u8]>,
}

/// Whether a record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// The account sees it, and it is a record of the contract.
    Present = 0,
    /// It exists, and the account cannot see it, or the contract's domain does not match it any more.
    Hidden = 1,
    /// It was deleted. A restored database may bring it back.
    Deleted = 2,
}

impl KnownRecord {
    fn bytes(&self) -> usize {
        RECORD_BYTES + self.values.len()
    }
}

/// The age limits for forgetting records: bounds on the last write, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForgetLimits {
    /// No poll reads records written before this again. A poll would report a younger record as new.
    pub settled: i64,
    /// Records that have ended are forgotten if written before this.
    pub ended: i64,
    /// All records are forgotten if written before this.
    pub stale: i64,
}

/// Memory used by the known records of all contracts of a source, in bytes.
pub(crate) type Pool = Arc<AtomicUsize>;

/// The known records of one contract.
#[derive(Debug, Default)]
pub(crate) struct KnownRecords {
    records: BTreeMap<i64, KnownRecord>,
    /// The lists of fields that records have. There are few: one, and one more after each change of the contract or of
    /// a right.
    shapes: Vec<Shape>,
    /// Number of records that are not deleted.
    present: usize,
    pool: Pool,
    /// Numbers of the notes whose records changed since the last save.
    dirty: BTreeSet<i64>,
}

impl Drop for KnownRecords {
    fn drop(&mut self) {
        let bytes: usize = self.records.values().map(KnownRecord::bytes).sum();
        self.pool.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl KnownRecords {
    /// An empty set of records, whose memory counts in `pool`.
    pub(crate) fn new(pool: Pool) -> Self {
        let mut known = Self::default();
        known.pool = pool;
        known
    }

    /// The counter of memory that this set belongs to.
    pub(crate) fn pool(&self) -> Pool {
        Arc::clone(&self.pool)
    }

    fn replace(&mut self, id: i64, after: Option<KnownRecord>) {
        let is_there = |record: &KnownRecord| usize::from(record.standing != Standing::Deleted);
        let (added, counted) = after.as_ref().map_or((0, 0), |record| (record.bytes(), is_there(record)));
        let before = match after {
            Some(record) => self.records.insert(id, record),
            None => self.records.remove(&id),
        };
        self.pool.fetch_add(added, Ordering::Relaxed);
        self.pool.fetch_sub(before.as_ref().map_or(0, KnownRecord::bytes), Ordering::Relaxed);
        self.present = self.present + counted - before.as_ref().map_or(0, is_there);
    }

    /// The record that a row describes.
    fn of_row(&mut self, row: &Row, event: EventId) -> KnownRecord {
        let (shape, values) = self.packed(&row.record);
        KnownRecord {
            write_date: row.write_date,
            create_date: u32::try_from(row.create_date).unwrap_or(0),
            event,
            shape,
            standing: Standing::Present,
            values,
        }
    }

    /// Packs the fields of a record: their names once for all records, their values as a JSON array.
    fn packed(&mut self, record: &Map<String, Value>) -> (u16, Box<[u8]>) {
        let is_shape = |shape: &Shape| shape.names.iter().eq(record.keys());
        let shape = self.shapes.iter().position(is_shape).unwrap_or_else(|| {
            self.shapes.push(Shape::new(record.keys().cloned().collect()));
            self.shapes.len() - 1
        });
        let values: Vec<&Value> = record.values().collect();
        let text = serde_json::to_string(&values).unwrap_or_default();
        (u16::try_from(shape).unwrap_or(u16::MAX), self.shapes[shape].pack(&text))
    }

    fn unpacked(&self, known: &KnownRecord) -> Map<String, Value> {
        let Some(shape) = self.shapes.get(usize::from(known.shape)) else { return Map::new() };
        let values: Vec<Value> = serde_json::from_str(&shape.unpack(&known.values)).unwrap_or_default();
        shape.names.iter().cloned().zip(values).collect()
    }

    /// Replaces what is known of a record after an event or an unreported change; `None` forgets it.
    pub(crate) fn update(&mut self, id: i64, after: Option<KnownRecord>) {
        self.dirty.insert(id.div_euclid(RECORDS_PER_NOTE));
        self.replace(id, after);
    }

    /// Ids of up to `max` records above `after` that are not deleted, in ascending order.
    pub(crate) fn ids_after(&self, after: i64, max: usize) -> Vec<i64> {
        let above = self.records.range(after.saturating_add(1)..);
        above.filter(|(_, known)| known.standing != Standing::Deleted).take(max).map(|(id, _)| *id).collect()
    }

    /// Number of known records that are not deleted.
    pub(crate) fn len(&self) -> usize {
        self.present
    }

    /// Whether the record is known, and not deleted.
    pub(crate) fn contains(&self, id: i64) -> bool {
        self.standing(id).is_some_and(|standing| standing != Standing::Deleted)
    }

    /// Number of records that are not deleted, up to an id.
    pub(crate) fn count_up_to(&self, id: i64) -> usize {
        let below = self.records.range(..=id);
        below.filter(|(_, known)| known.standing != Standing::Deleted).count()
    }

    /// Time of the last write of a record, in seconds since 1970.
    pub(crate) fn write_date(&self, id: i64) -> Option<i64> {
        self.records.get(&id).map(|known| known.write_date)
    }

    /// Whether a row has fields that differ from the known record.
    pub(crate) fn differs(&self, row: &Row) -> bool {
        let Some(known) = self.records.get(&row.id).filter(|known| known.standing == Standing::Present) else {
            return true;
        };
        let old = self.unpacked(known);
        row.record.iter().any(|(field, new)| old.get(field).is_none_or(|old| bare(old) != bare(new)))
    }

    /// Whether a record is there, as far as it is known.
    pub(crate) fn standing(&self, id: i64) -> Option<Standing> {
        self.records.get(&id).map(|known| known.standing)
    }

    /// State and time of the last write of a record that is there, if it is known.
    pub(crate) fn state(&self, id: i64, field: &str) -> Option<(String, i64)> {
        let known = self.records.get(&id).filter(|known| known.standing == Standing::Present)?;
        let record = self.unpacked(known);
        Some((record.get(field)?.as_str()?.to_owned(), known.write_date))
    }

    /// The company of a record, if the contract reads it.
    pub(crate) fn company(&self, id: i64) -> Option<i64> {
        let record = self.unpacked(self.records.get(&id)?);
        super::model_fields::linked_id(record.get("company_id")?)
    }

    /// Calls `see` for every record that is there, with its id, the time of its last write (seconds since 1970) and its
    /// fields.
    pub(crate) fn each(&self, mut see: impl FnMut(i64, i64, Map<String, Value>)) {
        for (id, known) in self.records.iter().filter(|(_, known)| known.standing == Standing::Present) {
            see(*id, known.write_date, self.unpacked(known));
        }
    }

    /// Forgets the records that are past their age limit. While the pool uses more than `bytes_max`, also forgets younger
    /// records that have ended, the oldest first. Returns the number of records forgotten.
    pub(crate) fn forget(&mut self, section: &Section, limits: &ForgetLimits, bytes_max: usize) -> usize {
        let mut due = Vec::new();
        let mut ended = Vec::new();
        for (id, known) in self.records.iter().filter(|(_, known)| known.write_date < limits.settled) {
            match self.has_ended(section, known) {
                true if known.write_date >= limits.ended => ended.push((known.write_date, *id)),
                false if known.write_date >= limits.stale => {}
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

    /// Whether a record is in a final state, so that further changes are rare.
    fn has_ended(&self, section: &Section, known: &KnownRecord) -> bool {
        if known.standing == Standing::Deleted {
            return true;
        }
        if section.last_states.is_empty() && section.ended_by.is_none() && section.ended_when.is_empty() {
            return false;
        }
        let record = self.unpacked(known);
        let is_one_of = |field: &str, words: &[String]| {
            let value = record.get(field).and_then(Value::as_str);
            value.is_some_and(|value| words.iter().any(|word| word == value))
        };
        section.state.as_ref().is_some_and(|field| is_one_of(field, &section.last_states))
            || section.ended_by.as_ref().and_then(|field| record.get(field)).is_some_and(|value| !value.is_null())
            || section.ended_when.iter().any(|(field, words)| is_one_of(field, words))
    }

    /// Whether the memory for records is used up.
    pub(crate) fn is_full(&self, bytes_max: usize) -> bool {
        self.pool.load(Ordering::Relaxed) >= bytes_max
    }
}

#[cfg(test)]
mod tests;
