//! The end of the log: appends frames to the active segment, one durable write each.
//!
//! ```text
//!  block n-1        block n                  block n+1
//! |---------------|======#################|#########........|
//!                  ======  the last frame's end, written again byte for byte
//!                        ########################  the new frame; what follows it in its last block is zero
//! ```
//!
//! Nothing is padded: a frame begins where the one before ended. Its first block is written again with an identical
//! prefix, so a write that is torn between sectors leaves every older byte as it was.
//!
//! Invariants. I1: `buffer[..end % BLOCK]` is what the file holds from the last block boundary to `end`. I2: after a
//! failed write nothing more is appended (the journal sees to it): what the file holds beyond `end` is unknown.

use super::disk::{Access, BLOCK, Blocks, Disk, DiskFile};
use super::segment::{FRAMES_START, Segment};
use std::io;

/// Frames larger than this are written in several pieces; only the last is then awaited by the caller.
const PIECE_MAX: usize = 1 << 23;
/// A segment that is longer than prepared grows by so many zero bytes at a time (a small one by its own size): a write that makes a
/// file longer costs a journal commit of the file system, which small batches then share.
const GROWTH: usize = 1 << 20;
/// The buffer begins so large in bytes.
const BUFFER_SIZE: usize = 1 << 18;

/// Writes the active segment.
pub(super) struct Appender {
    segment: Segment,
    file: Box<dyn DiskFile>,
    end: u64,
    /// The file has zeros or frames up to here.
    prepared: u64,
    buffer: Blocks,
    /// Zeros to grow by, once needed.
    growth: Blocks,
}

impl Appender {
    /// # Errors
    /// Those of the disk.
    pub(super) fn new(disk: &dyn Disk, segment: Segment) -> io::Result<Self> {
        Ok(Self {
            file: disk.open(&segment.name(), Access::Append)?,
            prepared: segment.len,
            segment,
            end: FRAMES_START,
            buffer: Blocks::zeroed(BUFFER_SIZE),
            growth: Blocks::default(),
        })
    }

    /// Goes on in an empty segment; the buffer stays warm.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn advance(&mut self, disk: &dyn Disk, segment: Segment) -> io::Result<()> {
        self.file = disk.open(&segment.name(), Access::Append)?;
        self.prepared = segment.len;
        self.segment = segment;
        self.end = FRAMES_START;
        Ok(())
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Where the next frame begins.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// True if nothing was written yet.
    pub(super) fn is_empty(&self) -> bool {
        self.end == FRAMES_START
    }

    /// True if so many bytes more stay within what was prepared.
    pub(super) fn fits(&self, len: u64) -> bool {
        self.end + len <= self.segment.len
    }

    /// Appends a frame, given in parts: durable when this returns.
    ///
    /// # Errors
    /// Those of the disk. What is in the file beyond the end is unknown then.
    pub(super) fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let tail = usize::try_from(self.end % BLOCK as u64).map_err(io::Error::other)?;
        let mut at = self.end - tail as u64;
        let mut filled = tail;
        let growth = usize::try_from(self.segment.len).map_or(GROWTH, |len| len.min(GROWTH));
        if self.end + len as u64 > self.prepared && len < growth {
            self.growth.grow(growth);
            self.file.write_at(&self.growth[..growth], self.prepared)?;
            self.prepared += growth as u64;
        }
        let wanted = (tail + len).min(PIECE_MAX).next_multiple_of(BLOCK);
        if self.buffer.len() < wanted {
            // Twice as much as needed: batches of a growing load don't each allocate.
            self.buffer.grow((2 * wanted).min(PIECE_MAX));
        }
        let room = self.buffer.len();
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                if filled == room {
                    self.file.write_at(&self.buffer[..room], at)?;
                    at += room as u64;
                    filled = 0;
                }
                let (now, later) = rest.split_at(rest.len().min(room - filled));
                self.buffer[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                rest = later;
            }
        }
        let written = filled.next_multiple_of(BLOCK);
        self.buffer[filled..written].fill(0);
        self.file.write_at(&self.buffer[..written], at)?;
        let last_block = filled - filled % BLOCK;
        self.buffer.copy_within(last_block..filled, 0);
        self.end += len as u64;
        self.prepared = self.prepared.max(at + written as u64);
        Ok(())
    }
}
