//! A poll: reads what was written lately, and searches for deletions when due.

use super::super::known_records::ForgetLimits;
use super::super::reader::written_since;
use super::{Capture, PAUSE_FACTOR, Reading, RoundError};
use crate::clock;
use crate::event::Timestamp;
use crate::setting::Span;
use serde_json::json;
use std::time::{Duration, Instant};

/// Every poll reads at least this far back. Most transactions are shorter.
const WINDOW: Duration = Duration::from_secs(30);
/// Interval at which a poll reads the whole overlap: transactions longer than [`WINDOW`] are rare.
const WIDE_EVERY: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Interval between two searches for records to forget while memory is used up: a search visits every record.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

impl Capture {
    /// Does one poll, and sets the time of the next one by the time that Odoo took.
    pub(super) async fn poll_and_pace(&mut self, began: Instant) -> Result<(), RoundError> {
        let took = self.poll().await?;
        let pause = (took * PAUSE_FACTOR).min(PAUSE_MAX);
        let wait = self.section.interval.0.max(took + pause);
        let is_slow = wait > self.section.interval.0 * 2;
        self.shared.health.slowed(&self.stream, is_slow.then_some((Span(round_up(wait)), Span(round_up(took)))));
        self.next_poll = began + wait;
        Ok(())
    }

    /// Does one poll: reads the window, and sweeps or checks for deletions when due. Returns how long Odoo took.
    async fn poll(&mut self) -> Result<Duration, RoundError> {
        let began = clock::instant();
        let config = &self.shared.config;
        let (sweep, overlap) = (seconds(config.sweep), seconds(config.overlap));
        let is_sweep = self.position.swept + sweep <= self.position.mark;
        // After a gap between polls, transactions from before the gap may have committed late.
        let now = Timestamp::from(clock::wall()).0.div_euclid(1_000_000);
        let is_late = now - self.position.mark > seconds(Span(WINDOW)) / 2 + seconds(self.section.interval);
        let is_wide = is_late || began >= self.next_wide;
        let back = match (is_sweep, is_wide) {
            (true, _) => sweep + overlap,
            (_, true) => overlap,
            _ => seconds(Span(WINDOW)),
        };
        let since = self.position.mark - back;
        let mut mark = None;
        let mut after = 0;
        let mut took = Duration::ZERO;
        loop {
            let page = self.reader.page(vec![written_since(since), json!(["id", ">", after])]).await?;
            took += page.took;
            mark.get_or_insert(page.server_seconds);
            after = page.last.unwrap_or(after);
            self.process_rows(page.rows, Reading::Poll).await?;
            if page.is_end {
                break;
            }
        }
        if is_sweep || is_wide {
            let rows = self.reader.faulty_rows(since).await?;
            self.process_rows(rows, Reading::Poll).await?;
        }
        let mark = mark.unwrap_or(self.position.mark);
        // The mark follows a server clock that was set back; otherwise changes would be missed.
        self.position.mark = mark;
        if is_wide {
            self.next_wide = began + WIDE_EVERY;
        }
        if is_sweep {
            self.position.swept = mark;
            let forgotten = self.forget();
            tracing::info!(source = %self.shared.config.name, stream = %self.stream, forgotten, "sweep is complete");
        }
        if began >= self.next_deletion_check {
            took += self.check_absent().await?;
            self.next_deletion_check = began + self.shared.config.deletions.0;
        }
        self.mirror.read_at(Timestamp::from(clock::wall()));
        self.mirror.complete();
        Ok(took)
    }

    /// Forgets records that ended long ago, and more of them while memory is used up; returns how many.
    pub(super) fn forget(&mut self) -> usize {
        self.next_forget = clock::instant() + FORGET_EVERY;
        let config = &self.shared.config;
        let limits = ForgetLimits {
            // The next sweep reads everything from here on again.
            settled: self.position.swept - seconds(config.overlap),
            ended: self.position.mark - seconds(config.forget),
            stale: self.recent_after().unwrap_or(i64::MIN),
        };
        self.mirror.known().forget(&self.section, &limits, self.bytes_max())
    }
}

fn seconds(span: Span) -> i64 {
    i64::try_from(span.0.as_secs()).unwrap_or(i64::MAX)
}

fn round_up(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis().div_ceil(100)).unwrap_or(u64::MAX).saturating_mul(100))
}
