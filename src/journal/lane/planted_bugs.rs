//! Bugs that the model test must find. They exist only in test builds, and only where a test plants one.

/// A bug that the journal once had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A fingerprint enters the dedupe window when its batch is encoded, before the commit.
    AdmittedBeforeCommit,
    /// The note of a dropped destination applies to every name with the same prefix.
    DroppedByPrefix,
    /// A fingerprint does not depend on the stream.
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

/// Plants a bug in this thread, or removes it.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    BUG.set(bug);
}
