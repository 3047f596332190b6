//! The file layer: the few operations on one directory that a journal is made of, as a trait.
//!
//! It knows names, bytes and durability, and nothing of segments or batches. The real one is
//! [`directory`](super::directory); the crash tests put one in its place that loses what was not synced.
//!
//! Invariants. I1: offsets and lengths of reads and writes are whole blocks, and buffers are aligned to blocks, so
//! that an implementation may go past the page cache. I2: what is written through [`Access::Append`] is durable when
//! the write returns; through [`Access::Fill`] it is after `sync`. I3: names are durable after the directory's `sync`.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

/// The unit of reads and writes in bytes: no device asks for a coarser alignment.
pub(super) const BLOCK: usize = 4096;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// An existing file, to be read.
    Read,
    /// A new file (an old one of that name is emptied), durable once synced.
    Fill,
    /// An existing file; every write is durable when it returns.
    Append,
}

/// A directory.
pub(super) trait Disk: Send + Sync {
    /// Where it is, for messages.
    fn path(&self) -> &Path;
    /// The names in it, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Keeps every other writer out until the guard is dropped. `None`: there is another.
    fn lock(&self) -> io::Result<Option<Box<dyn Send>>>;
    /// Opens a file.
    fn open(&self, name: &str, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file; one of the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Moves a file to another directory, durably.
    fn archive(&self, name: &str, to: &Path) -> io::Result<()>;
    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;
    /// What an operator should know of it.
    fn warnings(&self) -> Vec<String>;
}

/// An open file.
pub(super) trait DiskFile: Send {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads at most `bytes.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts it to `len`.
    fn cut(&self, len: u64) -> io::Result<()>;
    /// Makes it durable, its length included.
    fn sync(&self) -> io::Result<()>;
}

/// The full name of a file, for messages.
pub(super) fn place(disk: &dyn Disk, name: &str) -> PathBuf {
    disk.path().join(name)
}

/// Bytes that begin on a block's boundary.
///
/// A vector has one block more than it needs and its use begins at the first boundary; its storage never moves but
/// in `resize`. Were it not aligned, a direct write would fail, nothing worse.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Blocks {
    /// `len` zero bytes.
    pub(super) fn zeroed(len: usize) -> Self {
        let mut blocks = Self::default();
        blocks.grow(len);
        blocks
    }

    /// Makes room for at least `len` bytes; what it holds stays.
    pub(super) fn grow(&mut self, len: usize) {
        if len <= self.len {
            return;
        }
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        assert!(start <= BLOCK, "a byte pointer can be aligned");
        let old = std::mem::replace(self, Self { bytes, start, len });
        self[..old.len].copy_from_slice(&old);
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Reads a file forward through one large buffer; a jump back is allowed and reads again.
pub(super) struct Window {
    file: Box<dyn DiskFile>,
    len: u64,
    blocks: Blocks,
    start: u64,
    filled: usize,
}

/// What a window reads at once in bytes: large enough for a disk to reach its bandwidth.
const WINDOW_SIZE: usize = 1 << 21;

impl Window {
    /// # Errors
    /// Those of the disk.
    pub(super) fn open(disk: &dyn Disk, name: &str) -> io::Result<Self> {
        let file = disk.open(name, Access::Read)?;
        let len = file.len()?;
        Ok(Self {
            file,
            len,
            blocks: Blocks::default(),
            start: 0,
            filled: 0,
        })
    }

    /// The file's length when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes `at..at + len`.
    ///
    /// # Errors
    /// Those of the disk, and `UnexpectedEof`.
    pub(super) fn get(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let filled_end = self.start + self.filled as u64;
        if at < self.start || at + len as u64 > filled_end {
            self.fill(at, len)?;
        }
        let offset = usize::try_from(at - self.start).map_err(io::Error::other)?;
        Ok(&self.blocks[offset..offset + len])
    }

    fn fill(&mut self, at: u64, len: usize) -> io::Result<()> {
        if at + len as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = at - at % BLOCK as u64;
        let whole = self.filled - self.filled % BLOCK;
        let kept = (self.start..self.start + whole as u64)
            .contains(&start)
            .then(|| usize::try_from(start - self.start).unwrap_or(whole));
        match kept {
            Some(offset) => self.blocks.copy_within(offset..whole, 0),
            None => self.filled = 0,
        }
        self.filled = kept.map_or(0, |offset| whole - offset);
        self.start = start;
        let rest = usize::try_from(self.len - start).unwrap_or(usize::MAX - BLOCK);
        let wanted = (len + BLOCK)
            .max(WINDOW_SIZE)
            .min(rest)
            .next_multiple_of(BLOCK);
        self.blocks.grow(wanted);
        while self.filled < wanted && self.start + (self.filled as u64) < self.len {
            let from = self.start + self.filled as u64;
            let read = self
                .file
                .read_at(&mut self.blocks[self.filled..wanted], from)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += read;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_keep_their_bytes_when_they_grow() {
        let mut blocks = Blocks::zeroed(BLOCK);
        blocks[17] = 42;
        for len in [BLOCK, 3 * BLOCK, 1 << 20] {
            blocks.grow(len);
            assert_eq!(
                (blocks.as_ptr().align_offset(BLOCK), blocks[17]),
                (0, 42),
                "at {len}"
            );
        }
    }
}
