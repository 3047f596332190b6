//! A segment: one file of the log, its name and its header.
//!
//! ```text
//! segment-0000000007.log:   header (one block) | frame | frame | .. | zeros to the prepared size
//! ```
//!
//! The header is durable before the file gets its name, and never written again. It names its writer and, as its
//! *base*, a batch that was durable before: so a segment vouches for everything up to its base, and one that opens a
//! writer's role (`takeover`) for exactly everything that this writer found.
//!
//! Invariants. I1: indexes are dense. I2: epochs never go back, and rise at every takeover segment only. I3: a file of
//! a segment's name has a whole header. I4: every batch in it bears the header's token and shard.

use super::disk::{Access, BLOCK, Blocks, Disk, place};
use super::frame::SegmentKey;
use super::{damaged, io_failed};
use crate::store::StoreError;
use crate::types::record::{Reader, Writer};
use crate::types::{BatchHash, SEQUENCE_MAX, Token};
use std::io;

/// The version of a segment's, a frame's and a snapshot's layout.
pub(super) const JOURNAL_VERSION: u32 = 1;
/// The first frame of a segment.
pub(super) const FRAMES_START: u64 = BLOCK as u64;
const MAGIC: [u8; 8] = *b"stockade";
/// magic 8, version 4, shard 2, takeover 2, index 8, epoch 8, writer 16, base number 8, base hash 32
const CHECKED: usize = 8 + 4 + 2 + 2 + 8 + 8 + 16 + 8 + 32;
/// The end of the name of a file that is being made.
const UNFINISHED: &str = ".new";
/// Zeros are written so many at a time, so that a commit never waits behind many.
const FILL_SLICE: usize = 1 << 18;

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) shard: u16,
    pub(super) takeover: bool,
    pub(super) index: u64,
    pub(super) token: Token,
    /// A batch that is durable in an earlier segment: exactly the last one if `takeover`.
    pub(super) base_number: u64,
    pub(super) base_hash: BatchHash,
}

/// A segment as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) key: SegmentKey,
    pub(super) len: u64,
}

impl Segment {
    pub(super) fn name(&self) -> String {
        segment_name(self.header.index)
    }
}

pub(super) fn segment_name(index: u64) -> String {
    format!("segment-{index:010}.log")
}

/// A file that is being made: without its final name it doesn't count, and an opening removes it.
pub(super) fn unfinished(name: &str) -> String {
    format!("{name}{UNFINISHED}")
}

/// True if each of these can be followed by the next one. A log counts them up one by one and never gets there, so
/// larger ones are forged; that they are refused keeps every `+ 1` from overflowing.
pub(super) fn can_count_on(numbers: &[u64]) -> bool {
    numbers.iter().all(|&number| number < SEQUENCE_MAX)
}

/// True for a file that was never finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some()
}

pub(super) fn segment_index(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    digits
        .parse()
        .ok()
        .filter(|&index| segment_name(index) == name)
}

impl SegmentHeader {
    fn encode(&self, bytes: &mut [u8]) -> SegmentKey {
        Writer::new(bytes)
            .bytes(&MAGIC)
            .u32(JOURNAL_VERSION)
            .u16(self.shard)
            .u16(u16::from(self.takeover))
            .u64(self.index)
            .u64(self.token.epoch)
            .u128(self.token.writer)
            .u64(self.base_number)
            .bytes(&self.base_hash.0);
        let key = *blake3::hash(&bytes[..CHECKED]).as_bytes();
        bytes[CHECKED..CHECKED + key.len()].copy_from_slice(&key);
        key
    }

    fn decode(block: &[u8; BLOCK]) -> Result<(Self, SegmentKey), String> {
        let mut r = Reader::new(block);
        let magic: [u8; 8] = r.bytes();
        if magic != MAGIC {
            return Err("this is no segment of a journal".to_owned());
        }
        let version = r.u32();
        let header = Self {
            shard: r.u16(),
            takeover: r.u16() == 1,
            index: r.u64(),
            token: Token {
                epoch: r.u64(),
                writer: r.u128(),
            },
            base_number: r.u64(),
            base_hash: BatchHash(r.bytes()),
        };
        let check: SegmentKey = r.bytes();
        if version > JOURNAL_VERSION {
            return Err(format!(
                "journal format {version} (this release reads {JOURNAL_VERSION}); use the release that wrote it"
            ));
        }
        // Encoding it again covers every byte of the block, the padding too.
        let mut again = [0; BLOCK];
        let key = header.encode(&mut again);
        if check != key || again != *block {
            return Err("the segment's header is damaged".to_owned());
        }
        if !can_count_on(&[header.index, header.token.epoch]) {
            return Err("the segment's numbers are out of range".to_owned());
        }
        Ok((header, key))
    }

