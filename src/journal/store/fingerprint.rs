//! Fingerprints of events, as segments store them and the dedupe window compares them.

use crate::event::{Attribute, Id, Record};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Two keyed hashes of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Hash of source, device and id; never 0.
    pub id: u64,
    /// Hash of stream, key and the stored payload.
    pub content: u64,
}

/// Size of a fingerprint in bytes, in memory and in a segment.
pub(crate) const FINGERPRINT_BYTES: usize = 16;

/// The secret key of the journal's fingerprints. Devices choose ids: without a secret key they could choose ids that
/// share a slot of the window and make every lookup long.
#[derive(Clone, Copy)]
pub(crate) struct FingerprintKey([u64; 3]);

impl std::fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FingerprintKey")
    }
}

impl FingerprintKey {
    /// Length of a stored key in bytes.
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self([0, 1, 2].map(|index| u64::from_le_bytes(words[index])))
    }

    /// The fingerprint of an event with an id from its device; `None` if the gateway minted the id. `stream` is the
    /// number of its stream in this journal.
    pub(crate) fn fingerprint(&self, record: &Record<'_>, stream: u32) -> Option<Fingerprint> {
        let original = |attribute: &Attribute<'_>| matches!(attribute, Attribute::OriginalId(_));
        let id = match record.id {
            Id::Text(id) => id,
            // The device's id belonged to another event, so the gateway minted one; repeats still carry the device's id.
            Id::Uuid(_) => match record.attributes.iter().find(|attribute| original(attribute)) {
                Some(Attribute::OriginalId(id)) => id,
                _ => return None,
            },
        };
        Some(self.of(record, id, stream))
    }

    fn of(&self, record: &Record<'_>, id: &str, stream: u32) -> Fingerprint {
        // The length of the origin separates pairs that join to the same bytes.
        let mut name = SipHasher13::new_with_keys(self.0[0], self.0[1]);
        name.write(record.origin.as_bytes());
        name.write_u32(record.origin.len() as u32);
        name.write(id.as_bytes());
        let seed = xxh3_64_with_seed(record.key.as_bytes(), self.0[2] ^ u64::from(stream));
        Fingerprint { id: name.finish().max(1), content: xxh3_64_with_seed(record.payload, seed) }
    }
}
