//! What is on the disk of edge nodes: a note of a node and, behind it in the order of their names, a note of each of its
//! devices, so that the birth of a device writes no more than what it declares.
//!
//! Invariant: a note of a device counts only with the note of its node.

use super::declared::Declared;
use super::nodes::{NodeKey, Nodes};
use crate::journal::Change;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FORMAT: u8 = 2;
/// What the format, a list of each kind and their lengths take in a note beside texts and metrics.
const NOTE_BYTES: usize = 64;
/// An entry of a set beside the name in it.
const NAME_BYTES: usize = 64;

/// Notes of a node that differ from what is in memory.
#[derive(Debug)]
pub(super) enum Stale {
    /// Of the node and of all its devices.
    All,
    Devices(BTreeSet<String>),
}

impl Stale {
    pub(super) fn device(name: &str) -> Self {
        Self::Devices(BTreeSet::from([name.to_owned()]))
    }

    /// Takes over what else differs.
    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::All, _) => return,
            (Self::Devices(names), Self::Devices(others)) => return names.extend(others),
            (Self::Devices(_), Self::All) => {}
        }
        *self = Self::All;
    }

    /// Bytes of memory that the names take.
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

/// A node as its note holds it. The order of the fields is the stored format.
#[derive(Deserialize)]
struct Stored {
    format: u8,
    key: NodeKey,
    sender: String,
    bd_seq: Option<u64>,
    own: Declared,
}

/// The node whose note was read last, and the name of its note.
#[derive(Default)]
pub(super) struct Last(Option<(String, NodeKey)>);

impl Nodes {
    /// What brings the notes of a node to what is in memory.
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

    /// Takes a node or a device from its note, if there is room; `false` if there is none, or the note says nothing to
    /// this version. Notes come in the order of their names, with the same `last`.
    pub(super) fn restore(&mut self, last: &mut Last, name: &str, note: &[u8]) -> bool {
        // What it takes is not known before it is read, but a note takes no more than what it is of.
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
        self.follow(&key, &sender, true, |node| {
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
        self.follow(key, &sender, false, |node| node.declare_device(device.to_owned(), declared));
        let fits = self.fits(key);
        if !fits {
            self.follow(key, &sender, false, |node| node.refuse(Some(device)));
            self.fits(key);
        }
        fits
    }
}

/// The node's note that this one belongs to.
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
