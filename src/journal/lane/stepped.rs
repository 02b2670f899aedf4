//! A journal whose writers a test runs step by step in its own thread.
//!
//! Promise: a step does exactly what a writer thread does between two waits.

use super::config::Config;
use super::journal::Journal;
use super::seal::Seal;
use super::writer::{Next, Writer};
use crate::journal::store::disk::Disk;
use crate::journal::store::error::JournalError;
use std::sync::Arc;

/// An open journal and its writers.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub journal: Arc<Journal>,
    writers: Vec<Writer>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({})", self.lane_name())
    }
}

impl Stepped {
    /// Opens a journal without writer threads.
    pub fn open(config: &Config, seal: &Seal, disk: Arc<dyn Disk>) -> Result<Self, JournalError> {
        let (journal, writers) = Journal::open_without_threads(config, seal, disk)?;
        Ok(Self { journal: Arc::new(journal), writers })
    }

    /// Number of writers: one for each lane, the last for dead letters.
    pub fn writers(&self) -> usize {
        self.writers.len()
    }

    /// Runs one step of one writer; returns `false` if the disk did not take its batch.
    pub fn step(&mut self, writer: usize) -> bool {
        let writer = &mut self.writers[writer];
        let work = writer.poll();
        !matches!(writer.step(work), Next::Retry(_))
    }

    /// Closes the journal as a shutdown does; drops a batch that the disk does not take.
    pub fn close(mut self) {
        self.journal.lanes().iter().chain([self.journal.dead()]).for_each(|lane| lane.queue.close());
        for writer in &mut self.writers {
            let is_ended = (0..8).any(|_| {
                let work = writer.poll();
                writer.step(work) == Next::Ended
            });
            if !is_ended {
                writer.abandon();
            }
        }
        self.journal.close(std::time::Duration::ZERO);
    }
}
