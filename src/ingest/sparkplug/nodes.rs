//! State of edge nodes in memory, and its eviction.
//!
//! Promise: in memory and in notes on disk, the state never takes more bytes than [`Bounds`] and the memory budget
//! allow.
//! Invariant: at a bound, the sender with the most bytes loses the declarations of its least recently heard node. The
//! next data of that node requests a rebirth, no sooner than the pause since its last request allows. So a sender with
//! endless declarations loses its own.

use super::declared::Declared;
use crate::backoff::{Backoff, Jitter};
use crate::memory::{Budget, OverBudget, Permit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Size of an edge node without texts and metrics: its entries in four tables, and the first leaf of a tree of devices.
const NODE_BYTES: usize = 1536;
/// Size of a device without its name and metrics: an entry of a tree that may be half empty.
const DEVICE_BYTES: usize = 224;
/// Memory for one message while it is decoded, if the budget is large enough: 20,000 metrics.
const MESSAGE_BYTES: usize = 16 << 20;
/// Maximum JSON size of a message, if the budget is large enough.
const JSON_BYTES_MAX: usize = 8 << 20;
/// Pauses between two rebirth requests to the same node.
const REQUEST_PAUSES: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(3600), Jitter::None);

/// Part of a sender's bytes below which nodes without declarations are not evicted. It is 3 MiB with the packaged unit:
/// the last requests of 1800 nodes.
const EMPTIED_PART: usize = 8;

/// Bounds for the memory of declarations, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// One edge node with its devices.
    pub(super) node: usize,
    /// All nodes of a sender.
    sender: usize,
    pub(super) all: usize,
    /// One message while it is decoded.
    pub(super) message: usize,
    /// The JSON of one message.
    pub(super) json: usize,
}

impl Bounds {
    /// Derives the bounds from the memory budget. With the packaged unit (160 MiB of permits) all nodes have 32 MiB:
    /// 260,000 metrics with names of 100 bytes. A sender has 24 MiB, since a plant may have one broker for everything.
    /// A node has 2 MiB; a large node of 10,000 metrics takes 1.2 MiB. While a message of 10,000 metrics is decoded, it
    /// takes 8 of 16 MiB.
    pub(super) fn of(budget: &Budget) -> Self {
        let all = budget.permits_max() / 5;
        let message = (all / 2).max(all.min(MESSAGE_BYTES));
        Self { node: all / 16, sender: all / 4 * 3, all, message, json: JSON_BYTES_MAX.min(message / 2) }
    }
}

/// Identity of an edge node: source, group and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct NodeKey {
    pub(super) source: String,
    pub(super) group: String,
    pub(super) node: String,
}

impl NodeKey {
    pub(super) fn note(&self) -> String {
        let text = [self.source.as_str(), &self.group, &self.node].join("\0");
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
    }

    pub(super) fn bytes(&self) -> usize {
        self.source.len() + self.group.len() + self.node.len()
    }
}

#[derive(Debug)]
pub(super) struct Node {
    own: Declared,
    devices: BTreeMap<String, Declared>,
    pub(super) bd_seq: Option<u64>,
    /// Sequence number of the last message; unknown after a restart.
    pub(super) seq: Option<u8>,
    /// Whether a birth arrived since the start. Before that, aliases may have changed while the gateway was down.
    pub(super) is_born_since_start: bool,
    /// Whether declarations were evicted or rejected since the last birth.
    was_cut: bool,
    last_request: Option<(Instant, u32)>,
    /// Sender of its birth, or the first sender of a message of the node.
    sender: Arc<str>,
    /// Position in the order of last messages.
    turn: u64,
    bytes: usize,
}

impl Node {
    fn new(key: &NodeKey, sender: Arc<str>, turn: u64) -> Self {
        Self {
            own: Declared::default(),
            devices: BTreeMap::new(),
            bd_seq: None,
            seq: None,
            is_born_since_start: false,
            was_cut: false,
            last_request: None,
            turn,
            // Each text is in two tables.
            bytes: NODE_BYTES + 2 * (key.bytes() + sender.len()),
            sender,
        }
    }

