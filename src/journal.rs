//! The journal: an append-only log per lane, with the events that the gateway has promised to deliver.
//!
//! Promise: a [`Receipt`] proves that its event survives a power cut.
//! Invariants:
//! - each lane has one writer thread; offsets and sequences rise without gaps and are never used twice;
//! - a segment is removed only after every destination has settled its events;
//! - a damaged file is quarantined (`*.damaged`) and reported; the gateway continues without it.
//!
//! The log of a lane is a series of segments, `journal/{lane}/{first offset}.redb`. The writer appends to the newest
//! one; the others are read-only. Each is small enough to be repaired, lost or removed as a whole.
//!
//! Three storeys, each of which imports from those before it: `store` (files and their formats), `lane` (logs, writers,
//! cursors, recovery), `inspect` (operations on a whole journal: export, backup, verify, salvage).
//!
//! Not here: what an event means (`contract`), where it goes (`forward`).

mod inspect;
mod lane;
mod store;

pub use inspect::backup::BackupError;
pub use inspect::export::{BadSelection, Export, SELECTED_MAX, push_line};
pub use inspect::readonly::ReadOnlyJournal;
pub use inspect::salvage::{Salvage, Salvaged};
pub use inspect::verify::Verification;
pub use lane::audit::{AuditReader, AuditUsage, BEGUN, DONE};
pub use lane::block_records::{BlockReader, Step};
pub use lane::condition::Condition;
pub use lane::config::{Config, DEAD, Full, LaneConfig, Start};
pub use lane::core::DiskRoom;
pub use lane::gateway_events::GatewayEvent;
pub use lane::group_commit::{Receipt, SubmitError, Ticket, Waiter, WaiterHandle};
pub use lane::handle::Lane;
pub use lane::high_water::Given;
pub use lane::journal::Journal;
pub use lane::lane_stats::LaneStats;
pub use lane::log::{Durable, LaneLog, ReadResult};
pub use lane::loss::{Loss, LostStream};
pub use lane::notes::Notes;
#[cfg(test)]
pub(crate) use lane::planted_bugs::{Bug, plant};
pub use lane::publications::{PUBLICATIONS, Publications, Published, publications_in};
pub use lane::reader::Follower;
pub use lane::seal::{FORMAT, Seal};
#[cfg(test)]
pub(crate) use lane::stepped::Stepped;
pub use store::block::{BadBlock, Block, Compressor, Header, Run, append_record};
pub use store::cursor::{Account, Cursor, OUTCOMES, Outcome};
pub use store::disk::{self, Disk, RealDisk};
pub use store::error::JournalError;
pub use store::state::{Change, Note};
