//! The folder source: reads the files that programs drop into a folder, and hands each row in as an event.
//!
//! Promise: a file is moved to `done` or `failed` only after every row is durable, or none has become an event. After a
//! crash no row is missing and none is an event twice. A file that is wrong costs itself: the next one is read.
//! Invariants:
//! - one file of a source is read at a time, and of it one batch of rows is in memory;
//! - the id of an event is made of file, line and a digest of the content, so the same row always has the same id;
//! - a folder that does not respond blocks a thread of the pool and never the gateway.
//!
//! Not here: the columns of a contract (`contract/columns`), the formats of files (`rows`).

mod cells;
mod config;
mod csv_rows;
mod place;
mod progress;
mod reader;
mod rows;
mod source;
mod text;
mod xml_rows;

pub use config::Config;
