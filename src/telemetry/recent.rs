//! The newest log lines, recent in memory for the support bundle.
//!
//! Promise: they take at most [`RECENT_BYTES_MAX`], whatever is logged.

use super::escape::shown;
use crate::event::text;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{Result, Write};

/// Most bytes of recent log lines: about two thousand lines.
pub const RECENT_BYTES_MAX: usize = 256 << 10;

static LINES: Mutex<RecentLines> = Mutex::new(RecentLines { lines: VecDeque::new(), bytes: 0 });

struct RecentLines {
    lines: VecDeque<Box<str>>,
    bytes: usize,
}

/// Returns the newest log lines, oldest first.
pub fn recent_lines() -> Vec<String> {
    let recent = LINES.lock();
    recent.lines.iter().map(|line| line.as_ref().to_owned()).collect()
}

/// A writer that keeps its lines in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recent;

impl Write for Recent {
    fn write(&mut self, line: &[u8]) -> Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = shown(text.trim_end_matches('\n'));
        let kept = text::start(&text, RECENT_BYTES_MAX / 8);
        let mut recent = LINES.lock();
        recent.bytes += kept.len();
        recent.lines.push_back(kept.into());
        while recent.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = recent.lines.pop_front() else { break };
            recent.bytes -= oldest.len();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_within_their_bound() {
        for number in 0..10_000 {
            Recent.write_all(format!("line {number} {}\n", "x".repeat(60)).as_bytes()).expect("kept");
        }
        Recent.write_all(&[b'y'; 1 << 20]).expect("kept");
        let lines = recent_lines();
        let bytes: usize = lines.iter().map(String::len).sum();
        assert!(bytes <= RECENT_BYTES_MAX && bytes > RECENT_BYTES_MAX / 2, "{bytes}");
        assert!(lines[lines.len() - 2].starts_with("line 9999 ") && lines[lines.len() - 1].starts_with("yyy"));
    }
}
