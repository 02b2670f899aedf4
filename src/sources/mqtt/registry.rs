//! Registry of clients: connections, sessions that outlive them, and delayed wills, over all listeners.
//!
//! Promise: what a persistent session confirms (a subscription, the release of a QoS 2 exchange) is on the disk
//! before the answer leaves. After a crash nothing of it is lost or doubled.
//! Invariants:
//! - a session is found by listener, proven name and client id: another name cannot take it over;
//! - a session whose client is not connected is its rows on the disk, and some hundred bytes in memory;
//! - number and bytes of sessions are limited, per name and in all; no new session is created when the disk is down
//!   to its reserve.
//!
//! A QoS 2 exchange that begins is stored in the record of its event. The head row of a session lists the exchanges
//! that were open when it was written; the row `exchanges` says up to which offsets the heads are complete, and
//! recovery reads the records from there on.

mod clients;
mod recovery;
mod rows;
mod session;
mod table;
mod takeover;
mod wills;
mod writer;

pub use clients::Registry;
pub(super) use rows::will_bytes;
pub(super) use session::{Exchange, Key, NoSession, PendingWill, Quotas, Session, SessionRequest, Unanswered};
pub(super) use takeover::{OpenedSession, SlotGuard};
pub(super) use wills::DueWill;

#[cfg(test)]
mod tests;
