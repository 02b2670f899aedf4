//! Forebay: an edge gateway that takes what the shop floor reports, makes it durable before it
//! says "received", and delivers it to central systems over MQTT/TLS, accounted for to the last
//! event.
//!
//! An event travels through six files, in this order: [`gateway`] wires the parts, then
//! [`sources`] → [`ingest`] → [`journal`] → [`forward`] → [`link`].
//!
//! Imports point down; a module never uses its own row (`tests/tidy.rs` checks it):
//!
//! | row | modules |
//! |---|---|
//! | 10 | `main`, `cli` |
//! | 9 | `demo` (the command line starts it) |
//! | 8 | `gateway` (wires, starts journal-first, changes parts while they run, drains sources-first) |
//! | 7 | `config` (joins the parts' own `Config`s), `admin` (the socket the command line talks to) |
//! | 6 | `ledger` (what became of every event), `timekeeper` (whether the clock is right), `survival` (how long the disk lasts), `watch` (business exceptions) |
//! | 5 | `sources`, `forward` |
//! | 4 | `ingest`, `link`, `odoo` (the client), `local` (what subscribers on the gateway are told), `security` (who was refused what) |
//! | 3 | `journal`, `tls` |
//! | 2 | `contract`, `secret`, `shutdown`, `service` (what systemd is told) |
//! | 1 | `event`, `clock`, `telemetry`, `setting`, `memory` (the byte budget) |
//! | 0 | `http` (how HTTP is spoken), `runtime` (blocking work), `rate` (how much each of many may have in a second), `origin` (what counts as one address) |
//!
//! Choices that a measurement decided:
//!
//! - **The listener reads MQTT itself.** PUBLISH is the path of an event: parsed in place it costs no
//!   allocation; and the conformance checks (`tests/conformance`) find `mqtt-protocol-core` more
//!   lenient with CONNECT and SUBSCRIBE than the standards are. The demo's broker reads with the listener's code.
//! - **Blocks are compressed with zstd level 1**: 0.35 of the size on payloads whose values do not
//!   repeat, where lz4 reaches 0.61; 0.3 µs an event more, and half the wear of the flash.
//! - **A segment has one table.** Cursors ride inside the blocks, so that a commit touches as few
//!   pages as redb can: 25 kB for one event.
//! - **A lane's commits start at least its linger apart**, and an event that finds the lane idle
//!   goes at once: the latency of an idle lane, the bytes of a busy one.
//! - **The standard lane lingers 40 ms**: at 1,000 events a second 20 ms write 1.6 kB an event.
//! - **The disk is one for all lanes.** A writer that finds it down to `disk_reserve` removes what is delivered of any lane;
//!   what another lane may give up is given up by that lane's own writer, when asked, a segment at a time.
//! - **Publications are files** (`journal/publications/7.json`), so that `contracts check` can read
//!   the versions in force while the gateway runs; **dead letters are one log** of their own.
//! - **Numbers that were never given are written down** (`journal/unused.json`): after the loss of a file
//!   the lanes go on behind whatever they may have given, and the gap is in no account.
//! - **What becomes of dead letters is in the state**, with the count of what that changes in the ledger: one commit
//!   for both, so that a crash never counts a letter twice.
//! - **Losses are noted before they are in the accounts**, and announced from the note: a crash says the same again.
//! - **Replays and requeued letters have a connection of their own**, open only while there are some.
//! - **Batches are a setting, not the default of bulk**: one event a publish is what every consumer understands.
//! - **A restored backup gives numbers from the present moment on**, in microseconds since 1970: no row of
//!   numbers that counts events has got there, so that none is given twice, whatever the old journal gave.
//! - **A part's pulse is its shutdown signal.** A source or forwarder that awaits its shutdown beside all else is alive,
//!   however long a peer takes; one that does not come back to it is stuck, and is started anew alone.
//! - **What yields has threads of its own that are nicer** (`gateway/background`): beside a bulk backlog that drains as fast
//!   as two cores can, critical events take 1.4 times as long as without it; on the common threads it was 3.3 times.
//! - **A reload is all or nothing until it is in force**: what may fail (files, ports) is readied first, and what cannot
//!   change while the gateway runs is refused rather than put off.
//! - **Files are watched by looking at them** every two seconds: links that are swapped and network folders are seen, which
//!   notification of the kernel misses; some hundred files cost less than a millisecond.
//! - **What is known of Odoo is restored from the journal.** Notes of it are up to a minute old; the events
//!   behind them hold the rest, so that no change is told twice, and no commit is spent on each.
//! - **The crate `jsonschema` checks payloads, and `contract/schema` counts what it does**: the crate has no limit for time
//!   and stack. It sees the payload through counted accesses and finds it empty once the budget is spent. An event of the
//!   benchmark takes 0.2 µs; the official tests of the draft judge the whole.
//! - **HTTP is spoken by hyper behind one module** (`http`): sources, the Odoo hook, metrics and the command socket need
//!   the same bounds on time and bytes.
//! - **A certificate with a malformed name names nobody** (`tls/names`): the name that cannot be read may be the one that
//!   matters, so neither its client nor its environment is taken from the others.
//! - **After a failed commit the writer starts a new segment** at the first offset that is not
//!   known to be durable, rather than trusting what the page cache says of the old one.

#[cfg(test)]
extern crate self as forebay;
/// A simulation of the whole gateway, with access to what only the crate itself sees.
#[cfg(test)]
#[path = "../tests/model.rs"]
mod model;

pub mod admin;
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
