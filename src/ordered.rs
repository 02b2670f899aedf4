//! Order: maps and sets that are filled entry by entry, and lists that one sort puts in order.
//!
//! The library's `collect` into a map and its `sort` are compiled anew for every kind of entry, 5 kB of program each.

use std::cmp::Ordering;

/// A map or set with these entries; of two with one key the last counts.
pub fn ordered<C: Default + Extend<T>, T>(entries: impl IntoIterator<Item = T>) -> C {
    let mut filled = C::default();
    filled.extend(entries);
    filled
}

/// Puts a list in order; equals stay as they are.
pub fn sort<T>(list: &mut [T], mut compare: impl FnMut(&T, &T) -> Ordering) {
    let mut order: Vec<usize> = (0..list.len()).collect();
    sort_places(&mut order, &mut |a, b| compare(&list[a], &list[b]));
    // Each cycle of places is walked once.
    for start in 0..list.len() {
        let mut at = start;
        loop {
            let from = std::mem::replace(&mut order[at], at);
            if from == start {
                break;
            }
            list.swap(at, from);
            at = from;
        }
    }
}

#[inline(never)]
fn sort_places(order: &mut [usize], compare: &mut dyn FnMut(usize, usize) -> Ordering) {
    order.sort_by(|a, b| compare(*a, *b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_is_in_order_and_equals_stay_as_they_are(keys in prop::collection::vec(0..20_u8, 0..200)) {
            let mut list: Vec<_> = keys.into_iter().enumerate().collect();
            let mut expected = list.clone();
            expected.sort_by_key(|(_, key)| *key);
            sort(&mut list, |a, b| a.1.cmp(&b.1));
            prop_assert_eq!(list, expected);
        }
    }
}
