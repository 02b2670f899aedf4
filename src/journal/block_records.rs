//! Walking through a block: each record with its offset, its publication and its sequence.

use super::block::Block;
use super::lane::Lane;
use super::{Found, JournalError, Published};
use crate::event::{Record, Timestamp};
use std::sync::Arc;

/// A place in a block, and what the records before it have counted.
#[derive(Debug)]
pub struct Walk {
    block: Arc<Block>,
    at: usize,
    offset: u64,
    /// Next sequence of each run of the block.
    sequences: Vec<(u32, u64)>,
    /// The publication seen last: the next record has mostly the same.
    published: Option<Arc<Published>>,
}

/// One record of a block.
#[derive(Debug)]
pub struct Step<'a> {
    /// Its offset in the lane.
    pub offset: u64,
    /// The record.
    pub record: Record<'a>,
    /// Its publication and its sequence; `None` if the publication is lost.
    pub numbered: Option<(&'a Arc<Published>, u64)>,
}

impl Walk {
    /// Begins at the start of a block.
    pub fn new(block: Arc<Block>) -> Self {
        let sequences = block.header.runs.iter().map(|run| (run.stream, run.first)).collect();
        Self { at: block.start(), offset: block.header.first, sequences, published: None, block }
    }

    /// When the block was recorded.
    pub fn recorded(&self) -> Timestamp {
        self.block.header.recorded
    }

    /// Offset after the block's last record.
    pub fn end(&self) -> u64 {
        self.block.end()
    }

    /// Its share of the block's bytes, which others may be in too.
    pub fn bytes(&self) -> usize {
        self.block.bytes() / Arc::strong_count(&self.block).max(1)
    }

    /// The next record.
    pub fn step(&mut self, lane: &Lane) -> Option<Step<'_>> {
        self.step_with(|number| lane.published(number))
    }

    /// As [`Walk::step`], with publications from elsewhere.
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
    pub fn step_to(&mut self, lane: &Lane, offset: u64) -> Option<Step<'_>> {
        while self.offset < offset {
            self.step(lane)?;
        }
        self.step(lane).filter(|step| step.offset == offset)
    }
}

impl Lane {
    /// The block of one event; `None` if it is no longer there. Blocks the thread.
    pub fn walk_at(&self, offset: u64) -> Result<Option<Walk>, JournalError> {
        Ok(match self.look(offset)? {
            Found::Block(block) if block.header.first <= offset => Some(Walk::new(block)),
            _ => None,
        })
    }
}
