//! The new rows of the outbox, read once for all contracts of an Odoo.
//!
//! Promise: a post of Odoo makes the contracts read the records that changed; they are named once, by one call.
//! Invariant: after a call the feed waits in proportion to the time that Odoo took, so that hints take a share of Odoo's
//! time, however fast they come.

use super::hints::Hints;
use super::outbox::OutboxRow;
use crate::clock;
use crate::odoo::OdooError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pause after a call, in multiples of the time that it took.
const PAUSE_FACTOR: u32 = 4;
/// Longest such pause: hints are there to be quick.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The feed of one outbox.
#[derive(Debug, Default)]
pub(super) struct OutboxFeed {
    /// Posts that have come.
    posts: AtomicU64,
    /// Whose changes are noted: names of the model, and where its records are hinted at.
    contracts: Mutex<Vec<(Vec<String>, Arc<Hints>)>>,
    read: tokio::sync::Mutex<ReadState>,
}

#[derive(Debug, Default)]
struct ReadState {
    /// Posts whose rows were read.
    posts: u64,
    /// The newest row that was read.
    after: i64,
    next: Option<Instant>,
}

impl OutboxFeed {
    /// Adds a contract whose model has these names.
    pub(super) fn add(&self, models: Vec<String>, hints: Arc<Hints>) {
        self.contracts.lock().push((models, hints));
    }

    /// Odoo has posted that there are new rows.
    pub(super) fn post(&self) {
        self.posts.fetch_add(1, Ordering::AcqRel);
        self.contracts.lock().iter().for_each(|(_, hints)| hints.put_outbox());
    }

    /// Reads the rows behind a number with `read`, unless another contract has done so since the last post, and hints at
    /// their records.
    pub(super) async fn distribute(
        &self,
        read: impl AsyncFnOnce(i64) -> Result<Vec<OutboxRow>, OdooError>,
    ) -> Result<(), OdooError> {
        let mut state = self.read.lock().await;
        if state.posts == self.posts.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(next) = state.next {
            tokio::time::sleep_until(next.into()).await;
        }
        let (posts, began) = (self.posts.load(Ordering::Acquire), clock::instant());
        let rows = read(state.after).await?;
        let done = clock::instant();
        *state = ReadState {
            posts,
            after: rows.last().map_or(state.after, |row| row.id),
            next: Some(done + (done.duration_since(began) * PAUSE_FACTOR).min(PAUSE_MAX)),
        };
        let contracts = self.contracts.lock();
        for row in rows {
            for (_, hints) in contracts.iter().filter(|(models, _)| models.contains(&row.model)) {
                // The next poll finds the record of a hint that has no room.
                hints.put(row.record);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn row(id: i64, model: &str, record: i64) -> OutboxRow {
        OutboxRow { id, model: model.into(), record, state: None, at: 0, transaction: None }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rows_of_a_post_are_read_once_for_all_contracts() {
        let _clock = clock::Clock::of_runtime(std::time::SystemTime::UNIX_EPOCH).enter();
        let feed = OutboxFeed::default();
        let (orders, works) = (Arc::new(Hints::default()), Arc::new(Hints::default()));
        feed.add(vec!["mrp.production".into()], Arc::clone(&orders));
        feed.add(vec!["mrp.workorder".into()], Arc::clone(&works));
        let calls = AtomicUsize::new(0);
        let read = async |after: i64| {
            calls.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let all = [row(4, "mrp.production", 40), row(5, "mrp.workorder", 50), row(6, "mrp.production", 41)];
            Ok(all.into_iter().filter(|row| row.id > after).collect())
        };
        feed.distribute(read).await.expect("nothing to read");
        assert_eq!(calls.load(Ordering::Relaxed), 0, "nothing was posted");
        feed.post();
        let (one, two) = tokio::join!(feed.distribute(read), feed.distribute(read));
        one.and(two).expect("read");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!((orders.take(9).ids, works.take(9).ids), (vec![40, 41], vec![50]));
        // The next call waits four times as long as the last one took.
        feed.post();
        let began = tokio::time::Instant::now();
        feed.distribute(read).await.expect("read");
        assert_eq!((calls.load(Ordering::Relaxed), began.elapsed()), (2, Duration::from_millis(500)));
        assert!(orders.take(9).ids.is_empty(), "they were read before");
    }
}