    /// Declarations for data of the node itself or of one of its devices.
    pub(super) fn declared(&self, device: Option<&str>) -> Option<&Declared> {
        match device {
            None => Some(&self.own),
            Some(device) => self.devices.get(device),
        }
    }

    pub(super) fn own(&self) -> &Declared {
        &self.own
    }

    pub(super) fn devices(&self) -> &BTreeMap<String, Declared> {
        &self.devices
    }

    pub(super) fn sender(&self) -> &str {
        &self.sender
    }

    pub(super) fn is_alive(&self) -> bool {
        self.own.is_alive
    }

    /// Replaces the declarations of the node and removes those of its devices, which need new births in any case.
    pub(super) fn declare(&mut self, declared: Declared) {
        let devices: usize = self.devices.iter().map(|(name, device)| device_bytes(name, device)).sum();
        self.bytes = self.bytes - devices - self.own.bytes() + declared.bytes();
        self.devices = BTreeMap::new();
        self.own = declared;
    }

    /// Replaces the declarations of a device.
    pub(super) fn declare_device(&mut self, name: String, declared: Declared) {
        let before = self.devices.get(&name).map_or(0, |device| device_bytes(&name, device));
        self.bytes = self.bytes - before + device_bytes(&name, &declared);
        self.devices.insert(name, declared);
    }

    /// Size of the node with new declarations.
    fn bytes_with(&self, device: Option<&str>, declared: &Declared) -> usize {
        let Some(name) = device else { return self.texts() + declared.bytes() };
        let before = self.devices.get(name).map_or(0, |device| device_bytes(name, device));
        self.bytes - before + device_bytes(name, declared)
    }

    /// Size of the node without declarations.
    fn texts(&self) -> usize {
        let devices: usize = self.devices.iter().map(|(name, device)| device_bytes(name, device)).sum();
        self.bytes - devices - self.own.bytes()
    }

    /// Whether the node has no declarations, and so no note.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_declared() && self.bd_seq.is_none()
    }

    /// Removes all declarations, so outdated ones are never used.
    fn cut(&mut self) {
        self.declare(Declared::default());
        (self.bd_seq, self.is_born_since_start, self.was_cut) = (None, false, true);
    }

    /// Whether the node or one of its devices has declarations.
    pub(super) fn has_declared(&self) -> bool {
        self.own.is_alive || !self.devices.is_empty()
    }

    /// Removes the declarations of the birth before a rejected one.
    pub(super) fn refuse(&mut self, device: Option<&str>) {
        let Some(name) = device else { return self.cut() };
        self.was_cut = true;
        self.remove_device(name);
    }

    /// Removes the declarations of a device; `false` if there were none.
    pub(super) fn remove_device(&mut self, name: &str) -> bool {
        let before = self.devices.remove(name);
        self.bytes -= before.as_ref().map_or(0, |device| device_bytes(name, device));
        before.is_some()
    }

    /// Whether a rebirth may be requested now; if so, counts the request.
    pub(super) fn may_request(&mut self, now: Instant) -> bool {
        let (last, count) = match self.last_request {
            None => (None, 0),
            Some((at, count)) => (Some(at), count),
        };
        let wait = REQUEST_PAUSES.pause(count.saturating_sub(1));
        if last.is_some_and(|at| now.duration_since(at) < wait) {
            return false;
        }
        self.last_request = Some((now, count.saturating_add(1)));
        true
    }

    /// Records a birth. After an eviction or a rejection, the pause between rebirth requests stays as long as it is.
    pub(super) fn is_born(&mut self) {
        self.is_born_since_start = true;
        if !std::mem::take(&mut self.was_cut) {
            self.last_request = None;
        }
    }
}

fn device_bytes(name: &str, declared: &Declared) -> usize {
    DEVICE_BYTES + name.len() + declared.bytes()
}

