//! Notes of edge nodes on disk: one note per node, followed in name order by one note per device, so the birth of a
//! device writes only its own declarations.
//!
//! Invariant: a note of a device is valid only with the note of its node.

use super::declared::Declared;
use super::nodes::{NodeKey, Nodes};
use crate::journal::Change;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FORMAT: u8 = 2;
/// Overhead of a note without texts and metrics: format, lists and lengths.
const NOTE_BYTES: usize = 64;
/// Overhead of an entry of a set, without its name.
const NAME_BYTES: usize = 64;

/// Notes of a node that are out of date.
#[derive(Debug)]
pub(super) enum Stale {
    /// The notes of the node and of all its devices.
    All,
    Devices(BTreeSet<String>),
}

impl Stale {
    pub(super) fn device(name: &str) -> Self {
        Self::Devices(BTreeSet::from([name.to_owned()]))
    }

    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => return,
            (Self::Devices(names), Self::Devices(others)) => return names.extend(others),
            (Self::Devices(_), Self::All) => {}
        }
        *self = Self::All;
    }

    /// Memory used by the names, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Devices(names) => names.iter().map(|name| NAME_BYTES + name.len()).sum(),
        }
    }
}

#[derive(Serialize)]
struct ToStore<'a> {
    format: u8,
    key: &'a NodeKey,
    sender: &'a str,
    bd_seq: Option<u64>,
    own: &'a Declared,
}

/// Note of a node. The order of the fields is the stored format.
#[derive(Deserialize)]
struct Stored {
    format: u8,
    key: NodeKey,
    sender: String,
    bd_seq: Option<u64>,
    own: Declared,
}

/// The last node restored, and the name of its note.
#[derive(Default)]
pub(super) struct LastNode(Option<(String, NodeKey)>);

impl Nodes {
    /// Returns the changes that update the notes of a node.
    pub(super) fn changes(&self, key: &NodeKey, stale: &Stale) -> Vec<Change> {
        let name = key.note();
        let Some(node) = self.find(key).filter(|node| !node.is_empty()) else {
            return vec![Change::RemoveAll(device_note(&name, "")), Change::Remove(name)];
        };
        match stale {
            Stale::All => {
                let (sender, bd_seq, own) = (node.sender(), node.bd_seq, node.own());
                let stored = ToStore { format: FORMAT, key, sender, bd_seq, own };
                let bytes = NOTE_BYTES + key.bytes() + sender.len() + own.bytes();
                let devices =
                    node.devices().iter().filter_map(|(device, declared)| put_device(&name, device, declared));
                let mut changes = vec![Change::RemoveAll(device_note(&name, ""))];
                changes.extend(encode(&stored, bytes).map(|note| Change::Put(name.clone(), note)));
                changes.extend(devices);
                changes
            }
            Stale::Devices(devices) => devices
                .iter()
                .filter_map(|device| match node.declared(Some(device)) {
                    Some(declared) => put_device(&name, device, declared),
                    None => Some(Change::Remove(device_note(&name, device))),
                })
                .collect(),
        }
    }

    /// Restores a node or a device from its note; `false` if there is no room, or this version cannot read the note.
    /// Notes must come in name order, with the same `last`.
    pub(super) fn restore(&mut self, last: &mut LastNode, name: &str, note: &[u8]) -> bool {
        // The size in memory is unknown before decoding, but a note is no larger than its node or device.
        let has_room = note.len() <= self.bounds().node && self.bytes() + note.len() <= self.bounds().all;
        match name.split_once('/') {
            None => {
                last.0 = self.restore_node(name, note, has_room).map(|key| (name.to_owned(), key));
                last.0.is_some()
            }
            Some((node, device)) => match &last.0 {
                Some((name, key)) if name == node && has_room => self.restore_device(key, device, note),
                _ => false,
            },
        }
    }

    fn restore_node(&mut self, name: &str, note: &[u8], has_room: bool) -> Option<NodeKey> {
        let stored = postcard::from_bytes::<Stored>(note).ok().filter(|stored| has_room && stored.format == FORMAT)?;
        let Stored { key, sender, bd_seq, own, .. } = stored;
        if key.note() != name {
            return None;
        }
        self.update(&key, &sender, true, |node| {
            node.bd_seq = bd_seq;
            node.declare(own);
        });
        if !self.fits(&key) {
            self.take(&key);
            return None;
        }
        Some(key)
    }

    fn restore_device(&mut self, key: &NodeKey, device: &str, note: &[u8]) -> bool {
        let Ok((FORMAT, declared)) = postcard::from_bytes::<(u8, Declared)>(note) else { return false };
        let Some(sender) = self.find(key).map(|node| node.sender().to_owned()) else { return false };
        self.update(key, &sender, false, |node| node.declare_device(device.to_owned(), declared));
        let fits = self.fits(key);
        if !fits {
            self.update(key, &sender, false, |node| node.refuse(Some(device)));
            self.fits(key);
        }
        fits
    }
}

/// Name of the node's note to which a note belongs.
pub(super) fn node_of(note: &str) -> &str {
    note.split_once('/').map_or(note, |(node, _)| node)
}

fn device_note(node: &str, device: &str) -> String {
    format!("{node}/{device}")
}

fn put_device(node: &str, device: &str, declared: &Declared) -> Option<Change> {
    let note = encode(&(FORMAT, declared), NOTE_BYTES + declared.bytes())?;
    Some(Change::Put(device_note(node, device), note))
}

fn encode(stored: &impl Serialize, bytes: usize) -> Option<Vec<u8>> {
    postcard::to_extend(stored, Vec::with_capacity(bytes)).ok()
}
