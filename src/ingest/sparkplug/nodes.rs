//! What is remembered of edge nodes, and for how long.
//!
//! Promise: it takes no more bytes than [`Bounds`] and the memory budget allow, in memory and as notes on the disk.
//! Invariant: at a bound, what the node declared that was silent for longest is forgotten, of the sender that holds most;
//! its next data asks for a rebirth, no sooner than the pause since its last ask allows. So a sender that declares without end loses what it declared itself.

use super::declared::Declared;
use crate::memory::{Budget, OverBudget, Permit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an edge node takes beside texts and metrics: its entries in four tables, and the first leaf of a tree of devices.
const NODE_BYTES: usize = 1536;
/// What a device takes beside its name and metrics: an entry of a tree that may be half empty.
const DEVICE_BYTES: usize = 224;
/// One message while it is read, where the memory allows: 20,000 metrics.
const MESSAGE_BYTES: usize = 16 << 20;
/// The largest JSON of a message, where the memory allows.
const JSON_BYTES_MAX: usize = 8 << 20;
/// Between two asks for a rebirth of the same node: at first, and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));

/// The part of a sender's bytes below which nodes that have declared nothing stay, 3 MiB with the packaged unit: the
/// last asks of 1800 nodes.
const EMPTIED_PART: usize = 8;

/// How many bytes of memory what births declare may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Of one edge node with its devices.
    pub(super) node: usize,
    /// Of all nodes of a sender.
    sender: usize,
    pub(super) all: usize,
    /// One message while it is read.
    pub(super) message: usize,
    /// The JSON of one message.
    pub(super) json: usize,
}

impl Bounds {
    /// The parts of a memory budget. With the packaged unit (160 MiB of permits) all nodes have 32 MiB: 260,000 metrics
    /// with names of 100 bytes. A sender has 24 MiB, since a plant may have one broker for all. A node has 2 MiB, of
    /// which 10,000 metrics take 1.2 MiB, which is a big one. A message of 10,000 metrics takes 8 MiB of 16 while it is read.
    pub(super) fn of(budget: &Budget) -> Self {
        let all = budget.permits_max() / 5;
        let message = (all / 2).max(all.min(MESSAGE_BYTES));
        Self { node: all / 16, sender: all / 4 * 3, all, message, json: JSON_BYTES_MAX.min(message / 2) }
    }
}

/// An edge node: which source it comes by, its group and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct NodeKey {
    pub(super) source: String,
    pub(super) group: String,
    pub(super) node: String,
}

