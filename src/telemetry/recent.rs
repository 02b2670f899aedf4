//! The newest log lines, kept in memory.
//!
//! Promise: never more than [`RECENT_BYTES_MAX`], whatever is logged.

use super::shown;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{Result, Write};

/// What the newest lines take at most: some two thousand of them.
pub const RECENT_BYTES_MAX: usize = 256 << 10;

static LINES: Mutex<Kept> = Mutex::new(Kept { lines: VecDeque::new(), bytes: 0 });

struct Kept {
    lines: VecDeque<Box<str>>,
    bytes: usize,
}

/// The newest log lines, the oldest first.
pub fn recent_lines() -> Vec<String> {
    let kept = LINES.lock();
    kept.lines.iter().map(|line| line.as_ref().to_owned()).collect()
}

/// Keeps what is written to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recent;

impl Write for Recent {
    fn write(&mut self, line: &[u8]) -> Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = shown(text.trim_end_matches('\n'));
        let most = text.len().min(RECENT_BYTES_MAX / 8);
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let mut kept = LINES.lock();
        kept.bytes += end;
        kept.lines.push_back(text[..end].into());
        while kept.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
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
