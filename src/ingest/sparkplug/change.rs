//! What a message changes in the state of its node.

use super::declared::Declared;
use super::nodes::{Node, NodeKey};
use super::notes::Stale;

/// Change of the state of a node by a message.
#[derive(Debug)]
pub struct StateChange {
    pub(super) key: NodeKey,
    pub(super) device: Option<String>,
    pub(super) kind: ChangeKind,
    pub(super) seq: Option<u8>,
    pub(super) needs_rebirth: bool,
}

#[derive(Debug)]
pub(super) enum ChangeKind {
    NodeBirth {
        declared: Declared,
        bd_seq: Option<u64>,
    },
    DeviceBirth(Declared),
    NodeDeath {
        bd_seq: Option<u64>,
    },
    DeviceDeath,
    /// A rejected birth, with the reason.
    RefusedBirth(String),
    Data,
}

/// Applies a message to a node. Returns the notes to save before the message is acknowledged (`Some(None)` means those
/// of earlier messages), and whether a birth is missing.
pub(super) fn apply_to_node(
    node: &mut Node,
    kind: ChangeKind,
    device: Option<String>,
) -> (Option<Option<Stale>>, bool) {
    let stale = device.as_deref().map_or(Stale::All, Stale::device);
    let device = device.unwrap_or_default();
    match kind {
        ChangeKind::NodeBirth { declared, bd_seq } => {
            // Each device needs a new birth after the birth of its node.
            node.declare(declared);
            node.bd_seq = bd_seq;
            node.is_born();
            (Some(Some(stale)), false)
        }
        ChangeKind::DeviceBirth(declared) => {
            let misses_birth = !node.is_alive();
            node.declare_device(device, declared);
            (Some(Some(stale)), misses_birth)
        }
        ChangeKind::RefusedBirth(_) => {
            // Even without declarations in memory: evicted ones may still be on disk.
            node.refuse(matches!(stale, Stale::Devices(_)).then_some(&device));
            (Some(Some(stale)), false)
        }
        // The will of an earlier session may arrive after the birth of the next one.
        ChangeKind::NodeDeath { bd_seq } if bd_seq.is_some() && node.bd_seq.is_some() && bd_seq != node.bd_seq => {
            (None, false)
        }
        ChangeKind::NodeDeath { .. } => {
            let is_news = node.has_declared();
            node.declare(Declared::default());
            node.seq = None;
            (Some(is_news.then_some(stale)), false)
        }
        // A dead device is deleted: over the years there may be many names of devices.
        ChangeKind::DeviceDeath => (node.remove_device(&device).then_some(Some(stale)), false),
        // Aliases from before the start may since belong to other metrics.
        ChangeKind::Data => (None, !node.is_alive() || !node.is_born_since_start),
    }
}
