//! Tracing of sampled events through the gateway, in the log.
//!
//! Promise: all parts trace the same ids. With tracing off, an event costs one comparison.

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};
use tracing::Span;
use xxhash_rust::xxh3::xxh3_64;

/// Target of the log lines that trace events.
pub const FOLLOW: &str = "forebay::event";

/// One event in this many is traced.
static ONE_IN: AtomicU32 = AtomicU32::new(1);

pub(super) fn follow_one_in(count: u32) {
    ONE_IN.store(count.max(1), Ordering::Relaxed);
}

/// Whether event tracing is on.
#[inline]
pub fn may_follow() -> bool {
    tracing::enabled!(target: FOLLOW, tracing::Level::DEBUG)
}

/// Returns the span for log lines about an event, if that event is sampled. Formats the id only if tracing is on.
#[inline]
pub fn follow(id: &dyn Display) -> Option<Span> {
    if may_follow() { sampled(&id.to_string()) } else { None }
}

fn sampled(id: &str) -> Option<Span> {
    let is_followed = xxh3_64(id.as_bytes()).is_multiple_of(ONE_IN.load(Ordering::Relaxed).into());
    is_followed.then(|| tracing::debug_span!(target: FOLLOW, "event", id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::{Formatter, Result};

    struct Never;

    impl Display for Never {
        fn fmt(&self, _: &mut Formatter<'_>) -> Result {
            panic!("an id is formatted although tracing is off");
        }
    }

    #[test]
    fn nothing_becomes_text_while_nobody_looks() {
        assert!(follow(&Never).is_none());
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).finish();
        tracing::subscriber::with_default(subscriber, || assert!(follow(&Never).is_none()));
    }

    #[test]
    fn a_sample_is_a_share_of_all_ids_and_the_same_each_time() {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).finish();
        tracing::subscriber::with_default(subscriber, || {
            follow_one_in(100);
            let followed = || (0..20_000).filter(|id| follow(id).is_some()).collect::<Vec<_>>();
            let first = followed();
            assert!((100..300).contains(&first.len()), "{}", first.len());
            assert_eq!(followed(), first);
            follow_one_in(1);
            assert_eq!(followed().len(), 20_000);
        });
    }
}
