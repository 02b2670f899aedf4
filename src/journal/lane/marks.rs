//! Names of the high-water marks of a lane in the state.

/// No offset from this mark on was assigned.
pub(in crate::journal) fn offset(lane: &str) -> String {
    format!("offset/{lane}")
}

/// No sequence of the stream from this mark on was assigned.
pub(in crate::journal) fn sequence(lane: &str, stream: u32) -> String {
    format!("sequence/{lane}/{stream}")
}

/// First offset of the newest segment.
pub(in crate::journal) fn segment(lane: &str) -> String {
    format!("segment/{lane}")
}

/// Every number below was assigned; `mark` is the mark of an offset or a sequence.
pub(in crate::journal) fn given(mark: &str) -> String {
    format!("given/{mark}")
}
