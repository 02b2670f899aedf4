//! Why a known record is not in an answer.

/// Why a record is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Absence {
    /// It does not exist any more.
    Deleted,
    /// It exists, and the account may not see it.
    Hidden,
    /// The account sees it, and the domain of the contract does not match it any more.
    Left,
}

/// Ids per search for missing records: a request of 6 kB.
pub(in super::super) const IDS_PER_SEARCH: usize = 1000;
