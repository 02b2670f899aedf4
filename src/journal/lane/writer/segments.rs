//! The segments of a writer: begin, close, abandon, rotate; and the cursors that are written to them without a commit.
//!
//! Promise: a segment whose commit failed is never written again.

use super::super::condition::Condition;
use super::super::position::Active;
use super::super::{dropped, marks};
use super::{Cursors, Writer};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::store::error::JournalError;
use crate::journal::store::segment::{Closed, FORMAT, Segment, Summary, Synced, file_name};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The fingerprints of the active segment stay in memory until it closes: 2 MiB.
const SEGMENT_FINGERPRINTS_MAX: usize = 128 << 10;
/// A segment is closed after a day, so that retention can remove it.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(86_400);

impl Writer {
    /// Leaves a segment whose commit failed: its last commit cannot be trusted. The next segment starts at the first
    /// offset that is not known to be durable, and hides whatever the failed commit left.
    pub(super) fn abandon_segment(&mut self, error: &JournalError) {
        tracing::error!(lane = %self.lane.name, %error, "a commit failed; the gateway acknowledges nothing in this lane until a commit to a new segment succeeds");
        self.lane.stats.failed_commits.add(1);
        self.position.active = None;
        self.lane.release_active();
    }

    /// Copies the active segment into a new file of the same name after its file was removed or replaced.
    pub(super) fn recreate_segment(&mut self) -> Result<Synced, Condition> {
        let (lane, core) = (&self.lane, &self.lane.core);
        let Some(active) = &mut self.position.active else {
            return Err(Condition::Failed("there is no segment".into()));
        };
        let path = active.segment.path().to_owned();
        tracing::error!(lane = %lane.name, file = %path.display(), "the active segment was removed or replaced by hand; copying its events to a new file");
        if core.disk.identity(&path).is_ok() {
            core.segments.quarantine(&path);
        }
        let restored = active.segment.recreate_file(&*core.disk, core.segments.cache_bytes());
        let (segment, synced) = restored.map_err(|error| Condition::of(&error))?;
        active.segment = Arc::new(segment);
        lane.set_active(active.summary.first, Arc::clone(&active.segment));
        lane.set_active_bytes(active.bytes);
        Ok(synced)
    }

    pub(super) fn begin_segment(&mut self) -> Result<(), Condition> {
        let lane = &self.lane;
        let first = self.position.offsets.next;
        // Sequences before the current batch, which goes into this segment.
        let sequences = lane.sequences();
        let summary = Summary {
            format: FORMAT,
            first,
            begun: Timestamp::from(clock::wall()),
            sequences,
            settled: lane.take_cursors(true),
            closed: None,
        };
        // A segment with a failed commit may have the same first offset: the new file replaces it, and nobody may open it.
        lane.replace_segment(first, &lane.folder().join(file_name(first)));
        let segment = Segment::create(&*lane.core.disk, lane.folder(), &summary, lane.core.segments.cache_bytes())
            .map_err(|error| Condition::of(&error))?;
        // From now on recovery notices the loss of this segment.
        lane.core.state.raise(&[(marks::segment(&lane.name), first)]).map_err(|error| Condition::of(&error))?;
        self.segments += 1;
        let segment = Arc::new(segment);
        lane.set_active(first, Arc::clone(&segment));
        lane.set_durable_low(&summary.settled);
        self.position.active = Some(Active {
            segment,
            summary,
            bytes: 0,
            fingerprints: Vec::new(),
            parts: BTreeMap::new(),
            begun: clock::instant(),
        });
        Ok(())
    }

    pub(super) fn rotate_when_due(&mut self) {
        self.take_commands();
        let Some(active) = &self.position.active else { return };
        let due = std::mem::take(&mut self.requests.rotate)
            || active.bytes >= self.lane.segment_bytes()
            || active.fingerprints.len() >= SEGMENT_FINGERPRINTS_MAX
            || clock::instant().duration_since(active.begun) >= SEGMENT_AGE_MAX;
        if due {
            self.close_segment();
        }
    }

    pub(super) fn close_segment(&mut self) {
        let Some(mut active) = self.position.active.take() else { return };
        active.summary.settled = self.lane.take_cursors(true);
        active.summary.closed = Some(Closed {
            end: self.position.offsets.next,
            at: Timestamp::from(clock::wall()),
            streams: active.parts.values().copied().collect(),
        });
        // A segment without its closing summary is read like one after a crash: slower, but nothing is lost.
        match active.segment.write(&[], Some(&active.summary), &active.fingerprints) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            Err(error) => {
                tracing::warn!(lane = %self.lane.name, %error, "could not close a segment cleanly; no data is lost, the next start reads it like one after a crash")
            }
        }
        drop(active);
        self.lane.release_active();
    }

    /// Starts a new segment, whose summary has no cursor of a dropped destination, and deletes the notes of the drop. No
    /// event and no cursor of a new destination with the same name is written before that.
    pub(super) fn forget_dropped(&mut self) -> Result<(), Condition> {
        if !self.has_dropped() {
            return Ok(());
        }
        self.close_segment();
        self.begin_segment()?;
        let names = self.requests.dropped.iter();
        let notes: Vec<_> = names.map(|name| (dropped::note(&self.lane.name, name), None)).collect();
        self.lane.core.state.write_notes(&notes).map_err(|error| Condition::of(&error))?;
        self.requests.dropped.clear();
        // The receiver of each sender learns that the cursors have left the log.
        self.requests.dropping.clear();
        Ok(())
    }

    pub(super) fn write_cursors(&mut self, which: Cursors) {
        if self.has_dropped() {
            // The summary of the next segment holds them.
            return;
        }
        let Some(active) = &mut self.position.active else { return };
        if which == Cursors::Changed && !self.lane.has_unwritten_cursors() {
            return;
        }
        active.summary.settled = self.lane.take_cursors(true);
        match active.segment.write(&[], Some(&active.summary), &[]) {
            Ok(Synced { .. }) => self.lane.set_durable_low(&active.summary.settled),
            // A lost cursor only causes repeats.
            Err(error) => self.abandon_segment(&error),
        }
    }
}
