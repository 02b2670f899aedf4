//! Maps and sets in order, filled entry by entry.
//!
//! `collect` sorts the entries first, and every kind of entry brings a sort of its own: 5 kB of program.

/// A map or set with these entries; of two with one key the last counts.
pub fn ordered<C: Default + Extend<T>, T>(entries: impl IntoIterator<Item = T>) -> C {
    let mut filled = C::default();
    filled.extend(entries);
    filled
}
