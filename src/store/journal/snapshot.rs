//! A snapshot: the state after a closed segment's last batch, as a stream of state records in a file of its own.
//!
//! ```text
//! snapshot-00000000000000012345.state:   header (one block) | records, 128 bytes each | zeros to the block's end
//! ```
//!
//! It is made from the log (by [`keeper`](super::keeper)), never from the live state, and counts once it bears its
//! name. A damaged one is passed over for an older one or for the log itself, as long as that reaches back far enough.
//!
//! Invariants. I1: the header names the batch, hash, sequence, stamp and sources it stands on, and the segment that
//! goes on from there. I2: nothing of a snapshot reaches a replica before all of it was verified.

use super::disk::{Access, BLOCK, Blocks, Disk, DiskFile, Window, place};
use super::scan::ChainEnd;
use super::segment::{JOURNAL_VERSION, can_count_on, unfinished};
use super::{damaged, fatal, io_failed};
use crate::store::{Replica, StoreError};
use crate::types::record::{RECORD_SIZE, Reader, Writer};
use crate::types::{BatchHash, SOURCES_MAX, SourcePosition, StateRecord, Timestamp};
use std::io;

const MAGIC: [u8; 8] = *b"stockSNP";
/// Records are read and written so many bytes at a time.
const CHUNK: usize = 1 << 20;
const HASH_SIZE: usize = 32;

const _: () = assert!(
    CHUNK.is_multiple_of(RECORD_SIZE) && CHUNK.is_multiple_of(BLOCK),
    "a chunk holds whole records and whole blocks"
);

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotHeader {
    pub(super) shard: u16,
    pub(super) chain: ChainEnd,
    /// The segment whose first batch follows.
    pub(super) next_segment: u64,
    records: u64,
    body_hash: [u8; HASH_SIZE],
}

pub(super) fn snapshot_name(batch: u64) -> String {
    format!("snapshot-{batch:020}.state")
}

pub(super) fn snapshot_batch(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".state")?;
    digits
        .parse()
        .ok()
        .filter(|&batch| snapshot_name(batch) == name)
}

/// The batches that a directory has snapshots of, the last first.
pub(super) fn snapshots(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    let names = disk.list()?;
    let mut batches: Vec<u64> = names
        .iter()
        .filter_map(|name| snapshot_batch(name))
        .collect();
    batches.sort_unstable_by(|a, b| b.cmp(a));
    Ok(batches)
}

impl SnapshotHeader {
    fn encode(&self, block: &mut [u8]) {
        let chain = &self.chain;
        let mut w = Writer::new(block);
        w.bytes(&MAGIC).u32(JOURNAL_VERSION).u16(self.shard);
        w.u16(u16::try_from(chain.sources.len()).unwrap_or(u16::MAX));
        w.u64(chain.number)
            .bytes(&chain.hash.0)
            .u64(chain.stamp.as_micros())
            .u64(chain.sequence);
        w.u64(self.next_segment)
            .u64(self.records)
            .bytes(&self.body_hash);
        for source in &chain.sources {
            w.u64(source.source).u64(source.position);
        }
        let (fields, check) = block.split_at_mut(BLOCK - HASH_SIZE);
        check.copy_from_slice(blake3::hash(fields).as_bytes());
    }

    fn decode(block: &[u8]) -> Result<Self, String> {
        let (fields, check) = block.split_at(BLOCK - HASH_SIZE);
        let mut r = Reader::new(fields);
        let magic: [u8; 8] = r.bytes();
        if magic != MAGIC {
            return Err("this is no snapshot of a journal".to_owned());
        }
        let version = r.u32();
        if version > JOURNAL_VERSION {
            return Err(format!(
                "snapshot format {version} (this release reads {JOURNAL_VERSION}); use the release that wrote it"
            ));
        }
        let (shard, sources) = (r.u16(), usize::from(r.u16()));
        if blake3::hash(fields).as_bytes() != check || sources > SOURCES_MAX {
            return Err("the snapshot's header is damaged".to_owned());
        }
        let mut chain = ChainEnd {
            number: r.u64(),
            hash: BatchHash(r.bytes()),
            stamp: Timestamp::from_micros(r.u64()),
            sequence: r.u64(),
            sources: Vec::new(),
        };
        let (next_segment, records, body_hash) = (r.u64(), r.u64(), r.bytes());
        if !can_count_on(&[chain.number, chain.sequence, next_segment]) {
            return Err("the snapshot's numbers are out of range".to_owned());
        }
        chain.sources.extend((0..sources).map(|_| SourcePosition {
            source: r.u64(),
            position: r.u64(),
        }));
        Ok(Self {
            shard,
            chain,
            next_segment,
            records,
            body_hash,
        })
    }
}

