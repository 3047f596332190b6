//! What a user decides about a journal. It checks nothing against a directory; opening does.

use super::disk::BLOCK;
use std::path::PathBuf;

/// What becomes of segments that are not needed to recover any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retention {
    /// They stay: the log is the audit trail.
    #[default]
    Keep,
    /// They are moved to another directory, which must exist.
    Archive(PathBuf),
    /// They are removed.
    Delete,
}

/// Where and how a journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalOptions {
    /// The directory, which holds this journal and nothing else. It is created if it isn't there.
    pub dir: PathBuf,
    /// The size of a full-grown segment in bytes (64 MiB); the first ones of a run are smaller. A larger batch makes
    /// its segment larger.
    pub segment_size: u64,
    /// The size of the first segment of a run in bytes (1 MiB); each next one is at most 4 times as large.
    pub first_segment_size: u64,
    /// A snapshot is made when closed segments hold so many bytes since the last one (1 GiB); `None`: never.
    pub snapshot_every_bytes: Option<u64>,
    /// What becomes of old segments once the second newest snapshot covers them; without snapshots all stay.
    pub retention: Retention,
}

impl JournalOptions {
    /// The defaults, in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_size: 64 << 20,
            first_segment_size: 1 << 20,
            snapshot_every_bytes: Some(1 << 30),
            retention: Retention::default(),
        }
    }

    /// A size in whole blocks, at least the header's and one more.
    pub(super) fn whole(size: u64) -> u64 {
        let block = BLOCK as u64;
        size.clamp(2 * block, 1 << 40).next_multiple_of(block)
    }

    /// The size of the segment after one of `len` bytes.
    pub(super) fn size_after(&self, len: u64) -> u64 {
        const GROWTH: u64 = 4;
        Self::whole(len.saturating_mul(GROWTH).min(self.segment_size))
    }
}
