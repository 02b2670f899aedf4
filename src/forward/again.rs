//! Reads events from the journal again that central has refused.

use super::key_order::Held;
use super::lane_link::LaneLink;
use crate::journal::{BlockReader, JournalError, Lane};
use crate::runtime::spawn_blocking;
use std::sync::Arc;

/// Events that were read again. Those that are settled or expired meanwhile are missing.
#[derive(Debug, Default)]
pub(super) struct ReadAgain {
    pub events: Vec<Held>,
    /// Offsets of events whose contract is lost.
    pub unreadable: Vec<u64>,
}

/// Reads the events at these offsets; `None` if the journal cannot be read now.
pub(super) async fn read_again(link: &LaneLink, offsets: Vec<u64>) -> Option<ReadAgain> {
    let (lane, destination) = (Arc::clone(&link.lane), link.to.name.clone());
    let read = spawn_blocking(move || read(&lane, &destination, &offsets)).await;
    match read.ok()? {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::warn!(lane = %link.lane.name, %error, "cannot read a refused event from the journal, will retry");
            None
        }
    }
}

fn read(lane: &Arc<Lane>, destination: &str, offsets: &[u64]) -> Result<ReadAgain, JournalError> {
    let settled = lane.settled(destination).unwrap_or_default();
    let mut found = ReadAgain::default();
    let mut block: Option<BlockReader> = None;
    for &offset in offsets.iter().filter(|offset| !settled.contains(**offset)) {
        if block.as_ref().is_none_or(|block| block.end() <= offset) {
            block = lane.walk_at(offset)?;
        }
        let Some(walk) = &mut block else { continue };
        let recorded = walk.recorded();
        let Some(step) = walk.step_to(lane, offset) else { continue };
        let Some((published, sequence)) = step.numbered else {
            found.unreadable.push(offset);
            continue;
        };
        if lane.is_expired(destination, published.publication.retention_unsettled, offset, &step.record) {
            continue;
        }
        let mut record = Vec::new();
        step.record.encode(&mut record);
        let published = Arc::clone(published);
        found.events.push(Held { offset, record, published, sequence, recorded, is_backfill: false });
    }
    Ok(found)
}