    /// Writes the segment's file, zero-filled to `len` bytes, and gives it its name: durable when this returns.
    /// `stop` is asked between slices; a true one gives `ErrorKind::Interrupted`.
    pub(super) fn create(
        &self,
        disk: &dyn Disk,
        len: u64,
        stop: &dyn Fn() -> bool,
    ) -> io::Result<Segment> {
        let name = segment_name(self.index);
        let temporary = unfinished(&name);
        let filled = self.fill(disk, &temporary, len, stop);
        let key = match filled {
            Ok(key) => key,
            Err(error) => {
                // Best effort: the next opening removes it as well.
                let _ = disk.remove(&temporary);
                return Err(error);
            }
        };
        disk.rename(&temporary, &name)?;
        disk.sync()?;
        Ok(Segment {
            header: self.clone(),
            key,
            len,
        })
    }

    fn fill(
        &self,
        disk: &dyn Disk,
        name: &str,
        len: u64,
        stop: &dyn Fn() -> bool,
    ) -> io::Result<SegmentKey> {
        let file = disk.open(name, Access::Fill)?;
        let slice = usize::try_from(len).map_or(FILL_SLICE, |len| len.clamp(BLOCK, FILL_SLICE));
        let mut blocks = Blocks::zeroed(slice);
        let key = self.encode(&mut blocks[..BLOCK]);
        let mut at = 0;
        while at < len.max(FRAMES_START) {
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            file.write_at(&blocks, at)?;
            at += slice as u64;
            blocks[..BLOCK].fill(0);
        }
        file.sync()?;
        Ok(key)
    }
}

/// The segments of a directory from index `first` on, in order, every header verified.
pub(super) fn segments(
    disk: &dyn Disk,
    shard: Option<u16>,
    first: u64,
) -> Result<Vec<Segment>, StoreError> {
    let names = disk
        .list()
        .map_err(|error| io_failed(&error, disk.path(), "listing the directory"))?;
    let mut indexes: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_index(name))
        .filter(|&index| index >= first)
        .collect();
    indexes.sort_unstable();
    let mut segments: Vec<Segment> = Vec::with_capacity(indexes.len());
    for index in indexes {
        let segment = read_header(disk, index)?;
        if shard.is_some_and(|shard| shard != segment.header.shard) {
            return Err(StoreError::Fatal(format!(
                "{}: this is the journal of shard {}; give every shard a directory of its own",
                disk.path().display(),
                segment.header.shard
            )));
        }
        if let Some(before) = segments.last() {
            check_neighbours(disk, &before.header, &segment.header)?;
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn check_neighbours(
    disk: &dyn Disk,
    before: &SegmentHeader,
    after: &SegmentHeader,
) -> Result<(), StoreError> {
    if before.index + 1 != after.index {
        let missing = segment_name(before.index + 1);
        return Err(damaged(disk, &missing, 0, "the file is missing"));
    }
    let follows = if after.takeover {
        after.token.epoch == before.token.epoch + 1
    } else {
        after.token == before.token
    };
    if !follows || after.shard != before.shard {
        let what = "its writer doesn't follow the one before";
        return Err(damaged(disk, &segment_name(after.index), 0, what));
    }
    Ok(())
}

fn read_header(disk: &dyn Disk, index: u64) -> Result<Segment, StoreError> {
    let name = segment_name(index);
    let mut block = Blocks::zeroed(BLOCK);
    let (len, read) = disk
        .open(&name, Access::Read)
        .and_then(|file| Ok((file.len()?, file.read_at(&mut block, 0)?)))
        .map_err(|error| io_failed(&error, &place(disk, &name), "reading the header"))?;
    let damaged = |what: &str| damaged(disk, &name, 0, what);
    let block = match block.first_chunk() {
        Some(block) if read == BLOCK => block,
        _ => return Err(damaged("the file is cut short")),
    };
    let (header, key) = SegmentHeader::decode(block).map_err(|what| damaged(&what))?;
    if header.index != index {
        return Err(damaged("the file was renamed"));
    }
    Ok(Segment { header, key, len })
}
