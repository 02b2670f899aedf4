//! Decompression of bodies that senders compress: gzip (RFC 1952) and zlib (RFC 1950).
//!
//! Promise: the result never exceeds its bound, however small the compressed bytes are.

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use std::io::Read;

/// Why bytes cannot be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotInflate {
    #[error("it has more than {0} bytes when decompressed")]
    TooLarge(usize),
    #[error("the compressed bytes are damaged: {0}")]
    Damaged(String),
}

/// Decompresses gzip to at most `bytes_max` bytes.
pub(crate) fn gzip(bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, CannotInflate> {
    whole(MultiGzDecoder::new(bytes), bytes_max)
}

/// Decompresses zlib to at most `bytes_max` bytes.
pub(crate) fn zlib(bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, CannotInflate> {
    whole(ZlibDecoder::new(bytes), bytes_max)
}

fn whole(reader: impl Read, bytes_max: usize) -> Result<Vec<u8>, CannotInflate> {
    let mut out = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(limit).read_to_end(&mut out).map_err(|error| CannotInflate::Damaged(error.to_string()))?;
    if out.len() > bytes_max { Err(CannotInflate::TooLarge(bytes_max)) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    proptest! {
        #[test]
        fn what_was_compressed_comes_back_and_never_above_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..3000), bytes_max in 0..3000_usize) {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&bytes).expect("memory");
            let gzipped = encoder.finish().expect("memory");
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&bytes).expect("memory");
            let zlibbed = encoder.finish().expect("memory");
            let expected = if bytes.len() > bytes_max { Err(CannotInflate::TooLarge(bytes_max)) } else { Ok(bytes) };
            prop_assert_eq!(gzip(&gzipped, bytes_max), expected.clone());
            prop_assert_eq!(zlib(&zlibbed, bytes_max), expected);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (gzip(&bytes, 1000), zlib(&bytes, 1000));
        }
    }
}
