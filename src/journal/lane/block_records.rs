//! Reads the records of a block in order: each with its offset, its publication and its sequence.
//!
//! Promise: each record has the offset and the sequence that its commit assigned.

use super::log::{LaneLog, ReadResult};
use super::publications::Published;
use crate::event::{Record, Timestamp};
use crate::journal::store::block::Block;
use crate::journal::store::error::JournalError;
use std::sync::Arc;

/// A position in a block, with the next offset and sequences.
#[derive(Debug)]
pub struct BlockReader {
    block: Arc<Block>,
    at: usize,
    offset: u64,
    /// Next sequence of each run of the block.
    sequences: Vec<(u32, u64)>,
    /// Publication of the last record: the next record usually has the same.
    published: Option<Arc<Published>>,
}

/// One record of a block.
#[derive(Debug)]
pub struct Step<'a> {
    pub offset: u64,
    pub record: Record<'a>,
    /// Publication and sequence; `None` if the publication is lost.
    pub numbered: Option<(&'a Arc<Published>, u64)>,
}

impl BlockReader {
    /// Starts at the first record of a block.
    pub fn new(block: Arc<Block>) -> Self {
        let sequences = block.header.runs.iter().map(|run| (run.stream, run.first)).collect();
        Self { at: block.start(), offset: block.header.first, sequences, published: None, block }
    }

    /// Time when the block was recorded.
    pub fn recorded(&self) -> Timestamp {
        self.block.header.recorded
    }

    /// Offset after the last record of the block.
    pub fn end(&self) -> u64 {
        self.block.end()
    }

    /// Memory of the block in bytes, divided by the number of its users.
    pub fn bytes(&self) -> usize {
        self.block.bytes() / Arc::strong_count(&self.block).max(1)
    }

    pub fn step(&mut self, log: &LaneLog) -> Option<Step<'_>> {
        self.step_with(|number| log.published(number))
    }

    /// Like [`BlockReader::step`], with publications from `of`.
    pub fn step_with(&mut self, of: impl Fn(u32) -> Option<Arc<Published>>) -> Option<Step<'_>> {
        let Self { block, at, offset, sequences, published } = self;
        let (record, after) = block.record_at(*at)?;
        *at = after;
        *offset += 1;
        if published.as_ref().is_none_or(|published| published.number != record.publication) {
            *published = of(record.publication);
        }
        let numbered = published.as_ref().and_then(|published| {
            let run = sequences.iter_mut().find(|(stream, _)| *stream == published.stream)?;
            run.1 += 1;
            Some((published, run.1 - 1))
        });
        Some(Step { offset: *offset - 1, record, numbered })
    }

    /// The record at an offset; `None` if it is not in the rest of the block.
    pub fn step_to(&mut self, log: &LaneLog, offset: u64) -> Option<Step<'_>> {
        while self.offset < offset {
            self.step(log)?;
        }
        self.step(log).filter(|step| step.offset == offset)
    }
}

impl LaneLog {
    /// A walk through the block with an event; `None` if the event no longer exists. Blocks the thread.
    pub fn walk_at(&self, offset: u64) -> Result<Option<BlockReader>, JournalError> {
        Ok(match self.read_at(offset)? {
            ReadResult::Block(block) if block.header.first <= offset => Some(BlockReader::new(block)),
            _ => None,
        })
    }
}
