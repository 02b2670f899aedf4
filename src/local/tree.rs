//! A tree of topic filters: finds the filters that match a topic, in a time that depends on the levels of the topic and
//! not on the number of filters.

use crate::mqtt::Filter;
use std::collections::HashMap;

/// A set of filters, each with a value.
#[derive(Debug)]
pub(super) struct FilterTree<T> {
    nodes: Vec<Node<T>>,
    filters: usize,
}

/// One level of the filters that share the levels before it.
#[derive(Debug)]
struct Node<T> {
    literal: HashMap<Box<str>, usize>,
    single_level: Option<usize>,
    /// Values of the filters that end here.
    exact: Vec<T>,
    /// Values of the filters that continue with `#`.
    subtree: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { literal: HashMap::new(), single_level: None, exact: Vec::new(), subtree: Vec::new() }
    }
}

impl<T> Default for FilterTree<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], filters: 0 }
    }
}

impl<T: Copy + PartialEq> FilterTree<T> {
    pub(super) fn insert(&mut self, filter: &Filter, value: T) {
        let mut node = 0;
        self.filters += 1;
        for level in filter.as_str().split('/') {
            if level == "#" {
                return self.nodes[node].subtree.push(value);
            }
            node = match self.child(node, level) {
                Some(child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node::default());
                    match level {
                        "+" => self.nodes[node].single_level = Some(child),
                        word => drop(self.nodes[node].literal.insert(word.into(), child)),
                    }
                    child
                }
            };
        }
        self.nodes[node].exact.push(value);
    }

    /// Removes a filter that was inserted with the same value. Its nodes stay: the caller
    /// rebuilds the tree when [`FilterTree::is_overgrown`].
    pub(super) fn remove(&mut self, filter: &Filter, value: T) {
        let mut node = 0;
        for level in filter.as_str().split('/') {
            if level == "#" {
                return self.take(node, true, value);
            }
            let Some(child) = self.child(node, level) else { return };
            node = child;
        }
        self.take(node, false, value);
    }

    /// Whether there are many more nodes than filters with `levels` levels in total need.
    pub(super) fn is_overgrown(&self, levels: usize) -> bool {
        self.nodes.len() > 64 + 2 * levels
    }

    fn take(&mut self, node: usize, is_subtree: bool, value: T) {
        let node = &mut self.nodes[node];
        let list = if is_subtree { &mut node.subtree } else { &mut node.exact };
        if let Some(found) = list.iter().position(|known| *known == value) {
            list.swap_remove(found);
            self.filters -= 1;
        }
    }

    fn child(&self, node: usize, level: &str) -> Option<usize> {
        if level == "+" { self.nodes[node].single_level } else { self.nodes[node].literal.get(level).copied() }
    }

    /// Calls `found` for each filter that matches a topic. It visits each node at most once and does not recurse: a topic
    /// with many levels uses no stack.
    pub(super) fn matching(&self, topic: &str, mut found: impl FnMut(T)) {
        if self.filters == 0 {
            return;
        }
        let (mut now, mut next) = (vec![0], Vec::new());
        // A wildcard at the start matches no topic that begins with `$`.
        let mut is_hidden = topic.starts_with('$');
        for level in topic.split('/') {
            for node in now.drain(..) {
                let node: &Node<T> = &self.nodes[node];
                if !is_hidden {
                    node.subtree.iter().for_each(|value| found(*value));
                    next.extend(node.single_level);
                }
                next.extend(node.literal.get(level));
            }
            std::mem::swap(&mut now, &mut next);
            is_hidden = false;
            if now.is_empty() {
                return;
            }
        }
        for node in now {
            // "sport/#" matches "sport" too.
            let node = &self.nodes[node];
            node.exact.iter().chain(&node.subtree).for_each(|value| found(*value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The tree finds the same matches as each filter by itself, also after some were removed.
        #[test]
        fn a_tree_finds_what_each_filter_matches(
            filters in prop::collection::vec("(([ab+]|\\$a)/){0,3}[ab+#]", 1..20),
            topic in "(([ab]|\\$a)/){0,4}[ab]",
            removed in prop::collection::vec(any::<bool>(), 20),
        ) {
            let filters: Vec<_> = filters.iter().filter_map(|text| Filter::parse(text)).collect();
            let mut tree = FilterTree::default();
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
