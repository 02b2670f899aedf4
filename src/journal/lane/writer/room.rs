//! Room for the next batch: the writer reclaims, sheds, or asks the writers of other lanes.
//!
//! Promise: undelivered events are shed only by the writer of their own lane, only where its configuration allows it, and
//! one segment at a time.

use super::super::condition::Condition;
use super::super::config::Full;
use super::super::group_commit::Command;
use super::super::handle::Lane;
use super::super::retention;
use super::{Cursors, Writer};
use crate::clock;
use std::time::Duration;

/// Sessions, Odoo positions and last values are saved at least this often; after a crash the log supplies the rest.
const FOLLOWED_AFTER: Duration = Duration::from_secs(120);

impl Writer {
    pub(super) fn check_room(&mut self) -> Result<(), Condition> {
        if self.shortage()?.is_none() {
            return Ok(());
        }
        // The disk may be too full for a cursor: first reclaim what durable cursors already allow.
        self.ask_lanes(retention::reclaim);
        if self.shortage()?.is_none() {
            return Ok(());
        }
        // Segments are removed only below durable cursors.
        if self.position.active.is_none() {
            self.begin_segment()?;
        } else {
            self.write_cursors(Cursors::All);
        }
        self.enforce_limits();
        self.ask_lanes(retention::reclaim);
        let is_retry = matches!(self.lane.condition(), Condition::Full(_));
        if self.lane.settings.load().full == Full::ShedOldest {
            while self.is_over_budget() && self.shed_oldest()? {
                self.lane.heartbeat.set_busy();
            }
            // Other lanes may still reclaim delivered segments; after a failed retry, this lane sheds one segment per try.
            if is_retry && self.shortage()?.is_some() {
                self.shed_oldest()?;
            }
        }
        let Some(shortage) = self.shortage()? else { return Ok(()) };
        // The next try may find room: other lanes write their cursors, which may release delivered segments. If that was
        // not enough, their writers shed segments where their configuration allows it.
        self.ask_lanes(|lane| {
            lane.queue.send(if is_retry { Command::Reclaim } else { Command::WriteCursors });
        });
        Err(Condition::Full(shortage))
    }

    /// Calls `ask` for every lane while the disk is used up; a lane that only exceeds its own budget gets no help. The
    /// least urgent lane, which is usually declared last, comes first.
    fn ask_lanes(&self, ask: impl Fn(&Lane)) {
        let core = &self.lane.core;
        for lane in self.lanes.iter().rev() {
            if !core.is_disk_used_up(self.lane.folder()) {
                return;
            }
            ask(lane);
        }
    }

    /// Reason why there is no room for another batch; `None` if there is.
    fn shortage(&self) -> Result<Option<String>, Condition> {
        let disk = self.lane.core.disk_room(self.lane.folder()).map_err(|error| Condition::of(&error))?;
        if disk.is_used_up() {
            let free = crate::setting::Bytes(disk.free);
            return Ok(Some(format!("the file system has {free} left, less than disk_reserve")));
        }
        Ok(self.is_over_budget().then(|| {
            let budget = crate::setting::Bytes(self.lane.settings.load().budget);
            format!("the budget of {budget} is used up by events that central has not acknowledged")
        }))
    }

    fn is_over_budget(&self) -> bool {
        self.lane.bytes() > self.lane.settings.load().budget
    }

    /// Sheds the oldest segment. Returns `false` if that freed nothing.
    fn shed_oldest(&mut self) -> Result<bool, Condition> {
        let before = self.lane.bytes();
        let shed = |lane: &Lane| retention::shed_oldest(lane).map_err(|error| Condition::of(&error));
        if !shed(&self.lane)? {
            // The active segment is the only one: close it, so that it can be shed.
            if self.position.active.as_ref().is_none_or(|active| active.parts.is_empty()) {
                return Ok(false);
            }
            self.close_segment();
            self.begin_segment()?;
            shed(&self.lane)?;
        }
        // The segment is removed only below durable cursors.
        self.write_cursors(Cursors::All);
        retention::remove_expired(&self.lane);
        retention::reclaim(&self.lane);
        Ok(self.lane.bytes() < before)
    }

    /// Frees disk space for another lane: reclaims settled segments, or sheds the oldest one if the lane may do so.
    pub(super) fn reclaim_for_others(&mut self) {
        if !self.lane.core.is_disk_used_up(self.lane.folder()) {
            return;
        }
        // The active segment may go too, once all of it is settled and every follower of the log has saved its position.
        let is_idle = self.committed_at.is_none_or(|at| clock::instant().duration_since(at) > FOLLOWED_AFTER);
        let holds_events = self.position.active.as_ref().is_some_and(|active| !active.parts.is_empty());
        if is_idle && holds_events && self.lane.is_all_settled() {
            self.close_segment();
        }
        let freed = match self.position.active {
            None => self.begin_segment().map(|()| retention::reclaim(&self.lane)),
            Some(_) if self.lane.settings.load().full == Full::ShedOldest => self.shed_oldest().map(drop),
            Some(_) => Ok(()),
        };
        if freed.is_err() {
            tracing::warn!(lane = %self.lane.name, "could not free disk space for other lanes");
        }
    }
}