impl NodeKey {
    /// The name of its note.
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
    /// Number of the last message; unknown after a restart.
    pub(super) seq: Option<u8>,
    /// Whether its birth was heard since the start: before that, aliases may have changed unheard.
    pub(super) is_fresh: bool,
    /// Whether what it declared was forgotten or refused since its last birth.
    is_cut: bool,
    asked: Option<(Instant, u32)>,
    /// Who published its birth, or was the first to speak of it.
    sender: Arc<str>,
    /// The order in which nodes were heard.
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
            is_fresh: false,
            is_cut: false,
            asked: None,
            turn,
            // Each text stands in two tables.
            bytes: NODE_BYTES + 2 * (key.bytes() + sender.len()),
            sender,
        }
    }

    /// What data of the node itself, or of one of its devices, refers to.
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

    /// Replaces what the node itself has declared. Whatever its certificate says, its devices need births of their own.
    pub(super) fn declare(&mut self, declared: Declared) {
        let devices: usize = self.devices.iter().map(|(name, device)| device_bytes(name, device)).sum();
        self.bytes = self.bytes - devices - self.own.bytes() + declared.bytes();
        self.devices = BTreeMap::new();
        self.own = declared;
    }

    /// Replaces what one of its devices has declared.
    pub(super) fn declare_device(&mut self, name: String, declared: Declared) {
        let before = self.devices.get(&name).map_or(0, |device| device_bytes(&name, device));
        self.bytes = self.bytes - before + device_bytes(&name, &declared);
        self.devices.insert(name, declared);
    }

    /// Bytes that it would take once this were declared.
    fn bytes_with(&self, device: Option<&str>, declared: &Declared) -> usize {
        let Some(name) = device else { return self.texts() + declared.bytes() };
        let before = self.devices.get(name).map_or(0, |device| device_bytes(name, device));
        self.bytes - before + device_bytes(name, declared)
    }

    /// Bytes that it takes without what was declared.
    fn texts(&self) -> usize {
        let devices: usize = self.devices.iter().map(|(name, device)| device_bytes(name, device)).sum();
        self.bytes - devices - self.own.bytes()
    }

    /// Whether it has declared nothing, so that there is no note of it.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_declared() && self.bd_seq.is_none()
    }

    /// Forgets what was declared, so that nothing is taken for what it is not any more.
    fn cut(&mut self) {
        self.declare(Declared::default());
        (self.bd_seq, self.is_fresh, self.is_cut) = (None, false, true);
    }

    /// Whether births of it or its devices count.
    pub(super) fn has_declared(&self) -> bool {
        self.own.is_alive || !self.devices.is_empty()
    }

    /// A birth was refused: what the one before declared does not count any more.
    pub(super) fn refuse(&mut self, device: Option<&str>) {
        let Some(name) = device else { return self.cut() };
        self.is_cut = true;
        self.remove_device(name);
    }

    /// Forgets what a device has declared; `false` where that was nothing.
    pub(super) fn remove_device(&mut self, name: &str) -> bool {
        let before = self.devices.remove(name);
        self.bytes -= before.as_ref().map_or(0, |device| device_bytes(name, device));
        before.is_some()
    }

    /// Whether a rebirth may be asked for now; if so, that counts as an ask.
    pub(super) fn may_ask(&mut self, now: Instant) -> bool {
        let (last, count) = match self.asked {
            None => (None, 0),
            Some((at, count)) => (Some(at), count),
        };
        let wait = ASK_AGAIN.0.saturating_mul(1 << count.saturating_sub(1).min(10)).min(ASK_AGAIN.1);
        if last.is_some_and(|at| now.duration_since(at) < wait) {
            return false;
        }
        self.asked = Some((now, count.saturating_add(1)));
        true
    }

    /// A birth was heard. Where it is one more after what was forgotten or refused, asks stay as rare as they are.
    pub(super) fn is_born(&mut self) {
        self.is_fresh = true;
        if !std::mem::take(&mut self.is_cut) {
            self.asked = None;
        }
    }
}

fn device_bytes(name: &str, declared: &Declared) -> usize {
    DEVICE_BYTES + name.len() + declared.bytes()
}

/// The nodes of a sender.
#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Those that have declared something; the one that was silent for longest comes first.
    declaring: BTreeMap<u64, Arc<NodeKey>>,
    /// The others, of which it is known when they were asked for a rebirth, in the same order.
    emptied: BTreeMap<u64, Arc<NodeKey>>,
    /// Of the others.
    emptied_bytes: usize,
}

impl Held {
    /// What goes first for lack of room: what was declared, so that a node that loses it again and again is not asked
    /// for a rebirth each time; nodes without it once they take more than this.
    fn first_to_go(&self, emptied_bytes_max: usize) -> Option<&Arc<NodeKey>> {
        let (declaring, emptied) = (self.declaring.values().next(), self.emptied.values().next());
        if self.emptied_bytes > emptied_bytes_max { emptied } else { declaring.or(emptied) }
    }
}

/// What was forgotten, for lack of room.
#[derive(Debug)]
pub(super) struct Forgotten {
    pub(super) key: Arc<NodeKey>,
    /// Bytes that were allowed where they did not suffice, and for what.
    pub(super) allowed: usize,
    pub(super) bound: &'static str,
}

/// All edge nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    map: HashMap<Arc<NodeKey>, Node>,
    senders: HashMap<Arc<str>, Held>,
    by_bytes: BTreeSet<(usize, Arc<str>)>,
    bytes: usize,
    turns: u64,
    /// For `bytes`.
    permit: Permit,
}

