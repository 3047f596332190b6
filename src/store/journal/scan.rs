//! Reads the log forward and decides where it ends: verifies frames, batches and the chain between them. It holds no
//! state of the inventory; whoever calls it is fed the batches.
//!
//! ```text
//! | frame n-1 | frame n | ? ...
//!                        `- zeros to the end of the file          the segment ends here
//!                        `- anything else, and proof that a       damage: refused, with file and offset
//!                           batch beyond n was committed
//!                        `- anything else                         a torn write: dropped, and reported
//! ```
//!
//! Proof is: a whole frame further on in the file; a later segment whose base is beyond n; a later segment with a frame
//! that doesn't follow n. A later segment that goes on with n + 1 under the right hash proves the opposite: that
//! an earlier recovery has dropped this tail already.
//!
//! Invariants. I1: batches are fed in order, each whole (its BLAKE3 hash computed anew) and linked to the one before.
//! I2: nothing after a place that was refused is fed.

use super::disk::{Disk, Window, place};
use super::frame::{FRAME_ALIGN, FRAME_HEADER_SIZE, FRAME_MAGIC, FrameHeader, FrameKind};
use super::segment::{FRAMES_START, Segment, segment_name};
use super::{damaged, io_failed};
use crate::store::{Recovered, StoreError};
use crate::types::{Batch, BatchHash, SourcePosition, Timestamp};
use std::io;

/// The last batch of a log, and what follows from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChainEnd {
    pub(super) number: u64,
    pub(super) hash: BatchHash,
    pub(super) stamp: Timestamp,
    pub(super) sequence: u64,
    pub(super) sources: Vec<SourcePosition>,
}

impl ChainEnd {
    /// Moves on to the next batch.
    pub(super) fn follow(&mut self, batch: &Batch) {
        self.number = batch.header.number;
        self.hash = batch.hash();
        self.stamp = batch.header.stamp;
        self.sequence = batch.last_sequence();
        self.sources.clone_from(&batch.header.sources);
    }

    /// Why a batch doesn't follow.
    pub(super) fn refuses(&self, batch: &Batch) -> Option<String> {
        let header = &batch.header;
        let (number, next) = (header.number, self.number + 1);
        if number != next {
            Some(format!("batch {next} is missing, batch {number} is there"))
        } else if header.prev_hash != self.hash {
            Some(format!(
                "batch {number} belongs to another history (its predecessor's hash differs)"
            ))
        } else if header.first_sequence != self.sequence + 1 {
            Some(format!("batch {number} doesn't go on with the sequence"))
        } else if header.stamp < self.stamp {
            Some(format!("batch {number} is older than its predecessor"))
        } else {
            None
        }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) chain: ChainEnd,
    pub(super) batches_read: u64,
    pub(super) events_read: u64,
    pub(super) dropped_tail: Option<String>,
    /// The index of the last segment with a frame, and where its frames end.
    pub(super) end: Option<(u64, u64)>,
}

impl Scanned {
    pub(super) fn into_recovered(self) -> Recovered {
        Recovered {
            last_batch: self.chain.number,
            last_hash: self.chain.hash,
            last_stamp: self.chain.stamp,
            last_sequence: self.chain.sequence,
            sources: self.chain.sources,
            batches_read: self.batches_read,
            events_read: self.events_read,
            dropped_tail: self.dropped_tail,
            ..Recovered::default()
        }
    }
}

/// Takes each batch and the bytes read so far, which never go back; it may swap the batch for another one, whose buffers
/// are used next.
pub(super) type Feed<'a> = dyn FnMut(&mut Batch, u64) -> Result<(), StoreError> + 'a;

/// Reads `segments`, which begin right after `from`.
pub(super) fn scan(
    disk: &dyn Disk,
    segments: &[Segment],
    from: ChainEnd,
    feed: &mut Feed<'_>,
) -> Result<Scanned, StoreError> {
    let mut scan = Scan {
        disk,
        found: Scanned {
            chain: from,
            ..Scanned::default()
        },
        segments,
        stopped: None,
        batch: Batch::default(),
        bytes_before: 0,
        bytes_read: 0,
    };
    for segment in segments {
        scan.check_base(segment)?;
        scan.segment(segment, FRAMES_START, feed)?;
        scan.bytes_before += segment.len;
    }
    Ok(scan.found)
}

struct Scan<'a> {
    disk: &'a dyn Disk,
    found: Scanned,
    segments: &'a [Segment],
    /// The index of the segment, and the offset in it, where the next frame would be: the place to name if a later
    /// segment proves that something is missing.
    stopped: Option<(u64, u64)>,
    batch: Batch,
    bytes_before: u64,
    /// What the feed was told last: a segment that grew meanwhile takes it beyond the next one's beginning.
    bytes_read: u64,
}

