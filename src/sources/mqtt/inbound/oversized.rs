//! A publish that is larger than the listener takes: its start is kept, the rest is discarded as it arrives.
//!
//! The client cannot be told to leave it out: MQTT 3.1.1 has no way to refuse one publish, and a client that is
//! disconnected sends the same publish again for ever, with everything else stuck behind it.

use crate::mqtt::packet;

/// Bytes of the start of a publish that are kept: the longest topic (64 KiB), its properties, and
/// [`PAYLOAD_KEPT_BYTES`].
pub(super) const KEPT_BYTES: usize = 160 << 10;
/// Bytes of a payload that its dead letter keeps, the same as of a message of a plant broker: enough to see what it is.
pub(super) const PAYLOAD_KEPT_BYTES: usize = 64 << 10;

/// A publish whose end has not arrived yet.
#[derive(Debug)]
pub(super) struct OversizedPublish {
    /// The first [`KEPT_BYTES`] of the packet.
    start: Vec<u8>,
    /// Length of the whole packet.
    length: usize,
    /// Bytes of the packet that have not arrived.
    missing: usize,
}

impl OversizedPublish {
    /// Returns the length of the packet at the start of `bytes` if it is a PUBLISH, and the bytes of it that are kept.
    pub(crate) fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
        let is_publish = bytes.first().is_some_and(|first| first >> 4 == 3);
        let length = packet::length(bytes).filter(|_| is_publish)?;
        Some((length, length.min(KEPT_BYTES)))
    }

    /// Begins with `bytes`, which hold everything that is to be kept. Also returns how many bytes belong to the packet.
    pub(crate) fn begin(bytes: &[u8], length: usize, kept: usize) -> (Self, usize) {
        let taken = bytes.len().min(length);
        (Self { start: bytes[..kept].to_vec(), length, missing: length - taken }, taken)
    }

    /// Discards bytes of the packet; returns what follows it.
    pub(crate) fn skip<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let skipped = self.missing.min(bytes.len());
        self.missing -= skipped;
        &bytes[skipped..]
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Bytes of the packet that have arrived.
    pub(crate) fn arrived(&self) -> usize {
        self.length - self.missing
    }

    /// Returns the start of the packet, and how many bytes of its end were discarded.
    pub(crate) fn into_parts(self) -> (Vec<u8>, usize) {
        let discarded = self.length - self.start.len();
        (self.start, discarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_skipped_to_its_end_in_pieces_of_any_size() {
        let length = 4 + KEPT_BYTES + 500;
        let mut bytes = vec![0x30];
        crate::mqtt::properties::push_varint(&mut bytes, length - 4);
        bytes.resize(length, b'x');
        bytes.extend_from_slice(b"next");
        for step in [1, 7, 1000, 1 << 20] {
            let (found, kept) = OversizedPublish::lengths(&bytes[..4]).expect("a PUBLISH");
            assert_eq!((found, kept), (length, KEPT_BYTES));
            let (mut publish, mut at) = OversizedPublish::begin(&bytes[..KEPT_BYTES + 2], length, kept);
            while !publish.is_complete() {
                let piece = &bytes[at..(at + step).min(bytes.len())];
                at += piece.len() - publish.skip(piece).len();
                assert_eq!(publish.arrived(), at);
            }
            assert_eq!(&bytes[at..], b"next");
            assert_eq!(publish.into_parts().1, 504);
        }
        assert_eq!(OversizedPublish::lengths(&[0x82, 0xFF, 0xFF, 0xFF, 0x7F]), None, "only a PUBLISH is skipped");
        assert_eq!(OversizedPublish::lengths(&[0x30, 0xFF]), None, "its length is not known yet");
    }
}