impl Nodes {
    /// None yet; `permit` is of no bytes.
    pub(super) fn new(permit: Permit) -> Self {
        let (map, senders, by_bytes) = Default::default();
        Self { map, senders, by_bytes, bytes: 0, turns: 0, permit }
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

    /// Bytes that a node would take once this were declared, if that is more than it may.
    pub(super) fn excess(&self, key: &NodeKey, device: Option<&str>, declared: &Declared) -> Option<usize> {
        let bytes = match self.map.get(key) {
            Some(node) => node.bytes_with(device, declared),
            None => {
                NODE_BYTES + 2 * key.bytes() + device.map_or(0, |name| DEVICE_BYTES + name.len()) + declared.bytes()
            }
        };
        Some(bytes).filter(|bytes| *bytes > self.bounds().node)
    }

    /// Lets a node follow what was heard of it. With `is_taken` it belongs to the sender from now on, as it does where
    /// it is new.
    pub(super) fn follow<T>(
        &mut self,
        key: &NodeKey,
        sender: &str,
        is_taken: bool,
        follow: impl FnOnce(&mut Node) -> T,
    ) -> T {
        let (key, mut node) = match self.take(key) {
            Some((key, node)) => (key, node),
            None => (Arc::new(key.clone()), Node::new(key, sender.into(), 0)),
        };
        if is_taken && *node.sender != *sender {
            node.bytes = node.bytes - 2 * node.sender.len() + 2 * sender.len();
            node.sender = sender.into();
        }
        let followed = follow(&mut node);
        self.put(key, node);
        followed
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
        self.turns += 1;
        node.turn = self.turns;
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

    /// Changes what the sender of a node holds.
    fn count(&mut self, node: &Node, change: impl FnOnce(&mut Held)) {
        let held = self.senders.entry(Arc::clone(&node.sender)).or_default();
        self.by_bytes.remove(&(held.bytes, Arc::clone(&node.sender)));
        change(held);
        if held.declaring.is_empty() && held.emptied.is_empty() {
            self.senders.remove(&node.sender);
        } else {
            self.by_bytes.insert((held.bytes, Arc::clone(&node.sender)));
        }
    }

    /// Forgets what nodes declared until the rest is within bounds, after `key` was heard.
    pub(super) fn make_room(&mut self, key: &NodeKey) -> Vec<Forgotten> {
        let bounds = self.bounds();
        let mut forgotten = Vec::new();
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
                match self.cover() {
                    Ok(()) => return forgotten,
                    Err(over) => (self.oldest(), over.total, "all that peers make the gateway hold"),
                }
            };
            let Some(key) = oldest.cloned() else { return forgotten };
            if self.forget(&key) {
                forgotten.push(Forgotten { key, allowed, bound });
            }
        }
    }

    fn oldest(&self) -> Option<&Arc<NodeKey>> {
        self.oldest_of(&self.by_bytes.last()?.1)
    }

    fn oldest_of(&self, sender: &str) -> Option<&Arc<NodeKey>> {
        self.senders.get(sender)?.first_to_go(self.bounds().sender / EMPTIED_PART)
    }

    /// Forgets what a node declared; when it was asked last stays known, until its turn comes again. `false` if it had
    /// declared nothing.
    fn forget(&mut self, key: &NodeKey) -> bool {
        let Some((key, mut node)) = self.take(key) else { return false };
        if node.is_empty() {
            return false;
        }
        node.cut();
        self.put(key, node);
        true
    }

    /// Whether a node is within bounds.
    pub(super) fn fits(&mut self, key: &NodeKey) -> bool {
        let (bounds, node) = (self.bounds(), self.map.get(key));
        let held = node.and_then(|node| self.senders.get(&node.sender));
        node.is_some_and(|node| node.bytes <= bounds.node)
            && held.is_some_and(|held| held.bytes <= bounds.sender)
            && self.bytes <= bounds.all
            && self.cover().is_ok()
    }

    /// Keeps the permit over what it is for. Between the birth of a node and those of its devices others take no memory:
    /// it is given back only where more than half is not needed.
    fn cover(&mut self) -> Result<(), OverBudget> {
        let is_enough = (self.bytes..=self.bytes.saturating_mul(2)).contains(&self.permit.bytes());
        if is_enough { Ok(()) } else { self.permit.resize(self.bytes) }
    }

    /// Every node that there is something to note of.
    pub(super) fn all_noted(&self) -> Vec<Arc<NodeKey>> {
        self.map.iter().filter(|(_, node)| !node.is_empty()).map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Whether there is something to note of a node.
    pub(super) fn is_noted(&self, key: &NodeKey) -> bool {
        self.map.get(key).is_some_and(|node| !node.is_empty())
    }
}
