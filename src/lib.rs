//! Forebay, an edge gateway for the events of a plant.
//!
#![doc = include_str!("README.md")]
//!
//! # Choices that a measurement decided
//!
//! - **The listener parses MQTT itself.** PUBLISH is the path of an event; parsing it in place needs no allocation. In the
//!   conformance checks (`tests/conformance`), `mqtt-protocol-core` accepts CONNECT and SUBSCRIBE packets that the standards
//!   forbid. The parser is in `mqtt`, which the links, the demo's broker and the tests use as well.
//! - **Blocks are compressed with zstd level 1.** On payloads whose values do not repeat it reaches 0.35 of the size, lz4
//!   0.61. It costs 0.3 µs more per event and halves the wear of the flash.
//! - **A segment has one table.** Cursors are stored in the blocks, so a commit touches as few pages as redb allows: 25 kB
//!   for one event.
//! - **Commits of a lane start at least one linger apart**; an event on an idle lane is committed at once. An idle lane has
//!   low latency, a busy lane writes few bytes per event.
//! - **The standard lane lingers 40 ms.** At 1,000 events per second, a linger of 20 ms writes 1.6 kB per event.
//! - **All lanes share one disk.** When free space falls to `disk_reserve`, a writer reclaims delivered segments of any
//!   lane. Undelivered events are shed only by the writer of their own lane, on request, one segment at a time.
//! - **Publications are files** (`journal/publications/7.json`), so `contracts check` can read the versions in force while
//!   the gateway runs. **Dead letters have their own log.**
//! - **Unused sequences are recorded** (`journal/unused.json`). After the loss of a file, each lane continues above the
//!   highest sequence that it may have given; the gap belongs to no account.
//! - **Dead-letter status is in the state**, together with the changes that it makes to the ledger. One commit writes both,
//!   so a crash never counts a letter twice.
//! - **A loss is recorded before it enters the accounts**, and announced from the record. After a crash the same
//!   announcement is sent again.
//! - **Replays and requeued letters use their own connection**, which is open only while there are some.
//! - **Batches are a setting, and off by default even for bulk lanes**: every consumer understands one event per publish.
//! - **A restored backup continues with sequences from the present time** in microseconds since 1970. No sequence that
//!   counts events is that high, so none is given twice, whatever the old journal has given since the backup.
//! - **The pulse of a part is its shutdown signal.** A source or forwarder that polls its shutdown signal is alive, however
//!   long a peer takes to respond. A part that does not poll it is stuck, and is restarted alone.
//! - **Bulk forwarding runs on a separate low-priority runtime** (`gateway/low_priority`). While two cores drain a bulk
//!   backlog at full speed, critical events take 1.4 times as long as without it; on the common runtime it was 3.3 times.
//! - **A reload is all or nothing up to the point where it takes effect.** Steps that can fail (reading files, binding ports)
//!   come first. A change of a setting that cannot change at run time is refused, not deferred.
//! - **Configuration files are polled** every two seconds. Polling notices swapped symbolic links and changes in network
//!   folders, which inotify misses; some hundred files cost less than a millisecond.
//! - **The known records of Odoo are restored from the journal.** Their notes are up to a minute old; the events after them
//!   contain the rest. No change is reported twice, and no commit is needed per change.
//! - **The crate `jsonschema` checks payloads, and `contract/schema` counts its work**, because the crate limits neither
//!   time nor stack depth. It reads the payload through counted accesses and sees an empty value once the budget is used
//!   up. An event of the benchmark takes 0.2 µs; the official test suite of the draft checks the whole.
//! - **One module wraps hyper** (`http`): sources, the Odoo hook, metrics and the command socket need the same bounds on
//!   time and bytes.
//! - **A certificate with a malformed name has no name** (`tls/names`). The unreadable name may be the relevant one, so
//!   neither client nor environment is taken from its other names.
//! - **After a failed commit the writer starts a new segment** at the first offset that is not known to be durable. The page
//!   cache of the old segment cannot be trusted.

#[cfg(test)]
extern crate self as forebay;
/// A simulation of the whole gateway, with access to crate internals.
#[cfg(test)]
#[path = "../tests/model.rs"]
mod model;

pub mod admin;
pub mod api;
mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod contract;
pub mod demo;
pub mod event;
pub mod forward;
pub mod gateway;
pub mod http;
pub mod ingest;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod local;
pub mod memory;
pub mod mqtt;
pub mod odoo;
mod origin;
mod rate;
mod runtime;
pub mod secret;
pub mod security;
pub mod service;
pub mod setting;
pub mod shutdown;
pub mod sources;
pub mod survival;
pub mod telemetry;
pub mod timekeeper;
pub mod tls;
pub mod watch;