#[derive(Debug, Default)]
struct SenderNodes {
    bytes: usize,
    /// Nodes with declarations, the least recently heard first.
    declaring: BTreeMap<u64, Arc<NodeKey>>,
    /// Nodes without declarations, kept for the time of their last rebirth request, in the same order.
    emptied: BTreeMap<u64, Arc<NodeKey>>,
    /// Size of the nodes in `emptied`.
    emptied_bytes: usize,
}

impl SenderNodes {
    /// Returns the node to evict first: the oldest with declarations, so a node that loses them repeatedly is not asked
    /// for a rebirth each time; or, once nodes without declarations exceed `emptied_bytes_max`, the oldest of those.
    fn first_to_evict(&self, emptied_bytes_max: usize) -> Option<&Arc<NodeKey>> {
        let (declaring, emptied) = (self.declaring.values().next(), self.emptied.values().next());
        if self.emptied_bytes > emptied_bytes_max { emptied } else { declaring.or(emptied) }
    }
}

/// A node whose declarations were evicted for lack of memory.
#[derive(Debug)]
pub(super) struct Evicted {
    pub(super) key: Arc<NodeKey>,
    /// Exceeded bound in bytes, and its scope.
    pub(super) allowed: usize,
    pub(super) bound: &'static str,
}

#[derive(Debug)]
pub(super) struct Nodes {
    map: HashMap<Arc<NodeKey>, Node>,
    senders: HashMap<Arc<str>, SenderNodes>,
    by_bytes: BTreeSet<(usize, Arc<str>)>,
    bytes: usize,
    last_turn: u64,
    /// Covers `bytes` of the memory budget.
    permit: Permit,
}

impl Nodes {
    /// Creates an empty set; `permit` covers no bytes.
    pub(super) fn new(permit: Permit) -> Self {
        let (map, senders, by_bytes) = Default::default();
        Self { map, senders, by_bytes, bytes: 0, last_turn: 0, permit }
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds::of(self.permit.budget())
    }

    pub(super) fn find(&self, key: &NodeKey) -> Option<&Node> {
        self.map.get(key)
    }

    /// Size of a node with new declarations, if it exceeds the bound.
    pub(super) fn excess(&self, key: &NodeKey, device: Option<&str>, declared: &Declared) -> Option<usize> {
        let bytes = match self.map.get(key) {
            Some(node) => node.bytes_with(device, declared),
            None => {
                NODE_BYTES + 2 * key.bytes() + device.map_or(0, |name| DEVICE_BYTES + name.len()) + declared.bytes()
            }
        };
        Some(bytes).filter(|bytes| *bytes > self.bounds().node)
    }

    /// Updates a node, and creates it if it is new. With `is_taken`, the node belongs to `sender` from now on,
    /// as a new node does.
    pub(super) fn update<T>(
        &mut self,
        key: &NodeKey,
        sender: &str,
        is_taken: bool,
        update: impl FnOnce(&mut Node) -> T,
    ) -> T {
        let (key, mut node) = match self.take(key) {
            Some((key, node)) => (key, node),
            None => (Arc::new(key.clone()), Node::new(key, sender.into(), 0)),
        };
        if is_taken && *node.sender != *sender {
            node.bytes = node.bytes - 2 * node.sender.len() + 2 * sender.len();
            node.sender = sender.into();
        }
        let updated = update(&mut node);
        self.put(key, node);
        updated
    }

    pub(super) fn take(&mut self, key: &NodeKey) -> Option<(Arc<NodeKey>, Node)> {
        let (key, node) = self.map.remove_entry(key)?;
        self.count(&node, |held| {
            if node.is_empty() {
                held.emptied.remove(&node.turn);
                held.emptied_bytes -= node.bytes;
            } else {
                held.declaring.remove(&node.turn);
            }
            held.bytes -= node.bytes;
        });
        self.bytes -= node.bytes;
        Some((key, node))
    }

    fn put(&mut self, key: Arc<NodeKey>, mut node: Node) {
        self.last_turn += 1;
        node.turn = self.last_turn;
        self.bytes += node.bytes;
        self.count(&node, |held| {
            if node.is_empty() {
                held.emptied.insert(node.turn, Arc::clone(&key));
                held.emptied_bytes += node.bytes;
            } else {
                held.declaring.insert(node.turn, Arc::clone(&key));
            }
            held.bytes += node.bytes;
        });
        self.map.insert(key, node);
    }