/// Writes the state of `replica`, which stands after `chain`, and makes it count.
///
/// # Errors
/// Those of the disk; the unfinished file is removed.
pub(super) fn write(
    disk: &dyn Disk,
    shard: u16,
    chain: &ChainEnd,
    next_segment: u64,
    replica: &dyn Replica,
) -> io::Result<()> {
    let name = snapshot_name(chain.number);
    let temporary = unfinished(&name);
    let written = disk.open(&temporary, Access::Fill).and_then(|file| {
        let mut body = Body::new(file);
        replica.export(&mut |record| body.push(record));
        let (file, records, body_hash) = body.finish()?;
        let mut block = Blocks::zeroed(BLOCK);
        SnapshotHeader {
            shard,
            chain: chain.clone(),
            next_segment,
            records,
            body_hash,
        }
        .encode(&mut block);
        file.write_at(&block, 0)?;
        file.sync()
    });
    if let Err(error) = written {
        // Best effort: the next opening removes it as well.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.rename(&temporary, &name)?;
    disk.sync()
}

/// The records of a snapshot that is being written. The first error stops it and is told at the end.
struct Body {
    file: Box<dyn DiskFile>,
    chunk: Blocks,
    filled: usize,
    at: u64,
    records: u64,
    hasher: blake3::Hasher,
    failed: Option<io::Error>,
}

impl Body {
    fn new(file: Box<dyn DiskFile>) -> Self {
        Self {
            file,
            chunk: Blocks::zeroed(CHUNK),
            filled: 0,
            at: BLOCK as u64,
            records: 0,
            hasher: blake3::Hasher::new(),
            failed: None,
        }
    }

    fn push(&mut self, record: &StateRecord) {
        if self.failed.is_some() {
            return;
        }
        if self.filled == CHUNK {
            self.failed = self.flush().err();
        }
        self.chunk[self.filled..self.filled + RECORD_SIZE].copy_from_slice(&record.encode());
        self.filled += RECORD_SIZE;
        self.records += 1;
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.chunk[..self.filled]);
        let whole = self.filled.next_multiple_of(BLOCK);
        self.chunk[self.filled..whole].fill(0);
        self.file.write_at(&self.chunk[..whole], self.at)?;
        self.at += whole as u64;
        self.filled = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<(Box<dyn DiskFile>, u64, [u8; HASH_SIZE])> {
        match self.failed.take() {
            Some(error) => return Err(error),
            None => self.flush()?,
        }
        Ok((self.file, self.records, *self.hasher.finalize().as_bytes()))
    }
}

/// Reads a snapshot's header and verifies all of it.
pub(super) fn verify(disk: &dyn Disk, batch: u64) -> Result<SnapshotHeader, StoreError> {
    let name = snapshot_name(batch);
    let header = read_header(disk, &name)?;
    if header.chain.number != batch {
        return Err(damaged(disk, &name, 0, "the file was renamed"));
    }
    let mut hasher = blake3::Hasher::new();
    each_chunk(disk, &name, &header, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    if hasher.finalize().as_bytes() != &header.body_hash {
        return Err(damaged(
            disk,
            &name,
            BLOCK as u64,
            "the snapshot's records are damaged",
        ));
    }
    Ok(header)
}

fn read_header(disk: &dyn Disk, name: &str) -> Result<SnapshotHeader, StoreError> {
    let failed = |error: &io::Error| io_failed(error, &place(disk, name), "reading a snapshot");
    let mut window = Window::open(disk, name).map_err(|error| failed(&error))?;
    if window.len() < BLOCK as u64 {
        return Err(damaged(disk, name, 0, "the file is cut short"));
    }
    let block = window.get(0, BLOCK).map_err(|error| failed(&error))?;
    SnapshotHeader::decode(block).map_err(|what| damaged(disk, name, 0, &what))
}

/// Gives the records' bytes in whole records.
fn each_chunk(
    disk: &dyn Disk,
    name: &str,
    header: &SnapshotHeader,
    take: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error: &io::Error| io_failed(error, &place(disk, name), "reading a snapshot");
    let mut window = Window::open(disk, name).map_err(|error| failed(&error))?;
    let body_len = header.records.saturating_mul(RECORD_SIZE as u64);
    if body_len > window.len().saturating_sub(BLOCK as u64) {
        return Err(damaged(disk, name, window.len(), "the file is cut short"));
    }
    let end = BLOCK as u64 + body_len;
    let mut at = BLOCK as u64;
    while at < end {
        let len = usize::try_from(end - at).map_or(CHUNK, |rest| rest.min(CHUNK));
        take(window.get(at, len).map_err(|error| failed(&error))?)?;
        at += len as u64;
    }
    Ok(())
}

/// The newest snapshot that is whole; those passed over are told in `warnings`.
///
/// # Errors
/// If it is of another shard, or the directory can't be read.
pub(super) fn newest(
    disk: &dyn Disk,
    shard: Option<u16>,
    warnings: &mut Vec<String>,
) -> Result<Option<SnapshotHeader>, StoreError> {
    newest_of(disk, shard, |_| true, warnings)
}

/// The newest usable snapshot of those that stand on such a batch.
pub(super) fn newest_of(
    disk: &dyn Disk,
    shard: Option<u16>,
    is_wanted: impl Fn(u64) -> bool,
    warnings: &mut Vec<String>,
) -> Result<Option<SnapshotHeader>, StoreError> {
    let batches =
        snapshots(disk).map_err(|error| io_failed(&error, disk.path(), "listing the directory"))?;
    for batch in batches.into_iter().filter(|&batch| is_wanted(batch)) {
        match verify(disk, batch) {
            Ok(header) if shard.is_some_and(|shard| shard != header.shard) => {
                let what = format!("the snapshot is of shard {}", header.shard);
                return Err(damaged(disk, &snapshot_name(batch), 0, &what));
            }
            Ok(header) => return Ok(Some(header)),
            Err(error) => warnings.push(format!("a snapshot was passed over: {error}")),
        }
    }
    Ok(None)
}

/// Gives a verified snapshot to a replica.
pub(super) fn restore(
    disk: &dyn Disk,
    header: &SnapshotHeader,
    replica: &mut dyn Replica,
) -> Result<(), StoreError> {
    let name = snapshot_name(header.chain.number);
    each_chunk(disk, &name, header, &mut |bytes| {
        for record in bytes.as_chunks::<RECORD_SIZE>().0 {
            StateRecord::decode(record)
                .map_err(Into::into)
                .and_then(|record| replica.restore(&record))
                .map_err(|error| fatal(format!("{}: {error}", place(disk, &name).display())))?;
        }
        Ok(())
    })
}
