//! Faults that the model of the gateway must find. They exist in test builds alone, and there only where a test asks for one.

/// A fault that once was in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A fingerprint enters the dedupe window when its batch is prepared, before the commit.
    AdmittedBeforeCommit,
    /// The note that a destination was dropped counts for every name that it begins with.
    DroppedByPrefix,
    /// A fingerprint says nothing of the stream.
    StreamLeftOut,
}

#[cfg(test)]
thread_local! {
    static BUG: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this thread has the bug.
#[cfg(test)]
pub(super) fn has(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}

/// Whether this thread has the bug: never outside of tests.
#[cfg(not(test))]
pub(super) const fn has(_: Bug) -> bool {
    false
}

/// Gives this thread a bug.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    BUG.set(bug);
}