/// What stands at an offset.
enum Found {
    Batch { end: u64 },
    Seal { header: FrameHeader },
    End,
    Garbage(String),
}

impl Scan<'_> {
    /// A segment's base is durable in an earlier one.
    fn check_base(&mut self, segment: &Segment) -> Result<(), StoreError> {
        let (header, chain) = (&segment.header, &self.found.chain);
        let exact = (header.base_number, header.base_hash) == (chain.number, chain.hash);
        if header.base_number > chain.number {
            return Err(self.missing(
                segment,
                &format!(
                    "batch {} is missing or damaged, batch {} was committed",
                    chain.number + 1,
                    header.base_number
                ),
            ));
        }
        if header.takeover && !exact {
            let what = format!(
                "the writer found batch {} last, the log before it ends with another batch {}",
                header.base_number, chain.number
            );
            return Err(damaged(self.disk, &segment.name(), 0, &what));
        }
        if header.takeover {
            // It was dropped, and reported, when this writer came.
            self.found.dropped_tail = None;
        }
        Ok(())
    }

    /// Something is missing before this segment: names the place where the log stopped.
    fn missing(&self, segment: &Segment, what: &str) -> StoreError {
        let (name, offset) = match self.stopped {
            Some((before, offset)) => (segment_name(before), offset),
            None if segment.header.index > 1 => (segment_name(segment.header.index - 1), 0),
            None => (segment.name(), 0),
        };
        damaged(self.disk, &name, offset, what)
    }

    /// Reads a segment from `at` on. A writer may be at work: before anything is called damaged it is read once more.
    fn segment(
        &mut self,
        segment: &Segment,
        mut at: u64,
        feed: &mut Feed<'_>,
    ) -> Result<(), StoreError> {
        let name = segment.name();
        let path = place(self.disk, &name);
        let failed = |error: &io::Error| io_failed(error, &path, "reading the log");
        let mut window = Window::open(self.disk, &name).map_err(|error| failed(&error))?;
        let from = at;
        let (mut read_again, mut garbage) = (false, false);
        loop {
            let found = self.frame_at(&mut window, at, segment);
            match found.map_err(|error| failed(&error))? {
                Found::Batch { end } => {
                    if at == FRAMES_START && self.is_ahead() && !read_again {
                        // The segment before may have grown since it was read.
                        self.catch_up(segment, feed)?;
                        read_again = true;
                        continue;
                    }
                    self.check_batch(segment, at)?;
                    self.take_batch(end, feed)?;
                    at = end;
                    self.found.end = Some((segment.header.index, at));
                    read_again = false;
                }
                Found::Seal { header } => {
                    self.check_seal(&header, segment, at)?;
                    at += FRAME_HEADER_SIZE as u64;
                    self.found.end = Some((segment.header.index, at));
                    break;
                }
                Found::End => break,
                Found::Garbage(what) => {
                    let later = find_frame(&mut window, at, segment);
                    match later.map_err(|error| failed(&error))? {
                        // The seal's first copy is damaged, and nothing else.
                        Some(header) if self.check_seal(&header, segment, at).is_ok() => {
                            self.found.end = Some((segment.header.index, window.len()));
                            break;
                        }
                        Some(_) if !read_again => {
                            window =
                                Window::open(self.disk, &name).map_err(|error| failed(&error))?;
                            read_again = true;
                            continue;
                        }
                        Some(header) => {
                            let number = header.number;
                            let what = format!("{what}, and batch {number} was committed");
                            return Err(damaged(self.disk, &name, at, &what));
                        }
                        None => {}
                    }
                    self.found.dropped_tail = Some(format!(
                        "{}, byte {at}: {what}; it was not acknowledged, or nothing was after it",
                        path.display()
                    ));
                    garbage = true;
                    break;
                }
            }
        }
        // Segments that were prepared and never used don't move it.
        if at > from || garbage || self.stopped.is_none() {
            self.stopped = Some((segment.header.index, at));
        }
        Ok(())
    }

    /// True if the batch that was read is not the next one but a later one.
    fn is_ahead(&self) -> bool {
        self.batch.header.number > self.found.chain.number + 1
    }

    /// Reads on where the segments before `segment` ended.
    fn catch_up(&mut self, segment: &Segment, feed: &mut Feed<'_>) -> Result<(), StoreError> {
        let Some((first, offset)) = self.stopped else {
            return Ok(());
        };
        for before in self.segments {
            let index = before.header.index;
            if (first..segment.header.index).contains(&index) {
                let at = if index == first { offset } else { FRAMES_START };
                self.segment(before, at, feed)?;
            }
        }
        Ok(())
    }

    fn take_batch(&mut self, end: u64, feed: &mut Feed<'_>) -> Result<(), StoreError> {
        // What follows proves that an unreadable end before it was dropped in its time.
        self.found.dropped_tail = None;
        self.found.batches_read += 1;
        self.found.events_read += self.batch.event_records().len() as u64;
        self.found.chain.follow(&self.batch);
        self.bytes_read = self.bytes_read.max(self.bytes_before + end);
        feed(&mut self.batch, self.bytes_read)
    }

    /// Whether a seal says that the log is complete here.
    fn check_seal(
        &self,
        header: &FrameHeader,
        segment: &Segment,
        at: u64,
    ) -> Result<(), StoreError> {
        let chain = &self.found.chain;
        if header.kind == FrameKind::Seal
            && (header.number, header.hash) == (chain.number, chain.hash)
        {
            return Ok(());
        }
        let what = format!("the log was closed after batch {}", header.number);
        Err(damaged(self.disk, &segment.name(), at, &what))
    }

    /// Whether the batch that was read belongs here.
    fn check_batch(&self, segment: &Segment, at: u64) -> Result<(), StoreError> {
        let (batch, chain) = (&self.batch, &self.found.chain);
        let foreign = (batch.header.token, batch.header.shard)
            != (segment.header.token, segment.header.shard);
        let what = match chain.refuses(batch) {
            Some(what) if batch.header.number > chain.number && at == FRAMES_START => {
                return Err(self.missing(segment, &what));
            }
            Some(what) => what,
            None if foreign => {
                format!("batch {} has another writer's token", batch.header.number)
            }
            None => return Ok(()),
        };
        Err(damaged(self.disk, &segment.name(), at, &what))
    }

    /// Reads the frame at an offset; a batch goes to `self.batch`.
    fn frame_at(&mut self, window: &mut Window, at: u64, segment: &Segment) -> io::Result<Found> {
        let rest = window.len().saturating_sub(at);
        let frame = if rest < FRAME_HEADER_SIZE as u64 {
            None
        } else {
            let bytes = window.get(at, FRAME_HEADER_SIZE)?;
            let header = bytes.first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
            FrameHeader::decode(header, &segment.key)
        };
        let Some(header) = frame else {
            if is_zero(window, at)? {
                return Ok(Found::End);
            }
            let number = self.found.chain.number;
            return Ok(Found::Garbage(format!(
                "what follows batch {number} is no frame"
            )));
        };
        if header.kind == FrameKind::Seal {
            return Ok(Found::Seal { header });
        }
        let torn = || Found::Garbage(format!("batch {} isn't whole", header.number));
        if header.body_len > rest - FRAME_HEADER_SIZE as u64 {
            return Ok(torn());
        }
        let body_at = at + FRAME_HEADER_SIZE as u64;
        let body_len = usize::try_from(header.body_len).map_err(io::Error::other)?;
        let body = window.get(body_at, body_len)?;
        match self.batch.decode_from(body) {
            Ok(()) if self.batch.hash() == header.hash => Ok(Found::Batch {
                end: body_at + header.body_len,
            }),
            // Its bytes are as they were written, but this release can't read them: no torn write.
            Err(error) if blake3::hash(body).as_bytes() == &header.hash.0 => {
                Err(io::Error::other(error))
            }
            _ => Ok(torn()),
        }
    }
}