    /// Updates the totals of the sender of a node.
    fn count(&mut self, node: &Node, change: impl FnOnce(&mut SenderNodes)) {
        let held = self.senders.entry(Arc::clone(&node.sender)).or_default();
        self.by_bytes.remove(&(held.bytes, Arc::clone(&node.sender)));
        change(held);
        if held.declaring.is_empty() && held.emptied.is_empty() {
            self.senders.remove(&node.sender);
        } else {
            self.by_bytes.insert((held.bytes, Arc::clone(&node.sender)));
        }
    }

    /// Evicts declarations until all bounds are kept, after an update of `key`.
    pub(super) fn enforce_bounds(&mut self, key: &NodeKey) -> Vec<Evicted> {
        let bounds = self.bounds();
        let mut evicted = Vec::new();
        loop {
            let node = self.map.get(key);
            let sender = node.map(|node| Arc::clone(&node.sender));
            let (oldest, allowed, bound) = if node.is_some_and(|node| node.bytes > bounds.node) {
                (self.map.get_key_value(key).map(|(key, _)| key), bounds.node, "a node")
            } else if sender
                .as_ref()
                .and_then(|sender| self.senders.get(sender))
                .is_some_and(|held| held.bytes > bounds.sender)
            {
                (sender.and_then(|sender| self.oldest_of(&sender)), bounds.sender, "a sender")
            } else if self.bytes > bounds.all {
                (self.oldest(), bounds.all, "all nodes")
            } else {
                match self.adjust_permit() {
                    Ok(()) => return evicted,
                    Err(over) => (self.oldest(), over.total, "all that peers make the gateway hold"),
                }
            };
            let Some(key) = oldest.cloned() else { return evicted };
            if self.evict(&key) {
                evicted.push(Evicted { key, allowed, bound });
            }
        }
    }

    fn oldest(&self) -> Option<&Arc<NodeKey>> {
        self.oldest_of(&self.by_bytes.last()?.1)
    }

    fn oldest_of(&self, sender: &str) -> Option<&Arc<NodeKey>> {
        self.senders.get(sender)?.first_to_evict(self.bounds().sender / EMPTIED_PART)
    }

    /// Evicts the declarations of a node, but keeps the time of its last rebirth request. `false`
    /// if there were no declarations.
    fn evict(&mut self, key: &NodeKey) -> bool {
        let Some((key, mut node)) = self.take(key) else { return false };
        if node.is_empty() {
            return false;
        }
        node.cut();
        self.put(key, node);
        true
    }

    /// Whether all bounds are kept with this node.
    pub(super) fn fits(&mut self, key: &NodeKey) -> bool {
        let (bounds, node) = (self.bounds(), self.map.get(key));
        let held = node.and_then(|node| self.senders.get(&node.sender));
        node.is_some_and(|node| node.bytes <= bounds.node)
            && held.is_some_and(|held| held.bytes <= bounds.sender)
            && self.bytes <= bounds.all
            && self.adjust_permit().is_ok()
    }

    /// Adjusts the permit to the size of the state. The permit shrinks only when more than half is unused, so others
    /// cannot take the memory between the birth of a node and those of its devices.
    fn adjust_permit(&mut self) -> Result<(), OverBudget> {
        let is_enough = (self.bytes..=self.bytes.saturating_mul(2)).contains(&self.permit.bytes());
        if is_enough { Ok(()) } else { self.permit.resize(self.bytes) }
    }

    pub(super) fn keys_with_notes(&self) -> Vec<Arc<NodeKey>> {
        self.map.iter().filter(|(_, node)| !node.is_empty()).map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Whether a node needs notes.
    pub(super) fn has_notes(&self, key: &NodeKey) -> bool {
        self.map.get(key).is_some_and(|node| !node.is_empty())
    }
}
