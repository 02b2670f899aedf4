//! What the birth certificates of edge nodes and devices have declared.
//!
//! Bounded: beyond [`METRICS_MAX`] metrics or [`NODES_MAX`] nodes, the node that was silent for
//! longest is forgotten; its next data asks for a rebirth.

use super::json::Resolved;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Metrics of all nodes; some 40 MB at most.
const METRICS_MAX: usize = 200_000;
/// Edge nodes.
const NODES_MAX: usize = 10_000;
/// Between two asks for a rebirth of the same node: at first, and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));

/// What is known of a metric beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) datatype: u32,
}

/// One metric as a note holds it: alias, name, data type.
type Row = (Option<u64>, String, u32);

/// The metrics of a node or a device.
#[derive(Clone, Debug, Default)]
pub(super) struct Declared {
    /// Whether its last certificate was one of birth.
    pub(super) is_alive: bool,
    names: HashMap<Arc<str>, (Option<u64>, u32)>,
    aliases: HashMap<u64, Arc<str>>,
}

impl Declared {
    /// What a birth certificate declares. The error says what is wrong with it.
    pub(super) fn born(metrics: &[Resolved<'_>]) -> Result<Self, String> {
        Self::from_rows(true, metrics.iter().map(|one| (one.metric.alias, one.name.to_owned(), one.datatype)))
    }

    fn from_rows(is_alive: bool, rows: impl Iterator<Item = Row>) -> Result<Self, String> {
        let mut declared = Self { is_alive, ..Self::default() };
        for (alias, name, datatype) in rows {
            let name: Arc<str> = name.into();
            if let Some(alias) = alias
                && declared.aliases.insert(alias, Arc::clone(&name)).is_some_and(|other| other != name)
            {
                return Err(format!("alias {alias}: stands for two metrics"));
            }
            declared.names.insert(name, (alias, datatype));
        }
        Ok(declared)
    }

    pub(super) fn by_alias(&self, alias: u64) -> Option<(&str, Known)> {
        let name = self.aliases.get(&alias)?;
        Some((name, self.by_name(name)?))
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Known> {
        // Aliases and types belong to one birth: after a death they may be others.
        let known = self.names.get(name).filter(|_| self.is_alive);
        known.map(|(_, datatype)| Known { datatype: *datatype })
    }

    fn rows(&self) -> Vec<Row> {
        self.names.iter().map(|(name, (alias, datatype))| (*alias, name.to_string(), *datatype)).collect()
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
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) own: Declared,
    pub(super) devices: BTreeMap<String, Declared>,
    pub(super) bd_seq: Option<u64>,
    /// Number of the last message; unknown after a restart.
    pub(super) seq: Option<u8>,
    /// Whether its birth was heard since the start: before that, aliases may have changed unheard.
    pub(super) is_fresh: bool,
    heard_at: Instant,
    asked: Option<(Instant, u32)>,
}

/// A node as its note holds it. The order of the fields is the stored format.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u8,
    key: NodeKey,
    bd_seq: Option<u64>,
    own: (bool, Vec<Row>),
    devices: Vec<(String, bool, Vec<Row>)>,
}

const FORMAT: u8 = 1;

impl Node {
    fn new(now: Instant) -> Self {
        Self {
            own: Declared::default(),
            devices: BTreeMap::new(),
            bd_seq: None,
            seq: None,
            is_fresh: false,
            heard_at: now,
            asked: None,
        }
    }

    /// What data of the node itself, or of one of its devices, refers to.
    pub(super) fn declared(&self, device: Option<&str>) -> Option<&Declared> {
        match device {
            None => Some(&self.own),
            Some(device) => self.devices.get(device),
        }
    }

    fn metric_count(&self) -> usize {
        self.own.names.len() + self.devices.values().map(|device| 1 + device.names.len()).sum::<usize>()
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
        self.asked = Some((now, count + 1));
        true
    }

    /// A birth was heard.
    pub(super) fn is_born(&mut self) {
        self.is_fresh = true;
        self.asked = None;
    }
}

/// All edge nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    map: HashMap<NodeKey, Node>,
}

impl Nodes {
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn find(&self, key: &NodeKey) -> Option<&Node> {
        self.map.get(key)
    }

    pub(super) fn touch(&mut self, key: &NodeKey, now: Instant) -> &mut Node {
        let node = self.map.entry(key.clone()).or_insert_with(|| Node::new(now));
        node.heard_at = now;
        node
    }

    /// Forgets the nodes that were silent for longest until the rest is within bounds; returns them.
    pub(super) fn make_room(&mut self) -> Vec<NodeKey> {
        let mut metrics: usize = self.map.values().map(Node::metric_count).sum();
        let mut forgotten = Vec::new();
        while self.map.len() > 1 && (metrics > METRICS_MAX || self.map.len() > NODES_MAX) {
            let oldest = self.map.iter().min_by_key(|(_, node)| node.heard_at).map(|(key, _)| key.clone());
            let Some(key) = oldest else { break };
            metrics -= self.map.remove(&key).map_or(0, |node| node.metric_count());
            forgotten.push(key);
        }
        forgotten
    }

    /// The note of a node.
    pub(super) fn store(&self, key: &NodeKey) -> Option<Vec<u8>> {
        let node = self.map.get(key)?;
        let stored = Stored {
            format: FORMAT,
            key: key.clone(),
            bd_seq: node.bd_seq,
            own: (node.own.is_alive, node.own.rows()),
            devices: node.devices.iter().map(|(name, device)| (name.clone(), device.is_alive, device.rows())).collect(),
        };
        postcard::to_stdvec(&stored).ok()
    }

    /// Takes a node from its note; `false` if that says nothing to this version.
    pub(super) fn restore(&mut self, note: &[u8], now: Instant) -> bool {
        let Ok(stored) = postcard::from_bytes::<Stored>(note) else { return false };
        if stored.format != FORMAT {
            return false;
        }
        let mut node = Node::new(now);
        node.bd_seq = stored.bd_seq;
        let Ok(own) = Declared::from_rows(stored.own.0, stored.own.1.into_iter()) else { return false };
        node.own = own;
        for (name, is_alive, rows) in stored.devices {
            let Ok(device) = Declared::from_rows(is_alive, rows.into_iter()) else { return false };
            node.devices.insert(name, device);
        }
        self.map.insert(stored.key, node);
        true
    }
}