/// What is looked through at once in bytes.
const STRIDE: usize = 1 << 16;

/// True if the rest of the file is zero.
fn is_zero(window: &mut Window, mut at: u64) -> io::Result<bool> {
    while at < window.len() {
        let len = stride(window, at);
        // By words of 16 bytes, which the compiler turns into wide compares.
        let (words, rest) = window.get(at, len)?.as_chunks::<16>();
        if words.iter().any(|word| *word != [0; 16]) || rest.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}

/// A whole frame header of this segment after `at`, if there is one.
fn find_frame(window: &mut Window, at: u64, segment: &Segment) -> io::Result<Option<FrameHeader>> {
    let mut at = at + FRAME_ALIGN as u64;
    while at + (FRAME_HEADER_SIZE as u64) <= window.len() {
        let len = stride(window, at);
        let overlap = FRAME_HEADER_SIZE - FRAME_ALIGN;
        let bytes = window.get(at, len)?;
        for offset in (0..len.saturating_sub(overlap)).step_by(FRAME_ALIGN) {
            let rest = &bytes[offset..];
            if !rest.starts_with(&FRAME_MAGIC) {
                continue;
            }
            let header = rest
                .first_chunk()
                .and_then(|header| FrameHeader::decode(header, &segment.key));
            if header.is_some() {
                return Ok(header);
            }
        }
        at += (len - overlap).max(FRAME_ALIGN) as u64;
    }
    Ok(None)
}

fn stride(window: &Window, at: u64) -> usize {
    usize::try_from(window.len() - at).map_or(STRIDE, |rest| rest.min(STRIDE))
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Access, DiskFile};
    use super::super::segment::segments;
    use super::super::sim::SimDisk;
    use super::super::{JournalOptions, JournalStore};
    use super::*;
    use crate::store::conformance::Tally;
    use crate::store::{OpenRequest, Store};
    use crate::types::{Event, EventKind};
    use std::path::Path;
    use std::sync::Arc;

    const FIRST: &str = "segment-0000000001.log";
    const SECOND: &str = "segment-0000000002.log";

    /// A directory whose first segment reads as of earlier until the second one is opened, as beside a writer.
    struct Behind {
        earlier: SimDisk,
        disk: SimDisk,
        is_seen: std::sync::atomic::AtomicBool,
    }

    impl Disk for Behind {
        fn path(&self) -> &Path {
            self.disk.path()
        }

        fn list(&self) -> io::Result<Vec<String>> {
            self.disk.list()
        }

        fn lock(&self) -> io::Result<Option<Box<dyn Send>>> {
            self.disk.lock()
        }

        fn open(&self, name: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
            let order = std::sync::atomic::Ordering::SeqCst;
            if name == SECOND {
                self.is_seen.store(true, order);
            }
            let is_behind = name == FIRST && !self.is_seen.load(order);
            let disk = if is_behind { &self.earlier } else { &self.disk };
            disk.open(name, access)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.disk.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.disk.remove(name)
        }

        fn archive(&self, name: &str, to: &Path) -> io::Result<()> {
            self.disk.archive(name, to)
        }

        fn sync(&self) -> io::Result<()> {
            self.disk.sync()
        }

        fn warnings(&self) -> Vec<String> {
            self.disk.warnings()
        }
    }

    /// Commits batches of a few events each until a segment has a frame; the chain is where the writer stands.
    fn write(store: &mut JournalStore, chain: &mut ChainEnd, token: crate::types::Token, len: u64) {
        for _ in 0..len {
            let mut batch = Batch::default();
            batch.header.number = chain.number + 1;
            batch.header.token = token;
            batch.header.first_sequence = chain.sequence + 1;
            for sequence in (chain.sequence + 1..).take(9) {
                batch.push_event(&Event {
                    sequence,
                    at: batch.header.stamp,
                    shard: 0,
                    epoch: 1,
                    kind: EventKind::DeadlinesCredited { micros: sequence },
                });
            }
            batch.seal(chain.hash);
            store.commit(&batch).expect("it commits");
            chain.follow(&batch);
        }
    }

    #[test]
    fn a_segment_that_grew_while_the_log_was_read_is_read_on_and_progress_never_goes_back() {
        let options = JournalOptions {
            segment_size: 32 << 10,
            first_segment_size: 16 << 10,
            snapshot_every_bytes: None,
            ..JournalOptions::new("sim")
        };
        let disk = SimDisk::default();
        let mut store = JournalStore::simulated(options, Arc::new(disk.clone()));
        let request = OpenRequest {
            shard: 0,
            writer: 5,
            replicas: Arc::new(|| Box::new(Tally::default())),
        };
        let opened = store.open(&request, &mut Tally::default(), &mut |_| {});
        let token = opened.expect("it opens").token;
        let mut chain = ChainEnd::default();
        write(&mut store, &mut chain, token, 2);
        let earlier = disk.after_kill();
        write(&mut store, &mut chain, token, 20);

        let behind = Behind {
            earlier,
            disk,
            is_seen: false.into(),
        };
        let listed = segments(&behind.disk, Some(0), 0).expect("sound headers");
        assert!(listed.len() > 1, "it went on to a second segment");
        let mut told = 0;
        let scanned = scan(&behind, &listed, ChainEnd::default(), &mut |_, read| {
            assert!(read >= told, "{read} bytes after {told}");
            told = read;
            Ok(())
        });
        assert_eq!(scanned.expect("nothing is damaged").chain, chain);
    }
}
