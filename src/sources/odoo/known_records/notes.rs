//! The known records as notes: small groups, so that a change of one record rewrites little.

use super::shape::Shape;
use super::{EventId, KnownRecord, KnownRecords, Pool, RECORDS_PER_NOTE, Standing};
use crate::ingest::Note;

/// Format version of the notes.
const FORMAT: u8 = 2;
/// The largest note that is read. Notes of records with a hundred fields are far smaller.
const NOTE_BYTES_MAX: usize = 16 << 20;

/// A record as stored in a note: id, times of the last write and of creation, last event, number of its list of fields
/// in the note, standing, values as JSON.
type StoredRecord = (i64, i64, u32, EventId, u16, u8, String);

impl KnownRecords {
    /// Number of notes that wait to be saved.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Returns the records that changed since the last call, as notes with names under `prefix`.
    pub(crate) fn take_notes(&mut self, prefix: &str) -> Vec<Note> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|number| (format!("{prefix}{number:012}"), self.note(number))).collect()
    }

    fn note(&self, number: i64) -> Option<Vec<u8>> {
        let range = number * RECORDS_PER_NOTE..(number + 1) * RECORDS_PER_NOTE;
        let mut shapes: Vec<u16> = Vec::new();
        let mut records: Vec<StoredRecord> = Vec::new();
        for (id, known) in self.records.range(range) {
            let shape = shapes.iter().position(|shape| *shape == known.shape).unwrap_or_else(|| {
                shapes.push(known.shape);
                shapes.len() - 1
            });
            let shape = u16::try_from(shape).unwrap_or(u16::MAX);
            let about = self.shapes.get(usize::from(known.shape));
            let values = about.map(|shape| shape.unpack(&known.values)).unwrap_or_default();
            let standing = known.standing as u8;
            records.push((*id, known.write_date, known.create_date, known.event, shape, standing, values));
        }
        if records.is_empty() {
            return None;
        }
        let about = shapes.iter().filter_map(|shape| self.shapes.get(usize::from(*shape)));
        let names: Vec<&[String]> = about.map(|shape| shape.names.as_slice()).collect();
        let bytes = postcard::to_stdvec(&(FORMAT, names, records)).ok()?;
        zstd::bulk::compress(&bytes, 1).ok()
    }

    /// Marks the records of these notes as changed again, because the notes could not be saved.
    pub(crate) fn mark_dirty(&mut self, prefix: &str, notes: &[Note]) {
        let numbers = notes.iter().filter_map(|(name, _)| name.strip_prefix(prefix)?.parse::<i64>().ok());
        self.dirty.extend(numbers);
    }

    /// Restores the records from notes. Skips notes that cannot be read or that a newer version wrote.
    pub(crate) fn restore(notes: Vec<(String, Vec<u8>)>, pool: Pool) -> Self {
        let mut known = Self::new(pool);
        for (name, bytes) in notes {
            if known.restore_note(&bytes).is_none() {
                tracing::warn!(note = %name, "could not read a saved note of Odoo records; will read them from Odoo again");
            }
        }
        known
    }

    fn restore_note(&mut self, bytes: &[u8]) -> Option<()> {
        let bytes = zstd::bulk::decompress(bytes, NOTE_BYTES_MAX).ok()?;
        if bytes.first() != Some(&FORMAT) {
            return None;
        }
        let (_, shapes, records): (u8, Vec<Vec<String>>, Vec<StoredRecord>) = postcard::from_bytes(&bytes).ok()?;
        let mut numbers = Vec::new();
        for names in shapes {
            let number = self.shapes.iter().position(|shape| shape.names == names).unwrap_or_else(|| {
                self.shapes.push(Shape::new(names));
                self.shapes.len() - 1
            });
            numbers.push(u16::try_from(number).unwrap_or(u16::MAX));
        }
        for (id, write_date, create_date, event, shape, standing, values) in records {
            let shape = *numbers.get(usize::from(shape))?;
            let standing = match standing {
                0 => Standing::Present,
                1 => Standing::Hidden,
                _ => Standing::Deleted,
            };
            let values = match values.is_empty() {
                true => Box::default(),
                false => self.shapes.get_mut(usize::from(shape))?.pack(&values),
            };
            self.replace(id, Some(KnownRecord { write_date, create_date, event, shape, standing, values }));
        }
        Some(())
    }
}
