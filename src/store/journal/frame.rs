//! A frame: how one batch, or a seal, stands in a segment. It leaves the batch's own bytes to [`Batch`](crate::types::Batch).
//!
//! ```text
//! 0 magic  4 kind  5 zero  8 body length  16 batch number  24 batch hash  56 check  64 body ..
//! ```
//!
//! Invariants. I1: `check` is keyed BLAKE3 of the 56 bytes before it under the segment's key, which no other segment
//! has: bytes left over from another segment never parse, and nobody who puts bytes into a batch can forge a frame.
//! I2: the body is covered by the batch's hash. I3: frames begin on multiples of 16 bytes.

use crate::types::BatchHash;
use crate::types::record::{REFUSAL_SIZE, Reader, Writer};

/// A frame's header in bytes.
pub(super) const FRAME_HEADER_SIZE: usize = 64;
/// Frames begin on multiples of it.
pub(super) const FRAME_ALIGN: usize = 16;
/// The first four bytes of a frame.
pub(super) const FRAME_MAGIC: [u8; 4] = *b"SKfr";
const CHECKED: usize = 56;

const _: () = assert!(
    FRAME_HEADER_SIZE.is_multiple_of(FRAME_ALIGN) && REFUSAL_SIZE.is_multiple_of(FRAME_ALIGN),
    "frames keep each other aligned"
);

/// The key of a segment's checks.
pub(super) type SegmentKey = [u8; 32];

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// A batch.
    Batch = 1,
    /// Nothing: the log ended in good order after the batch it names.
    Seal = 2,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: FrameKind,
    pub(super) body_len: u64,
    pub(super) number: u64,
    pub(super) hash: BatchHash,
}

impl FrameHeader {
    pub(super) fn encode(&self, key: &SegmentKey) -> [u8; FRAME_HEADER_SIZE] {
        let mut bytes = [0; FRAME_HEADER_SIZE];
        Writer::new(&mut bytes)
            .bytes(&FRAME_MAGIC)
            .u8(self.kind as u8)
            .bytes(&[0; 3])
            .u64(self.body_len)
            .u64(self.number)
            .bytes(&self.hash.0);
        let check = check(&bytes, key);
        bytes[CHECKED..].copy_from_slice(&check);
        bytes
    }

    /// `None` if the bytes are no frame of this segment.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_SIZE], key: &SegmentKey) -> Option<Self> {
        if !bytes.starts_with(&FRAME_MAGIC) || bytes[CHECKED..] != check(bytes, key) {
            return None;
        }
        let mut r = Reader::new(&bytes[FRAME_MAGIC.len()..]);
        let (kind, _): (_, [u8; 3]) = (r.u8(), r.bytes());
        let kind = match kind {
            1 => FrameKind::Batch,
            2 => FrameKind::Seal,
            _ => return None,
        };
        Some(Self {
            kind,
            body_len: r.u64(),
            number: r.u64(),
            hash: BatchHash(r.bytes()),
        })
    }
}

fn check(bytes: &[u8; FRAME_HEADER_SIZE], key: &SegmentKey) -> [u8; FRAME_HEADER_SIZE - CHECKED] {
    let hash = blake3::keyed_hash(key, &bytes[..CHECKED]);
    let mut check = [0; FRAME_HEADER_SIZE - CHECKED];
    check.copy_from_slice(&hash.as_bytes()[..FRAME_HEADER_SIZE - CHECKED]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FrameHeader = FrameHeader {
        kind: FrameKind::Batch,
        body_len: 128,
        number: 7,
        hash: BatchHash([3; 32]),
    };

    #[test]
    fn a_frame_reads_back_under_its_key_only() {
        let bytes = HEADER.encode(&[1; 32]);
        assert_eq!(FrameHeader::decode(&bytes, &[1; 32]), Some(HEADER));
        assert_eq!(
            FrameHeader::decode(&bytes, &[2; 32]),
            None,
            "another segment's frame"
        );
    }

    #[test]
    fn a_frame_with_any_bit_flipped_is_none() {
        let bytes = HEADER.encode(&[1; 32]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped, &[1; 32]), None, "bit {bit}");
        }
    }
}
