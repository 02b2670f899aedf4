//! Runs blocking work outside of the runtime's threads.
//!
//! In the program this is [`tokio::task::spawn_blocking`] itself. The simulation of the gateway (`tests/model.rs`)
//! replaces it: a seed reproduces a run only if the whole run stays on one thread. [`run_inline`] makes the calling
//! thread do its blocking work itself, before `spawn_blocking` returns.
//!
//! Invariant: outside of tests nothing stands between a caller and tokio.

#[cfg(not(test))]
pub(crate) use tokio::task::spawn_blocking;

/// Runs `work` on the blocking pool, or at once after [`run_inline`]. Dropping the handle does not cancel it.
#[cfg(test)]
pub(crate) fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    if INLINE.get() {
        let done = work();
        return tokio::spawn(async { done });
    }
    tokio::task::spawn_blocking(work)
}

/// Descriptors that reading the configuration needs at the same time: its deepest folder and a file in it.
const SPARE_DESCRIPTORS: usize = 8;

/// Returns whether the process can open the few files that reading its configuration needs. While it cannot, folders seem empty
/// and files missing. Blocks the thread for some microseconds.
pub(crate) fn has_spare_descriptors() -> bool {
    let opened: Vec<_> = (0..SPARE_DESCRIPTORS).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    opened.len() == SPARE_DESCRIPTORS
}

/// Makes `spawn_blocking` run its work on the calling thread from now on.
#[cfg(test)]
pub(crate) fn run_inline() {
    INLINE.set(true);
}

#[cfg(test)]
thread_local! {
    static INLINE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}
