//! Many topic filters at once: which of them match a topic, in the time that its levels take and not in that of the
//! filters.

use super::Filter;
use std::collections::HashMap;

/// Filters, each with what it stands for.
#[derive(Debug)]
pub(super) struct Tree<T> {
    nodes: Vec<Node<T>>,
    filters: usize,
}

/// What may come at one level.
#[derive(Debug)]
struct Node<T> {
    words: HashMap<Box<str>, usize>,
    any: Option<usize>,
    /// Of filters that end here.
    here: Vec<T>,
    /// Of filters that end with `#` below.
    below: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { words: HashMap::new(), any: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], filters: 0 }
    }
}

impl<T: Copy + PartialEq> Tree<T> {
    pub(super) fn insert(&mut self, filter: &Filter, what: T) {
        let mut at = 0;
        self.filters += 1;
        for level in filter.as_str().split('/') {
            if level == "#" {
                return self.nodes[at].below.push(what);
            }
            at = match self.child(at, level) {
                Some(child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node::default());
                    match level {
                        "+" => self.nodes[at].any = Some(child),
                        word => drop(self.nodes[at].words.insert(word.into(), child)),
                    }
                    child
                }
            };
        }
        self.nodes[at].here.push(what);
    }

    /// Removes a filter that was inserted for the same. Its nodes stay: a caller makes a new tree when many are empty.
    pub(super) fn remove(&mut self, filter: &Filter, what: T) {
        let mut at = 0;
        for level in filter.as_str().split('/') {
            if level == "#" {
                return self.take(at, true, what);
            }
            let Some(child) = self.child(at, level) else { return };
            at = child;
        }
        self.take(at, false, what);
    }

    /// Whether there are many more nodes than its filters need.
    pub(super) fn is_overgrown(&self, levels: usize) -> bool {
        self.nodes.len() > 64 + 2 * levels
    }

    fn take(&mut self, at: usize, is_below: bool, what: T) {
        let node = &mut self.nodes[at];
        let list = if is_below { &mut node.below } else { &mut node.here };
        if let Some(found) = list.iter().position(|known| *known == what) {
            list.swap_remove(found);
            self.filters -= 1;
        }
    }

    fn child(&self, at: usize, level: &str) -> Option<usize> {
        if level == "+" { self.nodes[at].any } else { self.nodes[at].words.get(level).copied() }
    }

    /// Calls `found` for each filter that matches a topic. At most every node is looked at once, and none of them calls
    /// another: a topic of many levels takes no stack.
    pub(super) fn matching(&self, topic: &str, mut found: impl FnMut(T)) {
        if self.filters == 0 {
            return;
        }
        let (mut now, mut next) = (vec![0], Vec::new());
        // A wildcard at the start matches no topic that begins with `$`.
        let mut is_hidden = topic.starts_with('$');
        for level in topic.split('/') {
            for at in now.drain(..) {
                let node: &Node<T> = &self.nodes[at];
                if !is_hidden {
                    node.below.iter().for_each(|what| found(*what));
                    next.extend(node.any);
                }
                next.extend(node.words.get(level));
            }
            std::mem::swap(&mut now, &mut next);
            is_hidden = false;
            if now.is_empty() {
                return;
            }
        }
        for at in now {
            // "sport/#" matches "sport" too.
            let node = &self.nodes[at];
            node.here.iter().chain(&node.below).for_each(|what| found(*what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The tree and each filter by itself say the same, also after some are removed.
        #[test]
        fn a_tree_finds_what_each_filter_matches(
            filters in prop::collection::vec("(([ab+]|\\$a)/){0,3}[ab+#]", 1..20),
            topic in "(([ab]|\\$a)/){0,4}[ab]",
            removed in prop::collection::vec(any::<bool>(), 20),
        ) {
            let filters: Vec<_> = filters.iter().filter_map(|text| Filter::parse(text)).collect();
            let mut tree = Tree::default();
            filters.iter().enumerate().for_each(|(index, filter)| tree.insert(filter, index));
            let left = |index: &usize| !removed[*index];
            (0..filters.len()).filter(|index| !left(index)).for_each(|index| tree.remove(&filters[index], index));
            let mut found = Vec::new();
            tree.matching(&topic, |index| found.push(index));
            found.sort_unstable();
            let expected: Vec<_> =
                (0..filters.len()).filter(left).filter(|index| filters[*index].matches(&topic)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
